//! Softmax attention on unpermuted `[B, L, H * Dh]`, and the norm and rotation of queries and keys before it.

use half::bf16;
use rayon::prelude::*;

use crate::gemm::{Matrix, Precision, Scratch, new_product};
use crate::parts::{Parts, in_chunks};
use crate::simd::{Lanes, Stored, exp, fold, fold_products, larger, map_and_sum, multiversion};

/// Sizes of an attention.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Rows.
    pub batch: usize,
    /// Query positions.
    pub queries: usize,
    /// Key positions.
    pub keys: usize,
    /// Rows of k and v in memory for each row of the batch: `keys`, or more where they have room for positions to come.
    pub key_room: usize,
    /// Heads.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

/// Multiply-adds, or values, under which threads cost more than they bring.
const SERIAL: usize = 1 << 16;

impl Shape {
    fn width(&self) -> usize {
        self.heads * self.head_dim
    }
}

/// An additive mask `[rows, queries, keys]`, one row for all or one each.
#[derive(Debug, Clone, Copy)]
pub struct Mask<'a> {
    /// Values.
    pub values: &'a [f32],
    /// 1 or the batch size.
    pub rows: usize,
}

multiversion! {
    fn softmax_rows(scores: &mut [f32], mask: Option<&[f32]>, keys: usize, scale: f32) {
        for (index, row) in scores.chunks_exact_mut(keys).enumerate() {
            let lanes = match mask {
                Some(mask) => scale_and_mask(row, &mask[index * keys..][..keys], scale),
                None => {
                    row.iter_mut().for_each(|s| *s *= scale);
                    fold(row, f32::NEG_INFINITY, larger)
                }
            };
            let max = lanes.into_iter().fold(f32::NEG_INFINITY, f32::max);
            let lanes = map_and_sum(row, |s| {
                // The approximation of exp is clamped; what is hidden must weigh exactly 0.
                let difference = s - max;
                if difference < -86.0 { 0.0 } else { exp(difference) }
            });
            let inverse = 1.0 / lanes.iter().sum::<f32>();
            row.iter_mut().for_each(|s| *s *= inverse);
        }
    }
}

/// `s = s * scale + m`, and the largest of them in lanes.
#[inline(always)]
fn scale_and_mask(row: &mut [f32], mask: &[f32], scale: f32) -> Lanes {
    let mut lanes: Lanes = [f32::NEG_INFINITY; 16];
    let ((chunks, rest), (masks, rest_mask)) = (row.as_chunks_mut::<16>(), mask.as_chunks::<16>());
    for (chunk, mask) in chunks.iter_mut().zip(masks) {
        for ((lane, s), m) in lanes.iter_mut().zip(chunk).zip(mask) {
            *s = *s * scale + m;
            *lane = larger(*lane, *s);
        }
    }
    // Another array, as in `simd::fold`.
    let mut all = lanes;
    for ((lane, s), m) in all.iter_mut().zip(rest).zip(rest_mask) {
        *s = *s * scale + m;
        *lane = larger(*lane, *s);
    }
    all
}

multiversion! {
    /// `ds = p * (dp - sum(dp * p)) * scale` row by row, in place of dp.
    fn softmax_backward(dp: &mut [f32], p: &[f32], keys: usize, scale: f32) {
        for (dp, p) in dp.chunks_exact_mut(keys).zip(p.chunks_exact(keys)) {
            let dot = fold_products(dp, p).iter().sum::<f32>();
            dp.iter_mut().zip(p).for_each(|(dp, p)| *dp = p * (*dp - dot) * scale);
        }
    }
}

/// The part of one head in one row: a strided view of `[length, head_dim]`, the rows of the batch being `room` positions apart.
fn head<'a>(x: &'a [f32], shape: Shape, [length, room]: [usize; 2], b: usize, h: usize) -> Matrix<'a> {
    Matrix {
        data: &x[b * room * shape.width() + h * shape.head_dim..],
        rows: length,
        cols: shape.head_dim,
        row_stride: shape.width(),
        col_stride: 1,
    }
}

/// Rows of the batch that one task puts back.
const UNPERMUTED: usize = 32;

/// Puts `[batch * heads][length, head_dim]` back to `[batch, room, heads * head_dim]`, zeros behind each length.
fn unpermute(parts: &[Vec<f32>], shape: Shape, room: usize) -> Vec<f32> {
    let (width, head_dim) = (shape.width(), shape.head_dim);
    in_chunks(shape.batch * room * width, UNPERMUTED * width, |chunk, out| {
        for (row, out) in out.chunks_exact_mut(width).enumerate() {
            let (b, position) = ((chunk * UNPERMUTED + row) / room, (chunk * UNPERMUTED + row) % room);
            for (part, out) in parts[b * shape.heads..].iter().zip(out.chunks_exact_mut(head_dim)) {
                if let Some(values) = part.get(position * head_dim..(position + 1) * head_dim) {
                    out.copy_from_slice(values);
                }
            }
        }
    })
}

/// `softmax(q k^T / sqrt(head_dim) + mask) v`: the result `[batch, queries, width]` and the weights `[batch * heads][queries, keys]`.
pub fn forward(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    mask: Option<Mask<'_>>,
    shape: Shape,
    precision: Precision,
) -> (Vec<f32>, Vec<Vec<f32>>) {
    let Shape { batch, queries, keys, heads, head_dim, .. } = shape;
    let scale = 1.0 / (head_dim as f32).sqrt();
    let work = |index: usize| {
        let (b, h) = (index / heads, index % heads);
        let product = |a, b| new_product(a, b, None, precision, false);
        let mut p = product(head(q, shape, [queries; 2], b, h), head(k, shape, [keys, shape.key_room], b, h).t());
        let mask = mask.map(|mask| &mask.values[(b % mask.rows) * queries * keys..][..queries * keys]);
        softmax_rows(&mut p, mask, keys, scale);
        (product(Matrix::new(&p, queries, keys), head(v, shape, [keys, shape.key_room], b, h)), p)
    };
    let heads_in_all = 0..batch * heads;
    let (outputs, weights): (Vec<_>, Vec<_>) = if batch * queries * keys * shape.width() <= SERIAL {
        heads_in_all.map(work).unzip()
    } else {
        heads_in_all.into_par_iter().map(work).unzip()
    };
    (unpermute(&outputs, shape, queries), weights)
}

/// Rows of queries that are scored at a time: their scores stay in the second-level cache.
const BLOCK: usize = 48;
/// Most queries that are worked on one by one, straight from unpacked keys and values.
const FEW: usize = 2;

/// Keys, and values behind them, `[rows, room, width]` each, as they are kept.
#[derive(Debug, Clone, Copy)]
pub enum KeysValues<'a> {
    /// As they were computed.
    F32([&'a [f32]; 2]),
    /// Rounded, in half the memory.
    Bf16([&'a [bf16]; 2]),
}

/// Keys and values that come before those of an attention: those of a prompt, which many passes share.
#[derive(Debug, Clone, Copy)]
pub struct Past<'a> {
    /// `[rows, room, width]` each.
    pub keys_values: KeysValues<'a>,
    /// Positions that count.
    pub keys: usize,
    /// Positions in memory.
    pub room: usize,
    /// 1 or the batch size.
    pub rows: usize,
}

multiversion! {
    /// Rows of `len` values, `stride` apart in x.
    fn widen(x: &[bf16], stride: usize, len: usize, out: &mut [f32]) {
        for (out, x) in out.chunks_exact_mut(len).zip(x.chunks(stride)) {
            out.iter_mut().zip(x).for_each(|(out, x)| *out = x.wide());
        }
    }
}

/// A head's keys (0) or values (1), widened into `wide` where they are kept rounded.
fn kept_head<'a>(
    kept: KeysValues<'a>,
    which: usize,
    wide: &'a mut Vec<f32>,
    shape: Shape,
    [length, room]: [usize; 2],
    b: usize,
    h: usize,
) -> Matrix<'a> {
    match kept {
        KeysValues::F32(kept) => head(kept[which], shape, [length, room], b, h),
        KeysValues::Bf16(kept) => {
            wide.resize(length * shape.head_dim, 0.0);
            widen(&kept[which][b * room * shape.width() + h * shape.head_dim..], shape.width(), shape.head_dim, wide);
            Matrix::new(wide, length, shape.head_dim)
        }
    }
}

/// The result of [`forward`] alone, without the weights: for inference. Scores live only as long as a block of queries needs them. The mask
/// knows of the keys of `past` as well, which come first.
pub fn infer(
    q: &[f32],
    keys_values: KeysValues<'_>,
    past: Option<Past<'_>>,
    mask: Option<Mask<'_>>,
    shape: Shape,
    precision: Precision,
) -> Vec<f32> {
    let Shape { batch, queries, keys, heads, head_dim, .. } = shape;
    if queries <= FEW && past.is_none() {
        return match keys_values {
            KeysValues::F32([k, v]) => few(q, k, v, mask, shape),
            KeysValues::Bf16([k, v]) => few(q, k, v, mask, shape),
        };
    }
    let width = shape.width();
    let scale = 1.0 / (head_dim as f32).sqrt();
    let before = past.map_or(0, |past| past.keys);
    let all_keys = before + keys;
    let mut out = Vec::with_capacity(batch * queries * width);
    let parts = Parts(out.as_mut_ptr());
    let work = |([k_packed, v_packed, k_past, v_past], [scores, wide]): &mut ([Scratch; 4], [Vec<f32>; 2]), index: usize| {
        let (b, h) = (index / heads, index % heads);
        let pack = |kept, k: &mut Scratch, v: &mut Scratch, wide: &mut Vec<f32>, lengths, b| {
            k.pack(kept_head(kept, 0, wide, shape, lengths, b, h).t(), precision);
            v.pack(kept_head(kept, 1, wide, shape, lengths, b, h), precision);
        };
        pack(keys_values, k_packed, v_packed, wide, [keys, shape.key_room], b);
        if let Some(past) = &past {
            pack(past.keys_values, k_past, v_past, wide, [past.keys, past.room], b % past.rows);
        }
        let q = head(q, shape, [queries; 2], b, h);
        let mask = mask.map(|mask| &mask.values[(b % mask.rows) * queries * all_keys..][..queries * all_keys]);
        for first in (0..queries).step_by(BLOCK) {
            let rows = BLOCK.min(queries - first);
            scores.resize(rows * all_keys, 0.0);
            let q = Matrix { data: &q.data[first * width..], rows, ..q };
            if before > 0 {
                k_past.product(q, scores, all_keys);
            }
            k_packed.product(q, &mut scores[before..], all_keys);
            softmax_rows(scores, mask.map(|mask| &mask[first * all_keys..]), all_keys, scale);
            let place = (b * queries + first) * width + h * head_dim;
            let weights = |first: usize, cols| Matrix { data: &scores[first..], rows, cols, row_stride: all_keys, col_stride: 1 };
            // SAFETY: a head's columns of a row of the batch are written by this task alone; `out` lives until all tasks are done, and has
            // values where the second product is added.
            unsafe {
                if before > 0 {
                    v_past.product_at(weights(0, before), parts.at(place), width, false);
                }
                v_packed.product_at(weights(before, keys), parts.at(place), width, before > 0);
            }
        }
    };
    let tasks = 0..batch * heads;
    if batch * queries * all_keys * width <= SERIAL {
        let mut memory = Default::default();
        tasks.for_each(|index| work(&mut memory, index));
    } else {
        tasks.into_par_iter().for_each_init(Default::default, work);
    }
    // SAFETY: there is room for that many, and the products have written every head's columns of every row.
    unsafe { out.set_len(batch * queries * width) };
    out
}

/// Few queries: decoding. Keys and values are read once, in the order of memory, for all heads of a task.
fn few<T: Stored>(q: &[f32], k: &[T], v: &[T], mask: Option<Mask<'_>>, shape: Shape) -> Vec<f32> {
    let Shape { batch, queries, keys, heads, head_dim, .. } = shape;
    let width = shape.width();
    let scale = 1.0 / (head_dim as f32).sqrt();
    let parallel = batch * queries * keys * width > SERIAL;
    let per_task = if parallel { heads.div_ceil((2 * rayon::current_num_threads()).div_ceil(batch)) } else { heads };
    let work = |(index, out): (usize, &mut [f32])| {
        // `out` is one row of the batch and query, cut into groups of heads.
        let groups = heads.div_ceil(per_task);
        let (row, first) = (index / groups, index % groups * per_task);
        let b = row / queries;
        let columns = first * head_dim..first * head_dim + out.len();
        let start = b * shape.key_room * width;
        let mut scores = vec![0.0; out.len() / head_dim * keys];
        dots(&q[row * width..][columns.clone()], &k[start + columns.start..], width, head_dim, keys, &mut scores);
        let mask = mask.map(|mask| &mask.values[((b % mask.rows) * queries + row % queries) * keys..][..keys]);
        scores.chunks_exact_mut(keys).for_each(|scores| softmax_rows(scores, mask, keys, scale));
        mix(&scores, &v[start + columns.start..], width, head_dim, keys, out);
    };
    let mut out = vec![0.0; batch * queries * width];
    if parallel {
        // Groups of heads must not straddle rows: the last one of a row may be smaller.
        out.par_chunks_exact_mut(width)
            .enumerate()
            .flat_map(|(row, out)| {
                let groups = heads.div_ceil(per_task);
                out.par_chunks_mut(per_task * head_dim).enumerate().map(move |(group, out)| (row * groups + group, out))
            })
            .for_each(work);
    } else {
        out.chunks_exact_mut(width).enumerate().for_each(work);
    }
    out
}

multiversion! {
    /// Products of each head of `q` with that head of `keys` rows, `stride` apart: `[heads][keys]`.
    fn dots<T: Stored>(q: &[f32], k: &[T], stride: usize, head_dim: usize, keys: usize, scores: &mut [f32]) {
        for key in 0..keys {
            let k = &k[key * stride..][..q.len()];
            for (head, (q, k)) in q.chunks_exact(head_dim).zip(k.chunks_exact(head_dim)).enumerate() {
                scores[head * keys + key] = fold_products(q, k).iter().sum();
            }
        }
    }
}

multiversion! {
    /// Adds to each head of `out` that head of `keys` rows of v, `stride` apart, each times its weight.
    fn mix<T: Stored>(weights: &[f32], v: &[T], stride: usize, head_dim: usize, keys: usize, out: &mut [f32]) {
        for key in 0..keys {
            let v = &v[key * stride..][..out.len()];
            for (head, (out, v)) in out.chunks_exact_mut(head_dim).zip(v.chunks_exact(head_dim)).enumerate() {
                let weight = weights[head * keys + key];
                out.iter_mut().zip(v).for_each(|(out, v)| *out += weight * v.wide());
            }
        }
    }
}

/// Gradients of q, k and v from the output's gradient and the weights of [`forward`].
pub fn backward([q, k, v]: [&[f32]; 3], weights: &[Vec<f32>], dout: &[f32], shape: Shape, precision: Precision) -> [Vec<f32>; 3] {
    let Shape { queries, keys, heads, head_dim, .. } = shape;
    let scale = 1.0 / (head_dim as f32).sqrt();
    let mut parts: [Vec<Vec<f32>>; 3] = Default::default();
    let all: Vec<[Vec<f32>; 3]> = weights
        .par_iter()
        .enumerate()
        .map(|(index, p)| {
            let (b, h) = (index / heads, index % heads);
            let dout = head(dout, shape, [queries; 2], b, h);
            let p_matrix = Matrix::new(p, queries, keys);
            let product = |a, b| new_product(a, b, None, precision, false);
            let dv = product(p_matrix.t(), dout);
            let mut ds = product(dout, head(v, shape, [keys, shape.key_room], b, h).t());
            softmax_backward(&mut ds, p, keys, scale);
            let ds = Matrix::new(&ds, queries, keys);
            let dq = product(ds, head(k, shape, [keys, shape.key_room], b, h));
            [dq, product(ds.t(), head(q, shape, [queries; 2], b, h)), dv]
        })
        .collect();
    for triple in all {
        for (part, values) in parts.iter_mut().zip(triple) {
            part.push(values);
        }
    }
    [
        unpermute(&parts[0], shape, queries),
        unpermute(&parts[1], shape, shape.key_room),
        unpermute(&parts[2], shape, shape.key_room),
    ]
}

/// Rotary tables `[rows, length, dims]`, one row for all or one each.
#[derive(Debug, Clone, Copy)]
pub struct Tables<'a> {
    /// Cosines.
    pub cos: &'a [f32],
    /// Sines.
    pub sin: &'a [f32],
    /// 1 or the batch size.
    pub rows: usize,
    /// Rotated dims of a head.
    pub dims: usize,
}

/// Rotates every head of `x` `[batch, length, heads * head_dim]` in place; `inverse` turns back, which is also the gradient.
pub fn rotate(x: &mut [f32], tables: Tables<'_>, [batch, length, heads, head_dim]: [usize; 4], inverse: bool) {
    debug_assert_eq!(x.len(), batch * length * heads * head_dim);
    let half = tables.dims / 2;
    let sign = if inverse { -1.0 } else { 1.0 };
    let work = |(row, x): (usize, &mut [f32])| {
        let (b, position) = (row / length, row % length);
        let start = ((b % tables.rows) * length + position) * tables.dims;
        let (cos, sin) = (&tables.cos[start..start + half], &tables.sin[start..start + half]);
        for head in x.chunks_exact_mut(head_dim) {
            let (first, rest) = head.split_at_mut(half);
            for (((a, b), &c), &s) in first.iter_mut().zip(&mut rest[..half]).zip(cos).zip(sin) {
                let (turned_a, turned_b) = (*a * c - *b * s * sign, *b * c + *a * s * sign);
                (*a, *b) = (turned_a, turned_b);
            }
        }
    };
    if x.len() <= SERIAL {
        x.chunks_exact_mut(heads * head_dim).enumerate().for_each(work);
    } else {
        x.par_chunks_exact_mut(heads * head_dim).with_min_len(16).enumerate().for_each(work);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::at_every_level;

    fn values(count: usize, seed: u32) -> Vec<f32> {
        (0..count as u32).map(|i| ((i ^ seed).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    #[test]
    fn inference_equals_the_form_that_keeps_its_weights_whatever_the_room_behind_the_keys() {
        at_every_level(|level| {
            for (batch, queries, keys, heads, head_dim, rows) in
                [(1, 1, 1, 1, 4, 1), (2, 1, 37, 3, 20, 2), (1, 2, 300, 32, 64, 1), (2, 3, 5, 2, 8, 1), (2, 100, 131, 3, 33, 2)]
            {
                let width = heads * head_dim;
                let shape = Shape { batch, queries, keys, key_room: keys, heads, head_dim };
                let [q, k, v] = [(queries, 1), (keys, 2), (keys, 3)].map(|(length, seed)| values(batch * length * width, seed));
                // Keys and values that bf16 holds exactly.
                let [k, v] = [k, v].map(|x| x.into_iter().map(|x| bf16::from_f32(x).to_f32()).collect::<Vec<_>>());
                let narrow = |x: &[f32]| x.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>();
                let mask: Vec<f32> =
                    values(rows * queries * keys, 4).iter().map(|v| if *v < -0.5 { -1e9 } else { 0.0 }).collect();
                let mask = Mask { values: &mask, rows };
                let expected = forward(&q, &k, &v, Some(mask), shape, Precision::F32).0;
                for room in [0, 7] {
                    let roomy = |x: &[f32]| -> Vec<f32> {
                        x.chunks_exact(keys * width).flat_map(|x| x.iter().copied().chain(vec![f32::NAN; room * width])).collect()
                    };
                    let shape = Shape { key_room: keys + room, ..shape };
                    let near = |found: Vec<f32>, what: &str| {
                        for (found, expected) in found.iter().zip(&expected) {
                            assert!((found - expected).abs() < 1e-5, "{level:?} {what} {shape:?}: {found} and {expected}");
                        }
                    };
                    // The same keys in two parts, of which the first is held with room behind it.
                    let before = keys / 3;
                    let cut = |x: &[f32]| -> Vec<f32> {
                        x.chunks_exact(keys * width).flat_map(|x| x[before * width..].to_vec()).collect()
                    };
                    let rest = Shape { keys: keys - before, key_room: keys - before, ..shape };
                    let (all, rests) = ([roomy(&k), roomy(&v)], [cut(&k), cut(&v)]);
                    let narrow_all = [narrow(&all[0]), narrow(&all[1])];
                    for (kept, what) in [
                        (KeysValues::F32([&all[0], &all[1]]), "f32"),
                        (KeysValues::Bf16([&narrow_all[0], &narrow_all[1]]), "bf16"),
                    ] {
                        near(infer(&q, kept, None, Some(mask), shape, Precision::F32), what);
                        let past = Past { keys_values: kept, keys: before, room: keys + room, rows: batch };
                        let found =
                            infer(&q, KeysValues::F32([&rests[0], &rests[1]]), Some(past), Some(mask), rest, Precision::F32);
                        near(found, &format!("after a past in {what}"));
                    }
                }
            }
        });
    }
}
