//! 3x3 convolutions at step 1 with a quarter of the multiply-adds: Winograd's minimal filtering F(4x4, 3x3).
//!
//! A tile of 4x4 output pixels needs 6x6 input pixels. Both they and the filters are evaluated at 6x6 points, where the convolution is a
//! product of a point's values alone: for each of the 36 points a matrix product over the channels (Lavin and Gray, arXiv 1509.09308). The points
//! 0, ±1/√2, ±√2 and infinity round half as much as the usual 0, ±1, ±2 (on points: Barabasz et al., arXiv 1803.10986), about twice what the sums
//! of patches round. All of it is f32; of a layer packed in bf16 the filters are rounded and nothing else.

use std::cell::Cell;

use rayon::prelude::*;

use super::Shape;
use crate::gemm::{Matrix, PANEL, PackedMatrix, panels_product};
use crate::lines::{Lines, lend};
use crate::parts::in_pieces;
use crate::simd::multiversion;

/// Output pixels of a tile along an axis.
const TILE: usize = 4;
/// Points along an axis, which are also the input pixels of a tile.
const POINTS: usize = TILE + 2;
/// Channels that are worked on together.
const LANES: usize = 16;
/// Output pixels of a picture from which on this was seen to be faster than patches (32x32 of 512 channels with AVX2); fewer were not tried.
const MIN_PIXELS: usize = 1024;
/// Tiles that a task works on at a time: their values at all points stay in the outer caches, and the filters are read once for all of them.
const GROUP: usize = 48;

type Lane = [f32; LANES];

/// Whether convolutions of this shape are done here. It doesn't depend on the number of pictures, so that a picture's values don't either.
pub(super) fn suits(shape: &Shape) -> bool {
    let [height, width] = shape.output();
    let plain = shape.kernel == [3, 3] && shape.stride == 1 && shape.padding == [1; 4];
    let channels = shape.channels > 0 && shape.channels.is_multiple_of(LANES) && shape.num_out > 0;
    plain && channels && height * width >= MIN_PIXELS
}

/// `a x + y`.
#[inline(always)]
fn add_times(a: f32, x: Lane, y: Lane) -> Lane {
    std::array::from_fn(|i| a * x[i] + y[i])
}

/// `y + x` and `y - x`.
#[inline(always)]
fn both(x: Lane, y: Lane) -> [Lane; 2] {
    [std::array::from_fn(|i| y[i] + x[i]), std::array::from_fn(|i| y[i] - x[i])]
}

#[inline(always)]
fn scaled(a: f32, x: Lane) -> Lane {
    x.map(|x| a * x)
}

/// The smaller of the points and the larger, beside 0 and infinity: ±1/√2 and ±√2, whose squares are 1/2 and 2.
const NEAR: f32 = std::f32::consts::FRAC_1_SQRT_2;
const FAR: f32 = std::f32::consts::SQRT_2;

/// Six pixels at six points, for the transposed convolution of polynomials (B^T of the papers): coefficients of the product of all
/// `x - point` but one.
#[inline(always)]
fn pixels_at_points(d: [Lane; POINTS]) -> [Lane; POINTS] {
    let [near, minus_near] = both(scaled(NEAR, add_times(-2.0, d[1], d[3])), add_times(-2.0, d[2], d[4]));
    let [far, minus_far] = both(scaled(FAR, add_times(-0.5, d[1], d[3])), add_times(-0.5, d[2], d[4]));
    let zero = add_times(-2.5, d[2], both(d[0], d[4])[0]);
    let infinity = add_times(-2.5, d[3], both(d[1], d[5])[0]);
    [zero, near, minus_near, far, minus_far, infinity]
}

/// Three taps at six points (G): values of a polynomial, divided by the product of a point's distances from the others.
#[inline(always)]
fn taps_at_points(g: [Lane; 3]) -> [Lane; POINTS] {
    let [near, minus_near] = both(scaled(NEAR, g[1]), add_times(0.5, g[2], g[0])).map(|values| scaled(-2.0 / 3.0, values));
    let [far, minus_far] = both(scaled(FAR, g[1]), add_times(2.0, g[2], g[0])).map(|values| scaled(1.0 / 6.0, values));
    [g[0], near, minus_near, far, minus_far, g[2]]
}

/// Values at six points as four output pixels (A^T): powers of the points.
#[inline(always)]
fn pixels_from_points(m: [Lane; POINTS]) -> [Lane; TILE] {
    let [near, near_odd] = both(m[2], m[1]);
    let [far, far_odd] = both(m[4], m[3]);
    let (near_odd, far_odd) = (scaled(NEAR, near_odd), scaled(FAR, far_odd));
    [
        both(both(near, far)[0], m[0])[0],
        both(near_odd, far_odd)[0],
        add_times(0.5, near, scaled(2.0, far)),
        both(add_times(0.5, near_odd, scaled(2.0, far_odd)), m[5])[0],
    ]
}

#[inline(always)]
fn lane(values: &[f32], place: usize) -> Lane {
    let mut lane = [0.0; LANES];
    lane.copy_from_slice(&values[place..place + LANES]);
    lane
}

multiversion! {
    /// Filters of a panel, `[9 taps, channels, PANEL]`, at the points: `[points, channels, PANEL]`.
    fn filters_of_panel(panel: &[f32], channels: usize, out: &mut [f32]) {
        for channel in 0..channels {
            for half in (0..PANEL).step_by(LANES) {
                let at = |tap: usize| lane(panel, (tap * channels + channel) * PANEL + half);
                let mut rows = [[[0.0; LANES]; 3]; POINTS];
                for x in 0..3 {
                    let column = taps_at_points([at(x), at(3 + x), at(6 + x)]);
                    for (row, value) in rows.iter_mut().zip(column) {
                        row[x] = value;
                    }
                }
                for (i, row) in rows.into_iter().enumerate() {
                    for (j, value) in taps_at_points(row).into_iter().enumerate() {
                        out[((i * POINTS + j) * channels + channel) * PANEL + half..][..LANES].copy_from_slice(&value);
                    }
                }
            }
        }
    }
}

multiversion! {
    /// The pixels of a tile, each with its channels, at the points: those of point p go to `out` from `p * stride`.
    fn tile_at_points(pixels: &[&[f32]; POINTS * POINTS], channels: usize, out: &mut [f32], stride: usize) {
        for channel in (0..channels).step_by(LANES) {
            let mut rows = [[[0.0; LANES]; POINTS]; POINTS];
            for x in 0..POINTS {
                let column = pixels_at_points(std::array::from_fn(|y| lane(pixels[y * POINTS + x], channel)));
                for (row, value) in rows.iter_mut().zip(column) {
                    row[x] = value;
                }
            }
            for (i, row) in rows.into_iter().enumerate() {
                for (j, value) in pixels_at_points(row).into_iter().enumerate() {
                    out[(i * POINTS + j) * stride + channel..][..LANES].copy_from_slice(&value);
                }
            }
        }
    }
}

multiversion! {
    /// A tile's output pixels from `m`, which holds the products at point p from `p * stride`: `size` (rows, columns) of them to `y`, whose lines
    /// are `line` values apart and whose pixels have `num_out` channels.
    fn tile_from_points(m: &[f32], stride: usize, biases: &[Lane], num_out: usize, size: [usize; 2], y: &mut [f32], line: usize) {
        for (part, bias) in biases.iter().enumerate() {
            let first = part * LANES;
            let mut rows = [[[0.0; LANES]; POINTS]; TILE];
            for x in 0..POINTS {
                let column = pixels_from_points(std::array::from_fn(|row| lane(m, (row * POINTS + x) * stride + first)));
                for (row, value) in rows.iter_mut().zip(column) {
                    row[x] = value;
                }
            }
            for (i, row) in rows.into_iter().enumerate().take(size[0]) {
                for (j, pixel) in pixels_from_points(row).into_iter().enumerate().take(size[1]) {
                    let [pixel, _] = both(*bias, pixel);
                    let out = &mut y[i * line + j * num_out..][first..num_out];
                    match out.first_chunk_mut() {
                        Some(out) => *out = pixel,
                        None => out.iter_mut().zip(pixel).for_each(|(out, value)| *out = value),
                    }
                }
            }
        }
    }
}

thread_local! {
    static MEMORY: Cell<Memory> = Cell::default();
}

/// Values of a task's tiles at the points, and a panel of filters, which a thread keeps from one task to the next.
#[derive(Default)]
struct Memory {
    inputs: Lines<f32>,
    products: Lines<f32>,
    panel: Lines<f32>,
}

/// All filters at the points, `[panels, points, channels, PANEL]`.
fn filters_at_points(weight: &PackedMatrix, shape: &Shape) -> Lines<f32> {
    let stride = POINTS * POINTS * shape.channels * PANEL;
    let mut out = Lines::zeros(shape.num_out.div_ceil(PANEL) * stride);
    out.par_chunks_exact_mut(stride).enumerate().for_each(|(index, out)| {
        lend(&MEMORY, |memory| filters_of_panel(weight.panel(index, &mut memory.panel), shape.channels, out));
    });
    out
}

/// The tiles of a picture.
struct Tiles<'a> {
    shape: &'a Shape,
    output: [usize; 2],
    /// Tiles along the width.
    columns: usize,
    zeros: Vec<f32>,
}

impl Tiles<'_> {
    /// The input pixels of tile (row, column).
    fn pixels<'p>(&'p self, picture: &'p [f32], row: usize, column: usize) -> [&'p [f32]; POINTS * POINTS] {
        let channels = self.shape.channels;
        let double = usize::from(self.shape.upsample);
        std::array::from_fn(|point| {
            // A pixel above the first one or left of it wraps around to a large number.
            let y = (row * TILE + point / POINTS).wrapping_sub(1);
            let x = (column * TILE + point % POINTS).wrapping_sub(1);
            if y >= self.output[0] || x >= self.output[1] {
                return &self.zeros[..];
            }
            &picture[((y >> double) * self.shape.width + (x >> double)) * channels..][..channels]
        })
    }
}

/// See [`super::forward_packed`], for shapes that [`suits`] accepts.
pub(super) fn forward(x: &[f32], weight: &PackedMatrix, bias: &[f32], shape: &Shape) -> Vec<f32> {
    let (channels, num_out) = (shape.channels, shape.num_out);
    let output = shape.output();
    let tiles = Tiles { shape, output, columns: output[1].div_ceil(TILE), zeros: vec![0.0; channels] };
    let filters = filters_at_points(weight, shape);
    // Lanes behind the last output channel hold whatever was there and are written nowhere.
    let out_stride = num_out.next_multiple_of(LANES);
    let biases: Vec<Lane> =
        (0..out_stride).step_by(LANES).map(|k| std::array::from_fn(|i| bias.get(k + i).copied().unwrap_or(0.0))).collect();

    // About GROUP tiles a piece, and pieces for every thread alike; the cut doesn't show in the values.
    let tile_rows = output[0].div_ceil(TILE);
    let pieces = (tile_rows * tiles.columns).div_ceil(GROUP).min(tile_rows).next_multiple_of(rayon::current_num_threads());
    let rows = tile_rows.div_ceil(pieces);
    let lengths = (0..output[0]).step_by(rows * TILE).map(|y| (output[0] - y).min(rows * TILE) * output[1] * num_out);
    let pieces = lengths.len();
    let picture_size = shape.height * shape.width * channels;
    in_pieces((0..shape.batch).flat_map(|_| lengths.clone()), |piece, y| {
        lend(&MEMORY, |memory| {
            let picture = &x[piece / pieces * picture_size..][..picture_size];
            let first_row = piece % pieces * rows;
            let count = y.len().div_ceil(TILE * output[1] * num_out) * tiles.columns;
            for first in (0..count).step_by(GROUP) {
                let places = (first..(first + GROUP).min(count)).map(|tile| (tile / tiles.columns, tile % tiles.columns));
                let group = places.len();
                // A line more than the values take, so that the points of a tile don't meet in the same sets of a cache.
                let (in_stride, products_stride) = (group * channels + LANES, group * out_stride + LANES);
                memory.inputs.reserve(POINTS * POINTS * in_stride);
                memory.products.reserve(POINTS * POINTS * products_stride);
                for (tile, (row, column)) in places.clone().enumerate() {
                    let pixels = tiles.pixels(picture, first_row + row, column);
                    tile_at_points(&pixels, channels, &mut memory.inputs[tile * channels..], in_stride);
                }
                for point in 0..POINTS * POINTS {
                    let inputs = Matrix::new(&memory.inputs[point * in_stride..], group, channels);
                    let filters = &filters[point * channels * PANEL..];
                    let products = &mut memory.products[point * products_stride..];
                    panels_product(inputs, filters, POINTS * POINTS * channels * PANEL, num_out, products, out_stride);
                }
                for (tile, (row, column)) in places.enumerate() {
                    let products = &memory.products[tile * out_stride..];
                    let (line, place) = (output[1] * num_out, (row * TILE, column * TILE));
                    let size = [TILE.min(y.len() / line - place.0), TILE.min(output[1] - place.1)];
                    let y = &mut y[place.0 * line + place.1 * num_out..];
                    tile_from_points(products, products_stride, &biases, num_out, size, y, line);
                }
            }
        });
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv::{forward_packed, pack, patches_forward};
    use crate::cpu::at_every_level;
    use crate::gemm::Precision;

    fn values(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0).collect()
    }

    /// Sides that are no multiple of a tile, channels that are no multiple of a lane or panel, doubled pictures, several pictures, more tiles in a
    /// row than a group has.
    fn shapes() -> [Shape; 4] {
        let shape = Shape {
            batch: 2,
            height: 33,
            width: 38,
            channels: 32,
            num_out: 3,
            kernel: [3, 3],
            stride: 1,
            padding: [1; 4],
            upsample: false,
        };
        [
            shape,
            Shape { num_out: 70, channels: 16, ..shape },
            Shape { batch: 1, height: 17, width: 19, upsample: true, ..shape },
            Shape { height: 5, width: 210, ..shape },
        ]
    }

    fn layer(shape: &Shape, precision: Precision) -> (PackedMatrix, Vec<f32>) {
        let weight = values(shape.num_out * shape.channels * 9, 2);
        (pack(&weight, shape.num_out, shape.channels, [3, 3], precision), values(shape.num_out, 3))
    }

    #[test]
    fn the_values_are_those_of_patches() {
        for shape in shapes() {
            assert!(suits(&shape));
            let x = values(shape.batch * shape.height * shape.width * shape.channels, 1);
            at_every_level(|level| {
                // Patches in bf16 round the pixels too.
                for (precision, tolerance) in [(Precision::F32, 4e-6), (Precision::Bf16, 8e-3)] {
                    let (weight, bias) = layer(&shape, precision);
                    let expected = patches_forward(&x, &weight, &bias, shape);
                    let found = forward_packed(&x, &weight, &bias, shape);
                    assert_eq!(found.len(), expected.len());
                    let largest = expected.iter().fold(0.0f32, |most, y| most.max(y.abs()));
                    for (found, expected) in found.iter().zip(&expected) {
                        let what = format!("{level:?} {precision:?} {shape:?}: {found}, {expected} of at most {largest}");
                        assert!((found - expected).abs() < tolerance * largest, "{what}");
                    }
                }
            });
        }
    }

    #[test]
    fn it_rounds_about_twice_what_patches_round() {
        let shape = Shape { batch: 1, height: 32, width: 32, channels: 128, num_out: 32, ..shapes()[0] };
        let x = values(32 * 32 * 128, 1);
        let (weight, bias) = layer(&shape, Precision::F32);
        let filters: Vec<f64> = weight.unpack().iter().map(|&value| value.into()).collect();
        let squares_off = |y: &[f32], every: usize| -> f64 {
            let mut sum = 0.0;
            for (py, px) in (1..31).flat_map(|py| (1..31).map(move |px| (py, px))).step_by(every) {
                for out in 0..32 {
                    let patch = (0..9 * 128).map(|d| ((py + d / 128 / 3 - 1) * 32 + px + d / 128 % 3 - 1, d % 128, d));
                    let exact: f64 = patch.map(|(pixel, c, d)| f64::from(x[pixel * 128 + c]) * filters[d * 32 + out]).sum();
                    sum += (f64::from(y[(py * 32 + px) * 32 + out]) - exact - f64::from(bias[out])).powi(2);
                }
            }
            sum
        };
        at_every_level(|level| {
            let patches = squares_off(&patches_forward(&x, &weight, &bias, shape), 7);
            let found = squares_off(&forward_packed(&x, &weight, &bias, shape), 7);
            let ratio = (found / patches).sqrt();
            assert!(ratio < 2.5, "{level:?}: {ratio}");
        });
    }

    #[test]
    fn neither_threads_nor_other_pictures_show() {
        let shape = shapes()[1];
        let size = shape.height * shape.width * shape.channels;
        let x = values(2 * size, 1);
        let (weight, bias) = layer(&shape, Precision::F32);
        let with_threads = |threads: usize, x: &[f32], batch: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| forward_packed(x, &weight, &bias, Shape { batch, ..shape }))
        };
        at_every_level(|_| {
            let both = with_threads(1, &x, 2);
            assert_eq!(with_threads(3, &x, 2), both);
            assert_eq!(with_threads(8, &x[size..], 1), both[both.len() / 2..]);
        });
    }
}
