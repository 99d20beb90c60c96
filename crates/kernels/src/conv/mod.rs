//! Convolution over NHWC pictures as matrix products on patches, forward and backward; large pictures take fewer products forward, see
//! `winograd`.
//!
//! Patches exist for a chunk of output pixels at a time, so that memory stays small on large pictures.

mod winograd;

use rayon::prelude::*;

use crate::activation::Activation;
use crate::gemm::{Matrix, PackedMatrix, Precision, WeightFormat, gemm, gemm_serial};
use crate::parts::Parts;

/// Most output pixels whose patches exist at once in a task.
const CHUNK: usize = 512;
/// Groups of pictures whose weight gradients are summed apart; fixed, so that the number of threads doesn't show.
const GROUPS: usize = 4;

/// Sizes of a convolution.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Pictures.
    pub batch: usize,
    /// Rows of an input picture, before doubling.
    pub height: usize,
    /// Columns of an input picture, before doubling.
    pub width: usize,
    /// Input channels.
    pub channels: usize,
    /// Output channels.
    pub num_out: usize,
    /// Kernel height and width.
    pub kernel: [usize; 2],
    /// Step of the window.
    pub stride: usize,
    /// Zeros at the top, bottom, left and right.
    pub padding: [usize; 4],
    /// Whether the picture is doubled (nearest) first.
    pub upsample: bool,
}

impl Shape {
    /// Height and width of the output; 0 where the kernel doesn't fit.
    pub fn output(&self) -> [usize; 2] {
        let [top, bottom, left, right] = self.padding;
        let double = usize::from(self.upsample);
        let size = |length: usize, pad: usize, kernel: usize| {
            ((length << double) + pad + self.stride).saturating_sub(kernel) / self.stride
        };
        [size(self.height, top + bottom, self.kernel[0]), size(self.width, left + right, self.kernel[1])]
    }

    /// Values of a patch.
    fn depth(&self) -> usize {
        self.kernel[0] * self.kernel[1] * self.channels
    }

    /// Whether a patch is the pixel itself.
    fn pointwise(&self) -> bool {
        self.kernel == [1, 1] && self.stride == 1 && self.padding == [0; 4] && !self.upsample
    }

    /// Calls `visit(offset in the patch, offset in the picture, length)` for the runs of an output pixel's patch that lie in the picture.
    #[inline(always)]
    fn runs(&self, pixel: usize, mut visit: impl FnMut(usize, usize, usize)) {
        let out_width = self.output()[1];
        let (out_y, out_x) = (pixel / out_width, pixel % out_width);
        let double = usize::from(self.upsample);
        let channels = self.channels;
        for ky in 0..self.kernel[0] {
            let y = (out_y * self.stride + ky).wrapping_sub(self.padding[0]);
            if y >= self.height << double {
                continue;
            }
            let row = (y >> double) * self.width;
            let x0 = out_x * self.stride;
            let first = self.padding[2].saturating_sub(x0).min(self.kernel[1]);
            let last = ((self.width << double) + self.padding[2]).saturating_sub(x0).clamp(first, self.kernel[1]);
            let to = |kx: usize| (ky * self.kernel[1] + kx) * channels;
            if self.upsample {
                for kx in first..last {
                    visit(to(kx), (row + ((x0 + kx - self.padding[2]) >> 1)) * channels, channels);
                }
            } else if last > first {
                visit(to(first), (row + x0 + first - self.padding[2]) * channels, (last - first) * channels);
            }
        }
    }

    /// Patches of output pixels from `pixel0` of one picture, one a row.
    fn patches(&self, picture: &[f32], pixel0: usize, out: &mut [f32]) {
        for (index, patch) in out.chunks_exact_mut(self.depth()).enumerate() {
            let mut inside = 0;
            self.runs(pixel0 + index, |to, from, length| {
                patch[to..to + length].copy_from_slice(&picture[from..from + length]);
                inside += length;
            });
            // At a border: what no run covers is zero.
            if inside < patch.len() {
                patch.fill(0.0);
                self.runs(pixel0 + index, |to, from, length| {
                    patch[to..to + length].copy_from_slice(&picture[from..from + length])
                });
            }
        }
    }

    /// Adds patches back to where they came from.
    fn scatter(&self, patches: &[f32], pixel0: usize, picture: &mut [f32]) {
        for (index, patch) in patches.chunks_exact(self.depth()).enumerate() {
            self.runs(pixel0 + index, |to, from, length| {
                picture[from..from + length].iter_mut().zip(&patch[to..to + length]).for_each(|(sum, value)| *sum += value);
            });
        }
    }

    /// Calls `visit(place in [kh, kw, in, out], place in [out, in, kh, kw], filters)` for runs of up to 16 filters: neighbours in the first
    /// layout, and in the second as many streams as caches follow well, [`Self::depth`] apart.
    fn filters(&self, mut visit: impl FnMut(usize, usize, usize)) {
        let (taps, depth) = (self.kernel[0] * self.kernel[1], self.depth());
        for first in (0..self.num_out).step_by(16) {
            let count = (self.num_out - first).min(16);
            for channel in 0..self.channels {
                for tap in 0..taps {
                    visit((tap * self.channels + channel) * self.num_out + first, first * depth + channel * taps + tap, count);
                }
            }
        }
    }

    /// Weights `[out, in, kh, kw]` as `[kh, kw, in, out]`, whose rows follow a patch.
    fn by_patch(&self, weight: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; weight.len()];
        self.filters(|to, from, count| {
            let values = weight[from..].iter().step_by(self.depth());
            out[to..to + count].iter_mut().zip(values).for_each(|(out, &value)| *out = value);
        });
        out
    }

    /// The inverse of [`Self::by_patch`].
    fn by_filter(&self, weight: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; weight.len()];
        self.filters(|from, to, count| {
            let values = out[to..].iter_mut().step_by(self.depth());
            values.zip(&weight[from..from + count]).for_each(|(out, &value)| *out = value);
        });
        out
    }
}

/// Weights `[out, in, kh, kw]` of [`forward`], packed for many pictures. Formats are f32 and bf16.
pub fn pack(weight: &[f32], num_out: usize, channels: usize, kernel: [usize; 2], precision: Precision) -> PackedMatrix {
    let shape = Shape { batch: 0, height: 0, width: 0, channels, num_out, kernel, stride: 1, padding: [0; 4], upsample: false };
    let format = match precision {
        Precision::F32 => WeightFormat::F32,
        Precision::Bf16 => WeightFormat::Bf16,
    };
    // A patch has its channels last, a filter its taps.
    PackedMatrix::new(Matrix::new(&shape.by_patch(weight), shape.depth(), shape.num_out), format)
}

/// Pictures `[batch, height, width, channels]` to `[batch, out height, out width, num_out]`; `weight` is `[num_out, channels, kh, kw]`.
pub fn forward(x: &[f32], weight: &[f32], bias: &[f32], shape: Shape, precision: Precision) -> Vec<f32> {
    forward_packed(x, &pack(weight, shape.num_out, shape.channels, shape.kernel, precision), bias, shape)
}

/// As [`forward`], with weights of [`pack`].
///
/// # Panics
/// If weights or bias are of another shape: callers own the shapes.
pub fn forward_packed(x: &[f32], weight: &PackedMatrix, bias: &[f32], shape: Shape) -> Vec<f32> {
    let [out_height, out_width] = shape.output();
    let pixels = out_height * out_width;
    let (depth, num_out) = (shape.depth(), shape.num_out);
    assert!([weight.rows(), weight.cols(), bias.len()] == [depth, num_out, num_out], "weights and bias of a convolution");
    let picture_size = shape.height * shape.width * shape.channels;
    assert!(x.len() >= shape.batch * picture_size, "pictures of a convolution");
    if shape.pointwise() {
        return weight.forward(Matrix::new(x, shape.batch * pixels, depth), Some(bias), Activation::None);
    }
    if winograd::suits(&shape) && weight.format() != WeightFormat::Int8 {
        return winograd::forward(x, weight, bias, &shape);
    }
    patches_forward(x, weight, bias, shape)
}

/// As [`forward_packed`], for every shape: products with patches.
fn patches_forward(x: &[f32], weight: &PackedMatrix, bias: &[f32], shape: Shape) -> Vec<f32> {
    let [out_height, out_width] = shape.output();
    let pixels = out_height * out_width;
    let (depth, num_out) = (shape.depth(), shape.num_out);
    let picture_size = shape.height * shape.width * shape.channels;
    let len = shape.batch * pixels * num_out;
    let mut y = Vec::with_capacity(len);
    let parts = Parts(y.as_mut_ptr());
    // Every row of a product is summed in one order however the rows are cut, so the cut may follow the number of threads.
    let chunk = (shape.batch * pixels).div_ceil(2 * rayon::current_num_threads()).next_multiple_of(96).min(CHUNK);
    let per_picture = pixels.div_ceil(chunk.max(1));
    (0..shape.batch * per_picture).into_par_iter().for_each_init(Vec::new, |patches: &mut Vec<f32>, task| {
        let (picture, pixel0) = (task / per_picture, task % per_picture * chunk);
        let rows = chunk.min(pixels - pixel0);
        patches.resize(rows * depth, 0.0);
        shape.patches(&x[picture * picture_size..][..picture_size], pixel0, patches);
        let place = (picture * pixels + pixel0) * num_out;
        // SAFETY: there is room for all pixels, and each is written by one task.
        unsafe { weight.forward_to(Matrix::new(patches, rows, depth), bias, parts.at(place)) };
    });
    // SAFETY: every pixel of every picture was written.
    unsafe { y.set_len(len) };
    y
}

/// Gradients of [`forward`] of x and of the weight, those that are `wanted`; the bias' is the column sum of `dy`.
pub fn backward(
    x: &[f32],
    weight: &[f32],
    dy: &[f32],
    shape: Shape,
    wanted: [bool; 2],
    precision: Precision,
) -> (Option<Vec<f32>>, Option<Vec<f32>>) {
    let [out_height, out_width] = shape.output();
    let pixels = out_height * out_width;
    let (depth, num_out) = (shape.depth(), shape.num_out);
    let picture_size = shape.height * shape.width * shape.channels;
    let weight = shape.by_patch(weight);
    let weight_t = Matrix::new(&weight, depth, num_out).t();
    let mut dx = vec![0.0; if wanted[0] { x.len() } else { 0 }];
    let per_group = shape.batch.div_ceil(GROUPS).max(1);
    let groups = shape.batch.div_ceil(per_group);
    let inside = groups < rayon::current_num_threads();
    let product = if inside { gemm } else { gemm_serial };

    let group = |(index, mut dx): (usize, Option<&mut [f32]>)| {
        let mut dw = vec![0.0; if wanted[1] { depth * num_out } else { 0 }];
        let mut patches = Vec::new();
        for picture in index * per_group..((index + 1) * per_group).min(shape.batch) {
            let dy = &dy[picture * pixels * num_out..][..pixels * num_out];
            let x = &x[picture * picture_size..][..picture_size];
            for (chunk, dy) in dy.chunks((CHUNK * num_out).max(1)).enumerate() {
                let (rows, pixel0) = (dy.len() / num_out, chunk * CHUNK);
                let dy = Matrix::new(dy, rows, num_out);
                patches.resize(rows * depth, 0.0);
                if wanted[1] {
                    shape.patches(x, pixel0, &mut patches);
                    product(Matrix::new(&patches, rows, depth).t(), dy, &mut dw, true, precision);
                }
                if let Some(dx) = dx.as_deref_mut() {
                    product(dy, weight_t, &mut patches, false, precision);
                    let start = (picture - index * per_group) * picture_size;
                    shape.scatter(&patches, pixel0, &mut dx[start..start + picture_size]);
                }
            }
        }
        dw
    };
    let mut tasks: Vec<(usize, Option<&mut [f32]>)> = if wanted[0] {
        dx.chunks_mut((per_group * picture_size).max(1)).map(Some).enumerate().collect()
    } else {
        (0..groups).map(|index| (index, None)).collect()
    };
    let parts: Vec<Vec<f32>> =
        if inside { tasks.drain(..).map(group).collect() } else { tasks.into_par_iter().map(group).collect() };
    let dw = wanted[1].then(|| {
        let mut sum = vec![0.0; depth * num_out];
        for part in parts {
            sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
        shape.by_filter(&sum)
    });
    (wanted[0].then_some(dx), dw)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `y` from the definition, pixel by pixel.
    fn naive(x: &[f32], weight: &[f32], bias: &[f32], s: Shape) -> Vec<f32> {
        let [out_height, out_width] = s.output();
        let double = usize::from(s.upsample);
        let mut y = Vec::new();
        for b in 0..s.batch {
            for oy in 0..out_height {
                for ox in 0..out_width {
                    for o in 0..s.num_out {
                        let mut sum = bias[o];
                        for ky in 0..s.kernel[0] {
                            for kx in 0..s.kernel[1] {
                                let iy = (oy * s.stride + ky) as isize - s.padding[0] as isize;
                                let ix = (ox * s.stride + kx) as isize - s.padding[2] as isize;
                                if iy < 0 || ix < 0 || iy as usize >= s.height << double || ix as usize >= s.width << double {
                                    continue;
                                }
                                let pixel = (b * s.height + (iy as usize >> double)) * s.width + (ix as usize >> double);
                                for c in 0..s.channels {
                                    let w = weight[((o * s.channels + c) * s.kernel[0] + ky) * s.kernel[1] + kx];
                                    sum += w * x[pixel * s.channels + c];
                                }
                            }
                        }
                        y.push(sum);
                    }
                }
            }
        }
        y
    }

    fn values(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0).collect()
    }

    #[test]
    fn every_geometry_equals_the_definition_and_its_gradients_are_adjoint() {
        let plain = Shape {
            batch: 2,
            height: 7,
            width: 9,
            channels: 5,
            num_out: 3,
            kernel: [3, 3],
            stride: 1,
            padding: [1; 4],
            upsample: false,
        };
        let shapes = [
            plain,
            Shape { kernel: [1, 1], padding: [0; 4], ..plain },
            Shape { stride: 2, padding: [0, 1, 0, 1], ..plain },
            Shape { upsample: true, batch: 5, ..plain },
            Shape { kernel: [4, 2], stride: 3, padding: [3, 0, 2, 1], ..plain },
            Shape { batch: 1, height: 2, width: 1, kernel: [5, 5], padding: [2; 4], ..plain },
        ];
        for s in shapes {
            let x = values(s.batch * s.height * s.width * s.channels, 1);
            let weight = values(s.num_out * s.channels * s.kernel[0] * s.kernel[1], 2);
            let bias = values(s.num_out, 3);
            let y = forward(&x, &weight, &bias, s, Precision::F32);
            let expected = naive(&x, &weight, &bias, s);
            assert_eq!(y.len(), expected.len(), "{s:?}");
            y.iter().zip(&expected).for_each(|(y, e)| assert!((y - e).abs() < 1e-4, "{s:?}: {y} vs {e}"));

            // The output is linear in x and in the weight: <dy, conv(u, w)> = <dx, u> and <dy, conv(x, u)> = <dw, u> without bias.
            let dy = values(y.len(), 4);
            let (dx, dw) = backward(&x, &weight, &dy, s, [true, true], Precision::F32);
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
            let zero = vec![0.0; s.num_out];
            let (u, w) = (values(x.len(), 5), values(weight.len(), 6));
            let left = dot(&dy, &naive(&u, &weight, &zero, s));
            assert!((left - dot(&dx.unwrap(), &u)).abs() < 1e-3, "{s:?}: dx");
            let left = dot(&dy, &naive(&x, &w, &zero, s));
            assert!((left - dot(&dw.unwrap(), &w)).abs() < 1e-3, "{s:?}: dw");
        }
    }
}
