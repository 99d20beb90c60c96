//! Which files of a folder are a split.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use unif2ace_io::IoError;

use crate::error::{DataError, Result};

/// Splits with the names that sets give them.
const SPLITS: [(&str, &[&str]); 3] =
    [("train", &["train", "training"]), ("val", &["val", "valid", "validation", "dev"]), ("test", &["test"])];
/// Names that a message lists.
const MAX_NAMES: usize = 8;
/// Fewest digits of a shard's number where no count stands behind it.
const MIN_DIGITS: usize = 3;
/// Most holes of a series of shards that are looked for.
const MAX_HOLES: usize = 1 << 16;

/// The files of a split in the order of their names.
#[derive(Debug)]
pub(super) struct SplitFiles {
    pub files: Vec<PathBuf>,
    /// The files hold the whole set, which names no splits: the split is a part of it.
    pub whole: bool,
}

/// A file with the split that its name or its folder tells.
pub(super) type ToldFile = (PathBuf, Option<&'static str>);

/// The files with one of the `extensions` that are the split: those in a folder of its name and those whose names start with it, in
/// `path` or its folder `data`; where no name says a split, all of them. A single file is the whole set.
///
/// # Errors
/// When there are none, or a number is missing between those of the shards.
pub(super) fn split_files(path: &Path, split: &str, extensions: &[&str]) -> Result<SplitFiles> {
    check_split(split)?;
    if path.is_file() {
        return Ok(SplitFiles { files: vec![path.to_path_buf()], whole: true });
    }
    let mut found = Vec::new();
    for folder in [path.to_path_buf(), path.join("data")] {
        for entry in if folder == path || folder.is_dir() { list(&folder)? } else { Vec::new() } {
            let of = split_of(&file_name(&entry));
            if entry.is_dir() {
                if of.is_some() {
                    let files = list(&entry)?.into_iter().filter(|file| has_extension(file, extensions));
                    found.extend(files.map(|file| (file, of)));
                }
            } else if has_extension(&entry, extensions) {
                found.push((entry, of));
            }
        }
    }
    choose(path, split, found, extensions)
}

/// The files of the split among those `found` in `path`; where none tells a split, all of them.
///
/// # Errors
/// As [`split_files`].
pub(super) fn choose(path: &Path, split: &str, found: Vec<ToldFile>, extensions: &[&str]) -> Result<SplitFiles> {
    check_split(split)?;
    let whole = found.iter().all(|(_, of)| of.is_none());
    let untold: Vec<String> = found.iter().filter(|(_, of)| of.is_none()).map(|(file, _)| file_name(file)).collect();
    if !whole && !untold.is_empty() {
        tracing::warn!(path = %path.display(), files = cut(&untold), "files that tell no split are left out, since others do");
    }
    let files: Vec<PathBuf> = found.into_iter().filter(|(_, of)| whole || *of == Some(split)).map(|(file, _)| file).collect();
    if files.is_empty() {
        let kinds = extensions.iter().map(|extension| format!("*.{extension}")).collect::<Vec<_>>().join(" or ");
        return Err(DataError::NoData { path: path.to_path_buf(), expected: format!("{kinds} of the split {split}") });
    }
    check_numbers(path, &files)?;
    Ok(SplitFiles { files, whole })
}

fn check_split(split: &str) -> Result<()> {
    match split.is_empty() || split.contains(['/', '\\']) || split.starts_with('.') {
        true => Err(DataError::SplitName { given: split.into() }),
        false => Ok(()),
    }
}

/// The first few of a list of names, for messages.
pub(super) fn cut(names: &[String]) -> String {
    let mut listed = names.iter().take(MAX_NAMES).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > MAX_NAMES {
        listed.push_str(", ...");
    }
    listed
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
    split_called(name.split(['-', '_', '.']).next().unwrap_or_default())
}

/// The split that any word of a name tells, as `captions_test.json` and `vqa_val2014.json` do.
pub(super) fn split_in(name: &str) -> Option<&'static str> {
    let words = name.split(|c: char| !c.is_ascii_alphanumeric());
    words.map(|word| word.trim_end_matches(|c: char| c.is_ascii_digit())).find_map(split_called)
}

fn split_called(word: &str) -> Option<&'static str> {
    let word = word.to_ascii_lowercase();
    SPLITS.iter().find(|(_, aliases)| aliases.contains(&word.as_str())).map(|(split, _)| *split)
}

/// Refuses holes: `a-00000-of-00003` says how many shards there are, and between `a-00000` and `a-00002` there must be another.
fn check_numbers(path: &Path, files: &[PathBuf]) -> Result<()> {
    let names: BTreeSet<String> = files.iter().map(|file| file_name(file)).collect();
    // By what stands before and behind the number: numbers with their digits.
    let mut series: BTreeMap<(&str, &str), BTreeMap<usize, usize>> = BTreeMap::new();
    for (before, digits, after) in names.iter().filter_map(|name| numbered(name)) {
        if let Ok(number) = digits.parse() {
            series.entry((before, after)).or_default().insert(number, digits.len());
        }
    }
    let mut missing = Vec::new();
    for ((before, after), numbers) in &series {
        let width = numbers.values().next().copied().unwrap_or_default();
        missing.extend(holes(numbers, count_of(after)).into_iter().map(|number| format!("{before}{number:0width$}{after}")));
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(DataError::MissingShards { path: path.to_path_buf(), count: missing.len(), names: cut(&missing) })
}

/// Numbers that are missing among `numbers`, which are given with their digits; `count` is how many there must be, where names say it.
///
/// Without a count, numbers go on one by one where they have a fixed width and start at 0 or 1, or are filled up with zeros and have
/// fewer holes than numbers. Others, such as those of `part-100` and `part-200`, mean something else.
fn holes(numbers: &BTreeMap<usize, usize>, count: Option<usize>) -> Vec<usize> {
    let (Some((&first, &width)), Some((&last, _))) = (numbers.first_key_value(), numbers.last_key_value()) else {
        return Vec::new();
    };
    let absent = |range: Range<usize>| range.filter(|number| !numbers.contains_key(number)).take(MAX_HOLES).collect();
    if let Some(count) = count {
        // Some count their shards from 1.
        let start = usize::from(numbers.contains_key(&count));
        return absent(start..count.saturating_add(start));
    }
    let digits = |number: usize| format!("{number:0width$}").len();
    let is_fixed = numbers.iter().all(|(&number, &found)| digits(number) == found);
    let is_padded = first.checked_ilog10().map_or(0, |log| log as usize) + 1 < width;
    let has_few_holes = (last - first).saturating_add(1) - numbers.len() < numbers.len();
    match is_fixed && width >= MIN_DIGITS && (first <= 1 || is_padded && has_few_holes) {
        true => absent(first..last),
        false => Vec::new(),
    }
}

/// Cuts a name at its shard's number, which is the one before `-of-N`, or else the last one before the extension: what is before, the
/// number, what is after.
fn numbered(name: &str) -> Option<(&str, &str, &str)> {
    let before_count = name.match_indices("-of-").map(|(place, _)| place).filter(|&place| count_of(&name[place..]).is_some());
    let counted = before_count.filter(|&place| name[..place].ends_with(|c: char| c.is_ascii_digit())).last();
    let head = match counted {
        Some(place) => &name[..place],
        None => {
            let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
            stem.trim_end_matches(|c: char| !c.is_ascii_digit())
        }
    };
    let before = head.trim_end_matches(|c: char| c.is_ascii_digit());
    (before.len() < head.len()).then(|| (before, &head[before.len()..], &name[head.len()..]))
}

/// The count in `-of-00003.tar`.
fn count_of(after: &str) -> Option<usize> {
    let rest = after.strip_prefix("-of-")?;
    rest[..rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())].parse().ok()
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

    #[test]
    fn shards_are_numbered_before_their_count_or_at_the_end() {
        let missing = |names: &[&str]| found(names, "train").unwrap_err().to_string();
        let error = missing(&["ffhq256-00000-of-00003.tar", "ffhq256-00002-of-00003.tar"]);
        assert!(error.contains("1 shards are missing: ffhq256-00001-of-00003.tar"), "{error}");
        let error = missing(&["ffhq256-000.tar", "ffhq256-002.tar"]);
        assert!(error.contains("1 shards are missing: ffhq256-001.tar"), "{error}");
        let error = missing(&["a-1-of-3.tar", "a-3-of-3.tar"]);
        assert!(error.contains("1 shards are missing: a-2-of-3.tar"), "{error}");
        let error = missing(&["a-00040.tar", "a-00041.tar", "a-00043.tar"]);
        assert!(error.contains("1 shards are missing: a-00042.tar"), "{error}");
    }

    #[test]
    fn other_numbers_have_no_holes() {
        for names in [
            &["part-100.tar", "part-200.tar"][..],
            &["part-0100.tar", "part-0200.tar"],
            &["2014.tar", "2015.tar", "2017.tar"],
            &["a-001.tar", "a-0003.tar"],
            &["a-1.tar", "a-3.tar"],
            &["ffhq256.tar", "ffhq1024.tar"],
            &["a-999.tar", "a-99999999999999999999999.tar", "a-18446744073709551615.tar"],
        ] {
            assert_eq!(found(names, "train").unwrap().0.len(), names.len(), "{names:?}");
        }
    }
}
