//! Schedules: how many tokens are masked when.
//!
//! [`MaskSchedule`] is the backbone's: a progress `t` from 0 (all masked) to 1 (none), in float32 as the reference computes it.
//! [`NoiseSchedule`] is the diffusion's: a time `t` from 0 (data) to 1 (all masked), in float64 and log space.
//! With the same name, `m(t)` of the second is the first at `1 - t`.

mod mask;
mod noise;
mod time;

pub use mask::MaskSchedule;
pub use noise::{NoiseLevel, NoiseSchedule, TIME_MARGIN};
pub use time::low_discrepancy_times;
