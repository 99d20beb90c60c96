//! The D3Diff loss against its definition, its gradient, and the likelihood it bounds.
#![allow(clippy::unwrap_used, non_snake_case)]

mod tiny;

use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData};
use tiny::{CODES, PLACES, STATES, Tiny, digits};
use unif2ace_diffusion::MASKED;
use unif2ace_diffusion::bound::{bound_estimate, bound_points};
use unif2ace_diffusion::d3diff::{
    D3DiffConfig, D3DiffLoss, Objective, ScoreForm, ScoreUnit, d3diff_loss, d3diff_loss_from_logits, score_entropy,
    score_entropy_dense,
};
use unif2ace_diffusion::rng::{Key, Stream};
use unif2ace_diffusion::schedule::NoiseSchedule;

const SCHEDULES: [&str; 6] = ["cosine", "log-linear", "linear", "pow2", "pow0.5", "sigmoid"];
const FORMS: [ScoreForm; 2] = [ScoreForm::Paper, ScoreForm::Exact];

fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum = logits.iter().map(|l| (l - largest).exp()).sum::<f64>().ln() + largest;
    logits.iter().map(|l| l - log_sum).collect()
}

/// Rows of random logits, targets, their images and the images' times.
struct Case {
    logits: Vec<Vec<f64>>,
    targets: Vec<usize>,
    images: Vec<usize>,
    times: Vec<f64>,
}

impl Case {
    fn new(num_rows: usize, num_codes: usize, seed: u64) -> Self {
        let key = Key::new(seed, 0);
        Self {
            logits: (0..num_rows)
                // Values that f32 holds exactly, so that both precisions see the same numbers.
                .map(|r| (0..num_codes).map(|k| f64::from(key.gumbel(Stream::Init, r as u32, k as u32) * 2.0)).collect())
                .collect(),
            targets: (0..num_rows).map(|r| key.below(Stream::Code, r as u32, 0, num_codes)).collect(),
            // Image 2 has no masked place.
            images: (0..num_rows).map(|r| [0, 1, 3][r % 3]).collect(),
            times: vec![0.1, 0.5, 0.7, 0.93],
        }
    }

    fn loss(&self, config: &D3DiffConfig, device: &Device) -> (Tensor<2>, D3DiffLoss) {
        let (rows, codes) = (self.logits.len(), self.logits[0].len());
        let flat: Vec<f32> = self.logits.iter().flatten().map(|&l| l as f32).collect();
        let logits_RK = Tensor::<2>::from_data(TensorData::new(flat, [rows, codes]), device).require_grad();
        let targets: Vec<i32> = self.targets.iter().map(|&t| t as i32).collect();
        let targets_R = Tensor::<1, Int>::from_data(TensorData::new(targets, [rows]), device);
        let loss = d3diff_loss_from_logits(logits_RK.clone(), targets_R, &self.images, &self.times, 16, config).unwrap();
        (logits_RK, loss)
    }

    /// (mask, score) from the definitions, in f64 over the whole codebook.
    fn dense(&self, config: &D3DiffConfig) -> (f64, f64) {
        let batch = self.times.len() as f64;
        let (mut mask, mut score) = (0.0, 0.0);
        for (row, logits) in self.logits.iter().enumerate() {
            let image = self.images[row];
            let log_p = log_softmax(logits);
            let rows_of_image = self.images.iter().filter(|&&other| other == image).count() as f64;
            mask -= log_p[self.targets[row]] / rows_of_image / batch;
            let level = config.schedule.at(self.times[image]);
            score += score_entropy_dense(&log_p, self.targets[row], &level, config.form) / batch;
        }
        (mask, if config.unit == ScoreUnit::Token { score / 16.0 } else { score })
    }
}

fn value(tensor: &Tensor<1>) -> f64 {
    f64::from(tensor.clone().into_data().try_to_vec::<f32>().unwrap()[0])
}

fn device() -> Device {
    Device::flex().autodiff()
}

#[test]
fn the_short_form_is_the_definition() {
    for name in SCHEDULES {
        let schedule: NoiseSchedule = name.parse().unwrap();
        for form in FORMS {
            for t in [0.0, 0.01, 0.3, 0.5, 0.9, 0.999] {
                let level = schedule.at(t);
                for seed in 0..10 {
                    let case = Case::new(1, 100, seed);
                    let log_p = log_softmax(&case.logits[0]);
                    let dense = score_entropy_dense(&log_p, case.targets[0], &level, form);
                    let short = score_entropy(log_p[case.targets[0]], &level, form);
                    assert!((dense - short).abs() <= 1e-9 * dense.abs().max(1.0), "{name} {form:?} {t}: {dense} {short}");
                    assert!(dense > 0.0, "score entropy is a divergence plus a positive constant here");
                }
            }
        }
    }
}

#[test]
fn score_entropy_is_smallest_at_the_true_posterior() {
    // Two targets with posterior 0.3 / 0.7: both forms have their minimum there.
    let level = NoiseSchedule::Cosine.at(0.4);
    for form in FORMS {
        let expected_loss = |p: f64| {
            let log_p = [p.ln(), (1.0 - p).ln()];
            0.3 * score_entropy_dense(&log_p, 0, &level, form) + 0.7 * score_entropy_dense(&log_p, 1, &level, form)
        };
        assert!(expected_loss(0.3) < expected_loss(0.301) && expected_loss(0.3) < expected_loss(0.299));
    }
}

#[test]
fn losses_equal_the_dense_computation_in_every_mode() {
    for objective in [Objective::OnlyMask, Objective::OnlyScore, Objective::D3Diff] {
        for form in FORMS {
            for unit in [ScoreUnit::Image, ScoreUnit::Token] {
                for name in SCHEDULES {
                    let config = D3DiffConfig { objective, alpha: 0.1, form, schedule: name.parse().unwrap(), unit };
                    let case = Case::new(11, 40, 1);
                    let (_, loss) = case.loss(&config, &device());
                    let (mask, score) = case.dense(&config);
                    let (_, bound) = case.dense(&D3DiffConfig { form: ScoreForm::Exact, ..config });
                    let total = match objective {
                        Objective::OnlyMask => mask,
                        Objective::OnlyScore => bound,
                        Objective::D3Diff => mask + 0.1 * bound,
                    };
                    for (actual, expected) in [(&loss.mask, mask), (&loss.score, score), (&loss.total, total)] {
                        assert!((value(actual) / expected - 1.0).abs() < 3e-6, "{config:?}: {} {expected}", value(actual));
                    }
                    assert!((value(&loss.score_cross_entropy) / bound - 1.0).abs() < 3e-6);
                }
            }
        }
    }
}

#[test]
fn the_gradient_is_that_of_a_time_weighted_cross_entropy() {
    let modes =
        [Objective::OnlyMask, Objective::OnlyScore, Objective::D3Diff].map(|objective| SCHEDULES.map(|name| (objective, name)));
    for (objective, name) in modes.into_iter().flatten() {
        for form in FORMS {
            let config =
                D3DiffConfig { objective, alpha: 0.05, form, schedule: name.parse().unwrap(), ..D3DiffConfig::default() };
            let mut case = Case::new(8, 12, 5);
            let (logits_RK, loss) = case.loss(&config, &device());
            let gradients = loss.total.backward();
            let gradient = logits_RK.grad(&gradients).unwrap().into_data().try_to_vec::<f32>().unwrap();
            let objective_of = |case: &Case| {
                let (mask, score) = case.dense(&config);
                match objective {
                    Objective::OnlyMask => mask,
                    Objective::OnlyScore => score,
                    Objective::D3Diff => mask + 0.05 * score,
                }
            };
            for row in 0..8 {
                let image = case.images[row];
                let same_image = case.images.iter().filter(|&&other| other == image).count() as f64;
                let weight_mask = if objective == Objective::OnlyScore { 0.0 } else { 0.25 / same_image };
                let alpha = [0.0, 1.0, 0.05][objective as usize];
                let weight = weight_mask + alpha * 0.25 * config.schedule.at(case.times[image]).score_weight();
                let log_p = log_softmax(&case.logits[row]);
                for code in 0..12 {
                    let formula = weight * (log_p[code].exp() - f64::from(code == case.targets[row]));
                    let h = 1e-4;
                    let kept = case.logits[row][code];
                    case.logits[row][code] = kept + h;
                    let above = objective_of(&case);
                    case.logits[row][code] = kept - h;
                    let quotient = (above - objective_of(&case)) / (2.0 * h);
                    case.logits[row][code] = kept;
                    let actual = f64::from(gradient[row * 12 + code]);
                    assert!((actual - formula).abs() < 1e-6, "{objective:?} {form:?}: {actual} {formula}");
                    assert!((actual - quotient).abs() < 2e-6, "{objective:?} {form:?}: {actual} {quotient}");
                }
            }
        }
    }
}

#[test]
fn nothing_is_nan_at_the_ends_of_time() {
    for name in SCHEDULES {
        for form in FORMS {
            for objective in [Objective::OnlyScore, Objective::D3Diff] {
                let config = D3DiffConfig { objective, form, schedule: name.parse().unwrap(), ..D3DiffConfig::default() };
                let mut case = Case::new(6, 30, 2);
                case.times = vec![0.0, 1.0, 0.5, 1.0];
                // A probability that underflows f32 must not break the logarithm.
                case.logits[0][case.targets[0]] = -300.0;
                let (logits_RK, loss) = case.loss(&config, &device());
                for part in [&loss.total, &loss.mask, &loss.score, &loss.score_cross_entropy] {
                    assert!(value(part).is_finite(), "{name} {form:?}");
                }
                let gradient = logits_RK.grad(&loss.total.backward()).unwrap().into_data().try_to_vec::<f32>().unwrap();
                assert!(gradient.iter().all(|g| g.is_finite()) && gradient.iter().any(|g| *g != 0.0), "{name} {form:?}");
            }
        }
    }
}

#[test]
fn half_precision_cross_entropies_are_summed_in_f32() {
    let ce = |dtype| Tensor::<1>::from_data(TensorData::from([8.0f32, 9.5, 7.25]), &device()).cast(dtype);
    let loss = |tensor| d3diff_loss(tensor, &[0, 0, 1], &[0.3, 0.6], 4, &D3DiffConfig::default()).unwrap();
    let (half, full) = (loss(ce(FloatDType::BF16)), loss(ce(FloatDType::F32)));
    assert_eq!(value(&half.total), value(&full.total));
}

#[test]
fn no_masked_place_gives_zero_and_mistakes_are_errors() {
    let config = D3DiffConfig::default();
    let empty = || Tensor::<1>::zeros([0], &device());
    let loss = d3diff_loss(empty(), &[], &[0.5], 4, &config).unwrap();
    assert_eq!((value(&loss.total), value(&loss.score)), (0.0, 0.0));
    let one = || Tensor::<1>::from_data(TensorData::from([1.0f32]), &device());
    assert!(d3diff_loss(one(), &[0, 0], &[0.5], 4, &config).is_err());
    assert!(d3diff_loss(one(), &[1], &[0.5], 4, &config).unwrap_err().to_string().contains("below the number of times, 1"));
    assert!(d3diff_loss(one(), &[0], &[0.5], 4, &D3DiffConfig { alpha: f64::NAN, ..config }).is_err());
}

/// All ways to mask a state: (grid, masked places).
fn maskings(state: usize) -> impl Iterator<Item = (Vec<u32>, Vec<usize>)> {
    (1..1usize << PLACES).map(move |subset| {
        let x = digits(state);
        let masked: Vec<usize> = (0..PLACES).filter(|i| subset >> i & 1 == 1).collect();
        let grid = (0..PLACES).map(|i| if subset >> i & 1 == 1 { MASKED } else { x[i] as u32 }).collect();
        (grid, masked)
    })
}

type Conditional<'a> = &'a dyn Fn(&[u32], usize) -> Vec<f64>;

fn cross_entropy(model: Conditional<'_>, state: usize, grid: &[u32], masked: &[usize]) -> f64 {
    masked.iter().map(|&place| -model(grid, place)[digits(state)[place]]).sum()
}

/// The bound of `bound.rs`, over all subsets.
fn exact_bound(model: Conditional<'_>, state: usize) -> f64 {
    let choices = [0.0, 3.0, 3.0, 1.0];
    maskings(state)
        .map(|(grid, masked)| cross_entropy(model, state, &grid, &masked) / masked.len() as f64 / choices[masked.len()])
        .sum()
}

/// `-ln p(x)` of the model as a generator: random order, one place at a time (the limit of the score samplers).
fn true_nll(model: Conditional<'_>, state: usize) -> f64 {
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    let p: f64 = orders
        .iter()
        .map(|order| {
            let mut grid = vec![MASKED; PLACES];
            let mut log_p = 0.0;
            for &place in order {
                log_p += model(&grid, place)[digits(state)[place]];
                grid[place] = digits(state)[place] as u32;
            }
            log_p.exp() / 6.0
        })
        .sum();
    -p.ln()
}

#[test]
fn the_bound_is_exact_for_a_consistent_model_and_above_the_likelihood_otherwise() {
    let tiny = Tiny::new();
    let consistent = |grid: &[u32], place: usize| tiny.log_conditional(grid, place);
    // Distorted conditionals that belong to no joint distribution.
    let inconsistent = |grid: &[u32], place: usize| {
        let sharpness = 0.3 + 0.5 * place as f64 + grid.iter().filter(|&&c| c == MASKED).count() as f64 * 0.4;
        let logits: Vec<f64> = tiny.log_conditional(grid, place).iter().map(|l| l * sharpness).collect();
        log_softmax(&logits)
    };
    let mut total_p = 0.0;
    for state in 0..STATES {
        let nll = -tiny.joint[state].ln();
        assert!((true_nll(&consistent, state) - nll).abs() < 1e-9);
        assert!((exact_bound(&consistent, state) - nll).abs() < 1e-9);
        let (bound, nll) = (exact_bound(&inconsistent, state), true_nll(&inconsistent, state));
        assert!(bound >= nll - 1e-12, "{bound} {nll}");
        assert!(bound > nll + 1e-4, "a model with conflicting orders has a gap: {bound} {nll}");
        total_p += (-nll).exp();
    }
    assert!((total_p - 1.0).abs() < 1e-9);
}

#[test]
fn the_score_term_integrates_to_the_bound_for_every_schedule() {
    let tiny = Tiny::new();
    let model = |grid: &[u32], place: usize| tiny.log_conditional(grid, place).iter().map(|l| l * 0.9 - 0.02).collect::<Vec<_>>();
    let state = 14;
    let bound = exact_bound(&model, state);
    for name in SCHEDULES {
        let schedule: NoiseSchedule = name.parse().unwrap();
        let count = 40_000;
        let integral: f64 = (0..count)
            .map(|i| {
                let level = schedule.at((f64::from(i) + 0.5) / f64::from(count));
                let m = level.masked();
                let expected: f64 = maskings(state)
                    .map(|(grid, masked)| {
                        let chance = m.powi(masked.len() as i32) * (1.0 - m).powi((PLACES - masked.len()) as i32);
                        chance
                            * masked
                                .iter()
                                .map(|&p| score_entropy(model(&grid, p)[digits(state)[p]], &level, ScoreForm::Exact))
                                .sum::<f64>()
                    })
                    .sum();
                expected / f64::from(count)
            })
            .sum();
        // The log-linear schedule stops at m = 0.999; pow0.5 has an integrable singularity.
        let tolerance = if matches!(name, "log-linear" | "pow0.5") { 5e-3 } else { 1e-4 };
        assert!((integral - bound).abs() < tolerance * bound, "{name}: {integral} {bound}");
    }
}

#[test]
fn the_estimate_converges_to_the_exact_bound() {
    let tiny = Tiny::new();
    let model = |grid: &[u32], place: usize| tiny.log_conditional(grid, place);
    for state in [0, 5, 14, 26] {
        let codes: Vec<u32> = digits(state).iter().map(|&c| c as u32).collect();
        let points = bound_points(PLACES, 6000, Key::new(11, state as u64)).unwrap();
        let sums: Vec<f64> =
            points.iter().map(|point| cross_entropy(&model, state, &point.mask(&codes), &point.masked)).collect();
        let estimate = bound_estimate(PLACES, &points, &sums).unwrap();
        let exact = exact_bound(&model, state);
        assert!((estimate.nats - exact).abs() < 4.0 * estimate.standard_error.max(1e-9), "{estimate:?} {exact}");
        assert!(estimate.standard_error < 0.05);
    }
    assert_eq!(CODES, 3);
}
