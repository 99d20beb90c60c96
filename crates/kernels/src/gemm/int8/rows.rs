//! Rows of a left factor, rounded to 8 bits and packed while they are multiplied.

use std::cell::Cell;

use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use super::super::{amx, micro};
use super::{FEW, GROUP, MR, Matrix, OFFSET, QUAD, SERIAL, inverse, scale_of, step};
#[cfg(target_arch = "x86_64")]
use crate::cpu::{Level, level};
use crate::lines::Lines;
use crate::simd::{fold, larger, multiversion};

/// Rows in 8 bits, in panels of `height` rows: `[panel][unit of depths][height][unit]`, and a scale for each row and group,
/// `[panel][group][height]`.
pub(in crate::gemm) struct Rows {
    pub(super) values: Lines<u8>,
    scales: Vec<f32>,
    pub(super) height: usize,
    /// Depths of a row that lie side by side: [`QUAD`], or what a tile register of AMX takes.
    pub(super) unit: usize,
    /// Whole units.
    pub(super) depth: usize,
    pub(super) groups: usize,
}

thread_local! {
    /// What the last rows of this thread lay in.
    static VALUES: Cell<Lines<u8>> = Cell::default();
}

/// Most bytes that a thread keeps for its next rows: those of four pictures with guidance in the widest layer of the full model.
const KEPT: usize = 16 << 20;

impl Drop for Rows {
    fn drop(&mut self) {
        if self.values.len() <= KEPT {
            VALUES.set(std::mem::take(&mut self.values));
        }
    }
}

multiversion! {
    /// The scale of some values.
    fn scale_of_row(values: &[f32]) -> f32 {
        scale_of(fold(values, 0.0, |most, value| larger(most, value.abs())).into_iter())
    }
}

multiversion! {
    fn round_row(values: &[f32], inverse: f32, out: &mut [u8]) {
        for (out, &value) in out.iter_mut().zip(values) {
            *out = (step(value, inverse) + OFFSET) as u8;
        }
    }
}

impl Rows {
    /// The scales of a panel's rows in a group.
    pub(super) fn panel_scales(&self, panel: usize, group: usize) -> &[f32] {
        &self.scales[(panel * self.groups + group) * self.height..][..self.height]
    }

    pub(in crate::gemm) fn new(a: &Matrix<'_>) -> Self {
        Self::chosen(a, a.rows, |row| row)
    }

    /// `count` rows of `a`: first the one that `row` names for 0.
    pub(in crate::gemm) fn chosen(a: &Matrix<'_>, count: usize, row: impl Fn(usize) -> usize + Sync) -> Self {
        let (height, unit) = match count {
            few @ ..=FEW => (few.max(1), QUAD),
            #[cfg(target_arch = "x86_64")]
            rows if rows > MR && level() == Level::Amx => (amx::HEIGHT, amx::BLOCK_I8),
            _ => (MR, QUAD),
        };
        let depth = a.cols.next_multiple_of(unit);
        let groups = a.cols.div_ceil(GROUP);
        let padded = count.next_multiple_of(height);
        // Rows behind the last one keep what was there: nobody wants their sums.
        let mut values = VALUES.take();
        values.reserve(padded * depth);
        let mut scales = vec![0.0; padded * groups];
        let panel = |(panel, (out, scales)): (usize, (&mut [u8], &mut [f32]))| {
            let mut gathered = Vec::new();
            let mut rounded = [OFFSET as u8; GROUP];
            // Group by group: what the rows of a panel write side by side stays in the first-level cache.
            for (group, out) in out.chunks_mut(height * GROUP).enumerate() {
                let columns = group * GROUP..a.cols.min((group + 1) * GROUP);
                let deep = out.len() / height;
                rounded[columns.len()..].fill(OFFSET as u8);
                for place in 0..height.min(count - panel * height) {
                    let index = panel * height + place;
                    let start = row(index) * a.row_stride;
                    let row = match a.col_stride {
                        1 => {
                            // The rows of a group lie in as many pages; the hint brings 1 to 2% of a product.
                            #[cfg(target_arch = "x86_64")]
                            {
                                let next = row((index + 1).min(count - 1)) * a.row_stride;
                                micro::x86::fetch_run(a.data.as_ptr().wrapping_add(next + columns.start), columns.len());
                            }
                            &a.data[start..][columns.clone()]
                        }
                        stride => {
                            gathered.clear();
                            gathered.extend(columns.clone().map(|column| a.data[start + column * stride]));
                            &gathered
                        }
                    };
                    let scale = scale_of_row(row);
                    scales[group * height + place] = scale;
                    round_row(row, inverse(scale), &mut rounded);
                    let rounded = &rounded[..deep];
                    if unit == QUAD {
                        // A length that the compiler knows.
                        for (quad, out) in rounded.chunks_exact(QUAD).zip(out.chunks_exact_mut(height * QUAD)) {
                            out[place * QUAD..][..QUAD].copy_from_slice(quad);
                        }
                    } else {
                        for (values, out) in rounded.chunks_exact(unit).zip(out.chunks_exact_mut(height * unit)) {
                            out[place * unit..][..unit].copy_from_slice(values);
                        }
                    }
                }
            }
        };
        if count * a.cols > SERIAL {
            let out =
                values[..padded * depth].par_chunks_exact_mut(height * depth).zip(scales.par_chunks_exact_mut(height * groups));
            out.enumerate().for_each(panel);
        } else {
            let out = values[..padded * depth].chunks_exact_mut(height * depth).zip(scales.chunks_exact_mut(height * groups));
            out.enumerate().for_each(panel);
        }
        Self { values, scales, height, unit, depth, groups }
    }
}
