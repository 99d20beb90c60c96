//! Files of adapters: what they add, what they refuse.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them
#![allow(non_snake_case)]

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use support::write;
use unif2ace_golden::procedural;
use unif2ace_weights::*;

const RANK: usize = 2;

fn tensor(name: &str, shape: &[usize]) -> (String, HostTensor) {
    (name.to_owned(), HostTensor { shape: shape.to_vec(), values: procedural(name, shape) })
}

/// A model of two layers and a norm.
fn base() -> HostTensors {
    [tensor("a.fc1.weight", &[6, 4]), tensor("a.fc1.bias", &[6]), tensor("a.fc2.weight", &[4, 6]), tensor("a.norm.weight", &[4])]
        .into()
}

/// Adapters of the first layer.
fn adapters() -> HostTensors {
    [tensor("a.fc1.lora_A.weight", &[RANK, 4]), tensor("a.fc1.lora_B.weight", &[6, RANK])].into()
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn model(&self, float: FloatType) -> SafetensorsDir {
        let base = base();
        write(&self.path("model.safetensors"), &base.iter().collect::<Vec<_>>(), float);
        SafetensorsDir::open(self.path("model.safetensors")).unwrap()
    }

    fn lora(&self, tensors: &HostTensors) -> PathBuf {
        self.lora_with(tensors, &[("rank", "2"), ("alpha", "6"), ("targets", "[\"fc1\"]"), ("base", "mini")])
    }

    fn lora_with(&self, tensors: &HostTensors, metadata: &[(&str, &str)]) -> PathBuf {
        let path = self.path("lora.safetensors");
        let spec = |(name, tensor): (&String, &HostTensor)| TensorSpec { name: name.clone(), shape: tensor.shape.clone() };
        let metadata: BTreeMap<String, String> = metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let mut writer = SafetensorsWriter::create(&path, tensors.iter().map(spec).collect(), FloatType::F32, &metadata).unwrap();
        tensors.iter().for_each(|(name, tensor)| writer.write(name, &tensor.values).unwrap());
        writer.finish().unwrap();
        path
    }
}

fn values(path: &Path) -> HostTensors {
    let file = SafetensorsFile::open(path).unwrap();
    let read = |name: &str| {
        let shape = file.info(name).unwrap().shape.clone();
        (name.to_owned(), HostTensor { shape, values: file.load_f32(name).unwrap() })
    };
    file.names().map(read).collect()
}

fn largest_difference(one: &HostTensors, other: &HostTensors) -> f32 {
    assert_eq!(one.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>());
    let pairs = one.values().flat_map(|tensor| &tensor.values).zip(other.values().flat_map(|tensor| &tensor.values));
    pairs.fold(0.0, |largest: f32, (one, other)| largest.max((one - other).abs()))
}

#[test]
fn merging_adds_alpha_over_rank_b_a_and_unmerging_takes_it_away() {
    for (float, tolerance) in [(FloatType::F32, 1e-6), (FloatType::Bf16, 0.02)] {
        let folder = Folder::new();
        let (model, lora) = (folder.model(float), LoraFile::open(folder.lora(&adapters())).unwrap());
        assert_eq!(*lora.info(), LoraInfo { rank: RANK, alpha: 6.0, targets: vec!["fc1".into()], base: "mini".into() });
        let merged = folder.path("merged/model.safetensors");
        merge_lora(&model, &lora, Merge::Add, &merged, None).unwrap();
        let (before, after) = (values(&folder.path("model.safetensors")), values(&merged));
        let adapters = adapters();
        let [a, b] = ["A", "B"].map(|name| &adapters[&format!("a.fc1.lora_{name}.weight")].values);
        for (name, tensor) in &before {
            for (place, value) in tensor.values.iter().enumerate() {
                let (row, column) = (place / 4, place % 4);
                let update =
                    if name == "a.fc1.weight" { 3.0 * (b[2 * row] * a[column] + b[2 * row + 1] * a[4 + column]) } else { 0.0 };
                let found = after[name].values[place];
                assert!(
                    (found - value - update).abs() <= tolerance,
                    "{float:?} {name} {place}: {value} + {update}, found {found}"
                );
            }
        }
        assert!(largest_difference(&before, &after) > 0.1, "the adapters do something");

        let merged = SafetensorsDir::open(&merged).unwrap();
        let back = folder.path("back/model.safetensors");
        merge_lora(&merged, &lora, Merge::Remove, &back, None).unwrap();
        assert!(largest_difference(&before, &values(&back)) <= tolerance);
        assert_eq!(SafetensorsDir::open(&back).unwrap().info("a.fc1.weight").unwrap().dtype, float.dtype());

        // What is in it is known.
        let error = merge_lora(&merged, &lora, Merge::Add, folder.path("x/model.safetensors"), None).unwrap_err().to_string();
        assert!(error.contains("is merged into it already") && error.contains("hint: "), "{error}");
        let error = merge_lora(&model, &lora, Merge::Remove, folder.path("x/model.safetensors"), None).unwrap_err().to_string();
        assert!(error.contains("was not merged into it") && error.contains("hint: "), "{error}");
        assert!(!folder.path("x").exists(), "nothing is written");
    }
}

#[test]
fn adapters_that_do_not_fit_are_listed() {
    let folder = Folder::new();
    let model = folder.model(FloatType::F32);
    let refused = |tensors: &HostTensors| {
        let lora = LoraFile::open(folder.lora(tensors)).unwrap();
        let error = merge_lora(&model, &lora, Merge::Add, folder.path("x/model.safetensors"), None).unwrap_err().to_string();
        assert!(error.contains("hint: ") && !folder.path("x").exists(), "{error}");
        error
    };
    let mut tensors = adapters();
    tensors.insert("a.fc1.lora_B.weight".into(), tensor("b", &[5, RANK]).1);
    assert!(refused(&tensors).contains("a.fc1.lora_B.weight: expected shape [6, 2], found [5, 2]"));
    tensors.remove("a.fc1.lora_B.weight");
    assert!(refused(&tensors).contains("missing a.fc1.lora_B.weight [6, 2]"));
    let unknown: HostTensors = [tensor("a.fc9.lora_A.weight", &[RANK, 4]), tensor("a.fc9.lora_B.weight", &[6, RANK])].into();
    assert!(refused(&unknown).contains("unexpected a.fc9.lora_A.weight [2, 4]"));
    let norm: HostTensors = [tensor("a.norm.lora_A.weight", &[RANK, 4]), tensor("a.norm.lora_B.weight", &[6, RANK])].into();
    assert!(refused(&norm).contains("unexpected a.norm.lora_A.weight"), "a norm is no linear layer");
    assert!(refused(&HostTensors::new()).contains("missing"));
}

#[test]
fn a_file_that_says_no_rank_or_alpha_is_refused() {
    let folder = Folder::new();
    let error = |metadata: &[(&str, &str)]| LoraFile::open(folder.lora_with(&adapters(), metadata)).unwrap_err().to_string();
    let no_rank = error(&[("alpha", "2")]);
    assert!(no_rank.contains("a whole number as `rank`") && no_rank.contains("lora.safetensors"), "{no_rank}");
    assert!(error(&[("rank", "0"), ("alpha", "2")]).contains("`rank`"));
    assert!(error(&[("rank", "2"), ("alpha", "NaN")]).contains("positive number as `alpha`"));
}
