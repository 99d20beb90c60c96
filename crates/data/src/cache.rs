//! What networks say of pictures, kept on disk under the SHA-256 of each picture.
//!
//! Entries are written in packs, since a file for each picture of a large set would cost more than the entry. A pack is
//! `magic, count, count x (picture's hash, entry's hash, length), entries`, little-endian, written atomically under a name made of its
//! contents. So processes that share a folder never disturb each other, and a kill loses at most the pack that was being gathered.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use unif2ace_io::{IoError, RangeReader, create_dir_all, sha256, sha256_hex, write_atomic};

use crate::error::Result;

/// SHA-256 of a picture's bytes as stored.
pub type ImageHash = [u8; 32];

const MAGIC: &[u8; 8] = b"U2PACK01";
const ROW: usize = 32 + 32 + 4;
const HEADER: usize = 8 + 4;
/// A pack is written when so many entries wait, or so many bytes.
const MAX_WAITING: usize = 256;
const MAX_WAITING_BYTES: usize = 64 << 20;

/// Where an entry lies.
#[derive(Clone)]
struct Place {
    pack: usize,
    offset: u64,
    length: usize,
    hash: [u8; 32],
}

#[derive(Default)]
struct State {
    packs: Vec<PathBuf>,
    known: BTreeSet<PathBuf>,
    places: HashMap<ImageHash, Place>,
    /// Further entries of the same pictures, for where the first is damaged.
    spare: Vec<(ImageHash, Place)>,
    waiting: Vec<(ImageHash, Vec<u8>)>,
    waiting_bytes: usize,
}

/// A folder of entries for one `key`, which stands for everything else that an entry depends on: the networks' weights, above all.
pub struct ImageCache {
    folder: PathBuf,
    state: Mutex<State>,
}

impl ImageCache {
    /// Opens the entries of `key` below `folder`, which is made where it isn't there. Damaged packs are left aside with a warning.
    ///
    /// # Errors
    /// When the folder can't be made or listed.
    pub fn open(folder: &Path, key: &str) -> Result<Self> {
        let folder = folder.join(&sha256_hex(key.as_bytes())[..16]);
        create_dir_all(&folder)?;
        let cache = Self { folder, state: Mutex::default() };
        cache.look_again()?;
        Ok(cache)
    }

    /// The folder of this key's packs.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in the packs that other processes have written meanwhile.
    ///
    /// # Errors
    /// When the folder can't be listed.
    pub fn look_again(&self) -> Result<()> {
        let fail = |source| IoError::system("list", &self.folder, source);
        let mut state = self.state();
        for entry in std::fs::read_dir(&self.folder).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            if path.extension().is_some_and(|extension| extension == "pack") && !state.known.contains(&path) {
                state.known.insert(path.clone());
                match read_table(&path) {
                    Ok(rows) => state.take(path, rows),
                    Err(reason) => {
                        tracing::warn!(pack = %path.display(), reason, "damaged cache: its pictures are encoded again")
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether there is an entry; a damaged one is only found by [`Self::get`].
    pub fn contains(&self, image: &ImageHash) -> bool {
        let state = self.state();
        state.places.contains_key(image) || state.waiting.iter().any(|(hash, _)| hash == image)
    }

    /// The entry of a picture; `None` where there is none. A damaged one is forgotten with a warning.
    pub fn get(&self, image: &ImageHash) -> Option<Vec<u8>> {
        loop {
            let (path, place) = {
                let state = self.state();
                if let Some((_, entry)) = state.waiting.iter().find(|(hash, _)| hash == image) {
                    return Some(entry.clone());
                }
                let place = state.places.get(image)?.clone();
                (state.packs[place.pack].clone(), place)
            };
            match RangeReader::open(&path).and_then(|pack| pack.read_at(place.offset, place.length)) {
                Ok(entry) if sha256(&entry) == place.hash => return Some(entry),
                Ok(_) => tracing::warn!(pack = %path.display(), "damaged cache entry"),
                Err(error) => tracing::warn!(%error, "unreadable cache entry"),
            }
            self.state().forget(image);
        }
    }

    /// Keeps an entry; it is on disk after [`Self::flush`] at the latest.
    ///
    /// # Errors
    /// When a pack is due and can't be written.
    pub fn put(&self, image: ImageHash, entry: Vec<u8>) -> Result<()> {
        let mut state = self.state();
        state.waiting_bytes += entry.len();
        state.waiting.push((image, entry));
        if state.waiting.len() >= MAX_WAITING || state.waiting_bytes >= MAX_WAITING_BYTES {
            self.write(&mut state)?;
        }
        Ok(())
    }

    /// Writes what waits.
    ///
    /// # Errors
    /// When the pack can't be written.
    pub fn flush(&self) -> Result<()> {
        self.write(&mut self.state())
    }

    fn write(&self, state: &mut State) -> Result<()> {
        if state.waiting.is_empty() {
            return Ok(());
        }
        let mut pack = MAGIC.to_vec();
        pack.extend((state.waiting.len() as u32).to_le_bytes());
        for (image, entry) in &state.waiting {
            pack.extend(image);
            pack.extend(sha256(entry));
            pack.extend((entry.len() as u32).to_le_bytes());
        }
        let path = self.folder.join(format!("{}.pack", &sha256_hex(&pack)[..32]));
        state.waiting.iter().for_each(|(_, entry)| pack.extend(entry));
        write_atomic(&path, &pack)?;
        let rows = table(&pack, pack.len() as u64).unwrap_or_default();
        state.known.insert(path.clone());
        state.take(path, rows);
        state.waiting.clear();
        state.waiting_bytes = 0;
        Ok(())
    }
}

impl Drop for ImageCache {
    fn drop(&mut self) {
        if let Err(error) = self.flush() {
            tracing::warn!(%error, "the last cache entries are lost");
        }
    }
}

impl State {
    fn take(&mut self, path: PathBuf, rows: Vec<(ImageHash, Place)>) {
        let pack = self.packs.len();
        self.packs.push(path);
        for (image, place) in rows {
            if let Some(other) = self.places.insert(image, Place { pack, ..place }) {
                self.spare.push((image, other));
            }
        }
    }

    fn forget(&mut self, image: &ImageHash) {
        self.places.remove(image);
        if let Some(spare) = self.spare.iter().position(|(hash, _)| hash == image) {
            let (image, place) = self.spare.swap_remove(spare);
            self.places.insert(image, place);
        }
    }
}

fn read_table(path: &Path) -> Result<Vec<(ImageHash, Place)>, String> {
    let text = |error: IoError| error.to_string();
    let pack = RangeReader::open(path).map_err(text)?;
    let header = pack.read_at(0, HEADER).map_err(text)?;
    let count = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
    let start = pack.read_at(0, HEADER + count.saturating_mul(ROW)).map_err(text)?;
    table(&start, pack.len()).ok_or_else(|| "not a pack, or cut short".into())
}

/// The rows of a pack of `total` bytes from its start.
fn table(start: &[u8], total: u64) -> Option<Vec<(ImageHash, Place)>> {
    let count = u32::from_le_bytes(start.get(8..HEADER)?.try_into().ok()?) as usize;
    let rows = start.get(HEADER..HEADER + count * ROW).filter(|_| start.starts_with(MAGIC))?;
    let mut offset = (HEADER + count * ROW) as u64;
    let rows = rows.chunks_exact(ROW).map(|row| {
        let length = u32::from_le_bytes(row[64..].try_into().ok()?) as usize;
        let place = Place { pack: 0, offset, length, hash: row[32..64].try_into().ok()? };
        offset += length as u64;
        Some((row[..32].try_into().ok()?, place))
    });
    let rows: Option<Vec<_>> = rows.collect();
    rows.filter(|_| offset == total)
}
