//! A few rows times packed panels of 32 columns: decoding with weights that were packed once. The rows are not packed.

use super::micro::{self, NR, Target};
use crate::cpu::{Level, level};

/// Most rows that these kernels take.
pub(super) const MAX_ROWS: usize = 8;

/// Rows `x` `[rows, depth]` times an f32 panel.
///
/// # Safety
/// `target` is valid for writes, and nobody else has access to its values.
pub(super) unsafe fn rows_f32(x: &[f32], panel: &[f32], depth: usize, target: Target) {
    let rows = target.height;
    assert!((1..=MAX_ROWS).contains(&rows) && x.len() >= rows * depth && panel.len() >= depth * NR && target.width <= NR);
    match level() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `level` found AVX-512 on this CPU; the assertion gives the slices their length, the caller the target.
        Level::Avx512 => unsafe { x86::rows_f32(x.as_ptr(), panel.as_ptr(), depth, target) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `level` found AVX2 and FMA on this CPU; the caller's promise on the target.
        Level::Avx2 => unsafe { x86::rows_avx2(x, panel, depth, target) },
        // SAFETY: the caller's promise on the target.
        _ => unsafe { lanes::<false>(x, panel, depth, target) },
    }
}

/// Rows `x` `[rows, depth]` of bf16 bit patterns times a bf16 panel in pairs of depths; `depth` is even.
///
/// # Safety
/// As [`rows_f32`].
pub(super) unsafe fn rows_bf16(x: &[u16], panel: &[u16], depth: usize, target: Target) {
    let rows = target.height;
    assert!((1..=MAX_ROWS).contains(&rows) && x.len() >= rows * depth && panel.len() >= depth * NR && target.width <= NR);
    assert!(depth.is_multiple_of(2));
    #[cfg(target_arch = "x86_64")]
    if level() == Level::Avx512 {
        // SAFETY: `level` found AVX-512 BF16 on this CPU; the assertions give the slices their length, the caller the target.
        return unsafe { x86::rows_bf16(x.as_ptr(), panel.as_ptr(), depth / 2, target) };
    }
    let float = |bits: u16| f32::from_bits(u32::from(bits) << 16);
    let mut tile = [[0.0; NR]; MAX_ROWS];
    for (x, sums) in x.chunks_exact(depth).zip(&mut tile).take(rows) {
        for (x, panel) in x.chunks_exact(2).zip(panel.chunks_exact(2 * NR)) {
            for (sum, pair) in sums.iter_mut().zip(panel.chunks_exact(2)) {
                *sum += float(x[0]) * float(pair[0]) + float(x[1]) * float(pair[1]);
            }
        }
    }
    // SAFETY: the caller's promise.
    unsafe { micro::store(&tile, target) };
}

/// The scalar twin. FUSED asks for fused multiply-add, which is a slow call on CPUs without the instruction.
///
/// # Safety
/// As [`rows_f32`].
#[inline(always)]
unsafe fn lanes<const FUSED: bool>(x: &[f32], panel: &[f32], depth: usize, target: Target) {
    let mut tile = [[0.0f32; NR]; MAX_ROWS];
    for (x, out) in x.chunks_exact(depth).zip(&mut tile).take(target.height) {
        let mut sums = [0.0f32; NR];
        for (&factor, values) in x.iter().zip(panel.chunks_exact(NR)) {
            for (sum, &value) in sums.iter_mut().zip(values) {
                *sum = if FUSED { factor.mul_add(value, *sum) } else { factor * value + *sum };
            }
        }
        *out = sums;
    }
    // SAFETY: the caller's promise.
    unsafe { micro::store(&tile, target) };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::super::micro::x86::put;
    use super::{NR, Target};

    /// # Safety
    /// As [`super::rows_f32`], on a CPU with AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn rows_avx2(x: &[f32], panel: &[f32], depth: usize, target: Target) {
        // SAFETY: the caller's promise.
        unsafe { super::lanes::<true>(x, panel, depth, target) };
    }

    /// Calls the kernel of the target's height. With few rows, WAYS independent sums hide the latency of the multiply-adds.
    macro_rules! by_height {
        ($kernel:ident, $target:expr, $($arg:expr),*) => {
            match $target.height {
                1 => $kernel::<1, 4>($($arg),*, $target),
                2 => $kernel::<2, 4>($($arg),*, $target),
                3 => $kernel::<3, 2>($($arg),*, $target),
                4 => $kernel::<4, 2>($($arg),*, $target),
                5 => $kernel::<5, 1>($($arg),*, $target),
                6 => $kernel::<6, 1>($($arg),*, $target),
                7 => $kernel::<7, 1>($($arg),*, $target),
                _ => $kernel::<8, 1>($($arg),*, $target),
            }
        };
    }

    /// # Safety
    /// The CPU has AVX-512 F; `x` holds `height * depth` and `panel` `depth * NR` values; `target` is valid for writes.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn rows_f32(x: *const f32, panel: *const f32, depth: usize, target: Target) {
        // SAFETY: the caller's promise.
        unsafe { by_height!(f32_kernel, target, x, panel, depth) }
    }

    /// # Safety
    /// The CPU has AVX-512 F and BF16; `x` holds `height * pairs * 2` and `panel` `pairs * 2 * NR` values; `target` is valid for writes.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn rows_bf16(x: *const u16, panel: *const u16, pairs: usize, target: Target) {
        // SAFETY: the caller's promise.
        unsafe { by_height!(bf16_kernel, target, x.cast(), panel.cast(), pairs) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn total<const ROWS: usize, const WAYS: usize>(sums: [[[__m512; 2]; ROWS]; WAYS]) -> [[__m512; 2]; ROWS] {
        let mut total = sums[0];
        for way in &sums[1..] {
            for (total, way) in total.iter_mut().zip(way) {
                for half in 0..2 {
                    total[half] = _mm512_add_ps(total[half], way[half]);
                }
            }
        }
        total
    }

    /// # Safety
    /// As [`rows_f32`], with ROWS the target's height.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn f32_kernel<const ROWS: usize, const WAYS: usize>(x: *const f32, panel: *const f32, depth: usize, target: Target) {
        let mut sums = [[[_mm512_setzero_ps(); 2]; ROWS]; WAYS];
        let mut d = 0;
        while d < depth {
            for (way, sums) in sums.iter_mut().enumerate() {
                if d + way >= depth {
                    break;
                }
                // SAFETY: `d + way` is below `depth`, so all reads are inside the slices, as the caller promises.
                unsafe {
                    let line = panel.add((d + way) * NR);
                    let values = [_mm512_loadu_ps(line), _mm512_loadu_ps(line.add(16))];
                    for (row, sum) in sums.iter_mut().enumerate() {
                        let factor = _mm512_set1_ps(*x.add(row * depth + d + way));
                        sum[0] = _mm512_fmadd_ps(factor, values[0], sum[0]);
                        sum[1] = _mm512_fmadd_ps(factor, values[1], sum[1]);
                    }
                }
            }
            d += WAYS;
        }
        // SAFETY: the caller's promise on the target.
        unsafe { put(&total(sums), target) };
    }

    /// # Safety
    /// As [`rows_bf16`], with ROWS the target's height; a word is a pair of bf16 bit patterns.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn bf16_kernel<const ROWS: usize, const WAYS: usize>(x: *const i32, panel: *const i32, pairs: usize, target: Target) {
        let mut sums = [[[_mm512_setzero_ps(); 2]; ROWS]; WAYS];
        let mut d = 0;
        while d < pairs {
            for (way, sums) in sums.iter_mut().enumerate() {
                if d + way >= pairs {
                    break;
                }
                // SAFETY: `d + way` is below `pairs`, so all reads are inside the slices, as the caller promises; reads are unaligned ones.
                // The casts reinterpret vectors of 32 bf16 bit patterns, for which every pattern is a value.
                unsafe {
                    let line = panel.add((d + way) * NR);
                    let low: __m512bh = std::mem::transmute(_mm512_loadu_si512(line.cast()));
                    let high: __m512bh = std::mem::transmute(_mm512_loadu_si512(line.add(16).cast()));
                    for (row, sum) in sums.iter_mut().enumerate() {
                        let factor: __m512bh = std::mem::transmute(_mm512_set1_epi32(x.add(row * pairs + d + way).read_unaligned()));
                        sum[0] = _mm512_dpbf16_ps(sum[0], factor, low);
                        sum[1] = _mm512_dpbf16_ps(sum[1], factor, high);
                    }
                }
            }
            d += WAYS;
        }
        // SAFETY: the caller's promise on the target.
        unsafe { put(&total(sums), target) };
    }
}
