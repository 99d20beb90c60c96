//! The D3Diff loss (arXiv 2503.08120): masked generation plus discrete score entropy for the absorbing graph.
//!
//! Shapes: R masked places of a batch ("rows"), K codes, B images.
//!
//! With a normalised softmax `Σ_y s_y` does not depend on the network, so the score term of one place is
//! `σ̄' r (-ln p(x0)) + constant(t)`: a time-weighted cross-entropy. The losses are therefore computed from one number a row, the
//! cross-entropy of its target, whose weight comes from float64 logarithms; [`score_entropy_dense`] is the definition over the whole
//! codebook, against which tests hold the short form.

use burn::tensor::activation::log_softmax;
use burn::tensor::{FloatDType, Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::error::{Result, check_length, range};
use crate::schedule::{NoiseLevel, NoiseSchedule};

/// How the network's `p(x0 | xt)` becomes a score.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScoreForm {
    /// The paper's `s = p / m(t)`. Its loss has the gradient of [`ScoreForm::Exact`] and a larger constant, which grows without
    /// bound as `t` nears 1.
    #[default]
    Paper,
    /// RADD's `s = p (1 - m) / m`, the true ratio when `p` is the true posterior; no constant remains.
    Exact,
}

/// Which terms of the loss are used (the rows of the paper's ablation).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// `L_mask` alone (`alpha` has no effect).
    OnlyMask,
    /// `L_score` alone (`alpha` has no effect).
    OnlyScore,
    /// `L_mask + alpha L_score`.
    #[default]
    #[serde(rename = "d3diff")]
    D3Diff,
}

/// How the score term of an image's places is gathered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScoreUnit {
    /// The sum over masked places: nats an image, an upper bound of the negative log-likelihood in expectation.
    #[default]
    Image,
    /// That sum over N: nats a token, comparable between resolutions and with `L_mask`.
    Token,
}

/// Settings of the loss.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct D3DiffConfig {
    /// Which terms count.
    #[serde(default)]
    pub objective: Objective,
    /// The weight of the score term; the paper's default is 0.01.
    #[serde(default = "default_alpha")]
    pub alpha: f64,
    /// How a score is made of the network's distribution.
    #[serde(default)]
    pub form: ScoreForm,
    /// The noise schedule that the times belong to.
    #[serde(default)]
    pub schedule: NoiseSchedule,
    /// Nats an image or nats a token.
    #[serde(default)]
    pub unit: ScoreUnit,
}

fn default_alpha() -> f64 {
    0.01
}

impl Default for D3DiffConfig {
    fn default() -> Self {
        Self {
            objective: Objective::D3Diff,
            alpha: default_alpha(),
            form: ScoreForm::Paper,
            schedule: NoiseSchedule::Cosine,
            unit: ScoreUnit::Image,
        }
    }
}

/// The loss and its parts; each is a tensor of one number.
#[derive(Debug, Clone)]
pub struct D3DiffLoss {
    /// What is to be minimised: `L_mask + α L_score`, of `L_score` the part that depends on the network. (The paper form's constant has no
    /// gradient, is noise of the times alone, and reaches 1e7 near t = 1, where an f32 sum would lose the rest.)
    pub total: Tensor<1>,
    /// `L_mask`: mean cross-entropy of an image's masked places, mean over the images.
    pub mask: Tensor<1>,
    /// `L_score` as defined, with its constant, mean over the images.
    pub score: Tensor<1>,
    /// `L_score` without the constant: the time-weighted cross-entropy. An unbiased estimate of the likelihood bound
    /// for both forms, and the part worth plotting: the paper form's constant is noise of the times alone.
    pub score_cross_entropy: Tensor<1>,
}

/// The D3Diff loss from the cross-entropy of each masked place.
///
/// - `cross_entropy_R`: `-ln p(x0 | xt)` of the target in nats, carrying the gradient; any float type, computed in float32 here;
/// - `image_of_row`: R image numbers below B;
/// - `times`: B diffusion times, one an image;
/// - `num_tokens`: N, only used by [`ScoreUnit::Token`].
///
/// Images without a masked place add nothing and still count in the mean. With no row at all every part is 0.
///
/// # Errors
/// If the lengths disagree, an image number is not below B, or `alpha` is negative or not finite.
#[allow(non_snake_case)]
pub fn d3diff_loss(
    cross_entropy_R: Tensor<1>,
    image_of_row: &[usize],
    times: &[f64],
    num_tokens: usize,
    config: &D3DiffConfig,
) -> Result<D3DiffLoss> {
    const OPERATION: &str = "D3Diff loss";
    let [num_rows] = cross_entropy_R.dims();
    check_length(OPERATION, "rows", image_of_row.len(), num_rows, "one cross-entropy for each masked place")?;
    if let Some(&image) = image_of_row.iter().find(|&&image| image >= times.len()) {
        let expected = format!("below the number of times, {}", times.len());
        return Err(range(OPERATION, "an image number", expected, image, "one time for each image of the batch"));
    }
    if !(config.alpha.is_finite() && config.alpha >= 0.0) {
        return Err(range(OPERATION, "alpha", "finite and not negative", config.alpha, "the paper uses 0.01"));
    }

    let device = cross_entropy_R.device();
    let cross_entropy_R = cross_entropy_R.cast(FloatDType::F32);
    if num_rows == 0 {
        let zero = || Tensor::<1>::from_data(TensorData::from([0.0f32]), &device);
        return Ok(D3DiffLoss { total: zero(), mask: zero(), score: zero(), score_cross_entropy: zero() });
    }

    let weights = RowWeights::new(image_of_row, times, num_tokens, config);
    let weighted = |weights: Vec<f32>| {
        let weights_R = Tensor::<1>::from_data(TensorData::new(weights, [num_rows]), &device);
        (cross_entropy_R.clone() * weights_R).sum()
    };
    let mask = weighted(weights.mask);
    let score_cross_entropy = weighted(weights.score);
    let score = score_cross_entropy.clone().add_scalar(weights.score_constant);
    let total = match config.objective {
        Objective::OnlyMask => mask.clone(),
        Objective::OnlyScore => score_cross_entropy.clone(),
        Objective::D3Diff => mask.clone() + score_cross_entropy.clone().mul_scalar(config.alpha),
    };
    Ok(D3DiffLoss { total, mask, score, score_cross_entropy })
}

/// [`d3diff_loss`] from logits over the codebook, for callers without a fused cross-entropy.
///
/// # Errors
/// As [`d3diff_loss`]; also if `targets_R` has another length. Targets must be codes of `0..K`.
#[allow(non_snake_case)]
pub fn d3diff_loss_from_logits(
    logits_RK: Tensor<2>,
    targets_R: Tensor<1, Int>,
    image_of_row: &[usize],
    times: &[f64],
    num_tokens: usize,
    config: &D3DiffConfig,
) -> Result<D3DiffLoss> {
    let [num_rows, _] = logits_RK.dims();
    let [num_targets] = targets_R.dims();
    check_length("D3Diff loss", "targets", num_rows, num_targets, "one target for each row of logits")?;
    let cross_entropy_R = if num_rows == 0 {
        Tensor::<1>::zeros([0], &logits_RK.device())
    } else {
        let log_p_RK = log_softmax(logits_RK.cast(FloatDType::F32), 1);
        log_p_RK.gather(1, targets_R.reshape([num_rows, 1])).reshape([num_rows]).neg()
    };
    d3diff_loss(cross_entropy_R, image_of_row, times, num_tokens, config)
}

/// The weight of each row's cross-entropy in the two terms, and what the score term adds to it.
struct RowWeights {
    mask: Vec<f32>,
    score: Vec<f32>,
    score_constant: f64,
}

impl RowWeights {
    fn new(image_of_row: &[usize], times: &[f64], num_tokens: usize, config: &D3DiffConfig) -> Self {
        let mut rows_of_image = vec![0usize; times.len()];
        image_of_row.iter().for_each(|&image| rows_of_image[image] += 1);
        let per_image = 1.0 / times.len() as f64;
        let unit = match config.unit {
            ScoreUnit::Image => per_image,
            ScoreUnit::Token => per_image / num_tokens.max(1) as f64,
        };
        let levels: Vec<NoiseLevel> = times.iter().map(|&t| config.schedule.at(t)).collect();
        Self {
            mask: image_of_row.iter().map(|&image| (per_image / rows_of_image[image] as f64) as f32).collect(),
            score: image_of_row.iter().map(|&image| (unit * levels[image].score_weight()) as f32).collect(),
            score_constant: image_of_row.iter().map(|&image| unit * score_constant(&levels[image], config.form)).sum(),
        }
    }
}

/// The score entropy of one masked place from the definition: `σ̄' (Σ_y s_y - r ln s_target + r (ln r - 1))` with `s` made of the K
/// normalised log-probabilities `log_p`.
pub fn score_entropy_dense(log_p: &[f64], target: usize, level: &NoiseLevel, form: ScoreForm) -> f64 {
    let log_factor = match form {
        ScoreForm::Paper => -level.log_masked,
        ScoreForm::Exact => level.log_ratio(),
    };
    let ratio = level.log_ratio().exp();
    let sum: f64 = log_p.iter().map(|lp| (lp + log_factor).exp()).sum();
    level.sigma_bar_rate() * (sum - ratio * (log_p[target] + log_factor) + ratio * (level.log_ratio() - 1.0))
}

/// The same from the target's log-probability alone, using that `p` sums to one.
pub fn score_entropy(log_p_target: f64, level: &NoiseLevel, form: ScoreForm) -> f64 {
    -level.score_weight() * log_p_target + score_constant(level, form)
}

/// What the score entropy of one place adds to its weighted cross-entropy: 0 in the exact form, `σ̄' (1 + r ln(1 - m))` in the paper's.
pub fn score_constant(level: &NoiseLevel, form: ScoreForm) -> f64 {
    match form {
        ScoreForm::Exact => 0.0,
        ScoreForm::Paper => level.sigma_bar_rate() * (1.0 + level.log_ratio().exp() * level.log_kept),
    }
}
