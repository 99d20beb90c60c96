//! Micro-kernels: an MR x NR tile of C from one panel of A and one of B.

use crate::cpu::{Level, level};

/// Rows of a tile.
pub(super) const MR: usize = 12;
/// Columns of a tile: two vectors of 16.
pub(super) const NR: usize = 32;

type Tile = [[f32; NR]; MR];

/// f32 tile, see [`super::pack::Packing::tile`].
#[allow(clippy::too_many_arguments)]
pub(super) fn tile_f32(a: &[f32], b: &[f32], depth: usize, c: &mut [f32], ldc: usize, height: usize, width: usize, add: bool) {
    assert!(a.len() >= depth * MR && b.len() >= depth * NR);
    let mut tile: Tile = [[0.0; NR]; MR];
    match level() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `level` found AVX-512 on this CPU; the assertion above gives the panels their length.
        Level::Avx512 => unsafe { x86::f32_avx512(a.as_ptr(), b.as_ptr(), depth, &mut tile) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `level` found AVX2 and FMA on this CPU; all accesses are through slices.
        Level::Avx2 => unsafe { x86::f32_avx2(a, b, depth, &mut tile) },
        _ => f32_portable(a, b, depth, &mut tile),
    }
    store(&tile, c, ldc, height, width, add);
}

/// bf16 tile on a CPU with AVX-512 BF16, see [`super::pack::Packing::tile`]; `depth` is even.
#[allow(clippy::too_many_arguments)]
pub(super) fn tile_bf16(a: &[u16], b: &[u16], depth: usize, c: &mut [f32], ldc: usize, height: usize, width: usize, add: bool) {
    assert!(depth.is_multiple_of(2) && a.len() >= depth * MR && b.len() >= depth * NR);
    let mut tile: Tile = [[0.0; NR]; MR];
    #[cfg(target_arch = "x86_64")]
    if level() == Level::Avx512 {
        // SAFETY: `level` found AVX-512 BF16 on this CPU; the assertion above gives the panels their length.
        unsafe { x86::bf16_avx512(a.as_ptr(), b.as_ptr(), depth / 2, &mut tile) };
        return store(&tile, c, ldc, height, width, add);
    }
    bf16_portable(a, b, depth, &mut tile);
    store(&tile, c, ldc, height, width, add);
}

fn store(tile: &Tile, c: &mut [f32], ldc: usize, height: usize, width: usize, add: bool) {
    for (row, values) in tile.iter().enumerate().take(height) {
        let target = &mut c[row * ldc..][..width];
        if add {
            for (target, value) in target.iter_mut().zip(values) {
                *target += value;
            }
        } else {
            target.copy_from_slice(&values[..width]);
        }
    }
}

/// The scalar twin of the f32 kernels.
#[inline(always)]
fn f32_portable(a: &[f32], b: &[f32], depth: usize, tile: &mut Tile) {
    for (a, b) in a.chunks_exact(MR).zip(b.chunks_exact(NR)).take(depth) {
        for (row, &factor) in tile.iter_mut().zip(a) {
            for (sum, &value) in row.iter_mut().zip(b) {
                *sum += factor * value;
            }
        }
    }
}

/// The scalar twin of the bf16 kernel.
fn bf16_portable(a: &[u16], b: &[u16], depth: usize, tile: &mut Tile) {
    let float = |bits: u16| f32::from_bits(u32::from(bits) << 16);
    for (a, b) in a.chunks_exact(2 * MR).zip(b.chunks_exact(2 * NR)).take(depth / 2) {
        for (row, factors) in tile.iter_mut().zip(a.chunks_exact(2)) {
            for (sum, values) in row.iter_mut().zip(b.chunks_exact(2)) {
                *sum += float(factors[0]) * float(values[0]) + float(factors[1]) * float(values[1]);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{MR, NR, Tile};

    /// # Safety
    /// The CPU has AVX-512 F; `a` holds `depth * MR` and `b` `depth * NR` values.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn f32_avx512(mut a: *const f32, mut b: *const f32, depth: usize, tile: &mut Tile) {
        let mut sums = [[_mm512_setzero_ps(); 2]; MR];
        for _ in 0..depth {
            // SAFETY: the pointers stay inside the panels for `depth` steps, as the caller promises.
            unsafe {
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
        for (row, sum) in tile.iter_mut().zip(&sums) {
            // SAFETY: a row of the tile holds 32 values.
            unsafe {
                _mm512_storeu_ps(row.as_mut_ptr(), sum[0]);
                _mm512_storeu_ps(row.as_mut_ptr().add(16), sum[1]);
            }
        }
    }

    /// # Safety
    /// The CPU has AVX-512 F and BF16; `a` holds `pairs * 2 * MR` and `b` `pairs * 2 * NR` values.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn bf16_avx512(a: *const u16, b: *const u16, pairs: usize, tile: &mut Tile) {
        let mut sums = [[_mm512_setzero_ps(); 2]; MR];
        let mut a = a.cast::<i32>();
        let mut b = b.cast::<i32>();
        for _ in 0..pairs {
            // SAFETY: the pointers stay inside the panels for `pairs` steps, as the caller promises; loads are unaligned ones. The casts
            // reinterpret vectors of 32 bf16 bit patterns, for which every pattern is a value.
            unsafe {
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
        for (row, sum) in tile.iter_mut().zip(&sums) {
            // SAFETY: a row of the tile holds 32 values.
            unsafe {
                _mm512_storeu_ps(row.as_mut_ptr(), sum[0]);
                _mm512_storeu_ps(row.as_mut_ptr().add(16), sum[1]);
            }
        }
    }

    /// The tile in four strips of three rows and sixteen columns, which is what the sixteen registers hold.
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn f32_avx2(a: &[f32], b: &[f32], depth: usize, tile: &mut Tile) {
        for row0 in (0..MR).step_by(4) {
            for col0 in (0..NR).step_by(16) {
                let mut sums = [[0.0f32; 16]; 4];
                for (a, b) in a.chunks_exact(MR).zip(b.chunks_exact(NR)).take(depth) {
                    for (sum, &factor) in sums.iter_mut().zip(&a[row0..row0 + 4]) {
                        for (sum, &value) in sum.iter_mut().zip(&b[col0..col0 + 16]) {
                            *sum = factor.mul_add(value, *sum);
                        }
                    }
                }
                for (row, sum) in tile[row0..row0 + 4].iter_mut().zip(&sums) {
                    row[col0..col0 + 16].copy_from_slice(sum);
                }
            }
        }
    }
}
