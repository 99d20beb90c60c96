//! Which files of a folder are a split.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use unif2ace_io::IoError;

use crate::error::{DataError, Result};

/// Splits with the names that sets give them.
const SPLITS: [(&str, &[&str]); 3] =
    [("train", &["train", "training"]), ("val", &["val", "valid", "validation", "dev"]), ("test", &["test"])];
/// Names of missing shards that an error lists.
const MAX_NAMES: usize = 8;

/// The files of a split in the order of their names.
#[derive(Debug)]
pub(super) struct SplitFiles {
    pub files: Vec<PathBuf>,
    /// The files hold the whole set, which names no splits: the split is a part of it.
    pub whole: bool,
}

/// The files with one of the `extensions` that are the split: those in a folder of its name, else those whose names start with it, in
/// `path` or its folder `data`; else, where no name says a split, all of them. A single file is the whole set.
///
/// # Errors
/// When there are none, or a number is missing between those of the shards.
pub(super) fn split_files(path: &Path, split: &str, extensions: &[&str]) -> Result<SplitFiles> {
    if split.is_empty() || split.contains(['/', '\\']) || split.starts_with('.') {
        return Err(DataError::SplitName { given: split.into() });
    }
    if path.is_file() {
        return Ok(SplitFiles { files: vec![path.to_path_buf()], whole: true });
    }
    let (mut named, mut rest, mut others) = (Vec::new(), Vec::new(), BTreeSet::new());
    for folder in [path.to_path_buf(), path.join("data")] {
        for entry in if folder == path || folder.is_dir() { list(&folder)? } else { Vec::new() } {
            let name = file_name(&entry);
            let of = split_of(&name);
            if entry.is_dir() {
                let files: Vec<_> = list(&entry)?.into_iter().filter(|file| has_extension(file, extensions)).collect();
                match of {
                    Some(of) if of == split => named.extend(files),
                    Some(of) if !files.is_empty() => drop(others.insert(of)),
                    _ => {}
                }
            } else if has_extension(&entry, extensions) {
                match of {
                    Some(of) if of == split => named.push(entry),
                    Some(of) => drop(others.insert(of)),
                    None => rest.push(entry),
                }
            }
        }
    }
    let whole = named.is_empty() && others.is_empty();
    let files = if whole { rest } else { named };
    if files.is_empty() {
        let kinds = extensions.iter().map(|extension| format!("*.{extension}")).collect::<Vec<_>>().join(" or ");
        return Err(DataError::NoData { path: path.to_path_buf(), expected: format!("{kinds} of the split {split}") });
    }
    check_numbers(path, &files)?;
    Ok(SplitFiles { files, whole })
}

/// Entries of a folder in the order of their names, without hidden ones.
pub(super) fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let fail = |source| IoError::system("list", folder, source);
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if !file_name(&path).starts_with('.') {
            entries.push(path);
        }
    }
    entries.sort();
    Ok(entries)
}

pub(super) fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

pub(super) fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    path.extension().is_some_and(|found| extensions.iter().any(|extension| found.eq_ignore_ascii_case(extension)))
}

/// The split that a name starts with, as `train-00000.tar` and `validation.json` do.
fn split_of(name: &str) -> Option<&'static str> {
    let start = name.split(['-', '_', '.']).next().unwrap_or_default().to_ascii_lowercase();
    SPLITS.iter().find(|(_, aliases)| aliases.contains(&start.as_str())).map(|(split, _)| *split)
}

/// Refuses holes: `a-00000-of-00003` says how many shards there are, and between `a-00000` and `a-00002` there must be another.
fn check_numbers(path: &Path, files: &[PathBuf]) -> Result<()> {
    let names: BTreeSet<String> = files.iter().map(|file| file_name(file)).collect();
    let mut missing = BTreeSet::new();
    let mut last: Option<(String, usize)> = None;
    for name in &names {
        let Some((before, number, width, after)) = numbered(name) else { continue };
        let of = after.strip_prefix("-of-").and_then(|rest| rest.get(..rest.find(|c: char| !c.is_ascii_digit())?));
        let series = format!("{before}#{after}");
        let start = match &last {
            Some((known, previous)) if *known == series => previous + 1,
            _ if of.is_some() => 0,
            _ => number,
        };
        let others = |numbers: std::ops::Range<usize>| numbers.map(|number| format!("{before}{number:0width$}{after}"));
        missing.extend(others(start..number).take(1 << 16));
        if let Some(count) = of.and_then(|count| count.parse::<usize>().ok()) {
            missing.extend(others(number + 1..count.min(number + (1 << 16))));
        }
        last = Some((series, number));
    }
    missing.retain(|name| !names.contains(name));
    if missing.is_empty() {
        return Ok(());
    }
    let mut listed = missing.iter().take(MAX_NAMES).cloned().collect::<Vec<_>>().join(", ");
    if missing.len() > MAX_NAMES {
        listed.push_str(", ...");
    }
    Err(DataError::MissingShards { path: path.to_path_buf(), count: missing.len(), names: listed })
}

/// Cuts a name at its first number of at least three digits: what is before, the number, its digits, what is after.
fn numbered(name: &str) -> Option<(&str, usize, usize, &str)> {
    let mut start = 0;
    while start < name.len() {
        let digits = name[start..].bytes().take_while(u8::is_ascii_digit).count();
        if digits >= 3 {
            let number = name[start..start + digits].parse().ok()?;
            return Some((&name[..start], number, digits, &name[start + digits..]));
        }
        start += digits + name[start + digits..].chars().next().map_or(1, char::len_utf8);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        folder
    }

    fn found(names: &[&str], split: &str) -> Result<(Vec<String>, bool)> {
        let folder = folder(names);
        split_files(folder.path(), split, &["tar"])
            .map(|found| (found.files.iter().map(|file| file_name(file)).collect(), found.whole))
    }

    #[test]
    fn folders_names_or_the_whole() {
        assert_eq!(found(&["train/b.tar", "train/a.tar", "val/c.tar", "x.tar"], "train").unwrap().0, ["a.tar", "b.tar"]);
        let hub = ["data/train-00000-of-00002.tar", "data/train-00001-of-00002.tar", "data/validation-00000-of-00001.tar"];
        assert_eq!(found(&hub, "val").unwrap(), (vec!["validation-00000-of-00001.tar".into()], false));
        assert_eq!(found(&hub, "train").unwrap().0.len(), 2);
        assert_eq!(
            found(&["faces-1.tar", "faces-2.tar"], "val").unwrap(),
            (vec!["faces-1.tar".into(), "faces-2.tar".into()], true)
        );
        for (names, split) in [(&["train/a.tar"][..], "val"), (&[], "train"), (&["a.zip"], "train")] {
            let error = found(names, split).unwrap_err().to_string();
            assert!(error.contains("*.tar of the split") && error.contains(split), "{error}");
        }
    }

    #[test]
    fn holes_between_shards_are_named() {
        let error = found(&["train/train-00000.tar", "train/train-00003.tar"], "train").unwrap_err().to_string();
        assert!(error.contains("2 shards are missing: train-00001.tar, train-00002.tar"), "{error}");
        let error = found(&["train-00001-of-00003.tar"], "train").unwrap_err().to_string();
        assert!(error.contains("train-00000-of-00003.tar, train-00002-of-00003.tar"), "{error}");
        assert!(found(&["train-00004.tar", "train-00005.tar", "other-00001.tar"], "train").is_ok());
    }
}
