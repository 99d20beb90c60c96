//! The face attribute network: the picture tower, an embedding, and one classifier for each attribute. B batch, D width,
//! F embedding, A attributes, K classes of all attributes.
#![allow(non_snake_case)]

use burn::module::Module;
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Int, Tensor};
use unif2ace_ops::cross_entropy;

use super::{EncoderError, FaceConfig, Pooling, VisionTransformer};
use crate::nn::{LayerNorm, Linear};

/// Height of a sure attribute in [`FaceNet::attributes`]: about 40 of the 256 values are set, so the vector is as long as one of 256
/// values around 1.6.
const ATTRIBUTE_SCALE: f64 = 4.0;

/// Channels that a patch keeps under [`Pooling::Grid`].
const GRID_CHANNELS: usize = 32;

/// The network. What its classifiers say is the face expert's feature ([`FaceNet::attributes`]) and labels pictures for data building
/// and evaluation.
#[derive(Module, Debug)]
pub struct FaceNet {
    /// The picture tower.
    pub vision_model: VisionTransformer,
    /// Narrows each patch before they are put side by side ([`Pooling::Grid`]).
    pub reduce: Option<Linear>,
    /// Over the pooled state.
    pub norm: LayerNorm,
    /// To the embedding.
    pub projection: Linear,
    /// All classifiers in one, `[K, F]`; the attributes' rows follow each other in the order of the configuration.
    pub head: Linear,
    #[module(skip)]
    config: FaceConfig,
}

/// What the network returns.
pub struct FaceOutput {
    /// `[B, F]`, not normalised.
    pub embedding_BF: Tensor<2>,
    /// One `[B, classes]` for each attribute.
    pub logits: Vec<Tensor<2>>,
}

/// Loss and hits of a batch.
pub struct FaceLoss {
    /// Mean cross-entropy over all known (picture, attribute) pairs, in nats; 0 where none is known.
    pub loss: Tensor<1>,
    /// For each attribute: mean cross-entropy of the pictures where it is known. `[A]`, 0 where none is.
    pub per_attribute_A: Tensor<1>,
}

impl FaceNet {
    /// A network with random weights.
    ///
    /// # Errors
    /// When the configuration describes no network.
    pub fn new(config: &FaceConfig, device: &Device) -> Result<Self, EncoderError> {
        config.check()?;
        let (width, embedding) = (config.vision_config.hidden_size, config.embedding_size);
        let std = |num_in: usize| 1.0 / (num_in as f64).sqrt();
        let grid = config.pooling == Pooling::Grid;
        let pooled = if grid { config.vision_config.num_patches() * GRID_CHANNELS } else { width };
        Ok(Self {
            vision_model: VisionTransformer::new(&config.vision_config, device)?,
            reduce: grid.then(|| Linear::with_std(width, GRID_CHANNELS, true, std(width), device)),
            norm: LayerNorm::new(pooled, config.vision_config.layer_norm_eps, device),
            projection: Linear::with_std(pooled, embedding, true, std(pooled), device),
            head: Linear::with_std(embedding, config.num_classes(), true, 0.02, device),
            config: config.clone(),
        })
    }

    /// The configuration it was built with.
    pub fn config(&self) -> &FaceConfig {
        &self.config
    }

    /// The embedding `[B, F]` of normalised pictures `[B, H, W, 3]`.
    ///
    /// # Errors
    /// When the pictures have another shape than the configuration's.
    fn embed(&self, pixels_BHWC: Tensor<4>) -> Result<Tensor<2>, EncoderError> {
        let output = self.vision_model.forward(pixels_BHWC)?;
        let [batch, length, width] = output.last_BLD.dims();
        let patches = || output.last_BLD.clone().narrow(1, 1, length - 1);
        let pooled_BD = match (self.config.pooling, &self.reduce) {
            (Pooling::Class, _) => output.pooled_BD,
            (Pooling::Grid, Some(reduce)) => {
                let states_BPD = self.vision_model.post_layernorm.forward(patches());
                reduce.forward(states_BPD).reshape([batch, (length - 1) * GRID_CHANNELS])
            }
            (Pooling::Mean | Pooling::Grid, _) => {
                self.vision_model.post_layernorm.forward(patches().mean_dim(1).reshape([batch, width]))
            }
        };
        Ok(self.projection.forward(self.norm.forward(pooled_BD)))
    }

    /// The face expert's feature: the probability of every class of every attribute, times 4, `[B, K]`. Each attribute
    /// has places of its own, so the transformer need not learn the classifiers again from the embedding.
    ///
    /// # Errors
    /// When the pictures have another shape than the configuration's.
    pub fn attributes(&self, pixels_BHWC: Tensor<4>) -> Result<Tensor<2>, EncoderError> {
        let probabilities = self.forward(pixels_BHWC)?.logits.into_iter().map(|logits| softmax(logits, 1)).collect();
        Ok(Tensor::cat(probabilities, 1).mul_scalar(ATTRIBUTE_SCALE))
    }

    /// Embedding and logits of normalised pictures `[B, H, W, 3]`.
    ///
    /// # Errors
    /// When the pictures have another shape than the configuration's.
    pub fn forward(&self, pixels_BHWC: Tensor<4>) -> Result<FaceOutput, EncoderError> {
        let embedding_BF = self.embed(pixels_BHWC)?;
        let logits_BK = self.head.forward(embedding_BF.clone());
        let batch = logits_BK.dims()[0];
        let mut start = 0;
        let logits = self
            .config
            .heads
            .iter()
            .map(|head| {
                let range = start..start + head.num_classes;
                start = range.end;
                logits_BK.clone().slice([0..batch, range])
            })
            .collect();
        Ok(FaceOutput { embedding_BF, logits })
    }

    /// The training loss. `targets_BA` holds the class of each attribute, negative where it is unknown; unknown ones neither count
    /// nor get a gradient.
    ///
    /// # Errors
    /// When the targets are not `[B, A]` for this output.
    pub fn loss(&self, output: &FaceOutput, targets_BA: Tensor<2, Int>) -> Result<FaceLoss, EncoderError> {
        let num_heads = self.config.heads.len();
        let batch = output.embedding_BF.dims()[0];
        self.check_targets(batch, &targets_BA.dims())?;
        let rows: Vec<Tensor<2>> = output
            .logits
            .iter()
            .enumerate()
            .map(|(index, logits)| {
                let targets_B = targets_BA.clone().slice([0..batch, index..index + 1]).reshape([batch]);
                cross_entropy(logits.clone(), targets_B).reshape([batch, 1])
            })
            .collect();
        let losses_BA = Tensor::cat(rows, 1);
        let known_BA = targets_BA.greater_equal_scalar(0).float();
        let per_attribute_A = losses_BA.clone().sum_dim(0) / known_BA.clone().sum_dim(0).clamp_min(1.0);
        Ok(FaceLoss {
            loss: losses_BA.sum() / known_BA.sum().clamp_min(1.0),
            per_attribute_A: per_attribute_A.reshape([num_heads]),
        })
    }

    /// The most likely class of each attribute: for each picture a list in the order of the configuration.
    ///
    /// # Errors
    /// When the device fails.
    pub fn predict(&self, output: &FaceOutput) -> Result<Vec<Vec<u32>>, EncoderError> {
        let batch = output.embedding_BF.dims()[0];
        let mut classes = vec![Vec::with_capacity(self.config.heads.len()); batch];
        for logits in &output.logits {
            let best: Vec<u32> =
                logits.clone().argmax(1).try_into_vec_as().map_err(|error| EncoderError::Device(error.to_string()))?;
            for (row, class) in classes.iter_mut().zip(best) {
                row.push(class);
            }
        }
        Ok(classes)
    }

    /// Hits and known targets of each attribute; `targets` has one list for each picture, negative where unknown.
    ///
    /// # Errors
    /// When the targets do not fit this output, or the device fails.
    pub fn hits(&self, output: &FaceOutput, targets: &[Vec<i64>]) -> Result<Vec<(usize, usize)>, EncoderError> {
        let num_heads = self.config.heads.len();
        let width = targets.iter().map(Vec::len).find(|len| *len != num_heads);
        self.check_targets(output.embedding_BF.dims()[0], &[targets.len(), width.unwrap_or(num_heads)])?;
        let mut counts = vec![(0, 0); num_heads];
        for (predicted, wanted) in self.predict(output)?.iter().zip(targets) {
            for ((hit, known), (class, target)) in counts.iter_mut().zip(predicted.iter().zip(wanted)) {
                if *target >= 0 {
                    *known += 1;
                    *hit += usize::from(i64::from(*class) == *target);
                }
            }
        }
        Ok(counts)
    }

    fn check_targets(&self, batch: usize, found: &[usize; 2]) -> Result<(), EncoderError> {
        let expected = [batch, self.config.heads.len()];
        if *found == expected {
            return Ok(());
        }
        Err(EncoderError::Shape {
            operation: "face attribute targets",
            expected: format!("{expected:?} (pictures, attributes)"),
            found: found.to_vec(),
            hint: "give one class, or -1, for every attribute of the configuration",
        })
    }
}
