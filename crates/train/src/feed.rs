//! The batches of the unified transformer: what the recipe's sets give each task at a step.

use std::sync::Arc;

use burn::tensor::Device;
use unif2ace_comm::Communicator;
use unif2ace_data::{
    Broken, DataSet, Drawn, Loader, LoaderOptions, MixtureEntry, Permute, Prepare, SampleFault, Stream, TaskName,
};
use unif2ace_diffusion::rng;
use unif2ace_pipeline::Parts;

use crate::encoder::{Encoder, Row};
use crate::error::{Result, TrainError};
use crate::recipe::{Recipe, UnifiedRecipe};
use crate::report::Work;
use crate::tasks::data;
use crate::tasks::unified::FeaturedRecords;
use crate::trainer::Session;

/// Batches that workers make ready ahead.
const NUM_AHEAD: usize = 2;
/// Turns the run's seed into that of the understanding rows and of the text rows.
const MMU: u64 = 0x6d6d75;
const TEXT: u64 = 0x74_6578_7400;

/// The part of each batch that a process reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RankOf {
    /// Number of this process.
    pub rank: usize,
    /// How many processes there are.
    pub world_size: usize,
}

impl RankOf {
    /// Which of the ranks this process is.
    pub fn of(ranks: &dyn Communicator) -> Self {
        Self { rank: ranks.rank(), world_size: ranks.world_size() }
    }
}

/// A line of text alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedText {
    /// File and line.
    pub key: String,
    /// The text.
    pub text: String,
}

/// Batches by task and step. They are a function of the recipe and the step, for any number of processes and workers.
pub struct Feed {
    encoder: Encoder,
    entries: Vec<MixtureEntry>,
    t2i: Option<(Loader<Row>, u64)>,
    mmu: Option<(Loader<Row>, u64)>,
    text: Option<(Loader<NamedText>, u64)>,
    rank: RankOf,
}

/// Broken samples of a batch that others stand for.
fn num_broken<T: Send + 'static>(loader: &mut Option<(Loader<T>, u64)>) -> usize {
    loader.as_mut().map_or(0, |(loader, _)| loader.take_num_broken())
}

impl Feed {
    /// Opens the training sets of a recipe; nothing is encoded yet.
    ///
    /// # Errors
    /// When a set or the cache can't be opened, or no set is for a task that the recipe trains.
    pub fn open(recipe: &Recipe, unified: &UnifiedRecipe, parts: Parts, rank: RankOf, device: Device) -> Result<Self> {
        let cache = recipe.data.cache_folder(&recipe.run.output);
        let encoder = Encoder::open(parts, &recipe.run.export, &cache, device)?;
        let entries = recipe.data.open("train")?;
        let seed = recipe.run.seed;
        let batch_size = recipe.optimizer()?.batch_size;
        let maker = encoder.row_maker();
        let t2i: Prepare<Row> = {
            let maker = maker.clone();
            Arc::new(
                move |drawn| if drawn.sample.record.captions.is_empty() { unusable(&drawn) } else { maker.make(drawn.sample) },
            )
        };
        let mmu: Prepare<Row> = Arc::new(move |mut drawn| {
            let record = &mut drawn.sample.record;
            if !drawn.tasks.contains(&TaskName::Caption) {
                record.captions.clear();
            }
            if !drawn.tasks.contains(&TaskName::Vqa) {
                record.vqa.clear();
                record.attributes.clear();
            }
            if record.captions.is_empty() && record.vqa.is_empty() { unusable(&drawn) } else { maker.make(drawn.sample) }
        });
        let text: Prepare<NamedText> = Arc::new(|mut drawn| match drawn.sample.record.captions.pop() {
            Some(text) => Ok(NamedText { key: drawn.sample.key, text }),
            None => unusable(&drawn),
        });
        let broken = Arc::new(Broken::new(recipe.data.max_broken()));
        let open = Opener { recipe, entries: &entries, rank, broken };
        Ok(Self {
            t2i: open.loader(&[TaskName::T2i], seed, batch_size, unified.t2i_coeff, t2i)?,
            mmu: open.loader(&[TaskName::Caption, TaskName::Vqa], seed ^ MMU, unified.mmu_batch_size, unified.mmu_coeff, mmu)?,
            text: open.loader(&[TaskName::Text], seed ^ TEXT, unified.text_batch_size, unified.text_coeff, text)?,
            encoder,
            entries,
            rank,
        })
    }

    /// The frozen parts and their cache.
    pub fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    /// Broken samples for which others stand in what was read since this was called last, by this process.
    pub fn take_num_broken(&mut self) -> usize {
        num_broken(&mut self.t2i) + num_broken(&mut self.mmu) + num_broken(&mut self.text)
    }

    /// The sets of the mixture whose pictures are trained on.
    fn pictured(&self) -> impl Iterator<Item = &Arc<DataSet>> {
        self.entries.iter().filter(|entry| entry.tasks.iter().any(|&task| task != TaskName::Text)).map(|entry| &entry.set)
    }

    /// Encodes all pictures that the cache doesn't have; `false` when Ctrl-C was pressed.
    ///
    /// # Errors
    /// When too many samples are broken, or the cache can't be written.
    pub fn precompute(&self, recipe: &Recipe, session: &Session) -> Result<bool> {
        let broken = Broken::new(recipe.data.max_broken());
        let RankOf { rank, world_size } = self.rank;
        let total: usize = self.pictured().map(|set| set.len().div_ceil(world_size)).sum();
        let reporter = session.reporter();
        reporter.begin(Work::Features, 0, total as u64);
        let mut done = 0;
        let mut advance = |more: usize| {
            done += more as u64;
            reporter.advance(done);
        };
        for set in self.pictured() {
            if !self.encoder.precompute(set, (rank, world_size), &broken, &mut advance)? {
                reporter.end(true);
                return Ok(false);
            }
        }
        reporter.end(false);
        tracing::info!(samples = total, encoded = self.encoder.num_encoded(), "features of the pictures are in the cache");
        Ok(true)
    }

    /// Up to `limit` held-out samples of all sets together, in memory.
    ///
    /// # Errors
    /// When a set has no such split, or too many samples are broken.
    pub fn held_out(&self, recipe: &Recipe, limit: usize) -> Result<FeaturedRecords> {
        let broken = Broken::new(recipe.data.max_broken());
        let sets = recipe.data.open("val")?;
        let mut all = FeaturedRecords::default();
        for entry in &sets {
            let part = self.encoder.load(&entry.set, limit.div_ceil(sets.len()), &broken)?;
            all.append(part)?;
        }
        if all.records.is_empty() {
            return Err(data("no set of [data] has pictures to evaluate on\nhint: add a set for t2i, caption or vqa"));
        }
        Ok(all)
    }

    /// Generation rows of a step; none where the recipe trains none.
    ///
    /// # Errors
    /// When a file can't be read, or too many samples are broken.
    pub fn t2i(&mut self, step: u64) -> Result<FeaturedRecords> {
        let rows = batch(&mut self.t2i, step)?;
        self.encoder.features(rows)
    }

    /// Understanding rows of a step; none where the recipe trains none.
    ///
    /// # Errors
    /// As [`Self::t2i`].
    pub fn mmu(&mut self, step: u64) -> Result<FeaturedRecords> {
        let rows = batch(&mut self.mmu, step)?;
        self.encoder.features(rows)
    }

    /// Texts of a step; none where the recipe trains none.
    ///
    /// # Errors
    /// As [`Self::t2i`].
    pub fn texts(&mut self, step: u64) -> Result<Vec<NamedText>> {
        batch(&mut self.text, step)
    }
}

fn unusable<T>(drawn: &Drawn) -> std::result::Result<T, SampleFault> {
    let names: Vec<&str> = drawn.tasks.iter().map(|task| task.name()).collect();
    Err(SampleFault::Unusable { tasks: names.join(", ") })
}

fn batch<T: Send + 'static>(loader: &mut Option<(Loader<T>, u64)>, step: u64) -> Result<Vec<T>> {
    let Some((loader, batch_size)) = loader else { return Ok(Vec::new()) };
    loader.seek(step * *batch_size);
    loader.next_batch().map_err(data)
}

struct Opener<'a> {
    recipe: &'a Recipe,
    entries: &'a [MixtureEntry],
    rank: RankOf,
    /// Of all loaders: a sample that is broken for several tasks counts once.
    broken: Arc<Broken>,
}

impl Opener<'_> {
    /// A loader with its batch size, where the recipe trains these tasks.
    fn loader<T: Send + 'static>(
        &self,
        tasks: &[TaskName],
        seed: u64,
        batch_size: usize,
        coeff: f64,
        prepare: Prepare<T>,
    ) -> Result<Option<(Loader<T>, u64)>> {
        if batch_size == 0 || coeff == 0.0 {
            return Ok(None);
        }
        let permute: Permute = |seed, number, len| rng::Key::new(seed, number).permutation(rng::Stream::Data, len);
        let Some(stream) = Stream::new(self.entries, tasks, seed, permute).map_err(data)? else {
            let names: Vec<&str> = tasks.iter().map(|task| task.name()).collect();
            let reason = format!("no set of [data] is for the tasks {}, which [unified] trains", names.join(", "));
            return Err(TrainError::recipe(&self.recipe.run.output, reason));
        };
        let RankOf { rank, world_size } = self.rank;
        let options =
            LoaderOptions { batch_size, rank, world_size, num_workers: self.recipe.data.num_workers, num_ahead: NUM_AHEAD };
        Ok(Some((Loader::new(stream, options, self.broken.clone(), prepare).map_err(data)?, batch_size as u64)))
    }
}
