//! A training step that our trainer and its rival both do: a recipe, first weights, and batches. The texts are those of a face set; codes
//! and features of the pictures are made up, so that any sizes can be tried without networks that fit them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use clap::Args;
use half::bf16;
use serde::{Deserialize, Serialize};
use unif2ace_data::{Broken, DataSet, MaxBroken, TextTokenizer, load_all};
use unif2ace_diffusion::rng::{Key, Stream};
use unif2ace_golden::procedural;
use unif2ace_model::masks::Mask;
use unif2ace_model::transformer::{Unif2ace, init_code_rows_from_bits};
use unif2ace_train::Recipe;
use unif2ace_train::batches::sample_indices;
use unif2ace_train::features::Features;
use unif2ace_train::params::{map_parameters, tensor_values};
use unif2ace_train::recipe::{OptimizerConfig, ScheduleName, UnifiedRecipe};
use unif2ace_train::tasks::rows::{MmuRows, RowSource, T2iRows};
use unif2ace_train::tasks::share::Share;
use unif2ace_train::tasks::unified::FeaturedRecords;
use unif2ace_weights::{
    DType, FloatType, NameMap, SafetensorsDir, SafetensorsWriter, TensorSpec, load_into, save_module, write_config_part,
};

use crate::Outcome;

/// Pictures for understanding are drawn in another order than those for generation.
const MMU: u64 = 1;

/// Options of a case.
#[derive(Debug, Args)]
pub struct TrainCaseArgs {
    /// Recipe of a unified transformer.
    recipe: PathBuf,
    /// Folder to write: case.json, config.json, model.safetensors, batch-0.safetensors and so on.
    folder: PathBuf,
    /// Face set whose texts are used.
    #[arg(long, default_value = "tests/fixtures/faces")]
    faces: PathBuf,
    /// Its split.
    #[arg(long, default_value = "test")]
    split: String,
    /// Tokenizer of the recipe's text vocabulary.
    #[arg(long, default_value = "models/mini/tokenizer.json")]
    tokenizer: PathBuf,
    /// Batches, read in turns.
    #[arg(long, default_value_t = 3)]
    num_batches: u64,
    /// Positions of a picture's CLIP features.
    #[arg(long, default_value_t = 64)]
    num_patches: usize,
    /// Rows of generation, in place of the recipe's.
    #[arg(long)]
    batch_size: Option<usize>,
    /// Rows of understanding, in place of the recipe's.
    #[arg(long)]
    mmu_batch_size: Option<usize>,
    /// Image tokens, in place of the recipe's.
    #[arg(long)]
    num_vq_tokens: Option<usize>,
    /// Blocks, in place of the recipe's.
    #[arg(long)]
    num_hidden_layers: Option<usize>,
}

/// What the batches of a case are made from; the same on every reading.
#[derive(Debug, Serialize, Deserialize)]
pub struct TrainCase {
    recipe: Recipe,
    faces: PathBuf,
    split: String,
    tokenizer: PathBuf,
    num_batches: u64,
    num_patches: usize,
}

/// The rows of one step; a task without rows is left out.
pub struct Rows {
    /// Generation.
    pub t2i: Option<T2iRows>,
    /// Understanding.
    pub mmu: Option<MmuRows>,
}

impl TrainCase {
    fn new(args: &TrainCaseArgs) -> Outcome<Self> {
        let mut recipe = Recipe::read(&args.recipe)?;
        let (Some(optimizer), Some(unified)) = (&mut recipe.optimizer, &mut recipe.unified) else {
            return Err(format!("{}: expected a recipe with [optimizer] and [unified]", args.recipe.display()).into());
        };
        // A first step with the rate 0 would compare nothing.
        (optimizer.schedule, optimizer.warmup_steps) = (ScheduleName::Constant, 0);
        optimizer.batch_size = args.batch_size.unwrap_or(optimizer.batch_size);
        unified.mmu_batch_size = args.mmu_batch_size.unwrap_or(unified.mmu_batch_size);
        unified.config.num_vq_tokens = args.num_vq_tokens.unwrap_or(unified.config.num_vq_tokens);
        unified.config.num_hidden_layers = args.num_hidden_layers.unwrap_or(unified.config.num_hidden_layers);
        Ok(Self {
            recipe,
            faces: args.faces.canonicalize()?,
            split: args.split.clone(),
            tokenizer: args.tokenizer.canonicalize()?,
            num_batches: args.num_batches.max(1),
            num_patches: args.num_patches,
        })
    }

    /// Reads a case.
    pub fn read(folder: &Path) -> Outcome<Self> {
        Ok(serde_json::from_slice(&unif2ace_io::read_capped(folder.join("case.json"), 1 << 20)?)?)
    }

    /// The recipe's optimiser.
    pub fn optimizer(&self) -> Outcome<&OptimizerConfig> {
        Ok(self.recipe.optimizer()?)
    }

    /// The recipe's model and losses.
    pub fn unified(&self) -> Outcome<&UnifiedRecipe> {
        self.recipe.unified.as_ref().ok_or_else(|| "the case has no [unified]".into())
    }

    /// The first weights, as `write` left them in `folder`.
    pub fn model(&self, folder: &Path, device: &Device) -> Outcome<Unif2ace> {
        let weights = SafetensorsDir::open(folder.join("model.safetensors"))?;
        Ok(load_into(Unif2ace::new(&self.unified()?.config, device)?, &weights, &NameMap::identity())?)
    }

    /// Texts of the set with codes and features that are made up.
    fn records(&self) -> Outcome<FeaturedRecords> {
        let (seed, config) = (self.recipe.run.seed, &self.unified()?.config);
        let set = DataSet::open(&self.faces, None, &self.split, 0)?;
        let samples = load_all(&set, 0, &Broken::new(MaxBroken::Count(0)), |sample| Ok((sample.key, sample.record)))?;
        let (num, moe) = (samples.len() as u64, &config.moe);
        // Of mean 0 and variance 1.
        let value = |key: &Key, position: usize, index: usize| {
            (key.uniform(Stream::Init, position as u32, index as u32) - 0.5) * 12f32.sqrt()
        };
        let keys: Vec<Key> = (0..num).map(|index| Key::new(seed, index)).collect();
        let codes = |key: &Key| -> Vec<u32> {
            (0..config.num_vq_tokens).map(|place| key.below(Stream::Code, place as u32, 0, config.codebook_size) as u32).collect()
        };
        let clip = |key: &Key| -> Vec<bf16> {
            let places = (1..=self.num_patches).flat_map(|place| (0..moe.clip_dim).map(move |index| (place, index)));
            places.map(|(place, index)| bf16::from_f32(value(key, place, index))).collect()
        };
        let face = |key: &Key| -> Vec<f32> { (0..moe.face_dim).map(|index| value(key, 0, index)).collect() };
        let features = Features {
            codes: keys.iter().flat_map(codes).collect(),
            clip: keys.iter().flat_map(clip).collect(),
            face: keys.iter().flat_map(face).collect(),
            num_codes: config.num_vq_tokens,
            clip_shape: [self.num_patches, moe.clip_dim],
            face_dim: moe.face_dim,
        };
        let (keys, records) = samples.into_iter().unzip();
        Ok(FeaturedRecords { keys, records, features })
    }

    /// The rows of each batch, as the trainer makes them; features lie on `device`.
    pub fn batches(&self, device: &Device) -> Outcome<Vec<Rows>> {
        let (seed, unified) = (self.recipe.run.seed, self.unified()?);
        let (set, tokenizer) = (self.records()?, TextTokenizer::from_file(&self.tokenizer)?);
        let [num_t2i, num_mmu] = [self.optimizer()?.batch_size, unified.mmu_batch_size];
        let rows = |step: u64| -> Outcome<Rows> {
            let key = Key::new(seed, 0).at_step(step as u32);
            let source = RowSource { recipe: unified, tokenizer: &tokenizer, set: &set, key };
            let indices = |seed, num| sample_indices(seed, step, num, set.records.len());
            let t2i = (num_t2i > 0).then(|| source.t2i(&indices(seed, num_t2i), &Share::whole(num_t2i), true));
            let mmu = (num_mmu > 0).then(|| source.mmu(&indices(seed ^ MMU, num_mmu), &Share::whole(num_mmu), device));
            Ok(Rows { t2i: t2i.transpose()?, mmu: mmu.transpose()? })
        };
        (0..self.num_batches).map(rows).collect()
    }
}

/// Writes a case.
pub fn write(args: &TrainCaseArgs) -> Outcome {
    let case = TrainCase::new(args)?;
    let (folder, config, seed) = (&args.folder, &case.unified()?.config, case.recipe.run.seed);
    unif2ace_io::create_dir_all(folder)?;
    let device = Device::flex();
    device.seed(seed);
    let model = init_code_rows_from_bits(Unif2ace::new(config, &device)?, seed);
    // New experts give zeros, which would leave half of their weights without a gradient to compare.
    let model = map_parameters(model, |path, shape, values| {
        if path.ends_with("fc2_weight") {
            values.copy_from_slice(&procedural(path, shape));
        }
    });
    save_module(&model, folder.join("model.safetensors"), FloatType::F32, &BTreeMap::new())?;
    write_config_part(folder, "model", config)?;
    for (index, rows) in case.batches(&device)?.into_iter().enumerate() {
        write_rows(rows, &folder.join(format!("batch-{index}.safetensors")))?;
    }
    let mut text = serde_json::to_vec_pretty(&case)?;
    text.push(b'\n');
    Ok(unif2ace_io::write_atomic(folder.join("case.json"), &text)?)
}

/// Named tensors of several types on their way to a file.
#[derive(Default)]
struct Tensors(Vec<((TensorSpec, DType), Vec<u8>)>);

impl Tensors {
    fn push(&mut self, name: &str, shape: &[usize], dtype: DType, bytes: Vec<u8>) {
        self.0.push(((TensorSpec { name: name.into(), shape: shape.into() }, dtype), bytes));
    }

    fn integers(&mut self, name: &str, shape: &[usize], values: impl IntoIterator<Item = i64>) {
        self.push(name, shape, DType::I64, values.into_iter().flat_map(i64::to_le_bytes).collect());
    }

    fn floats(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        self.push(name, shape, DType::F32, values.iter().flat_map(|value| value.to_le_bytes()).collect());
    }

    fn tensor<const D: usize>(&mut self, name: &str, tensor: Option<Tensor<D>>) {
        if let Some(tensor) = tensor {
            self.floats(name, &tensor.dims(), &tensor_values(tensor.clone()));
        }
    }

    /// Who sees whom, true where visible.
    fn mask(&mut self, name: &str, mask: &Mask) {
        self.push(name, &mask.dims(), DType::Bool, mask.visible().iter().map(|&visible| u8::from(visible)).collect());
    }
}

fn write_rows(rows: Rows, path: &Path) -> Outcome {
    let mut all = Tensors::default();
    if let Some(rows) = rows.t2i {
        let [batch, length, _] = rows.mask.dims();
        let num = rows.places.len();
        all.integers("t2i.ids", &[batch, length], rows.ids.into_iter().map(i64::from));
        all.integers("t2i.first_position", &[1], [rows.first_position as i64]);
        all.integers("t2i.image_start", &[1], [rows.image_start as i64]);
        all.mask("t2i.mask", &rows.mask);
        all.integers("t2i.places", &[num], rows.places);
        all.integers("t2i.targets", &[num], rows.targets);
        all.integers("t2i.image_of_row", &[num], rows.image_of_row.into_iter().map(|row| row as i64));
        all.push("t2i.times", &[batch], DType::F64, rows.times.into_iter().flat_map(f64::to_le_bytes).collect());
        all.floats("t2i.noise_level", &[batch], &rows.noise_level);
    }
    if let Some(rows) = rows.mmu {
        let [batch, length, _] = rows.mask.dims();
        let num = rows.places.len();
        all.integers("mmu.ids", &[batch, length], rows.ids.into_iter().map(i64::from));
        all.integers("mmu.positions", &[batch, length], rows.positions.into_iter().flatten().map(i64::from));
        all.mask("mmu.mask", &rows.mask);
        all.integers("mmu.places", &[num], rows.places);
        all.integers("mmu.targets", &[num], rows.targets);
        all.tensor("mmu.clip", rows.clip_BPC);
        all.tensor("mmu.face", rows.face_BF);
    }
    let (specs, values): (Vec<_>, Vec<_>) = all.0.into_iter().unzip();
    let names: Vec<String> = specs.iter().map(|(spec, _)| spec.name.clone()).collect();
    let mut writer = SafetensorsWriter::create_typed(path, specs, &BTreeMap::new())?;
    for (name, bytes) in names.iter().zip(values) {
        writer.write_bytes(name, &bytes)?;
    }
    Ok(writer.finish()?)
}
