//! Files of low-rank adapters: beside the tensors `<layer>.lora_A.weight` `[rank, in]` and `<layer>.lora_B.weight` `[out, rank]` (PEFT's
//! names), the header's metadata holds `rank`, `alpha`, the `targets` (patterns, as JSON) and the name of the `base` model.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::module::Module;
use unif2ace_model::lora::{LORA_A, LORA_B, add_low_rank, is_adapter};
use unif2ace_model::transformer::Unif2ace;

use crate::import::own_type;
use crate::module::{compare, for_each_parameter, load_some, named_parameters, refuse as refuse_problems};
use crate::{
    FloatType, NameMap, Result, SafetensorsDir, SafetensorsFile, SafetensorsWriter, TensorSource, TensorSpec, WeightsError,
};

/// The adapters of a model folder.
pub const LORA_FILE: &str = "lora.safetensors";
/// Metadata of a model: SHA-256 of the files of adapters that were merged into it, with commas.
const MERGED: &str = "unif2ace.lora";
const HINT: &str = "an adapter goes with the model that it was trained on, whose name is `base` in its metadata";

/// What the header of a file of adapters says.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraInfo {
    /// Rank of the updates.
    pub rank: usize,
    /// Updates are `alpha / rank * B A`.
    pub alpha: f64,
    /// Patterns of the layers.
    pub targets: Vec<String>,
    /// Name of the model that it was trained on.
    pub base: String,
}

/// A file of adapters, opened.
#[derive(Debug)]
pub struct LoraFile {
    file: SafetensorsFile,
    info: LoraInfo,
    sha256: String,
}

impl LoraFile {
    /// Opens a file.
    ///
    /// # Errors
    /// When it can't be read or isn't one of adapters.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = SafetensorsFile::open(path)?;
        let entry = |key: &str| file.metadata().get(key).map(String::as_str).unwrap_or_default();
        let number = |key: &str| entry(key).parse::<f64>().ok().filter(|number| number.is_finite() && *number > 0.0);
        let damaged = |key: &str, expected: &str| WeightsError::Damaged {
            path: path.to_path_buf(),
            reason: format!("expected a file of adapters with {expected} as `{key}` in its metadata, found {:?}", entry(key)),
        };
        let info = LoraInfo {
            rank: entry("rank").parse().ok().filter(|&rank| rank > 0).ok_or_else(|| damaged("rank", "a whole number"))?,
            alpha: number("alpha").ok_or_else(|| damaged("alpha", "a positive number"))?,
            targets: serde_json::from_str(entry("targets")).unwrap_or_default(),
            base: entry("base").to_owned(),
        };
        Ok(Self { sha256: unif2ace_io::sha256_file(path)?, file, info })
    }

    /// What its header says.
    pub fn info(&self) -> &LoraInfo {
        &self.info
    }

    /// Checks that the adapters are those of layers of `base`.
    ///
    /// # Errors
    /// Lists every factor that is missing, of a layer that `base` doesn't have, or of another shape.
    fn check(&self, base: &impl TensorSource) -> Result<()> {
        let strip = |name: &str| Some(name.strip_suffix(LORA_A).or(name.strip_suffix(LORA_B))?.to_owned());
        let layers: BTreeSet<String> = self.file.names().filter(|name| is_adapter(name)).filter_map(strip).collect();
        let mut expected = Vec::with_capacity(2 * layers.len());
        for layer in &layers {
            if let Some([num_out, num_in]) = base.tensor_shape(&format!("{layer}weight")).as_deref() {
                expected.push((format!("{layer}{LORA_A}"), vec![self.info.rank, *num_in]));
                expected.push((format!("{layer}{LORA_B}"), vec![*num_out, self.info.rank]));
            }
        }
        let mut problems = compare(&expected, &self.file, |_| false);
        if expected.is_empty() && problems.is_empty() {
            let (name, shape) = (format!("LAYER.{LORA_A}"), vec![self.info.rank]);
            problems.push(crate::Problem::Missing { name, shape });
        }
        if problems.is_empty() {
            return Ok(());
        }
        Err(WeightsError::Mismatch { origin: self.file.origin(), target: base.origin(), problems, hint: HINT })
    }
}

/// A model's tensors with adapters added to them, or taken away.
pub struct WithLora<'a, S> {
    base: &'a S,
    lora: &'a LoraFile,
    scale: f32,
}

impl<'a, S: TensorSource> WithLora<'a, S> {
    /// `base + alpha / rank * B A`.
    ///
    /// # Errors
    /// When the adapters don't fit `base`; every difference is listed.
    pub fn added(base: &'a S, lora: &'a LoraFile) -> Result<Self> {
        lora.check(base)?;
        Ok(Self { base, lora, scale: (lora.info.alpha / lora.info.rank as f64) as f32 })
    }

    /// `base - alpha / rank * B A`.
    ///
    /// # Errors
    /// As [`Self::added`].
    pub fn removed(base: &'a S, lora: &'a LoraFile) -> Result<Self> {
        let added = Self::added(base, lora)?;
        Ok(Self { scale: -added.scale, ..added })
    }
}

impl<S: TensorSource> TensorSource for WithLora<'_, S> {
    fn origin(&self) -> String {
        self.base.origin()
    }

    fn tensor_names(&self) -> Vec<String> {
        self.base.tensor_names()
    }

    fn tensor_shape(&self, name: &str) -> Option<Vec<usize>> {
        self.base.tensor_shape(name)
    }

    fn non_float_type(&self, name: &str) -> Option<String> {
        self.base.non_float_type(name)
    }

    fn values_f32(&self, name: &str) -> Result<Vec<f32>> {
        let mut values = self.base.values_f32(name)?;
        if let Some(layer) = name.strip_suffix("weight") {
            let [a, b] = [LORA_A, LORA_B].map(|factor| format!("{layer}{factor}"));
            if self.lora.file.info(&a).is_some() {
                let (a, b) = (self.lora.file.load_f32(&a)?, self.lora.file.load_f32(&b)?);
                add_low_rank(&mut values, &a, &b, self.lora.info.rank, self.scale);
            }
        }
        Ok(values)
    }
}

/// What [`merge_lora`] does with adapters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merge {
    /// Adds them.
    Add,
    /// Takes them away again.
    Remove,
}

/// Writes the weights of `base` with the adapters merged into them, or taken out of them again, tensor by tensor. Without `float` they keep
/// their number type. The header remembers what was merged.
///
/// # Errors
/// When the adapters don't fit, are in the weights already, or were never merged into them; when the file can't be written, in which case
/// nothing is left behind.
pub fn merge_lora(
    base: &SafetensorsDir,
    lora: &LoraFile,
    what: Merge,
    path: impl AsRef<Path>,
    float: Option<FloatType>,
) -> Result<()> {
    let mut merged: Vec<&str> = base.metadata(MERGED).map(|text| text.split(',').collect()).unwrap_or_default();
    let known = merged.iter().position(|sha256| *sha256 == lora.sha256);
    let source = match (what, known) {
        (Merge::Add, None) => {
            merged.push(&lora.sha256);
            WithLora::added(base, lora)?
        }
        (Merge::Remove, Some(place)) => {
            merged.remove(place);
            WithLora::removed(base, lora)?
        }
        (Merge::Add, Some(_)) => {
            return Err(refuse(base, lora, "is merged into it already", "merge into the model it was trained on"));
        }
        (Merge::Remove, None) => {
            return Err(refuse(
                base,
                lora,
                "was not merged into it",
                "give the very file that was merged, and what merging wrote",
            ));
        }
    };
    let mut metadata: BTreeMap<String, String> = base.files().first().map(|file| file.metadata().clone()).unwrap_or_default();
    match merged.is_empty() {
        true => metadata.remove(MERGED),
        false => metadata.insert(MERGED.to_owned(), merged.join(",")),
    };
    let path = path.as_ref();
    if let Some(folder) = path.parent() {
        unif2ace_io::create_dir_all(folder)?;
    }
    let names = base.tensor_names();
    let spec = |name: &String| TensorSpec { name: name.clone(), shape: base.tensor_shape(name).unwrap_or_default() };
    let mut writer =
        SafetensorsWriter::create(path, names.iter().map(spec).collect(), float.unwrap_or_else(|| own_type(base)), &metadata)?;
    for name in &names {
        writer.write(name, &source.values_f32(name)?)?;
    }
    writer.finish()
}

fn refuse(base: &SafetensorsDir, lora: &LoraFile, reason: &str, hint: &'static str) -> WeightsError {
    let adapter = lora.file.path().display();
    WeightsError::Adapter { origin: base.origin(), reason: format!("the adapter {adapter} {reason}"), hint }
}

/// Name and shape of a model's adapters, in its order.
pub fn adapter_specs<M: Module>(model: &M) -> Vec<TensorSpec> {
    let all = named_parameters(model).into_iter().filter(|(name, _)| is_adapter(name));
    all.map(|(name, shape)| TensorSpec { name, shape }).collect()
}

/// Writes a model's adapters, in float32.
///
/// # Errors
/// When the file can't be written.
pub fn save_lora(model: &Unif2ace, path: impl AsRef<Path>, info: &LoraInfo) -> Result<()> {
    let text = |value: &dyn std::fmt::Display| value.to_string();
    let targets = serde_json::to_string(&info.targets).unwrap_or_default();
    let metadata = [("rank", text(&info.rank)), ("alpha", text(&info.alpha)), ("targets", targets), ("base", info.base.clone())];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value)).into();
    let mut writer = SafetensorsWriter::create(path, adapter_specs(model), FloatType::F32, &metadata)?;
    for_each_parameter(model, |name, values| if is_adapter(name) { writer.write(name, values) } else { Ok(()) })?;
    writer.finish()
}

/// Loads adapters into a model that has them; its other parameters stay as they are.
///
/// # Errors
/// Lists every missing, unexpected and misshapen tensor before anything is read.
pub fn load_adapters<M: Module>(model: M, source: &impl TensorSource) -> Result<M> {
    let expected: Vec<_> = adapter_specs(&model).into_iter().map(|spec| (spec.name, spec.shape)).collect();
    refuse_problems(compare(&expected, source, |_| false), source)?;
    load_some(model, source, &NameMap::identity(), is_adapter)
}
