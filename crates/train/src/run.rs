//! From a recipe to a trained part in a model folder.

use std::path::Path;

use burn::tensor::Device;
use unif2ace_data::{FaceRecord, Sample, Schema, TextTokenizer, decode_rgb, load_split};
use unif2ace_model::encoders::{Clip, FaceConfig, FaceHead, FaceNet};
use unif2ace_model::transformer::{Unif2ace, init_code_rows_from_bits};
use unif2ace_model::vq::Vq;
use unif2ace_pipeline::Parts;

use crate::batches::ImageStore;
use crate::error::{Result, TrainError};
use crate::export;
use crate::features::{self, Features};
use crate::interrupt;
use crate::recipe::Recipe;
use crate::tasks::{self, data};
use crate::trainer::{self, Outcome, Session};

/// Pictures that evaluations during training look at.
const NUM_HELD_OUT: usize = 128;

/// Trains what the recipe names and writes it into the recipe's model folder.
///
/// # Errors
/// Anything that [`TrainError`] names; the last checkpoint stays.
pub fn run(recipe: &Recipe, session: Session) -> Result<Outcome> {
    let device = Device::flex().autodiff();
    device.seed(recipe.run.seed);
    if let Some(vq) = &recipe.vq {
        let side = vq.config.resolution;
        let mut objective = tasks::vq::VqObjective {
            recipe: vq.clone(),
            train: images(recipe, "train", recipe.data.limit, side)?,
            held_out: images(recipe, "val", NUM_HELD_OUT, side)?,
            batch_size: recipe.optimizer()?.batch_size,
            seed: recipe.run.seed,
            device: device.clone(),
        };
        let model = Vq::new(&vq.config, &device).map_err(data)?;
        let (model, outcome) = trainer::train(recipe, &mut objective, model, session)?;
        if outcome == Outcome::Finished {
            export::write_part(&recipe.run.export, "vq", &model, &vq.config)?;
        }
        return Ok(outcome);
    }
    if let Some(face) = &recipe.face {
        let heads = Schema::get().heads();
        let config = FaceConfig {
            vision_config: face.vision_config.clone(),
            embedding_size: face.embedding_size,
            pooling: face.pooling,
            heads: heads.iter().map(|head| FaceHead { name: head.name.into(), num_classes: head.num_classes }).collect(),
        };
        let side = face.vision_config.image_size;
        let mut objective = tasks::face::FaceObjective {
            train: labelled(recipe, "train", recipe.data.limit, side)?,
            held_out: labelled(recipe, "val", 0, side)?,
            max_shift: face.max_shift,
            flip: face.flip,
            sides: tasks::face::sides(Schema::get()),
            batch_size: recipe.optimizer()?.batch_size,
            seed: recipe.run.seed,
            device: device.clone(),
        };
        let model = FaceNet::new(&config, &device).map_err(data)?;
        let (model, outcome) = trainer::train(recipe, &mut objective, model, session)?;
        if outcome == Outcome::Finished {
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
            seed: recipe.run.seed,
            device: device.clone(),
        };
        let mut model = Clip::new(&clip.config, &device).map_err(data)?;
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
        let records: Vec<FaceRecord> =
            samples(&recipe.data.path, "train", recipe.data.limit)?.into_iter().map(|sample| sample.record).collect();
        let trained = tasks::tokenizer::train(tokenizer, &records, recipe.run.seed)?;
        unif2ace_io::create_dir_all(&recipe.run.export)?;
        trained.save(recipe.run.export.join("tokenizer.json")).map_err(data)?;
        return Ok(Outcome::Finished);
    }
    if let Some(unified) = &recipe.unified {
        let tokenizer = TextTokenizer::from_file(recipe.run.export.join("tokenizer.json")).map_err(data)?;
        let parts = features::read_parts(&recipe.run.export, &unified.config, &device.clone().inner())?;
        interrupt::install();
        let Some(train) = featured(recipe, &parts, "train", recipe.data.limit, &device, session)? else {
            return Ok(Outcome::InterruptedBeforeTraining);
        };
        let Some(held_out) = featured(recipe, &parts, "val", 256, &device, session)? else {
            return Ok(Outcome::InterruptedBeforeTraining);
        };
        let vq = parts.vq;
        let mut objective = tasks::unified::UnifiedObjective {
            recipe: unified.clone(),
            train,
            held_out,
            tokenizer,
            vq,
            batch_size: recipe.optimizer()?.batch_size,
            seed: recipe.run.seed,
            device: device.clone(),
        };
        let model = init_code_rows_from_bits(Unif2ace::new(&unified.config, &device).map_err(data)?, recipe.run.seed);
        let (model, outcome) = trainer::train(recipe, &mut objective, model, session)?;
        if outcome == Outcome::Finished {
            export::write_part(&recipe.run.export, "model", &model, &unified.config)?;
        }
        return Ok(outcome);
    }
    Err(TrainError::recipe(&recipe.run.output, "names nothing that can be trained"))
}

fn images(recipe: &Recipe, split: &str, limit: usize, side: usize) -> Result<ImageStore> {
    let samples = samples(&recipe.data.path, split, limit)?;
    Ok(ImageStore { pixels: decode_rgb(&samples, side).map_err(data)?, side })
}

fn captioned(recipe: &Recipe, split: &str, limit: usize, side: usize) -> Result<tasks::clip::CaptionedImages> {
    let samples = samples(&recipe.data.path, split, limit)?;
    let images = ImageStore { pixels: decode_rgb(&samples, side).map_err(data)?, side };
    Ok(tasks::clip::CaptionedImages { images, records: samples.into_iter().map(|sample| sample.record).collect() })
}

/// Records of a split with the features of their pictures; `None` when interrupted.
fn featured(
    recipe: &Recipe,
    parts: &Parts,
    split: &str,
    limit: usize,
    device: &Device,
    session: Session,
) -> Result<Option<tasks::unified::FeaturedRecords>> {
    let tasks::clip::CaptionedImages { images, records } = captioned(recipe, split, limit, parts.vq.config().resolution)?;
    let bar = trainer::progress_bar(images.len() as u64, 0, session.quiet);
    bar.set_message(format!("features of {split}"));
    let features = Features::compute(parts, &images, &device.clone().inner(), &mut |done, _| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    Ok(features.map(|features| tasks::unified::FeaturedRecords { records, features }))
}

fn labelled(recipe: &Recipe, split: &str, limit: usize, side: usize) -> Result<tasks::face::LabelledImages> {
    let samples = samples(&recipe.data.path, split, limit)?;
    let targets = |sample: &Sample| -> Vec<i64> {
        Schema::get().targets(&sample.record).into_iter().map(|class| class.map_or(-1, i64::from)).collect()
    };
    Ok(tasks::face::LabelledImages {
        images: ImageStore { pixels: decode_rgb(&samples, side).map_err(data)?, side },
        targets: samples.iter().map(targets).collect(),
    })
}

/// Samples of a split; the reader names those that can't be read in the log.
pub(crate) fn samples(folder: &Path, split: &str, limit: usize) -> Result<Vec<Sample>> {
    Ok(load_split(folder, split, limit).map_err(data)?.samples)
}
