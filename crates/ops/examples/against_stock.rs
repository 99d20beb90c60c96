//! Milliseconds of forward plus backward of each operation on training shapes: kernels against stock burn.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::print_stdout, non_snake_case)]

use std::time::Instant;

use burn::tensor::{Device, Distribution, Int, Tensor};
use unif2ace_ops::{Activation, AlignedAllocator, Conv2dOptions, Precision, portable, set_precision};

#[global_allocator]
static ALLOCATOR: AlignedAllocator = AlignedAllocator;

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 0.1), &Device::flex().autodiff()).require_grad()
}

fn best(mut run: impl FnMut()) -> f64 {
    // Long runs, because the system counts CPU time in steps of milliseconds.
    (0..3).fold(f64::MAX, |best, _| {
        let (start, mut runs) = (clock(), 0.0);
        while clock() - start < 0.3 {
            run();
            runs += 1.0;
        }
        best.min((clock() - start) * 1e3 / runs)
    })
}

fn report<const D: usize>(name: &str, kernel: impl Fn() -> Tensor<D>, stock: impl Fn() -> Tensor<D>) {
    let step = |f: &dyn Fn() -> Tensor<D>| {
        best(|| {
            f().sum().backward();
        })
    };
    let stock = step(&stock);
    let f32 = step(&kernel);
    set_precision(Precision::Bf16);
    let bf16 = step(&kernel);
    set_precision(Precision::F32);
    println!("{name:32} stock {stock:8.2}  f32 {f32:8.2} ({:4.1}x)  bf16 {bf16:8.2} ({:4.1}x)", stock / f32, stock / bf16);
}

/// Seconds of CPU time of all threads where the system tells them, so that a busy machine doesn't count; else of wall time.
fn clock() -> f64 {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    let start = *START;
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let nanoseconds: f64 = threads
        .filter_map(|thread| {
            std::fs::read_to_string(thread.path().join("schedstat")).ok()?.split(' ').next()?.parse::<f64>().ok()
        })
        .sum();
    if nanoseconds > 0.0 { nanoseconds * 1e-9 } else { start.elapsed().as_secs_f64() }
}

fn main() {
    unif2ace_ops::keep_freed_memory();
    for (rows, num_in, num_out, act) in
        [(2048, 256, 1024, Activation::GeluNew), (1024, 256, 768, Activation::GeluNew), (1024, 256, 256, Activation::None)]
    {
        let (x, w, b) = (random([rows, num_in]), random([num_out, num_in]), random([num_out]));
        report(
            &format!("linear {rows}x{num_in}x{num_out} {act:?}"),
            || unif2ace_ops::linear(x.clone(), w.clone(), Some(b.clone()), act),
            || portable::linear(x.clone(), w.clone(), Some(b.clone()), act),
        );
    }
    let (x, w, b) = (random([2048, 256]), random([256]), random([256]));
    report(
        "layer norm 2048x256",
        || unif2ace_ops::layer_norm(x.clone(), w.clone(), b.clone(), 1e-5),
        || portable::layer_norm(x.clone(), w.clone(), b.clone(), 1e-5),
    );
    let [q, k, v] = [(); 3].map(|()| random([8, 128, 256]));
    report(
        "attention 8x128, 4 heads of 64",
        || unif2ace_ops::attention(q.clone(), k.clone(), v.clone(), 4, None, None, None),
        || portable::attention(q.clone(), k.clone(), v.clone(), 4, None, None, None),
    );
    let index: Vec<i64> = (0..1024).flat_map(|r| (0..4).map(move |k| (r * 3 + k * 2) % 8)).collect();
    let index = Tensor::<1, Int>::from_data(index.as_slice(), &Device::flex()).reshape([1024, 4]);
    let (x, g) = (random([1024, 256]), random([1024, 4]));
    let (w1, b1, w2, b2) = (random([8, 48, 256]), random([8, 48]), random([8, 256, 48]), random([8, 256]));
    let experts = |f: fn(_, _, _, _, _, _, _, _) -> Tensor<2>| {
        f(x.clone(), index.clone(), g.clone(), w1.clone(), b1.clone(), w2.clone(), b2.clone(), Activation::GeluNew)
    };
    report("experts 1024x256, 4 of 8, 48", || experts(unif2ace_ops::moe_mlp), || experts(portable::moe_mlp));
    for (size, channels, stride, upsample) in [(64, 64, 1, false), (16, 256, 1, false), (64, 64, 2, false), (16, 128, 1, true)] {
        let (x, w, b) = (random([4, size, size, channels]), random([channels, channels, 3, 3]), random([channels]));
        let padding = if stride == 2 { [0, 1, 0, 1] } else { [1; 4] };
        let options = Conv2dOptions { stride, padding, upsample };
        report(
            &format!(
                "conv 4x{size}x{size}x{channels}{}",
                if upsample {
                    " up"
                } else if stride == 2 {
                    " down"
                } else {
                    ""
                }
            ),
            || unif2ace_ops::conv2d_nhwc(x.clone(), w.clone(), Some(b.clone()), options),
            || portable::conv2d_nhwc(x.clone(), w.clone(), Some(b.clone()), options),
        );
    }
    let (x, w, b) = (random([4, 64, 64, 64]), random([64]), random([64]));
    report(
        "group norm 4x64x64x64, silu",
        || unif2ace_ops::group_norm_nhwc(x.clone(), w.clone(), b.clone(), 32, 1e-6, true),
        || portable::group_norm_nhwc(x.clone(), w.clone(), b.clone(), 32, 1e-6, true),
    );
}
