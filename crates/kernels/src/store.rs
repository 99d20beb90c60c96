//! Values in memory of our own or in a mapped file.

use std::ops::{Deref, Range};
use std::sync::Arc;

use bytemuck::Pod;

use crate::lines::Lines;
use crate::map::MappedFile;

/// Values that are only read: a vector, or a part of a file whose pages come from the system's file cache when they are touched. Files are
/// little-endian, as the CPUs that this is for.
#[derive(Debug, Clone)]
pub struct Store<T>(Place<T>);

#[derive(Debug, Clone)]
enum Place<T> {
    Owned(Vec<T>),
    Lines(Lines<T>),
    Mapped(Arc<MappedFile>, Range<usize>),
}

impl<T: Pod> Store<T> {
    /// The values in a range of bytes of a file. They are copied where the range is no multiple of a value's size from an address that
    /// suits it.
    ///
    /// # Panics
    /// If the range lies outside the file: callers have checked the file's table.
    pub fn mapped(file: &Arc<MappedFile>, bytes: Range<usize>) -> Self {
        match bytemuck::try_cast_slice::<u8, T>(&file[bytes.clone()]) {
            Ok(_) if cfg!(target_endian = "little") => Self(Place::Mapped(file.clone(), bytes)),
            _ => Self(Place::Owned(bytemuck::pod_collect_to_vec(&file[bytes]))),
        }
    }

    /// The values as they are written to a file.
    pub fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(self)
    }
}

impl<T> From<Vec<T>> for Store<T> {
    fn from(values: Vec<T>) -> Self {
        Self(Place::Owned(values))
    }
}

impl<T> From<Lines<T>> for Store<T> {
    fn from(values: Lines<T>) -> Self {
        Self(Place::Lines(values))
    }
}

impl<T: Pod> Deref for Store<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &self.0 {
            Place::Owned(values) => values,
            Place::Lines(values) => values,
            // It was possible when the store was made; there is no other case.
            Place::Mapped(file, bytes) => bytemuck::try_cast_slice(&file[bytes.clone()]).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_values_are_those_of_the_file_wherever_they_start() {
        let path = std::env::temp_dir().join(format!("unif2ace-store-{}", std::process::id()));
        let values = [1.5f32, -2.0, 3.25];
        for start in [0, 1, 4, 64] {
            let bytes: Vec<u8> = vec![7; start].into_iter().chain(values.iter().flat_map(|value| value.to_le_bytes())).collect();
            std::fs::write(&path, &bytes).unwrap();
            let file = Arc::new(MappedFile::open(&path).unwrap());
            let store = Store::<f32>::mapped(&file, start..bytes.len());
            assert_eq!(&*store, values);
            assert_eq!(store.bytes(), &bytes[start..]);
        }
        std::fs::remove_file(&path).unwrap();
    }
}
