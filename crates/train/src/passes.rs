//! The gradients of a step, in one pass or in several whose gradients add up.

use burn::tensor::Tensor;

use crate::error::{Result, TrainError};
use crate::nonfinite::NotFinite;
use crate::optim::StepGradients;
use crate::parallel::Parallel;
use crate::params::tensor_values;
use crate::trainer::{Objective, StepLoss};

/// A step's loss with its gradients, or what of them is not finite.
pub(crate) type Found = std::result::Result<(f64, StepGradients), NotFinite>;

/// The numbers of a step's loss over all passes and ranks, and its loss with the gradients, or what of them is not finite; all ranks find
/// the same.
pub(crate) fn gradients<O: Objective>(
    parallel: &mut Parallel,
    objective: &mut O,
    model: &O::Model,
    step: u64,
    num_passes: usize,
) -> Result<(StepLoss, Found)> {
    let mut all: Option<StepLoss> = None;
    let (mut value, mut num_left) = (0.0f32, num_passes);
    objective.passes(model, step, num_passes, &mut |pass| {
        num_left -= 1;
        value += tensor_values(pass.total.clone())[0];
        // The gradients of the last pass are computed below; those of a loss that is not finite are not looked at.
        if num_left > 0 && value.is_finite() {
            parallel.accumulate(model, pass.total.clone());
        }
        match &mut all {
            Some(all) => add(all, pass),
            all => *all = Some(pass),
        }
        Ok(())
    })?;
    let Some(mut all) = all.filter(|_| num_left == 0) else {
        return Err(TrainError::Data(format!("step {step}: {} of {num_passes} passes had a loss", num_passes - num_left)));
    };
    let total: Tensor<1> = all.total.clone();
    let value = f64::from(parallel.sum_shares(value, &mut all)?);
    if !value.is_finite() {
        parallel.forget();
        return Ok((all, Err(NotFinite { what: "loss", value })));
    }
    let gradients = parallel.gradients(model, total)?;
    let found = match gradients.norm().is_finite() {
        true => Ok((value, gradients)),
        false => Err(NotFinite { what: "gradient norm", value: gradients.norm() }),
    };
    Ok((all, found))
}

/// Adds the shares of a pass to those of the passes before; the graph that stays is the last one's.
fn add(all: &mut StepLoss, pass: StepLoss) {
    all.total = pass.total;
    all.num_tokens += pass.num_tokens;
    all.num_images += pass.num_images;
    all.num_broken += pass.num_broken;
    for (name, counts) in pass.experts {
        match all.experts.iter_mut().find(|group| group.0 == name) {
            Some(group) => group.1.add(&counts),
            None => all.experts.push((name, counts)),
        }
    }
    for (name, value) in pass.parts {
        match all.parts.iter_mut().find(|part| part.0 == name) {
            Some(part) => part.1 += value,
            None => all.parts.push((name, value)),
        }
    }
}
