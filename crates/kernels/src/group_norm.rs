//! Group norm over NHWC pictures with SiLU after it, forward and backward.

use rayon::prelude::*;

use crate::parts::in_pieces;
use crate::simd::{exp, multiversion};

/// Pixels that one task handles.
const PIXELS: usize = 256;

/// Sizes of a group norm.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Pictures.
    pub batch: usize,
    /// Pixels of a picture.
    pub pixels: usize,
    /// Channels, a multiple of `groups`.
    pub channels: usize,
    /// Groups of neighbouring channels.
    pub groups: usize,
}

impl Shape {
    /// The part of picture `b` from `start` on, as ranges of values.
    fn parts(&self) -> Vec<(usize, std::ops::Range<usize>)> {
        let mut parts = Vec::new();
        for b in 0..self.batch {
            for start in (0..self.pixels).step_by(PIXELS) {
                let end = (start + PIXELS).min(self.pixels);
                parts.push((b, (b * self.pixels + start) * self.channels..(b * self.pixels + end) * self.channels));
            }
        }
        parts
    }

    /// Mean over each group of sums over channels, spread back to the channels.
    fn group_means(&self, sums: &[f64]) -> Vec<f32> {
        let size = self.channels / self.groups;
        let count = (size * self.pixels) as f64;
        sums.chunks_exact(size).flat_map(|group| std::iter::repeat_n((group.iter().sum::<f64>() / count) as f32, size)).collect()
    }
}

/// Mean and inverse deviation of each channel's group, `[batch][channels]`.
#[derive(Debug, Clone)]
pub struct Moments {
    mean: Vec<Vec<f32>>,
    scale: Vec<Vec<f32>>,
}

multiversion! {
    fn sum_rows(x: &[f32], sums: &mut [f32]) {
        for row in x.chunks_exact(sums.len()) {
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
    }
}

multiversion! {
    /// Sums of `x - mean` and of its square.
    fn sum_distances(x: &[f32], mean: &[f32], sums: &mut [f32], squares: &mut [f32]) {
        for row in x.chunks_exact(mean.len()) {
            for (((sum, square), x), mean) in sums.iter_mut().zip(&mut *squares).zip(row).zip(mean) {
                *sum += x - mean;
                *square += (x - mean) * (x - mean);
            }
        }
    }
}

multiversion! {
    fn apply(x: &[f32], mean: &[f32], factor: &[f32], bias: &[f32], silu: bool, y: &mut [f32]) {
        let width = mean.len();
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            for ((((y, &x), &mean), &factor), &bias) in y.iter_mut().zip(x).zip(mean).zip(factor).zip(bias) {
                *y = (x - mean) * factor + bias;
            }
            if silu {
                y.iter_mut().for_each(|y| *y /= 1.0 + exp(-*y));
            }
        }
    }
}

multiversion! {
    /// `g = dy silu'(y)`, and the sums of g and g * normal.
    fn gradient_sums(x: &[f32], dy: &[f32], mean: &[f32], scale: &[f32], weight: &[f32], bias: &[f32], silu: bool,
        g: &mut [f32], sums: &mut [f32], products: &mut [f32])
    {
        let width = mean.len();
        for ((x, dy), g) in x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(g.chunks_exact_mut(width)) {
            let (mean, scale, weight, bias) = (&mean[..width], &scale[..width], &weight[..width], &bias[..width]);
            let (sums, products) = (&mut sums[..width], &mut products[..width]);
            for c in 0..width {
                let normal = (x[c] - mean[c]) * scale[c];
                let before = normal * weight[c] + bias[c];
                let s = 1.0 / (1.0 + exp(-before));
                let slope = if silu { s + before * s * (1.0 - s) } else { 1.0 };
                g[c] = dy[c] * slope;
                sums[c] += g[c];
                products[c] += g[c] * normal;
            }
        }
    }
}

multiversion! {
    /// `dx = (g w - mean(g w) - normal mean(g w normal)) scale`, g being in the place of dx.
    fn finish(x: &[f32], mean: &[f32], scale: &[f32], weight: &[f32], mean_g: &[f32], mean_gn: &[f32], dx: &mut [f32]) {
        let width = mean.len();
        for (x, dx) in x.chunks_exact(width).zip(dx.chunks_exact_mut(width)) {
            let (mean, scale, weight) = (&mean[..width], &scale[..width], &weight[..width]);
            let (mean_g, mean_gn) = (&mean_g[..width], &mean_gn[..width]);
            for c in 0..width {
                let normal = (x[c] - mean[c]) * scale[c];
                dx[c] = (dx[c] * weight[c] - mean_g[c] - normal * mean_gn[c]) * scale[c];
            }
        }
    }
}

/// Splits the parts of a buffer among tasks.
fn split<'a>(shape: &Shape, mut buffer: &'a mut [f32]) -> Vec<(usize, std::ops::Range<usize>, &'a mut [f32])> {
    let mut out = Vec::new();
    for (b, range) in shape.parts() {
        let (head, tail) = buffer.split_at_mut(range.len());
        out.push((b, range, head));
        buffer = tail;
    }
    out
}

/// What a part of a picture adds to the moments.
struct PartSums {
    picture: usize,
    pixels: f64,
    /// About each channel's mean, rounded; sums of distances from it and of their squares.
    mean: Vec<f32>,
    sums: Vec<f32>,
    squares: Vec<f32>,
}

/// Moments of each group of `x` `[batch, pixels, channels]`.
pub fn moments(x: &[f32], shape: Shape, eps: f32) -> Moments {
    // A part's distances are from its own mean and are summed while it is in the caches, so that the picture is read once.
    let part = |(picture, range): (usize, std::ops::Range<usize>)| {
        let zeros = || vec![0.0; shape.channels];
        let (mut mean, mut sums, mut squares) = (zeros(), zeros(), zeros());
        let pixels = range.len() / shape.channels;
        sum_rows(&x[range.clone()], &mut mean);
        mean.iter_mut().for_each(|mean| *mean /= pixels as f32);
        sum_distances(&x[range], &mean, &mut sums, &mut squares);
        PartSums { picture, pixels: pixels as f64, mean, sums, squares }
    };
    let parts: Vec<PartSums> = shape.parts().into_par_iter().map(part).collect();
    // In order of the parts, so that the number of threads doesn't show.
    let mut sums = vec![vec![0.0; shape.channels]; shape.batch];
    for part in &parts {
        for ((total, &mean), &sum) in sums[part.picture].iter_mut().zip(&part.mean).zip(&part.sums) {
            *total += part.pixels * f64::from(mean) + f64::from(sum);
        }
    }
    let mean: Vec<Vec<f32>> = sums.iter().map(|sums| shape.group_means(sums)).collect();
    let mut squares = vec![vec![0.0; shape.channels]; shape.batch];
    for part in &parts {
        let channels = part.mean.iter().zip(&mean[part.picture]).zip(part.sums.iter().zip(&part.squares));
        for (total, ((&part_mean, &mean), (&sum, &square))) in squares[part.picture].iter_mut().zip(channels) {
            // (x - mean)^2 is ((x - part mean) + (part mean - mean))^2.
            let apart = f64::from(part_mean) - f64::from(mean);
            *total += f64::from(square) + 2.0 * apart * f64::from(sum) + part.pixels * apart * apart;
        }
    }
    let scale = squares
        .iter()
        .map(|sums| shape.group_means(sums).into_iter().map(|variance| 1.0 / (variance + eps).sqrt()).collect())
        .collect();
    Moments { mean, scale }
}

/// `y = silu((x - mean) / deviation * weight + bias)`, the silu if asked.
pub fn forward(x: &[f32], weight: &[f32], bias: &[f32], moments: &Moments, shape: Shape, silu: bool) -> Vec<f32> {
    let factors: Vec<Vec<f32>> =
        moments.scale.iter().map(|scale| scale.iter().zip(weight).map(|(s, w)| s * w).collect()).collect();
    let parts = shape.parts();
    in_pieces(parts.iter().map(|(_, range)| range.len()), |part, y| {
        let (b, range) = &parts[part];
        apply(&x[range.clone()], &moments.mean[*b], &factors[*b], bias, silu, y);
    })
}

/// Gradients of [`forward`]: of x, weight and bias.
pub fn backward(
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    moments: &Moments,
    dy: &[f32],
    shape: Shape,
    silu: bool,
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let Moments { mean, scale } = moments;
    let channels = shape.channels;
    let mut dx = vec![0.0; x.len()];
    let parts: Vec<(usize, Vec<f32>, Vec<f32>)> = split(&shape, &mut dx)
        .into_par_iter()
        .map(|(b, range, g)| {
            let (mut sums, mut products) = (vec![0.0; channels], vec![0.0; channels]);
            let (x, dy) = (&x[range.clone()], &dy[range]);
            gradient_sums(x, dy, &mean[b], &scale[b], weight, bias, silu, g, &mut sums, &mut products);
            (b, sums, products)
        })
        .collect();
    // Summed in order of the parts, so that the number of threads doesn't show.
    let mut totals = vec![[vec![0.0f64; channels], vec![0.0; channels]]; shape.batch];
    for (b, sums, products) in parts {
        for (total, part) in totals[b].iter_mut().zip([sums, products]) {
            total.iter_mut().zip(part).for_each(|(total, part)| *total += f64::from(part));
        }
    }
    let weighted = |sums: &[f64]| -> Vec<f32> {
        let sums: Vec<f64> = sums.iter().zip(weight).map(|(sum, &w)| sum * f64::from(w)).collect();
        shape.group_means(&sums)
    };
    let means: Vec<[Vec<f32>; 2]> = totals.iter().map(|[sums, products]| [weighted(sums), weighted(products)]).collect();
    split(&shape, &mut dx)
        .into_par_iter()
        .for_each(|(b, range, dx)| finish(&x[range], &mean[b], &scale[b], weight, &means[b][0], &means[b][1], dx));
    let total = |which: usize| (0..channels).map(|c| totals.iter().map(|t| t[which][c]).sum::<f64>() as f32).collect();
    (dx, total(1), total(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_a_thousand_times_the_deviation_costs_the_variance_nothing() {
        // Three parts, the last one short, whose means drift.
        let shape = Shape { batch: 1, pixels: 2 * PIXELS + 45, channels: 6, groups: 2 };
        let noise = |i: usize| ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0;
        let x: Vec<f32> = (0..shape.pixels * 6).map(|i| 600.0 + i as f32 * 2e-4 + noise(i)).collect();
        let moments = moments(&x, shape, 0.0);
        for channel in 0..6 {
            let group: Vec<f64> =
                x.iter().enumerate().filter(|(i, _)| i % 6 / 3 == channel / 3).map(|(_, &x)| x.into()).collect();
            let mean = group.iter().sum::<f64>() / group.len() as f64;
            let variance = group.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / group.len() as f64;
            assert!((f64::from(moments.mean[0][channel]) - mean).abs() < 4e-5, "mean of channel {channel}");
            let found = f64::from(moments.scale[0][channel]).powi(-2);
            assert!((found / variance - 1.0).abs() < 2e-6, "variance of channel {channel}: {found}, {variance}");
        }
    }
}
