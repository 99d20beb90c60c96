//! One group of depths of a panel of rows and of panels of columns in 8 bits, into tiles.

#[cfg(target_arch = "x86_64")]
use super::super::avx2;
#[cfg(target_arch = "x86_64")]
use super::GROUP;
use super::{MR, NR, QUAD, Tiles};
#[cfg(target_arch = "x86_64")]
use crate::cpu::Level;
use crate::cpu::level;
use crate::simd::multiversion;

/// One group of a panel of rows and of P panels of columns.
pub(super) struct Meeting<'a, const P: usize> {
    /// `[quads][height][QUAD]`.
    pub(super) a: &'a [u8],
    pub(super) height: usize,
    /// One for each row.
    pub(super) row_scales: &'a [f32],
    /// `[quads][NR][QUAD]`.
    pub(super) panels: [&'a [i8]; P],
    pub(super) scales: [&'a [f32]; P],
    pub(super) offsets: [&'a [i32]; P],
}

impl<const P: usize> Meeting<'_, P> {
    /// Adds the products of `quads` quads to the tiles, scaled; `fresh` tiles hold nothing yet.
    pub(super) fn add(&self, quads: usize, fresh: bool, tiles: &mut Tiles<P>) {
        assert!(matches!(self.height, 1..=4 | MR) && self.row_scales.len() == self.height);
        let full = |len: usize| len >= quads * QUAD * NR;
        assert!(self.a.len() >= quads * QUAD * self.height && self.panels.iter().all(|panel| full(panel.len())));
        assert!(self.scales.iter().all(|scales| scales.len() >= NR) && self.offsets.iter().all(|offsets| offsets.len() >= NR));
        #[cfg(target_arch = "x86_64")]
        if level() >= Level::Avx512 {
            // SAFETY: `level` found AVX-512 VNNI on this CPU; the slices have the lengths that are asserted above.
            return unsafe { x86::add_group(self, quads, fresh, tiles) };
        }
        for (p, tile) in tiles.iter_mut().enumerate() {
            let mut sums = [[0; NR]; MR];
            match level() {
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => {
                    assert!(quads <= GROUP / QUAD);
                    // SAFETY: `level` found AVX2 on this CPU; the height and the lengths are asserted above.
                    unsafe { avx2::int8(self.a, self.height, self.panels[p].as_ptr(), quads, &mut sums) };
                    self.scale(p, &sums, false, fresh, tile);
                }
                _ => {
                    add_quads(self.a, self.height, self.panels[p], &mut sums);
                    self.scale(p, &sums, true, fresh, tile);
                }
            }
        }
    }

    /// Adds the sums of panel p, scaled, to its tile; `offset` tells whether they have in them what [`super::OFFSET`] adds.
    fn scale(&self, p: usize, sums: &[[i32; NR]; MR], offset: bool, fresh: bool, tile: &mut [[f32; NR]; MR]) {
        let mut offsets = [0; NR];
        if offset {
            offsets.copy_from_slice(&self.offsets[p][..NR]);
        }
        for ((tile, sums), &row_scale) in tile.iter_mut().zip(sums).zip(self.row_scales) {
            scale_row(tile, sums, &offsets, row_scale, self.scales[p], fresh);
        }
    }
}

multiversion! {
    /// Adds a row of sums to a row of a tile.
    fn scale_row(tile: &mut [f32; NR], sums: &[i32; NR], offsets: &[i32; NR], row_scale: f32, scales: &[f32], fresh: bool) {
        for (((value, sum), offset), scale) in tile.iter_mut().zip(sums).zip(offsets).zip(scales) {
            let product = (sum - offset) as f32 * (row_scale * scale);
            *value = if fresh { product } else { *value + product };
        }
    }
}

/// The scalar twin: adds to the first `height` rows of sums the products of a panel of rows, `[quads][height][QUAD]`, with one of columns,
/// `[quads][NR][QUAD]`.
fn add_quads(a: &[u8], height: usize, b: &[i8], sums: &mut [[i32; NR]; MR]) {
    for (a, b) in a.chunks_exact(height * QUAD).zip(b.as_chunks::<{ QUAD * NR }>().0) {
        // Widened once for all rows, so that a row is four vectorised loops.
        let mut columns = [[0i32; NR]; QUAD];
        for lane in 0..NR {
            for place in 0..QUAD {
                columns[place][lane] = i32::from(b[lane * QUAD + place]);
            }
        }
        for (sums, a) in sums.iter_mut().zip(a.as_chunks::<QUAD>().0) {
            let [a0, a1, a2, a3] = a.map(i32::from);
            for lane in 0..NR {
                sums[lane] += a0 * columns[0][lane] + a1 * columns[1][lane] + a2 * columns[2][lane] + a3 * columns[3][lane];
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::super::super::micro::x86::fetch;
    use super::{MR, Meeting, NR, QUAD, Tiles};

    /// Quads that a panel is fetched ahead.
    const AHEAD: usize = 32;

    /// # Safety
    /// The CPU has AVX-512 F and VNNI; rows, panels, scales and offsets of `part` have the lengths of `quads` quads and NR columns, and its
    /// height is MR or at most 4.
    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) unsafe fn add_group<const P: usize>(part: &Meeting<'_, P>, quads: usize, fresh: bool, tiles: &mut Tiles<P>) {
        // SAFETY: the caller's promise; each kernel reads as many rows as its name says.
        unsafe {
            match part.height {
                1 => kernel::<1, P>(part, quads, fresh, tiles),
                2 => kernel::<2, P>(part, quads, fresh, tiles),
                3 => kernel::<3, P>(part, quads, fresh, tiles),
                4 => kernel::<4, P>(part, quads, fresh, tiles),
                _ => kernel::<MR, P>(part, quads, fresh, tiles),
            }
        }
    }

    /// # Safety
    /// As [`add_group`], the height being ROWS.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    unsafe fn kernel<const ROWS: usize, const P: usize>(part: &Meeting<'_, P>, quads: usize, fresh: bool, tiles: &mut Tiles<P>) {
        let a = part.a.as_ptr();
        let panels = part.panels.map(<[i8]>::as_ptr);
        let mut registers = [[[_mm512_setzero_si512(); 2]; P]; ROWS];
        for quad in 0..quads {
            // SAFETY: `quad` is below `quads`; the caller's promise; reads are unaligned ones.
            unsafe {
                fetch(a.wrapping_add((quad + AHEAD) * ROWS * QUAD));
                let values = panels.map(|panel| {
                    let line = panel.add(quad * QUAD * NR);
                    fetch(line.wrapping_add(AHEAD * QUAD * NR));
                    fetch(line.wrapping_add(AHEAD * QUAD * NR + 64));
                    [_mm512_loadu_si512(line.cast()), _mm512_loadu_si512(line.add(QUAD * NR / 2).cast())]
                });
                for (row, sums) in registers.iter_mut().enumerate() {
                    let factor = _mm512_set1_epi32(a.add((quad * ROWS + row) * QUAD).cast::<i32>().read_unaligned());
                    for (sum, values) in sums.iter_mut().zip(values) {
                        sum[0] = _mm512_dpbusd_epi32(sum[0], factor, values[0]);
                        sum[1] = _mm512_dpbusd_epi32(sum[1], factor, values[1]);
                    }
                }
            }
        }
        for p in 0..P {
            for half in 0..2 {
                // SAFETY: scales, offsets and rows of tiles hold NR values, two vectors.
                unsafe {
                    let scale = _mm512_loadu_ps(part.scales[p].as_ptr().add(half * 16));
                    let offset = _mm512_loadu_si512(part.offsets[p].as_ptr().add(half * 16).cast());
                    for (row, sums) in registers.iter().enumerate() {
                        let sum = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums[p][half], offset));
                        let scale = _mm512_mul_ps(_mm512_set1_ps(part.row_scales[row]), scale);
                        let out = tiles[p][row].as_mut_ptr().add(half * 16);
                        let product = _mm512_mul_ps(sum, scale);
                        let sum = if fresh { product } else { _mm512_add_ps(_mm512_loadu_ps(out), product) };
                        _mm512_storeu_ps(out, sum);
                    }
                }
            }
        }
    }
}
