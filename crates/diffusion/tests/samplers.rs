//! Samplers against a joint distribution that is known exactly.
//!
//! The network is replaced by the true conditionals, so what is left is the sampler's own error. The expected total variation of an exact
//! sampler is about `sqrt(states / (2 pi samples))`: 0.009 for 27 states and 60,000 samples.
#![allow(clippy::unwrap_used)]

mod tiny;

use tiny::{CODES, PLACES, STATES, Tiny, state_of, total_variation};
use unif2ace_diffusion::sampler::{Cooling, KeyedDraws, Sampler, SamplerConfig, SamplerState, sample};
use unif2ace_diffusion::schedule::{MaskSchedule, NoiseSchedule};
use unif2ace_diffusion::{DiffusionError, MASKED};

const SAMPLES: u64 = 60_000;

fn distance(tiny: &Tiny, config: &SamplerConfig) -> f64 {
    let mut counts = [0; STATES];
    for image in 0..SAMPLES {
        let draws = KeyedDraws::new(2025, image);
        let codes = sample(config.clone(), vec![MASKED; PLACES], CODES, draws, |request| {
            Ok::<_, DiffusionError>(tiny.logits(request.grid, request.wanted))
        });
        counts[state_of(&codes.unwrap())] += 1;
    }
    total_variation(&counts, &tiny.joint)
}

fn score_config(sampler: Sampler, noise_schedule: NoiseSchedule, num_steps: usize) -> SamplerConfig {
    SamplerConfig { sampler, noise_schedule, num_steps, ..SamplerConfig::default() }
}

#[test]
fn score_samplers_converge_to_the_true_distribution() {
    let tiny = Tiny::new();
    for (sampler, schedule) in [
        (Sampler::Tweedie, NoiseSchedule::Cosine),
        (Sampler::Tweedie, NoiseSchedule::LogLinear),
        (Sampler::Euler, NoiseSchedule::Cosine),
        (Sampler::Euler, NoiseSchedule::LogLinear),
    ] {
        let distances = [1, 4, 16, 64].map(|steps| distance(&tiny, &score_config(sampler, schedule, steps)));
        // One step draws all places independently: far off. The error then falls roughly as 1/T.
        assert!(distances[0] > 0.25, "{sampler} {schedule}: {distances:?}");
        assert!(distances.windows(2).all(|pair| pair[1] < pair[0]), "{sampler} {schedule}: {distances:?}");
        assert!(distances[3] < 0.02, "{sampler} {schedule}: {distances:?}");
    }
}

#[test]
fn other_schedules_converge_too() {
    let tiny = Tiny::new();
    for sampler in [Sampler::Tweedie, Sampler::Euler] {
        for schedule in [NoiseSchedule::Linear, NoiseSchedule::Pow { exponent: 2.0 }, NoiseSchedule::SIGMOID] {
            let last = distance(&tiny, &score_config(sampler, schedule, 64));
            assert!(last < 0.025, "{sampler} {schedule}: {last}");
        }
    }
}

/// One token a step: `floor(3 (1 - 1/9)) = 2` stay masked, `floor(3 (1 - 4/9)) = 1`, then none.
fn one_by_one(confidence_temperature: f64) -> SamplerConfig {
    SamplerConfig {
        num_steps: PLACES,
        mask_schedule: MaskSchedule::Pow { exponent: 2.0 },
        confidence_temperature,
        cooling: Cooling::Linear,
        ..SamplerConfig::default()
    }
}

#[test]
fn maskgit_is_exact_when_order_is_independent_of_confidence() {
    // MaskGIT chooses which drawn codes stay by their probability, which favours frequent codes: it is biased even with one
    // token a step. At a very high temperature the choice is random, and one token a step is ancestral sampling in random order: exact.
    let tiny = Tiny::new();
    let random_order = distance(&tiny, &one_by_one(1e6));
    let by_confidence = distance(&tiny, &one_by_one(0.0));
    assert!(random_order < 0.02, "{random_order}");
    assert!(by_confidence > 0.1, "{by_confidence}");
    // And with all places at once it is the product of marginals.
    let at_once = distance(&tiny, &SamplerConfig { num_steps: 1, ..one_by_one(1e6) });
    assert!(at_once > 0.25, "{at_once}");
}

#[test]
fn known_tokens_never_change_and_the_result_is_complete() {
    for sampler in [Sampler::Maskgit, Sampler::Euler, Sampler::Tweedie] {
        for num_steps in [1, 2, 7, 40] {
            for seed in 0..30 {
                // A temperature at which the noise overtakes ln(f32::MAX), the reference's mark of a known token.
                let config = SamplerConfig { sampler, num_steps, confidence_temperature: 50.0, ..SamplerConfig::default() };
                let start: Vec<u32> = (0..16).map(|i| if (i + seed as u32).is_multiple_of(3) { MASKED } else { i % 5 }).collect();
                let mut state = SamplerState::new(config, start.clone(), 5, KeyedDraws::new(seed, 0)).unwrap();
                let mut steps = 0;
                while !state.is_done() {
                    let logits = vec![0.0; state.request().wanted.len() * 5];
                    let outcome = state.step(&logits).unwrap();
                    assert_eq!(outcome.step, steps);
                    steps += 1;
                }
                assert!(steps <= num_steps, "{sampler}: {steps} of {num_steps}");
                let codes = state.into_codes().unwrap();
                assert!(codes.iter().all(|&code| code < 5));
                assert!(start.iter().zip(&codes).all(|(&s, &c)| s == MASKED || s == c), "{sampler}: a known token changed");
            }
        }
    }
}

#[test]
fn nothing_to_sample_is_done_at_once() {
    for sampler in [Sampler::Maskgit, Sampler::Euler, Sampler::Tweedie] {
        let config = SamplerConfig { sampler, ..SamplerConfig::default() };
        for start in [vec![], vec![1, 2, 0]] {
            let codes = sample(config.clone(), start.clone(), 3, KeyedDraws::new(0, 0), |_| -> Result<_, DiffusionError> {
                panic!("the network was asked")
            });
            assert_eq!(codes.unwrap(), start);
            let mut state = SamplerState::new(config.clone(), start, 3, KeyedDraws::new(0, 0)).unwrap();
            assert!(matches!(state.step(&[]), Err(DiffusionError::Finished { .. })));
        }
        // A picture of a single token: nothing to compare its confidence with.
        let codes = sample(config, vec![MASKED], 3, KeyedDraws::new(0, 0), |request| {
            Ok::<_, DiffusionError>(vec![0.0; request.wanted.len() * 3])
        });
        assert!(codes.unwrap()[0] < 3);
    }
}

#[test]
fn logits_of_wanted_masked_or_all_places_give_the_same() {
    for sampler in [Sampler::Maskgit, Sampler::Euler, Sampler::Tweedie] {
        let config = SamplerConfig { sampler, num_steps: 6, ..SamplerConfig::default() };
        let start: Vec<u32> = (0..12).map(|i| if i == 4 { 2 } else { MASKED }).collect();
        let row = |place: usize| [place as f32 * 0.3, 1.0, (place as f32).sin()];
        type Places<'a> = &'a dyn Fn(&[u32], &[usize]) -> Vec<usize>;
        let run = |places: Places<'_>| {
            sample(config.clone(), start.clone(), 3, KeyedDraws::new(9, 1), |request| {
                Ok::<_, DiffusionError>(places(request.grid, request.wanted).into_iter().flat_map(row).collect())
            })
            .unwrap()
        };
        let wanted = run(&|_, wanted| wanted.to_vec());
        assert_eq!(wanted, run(&|grid, _| (0..grid.len()).filter(|&i| grid[i] == MASKED).collect()), "{sampler}");
        assert_eq!(wanted, run(&|grid, _| (0..grid.len()).collect()), "{sampler}");
    }
}

#[test]
fn mistakes_are_errors_and_leave_the_state_usable() {
    let start = || vec![MASKED; 4];
    let bad = [
        SamplerConfig { num_steps: 0, ..SamplerConfig::default() },
        SamplerConfig { confidence_temperature: f64::NAN, ..SamplerConfig::default() },
        SamplerConfig { confidence_temperature: -1.0, ..SamplerConfig::default() },
        SamplerConfig { code_temperature: 0.0, ..SamplerConfig::default() },
        SamplerConfig { top_k: Some(0), ..SamplerConfig::default() },
    ];
    for config in bad {
        let error = SamplerState::new(config, start(), 3, KeyedDraws::new(0, 0)).err().unwrap();
        assert!(error.to_string().contains("hint:"), "{error}");
    }
    assert!(SamplerState::new(SamplerConfig::default(), vec![3], 3, KeyedDraws::new(0, 0)).is_err());
    let mut state = SamplerState::new(SamplerConfig::default(), start(), 3, KeyedDraws::new(0, 0)).unwrap();
    assert!(matches!(state.step(&[0.0; 11]), Err(DiffusionError::Length { .. })));
    let mut logits = [0.0; 12];
    logits[7] = f32::NAN;
    assert!(state.step(&logits).unwrap_err().to_string().contains("place 2"));
    assert!(state.clone().into_codes().is_err());
    assert_eq!(state.request().step, 0);
    assert!(state.step(&[0.0; 12]).is_ok());
}

#[test]
fn top_k_one_is_the_most_probable_code() {
    for sampler in [Sampler::Maskgit, Sampler::Tweedie] {
        let config = SamplerConfig { sampler, num_steps: 3, top_k: Some(1), ..SamplerConfig::default() };
        let codes = sample(config, vec![MASKED; 8], 4, KeyedDraws::new(0, 0), |request| {
            Ok::<_, DiffusionError>(
                request.wanted.iter().flat_map(|&p| (0..4).map(move |k| if k == p % 4 { 0.1 } else { 0.0 })).collect(),
            )
        });
        assert_eq!(codes.unwrap(), [0, 1, 2, 3, 0, 1, 2, 3]);
    }
}
