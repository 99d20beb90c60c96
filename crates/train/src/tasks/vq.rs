//! The VQ image tokenizer (as in Show-o): reconstruction, commitment and entropy losses, no adversarial term.

use std::path::Path;

use burn::tensor::{Device, Tensor};
use unif2ace_diffusion::rng::{Key, Stream};
use unif2ace_model::vq::Vq;

use crate::batches::{Augment, ImageStore, sample_indices};
use crate::error::Result;
use crate::metrics::sheet_path;
use crate::params::tensor_values;
use crate::recipe::VqRecipe;
use crate::trainer::{Objective, StepLoss};

const EVALUATION_BATCH: usize = 16;

/// Training of [`Vq`].
pub struct VqObjective {
    /// Loss weights.
    pub recipe: VqRecipe,
    /// Training pictures.
    pub train: ImageStore,
    /// Held-out pictures.
    pub held_out: ImageStore,
    /// Rows per step.
    pub batch_size: usize,
    /// Seed of the run.
    pub seed: u64,
    /// Device with gradients.
    pub device: Device,
}

impl Objective for VqObjective {
    type Model = Vq;

    fn loss(&mut self, model: &Vq, step: u64) -> Result<StepLoss> {
        let indices = sample_indices(self.seed, step, self.batch_size, self.train.len());
        let key = Key::new(self.seed, step);
        // A mirrored portrait is a portrait.
        let augment = |row| Augment { flip: key.uniform(Stream::Augment, row as u32, 0) < 0.5, shift: [0, 0] };
        let pixels_BHWC = self.train.batch(&indices, augment, &self.device);
        let mut z_BhwC = model.encode_z(pixels_BHWC.clone());
        if self.recipe.decoder_only {
            z_BhwC = z_BhwC.detach();
        }
        let quantized = model.quantize(z_BhwC);
        let difference = model.decode_codes(quantized.codes_BhwC) - pixels_BHWC;
        let squared = difference.clone().powi_scalar(2).mean();
        let mut total = squared.clone();
        if !self.recipe.decoder_only {
            total = total
                + quantized.commit_loss.clone().mul_scalar(self.recipe.commit_weight)
                + quantized.entropy_loss.clone().mul_scalar(self.recipe.entropy_weight);
        }
        if self.recipe.l1_weight > 0.0 {
            total = total + difference.abs().mean().mul_scalar(self.recipe.l1_weight);
        }
        let number = |tensor: Tensor<1>| f64::from(tensor_values(tensor)[0]);
        // Pixels span two units, so a squared error of 4 is 0 dB.
        let psnr = -10.0 * (number(squared) / 4.0).log10();
        let parts = vec![("psnr", psnr), ("commit", number(quantized.commit_loss)), ("entropy", number(quantized.entropy_loss))];
        Ok(StepLoss { total, parts, num_tokens: 0, num_images: self.batch_size, num_broken: 0, experts: Vec::new() })
    }

    fn sample_names(&self, step: u64) -> Vec<String> {
        self.train.names(&sample_indices(self.seed, step, self.batch_size, self.train.len()))
    }

    fn evaluate(&mut self, model: &Vq, step: u64, folder: &Path) -> Result<Vec<(String, f64)>> {
        let device = self.device.clone().inner();
        let mut used = vec![false; 1 << self.recipe.config.z_channels];
        let mut psnr = 0.0;
        let count = self.held_out.len();
        for start in (0..count).step_by(EVALUATION_BATCH) {
            let indices: Vec<usize> = (start..count.min(start + EVALUATION_BATCH)).collect();
            let pixels_BHWC = self.held_out.batch(&indices, |_| Augment::default(), &device);
            let quantized = model.quantize(model.encode_z(pixels_BHWC.clone()));
            for code in quantized.indices_BN.into_data().iter::<i64>() {
                used[code as usize] = true;
            }
            let decoded = model.decode_codes(quantized.codes_BhwC).clamp(-1.0, 1.0);
            if start == 0 {
                super::write_sheet(&pixels_BHWC, &decoded, &sheet_path(folder, step))?;
            }
            let squared = (decoded - pixels_BHWC).powi_scalar(2);
            let per_image: Tensor<2> = squared.flatten::<2>(1, 3).mean_dim(1);
            psnr += tensor_values(per_image).iter().map(|&v| -10.0 * (f64::from(v) / 4.0).log10()).sum::<f64>();
        }
        let code_use = used.iter().filter(|&&u| u).count() as f64 / used.len() as f64;
        Ok(vec![("held_out_psnr".into(), psnr / count as f64), ("held_out_code_use".into(), code_use)])
    }
}
