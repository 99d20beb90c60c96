//! From a recipe to a trained part in a model folder.

use burn::tensor::Device;
use unif2ace_data::{Broken, FaceRecord, Sample, SampleFault, Schema, TaskName, TextTokenizer, load_all, square_rgb};
use unif2ace_model::encoders::{Clip, FaceNet};
use unif2ace_model::transformer::{Unif2ace, init_code_rows_from_bits};
use unif2ace_model::vq::Vq;

use crate::batches::ImageStore;
use crate::checkpoint::Checkpoints;
use crate::devices::{self, first_weights};
use crate::error::{Result, TrainError};
use crate::export;
use crate::features;
use crate::feed::{Feed, RankOf};
use crate::interrupt;
use crate::lora;
use crate::parallel;
use crate::recipe::{Recipe, UnifiedRecipe};
use crate::stages;
use crate::tasks::{self, data};
use crate::trainer::{self, Outcome, Session};

/// Pictures that evaluations during training look at.
const NUM_HELD_OUT: usize = 128;
const NUM_HELD_OUT_FEATURED: usize = 256;

/// Trains what the recipe names on the session's device and writes it into the recipe's model folder.
///
/// # Errors
/// Anything that [`TrainError`] names; the last checkpoint stays.
pub fn run(recipe: &Recipe, session: Session) -> Result<Outcome> {
    devices::check(recipe, &session.device)?;
    parallel::check(&*session.ranks, recipe)?;
    let leads = session.ranks.leads();
    let seed = recipe.run.seed;
    let device = session.device.clone().autodiff();
    if let Some(vq) = &recipe.vq {
        let side = vq.config.resolution;
        let mut objective = tasks::vq::VqObjective {
            recipe: vq.clone(),
            train: images(recipe, "train", recipe.data.limit, side)?,
            held_out: images(recipe, "val", NUM_HELD_OUT, side)?,
            batch_size: recipe.optimizer()?.batch_size,
            seed,
            device: device.clone(),
        };
        let model = first_weights(&device, seed, |device| Vq::new(&vq.config, device).map_err(data))?;
        let (model, outcome) = trainer::train(recipe, &mut objective, model, session)?;
        if outcome == Outcome::Finished {
            export::write_part(&recipe.run.export, "vq", &model, &vq.config)?;
        }
        return Ok(outcome);
    }
    if let Some(face) = &recipe.face {
        let config = face.network();
        let side = face.vision_config.image_size;
        let mut objective = tasks::face::FaceObjective {
            train: labelled(recipe, "train", recipe.data.limit, side)?,
            held_out: labelled(recipe, "val", 0, side)?,
            max_shift: face.max_shift,
            flip: face.flip,
            sides: tasks::face::sides(Schema::get()),
            batch_size: recipe.optimizer()?.batch_size,
            ranks: session.ranks.clone(),
            seed,
            device: device.clone(),
        };
        let model = first_weights(&device, seed, |device| FaceNet::new(&config, device).map_err(data))?;
        let (model, outcome) = trainer::train(recipe, &mut objective, model, session)?;
        if outcome == Outcome::Finished && leads {
            export::write_part(&recipe.run.export, "face", &model, &config)?;
        }
        return Ok(outcome);
    }
    if let Some(clip) = &recipe.clip {
        let side = clip.config.vision_config.image_size;
        let mut objective = tasks::clip::ClipObjective {
            train: captioned(recipe, "train", recipe.data.limit, side)?,
            held_out: captioned(recipe, "val", 500, side)?,
            tokenizer: TextTokenizer::from_file(&clip.tokenizer).map_err(data)?,
            paraphrase_fraction: clip.paraphrase_fraction,
            max_shift: clip.max_shift,
            batch_size: recipe.optimizer()?.batch_size,
            seed,
            device: device.clone(),
        };
        let mut model = first_weights(&device, seed, |device| Clip::new(&clip.config, device).map_err(data))?;
        if let Some(path) = &clip.init_vision_from {
            let source = unif2ace_weights::SafetensorsDir::open(path).map_err(data)?;
            let heads = unif2ace_weights::NameMap::identity()
                .ignore("norm.")
                .ignore("projection.")
                .ignore("head.")
                .ignore("reduce.")
                .replace("", "vision_model.");
            model.vision_model = unif2ace_weights::load_into(model.vision_model, &source, &heads).map_err(data)?;
        }
        let (model, outcome) = trainer::train(recipe, &mut objective, model, session)?;
        if outcome == Outcome::Finished {
            export::write_part(&recipe.run.export, "clip", &model, &clip.config)?;
        }
        return Ok(outcome);
    }
    if let Some(tokenizer) = &recipe.tokenizer {
        let records = read_sets(recipe, "train", recipe.data.limit, true, |sample| Ok(sample.record))?;
        let trained = tasks::tokenizer::train(tokenizer, &records, recipe.run.seed)?;
        unif2ace_io::create_dir_all(&recipe.run.export)?;
        trained.save(recipe.run.export.join("tokenizer.json")).map_err(data)?;
        return Ok(Outcome::Finished);
    }
    if recipe.unified.is_some() {
        return run_unified(recipe, session, &device);
    }
    Err(TrainError::recipe(&recipe.run.output, "names nothing that can be trained"))
}

/// Trains the transformer, stage by stage, and writes it or its adapters.
fn run_unified(recipe: &Recipe, mut session: Session, device: &Device) -> Result<Outcome> {
    // What a later stage gets wrong is told before the first one has run.
    stages::frozen(recipe, device)?;
    // Without --resume the first stage refuses what is there.
    let done = match session.resume && !recipe.stages.is_empty() {
        true => {
            let checkpoints = Checkpoints::new(recipe.run.output.join("checkpoints"), recipe.run.keep());
            checkpoints.newest_whole()?.map_or(0, |found| found.state.step)
        }
        false => 0,
    };
    let left = recipe.stages_from(done);
    left.iter().try_for_each(|(_, stage)| stage.data.open("train").map(drop))?;
    for (name, stage) in left {
        let leads = session.ranks.leads();
        if leads && !recipe.stages.is_empty() {
            tracing::info!("stage {name}: steps {} to {}", stage.first_step, stage.last_step());
        }
        let Some(unified) = &stage.unified else { continue };
        let (model, outcome) = train_unified(stage, unified, session.clone(), device)?;
        let (Some(model), Outcome::Finished) = (model, outcome) else { return Ok(outcome) };
        if stage.last_step() < recipe.last_step() {
            // The next stage starts from the checkpoint that ended this one, which all ranks must see.
            session.ranks.sum(vec![0.0])?;
            session.resume = true;
        } else if leads {
            match &recipe.lora {
                Some(config) => lora::write(recipe, config, &model)?,
                None => export::write_part(&recipe.run.export, "model", &model, &unified.config)?,
            }
        }
    }
    Ok(Outcome::Finished)
}

/// Trains one stage of the transformer; no model when the session ended before its first step.
fn train_unified(
    recipe: &Recipe,
    unified: &UnifiedRecipe,
    session: Session,
    device: &Device,
) -> Result<(Option<Unif2ace>, Outcome)> {
    let tokenizer = TextTokenizer::from_file(recipe.run.export.join("tokenizer.json")).map_err(data)?;
    let parts = features::read_parts(&recipe.run.export, &unified.config, &device.clone().inner())?;
    let vq = parts.vq.clone();
    let feed = Feed::open(recipe, unified, parts, RankOf::of(&*session.ranks), device.clone().inner())?;
    interrupt::install();
    if recipe.data.precompute && !feed.precompute(recipe, &session)? {
        return Ok((None, Outcome::InterruptedBeforeTraining));
    }
    let mut objective = tasks::unified::UnifiedObjective {
        recipe: unified.clone(),
        held_out: feed.held_out(recipe, NUM_HELD_OUT_FEATURED)?,
        train: feed,
        tokenizer,
        vq,
        ranks: session.ranks.clone(),
        seed: recipe.run.seed,
        device: device.clone(),
        read: Vec::new(),
    };
    let model = first_weights(device, recipe.run.seed, |device| {
        let model = Unif2ace::new(&unified.config, device).map_err(data)?;
        let model = match &unified.init_from {
            Some(folder) => lora::load_base(model, folder)?,
            None => init_code_rows_from_bits(model, recipe.run.seed),
        };
        match &recipe.lora {
            Some(config) => lora::attach(recipe, config, model),
            None => Ok(model),
        }
    })?;
    let model = model.with_recompute(unified.recompute);
    let (model, outcome) = trainer::train(recipe, &mut objective, model, session)?;
    Ok((Some(model), outcome))
}

fn images(recipe: &Recipe, split: &str, limit: usize, side: usize) -> Result<ImageStore> {
    Ok(captioned(recipe, split, limit, side)?.images)
}

fn captioned(recipe: &Recipe, split: &str, limit: usize, side: usize) -> Result<tasks::clip::CaptionedImages> {
    let pictures = read_sets(recipe, split, limit, false, |sample| {
        Ok((square_rgb(&sample.image_bytes, &sample.key, side)?, sample.key, sample.record))
    })?;
    let mut images = ImageStore { pixels: Vec::with_capacity(pictures.len() * side * side * 3), side, keys: Vec::new() };
    let mut records = Vec::with_capacity(pictures.len());
    for (pixels, key, record) in pictures {
        images.pixels.extend(pixels);
        images.keys.push(key);
        records.push(record);
    }
    Ok(tasks::clip::CaptionedImages { images, records })
}

fn labelled(recipe: &Recipe, split: &str, limit: usize, side: usize) -> Result<tasks::face::LabelledImages> {
    let tasks::clip::CaptionedImages { images, records } = captioned(recipe, split, limit, side)?;
    let targets = |record: &FaceRecord| -> Vec<i64> {
        Schema::get().targets(record).into_iter().map(|class| class.map_or(-1, i64::from)).collect()
    };
    Ok(tasks::face::LabelledImages { images, targets: records.iter().map(targets).collect() })
}

/// The good samples of a split of all sets (those of text alone only if `text`), at most `limit` of each (0: all), as `prepare` makes them.
/// Those that can't be read are named in the log.
fn read_sets<T: Send>(
    recipe: &Recipe,
    split: &str,
    limit: usize,
    text: bool,
    prepare: impl Fn(Sample) -> std::result::Result<T, SampleFault> + Sync,
) -> Result<Vec<T>> {
    let broken = Broken::new(recipe.data.max_broken());
    let mut all = Vec::new();
    for entry in recipe.data.open(split)?.iter().filter(|entry| text || entry.tasks != [TaskName::Text]) {
        all.extend(load_all(&entry.set, limit, &broken, &prepare).map_err(data)?);
    }
    Ok(all)
}
