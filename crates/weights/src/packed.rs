//! Packed models: weights laid out for the CPU's matrix products once, in a file that the next start maps as it is.
//!
//! The file is a safetensors file. Rows `a..` of a packed parameter `p` are the tensors `p.packed.a.panels` (and `.scales`, `.offsets` in
//! int8), laid out as [`PackedMatrix::layout`] says; all other parameters are there under their own names. The header's metadata names the
//! format and the version of the layout.

use std::collections::BTreeMap;
use std::path::Path;

use unif2ace_model::packing::{PackSource, WeightRows, pack_table};
use unif2ace_model::transformer::Unif2ace;
use unif2ace_ops::{Element, PackedMatrix, Store, Table, WeightFormat};

use crate::module::{compare, load_checked, named_parameters, refuse};
use crate::{
    DType, NameMap, Problem, Result, SafetensorsDir, SafetensorsFile, SafetensorsWriter, TensorSource, TensorSpec, WeightsError,
};

/// The packed weights of a model folder.
pub const PACKED_FILE: &str = "packed.safetensors";
const FORMAT: &str = "unif2ace.packed";
const LAYOUT: &str = "unif2ace.layout";
/// Version of the layout; another one is refused.
const VERSION: &str = "1";
/// What the names of a packed matrix' parts have between those of the parameter and of the part.
const MATRIX: &str = ".packed.";

/// Name of a format in files and commands.
pub fn format_name(format: WeightFormat) -> &'static str {
    match format {
        WeightFormat::F32 => "f32",
        WeightFormat::Bf16 => "bf16",
        WeightFormat::Int8 => "int8",
    }
}

fn dtype(element: Element) -> DType {
    match element {
        Element::F32 => DType::F32,
        Element::Bf16 => DType::Bf16,
        Element::I8 => DType::I8,
        Element::I32 => DType::I32,
    }
}

fn key(rows: &WeightRows<'_>, part: &str) -> String {
    format!("{}{MATRIX}{}.{part}", rows.parameter, rows.rows.start)
}

/// A checkpoint's values, read parameter by parameter, so that the plain weights are never in memory together.
struct Streamed<'a, S> {
    source: &'a S,
    format: WeightFormat,
    /// The last parameter, of which more rows may be wanted.
    last: Option<(String, Vec<f32>)>,
}

impl<S: TensorSource> PackSource for Streamed<'_, S> {
    type Error = WeightsError;

    fn matrix(&mut self, rows: &WeightRows<'_>, _own: &dyn Fn() -> Vec<f32>) -> Result<PackedMatrix> {
        let values = match self.last.take() {
            Some((name, values)) if name == rows.parameter => values,
            _ => self.source.values_f32(rows.parameter)?,
        };
        let packed = rows.pack(&values[rows.values()], self.format);
        self.last = Some((rows.parameter.to_owned(), values));
        Ok(packed)
    }

    fn table(&mut self, parameter: &str, [_, width]: [usize; 2], _own: &dyn Fn() -> Vec<f32>) -> Result<Table> {
        Ok(pack_table(self.source.values_f32(parameter)?, width, self.format))
    }

    fn bias(&mut self, parameter: &str, _len: usize, _own: &dyn Fn() -> Vec<f32>) -> Result<Vec<f32>> {
        self.source.values_f32(parameter)
    }
}

/// Loads a checkpoint's weights into `model`, packed in `format`. Every difference of names and shapes is found before anything is read.
///
/// # Errors
/// Lists every missing, unexpected and misshapen tensor.
pub fn load_packing(mut model: Unif2ace, source: &impl TensorSource, format: WeightFormat) -> Result<Unif2ace> {
    refuse(compare(&named_parameters(&model), source, |_| false), source)?;
    model.pack_from(&mut Streamed { source, format, last: None })?;
    load_checked(model, source, &NameMap::identity())
}

/// What a packed file holds of packed parameters, in order.
#[derive(Default)]
struct Plan {
    format: Option<WeightFormat>,
    tensors: Vec<(TensorSpec, DType)>,
}

impl PackSource for Plan {
    type Error = WeightsError;

    fn matrix(&mut self, rows: &WeightRows<'_>, _own: &dyn Fn() -> Vec<f32>) -> Result<PackedMatrix> {
        let format = self.format.unwrap_or(WeightFormat::F32);
        for part in PackedMatrix::layout(format, rows.packed_dims()) {
            self.tensors.push((TensorSpec { name: key(rows, part.name), shape: part.shape }, dtype(part.element)));
        }
        // Nobody computes with this one.
        let none = WeightRows { rows: 0..0, width: 0, ..rows.clone() };
        Ok(none.pack(&[], format))
    }

    fn table(&mut self, parameter: &str, dims: [usize; 2], _own: &dyn Fn() -> Vec<f32>) -> Result<Table> {
        let dtype = if self.format == Some(WeightFormat::F32) { DType::F32 } else { DType::Bf16 };
        self.tensors.push((TensorSpec { name: parameter.to_owned(), shape: dims.to_vec() }, dtype));
        Ok(Table::f32(Store::from(Vec::new()), 0))
    }

    fn bias(&mut self, _parameter: &str, len: usize, _own: &dyn Fn() -> Vec<f32>) -> Result<Vec<f32>> {
        Ok(vec![0.0; len])
    }
}

impl Plan {
    /// All tensors of a packed file of a model: the packed ones, then the others. `model` is one that nobody needs any more.
    fn of(mut model: Unif2ace, format: WeightFormat) -> Result<(Vec<(TensorSpec, DType)>, Unif2ace)> {
        let mut plan = Self { format: Some(format), ..Self::default() };
        model.pack_from(&mut plan)?;
        let others = named_parameters(&model).into_iter().filter(|(_, shape)| shape.iter().product::<usize>() > 0);
        plan.tensors.extend(others.map(|(name, shape)| (TensorSpec { name, shape }, DType::F32)));
        Ok((plan.tensors, model))
    }
}

/// Writes what it packs.
struct Written<'a> {
    streamed: Streamed<'a, SafetensorsDir>,
    writer: &'a mut SafetensorsWriter,
    progress: &'a mut dyn FnMut(&str),
}

impl PackSource for Written<'_> {
    type Error = WeightsError;

    fn matrix(&mut self, rows: &WeightRows<'_>, own: &dyn Fn() -> Vec<f32>) -> Result<PackedMatrix> {
        (self.progress)(rows.parameter);
        let matrix = self.streamed.matrix(rows, own)?;
        for (part, bytes) in PackedMatrix::layout(matrix.format(), rows.packed_dims()).iter().zip(matrix.bytes()) {
            self.writer.write_bytes(&key(rows, part.name), bytes)?;
        }
        // It is on the disk; it need not be in memory too.
        let none = WeightRows { rows: 0..0, width: 0, ..rows.clone() };
        Ok(none.pack(&[], matrix.format()))
    }

    fn table(&mut self, parameter: &str, dims: [usize; 2], own: &dyn Fn() -> Vec<f32>) -> Result<Table> {
        (self.progress)(parameter);
        let table = self.streamed.table(parameter, dims, own)?;
        self.writer.write_bytes(parameter, table.bytes())?;
        Ok(Table::f32(Store::from(Vec::new()), 0))
    }

    fn bias(&mut self, _parameter: &str, len: usize, _own: &dyn Fn() -> Vec<f32>) -> Result<Vec<f32>> {
        Ok(vec![0.0; len])
    }
}

/// Packs a checkpoint into one file, piece by piece. `model` gives names and shapes, twice because packing takes them apart; `progress` hears
/// the name of each parameter.
///
/// # Errors
/// As [`load_packing`], and when the file can't be written; nothing is left behind then.
pub fn save_packed(
    model: impl Fn() -> Unif2ace,
    source: &SafetensorsDir,
    path: impl AsRef<Path>,
    format: WeightFormat,
    progress: &mut dyn FnMut(&str),
) -> Result<()> {
    refuse(compare(&named_parameters(&model()), source, |_| false), source)?;
    let (specs, _) = Plan::of(model(), format)?;
    let metadata = BTreeMap::from([(FORMAT, format_name(format)), (LAYOUT, VERSION)].map(|(k, v)| (k.to_owned(), v.to_owned())));
    let others: Vec<String> =
        specs.iter().map(|(spec, _)| spec.name.clone()).filter(|name| source.info(name).is_some()).collect();
    let mut writer = SafetensorsWriter::create_typed(path, specs, &metadata)?;
    let mut packed = model();
    packed.pack_from(&mut Written { streamed: Streamed { source, format, last: None }, writer: &mut writer, progress })?;
    let tables = named_parameters(&packed);
    for name in others {
        if tables.iter().any(|(left, shape)| *left == name && shape.iter().product::<usize>() > 0) {
            writer.write(&name, &source.load_f32(&name)?)?;
        }
    }
    writer.finish()
}

/// Parts of a packed file, mapped.
struct Mapped<'a> {
    file: &'a SafetensorsFile,
    format: WeightFormat,
}

impl PackSource for Mapped<'_> {
    type Error = WeightsError;

    fn matrix(&mut self, rows: &WeightRows<'_>, _own: &dyn Fn() -> Vec<f32>) -> Result<PackedMatrix> {
        PackedMatrix::mapped(self.format, rows.packed_dims(), |part| self.file.place(&key(rows, part)))
    }

    fn table(&mut self, parameter: &str, [_, width]: [usize; 2], _own: &dyn Fn() -> Vec<f32>) -> Result<Table> {
        let (file, bytes) = self.file.place(parameter)?;
        Ok(match self.format {
            WeightFormat::F32 => Table::f32(Store::mapped(&file, bytes), width),
            WeightFormat::Bf16 | WeightFormat::Int8 => Table::bf16(Store::mapped(&file, bytes), width),
        })
    }

    fn bias(&mut self, parameter: &str, _len: usize, _own: &dyn Fn() -> Vec<f32>) -> Result<Vec<f32>> {
        self.file.load_f32(parameter)
    }
}

/// The format of a packed file.
///
/// # Errors
/// When it isn't one, or of a layout that this version doesn't read.
pub fn packed_format(file: &SafetensorsFile) -> Result<WeightFormat> {
    let damaged = |reason: String| WeightsError::Damaged { path: file.path().to_path_buf(), reason };
    let entry = |key: &str| file.metadata().get(key).map(String::as_str).unwrap_or_default();
    if entry(LAYOUT) != VERSION {
        let found = entry(LAYOUT);
        return Err(damaged(format!("expected packed weights of layout {VERSION}, found {found:?}; pack the model again")));
    }
    [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8]
        .into_iter()
        .find(|format| format_name(*format) == entry(FORMAT))
        .ok_or_else(|| damaged(format!("expected the format f32, bf16 or int8, found {:?}", entry(FORMAT))))
}

/// Maps a packed file into `model`; `fresh` is another one of the same configuration.
///
/// # Errors
/// When the file isn't a packed one of this layout; lists every missing, unexpected and misshapen tensor.
pub fn load_packed(mut model: Unif2ace, fresh: Unif2ace, file: &SafetensorsFile) -> Result<Unif2ace> {
    let format = packed_format(file)?;
    // Matrices are read whole, of tables a few rows. The experts of the task that nobody asks for, a tenth of the file, are touched as well.
    file.touch_ahead(|name| name.contains(MATRIX));
    let (expected, _) = Plan::of(fresh, format)?;
    let mut problems = Vec::new();
    for (TensorSpec { name, shape }, dtype) in &expected {
        match file.info(name) {
            None => problems.push(Problem::Missing { name: name.clone(), shape: shape.clone() }),
            Some(info) if info.shape != *shape => {
                problems.push(Problem::Misshapen { name: name.clone(), expected: shape.clone(), found: info.shape.clone() });
            }
            Some(info) if info.dtype != *dtype => {
                problems.push(Problem::WrongType { name: name.clone(), expected: dtype.name(), found: info.dtype.to_string() })
            }
            Some(_) => {}
        }
    }
    let known: std::collections::BTreeSet<&str> = expected.iter().map(|(spec, _)| spec.name.as_str()).collect();
    for name in file.names().filter(|name| !known.contains(name)) {
        let shape = file.info(name).map(|info| info.shape.clone()).unwrap_or_default();
        problems.push(Problem::Unexpected { name: name.to_owned(), shape });
    }
    refuse(problems, file)?;
    model.pack_from(&mut Mapped { file, format })?;
    load_checked(model, file, &NameMap::identity())
}

impl TensorSource for SafetensorsFile {
    fn origin(&self) -> String {
        self.path().display().to_string()
    }

    fn tensor_names(&self) -> Vec<String> {
        self.names().map(str::to_owned).collect()
    }

    fn tensor_shape(&self, name: &str) -> Option<Vec<usize>> {
        self.info(name).map(|info| info.shape.clone())
    }

    fn values_f32(&self, name: &str) -> Result<Vec<f32>> {
        self.load_f32(name)
    }
}
