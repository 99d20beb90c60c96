//! Micro-kernels: an MR x NR tile of C from one panel of A and one of B.

#[cfg(target_arch = "x86_64")]
use super::avx2;
use crate::activation::{self, Activation};
use crate::cpu::{Level, level};

/// Rows of a tile.
pub(super) const MR: usize = 12;
/// Columns of a tile: two vectors of 16.
pub(super) const NR: usize = 32;

pub(super) type Tile = [[f32; NR]; MR];

/// Where a tile goes: `height x width` values of a row-major matrix with rows `stride` apart.
#[derive(Clone, Copy)]
pub(super) struct Target {
    pub(super) start: *mut f32,
    pub(super) stride: usize,
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) onto: Onto,
}

/// What a tile is added to.
#[derive(Clone, Copy)]
pub(super) enum Onto {
    /// Nothing: it replaces what is there.
    Nothing,
    /// What is there.
    Target,
    /// As many values as the tile is wide, the same for all of its rows.
    Row(*const f32),
}

/// Applies an activation to a tile that was put.
///
/// # Safety
/// `target` is valid for reads and writes, and nobody else has access to its values.
pub(super) unsafe fn activate(target: Target, act: Activation) {
    if act == Activation::None {
        return;
    }
    for row in 0..target.height {
        // SAFETY: the rows of the target are valid and ours, as the caller promises; the slice is the only reference to this row's part.
        activation::forward(unsafe { std::slice::from_raw_parts_mut(target.start.add(row * target.stride), target.width) }, act);
    }
}

/// f32 tile, see [`super::pack::Packing::tile`].
///
/// # Safety
/// `target` is valid for writes, and nobody else has access to its values; a row that it is added to is as long as it is wide.
pub(super) unsafe fn tile_f32(a: &[f32], b: &[f32], depth: usize, target: Target) {
    assert!(a.len() >= depth * MR && b.len() >= depth * NR && target.height <= MR && target.width <= NR);
    #[cfg(target_arch = "x86_64")]
    if level() >= Level::Avx512 {
        // SAFETY: `level` found AVX-512 on this CPU; the assertion gives the panels their length, the caller the target.
        return unsafe { x86::f32_avx512(a.as_ptr(), b.as_ptr(), depth, target) };
    }
    let mut tile: Tile = [[0.0; NR]; MR];
    match level() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `level` found AVX2 and FMA on this CPU; the assertion gives the panels their length.
        Level::Avx2 => unsafe { avx2::tile_f32(a.as_ptr(), b.as_ptr(), depth, &mut tile) },
        _ => f32_portable(a, b, depth, &mut tile),
    }
    // SAFETY: the caller's promise.
    unsafe { store(&tile, target) };
}

/// bf16 tile on a CPU with AVX-512 BF16, see [`super::pack::Packing::tile`]; `depth` is even.
///
/// # Safety
/// As [`tile_f32`].
pub(super) unsafe fn tile_bf16(a: &[u16], b: &[u16], depth: usize, target: Target) {
    assert!(depth.is_multiple_of(2) && a.len() >= depth * MR && b.len() >= depth * NR);
    assert!(target.height <= MR && target.width <= NR);
    #[cfg(target_arch = "x86_64")]
    if level() >= Level::Avx512 {
        // SAFETY: `level` found AVX-512 BF16 on this CPU; the assertions give the panels their length, the caller the target.
        return unsafe { x86::bf16_avx512(a.as_ptr(), b.as_ptr(), depth / 2, target) };
    }
    let mut tile: Tile = [[0.0; NR]; MR];
    bf16_portable(a, b, depth, &mut tile);
    // SAFETY: the caller's promise.
    unsafe { store(&tile, target) };
}

/// As [`store`], with vectors where the CPU has them.
///
/// # Safety
/// As [`tile_f32`].
pub(super) unsafe fn put_rows(rows: &[[f32; NR]], target: Target) {
    #[cfg(target_arch = "x86_64")]
    if level() >= Level::Avx512 {
        // SAFETY: `level` found AVX-512 on this CPU; the rest is the caller's promise.
        return unsafe { x86::put_rows(rows, target) };
    }
    // SAFETY: the caller's promise.
    unsafe { store(rows, target) };
}

/// As [`put_rows`] on a CPU with AVX-512, then activated; the rows hold no sums any more. What a tile is added to is added here and not there,
/// so that the activation is one long run in the first-level cache.
///
/// # Safety
/// As [`tile_f32`]; the CPU has AVX-512 F.
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn put_activated(rows: &mut [[f32; NR]], target: Target, act: Activation) {
    if act == Activation::None {
        // SAFETY: the caller's promise.
        return unsafe { put_rows(rows, target) };
    }
    let rows = &mut rows[..target.height];
    // SAFETY: the caller's promise.
    unsafe { x86::add_base(rows, target) };
    activation::forward(rows.as_flattened_mut(), act);
    // SAFETY: the caller's promise.
    unsafe { put_rows(rows, Target { onto: Onto::Nothing, ..target }) };
}

/// # Safety
/// As [`tile_f32`].
pub(super) unsafe fn store(tile: &[[f32; NR]], target: Target) {
    for (row, values) in tile.iter().enumerate().take(target.height) {
        // SAFETY: the rows of the target are valid and ours, as the caller promises; the pointer is the only way to this row's part here.
        let row = unsafe { target.start.add(row * target.stride) };
        let columns = values.iter().enumerate().take(target.width);
        // SAFETY: as above; a row that is added is as long as the target is wide. Values that are replaced are not read.
        unsafe {
            match target.onto {
                Onto::Nothing => columns.for_each(|(column, value)| *row.add(column) = *value),
                Onto::Target => columns.for_each(|(column, value)| *row.add(column) += value),
                Onto::Row(base) => columns.for_each(|(column, value)| *row.add(column) = *base.add(column) + value),
            }
        }
    }
}

/// The scalar twin of the f32 kernels.
fn f32_portable(a: &[f32], b: &[f32], depth: usize, tile: &mut Tile) {
    for (a, b) in a.chunks_exact(MR).zip(b.chunks_exact(NR)).take(depth) {
        for (row, &factor) in tile.iter_mut().zip(a) {
            for (sum, &value) in row.iter_mut().zip(b) {
                *sum += factor * value;
            }
        }
    }
}

/// Adds to `sums` the products of a pair of bf16 factors with a line of pairs, the first of each before the second, as with unpacked
/// factors in f32.
#[inline(always)]
pub(super) fn add_pairs(sums: &mut [f32], factors: [u16; 2], line: &[u16]) {
    let [first, second] = factors.map(|bits| f32::from_bits(u32::from(bits) << 16));
    for (sum, pair) in sums.iter_mut().zip(line.chunks_exact(2)) {
        let word = u32::from(pair[0]) | u32::from(pair[1]) << 16;
        *sum = second * f32::from_bits(word & 0xFFFF_0000) + (first * f32::from_bits(word << 16) + *sum);
    }
}

/// The scalar twin of the bf16 kernels, in strips of three rows and sixteen columns, which is what sixteen registers hold.
fn bf16_portable(a: &[u16], b: &[u16], depth: usize, tile: &mut Tile) {
    for row0 in (0..MR).step_by(3) {
        for col0 in (0..NR).step_by(16) {
            let mut sums = [[0.0f32; 16]; 3];
            for (a, b) in a.chunks_exact(2 * MR).zip(b.chunks_exact(2 * NR)).take(depth / 2) {
                for (sums, factors) in sums.iter_mut().zip(a[2 * row0..2 * (row0 + 3)].chunks_exact(2)) {
                    add_pairs(sums, [factors[0], factors[1]], &b[2 * col0..2 * (col0 + 16)]);
                }
            }
            for (row, sums) in tile[row0..row0 + 3].iter_mut().zip(&sums) {
                row[col0..col0 + 16].copy_from_slice(sums);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use std::arch::x86_64::*;

    use super::{MR, NR, Onto, Target};

    /// Lanes of both halves of a target's rows.
    fn masks(width: usize) -> [u16; 2] {
        let mask = |width: usize| if width >= 16 { u16::MAX } else { (1u16 << width) - 1 };
        [mask(width), mask(width.saturating_sub(16))]
    }

    /// What half of a row of the target is added to.
    ///
    /// # Safety
    /// As [`put_all`]; `row` is one of the target's.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn base(target: Target, row: usize, half: usize, mask: u16) -> Option<__m512> {
        let start = match target.onto {
            Onto::Nothing => return None,
            Onto::Target => target.start.wrapping_add(row * target.stride).cast_const(),
            Onto::Row(values) => values,
        };
        // SAFETY: the mask hides what is right of the target; masked lanes are not read. The address itself may lie outside, so it is
        // computed with wrapping.
        Some(unsafe { _mm512_maskz_loadu_ps(mask, start.wrapping_add(half * 16)) })
    }

    /// Adds to rows of a tile what the target wants them added to.
    ///
    /// # Safety
    /// As [`put_all`].
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn add_base(rows: &mut [[f32; NR]], target: Target) {
        let masks = masks(target.width);
        for (row, values) in rows.iter_mut().enumerate().take(target.height) {
            for (half, values) in values.as_chunks_mut::<16>().0.iter_mut().enumerate() {
                // SAFETY: 16 values are a vector; the rest is the caller's promise.
                unsafe {
                    let Some(base) = base(target, row, half, masks[half]) else { return };
                    _mm512_storeu_ps(values.as_mut_ptr(), _mm512_add_ps(_mm512_loadu_ps(values.as_ptr()), base));
                }
            }
        }
    }

    /// # Safety
    /// The CPU has AVX-512 F; `target` is as [`super::tile_f32`] wants it.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn put_all(rows: impl Iterator<Item = [__m512; 2]>, target: Target) {
        let masks = masks(target.width);
        for (row, sums) in rows.take(target.height).enumerate() {
            for half in 0..2 {
                // SAFETY: the masks hide what is right of the target; masked lanes are not written. The address itself may lie outside, so it
                // is computed with wrapping.
                unsafe {
                    let value = match base(target, row, half, masks[half]) {
                        Some(base) => _mm512_add_ps(sums[half], base),
                        None => sums[half],
                    };
                    _mm512_mask_storeu_ps(target.start.wrapping_add(row * target.stride + half * 16), masks[half], value);
                }
            }
        }
    }

    /// # Safety
    /// As [`put_all`].
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in crate::gemm) unsafe fn put<const ROWS: usize>(sums: &[[__m512; 2]; ROWS], target: Target) {
        // SAFETY: the caller's promise.
        unsafe { put_all(sums.iter().copied(), target) };
    }

    /// # Safety
    /// As [`put_all`].
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn put_rows(rows: &[[f32; NR]], target: Target) {
        // SAFETY: a row is two vectors; the rest is the caller's promise.
        unsafe {
            let load = |row: &[f32; NR]| [_mm512_loadu_ps(row.as_ptr()), _mm512_loadu_ps(row.as_ptr().add(16))];
            put_all(rows.iter().map(load), target);
        }
    }

    /// Steps of depth that panels are fetched ahead: the processor's own prefetching starts anew at each page.
    const AHEAD: usize = 32;

    /// Asks for a line of memory; a hint, which may name any address.
    #[inline(always)]
    pub(in crate::gemm) fn fetch<T>(address: *const T) {
        // SAFETY: a prefetch reads nothing; it is defined for every address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }

    /// Asks for the lines of some values.
    pub(in crate::gemm) fn fetch_run(start: *const f32, len: usize) {
        (0..len).step_by(16).for_each(|place| fetch(start.wrapping_add(place)));
    }

    /// Asks for the lines of a target, which lie in as many pages as it has rows, before they are needed.
    #[inline(always)]
    pub(in crate::gemm) fn announce(target: Target) {
        for row in 0..target.height {
            let row = target.start.wrapping_add(row * target.stride);
            fetch(row);
            fetch(row.wrapping_add(16));
        }
    }

    /// # Safety
    /// The CPU has AVX-512 F; `a` holds `depth * MR` and `b` `depth * NR` values; `target` is valid for writes.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn f32_avx512(mut a: *const f32, mut b: *const f32, depth: usize, target: Target) {
        let mut sums = [[_mm512_setzero_ps(); 2]; MR];
        announce(target);
        for _ in 0..depth {
            // SAFETY: the pointers stay inside the panels for `depth` steps, as the caller promises.
            unsafe {
                fetch(b.wrapping_add(AHEAD * NR));
                fetch(b.wrapping_add(AHEAD * NR + 16));
                fetch(a.wrapping_add(AHEAD * MR));
                let b0 = _mm512_loadu_ps(b);
                let b1 = _mm512_loadu_ps(b.add(16));
                for (row, sum) in sums.iter_mut().enumerate() {
                    let factor = _mm512_set1_ps(*a.add(row));
                    sum[0] = _mm512_fmadd_ps(factor, b0, sum[0]);
                    sum[1] = _mm512_fmadd_ps(factor, b1, sum[1]);
                }
                a = a.add(MR);
                b = b.add(NR);
            }
        }
        // SAFETY: the caller's promise on the target.
        unsafe { put(&sums, target) };
    }

    /// # Safety
    /// The CPU has AVX-512 F and BF16; `a` holds `pairs * 2 * MR` and `b` `pairs * 2 * NR` values;
    /// `target` is valid for writes.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn bf16_avx512(a: *const u16, b: *const u16, pairs: usize, target: Target) {
        let mut sums = [[_mm512_setzero_ps(); 2]; MR];
        let mut a = a.cast::<i32>();
        let mut b = b.cast::<i32>();
        announce(target);
        for _ in 0..pairs {
            // SAFETY: the pointers stay inside the panels for `pairs` steps, as the caller promises; loads are unaligned ones. The casts
            // reinterpret vectors of 32 bf16 bit patterns, for which every pattern is a value.
            unsafe {
                fetch(b.wrapping_add(AHEAD * NR));
                fetch(b.wrapping_add(AHEAD * NR + 16));
                fetch(a.wrapping_add(AHEAD * MR));
                let b0: __m512bh = std::mem::transmute(_mm512_loadu_si512(b.cast()));
                let b1: __m512bh = std::mem::transmute(_mm512_loadu_si512(b.add(16).cast()));
                for (row, sum) in sums.iter_mut().enumerate() {
                    let factor: __m512bh = std::mem::transmute(_mm512_set1_epi32(a.add(row).read_unaligned()));
                    sum[0] = _mm512_dpbf16_ps(sum[0], factor, b0);
                    sum[1] = _mm512_dpbf16_ps(sum[1], factor, b1);
                }
                a = a.add(MR);
                b = b.add(NR);
            }
        }
        // SAFETY: the caller's promise on the target.
        unsafe { put(&sums, target) };
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use crate::cpu::at_every_level;

    #[test]
    fn what_is_put_activated_is_what_is_put_and_then_activated() {
        at_every_level(|level| {
            if level >= Level::Avx512 {
                put_in_both_ways();
            }
        });
    }

    fn put_in_both_ways() {
        let value = |i: usize| (i * 7919 % 2003) as f32 / 500.0 - 2.0;
        let base: Vec<f32> = (0..NR).map(|i| value(i + 3)).collect();
        let tile: [[f32; NR]; 5] = std::array::from_fn(|row| std::array::from_fn(|column| value(row * NR + column)));
        for act in [Activation::None, Activation::GeluNew, Activation::GeluErf, Activation::QuickGelu, Activation::Silu] {
            for (height, width) in [(5, NR), (3, 17), (1, 16), (4, 5), (2, 1)] {
                // A row of C is longer than the tile is wide: what is right of it stays.
                let before: Vec<f32> = (0..5 * 40).map(value).collect();
                let (mut found, mut expected) = (before.clone(), before.clone());
                for onto in [Onto::Nothing, Onto::Target, Onto::Row(base[..width].as_ptr())] {
                    let target = |c: &mut [f32]| Target { start: c.as_mut_ptr(), stride: 40, height, width, onto };
                    // SAFETY: the targets are `height` rows of 40 values in C, which is ours; the row has `width` values; this level has
                    // AVX-512.
                    unsafe {
                        put_activated(&mut tile.clone(), target(&mut found), act);
                        store(&tile, target(&mut expected));
                        activate(target(&mut expected), act);
                    }
                    assert_eq!(found, expected, "{act:?}, {height} x {width}");
                }
                assert!(
                    found != before && found[width..40] == before[width..40] && found[40 * height..] == before[40 * height..]
                );
            }
        }
    }
}
