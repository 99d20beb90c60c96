//! Samplers: from a grid with masked places to a complete grid of codes.
//!
//! One loop drives all of them: ask [`SamplerState::request`] which places need logits, run the network (and [`guide`] the result), hand the
//! logits to [`SamplerState::step`], until [`SamplerState::is_done`]. [`sample`] is that loop for one image with a closure; a
//! caller with many images keeps one state for each and runs the network on all their requests at once.
//!
//! Known codes of the first grid are never changed, so inpainting is sampling from a grid that is partly known.

mod draws;
mod maskgit;
mod score;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use draws::{Draws, KeyedDraws, exponential_race, guide, truncated_softmax};
pub use maskgit::{MaskGit, MaskGitStep};

use crate::MASKED;
use crate::error::{DiffusionError, Result, range};
use crate::schedule::{MaskSchedule, NoiseSchedule};

/// Which rule turns logits into codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sampler {
    /// Show-o's: draw all unknown places, keep the most confident.
    #[default]
    Maskgit,
    /// Euler (τ-leaping) steps along the score.
    Euler,
    /// Tweedie's analytic steps along the score.
    Tweedie,
}

impl FromStr for Sampler {
    type Err = DiffusionError;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "maskgit" => Ok(Self::Maskgit),
            "euler" => Ok(Self::Euler),
            "tweedie" => Ok(Self::Tweedie),
            _ => Err(DiffusionError::Name { what: "sampler", expected: "maskgit, euler or tweedie", given: name.to_string() }),
        }
    }
}

impl fmt::Display for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Maskgit => "maskgit",
            Self::Euler => "euler",
            Self::Tweedie => "tweedie",
        })
    }
}

/// How MaskGIT's confidence noise cools down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cooling {
    /// The reference's: the product of all `1 - j/T` so far.
    #[default]
    Cumulative,
    /// MaskGIT's: the start temperature times `1 - j/T`.
    Linear,
}

/// Settings of a sampler. The schedule that the chosen sampler does not use has no effect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplerConfig {
    /// The rule.
    pub sampler: Sampler,
    /// T, the number of steps.
    pub num_steps: usize,
    /// How many places MaskGIT leaves masked after each step.
    pub mask_schedule: MaskSchedule,
    /// The diffusion that the score samplers run backwards, `t` from 1 to 0 in T equal steps.
    pub noise_schedule: NoiseSchedule,
    /// MaskGIT's start temperature of the noise on confidences; 0 is greedy.
    pub confidence_temperature: f64,
    /// How that temperature falls.
    pub cooling: Cooling,
    /// Divides the logits of codes; the reference has 1.
    pub code_temperature: f32,
    /// Draws from the `top_k` most probable codes only; the reference has all.
    pub top_k: Option<usize>,
}

impl Default for SamplerConfig {
    fn default() -> Self {
        Self {
            sampler: Sampler::Maskgit,
            num_steps: 18,
            mask_schedule: MaskSchedule::Cosine,
            noise_schedule: NoiseSchedule::Cosine,
            confidence_temperature: 1.0,
            cooling: Cooling::Cumulative,
            code_temperature: 1.0,
            top_k: None,
        }
    }
}

impl SamplerConfig {
    /// Checks every setting.
    ///
    /// # Errors
    /// Names the first setting that is out of range.
    pub fn validate(&self) -> Result<()> {
        const OPERATION: &str = "sampler settings";
        if self.num_steps == 0 || self.num_steps >= 1 << 24 {
            return Err(range(OPERATION, "the number of steps", "1 to 16777215", self.num_steps, "16 to 50 are usual"));
        }
        if !(self.confidence_temperature.is_finite() && self.confidence_temperature >= 0.0) {
            let given = self.confidence_temperature;
            return Err(range(OPERATION, "the confidence temperature", "finite and not negative", given, "the reference uses 1"));
        }
        if !(self.code_temperature.is_finite() && self.code_temperature > 0.0) {
            let given = self.code_temperature;
            return Err(range(
                OPERATION,
                "the code temperature",
                "finite and positive",
                given,
                "for the most probable code use top_k = 1",
            ));
        }
        if self.top_k == Some(0) {
            return Err(range(OPERATION, "top_k", "at least 1", 0, "leave it out to keep all codes"));
        }
        Ok(())
    }
}

/// What the network is to be asked before the next step.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The step, from 0.
    pub step: usize,
    /// N codes, [`MASKED`] where unknown.
    pub grid: &'a [u32],
    /// Masked places over N: the noise level of the grid.
    pub masked_fraction: f32,
    /// The places whose logits the step needs, ascending. Empty: [`SamplerState::step`] takes no logits this time.
    pub wanted: &'a [usize],
}

/// What a step did.
#[derive(Debug, Clone, PartialEq)]
pub struct StepOutcome {
    /// The step, from 0.
    pub step: usize,
    /// The places that became known and stay so, ascending.
    pub revealed: Vec<usize>,
    /// MaskGIT's inner values; its complete `codes` make a preview.
    pub maskgit: Option<MaskGitStep>,
}

/// The sampling of one image.
#[derive(Debug, Clone)]
pub struct SamplerState<D> {
    config: SamplerConfig,
    grid: Vec<u32>,
    num_codes: usize,
    draws: D,
    step: usize,
    wanted: Vec<usize>,
    maskgit: MaskGit,
}

impl<D: Draws> SamplerState<D> {
    /// Starts from `grid`: N codes below `num_codes`, [`MASKED`] where a code is to be found.
    ///
    /// # Errors
    /// If a setting is out of range or the grid holds a number that is neither a code nor [`MASKED`].
    pub fn new(config: SamplerConfig, grid: Vec<u32>, num_codes: usize, draws: D) -> Result<Self> {
        config.validate()?;
        if let Some(&code) = grid.iter().find(|&&code| code != MASKED && code as usize >= num_codes) {
            let expected = format!("below {num_codes} or MASKED");
            return Err(range(
                "starting a sampler",
                "a code of the grid",
                expected,
                code,
                "subtract the offset of image tokens first",
            ));
        }
        let maskgit = MaskGit::new(&config);
        let mut state = Self { config, grid, num_codes, draws, step: 0, wanted: Vec::new(), maskgit };
        state.plan();
        Ok(state)
    }

    /// Whether every place is known.
    pub fn is_done(&self) -> bool {
        !self.grid.contains(&MASKED)
    }

    /// What the network is to be asked for the next step.
    pub fn request(&self) -> Request<'_> {
        let num_masked = self.grid.iter().filter(|&&code| code == MASKED).count();
        Request {
            step: self.step,
            grid: &self.grid,
            masked_fraction: num_masked as f32 / self.grid.len().max(1) as f32,
            wanted: &self.wanted,
        }
    }

    /// The grid as it is: N codes, [`MASKED`] where unknown.
    pub fn grid(&self) -> &[u32] {
        &self.grid
    }

    /// One step. `logits` are guided logits, row-major over K codes, for one of: the wanted places, all masked places (ascending), all N places.
    ///
    /// # Errors
    /// If the sampler is done, `logits` has another length, or a row is not a distribution; the state is then unchanged.
    pub fn step(&mut self, logits: &[f32]) -> Result<StepOutcome> {
        if self.is_done() {
            return Err(DiffusionError::Finished { operation: "sampler step", num_steps: self.step });
        }
        let rows = Rows::new(logits, self.num_codes, &self.wanted, &self.grid)?;
        let last = self.step + 1 == self.config.num_steps;
        let mut grid = self.grid.clone();
        let mut outcome = StepOutcome { step: self.step, revealed: Vec::new(), maskgit: None };
        if self.config.sampler == Sampler::Maskgit {
            let done = self.maskgit.step(&self.config, self.step, &rows, &self.grid, &mut self.draws)?;
            let keep = |place: &usize| last || !done.masked[*place];
            outcome.revealed = self.wanted.iter().copied().filter(keep).collect();
            outcome.revealed.iter().for_each(|&place| grid[place] = done.codes[place]);
            outcome.maskgit = Some(done);
        } else {
            score::reveal(&self.config, self.step, &rows, &mut grid, &mut self.draws)?;
            outcome.revealed = self.wanted.clone();
        }
        self.grid = grid;
        self.step += 1;
        self.plan();
        Ok(outcome)
    }

    /// The complete grid.
    ///
    /// # Errors
    /// If places are still masked; then the state is lost and the error says how many steps were made.
    pub fn into_codes(self) -> Result<Vec<u32>> {
        if self.is_done() {
            return Ok(self.grid);
        }
        let given = self.step;
        Err(range(
            "taking the sampled codes",
            "the steps made",
            format!("{}", self.config.num_steps),
            given,
            "call `step` until `is_done`",
        ))
    }

    fn plan(&mut self) {
        self.wanted = match self.config.sampler {
            Sampler::Maskgit => (0..self.grid.len()).filter(|&place| self.grid[place] == MASKED).collect(),
            Sampler::Euler | Sampler::Tweedie => score::places_to_reveal(&self.config, self.step, &self.grid, &mut self.draws),
        };
    }
}

/// Samples one image: `logits` answers a [`Request`] with guided logits (see [`SamplerState::step`] for the accepted shapes). It is not called
/// for steps that reveal nothing.
///
/// # Errors
/// Those of `logits`, of [`SamplerState::new`] and of [`SamplerState::step`].
pub fn sample<D: Draws, E: From<DiffusionError>>(
    config: SamplerConfig,
    grid: Vec<u32>,
    num_codes: usize,
    draws: D,
    mut logits: impl FnMut(&Request<'_>) -> Result<Vec<f32>, E>,
) -> Result<Vec<u32>, E> {
    let mut state = SamplerState::new(config, grid, num_codes, draws)?;
    while !state.is_done() {
        let request = state.request();
        let answer = if request.wanted.is_empty() { Vec::new() } else { logits(&request)? };
        state.step(&answer)?;
    }
    Ok(state.into_codes()?)
}

/// Logits of the wanted places, wherever they lie in what the caller gave.
struct Rows<'a> {
    logits: &'a [f32],
    num_codes: usize,
    /// (place, row) of each wanted place.
    places: Vec<(usize, usize)>,
}

impl<'a> Rows<'a> {
    fn new(logits: &'a [f32], num_codes: usize, wanted: &[usize], grid: &[u32]) -> Result<Self> {
        let num_masked = grid.iter().filter(|&&code| code == MASKED).count();
        let places = if logits.len() == wanted.len() * num_codes || wanted.is_empty() {
            wanted.iter().copied().zip(0..).collect()
        } else if logits.len() == num_masked * num_codes {
            let masked = (0..grid.len()).filter(|&place| grid[place] == MASKED).zip(0..);
            masked.filter(|(place, _)| wanted.binary_search(place).is_ok()).collect()
        } else if logits.len() == grid.len() * num_codes {
            wanted.iter().map(|&place| (place, place)).collect()
        } else {
            return Err(DiffusionError::Length {
                operation: "sampler step",
                what: "logits",
                expected: format!("{} x {num_codes}, {num_masked} x {num_codes} or {} x {num_codes}", wanted.len(), grid.len()),
                given: logits.len(),
                hint: "give one row of codebook logits for each wanted, masked or image place",
            });
        };
        Ok(Self { logits, num_codes, places })
    }

    fn iter(&self) -> impl Iterator<Item = (usize, &'a [f32])> {
        self.places.iter().map(|&(place, row)| (place, &self.logits[row * self.num_codes..][..self.num_codes]))
    }
}
