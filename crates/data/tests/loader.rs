//! Batches: the same for any number of ranks and workers, from any position, in spite of broken samples.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use unif2ace_data::{
    Broken, DataError, DataSet, Loader, LoaderOptions, MaxBroken, MixtureEntry, SampleFault, Stream, TaskName, load_all,
};

fn permute(seed: u64, number: u64, len: usize) -> Vec<usize> {
    let mut state = seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut order: Vec<usize> = (0..len).collect();
    for last in (1..len).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        order.swap(last, (state >> 33) as usize % (last + 1));
    }
    order
}

/// Lines `NAME0, NAME1 ..`; those in `broken` are no JSON.
fn lines(folder: &Path, name: &str, count: usize, broken: &[usize]) -> Arc<DataSet> {
    let path = folder.join(format!("{name}.jsonl"));
    let line = |number: usize| if broken.contains(&number) { "{".to_owned() } else { format!("\"{name}{number}\"") };
    // A set without splits keeps its last 2% for `val`.
    let total = (count + 1..).find(|total| total - (total / 50).clamp(1, 256) == count).unwrap();
    std::fs::write(&path, (0..total).map(line).collect::<Vec<_>>().join("\n")).unwrap();
    Arc::new(DataSet::open(path, None, "train", 0).unwrap())
}

fn entry(set: &Arc<DataSet>, weight: f64) -> MixtureEntry {
    MixtureEntry { set: Arc::clone(set), tasks: vec![TaskName::Text], weight }
}

fn stream(entries: &[MixtureEntry]) -> Stream {
    Stream::new(entries, &[TaskName::Text], 7, permute).unwrap().unwrap()
}

fn options(batch_size: usize, rank: usize, world_size: usize, num_workers: usize) -> LoaderOptions {
    LoaderOptions { batch_size, rank, world_size, num_workers, num_ahead: 2 }
}

/// Accepts three broken samples.
fn three() -> Arc<Broken> {
    Arc::new(Broken::new(MaxBroken::Count(3)))
}

fn loader(entries: &[MixtureEntry], options: LoaderOptions) -> Loader<String> {
    loader_noting(entries, options, three())
}

fn loader_noting(entries: &[MixtureEntry], options: LoaderOptions, broken: Arc<Broken>) -> Loader<String> {
    let prepare = |drawn: unif2ace_data::Drawn| Ok(drawn.sample.record.captions[0].clone());
    Loader::new(stream(entries), options, broken, Arc::new(prepare)).unwrap()
}

/// Batches of one process, and the same batches put together from the parts of several.
fn batches(
    entries: &[MixtureEntry],
    batch_size: usize,
    world_size: usize,
    num_workers: usize,
    from: u64,
    count: usize,
) -> Vec<Vec<String>> {
    let mut ranks: Vec<_> =
        (0..world_size).map(|rank| loader(entries, options(batch_size, rank, world_size, num_workers))).collect();
    ranks.iter_mut().for_each(|rank| rank.seek(from));
    (0..count).map(|_| ranks.iter_mut().flat_map(|rank| rank.next_batch().unwrap()).collect()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn ranks_share_each_batch_without_overlap(
        num in 1usize..40, world_size in 1usize..5, part in 1usize..4, num_workers in 1usize..4, from in 0u64..50, second in 0usize..10,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let mut entries = vec![entry(&lines(folder.path(), "a", num, &[]), 1.0)];
        if second > 0 {
            entries.push(entry(&lines(folder.path(), "b", second, &[]), 0.3));
        }
        let batch_size = world_size * part;
        let count = 3 * num / batch_size + 2;
        let alone = batches(&entries, batch_size, 1, 1, from, count);
        prop_assert_eq!(&batches(&entries, batch_size, world_size, num_workers, from, count), &alone);
        // Each epoch of a lone set reads every sample once.
        if second == 0 {
            let read: Vec<String> = batches(&entries, 1, 1, 1, 0, 2 * num).concat();
            for epoch in read.chunks(num) {
                let mut sorted = epoch.to_vec();
                sorted.sort();
                sorted.dedup();
                prop_assert_eq!(sorted.len(), num);
            }
        }
    }
}

#[test]
fn going_on_from_a_position_gives_the_same_batches_on_any_number_of_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let entries = [entry(&lines(folder.path(), "a", 31, &[4]), 2.0), entry(&lines(folder.path(), "b", 17, &[]), 1.0)];
    let whole = batches(&entries, 6, 1, 2, 0, 30);
    let mut first = loader(&entries, options(6, 0, 1, 3));
    (0..11).for_each(|_| drop(first.next_batch().unwrap()));
    let position = first.position();
    assert_eq!(position, 66);
    for world_size in [1, 2, 3] {
        assert_eq!(batches(&entries, 6, world_size, 2, position, 19), whole[11..], "{world_size} ranks");
    }
    first.seek(0);
    assert_eq!(first.next_batch().unwrap(), whole[0]);
    // Another epoch, another order.
    assert_ne!(batches(&entries[1..], 17, 1, 1, 0, 1), batches(&entries[1..], 17, 1, 1, 17, 1));
}

#[test]
fn sets_have_their_shares_from_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let sets = [("a", 5.0), ("b", 3.0), ("c", 2.0)];
    let entries: Vec<_> = sets.iter().map(|(name, weight)| entry(&lines(folder.path(), name, 7, &[]), *weight)).collect();
    let read = batches(&entries, 1, 1, 1, 0, 200).concat();
    let mut counts = BTreeMap::new();
    for (place, text) in read.iter().enumerate() {
        *counts.entry(&text[..1]).or_insert(0usize) += 1;
        for (name, weight) in sets {
            let expected = weight / 10.0 * (place + 1) as f64;
            let found = counts.get(name).copied().unwrap_or(0) as f64;
            assert!((found - expected).abs() < 2.0, "{name}: {found} of {} for {expected}", place + 1);
        }
    }
    let only_pictures = MixtureEntry { tasks: vec![TaskName::T2i], ..entries[0].clone() };
    assert!(Stream::new(&[only_pictures], &[TaskName::Text], 7, permute).unwrap().is_none());
    let weightless = Stream::new(&[entry(&entries[0].set, 0.0)], &[TaskName::Text], 7, permute);
    assert!(weightless.err().unwrap().to_string().contains("weight"));
}

#[test]
fn a_broken_sample_is_replaced_and_changes_no_other_place() {
    let folder = tempfile::tempdir().unwrap();
    let sound = batches(&[entry(&lines(folder.path(), "a", 20, &[]), 1.0)], 5, 1, 2, 0, 8).concat();
    let broken_set = [entry(&lines(folder.path(), "a", 20, &[3, 11]), 1.0)];
    // Two loaders note what they find together.
    let broken = three();
    let [mut first, mut second] = [(); 2].map(|()| loader_noting(&broken_set, options(5, 0, 1, 2), Arc::clone(&broken)));
    for (number, sound) in sound.chunks(5).enumerate() {
        let read = first.next_batch().unwrap();
        let replaced: Vec<bool> = sound.iter().zip(&read).map(|(sound, read)| sound != read).collect();
        assert_eq!(replaced, sound.iter().map(|sound| ["a3", "a11"].contains(&sound.as_str())).collect::<Vec<_>>());
        // A place may come upon the second broken one behind the first.
        let count = first.take_num_broken();
        let least = replaced.iter().filter(|replaced| **replaced).count();
        assert!((least..=2 * least).contains(&count), "{count} of {least}");
        // From any position the same is counted, whatever was read ahead.
        second.seek(5 * number as u64);
        assert_eq!((second.next_batch().unwrap(), second.take_num_broken()), (read, count));
        second.seek(0);
        assert_eq!(first.take_num_broken(), 0);
    }
    assert_eq!(broken.keys(), ["a.jsonl:4", "a.jsonl:12"], "two epochs and two loaders, each counted once");
}

#[test]
fn more_broken_samples_than_accepted_end_the_run_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let entries = [entry(&lines(folder.path(), "a", 20, &[1, 5, 6, 9]), 1.0)];
    let mut loader = loader(&entries, options(5, 0, 1, 2));
    let error = (0..4).find_map(|_| loader.next_batch().err()).unwrap();
    assert!(matches!(&error, DataError::TooManyBroken { count: 4, limit: 3, key, .. } if key.starts_with("a.jsonl:")), "{error}");
    let all_broken = [entry(&lines(folder.path(), "b", 2, &[0, 1]), 1.0)];
    let error = self::loader(&all_broken, options(1, 0, 1, 1)).next_batch().unwrap_err().to_string();
    assert!(error.contains("all 2 samples"), "{error}");
    for bad in [options(5, 0, 2, 1), options(0, 0, 1, 1), options(4, 2, 2, 1), options(4, 0, 1, 0)] {
        let made = Loader::<String>::new(stream(&entries), bad, three(), Arc::new(|_| Ok(String::new())));
        assert!(matches!(made.err().unwrap(), DataError::Loader { .. }), "{bad:?}");
    }
}

#[test]
fn whole_sets_are_loaded_in_order_without_the_broken() {
    let folder = tempfile::tempdir().unwrap();
    let set = lines(folder.path(), "a", 600, &[3, 400]);
    let prepare = |sample: unif2ace_data::Sample| match sample.record.captions[0].as_str() {
        "a7" => Err(SampleFault::Unusable { tasks: "text".into() }),
        text => Ok(text.to_owned()),
    };
    let broken = Broken::new(MaxBroken::Count(3));
    let loaded = load_all(&set, 0, &broken, prepare).unwrap();
    let expected: Vec<String> =
        (0..600).filter(|number| ![3, 7, 400].contains(number)).map(|number| format!("a{number}")).collect();
    assert_eq!(loaded, expected);
    assert_eq!(broken.keys().len(), 3);
    assert_eq!(load_all(&set, 5, &Broken::new(MaxBroken::Count(3)), prepare).unwrap(), expected[..5]);
    assert!(load_all(&set, 0, &Broken::new(MaxBroken::Count(2)), prepare).is_err());
}

#[test]
fn pieces_that_are_read_whole_are_mixed_and_all_read() {
    let path = common::faces().join("../datasets/list_of_structs.parquet");
    let set = Arc::new(DataSet::open(path, None, "train", 0).unwrap());
    let entries = [MixtureEntry { set, tasks: vec![TaskName::Vqa], weight: 1.0 }];
    let stream = Stream::new(&entries, &[TaskName::Vqa], 1, permute).unwrap().unwrap();
    let prepare = Arc::new(|drawn: unif2ace_data::Drawn| Ok(drawn.sample.key));
    let mut loader = Loader::new(stream, options(2, 0, 1, 2), three(), prepare).unwrap();
    for _ in 0..5 {
        let mut batch = loader.next_batch().unwrap();
        batch.sort();
        assert_eq!(batch, ["test000001", "test000002"]);
    }
}

/// Training runs on a thread of the pool, and what workers hand to the pool must be done although that thread waits for them.
#[test]
fn a_thread_of_the_pool_works_while_it_waits() {
    let folder = tempfile::tempdir().unwrap();
    let entries = [entry(&lines(folder.path(), "a", 20, &[]), 1.0)];
    let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build().unwrap());
    let here = std::thread::current().id();
    let prepare = {
        let pool = Arc::clone(&pool);
        move |drawn: unif2ace_data::Drawn| {
            let computing = pool.install(|| std::thread::current().id());
            Ok((drawn.sample.record.captions[0].clone(), computing))
        }
    };
    let mut together = Loader::new(stream(&entries), options(4, 0, 1, 2), three(), Arc::new(prepare)).unwrap();
    let mut alone = loader(&entries, options(4, 0, 1, 2));
    for _ in 0..3 {
        let (texts, threads): (Vec<String>, Vec<_>) = together.next_batch().unwrap().into_iter().unzip();
        assert_eq!(texts, alone.next_batch().unwrap());
        assert!(threads.iter().all(|&thread| thread == here));
    }
}
