//! From a recipe to a trained part in a model folder.

use std::path::Path;

use burn::tensor::Device;
use unif2ace_data::{Sample, Schema, decode_rgb, load_split};
use unif2ace_model::encoders::{FaceConfig, FaceHead, FaceNet};
use unif2ace_model::vq::Vq;

use crate::batches::ImageStore;
use crate::error::{Result, TrainError};
use crate::export;
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
    Err(TrainError::Recipe { path: recipe.run.output.clone(), reason: "names nothing that can be trained".into() })
}

fn images(recipe: &Recipe, split: &str, limit: usize, side: usize) -> Result<ImageStore> {
    let samples = samples(&recipe.data.path, split, limit)?;
    Ok(ImageStore { pixels: decode_rgb(&samples, side).map_err(data)?, side })
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

/// Samples of a split; those that can't be read are named in the log.
pub(crate) fn samples(folder: &Path, split: &str, limit: usize) -> Result<Vec<Sample>> {
    let report = load_split(folder, split, limit).map_err(data)?;
    for (key, reason) in &report.skipped {
        tracing::warn!("sample {key} skipped: {reason}");
    }
    Ok(report.samples)
}
