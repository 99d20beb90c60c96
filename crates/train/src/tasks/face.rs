//! The face-attribute network: cross-entropy over the schema's attributes, where they can be seen.

use std::path::Path;
use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor, TensorData};
use unif2ace_comm::Communicator;
use unif2ace_data::Schema;
use unif2ace_model::encoders::{FaceNet, clip_pixels};

use super::data;
use super::share::{Pass, Share, each_pass};
use crate::batches::{Augment, ImageStore, sample_indices};
use crate::error::Result;
use crate::params::tensor_values;
use crate::trainer::{Objective, StepLoss};

const EVALUATION_BATCH: usize = 32;

/// Pictures with the class of every attribute, negative where it can't be told.
pub struct LabelledImages {
    /// Pictures.
    pub images: ImageStore,
    /// One list a picture, in the order of the schema's heads.
    pub targets: Vec<Vec<i64>>,
}

/// Training of [`FaceNet`].
pub struct FaceObjective {
    /// Training pictures.
    pub train: LabelledImages,
    /// Held-out pictures.
    pub held_out: LabelledImages,
    /// Largest random shift in pixels.
    pub max_shift: usize,
    /// Mirror every second picture; left and right change places in its attributes.
    pub flip: bool,
    /// Classes of left and right for each head that has them.
    pub sides: Vec<Option<(i64, i64)>>,
    /// Rows per step, of all ranks together.
    pub batch_size: usize,
    /// Who shares the rows.
    pub ranks: Arc<dyn Communicator>,
    /// Seed of the run.
    pub seed: u64,
    /// Device with gradients.
    pub device: Device,
}

/// The class that a mirrored picture shows.
fn mirrored(sides: Option<(i64, i64)>, class: i64) -> i64 {
    match sides {
        Some((left, right)) if class == left => right,
        Some((left, right)) if class == right => left,
        _ => class,
    }
}

/// For each head of the schema: its classes of left and right.
pub fn sides(schema: &Schema) -> Vec<Option<(i64, i64)>> {
    (0..schema.heads().len())
        .map(|head| {
            let values = schema.head(head).map_or(&[][..], |attribute| attribute.values);
            let class = |name: &str| values.iter().position(|value| *value == name).map(|class| class as i64);
            class("left").zip(class("right"))
        })
        .collect()
}

impl FaceObjective {
    /// The loss of a pass; `None` when it only counts.
    fn pass(&self, model: &FaceNet, step: u64, pass: Pass<'_>) -> Result<Option<StepLoss>> {
        let indices = sample_indices(self.seed, step, self.batch_size, self.train.images.len());
        let share = Share::of(&*self.ranks, self.batch_size)?.of_pass(pass)?;
        let indices = &indices[share.first..][..share.num];
        let augment = |row| match self.flip {
            true => Augment::random_shift_and_flip(self.seed, step, share.first + row, self.max_shift),
            false => Augment::random_shift(self.seed, step, share.first + row, self.max_shift),
        };
        let heads = model.config().heads.len();
        let mut targets = Vec::with_capacity(indices.len() * heads);
        for (row, &index) in indices.iter().enumerate() {
            let flipped = augment(row).flip;
            for (head, &class) in self.train.targets[index].iter().enumerate() {
                targets.push(if flipped { mirrored(self.sides[head], class) } else { class });
            }
        }
        let num_known = targets.iter().filter(|&&class| class >= 0).count();
        let targets_BA =
            Tensor::<2, Int>::from_data(TensorData::new(targets, [indices.len(), heads]), &self.device.clone().inner());
        let known = num_known as f64 / share.over_all(&[num_known])?[0].max(1.0);
        if share.is_counting() {
            return Ok(None);
        }
        let pixels_BHWC = self.train.images.batch(indices, augment, &self.device);
        let output = model.forward(clip_pixels(pixels_BHWC)).map_err(data)?;
        let total = model.loss(&output, targets_BA).map_err(data)?.loss.mul_scalar(known);
        let loss = f64::from(tensor_values(total.clone())[0]);
        let parts = vec![("cross_entropy", loss)];
        Ok(Some(StepLoss { total, parts, num_tokens: 0, num_images: share.num, num_broken: 0, experts: Vec::new() }))
    }
}

impl Objective for FaceObjective {
    type Model = FaceNet;

    fn loss(&mut self, model: &FaceNet, step: u64) -> Result<StepLoss> {
        self.pass(model, step, Pass::WHOLE)?.ok_or_else(|| data("the pass only counts"))
    }

    fn passes(
        &mut self,
        model: &FaceNet,
        step: u64,
        num_passes: usize,
        take: &mut dyn FnMut(StepLoss) -> Result<()>,
    ) -> Result<()> {
        if num_passes == 1 {
            return take(self.loss(model, step)?);
        }
        each_pass(&*self.ranks, num_passes, |pass| self.pass(model, step, pass)?.map_or(Ok(()), &mut *take))
    }

    fn sample_names(&self, step: u64) -> Vec<String> {
        self.train.images.names(&sample_indices(self.seed, step, self.batch_size, self.train.images.len()))
    }

    fn evaluate(&mut self, model: &FaceNet, _step: u64, _folder: &Path) -> Result<Vec<(String, f64)>> {
        let device = self.device.clone().inner();
        let heads = &model.config().heads;
        let mut counts = vec![(0, 0); heads.len()];
        let num = self.held_out.images.len();
        for start in (0..num).step_by(EVALUATION_BATCH) {
            let indices: Vec<usize> = (start..num.min(start + EVALUATION_BATCH)).collect();
            let pixels_BHWC = self.held_out.images.batch(&indices, |_| Augment::default(), &device);
            let output = model.forward(clip_pixels(pixels_BHWC)).map_err(data)?;
            let targets = &self.held_out.targets[start..start + indices.len()];
            for (sum, (hits, known)) in counts.iter_mut().zip(model.hits(&output, targets).map_err(data)?) {
                sum.0 += hits;
                sum.1 += known;
            }
        }
        let rate = |hits: usize, known: usize| hits as f64 / known.max(1) as f64;
        let (hits, known) = counts.iter().fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1));
        let mut measures = vec![("held_out_accuracy".to_owned(), rate(hits, known))];
        measures.extend(
            heads.iter().zip(&counts).map(|(head, &(hits, known))| (format!("accuracy_{}", head.name), rate(hits, known))),
        );
        Ok(measures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirrored_face_looks_the_other_way() {
        let schema = Schema::get();
        let sides = sides(schema);
        assert_eq!(sides.len(), schema.heads().len());
        for (name, sided) in [("gaze", true), ("head_turn", true), ("head_tilt", true), ("hair_color", false)] {
            let head = schema.heads().iter().position(|head| head.name == name).unwrap();
            assert_eq!(sides[head].is_some(), sided, "{name}");
            if let Some((left, right)) = sides[head] {
                assert_eq!([left, right, -1].map(|class| mirrored(sides[head], class)), [right, left, -1], "{name}");
            }
        }
    }
}
