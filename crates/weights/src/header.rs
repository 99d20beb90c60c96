//! The header of a safetensors file: eight bytes with the length of a JSON table, the table, then the tensors' bytes without holes.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::DType;

/// Bytes of the length in front of the table.
pub(crate) const LENGTH_BYTES: u64 = 8;
/// Longest table accepted, as in the format's reference implementation.
pub(crate) const MAX_HEADER_BYTES: u64 = 100_000_000;
const METADATA: &str = "__metadata__";

/// Type, shape and place of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Number type.
    pub dtype: DType,
    /// Axis lengths.
    pub shape: Vec<usize>,
    /// First and past-the-end byte, counted from the end of the table.
    pub(crate) range: (u64, u64),
}

impl TensorInfo {
    /// Number of values.
    pub fn num_values(&self) -> usize {
        self.shape.iter().product()
    }
}

#[derive(Debug, Default)]
pub(crate) struct Header {
    /// In the order of their bytes.
    pub tensors: Vec<(String, TensorInfo)>,
    pub metadata: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// The table as written; a plain map would silently drop one of two equal names.
struct Table {
    entries: Vec<(String, Entry)>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for Table {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Walk;
        impl<'de> Visitor<'de> for Walk {
            type Value = Table;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a table of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Table, A::Error> {
                let mut table = Table { entries: Vec::new(), metadata: BTreeMap::new() };
                while let Some(name) = map.next_key::<String>()? {
                    if name == METADATA {
                        table.metadata = map.next_value()?;
                    } else {
                        table.entries.push((name, map.next_value()?));
                    }
                }
                Ok(table)
            }
        }
        deserializer.deserialize_map(Walk)
    }
}

/// Parses the table and checks every rule; `data_bytes` is what follows it in the file. The error says which rule is broken.
pub(crate) fn parse(table: &[u8], data_bytes: u64) -> Result<Header, String> {
    let table: Table = serde_json::from_slice(table).map_err(|error| format!("its header is no valid table: {error}"))?;
    let mut names = HashSet::new();
    let mut tensors = Vec::with_capacity(table.entries.len());
    for (name, entry) in table.entries {
        if !names.insert(name.clone()) {
            return Err(format!("its header names {name} twice"));
        }
        let info = check_entry(&entry).map_err(|reason| format!("its header entry {name}: {reason}"))?;
        tensors.push((name, info));
    }
    tensors.sort_by(|(a_name, a), (b_name, b)| (a.range, a_name).cmp(&(b.range, b_name)));
    let mut end = 0;
    for (name, info) in &tensors {
        if info.range.0 != end {
            return Err(format!("its header entry {name}: expected to start at byte {end}, starts at {}", info.range.0));
        }
        end = info.range.1;
    }
    if end != data_bytes {
        let state = if data_bytes < end { "truncated" } else { "too long" };
        return Err(format!("it is {state}: expected {end} bytes of tensors, found {data_bytes}"));
    }
    Ok(Header { tensors, metadata: table.metadata })
}

fn check_entry(entry: &Entry) -> Result<TensorInfo, String> {
    let dtype = DType::from_name(&entry.dtype).ok_or_else(|| format!("unknown number type {:?}", entry.dtype))?;
    let mut num_bytes = dtype.num_bytes() as u64;
    let mut shape = Vec::with_capacity(entry.shape.len().min(16));
    for &side in &entry.shape {
        num_bytes = num_bytes.checked_mul(side).ok_or_else(|| format!("shape {:?} overflows", entry.shape))?;
        shape.push(usize::try_from(side).map_err(|_| format!("shape {:?} overflows", entry.shape))?);
    }
    let (start, end) = entry.data_offsets;
    if end.checked_sub(start) != Some(num_bytes) {
        return Err(format!("{dtype} {shape:?} needs {num_bytes} bytes, its place is {start}..{end}"));
    }
    Ok(TensorInfo { dtype, shape, range: (start, end) })
}

/// What the bytes before the tensors' bytes are a multiple of, so that mapped tensors start where a line of the cache does.
const ALIGNMENT: usize = 64;

/// The bytes before the tensors' bytes: length and table, padded with spaces. Equal input gives equal bytes.
pub(crate) fn encode(header: &Header) -> Result<Vec<u8>, String> {
    let mut table = serde_json::Map::new();
    let value = |error: serde_json::Error| error.to_string();
    if !header.metadata.is_empty() {
        table.insert(METADATA.to_string(), serde_json::to_value(&header.metadata).map_err(value)?);
    }
    for (name, info) in &header.tensors {
        let shape = info.shape.iter().map(|&side| side as u64).collect();
        let entry = Entry { dtype: info.dtype.name().to_string(), shape, data_offsets: info.range };
        if name == METADATA || table.insert(name.clone(), serde_json::to_value(entry).map_err(value)?).is_some() {
            return Err(format!("the name {name} is taken"));
        }
    }
    let mut json = serde_json::to_vec(&table).map_err(value)?;
    json.resize((json.len() + LENGTH_BYTES as usize).next_multiple_of(ALIGNMENT) - LENGTH_BYTES as usize, b' ');
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut json);
    Ok(bytes)
}
