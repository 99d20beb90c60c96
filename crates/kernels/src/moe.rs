//! Routed experts: rows sorted by expert, one matrix product an expert on its rows only, forward and backward.

use std::cmp::Reverse;
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::activation::{self, Activation};
use crate::gemm::{Matrix, PackedMatrix, Precision, WeightFormat, gemm_serial, new_product};
use crate::parts::{in_chunks, in_turn};

/// Rows that one task adds up.
const ROWS: usize = 16;

/// Sizes of a bank of experts.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Width of a row.
    pub width: usize,
    /// Inner width of an expert.
    pub inner: usize,
    /// Experts.
    pub experts: usize,
    /// Choices a row.
    pub chosen: usize,
}

/// The two layers of all experts: `[experts, inner, width]`, `[experts, inner]`, `[experts, width, inner]`, `[experts, width]`.
#[derive(Debug, Clone, Copy)]
pub struct Weights<'a> {
    /// First matrices.
    pub w1: &'a [f32],
    /// First shifts.
    pub b1: &'a [f32],
    /// Second matrices.
    pub w2: &'a [f32],
    /// Second shifts.
    pub b2: &'a [f32],
}

/// The two layers of all experts, packed once for many passes.
#[derive(Debug, Clone)]
pub struct PackedExperts {
    first: Vec<PackedMatrix>,
    second: Vec<PackedMatrix>,
    b1: Vec<f32>,
    b2: Vec<f32>,
    format: WeightFormat,
}

impl PackedExperts {
    /// Packs the experts of a bank.
    pub fn new(weights: Weights<'_>, shape: Shape, format: WeightFormat) -> Self {
        let Shape { width, inner, .. } = shape;
        let pack = |values: &[f32], num_out: usize, num_in: usize| -> Vec<PackedMatrix> {
            values
                .chunks_exact(num_out * num_in)
                .map(|matrix| PackedMatrix::new(Matrix::new(matrix, num_out, num_in).t(), format))
                .collect()
        };
        Self {
            first: pack(weights.w1, inner, width),
            second: pack(weights.w2, width, inner),
            b1: weights.b1.to_vec(),
            b2: weights.b2.to_vec(),
            format,
        }
    }

    /// Experts that are packed already: one first and one second matrix each, and all shifts as in [`Weights`].
    pub fn from_matrices(first: Vec<PackedMatrix>, second: Vec<PackedMatrix>, b1: Vec<f32>, b2: Vec<f32>) -> Self {
        let format = first.first().map_or(WeightFormat::F32, PackedMatrix::format);
        Self { first, second, b1, b2, format }
    }

    /// Sizes, with `chosen` experts a row.
    pub fn shape(&self, chosen: usize) -> Shape {
        let [width, inner] = self.first.first().map_or([0, 0], |first| [first.rows(), first.cols()]);
        Shape { width, inner, experts: self.first.len(), chosen }
    }

    /// How the values are kept.
    pub fn format(&self) -> WeightFormat {
        self.format
    }

    /// Matrix and shift of each layer of an expert.
    fn layers(&self, expert: usize) -> [(&PackedMatrix, &[f32]); 2] {
        [(&self.first, &self.b1), (&self.second, &self.b2)].map(|(matrices, shifts)| {
            let matrix = &matrices[expert];
            (matrix, &shifts[expert * matrix.cols()..][..matrix.cols()])
        })
    }

    /// The values as packed: first matrices, first shifts, second matrices, second shifts, as in [`Weights`].
    pub fn unpack(&self) -> [Vec<f32>; 4] {
        let plain = |matrices: &[PackedMatrix]| {
            let mut out = Vec::new();
            for matrix in matrices {
                // Packed are transposes.
                let (values, rows, cols) = (matrix.unpack(), matrix.rows(), matrix.cols());
                out.extend((0..cols).flat_map(|j| (0..rows).map(move |i| (i, j))).map(|(i, j)| values[i * cols + j]));
            }
            out
        };
        [plain(&self.first), self.b1.clone(), plain(&self.second), self.b2.clone()]
    }
}

/// As [`forward`], with packed experts.
pub fn forward_packed(
    x: &[f32],
    index: &[i64],
    gates: &[f32],
    experts: &PackedExperts,
    act: Activation,
    shape: Shape,
) -> (Vec<f32>, Vec<Served>) {
    let run = |expert: usize, rows: &[usize]| {
        let x = Matrix::new(x, x.len() / shape.width, shape.width);
        let [(first, b1), (second, b2)] = experts.layers(expert);
        let before = first.forward_rows(x, rows, Some(b1), Activation::None);
        let mut hidden = before.clone();
        activation::forward(&mut hidden, act);
        let out = second.forward(Matrix::new(&hidden, rows.len(), shape.inner), Some(b2), Activation::None);
        (before, out)
    };
    serve(x.len() / shape.width, index, gates, shape, run)
}

/// The result of [`forward_packed`] alone, for inference: the activation is applied while the first product is put, and nothing is kept.
pub fn infer_packed(x: &[f32], index: &[i64], gates: &[f32], experts: &PackedExperts, act: Activation, shape: Shape) -> Vec<f32> {
    let run = |expert: usize, rows: &[usize]| {
        let x = Matrix::new(x, x.len() / shape.width, shape.width);
        let [(first, b1), (second, b2)] = experts.layers(expert);
        let hidden = first.forward_rows(x, rows, Some(b1), act);
        (Vec::new(), second.forward(Matrix::new(&hidden, rows.len(), shape.inner), Some(b2), Activation::None))
    };
    serve(x.len() / shape.width, index, gates, shape, run).0
}

/// What one expert did: the slots (`row * chosen + choice`) it served, in order of rows, and its inner values before the activation.
#[derive(Debug, Clone)]
pub struct Served {
    slots: Vec<usize>,
    before: Vec<f32>,
}

/// Gradients of [`forward`].
#[derive(Debug, Clone)]
pub struct Gradients {
    /// Of x.
    pub x: Vec<f32>,
    /// Of the gates.
    pub gates: Vec<f32>,
    /// Of the first matrices.
    pub w1: Vec<f32>,
    /// Of the first shifts.
    pub b1: Vec<f32>,
    /// Of the second matrices.
    pub w2: Vec<f32>,
    /// Of the second shifts.
    pub b2: Vec<f32>,
}

/// The rows that some slots belong to.
fn rows_of(slots: &[usize], shape: Shape) -> Vec<usize> {
    slots.iter().map(|slot| slot / shape.chosen).collect()
}

fn gather(x: &[f32], rows: &[usize], width: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(rows.len() * width);
    for row in rows {
        out.extend_from_slice(&x[row * width..][..width]);
    }
    out
}

/// `y_r = Σ_k gate[r, k] (act(x_r w1[e]^T + b1[e]) w2[e]^T + b2[e])` with `e = index[r, k]`, and what the backward pass needs. A choice
/// that names no expert counts as none.
pub fn forward(
    x: &[f32],
    index: &[i64],
    gates: &[f32],
    weights: Weights<'_>,
    act: Activation,
    shape: Shape,
    precision: Precision,
) -> (Vec<f32>, Vec<Served>) {
    let Shape { width, inner, .. } = shape;
    let layer = |expert: usize, x: &[f32], rows: usize, second: bool| {
        let (matrices, bias, num_out, num_in) =
            if second { (weights.w2, weights.b2, width, inner) } else { (weights.w1, weights.b1, inner, width) };
        let matrix = Matrix::new(&matrices[expert * inner * width..][..inner * width], num_out, num_in);
        let bias = &bias[expert * num_out..][..num_out];
        new_product(Matrix::new(x, rows, num_in), matrix.t(), Some(bias), precision, false)
    };
    let run = |expert: usize, rows: &[usize]| {
        let before = layer(expert, &gather(x, rows, width), rows.len(), false);
        let mut hidden = before.clone();
        activation::forward(&mut hidden, act);
        let out = layer(expert, &hidden, rows.len(), true);
        (before, out)
    };
    serve(x.len() / width, index, gates, shape, run)
}

/// Sorts `num_rows` rows by expert and gives each expert its own. `run(expert, rows)` gives the inner values that are kept for the backward
/// pass, and what the expert makes of these rows.
fn serve(
    num_rows: usize,
    index: &[i64],
    gates: &[f32],
    shape: Shape,
    run: impl Fn(usize, &[usize]) -> (Vec<f32>, Vec<f32>) + Sync,
) -> (Vec<f32>, Vec<Served>) {
    let Shape { width, experts, .. } = shape;
    let mut slots = vec![Vec::new(); experts];
    for (slot, &expert) in index.iter().enumerate() {
        if let Some(list) = usize::try_from(expert).ok().and_then(|expert| slots.get_mut(expert)) {
            list.push(slot);
        }
    }
    let run = |expert: usize, slots: Vec<usize>| {
        let (before, out) = run(expert, &rows_of(&slots, shape));
        (out, Served { slots, before })
    };
    let (outputs, served): (Vec<Vec<f32>>, Vec<Served>) = largest_first(slots, Vec::len, run).into_iter().unzip();
    let y = by_row(num_rows, &served, shape, |y, slot, expert, place| {
        let (gate, out) = (gates[slot], &outputs[expert][place * width..][..width]);
        y.iter_mut().zip(out).for_each(|(y, out)| *y += gate * out);
    });
    (y, served)
}

/// What `work(place, item)` gives for each item, in their order. Threads take them one by one, the largest first: experts have very different
/// numbers of rows, and of halves one would be done long before the other.
fn largest_first<T: Send, R: Send + Sync>(
    items: Vec<T>,
    size: impl Fn(&T) -> usize,
    work: impl Fn(usize, T) -> R + Sync,
) -> Vec<R> {
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|&place| Reverse(size(&items[place])));
    let items: Vec<Mutex<Option<T>>> = items.into_iter().map(|item| Mutex::new(Some(item))).collect();
    let done: Vec<OnceLock<R>> = items.iter().map(|_| OnceLock::new()).collect();
    in_turn(order.len(), |turn| {
        let place = order[turn];
        let item = items[place].lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(item) = item {
            done[place].get_or_init(|| work(place, item));
        }
    });
    done.into_iter().filter_map(OnceLock::into_inner).collect()
}

/// `[rows, width]` from zeros by `add(row, slot, expert, place among the expert's rows)` for every slot that was served; a row adds up its
/// experts in their order.
fn by_row(rows: usize, served: &[Served], shape: Shape, add: impl Fn(&mut [f32], usize, usize, usize) + Sync) -> Vec<f32> {
    let Shape { width, chosen, .. } = shape;
    let mut places = vec![None; rows * chosen];
    for (expert, served) in served.iter().enumerate() {
        for (place, &slot) in served.slots.iter().enumerate() {
            places[slot] = Some((expert, place));
        }
    }
    in_chunks(rows * width, ROWS * width, |chunk, sums| {
        let mut order: Vec<usize> = (0..chosen).collect();
        for (row, sum) in sums.chunks_exact_mut(width).enumerate() {
            let slot = (chunk * ROWS + row) * chosen;
            let places = &places[slot..slot + chosen];
            order.sort_by_key(|&choice| places[choice]);
            for &choice in &order {
                if let Some((expert, place)) = places[choice] {
                    add(sum, slot + choice, expert, place);
                }
            }
        }
    })
}

/// Gradients of [`forward`].
#[allow(clippy::too_many_arguments)]
pub fn backward(
    x: &[f32],
    gates: &[f32],
    weights: Weights<'_>,
    served: &[Served],
    dy: &[f32],
    act: Activation,
    shape: Shape,
    precision: Precision,
) -> Gradients {
    let Shape { width, inner, experts, .. } = shape;
    let matrix = inner * width;
    let mut w1 = vec![0.0; experts * matrix];
    let mut b1 = vec![0.0; experts * inner];
    let mut w2 = vec![0.0; experts * matrix];
    let mut b2 = vec![0.0; experts * width];
    let tasks: Vec<_> = w1
        .chunks_exact_mut(matrix)
        .zip(b1.chunks_exact_mut(inner))
        .zip(w2.chunks_exact_mut(matrix).zip(b2.chunks_exact_mut(width)))
        .zip(served)
        .collect();
    let parts: Vec<(Vec<f32>, Vec<f32>)> = largest_first(
        tasks,
        |(_, served)| served.slots.len(),
        |expert, (((dw1, db1), (dw2, db2)), Served { slots, before })| {
            let rows = slots.len();
            let bias2 = &weights.b2[expert * width..][..width];
            let places = rows_of(slots, shape);
            let x = gather(x, &places, width);
            let mut dy = gather(dy, &places, width);
            let mut hidden = before.clone();
            activation::forward(&mut hidden, act);
            let weight2 = Matrix::new(&weights.w2[expert * matrix..][..matrix], width, inner);
            let mut d_hidden = new_product(Matrix::new(&dy, rows, width), weight2, None, precision, false);
            let mut d_gates = Vec::with_capacity(rows);
            for (((dy, hidden), d_hidden), &slot) in
                dy.chunks_exact_mut(width).zip(hidden.chunks_exact(inner)).zip(d_hidden.chunks_exact_mut(inner)).zip(slots)
            {
                let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
                d_gates.push(dot(d_hidden, hidden) + dot(dy, bias2));
                let gate = gates[slot];
                d_hidden.iter_mut().for_each(|d| *d *= gate);
                for (dy, db2) in dy.iter_mut().zip(db2.iter_mut()) {
                    *dy *= gate;
                    *db2 += *dy;
                }
            }
            activation::backward(&mut d_hidden, before, act);
            for row in d_hidden.chunks_exact(inner) {
                db1.iter_mut().zip(row).for_each(|(db1, d)| *db1 += d);
            }
            let d_before = Matrix::new(&d_hidden, rows, inner);
            gemm_serial(Matrix::new(&dy, rows, width).t(), Matrix::new(&hidden, rows, inner), dw2, false, precision);
            gemm_serial(d_before.t(), Matrix::new(&x, rows, width), dw1, false, precision);
            let weight1 = Matrix::new(&weights.w1[expert * matrix..][..matrix], inner, width);
            (new_product(d_before, weight1, None, precision, false), d_gates)
        },
    );
    let dx = by_row(x.len() / width, served, shape, |sum, _, expert, place| {
        let dx = &parts[expert].0[place * width..][..width];
        sum.iter_mut().zip(dx).for_each(|(sum, dx)| *sum += dx);
    });
    let mut gradients = Gradients { x: dx, gates: vec![0.0; gates.len()], w1, b1, w2, b2 };
    for ((_, d_gates), served) in parts.iter().zip(served) {
        for (&d_gate, &slot) in d_gates.iter().zip(&served.slots) {
            gradients.gates[slot] = d_gate;
        }
    }
    gradients
}
