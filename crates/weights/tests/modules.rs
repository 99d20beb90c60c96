//! Modules by parameter names: ids, loading, saving, and the list of everything that doesn't fit.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::{Device, Tensor};
use unif2ace_weights::*;

#[derive(Module, Debug)]
struct Layer {
    weight: Param<Tensor<2>>,
    bias: Option<Param<Tensor<1>>>,
}

#[derive(Module, Debug)]
struct Net {
    layers: Vec<Layer>,
    pair: (Layer, Layer),
    scale: Param<Tensor<1>>,
}

fn layer(num: usize, bias: bool, start: f32, device: &Device) -> Layer {
    let values: Vec<f32> = (0..num * 2).map(|index| start + index as f32).collect();
    Layer {
        weight: Param::from_tensor(Tensor::<1>::from_floats(values.as_slice(), device).reshape([num, 2])),
        bias: bias.then(|| Param::from_tensor(Tensor::full([num], start, device))),
    }
}

fn net(start: f32, device: &Device) -> Net {
    Net {
        layers: vec![layer(1, true, start, device), layer(2, false, start + 10.0, device)],
        pair: (layer(1, false, start + 20.0, device), layer(1, true, start + 30.0, device)),
        scale: Param::from_tensor(Tensor::full([3], start, device)),
    }
}

const NAMES: [&str; 7] =
    ["layers.0.weight", "layers.0.bias", "layers.1.weight", "pair.0.weight", "pair.1.weight", "pair.1.bias", "scale"];

fn host(net: &Net) -> HostTensors {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    save_module(net, &path, FloatType::F32, &BTreeMap::new()).unwrap();
    let file = SafetensorsFile::open(&path).unwrap();
    let tensor = |name: &str| HostTensor { shape: file.info(name).unwrap().shape.clone(), values: file.load_f32(name).unwrap() };
    file.names().map(|name| (name.to_string(), tensor(name))).collect()
}

fn ids(net: &Net) -> Vec<ParamId> {
    struct Ids(Vec<ParamId>);
    impl ModuleVisitor for Ids {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.push(param.id);
        }
    }
    let mut ids = Ids(Vec::new());
    net.visit(&mut ids);
    ids.0
}

#[test]
fn names_are_paths_in_order() {
    let names = named_parameters(&net(0.0, &Device::flex()));
    assert_eq!(names.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), NAMES);
    assert_eq!(names[2].1, [2, 2]);
}

#[test]
fn ids_follow_from_paths_and_keep_values() {
    let device = Device::flex();
    let [one, two] = [1.0, 2.0].map(|start| assign_param_ids(net(start, &device)));
    assert_eq!(ids(&one), ids(&two));
    assert_eq!(ids(&one), NAMES.map(param_id));
    let distinct: std::collections::BTreeSet<_> = ids(&one).into_iter().collect();
    assert_eq!(distinct.len(), NAMES.len());
    assert_eq!(host(&one), host(&net(1.0, &device)));
}

#[test]
fn saving_and_loading_returns_every_value() {
    let device = Device::flex();
    let folder = tempfile::tempdir().unwrap();
    for float in [FloatType::F32, FloatType::Bf16, FloatType::F16] {
        let path = folder.path().join("model.safetensors");
        save_module(&net(3.0, &device), &path, float, &BTreeMap::new()).unwrap();
        let source = SafetensorsDir::open(folder.path()).unwrap();
        let loaded = load_into(net(0.0, &device), &source, &NameMap::identity()).unwrap();
        // Small whole numbers are exact in all three types.
        assert_eq!(host(&loaded), host(&net(3.0, &device)), "{float:?}");
        assert_eq!(ids(&loaded), NAMES.map(param_id));
    }
}

#[test]
fn frozen_networks_are_read_when_they_are_used() {
    let device = Device::flex();
    let folder = tempfile::tempdir().unwrap();
    for float in [FloatType::F32, FloatType::Bf16] {
        let path = folder.path().join("model.safetensors");
        save_module(&net(3.0, &device), &path, float, &BTreeMap::new()).unwrap();
        let source = SafetensorsDir::open(folder.path()).unwrap();
        let loaded = load_frozen(net(0.0, &device.clone().autodiff()), &source, &NameMap::identity()).unwrap();
        drop(source);
        std::fs::remove_file(&path).unwrap(); // the mapping holds it
        assert!(!loaded.scale.is_initialized());
        assert_eq!(named_parameters(&loaded), named_parameters(&net(3.0, &device)));
        assert!(!loaded.scale.val().is_require_grad());
        assert!(loaded.scale.is_initialized() && !loaded.pair.0.weight.is_initialized());
        assert_eq!(host(&loaded), host(&net(3.0, &device)), "{float:?}");
        assert_eq!(ids(&loaded), NAMES.map(param_id));
    }
    save_module(&net(3.0, &device), folder.path().join("model.safetensors"), FloatType::F32, &BTreeMap::new()).unwrap();
    let source = SafetensorsDir::open(folder.path()).unwrap();
    let other = Net { scale: Param::from_tensor(Tensor::zeros([4], &device)), ..net(0.0, &device) };
    let error = load_frozen(other, &source, &NameMap::identity()).unwrap_err().to_string();
    assert!(error.contains("scale") && error.contains("expected shape [4], found [3]"), "{error}");
    let file = std::fs::File::options().write(true).open(folder.path().join("model.safetensors")).unwrap();
    file.set_len(100).unwrap();
    let error = load_frozen(net(0.0, &device), &source, &NameMap::identity()).unwrap_err().to_string();
    assert!(error.contains("shortened"), "{error}");
}

#[test]
fn gradients_stay_as_they_were() {
    let device = Device::flex().autodiff();
    let source = host(&net(1.0, &Device::flex()));
    let mut fresh = net(0.0, &device);
    fresh.scale = fresh.scale.set_require_grad(false);
    let loaded = load_into(fresh, &source, &NameMap::identity()).unwrap();
    assert!(loaded.layers[0].weight.val().is_require_grad());
    assert!(!loaded.scale.val().is_require_grad());
    let assigned = assign_param_ids(loaded);
    assert!(assigned.layers[0].weight.val().is_require_grad());
    assert!(!assigned.scale.val().is_require_grad());
}

#[test]
fn names_can_be_mapped_and_rest_ignored() {
    let device = Device::flex();
    let source: HostTensors = host(&net(5.0, &device))
        .into_iter()
        .map(|(name, tensor)| {
            let name = name.replace("layers.", "model.h.").replace("scale", "model.scale");
            (if name.starts_with("pair") { format!("model.{name}") } else { name }, tensor)
        })
        .chain([("teacher.weight".to_string(), HostTensor { shape: vec![1], values: vec![0.0] })])
        .collect();
    let names = NameMap::identity().replace("layers", "model.h").replace("", "model.");
    let error = load_into(net(0.0, &device), &source, &names).unwrap_err().to_string();
    assert!(error.contains("1 problem") && error.contains("unexpected teacher.weight"), "{error}");
    let loaded = load_into(net(0.0, &device), &source, &names.ignore("teacher.")).unwrap();
    assert_eq!(host(&loaded), host(&net(5.0, &device)));
    assert_eq!(NameMap::identity().replace("pair", "x").source_name("pairs.0"), "pairs.0");
}

#[test]
fn every_difference_is_listed_at_once() {
    let device = Device::flex();
    let mut source = host(&net(0.0, &device));
    source.remove("layers.0.bias");
    source.remove("pair.0.weight");
    source.insert("scale".into(), HostTensor { shape: vec![4], values: vec![0.0; 4] });
    source.insert("extra".into(), HostTensor { shape: vec![1], values: vec![0.0] });
    let error = load_into(net(0.0, &device), &source, &NameMap::identity()).unwrap_err();
    let WeightsError::Mismatch { problems, .. } = &error else { panic!("{error}") };
    assert_eq!(
        problems[..],
        [
            Problem::Missing { name: "layers.0.bias".into(), shape: vec![1] },
            Problem::Missing { name: "pair.0.weight".into(), shape: vec![1, 2] },
            Problem::Misshapen { name: "scale".into(), expected: vec![3], found: vec![4] },
            Problem::Unexpected { name: "extra".into(), shape: vec![1] },
        ]
    );
    let text = error.to_string();
    assert!(text.contains("4 problems") && text.contains("expected shape [3], found [4]") && text.contains("hint:"), "{text}");
}

#[test]
fn a_long_list_is_cut() {
    let source: HostTensors =
        (0..100).map(|index| (format!("x{index:03}"), HostTensor { shape: vec![], values: vec![0.0] })).collect();
    let text = load_into(net(0.0, &Device::flex()), &source, &NameMap::identity()).unwrap_err().to_string();
    assert!(text.contains("107 problems") && text.contains("and 83 more"), "{text}");
}
