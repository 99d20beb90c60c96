//! The cache of what networks say of pictures.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

use std::fs;
use std::path::PathBuf;

use unif2ace_data::{ImageCache, ImageHash};

fn image(number: usize) -> ImageHash {
    unif2ace_io::sha256(&number.to_le_bytes())
}

fn entry(number: usize) -> Vec<u8> {
    vec![number as u8; number % 7 + 1]
}

fn packs(cache: &ImageCache) -> Vec<PathBuf> {
    let mut packs: Vec<_> = fs::read_dir(cache.folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
    packs.sort();
    packs
}

#[test]
fn entries_are_found_again_by_the_same_key_only() {
    let folder = tempfile::tempdir().unwrap();
    let cache = ImageCache::open(folder.path(), "weights").unwrap();
    for number in 0..600 {
        assert!(!cache.contains(&image(number)));
        cache.put(image(number), entry(number)).unwrap();
        assert_eq!(cache.get(&image(number)).unwrap(), entry(number));
    }
    assert_eq!(packs(&cache).len(), 2, "packs of 256; the rest waits");
    drop(cache);
    let again = ImageCache::open(folder.path(), "weights").unwrap();
    assert_eq!(packs(&again).len(), 3);
    assert!((0..600).all(|number| again.get(&image(number)) == Some(entry(number))));
    assert!(!ImageCache::open(folder.path(), "other weights").unwrap().contains(&image(1)));
}

#[test]
fn packs_of_other_processes_are_taken_in() {
    let folder = tempfile::tempdir().unwrap();
    let [one, other] = [(); 2].map(|()| ImageCache::open(folder.path(), "weights").unwrap());
    one.put(image(1), entry(1)).unwrap();
    one.flush().unwrap();
    assert!(!other.contains(&image(1)));
    other.look_again().unwrap();
    assert_eq!(other.get(&image(1)), Some(entry(1)));
}

#[test]
fn damage_is_forgotten_not_fatal() {
    let folder = tempfile::tempdir().unwrap();
    let cache = ImageCache::open(folder.path(), "weights").unwrap();
    for number in 0..10 {
        cache.put(image(number), entry(number)).unwrap();
    }
    cache.flush().unwrap();
    let pack = packs(&cache).remove(0);
    let whole = fs::read(&pack).unwrap();
    // A byte of the last entry is wrong: the others are still there, and the damaged one can be put again.
    let mut damaged = whole.clone();
    *damaged.last_mut().unwrap() ^= 1;
    fs::write(&pack, &damaged).unwrap();
    let again = ImageCache::open(folder.path(), "weights").unwrap();
    assert!((0..9).all(|number| again.get(&image(number)).is_some()));
    assert_eq!(again.get(&image(9)), None);
    assert!(!again.contains(&image(9)));
    again.put(image(9), entry(9)).unwrap();
    assert_eq!(again.get(&image(9)), Some(entry(9)));
    again.flush().unwrap();
    let third = ImageCache::open(folder.path(), "weights").unwrap();
    assert!((0..10).all(|number| third.get(&image(number)) == Some(entry(number))), "whichever pack is read first");
    // Cut short, emptied, or no pack at all.
    for bytes in [&whole[..whole.len() - 1], &whole[..30], b"", b"no pack at all, but long enough for a header"] {
        let folder = tempfile::tempdir().unwrap();
        let cache = ImageCache::open(folder.path(), "weights").unwrap();
        fs::write(cache.folder().join("a.pack"), bytes).unwrap();
        assert!(!ImageCache::open(folder.path(), "weights").unwrap().contains(&image(0)));
    }
}
