//! Panels: MR rows of A or NR columns of B, depth after depth, zero-filled at the edges.

use std::cell::Cell;

use super::Matrix;
#[cfg(target_arch = "x86_64")]
use super::amx;
use super::micro::{self, MR, NR, Target};
use crate::activation::Activation;
use crate::cpu::{Level, level};
use crate::lines::{Lines, lend};
use crate::simd::multiversion;

/// Element of panels.
pub(super) trait Number: bytemuck::Pod + Send + Sync {}

impl<T: bytemuck::Pod + Send + Sync> Number for T {}

/// How panels of A, of elements L, and of B, of elements R, are laid out, and the kernel that multiplies them.
pub(super) trait Packing<L, R = L>: Copy + Send + Sync {
    /// Rows in a panel of A, and of a tile of C.
    const HEIGHT: usize = MR;
    /// Bytes of A that one task works on at a time: about what the second-level cache holds. More rows a task read B less often, which is
    /// worth more than a margin.
    const LEFT_BYTES: usize = 1100 << 10;
    /// Tasks for each thread, each of which packs its rows of A: more of them even out, fewer pack less.
    const TASKS: usize = 4;
    /// Up to so many rows every task packs and takes all of them, and tasks share out the columns: B is read once.
    const WHOLE: usize = 0;
    /// Depth of a panel whose matrix part is `depth` deep.
    fn padded_depth(&self, depth: usize) -> usize;
    /// Depth of a panel of A, which may be padded further.
    fn left_depth(&self, depth: usize) -> usize {
        self.padded_depth(depth)
    }
    /// Packs HEIGHT rows of `a` from `row0`, columns `k0 .. k0 + depth`.
    fn rows(&self, a: &Matrix<'_>, k0: usize, depth: usize, row0: usize, out: &mut [L]);
    /// Packs all panels of a strip, the first from row `row0`.
    fn strip_rows(&self, a: &Matrix<'_>, k0: usize, depth: usize, row0: usize, out: &mut [L]) {
        for (panel, out) in out.chunks_exact_mut(self.left_depth(depth) * Self::HEIGHT).enumerate() {
            self.rows(a, k0, depth, row0 + panel * Self::HEIGHT, out);
        }
    }
    /// Packs NR columns of `b` from `col0`, rows `k0 .. k0 + depth`.
    fn columns(&self, b: &Matrix<'_>, k0: usize, depth: usize, col0: usize, out: &mut [R]);
    /// Memory of this thread for panels, with what was there before.
    fn memory<O>(&self, work: impl FnOnce(&mut Lines<L>) -> O) -> O;
    /// As [`Packing::memory`], for panels of B.
    fn right_memory<O>(&self, work: impl FnOnce(&mut Lines<R>) -> O) -> O;
    /// Multiplies two panels into a tile.
    ///
    /// # Safety
    /// `target` is valid for writes, and nobody else has access to its values.
    unsafe fn tile(&self, a: &[L], b: &[R], depth: usize, target: Target);
    /// Multiplies panels of A, as [`Packing::strip_rows`] packs them, with one of B: panel i into `target(i)`, which is then activated. `next`
    /// begins where the panel of B does that is multiplied next.
    ///
    /// # Safety
    /// As [`Packing::tile`], for each target; their tiles are disjoint.
    unsafe fn strip(&self, a: &[L], b: &[R], _next: &[R], depth: usize, target: impl Fn(usize) -> Target, act: Activation) {
        for (i, a_panel) in a.chunks_exact(self.left_depth(depth) * Self::HEIGHT).enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                self.tile(a_panel, b, depth, target(i));
                micro::activate(target(i), act);
            }
        }
    }
}

/// f32 panels; `round` rounds the values to bfloat16, for CPUs without its instructions.
#[derive(Clone, Copy)]
pub(super) struct F32 {
    pub(super) round: bool,
}

/// bf16 panels in pairs of depths, as the dot-product instruction takes them.
#[derive(Clone, Copy)]
pub(super) struct Bf16Pairs;

/// Panels of B as [`Bf16Pairs`] has them, for CPUs without that instruction: one is widened to f32 while all panels of A meet it, which are
/// rounded values in f32.
#[derive(Clone, Copy)]
pub(super) struct Widened;

/// Bits of the nearest bfloat16 (ties to even); those of one NaN for every NaN.
#[inline(always)]
pub(crate) fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let nearest = bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) >> 16;
    if value.is_nan() { 0x7FC0 } else { nearest as u16 }
}

/// The nearest bfloat16, see [`bf16_bits`].
#[inline(always)]
fn rounded(value: f32) -> f32 {
    f32::from_bits(u32::from(bf16_bits(value)) << 16)
}

/// The part of a matrix that a panel holds: `lanes` rows (or columns) from `lane0`, `depth` values of each from `k0`.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
struct Source<'a> {
    data: &'a [f32],
    /// From one lane to the next, and from one depth to the next.
    strides: [usize; 2],
    lane0: usize,
    lanes: usize,
    k0: usize,
    depth: usize,
}

#[cfg(target_arch = "x86_64")]
#[path = "pack_x86.rs"]
mod x86;

/// Calls `put(lane, depth, value)` for every element of `lanes` rows (or columns) from `lane0`; the inner loop follows memory.
#[inline(always)]
fn gather(
    data: &[f32],
    [lane_stride, depth_stride]: [usize; 2],
    lane0: usize,
    lanes: usize,
    k0: usize,
    depth: usize,
    mut put: impl FnMut(usize, usize, f32),
) {
    if lane_stride == 1 {
        for d in 0..depth {
            let line = &data[(k0 + d) * depth_stride + lane0..][..lanes];
            for (lane, &value) in line.iter().enumerate() {
                put(lane, d, value);
            }
        }
    } else {
        for lane in 0..lanes {
            let start = (lane0 + lane) * lane_stride + k0 * depth_stride;
            if depth_stride == 1 {
                for (d, &value) in data[start..][..depth].iter().enumerate() {
                    put(lane, d, value);
                }
            } else {
                for d in 0..depth {
                    put(lane, d, data[start + d * depth_stride]);
                }
            }
        }
    }
}

impl F32 {
    #[inline(always)]
    fn panel<const W: usize>(
        self,
        data: &[f32],
        strides: [usize; 2],
        lane0: usize,
        lanes: usize,
        k0: usize,
        depth: usize,
        out: &mut [f32],
    ) {
        #[cfg(target_arch = "x86_64")]
        if !self.round && level() >= Level::Avx512 {
            let source = Source { data, strides, lane0, lanes, k0, depth };
            // SAFETY: `level` found AVX-512 on this CPU.
            if unsafe { x86::pack_f32::<W>(source, out) } {
                return;
            }
        }
        if lanes < W {
            out.fill(0.0);
        }
        if self.round {
            gather(data, strides, lane0, lanes, k0, depth, |lane, d, value| out[d * W + lane] = rounded(value));
        } else {
            gather(data, strides, lane0, lanes, k0, depth, |lane, d, value| out[d * W + lane] = value);
        }
    }

    /// All of `a`, row after row.
    pub(super) fn plain(self, a: &Matrix<'_>) -> Vec<f32> {
        let mut out = vec![0.0; a.rows * a.cols];
        gather(a.data, [a.row_stride, a.col_stride], 0, a.rows, 0, a.cols, |row, d, value| {
            out[row * a.cols + d] = if self.round { rounded(value) } else { value };
        });
        out
    }
}

thread_local! {
    static WIDE: Cell<Lines<f32>> = Cell::default();
    static NARROW: Cell<Lines<u16>> = Cell::default();
    static WIDE_RIGHT: Cell<Lines<f32>> = Cell::default();
    static NARROW_RIGHT: Cell<Lines<u16>> = Cell::default();
    static WIDENED: Cell<Lines<f32>> = Cell::default();
}

impl Packing<f32> for F32 {
    fn memory<R>(&self, work: impl FnOnce(&mut Lines<f32>) -> R) -> R {
        lend(&WIDE, work)
    }

    fn right_memory<R>(&self, work: impl FnOnce(&mut Lines<f32>) -> R) -> R {
        lend(&WIDE_RIGHT, work)
    }

    fn padded_depth(&self, depth: usize) -> usize {
        depth
    }

    fn rows(&self, a: &Matrix<'_>, k0: usize, depth: usize, row0: usize, out: &mut [f32]) {
        self.panel::<MR>(a.data, [a.row_stride, a.col_stride], row0, MR.min(a.rows - row0), k0, depth, out);
    }

    fn columns(&self, b: &Matrix<'_>, k0: usize, depth: usize, col0: usize, out: &mut [f32]) {
        self.panel::<NR>(b.data, [b.col_stride, b.row_stride], col0, NR.min(b.cols - col0), k0, depth, out);
    }

    unsafe fn tile(&self, a: &[f32], b: &[f32], depth: usize, target: Target) {
        // SAFETY: the caller's promise.
        unsafe { micro::tile_f32(a, b, depth, target) };
    }
}

impl Bf16Pairs {
    #[inline(always)]
    fn panel<const W: usize>(
        data: &[f32],
        strides: [usize; 2],
        lane0: usize,
        lanes: usize,
        k0: usize,
        depth: usize,
        out: &mut [u16],
    ) {
        #[cfg(target_arch = "x86_64")]
        if level() >= Level::Avx512 {
            let source = Source { data, strides, lane0, lanes, k0, depth };
            // SAFETY: `level` found AVX-512 BF16 on this CPU.
            if unsafe { x86::pack_bf16::<W>(source, out) } {
                return;
            }
        }
        if lanes < W || depth % 2 == 1 {
            out.fill(0);
        }
        gather(data, strides, lane0, lanes, k0, depth, |lane, d, value| {
            out[(d / 2) * 2 * W + lane * 2 + d % 2] = bf16_bits(value);
        });
    }

    /// All of `a`, row after row of even length.
    pub(super) fn plain(self, a: &Matrix<'_>) -> Vec<u16> {
        let depth = a.cols.next_multiple_of(2);
        let mut out = vec![0; a.rows * depth];
        gather(a.data, [a.row_stride, a.col_stride], 0, a.rows, 0, a.cols, |row, d, value| {
            out[row * depth + d] = bf16_bits(value)
        });
        out
    }
}

impl Packing<u16> for Bf16Pairs {
    fn memory<R>(&self, work: impl FnOnce(&mut Lines<u16>) -> R) -> R {
        lend(&NARROW, work)
    }

    fn right_memory<R>(&self, work: impl FnOnce(&mut Lines<u16>) -> R) -> R {
        lend(&NARROW_RIGHT, work)
    }

    fn padded_depth(&self, depth: usize) -> usize {
        depth.next_multiple_of(2)
    }

    fn rows(&self, a: &Matrix<'_>, k0: usize, depth: usize, row0: usize, out: &mut [u16]) {
        Self::panel::<MR>(a.data, [a.row_stride, a.col_stride], row0, MR.min(a.rows - row0), k0, depth, out);
    }

    fn columns(&self, b: &Matrix<'_>, k0: usize, depth: usize, col0: usize, out: &mut [u16]) {
        Self::panel::<NR>(b.data, [b.col_stride, b.row_stride], col0, NR.min(b.cols - col0), k0, depth, out);
    }

    unsafe fn tile(&self, a: &[u16], b: &[u16], depth: usize, target: Target) {
        // SAFETY: the caller's promise.
        unsafe { micro::tile_bf16(a, b, depth, target) };
    }
}

multiversion! {
    /// A panel of pairs of depths as depths in f32.
    pub(super) fn widen(pairs: &[u16], out: &mut [f32]) {
        for (pairs, out) in pairs.as_chunks::<{ 2 * NR }>().0.iter().zip(out.as_chunks_mut::<{ 2 * NR }>().0) {
            let (first, second) = out.split_at_mut(NR);
            for (lane, pair) in pairs.as_chunks::<2>().0.iter().enumerate() {
                let word = u32::from(pair[0]) | u32::from(pair[1]) << 16;
                first[lane] = f32::from_bits(word << 16);
                second[lane] = f32::from_bits(word & 0xFFFF_0000);
            }
        }
    }
}

impl Packing<f32, u16> for Widened {
    fn memory<O>(&self, work: impl FnOnce(&mut Lines<f32>) -> O) -> O {
        lend(&WIDE, work)
    }

    fn right_memory<O>(&self, work: impl FnOnce(&mut Lines<u16>) -> O) -> O {
        lend(&NARROW_RIGHT, work)
    }

    fn padded_depth(&self, depth: usize) -> usize {
        depth.next_multiple_of(2)
    }

    fn rows(&self, a: &Matrix<'_>, k0: usize, depth: usize, row0: usize, out: &mut [f32]) {
        let (values, padding) = out.split_at_mut(depth * MR);
        F32 { round: true }.rows(a, k0, depth, row0, values);
        padding.fill(0.0);
    }

    fn columns(&self, b: &Matrix<'_>, k0: usize, depth: usize, col0: usize, out: &mut [u16]) {
        Bf16Pairs.columns(b, k0, depth, col0, out);
    }

    unsafe fn tile(&self, a: &[f32], b: &[u16], depth: usize, target: Target) {
        // SAFETY: the caller's promise.
        unsafe { self.strip(a, b, &[], depth, |_| target, Activation::None) };
    }

    unsafe fn strip(&self, a: &[f32], b: &[u16], _next: &[u16], depth: usize, target: impl Fn(usize) -> Target, act: Activation) {
        lend(&WIDENED, |wide| {
            wide.reserve(depth * NR);
            widen(&b[..depth * NR], &mut wide[..depth * NR]);
            // SAFETY: the caller's promise.
            unsafe { F32 { round: true }.strip(a, &wide[..depth * NR], &[], depth, target, act) };
        });
    }
}

/// bf16 panels of A in blocks for AMX; those of B are [`Bf16Pairs`]'.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Bf16Tiles;

#[cfg(target_arch = "x86_64")]
thread_local! {
    static TILES: Cell<Vec<amx::Tile<f32>>> = const { Cell::new(Vec::new()) };
}

#[cfg(target_arch = "x86_64")]
impl Bf16Tiles {
    /// Depths of a strip that are worked on together: a piece of B of that depth stays in the first-level cache.
    const DEPTH: usize = 256;

    /// All of `a`, row after row of whole blocks.
    pub(super) fn plain(self, a: &Matrix<'_>) -> Vec<u16> {
        let depth = self.left_depth(a.cols);
        let mut out = vec![0; a.rows * depth];
        gather(a.data, [a.row_stride, a.col_stride], 0, a.rows, 0, a.cols, |row, d, value| {
            out[row * depth + d] = bf16_bits(value)
        });
        out
    }
}

#[cfg(target_arch = "x86_64")]
impl Packing<u16> for Bf16Tiles {
    const HEIGHT: usize = amx::HEIGHT;
    const LEFT_BYTES: usize = amx::LEFT_BYTES;
    // Packing takes a tenth of the time of the products here, if done four times.
    const TASKS: usize = 1;
    // Products take so little that reading B twice costs more: 120x8192x2048 takes 0.7 of what it takes with rows shared out.
    const WHOLE: usize = 224;

    fn memory<R>(&self, work: impl FnOnce(&mut Lines<u16>) -> R) -> R {
        lend(&NARROW, work)
    }

    fn right_memory<R>(&self, work: impl FnOnce(&mut Lines<u16>) -> R) -> R {
        lend(&NARROW_RIGHT, work)
    }

    fn padded_depth(&self, depth: usize) -> usize {
        depth.next_multiple_of(2)
    }

    fn left_depth(&self, depth: usize) -> usize {
        depth.next_multiple_of(amx::BLOCK)
    }

    fn rows(&self, a: &Matrix<'_>, k0: usize, depth: usize, row0: usize, out: &mut [u16]) {
        let (strides, lanes) = ([a.row_stride, a.col_stride], Self::HEIGHT.min(a.rows - row0));
        let source = Source { data: a.data, strides, lane0: row0, lanes, k0, depth };
        // SAFETY: tiles are chosen only where `level` found AMX, which includes AVX-512 BF16.
        if unsafe { x86::pack_tiles(source, out) } {
            return;
        }
        out.fill(0);
        gather(a.data, strides, row0, lanes, k0, depth, |lane, d, value| {
            out[(d / amx::BLOCK * Self::HEIGHT + lane) * amx::BLOCK + d % amx::BLOCK] = bf16_bits(value);
        });
    }

    /// Piece of depth by piece of depth, so that a strip reads them in the order of memory.
    fn strip_rows(&self, a: &Matrix<'_>, k0: usize, depth: usize, row0: usize, out: &mut [u16]) {
        let count = out.len() / (self.left_depth(depth) * Self::HEIGHT);
        let pieces = out.chunks_mut(Self::DEPTH * Self::HEIGHT * count);
        for (piece, d0) in pieces.zip((0..depth).step_by(Self::DEPTH)) {
            let deep = Self::DEPTH.min(depth - d0);
            for (panel, out) in piece.chunks_exact_mut(self.left_depth(deep) * Self::HEIGHT).enumerate() {
                self.rows(a, k0 + d0, deep, row0 + panel * Self::HEIGHT, out);
            }
        }
    }

    fn columns(&self, b: &Matrix<'_>, k0: usize, depth: usize, col0: usize, out: &mut [u16]) {
        Bf16Pairs.columns(b, k0, depth, col0, out);
    }

    unsafe fn tile(&self, a: &[u16], b: &[u16], depth: usize, target: Target) {
        // SAFETY: the caller's promise.
        unsafe { self.strip(a, b, &[], depth, |_| target, Activation::None) };
    }

    unsafe fn strip(&self, a: &[u16], b: &[u16], next: &[u16], depth: usize, target: impl Fn(usize) -> Target, act: Activation) {
        let count = a.len() / (self.left_depth(depth) * Self::HEIGHT);
        // SAFETY: tiles are chosen only where `level` found AMX; strips are not nested.
        let registers = unsafe { amx::Registers::new() };
        lend(&TILES, |tiles| {
            if tiles.len() < count {
                tiles.resize_with(count, || amx::Tile([[0.0; NR]; amx::HEIGHT]));
            }
            // What comes next comes from memory while this panel is worked on.
            let mut ahead = amx::Ahead::new(next, count);
            // One panel of A takes all of B once, and is one piece for itself.
            let most = if count == 1 { depth } else { Self::DEPTH };
            let pieces = a.chunks(most.next_multiple_of(amx::BLOCK) * Self::HEIGHT * count);
            for (piece, k0) in pieces.zip((0..depth).step_by(most)) {
                let deep = most.min(depth - k0);
                for (i, (a, tile)) in piece.chunks_exact(self.left_depth(deep) * Self::HEIGHT).zip(tiles.iter_mut()).enumerate() {
                    amx::bf16(&registers, a, &b[k0 * NR..], deep, k0 == 0, ahead, tile, target(i).height);
                    ahead = ahead.behind(deep / amx::BLOCK);
                }
            }
            for (i, tile) in tiles.iter_mut().enumerate().take(count) {
                // SAFETY: the caller's promise.
                unsafe { micro::put_activated(&mut tile.0, target(i), act) };
            }
        });
    }
}
