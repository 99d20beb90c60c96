//! Every kernel at a shape of the full model, at each instruction level of this CPU: `cargo bench -p unif2ace-bench --bench kernels`.
//! `benches/kernels.py` times the same work in PyTorch in the same run and sets both side by side.
#![allow(missing_docs)] // the harness' macros

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use half::bf16;
use unif2ace_kernels::activation::Activation;
use unif2ace_kernels::attention::{self, KeysValues, Mask};
use unif2ace_kernels::cpu::{Level, force_level, level};
use unif2ace_kernels::gemm::{Matrix, PackedMatrix, Precision, WeightFormat};
use unif2ace_kernels::memory::AlignedAllocator;
use unif2ace_kernels::moe::{self, PackedExperts, Weights};
use unif2ace_kernels::optim::{AdamW, adamw};
use unif2ace_kernels::{conv, group_norm, linear, loss, norm};

#[global_allocator]
static ALLOCATOR: AlignedAllocator = AlignedAllocator;

fn values(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i * 7919 % 2003) as f32 / 1001.5 - 1.0).collect()
}

/// Times `work` at every level that this CPU has.
fn at_levels(criterion: &mut Criterion, name: &str, mut work: impl FnMut()) {
    let mut group: BenchmarkGroup<'_, WallTime> = criterion.benchmark_group(name);
    group.sample_size(10).warm_up_time(std::time::Duration::from_millis(500)).measurement_time(std::time::Duration::from_secs(2));
    let best = level();
    for (label, forced) in [("amx", Level::Amx), ("avx512", Level::Avx512), ("avx2", Level::Avx2), ("portable", Level::Portable)]
    {
        if forced <= best {
            force_level(Some(forced));
            group.bench_function(label, |bencher| bencher.iter(&mut work));
        }
    }
    force_level(None);
    group.finish();
}

fn products(criterion: &mut Criterion) {
    let (m, n, k) = (516, 2048, 2048);
    let (a, w) = (values(m * k), values(n * k));
    for (name, format) in [("f32", WeightFormat::F32), ("bf16", WeightFormat::Bf16), ("int8", WeightFormat::Int8)] {
        let packed = PackedMatrix::new(Matrix::new(&w, n, k).t(), format);
        at_levels(criterion, &format!("linear 516x2048x2048 {name}"), || {
            std::hint::black_box(packed.forward(Matrix::new(&a, m, k), None, Activation::None));
        });
    }
    let packed = PackedMatrix::new(Matrix::new(&w, n, k).t(), WeightFormat::Bf16);
    at_levels(criterion, "linear 1x2048x2048 bf16", || {
        std::hint::black_box(packed.forward(Matrix::new(&a[..k], 1, k), None, Activation::None));
    });
}

fn attentions(criterion: &mut Criterion) {
    for (queries, keys) in [(258, 290), (1, 330)] {
        let (batch, heads, head_dim) = (2, 32, 64);
        let shape = attention::Shape { batch, queries, keys, key_room: keys, heads, head_dim };
        let [q, k, v] = [queries, keys, keys].map(|length| values(batch * length * heads * head_dim));
        let mask = vec![0.0; queries * keys];
        // As in a model: a picture's keys come from its own pass, those that one token looks at from a cache, in bf16 where products are.
        let [k_half, v_half] = [&k, &v].map(|x| x.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>());
        let wide = KeysValues::F32([&k, &v]);
        let cached = if queries == 1 { KeysValues::Bf16([&k_half, &v_half]) } else { wide };
        for (name, precision, kept) in [("f32", Precision::F32, wide), ("bf16", Precision::Bf16, cached)] {
            at_levels(criterion, &format!("attention 2x{queries}x{keys} {name}"), || {
                let mask = Mask { values: &mask, rows: 1 };
                std::hint::black_box(attention::infer(&q, kept, None, Some(mask), shape, precision));
            });
        }
    }
}

fn rows(criterion: &mut Criterion) {
    let (x, weight, bias) = (values(516 * 2048), values(2048), values(2048));
    at_levels(criterion, "layer_norm 516x2048 f32", || {
        std::hint::black_box(norm::layer_norm(&x, &weight, &bias, 1e-5));
    });
    let mut inner = values(516 * 8192);
    at_levels(criterion, "gelu 516x8192 f32", || linear::activate(std::hint::black_box(&mut inner), Activation::GeluNew));
    let (logits, targets) = (values(256 * 8192), vec![17; 256]);
    at_levels(criterion, "cross_entropy 256x8192 f32", || {
        std::hint::black_box(loss::cross_entropy(&logits, &targets, 8192));
    });
    let count = 4 << 20;
    let (mut param, grad, mut first, mut second) = (values(count), values(count), vec![0.0; count], vec![0.0; count]);
    let hyper =
        AdamW { lr: 1e-4, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.01, bias_correction1: 0.1, bias_correction2: 0.01 };
    at_levels(criterion, "adamw 4194304 f32", || adamw(&mut param, &grad, &mut first, &mut second, &hyper));
}

fn pictures(criterion: &mut Criterion) {
    let (side, channels) = (64, 256);
    let (x, weight, bias) = (values(side * side * channels), values(channels * channels * 9), values(channels));
    let shape = conv::Shape {
        batch: 1,
        height: side,
        width: side,
        channels,
        num_out: channels,
        kernel: [3, 3],
        stride: 1,
        padding: [1; 4],
        upsample: false,
    };
    let packed = conv::pack(&weight, channels, channels, [3, 3], Precision::F32);
    at_levels(criterion, "conv3x3 64x64x256 f32", || {
        std::hint::black_box(conv::forward_packed(&x, &packed, &bias, shape));
    });
    let shape = group_norm::Shape { batch: 1, pixels: side * side, channels, groups: 32 };
    at_levels(criterion, "group_norm+silu 64x64x256 f32", || {
        let moments = group_norm::moments(&x, shape, 1e-6);
        std::hint::black_box(group_norm::forward(&x, &bias, &bias, &moments, shape, true));
    });
}

fn experts(criterion: &mut Criterion) {
    let shape = moe::Shape { width: 2048, inner: 256, experts: 8, chosen: 4 };
    let rows = 516;
    let [w1, w2] = [(); 2].map(|()| values(shape.experts * shape.width * shape.inner));
    let (b1, b2) = (values(shape.experts * shape.inner), values(shape.experts * shape.width));
    let (x, gates) = (values(rows * shape.width), vec![0.25; rows * shape.chosen]);
    let index: Vec<i64> = (0..rows).flat_map(|row| (0..4).map(move |choice| ((row + 2 * choice) % 8) as i64)).collect();
    for (name, format) in [("f32", WeightFormat::F32), ("bf16", WeightFormat::Bf16), ("int8", WeightFormat::Int8)] {
        let bank = PackedExperts::new(Weights { w1: &w1, b1: &b1, w2: &w2, b2: &b2 }, shape, format);
        at_levels(criterion, &format!("experts 516 of 8, top 4 {name}"), || {
            std::hint::black_box(moe::infer_packed(&x, &index, &gates, &bank, Activation::GeluNew, shape));
        });
    }
}

criterion_group!(benches, products, attentions, rows, pictures, experts);
criterion_main!(benches);
