//! Modules seen as named parameters: the name is the path of fields and indices, joined by dots.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::module::{Module, Param, ParamId};
use burn::tensor::{Device, Tensor, TensorData};
use unif2ace_model::named::{MapNamed, VisitNamed, map_named, visit_named};

use crate::{FloatType, Problem, Result, SafetensorsDir, SafetensorsWriter, TensorSource, TensorSpec, WeightsError};

/// The id of the parameter at `path`: FNV-1a, 64 bits, of the path.
///
/// Optimiser state is keyed by parameter id. Random ids would be new in each process, and a resumed run would silently lose its
/// moments; ids that follow from the path are the same in every process.
pub fn param_id(path: &str) -> ParamId {
    let hash =
        path.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    ParamId::from(hash)
}

/// Name and shape of every float parameter, in the module's order; nothing is initialised by it.
pub fn named_parameters<M: Module>(module: &M) -> Vec<(String, Vec<usize>)> {
    struct Names {
        out: Vec<(String, Vec<usize>)>,
    }
    impl VisitNamed for Names {
        fn parameter<const D: usize>(&mut self, path: &str, param: &Param<Tensor<D>>) {
            self.out.push((path.to_owned(), param.lazy_shape().to_vec()));
        }
    }
    let mut names = Names { out: Vec::new() };
    visit_named(module, &mut names);
    names.out
}

/// The module with ids that follow from the paths; values stay as they are.
pub fn assign_param_ids<M: Module>(module: M) -> M {
    struct Assign;
    impl MapNamed for Assign {
        fn parameter<const D: usize>(&mut self, path: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let (_, tensor, mapper) = param.consume();
            Param::from_mapped_value(param_id(path), tensor, mapper)
        }
    }
    map_named(module, &mut Assign)
}

/// How names of a module become names of a source: the first rule whose prefix fits replaces that prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NameMap {
    rules: Vec<(String, String)>,
    ignored: Vec<String>,
}

impl NameMap {
    /// Equal names, every tensor of the source is expected.
    pub fn identity() -> Self {
        Self::default()
    }

    /// Names that start with `module_prefix` start with `source_prefix` in the source. Whole path parts must fit unless the prefix
    /// is empty or ends with a dot.
    #[must_use]
    pub fn replace(mut self, module_prefix: &str, source_prefix: &str) -> Self {
        self.rules.push((module_prefix.to_string(), source_prefix.to_string()));
        self
    }

    /// Tensors of the source that start with `source_prefix` may stay unused.
    #[must_use]
    pub fn ignore(mut self, source_prefix: &str) -> Self {
        self.ignored.push(source_prefix.to_string());
        self
    }

    /// The source's name for a module's parameter.
    pub fn source_name(&self, module_name: &str) -> String {
        for (module_prefix, source_prefix) in &self.rules {
            if let Some(rest) = module_name.strip_prefix(module_prefix.as_str())
                && (rest.is_empty() || rest.starts_with('.') || module_prefix.is_empty() || module_prefix.ends_with('.'))
            {
                return format!("{source_prefix}{rest}");
            }
        }
        module_name.to_string()
    }

    fn may_stay_unused(&self, source_name: &str) -> bool {
        self.ignored.iter().any(|prefix| source_name.starts_with(prefix.as_str()))
    }
}

/// Compares `expected` names and shapes with a source; an empty list means that they fit.
pub(crate) fn compare(
    expected: &[(String, Vec<usize>)],
    source: &impl TensorSource,
    may_stay_unused: impl Fn(&str) -> bool,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut used = BTreeSet::new();
    for (name, shape) in expected {
        used.insert(name.as_str());
        match source.tensor_shape(name) {
            None => problems.push(Problem::Missing { name: name.clone(), shape: shape.clone() }),
            Some(found) if found != *shape => {
                problems.push(Problem::Misshapen { name: name.clone(), expected: shape.clone(), found });
            }
            Some(_) => {}
        }
        if let Some(found) = source.non_float_type(name) {
            problems.push(Problem::WrongType { name: name.clone(), expected: "floats", found });
        }
    }
    for name in source.tensor_names() {
        if !used.contains(name.as_str()) && !may_stay_unused(&name) {
            let shape = source.tensor_shape(&name).unwrap_or_default();
            problems.push(Problem::Unexpected { name, shape });
        }
    }
    problems
}

/// Loads every float parameter of `module` from `source` and gives it the id that follows from its path. Device and gradient
/// setting of each parameter stay as they are.
///
/// # Errors
/// Lists every missing, unexpected and misshapen tensor before anything is read.
pub fn load_into<M: Module>(module: M, source: &impl TensorSource, names: &NameMap) -> Result<M> {
    check_fit(&module, source, names)?;
    load_checked(module, source, names)
}

fn check_fit<M: Module>(module: &M, source: &impl TensorSource, names: &NameMap) -> Result<()> {
    let expected: Vec<_> = named_parameters(module).into_iter().map(|(name, shape)| (names.source_name(&name), shape)).collect();
    refuse(compare(&expected, source, |name| names.may_stay_unused(name)), source)
}

/// An error that lists the problems, if there are any.
pub(crate) fn refuse(problems: Vec<Problem>, source: &impl TensorSource) -> Result<()> {
    if problems.is_empty() {
        return Ok(());
    }
    Err(WeightsError::Mismatch {
        origin: source.origin(),
        target: "this model".to_string(),
        problems,
        hint: "config.json and weights must be of the same model",
    })
}

/// As [`load_into`] for a network that is used and not trained: a parameter's values are read when they are first needed (of an image
/// tokenizer, generation needs only the half that decodes), and take no gradients. The files stay mapped until then.
///
/// # Errors
/// As [`load_into`]; a file that was shortened since it was opened is found here, one that is shortened later ends the process, as with
/// packed weights.
pub fn load_frozen<M: Module>(module: M, source: &SafetensorsDir, names: &NameMap) -> Result<M> {
    struct Defer<'a> {
        source: &'a SafetensorsDir,
        names: &'a NameMap,
        error: Option<WeightsError>,
    }
    impl MapNamed for Defer<'_> {
        fn parameter<const D: usize>(&mut self, path: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let values = match self.source.deferred_f32(&self.names.source_name(path)) {
                Ok(values) => values,
                Err(error) => {
                    self.error.get_or_insert(error);
                    return param;
                }
            };
            let (shape, data_shape) = (param.lazy_shape(), param.lazy_shape());
            let read = move |device: &Device, _: bool| Tensor::from_data(TensorData::new(values(), data_shape), device);
            Param::uninitialized(param_id(path), read, param.lazy_device(), false, shape)
        }
    }
    check_fit(&module, source, names)?;
    let mut defer = Defer { source, names, error: None };
    let module = map_named(module, &mut defer);
    defer.error.map_or(Ok(module), Err)
}

/// The second half of [`load_into`], after the comparison. Parameters without values (their weights are packed) stay as they are.
pub(crate) fn load_checked<M: Module>(module: M, source: &impl TensorSource, names: &NameMap) -> Result<M> {
    load_some(module, source, names, |_| true)
}

/// As [`load_checked`], for the parameters whose paths are `wanted`; the others stay as they are.
pub(crate) fn load_some<M: Module>(
    module: M,
    source: &impl TensorSource,
    names: &NameMap,
    wanted: impl Fn(&str) -> bool,
) -> Result<M> {
    struct Load<'a, S, W> {
        source: &'a S,
        names: &'a NameMap,
        wanted: W,
        error: Option<WeightsError>,
    }
    impl<S: TensorSource, W: Fn(&str) -> bool> MapNamed for Load<'_, S, W> {
        fn parameter<const D: usize>(&mut self, path: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if self.error.is_some() || param.lazy_shape().num_elements() == 0 || !(self.wanted)(path) {
                return param;
            }
            match self.source.values_f32(&self.names.source_name(path)) {
                Ok(values) => {
                    let data = TensorData::new(values, param.lazy_shape());
                    let tensor = Tensor::from_data(data, &param.lazy_device());
                    param.transform_for_load(tensor, param_id(path))
                }
                Err(error) => {
                    self.error = Some(error);
                    param
                }
            }
        }
    }
    let mut load = Load { source, names, wanted, error: None };
    let module = map_named(module, &mut load);
    match load.error {
        Some(error) => Err(error),
        None => Ok(module),
    }
}

/// Saves every float parameter under its path in one safetensors file, tensor by tensor; the file is there completely or not at all.
///
/// # Errors
/// When the file can't be written or a value doesn't fit into float16.
pub fn save_module<M: Module>(
    module: &M,
    path: impl AsRef<Path>,
    float: FloatType,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let mut writer = SafetensorsWriter::create(path, parameter_specs(module), float, metadata)?;
    for_each_parameter(module, |name, values| writer.write(name, values))?;
    writer.finish()
}

/// What a file of the module's float parameters holds, in the module's order.
pub fn parameter_specs<M: Module>(module: &M) -> Vec<TensorSpec> {
    named_parameters(module).into_iter().map(|(name, shape)| TensorSpec { name, shape }).collect()
}

/// Calls `take` with name and values of every float parameter, in the module's order, until it fails.
///
/// # Errors
/// The first of `take`.
pub fn for_each_parameter<M: Module>(module: &M, take: impl FnMut(&str, &[f32]) -> Result<()>) -> Result<()> {
    struct Walk<F> {
        take: F,
        error: Option<WeightsError>,
    }
    impl<F: FnMut(&str, &[f32]) -> Result<()>> VisitNamed for Walk<F> {
        fn parameter<const D: usize>(&mut self, path: &str, param: &Param<Tensor<D>>) {
            if self.error.is_some() {
                return;
            }
            let data = param.val().into_data();
            let result = match data.as_slice::<f32>() {
                Ok(values) => (self.take)(path, values),
                Err(_) => {
                    // Parameters that a device keeps in half precision.
                    let values: Vec<f32> = data.iter::<f32>().collect();
                    (self.take)(path, &values)
                }
            };
            self.error = result.err();
        }
    }
    let mut walk = Walk { take, error: None };
    visit_named(module, &mut walk);
    match walk.error {
        Some(error) => Err(error),
        None => Ok(()),
    }
}
