//! Packing with AVX-512: blocks of 16 lanes by 16 words, transposed in registers where memory runs along the depth.

use std::arch::x86_64::*;

use super::Source;

/// Transposes 16 x 16 words.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(rows: &mut [__m512i; 16]) {
    // Words of pairs of rows, then pairs of words, then quarters of vectors twice.
    let mut a = [_mm512_setzero_si512(); 16];
    for i in 0..8 {
        a[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    let mut b = [_mm512_setzero_si512(); 16];
    for i in 0..4 {
        b[4 * i] = _mm512_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 1] = _mm512_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 2] = _mm512_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
        b[4 * i + 3] = _mm512_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
    }
    // b[4 i + c] holds, in quarter q, word 4 q + c of rows 4 i .. 4 i + 4.
    for c in 0..4 {
        let low = _mm512_shuffle_i32x4::<0x88>(b[c], b[4 + c]);
        let high = _mm512_shuffle_i32x4::<0xDD>(b[c], b[4 + c]);
        let low2 = _mm512_shuffle_i32x4::<0x88>(b[8 + c], b[12 + c]);
        let high2 = _mm512_shuffle_i32x4::<0xDD>(b[8 + c], b[12 + c]);
        rows[c] = _mm512_shuffle_i32x4::<0x88>(low, low2);
        rows[8 + c] = _mm512_shuffle_i32x4::<0xDD>(low, low2);
        rows[4 + c] = _mm512_shuffle_i32x4::<0x88>(high, high2);
        rows[12 + c] = _mm512_shuffle_i32x4::<0xDD>(high, high2);
    }
}

#[inline(always)]
fn first(count: usize) -> u16 {
    if count >= 16 { u16::MAX } else { (1u16 << count) - 1 }
}

/// The values of `data` from `start`, at most 16 and at most `count`; the rest is 0.
#[inline]
#[target_feature(enable = "avx512f")]
fn load(data: &[f32], start: usize, count: usize) -> __m512 {
    let values = &data[start..start + count.min(16)];
    // SAFETY: the mask keeps the load inside `values`.
    unsafe { _mm512_maskz_loadu_ps(first(values.len()), values.as_ptr()) }
}

/// Puts the first `count` words of a vector at `start` of `out`.
#[inline]
#[target_feature(enable = "avx512f")]
fn store<T: Copy>(out: &mut [T], start: usize, count: usize, vector: __m512i) {
    let values = &mut out[start..start + count * 4 / size_of::<T>()];
    // SAFETY: the mask keeps the store inside `values`, which is `count` words of plain numbers.
    unsafe { _mm512_mask_storeu_epi32(values.as_mut_ptr().cast(), first(count), vector) }
}

/// Sixteen bf16 bit patterns, to nearest even, in the low halves of words.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn rounded(values: __m512) -> __m512i {
    // SAFETY: both types are 256 bits in which every pattern is a value.
    let bits: __m256i = unsafe { std::mem::transmute(_mm512_cvtneps_pbh(values)) };
    _mm512_cvtepu16_epi32(bits)
}

/// Sixteen words, each a pair of neighbouring values as bf16: the first eight words from `low`, the others from `high`.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn pairs(low: __m512, high: __m512) -> __m512i {
    // SAFETY: both types are 512 bits in which every pattern is a value.
    unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(high, low)) }
}

/// Packs a panel of W lanes, zeros in those that the matrix has none for; false, and nothing is written, where neither axis follows memory.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn pack_f32<const W: usize>(source: Source<'_>, out: &mut [f32]) -> bool {
    let Source { data, strides: [lane_stride, depth_stride], lane0, lanes, k0, depth } = source;
    if lane_stride == 1 {
        for d in 0..depth {
            let line = &data[(k0 + d) * depth_stride + lane0..][..lanes];
            if lanes == W {
                out[d * W..][..W].copy_from_slice(&line[..W]);
            } else {
                out[d * W..][..lanes].copy_from_slice(line);
                out[d * W..][lanes..W].fill(0.0);
            }
        }
        return true;
    }
    if depth_stride != 1 {
        return false;
    }
    for group in (0..W).step_by(16) {
        let (count, wide) = (lanes.saturating_sub(group).min(16), (W - group).min(16));
        for d0 in (0..depth).step_by(16) {
            let deep = (depth - d0).min(16);
            let mut block = [_mm512_setzero_si512(); 16];
            for (lane, row) in block.iter_mut().enumerate().take(count) {
                *row = _mm512_castps_si512(load(data, (lane0 + group + lane) * lane_stride + k0 + d0, deep));
            }
            transpose(&mut block);
            for (d, &row) in block.iter().enumerate().take(deep) {
                store(out, (d0 + d) * W + group, wide, row);
            }
        }
    }
    true
}

/// As [`pack_f32`], in pairs of depths rounded to bf16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) fn pack_bf16<const W: usize>(source: Source<'_>, out: &mut [u16]) -> bool {
    let Source { data, strides: [lane_stride, depth_stride], lane0, lanes, k0, depth } = source;
    if lane_stride != 1 && depth_stride != 1 {
        return false;
    }
    for group in (0..W).step_by(16) {
        let (count, wide) = (lanes.saturating_sub(group).min(16), (W - group).min(16));
        if lane_stride == 1 {
            for d in (0..depth).step_by(2) {
                let start = if count > 0 { (k0 + d) * depth_stride + lane0 + group } else { 0 };
                let even = rounded(load(data, start, count));
                let odd = match d + 1 < depth && count > 0 {
                    true => rounded(load(data, start + depth_stride, count)),
                    false => _mm512_setzero_si512(),
                };
                store(out, d * W + group * 2, wide, _mm512_or_si512(even, _mm512_slli_epi32::<16>(odd)));
            }
            continue;
        }
        for d0 in (0..depth).step_by(32) {
            let deep = (depth - d0).min(32);
            let mut block = [_mm512_setzero_si512(); 16];
            for (lane, row) in block.iter_mut().enumerate().take(count) {
                let start = (lane0 + group + lane) * lane_stride + k0 + d0;
                let high = if deep > 16 { load(data, start + 16, deep - 16) } else { _mm512_setzero_ps() };
                *row = pairs(load(data, start, deep), high);
            }
            transpose(&mut block);
            for (pair, &row) in block.iter().enumerate().take(deep.div_ceil(2)) {
                store(out, (d0 + 2 * pair) * W + group * 2, wide, row);
            }
        }
    }
    true
}

/// Packs 32 lanes in blocks of 32 depths, `[block][lane][depth]`, rounded to bf16, zeros in what the matrix has nothing for; false, and nothing
/// is written, where neither axis follows memory.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) fn pack_tiles(source: Source<'_>, out: &mut [u16]) -> bool {
    const LANES: usize = 32;
    const BLOCK: usize = 32;
    let Source { data, strides: [lane_stride, depth_stride], lane0, lanes, k0, depth } = source;
    if lane_stride != 1 && depth_stride != 1 {
        return false;
    }
    if depth_stride == 1 {
        for lane in 0..LANES {
            let row = &mut out[lane * BLOCK..];
            for d0 in (0..depth).step_by(BLOCK) {
                let words = if lane < lanes {
                    let (start, deep) = ((lane0 + lane) * lane_stride + k0 + d0, (depth - d0).min(BLOCK));
                    let high = if deep > 16 { load(data, start + 16, deep - 16) } else { _mm512_setzero_ps() };
                    pairs(load(data, start, deep), high)
                } else {
                    _mm512_setzero_si512()
                };
                store(row, d0 * LANES, 16, words);
            }
        }
        return true;
    }
    for group in (0..LANES).step_by(16) {
        let count = lanes.saturating_sub(group).min(16);
        for d0 in (0..depth).step_by(BLOCK) {
            let mut block = [_mm512_setzero_si512(); 16];
            if count > 0 {
                for (pair, words) in block.iter_mut().enumerate().take((depth - d0).div_ceil(2)) {
                    let d = d0 + 2 * pair;
                    let start = (k0 + d) * depth_stride + lane0 + group;
                    let even = rounded(load(data, start, count));
                    let odd = match d + 1 < depth {
                        true => rounded(load(data, start + depth_stride, count)),
                        false => _mm512_setzero_si512(),
                    };
                    *words = _mm512_or_si512(even, _mm512_slli_epi32::<16>(odd));
                }
                transpose(&mut block);
            }
            for (lane, &words) in block.iter().enumerate() {
                store(out, d0 * LANES + (group + lane) * BLOCK, 16, words);
            }
        }
    }
    true
}
