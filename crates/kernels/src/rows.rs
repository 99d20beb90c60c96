//! Whole passes over rows of hidden states, each value written once by all threads: sums of branches, means, mixtures.

use std::mem::MaybeUninit;
use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use crate::gemm::bf16_bits;
use crate::simd::multiversion;

/// Values under which threads cost more than they bring.
const SERIAL: usize = 1 << 15;

/// A vector of `len` values whose chunks are written by `write(index of the chunk, chunk)`, which must write every value.
///
/// # Safety
/// `write` writes every value of its chunk.
unsafe fn written<T: Send>(len: usize, chunk: usize, write: impl Fn(usize, &mut [MaybeUninit<T>]) + Sync) -> Vec<T> {
    let mut out = Vec::with_capacity(len);
    let room = &mut out.spare_capacity_mut()[..len];
    if len <= SERIAL {
        room.chunks_mut(chunk.max(1)).enumerate().for_each(|(index, out)| write(index, out));
    } else {
        room.par_chunks_mut(chunk.max(1)).enumerate().for_each(|(index, out)| write(index, out));
    }
    // SAFETY: the caller promises that every chunk was written, and the chunks cover all values.
    unsafe { out.set_len(len) };
    out
}

multiversion! {
    fn sum_chunk(out: &mut [MaybeUninit<f32>], parts: [&[f32]; 4], count: usize) {
        let [a, b, c, d] = parts;
        if count == 4 {
            for ((((out, a), b), c), d) in out.iter_mut().zip(a).zip(b).zip(c).zip(d) {
                out.write(a + b + c + d);
            }
        } else {
            for (((out, a), b), c) in out.iter_mut().zip(a).zip(b).zip(c) {
                out.write(a + b + c);
            }
        }
    }
}

/// `a + b + c`, or `a + b + c + d`, in this order.
///
/// # Panics
/// If the parts differ in length: callers own the shapes.
pub fn sum(a: &[f32], b: &[f32], c: &[f32], d: Option<&[f32]>) -> Vec<f32> {
    const CHUNK: usize = 1 << 14;
    let parts = [a, b, c, d.unwrap_or(a)];
    assert!(parts.iter().all(|part| part.len() == a.len()), "parts of a sum");
    let count = if d.is_some() { 4 } else { 3 };
    // SAFETY: the parts are as long as the chunk, so that all of it is written.
    unsafe {
        written(a.len(), CHUNK, |index, out| {
            let range = index * CHUNK..index * CHUNK + out.len();
            sum_chunk(out, parts.map(|part| &part[range.clone()]), count);
        })
    }
}

/// Copies of all values of `from` into `to`, which is as long.
fn copy(to: &mut [MaybeUninit<f32>], from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| {
        to.write(*from);
    });
}

/// The positions `range` of `x` `[batch, length, width]`: `[batch, positions, width]`.
///
/// # Panics
/// If the sizes don't fit: callers own the shapes.
pub fn part(x: &[f32], length: usize, width: usize, range: Range<usize>) -> Vec<f32> {
    let batch = x.len() / (length * width).max(1);
    assert!(x.len() == batch * length * width && range.end <= length, "a part of rows");
    // SAFETY: x has a row for each row that is written.
    unsafe {
        written(batch * range.len() * width, width, |row, out| {
            let (b, position) = (row / range.len(), row % range.len());
            copy(out, &x[(b * length + range.start + position) * width..][..width]);
        })
    }
}

/// The reverse of [`part`]: its positions from `start` in `[batch, length, width]`, zeros elsewhere.
///
/// # Panics
/// If the sizes don't fit: callers own the shapes.
pub fn placed(part: &[f32], batch: usize, length: usize, width: usize, start: usize) -> Vec<f32> {
    let positions = part.len() / (batch * width).max(1);
    assert!(part.len() == batch * positions * width && start + positions <= length, "a part of rows");
    // SAFETY: the part has a row for each row that is written of it, and both branches write all of their row.
    unsafe {
        written(batch * length * width, width, |row, out| {
            let (b, position) = (row / length, row % length);
            if (start..start + positions).contains(&position) {
                copy(out, &part[(b * positions + position - start) * width..][..width]);
            } else {
                out.fill(MaybeUninit::new(0.0));
            }
        })
    }
}

multiversion! {
    fn add_row(out: &mut [MaybeUninit<f32>], x: &[f32], y: &[f32]) {
        out.iter_mut().zip(x).zip(y).for_each(|((out, x), y)| {
            out.write(x + y);
        });
    }
}

/// `x` `[batch, length, width]` with `y` `[batch, positions, width]` added from position `start` on.
///
/// # Panics
/// If the sizes don't fit: callers own the shapes.
pub fn added_to_part(x: &[f32], y: &[f32], length: usize, width: usize, start: usize) -> Vec<f32> {
    let batch = x.len() / (length * width).max(1);
    let positions = y.len() / (batch * width).max(1);
    assert!(
        x.len() == batch * length * width && y.len() == batch * positions * width && start + positions <= length,
        "a part of rows"
    );
    // SAFETY: x and y have a row for each row that is written from them, and both branches write all of their row.
    unsafe {
        written(x.len(), width, |row, out| {
            let (b, position) = (row / length, row % length);
            let x = &x[row * width..][..width];
            if (start..start + positions).contains(&position) {
                add_row(out, x, &y[(b * positions + position - start) * width..][..width]);
            } else {
                copy(out, x);
            }
        })
    }
}

multiversion! {
    fn round_chunk(out: &mut [MaybeUninit<bf16>], x: &[f32]) {
        out.iter_mut().zip(x).for_each(|(out, &x)| {
            out.write(bf16::from_bits(bf16_bits(x)));
        });
    }
}

/// The nearest numbers of bfloat16, ties to even.
pub fn rounded(x: &[f32]) -> Vec<bf16> {
    const CHUNK: usize = 1 << 14;
    // SAFETY: `x` has as many values as are written.
    unsafe { written(x.len(), CHUNK, |index, out| round_chunk(out, &x[index * CHUNK..][..out.len()])) }
}

multiversion! {
    fn add_scaled(sum: &mut [f32], x: &[f32], scale: f32) {
        sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += x * scale);
    }
}

/// Means over the positions `range` of `x` `[batch, length, width]`: `[batch, width]`.
///
/// # Panics
/// If the sizes don't fit: callers own the shapes.
pub fn mean(x: &[f32], length: usize, width: usize, range: Range<usize>) -> Vec<f32> {
    const COLUMNS: usize = 256;
    let batch = x.len() / (length * width).max(1);
    let scale = 1.0 / range.len().max(1) as f32;
    let mut out = vec![0.0; batch * width];
    out.par_chunks_mut(width.max(1)).enumerate().for_each(|(b, out)| {
        out.par_chunks_mut(COLUMNS).enumerate().for_each(|(part, out)| {
            for position in range.clone() {
                add_scaled(out, &x[(b * length + position) * width + part * COLUMNS..][..out.len()], 1.0);
            }
            out.iter_mut().for_each(|value| *value *= scale);
        });
    });
    out
}

multiversion! {
    fn mix_row(out: &mut [MaybeUninit<f32>], x: &[f32], n: &[f32], keep: f32, features: &[(&[f32], f32)]) {
        match features {
            [] => out.iter_mut().zip(x).zip(n).for_each(|((out, x), n)| {
                out.write(x + n * keep);
            }),
            [(f, weight)] => out.iter_mut().zip(x).zip(n).zip(*f).for_each(|(((out, x), n), f)| {
                out.write(x + (n * keep + f * weight));
            }),
            _ => {
                let (f, v) = features[0];
                let (g, w) = features[1];
                out.iter_mut().zip(x).zip(n).zip(f).zip(g).for_each(|((((out, x), n), f), g)| {
                    out.write(x + (n * keep + (f * v + g * w)));
                });
            }
        }
    }
}

/// A feature to mix in: `[1 or batch, positions, width]` and its weight in each row of the batch.
#[derive(Debug, Clone, Copy)]
pub struct Feature<'a> {
    /// Values.
    pub values: &'a [f32],
    /// Weights.
    pub weights: &'a [f32],
}

/// `x + keep n + Σ weight feature` at the positions `range` of `x` and `n` `[batch, length, width]`, and x elsewhere; at most two features,
/// whose positions are those of the range.
///
/// # Panics
/// If the sizes don't fit: callers own the shapes.
pub fn mix(
    x: &[f32],
    n: &[f32],
    keep: &[f32],
    features: &[Feature<'_>],
    length: usize,
    width: usize,
    range: Range<usize>,
) -> Vec<f32> {
    let part = range.len() * width;
    assert!(
        x.len() == n.len() && x.len() == keep.len() * length * width && range.end <= length && features.len() <= 2,
        "a mixture"
    );
    assert!(
        features.iter().all(|f| f.weights.len() == keep.len() && (f.values.len() == part || f.values.len() == part * keep.len()))
    );
    // SAFETY: x, n and features have a row for each row that is written, as the assertions say, and both branches write all of it.
    unsafe {
        written(x.len(), width, |row, out| {
            let (b, position) = (row / length, row % length);
            let x = &x[row * width..][..width];
            if !range.contains(&position) {
                copy(out, x);
                return;
            }
            let at = |f: &Feature<'_>| (if f.values.len() == part { 0 } else { b * part }) + (position - range.start) * width;
            let n = &n[row * width..][..width];
            match features {
                [] => mix_row(out, x, n, keep[b], &[]),
                [f] => mix_row(out, x, n, keep[b], &[(&f.values[at(f)..][..width], f.weights[b])]),
                [f, g, ..] => {
                    let pair = [f, g].map(|f| (&f.values[at(f)..][..width], f.weights[b]));
                    mix_row(out, x, n, keep[b], &pair);
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize, seed: u32) -> Vec<f32> {
        (0..count as u32).map(|i| ((i ^ seed).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    #[test]
    fn rounding_is_the_librarys() {
        let mut x = values(40_000, 1);
        x.extend([0.0, -0.0, f32::MAX, f32::MIN, f32::INFINITY, 1e-42, 1.003_906_3, 1.011_718_8, -1.011_718_8]);
        assert_eq!(rounded(&x).len(), x.len());
        assert!(rounded(&x).iter().zip(&x).all(|(found, &x)| found.to_bits() == bf16::from_f32(x).to_bits()));
        assert!(rounded(&[f32::NAN, f32::from_bits(u32::MAX), f32::from_bits(0x7F80_0001)]).iter().all(|x| x.is_nan()));
    }

    #[test]
    fn parts_are_taken_put_and_added() {
        for (batch, length, width, range) in [(1, 3, 5, 1..3), (2, 70, 300, 2..69), (3, 4, 2, 0..4), (1, 2, 3, 1..1)] {
            let x = values(batch * length * width, 1);
            let y = values(batch * range.len() * width, 2);
            let inside = |index: usize| {
                let (row, column) = (index / width, index % width);
                let (b, position) = (row / length, row % length);
                range.contains(&position).then(|| (b * range.len() + position - range.start) * width + column)
            };
            let taken = part(&x, length, width, range.clone());
            let put = placed(&y, batch, length, width, range.start);
            let added = added_to_part(&x, &y, length, width, range.start);
            assert_eq!((taken.len(), put.len(), added.len()), (y.len(), x.len(), x.len()));
            for index in 0..x.len() {
                let place = inside(index);
                assert_eq!(put[index], place.map_or(0.0, |place| y[place]));
                assert_eq!(added[index], place.map_or(x[index], |place| x[index] + y[place]));
                assert!(place.is_none_or(|place| taken[place] == x[index]));
            }
        }
    }

    #[test]
    fn sums_means_and_mixtures_follow_their_definitions() {
        for (batch, length, width, range) in [(1, 3, 5, 1..3), (2, 70, 300, 2..69)] {
            let [x, n] = [1, 2].map(|seed| values(batch * length * width, seed));
            let expected: Vec<f32> = x.iter().zip(&n).map(|(x, n)| x + n + x + n).collect();
            assert_eq!(sum(&x, &n, &x, Some(&n)), expected);
            let expected: Vec<f32> = x.iter().zip(&n).map(|(x, n)| x + n + n).collect();
            assert_eq!(sum(&x, &n, &n, None), expected);
            for (index, found) in mean(&x, length, width, range.clone()).iter().enumerate() {
                let (b, column) = (index / width, index % width);
                let all: f32 = range.clone().map(|position| x[(b * length + position) * width + column]).sum();
                assert!((found - all / range.len() as f32).abs() < 1e-5);
            }
            let (keep, v, w) = (values(batch, 3), values(batch, 4), values(batch, 5));
            let (one, each) = (values(range.len() * width, 6), values(batch * range.len() * width, 7));
            let features = [Feature { values: &one, weights: &v }, Feature { values: &each, weights: &w }];
            for count in 0..3 {
                let found = mix(&x, &n, &keep, &features[..count], length, width, range.clone());
                for (index, found) in found.iter().enumerate() {
                    let (row, column) = (index / width, index % width);
                    let (b, position) = (row / length, row % length);
                    let mut expected = x[index];
                    if range.contains(&position) {
                        let place = (position - range.start) * width + column;
                        expected += keep[b] * n[index];
                        expected += if count > 0 { v[b] * one[place] } else { 0.0 };
                        expected += if count > 1 { w[b] * each[b * range.len() * width + place] } else { 0.0 };
                    }
                    assert!((found - expected).abs() < 1e-5, "{count} features at {index}: {found} and {expected}");
                }
            }
        }
    }
}
