//! Matrix products at the full model's shapes beside other libraries': `cargo bench -p unif2ace-bench --features rivals`.
//!
//! Weights are packed before the clock starts where a library can: ours, and rten-gemm's; faer takes them as they are. rten-gemm multiplies
//! given bytes; ours also rounds its rows to 8 bits and scales the sums, which is what a layer needs.
#![allow(missing_docs, clippy::unwrap_used)] // the harness' macros; a benchmark may end by a panic

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmOptions};
use rten_tensor::NdTensor;
use rten_tensor::prelude::*;
use unif2ace_kernels::activation::Activation;
use unif2ace_kernels::gemm::{Matrix, PackedMatrix, WeightFormat};
use unif2ace_kernels::memory::AlignedAllocator;

#[global_allocator]
static ALLOCATOR: AlignedAllocator = AlignedAllocator;

/// Rows, outputs, inputs: both rows of a guided step, a read question, one token.
const SHAPES: [[usize; 3]; 6] =
    [[516, 2048, 2048], [516, 8192, 2048], [516, 2048, 8192], [64, 8192, 2048], [1, 8192, 2048], [1, 2048, 8192]];

fn values(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i * 7919 % 2003) as f32 / 1001.5 - 1.0).collect()
}

fn products(criterion: &mut Criterion) {
    for [m, n, k] in SHAPES {
        let (a, w) = (values(m * k), values(n * k));
        let mut group = criterion.benchmark_group(format!("{m}x{n}x{k}"));
        group.sample_size(10).throughput(Throughput::Elements((m * n * k) as u64));
        for (name, format) in [("f32", WeightFormat::F32), ("bf16", WeightFormat::Bf16), ("int8", WeightFormat::Int8)] {
            let packed = PackedMatrix::new(Matrix::new(&w, n, k).t(), format);
            group.bench_function(BenchmarkId::new("ours", name), |bencher| {
                bencher.iter(|| packed.forward(Matrix::new(&a, m, k), None, Activation::None));
            });
        }
        group.bench_function(BenchmarkId::new("faer", "f32"), |bencher| {
            let mut c = vec![0.0f32; m * n];
            let (a, w) = (MatRef::from_row_major_slice(&a, m, k), MatRef::from_row_major_slice(&w, n, k));
            bencher.iter(|| {
                let c = MatMut::from_row_major_slice_mut(&mut c, m, n);
                matmul(c, Accum::Replace, a, w.transpose(), 1.0, Par::rayon(0));
            });
        });
        group.bench_function(BenchmarkId::new("rten-gemm", "f32"), |bencher| {
            let executor = GemmExecutor::<f32, f32, f32>::default();
            let (a, b) = (NdTensor::from_data([m, k], a.clone()), NdTensor::from_data([n, k], w.clone()));
            let b = executor.prepack_b(b.transposed());
            let mut c = vec![0.0f32; m * n];
            bencher.iter(|| {
                executor.gemm(&mut c, GemmInputA::Unpacked(a.view()), GemmInputB::Packed(&b), GemmOptions::default()).unwrap();
            });
        });
        group.bench_function(BenchmarkId::new("rten-gemm", "int8"), |bencher| {
            let executor = GemmExecutor::<u8, i8, i32>::default();
            let bytes = |x: &[f32]| x.iter().map(|value| (value * 127.0) as i8).collect::<Vec<_>>();
            let a =
                NdTensor::from_data([m, k], bytes(&a).into_iter().map(|value| value.cast_unsigned() ^ 0x80).collect::<Vec<u8>>());
            let b = NdTensor::from_data([n, k], bytes(&w));
            let b = executor.prepack_b(b.transposed());
            let mut c = vec![0i32; m * n];
            bencher.iter(|| {
                executor.gemm(&mut c, GemmInputA::Unpacked(a.view()), GemmInputB::Packed(&b), GemmOptions::default()).unwrap();
            });
        });
        group.finish();
    }
}

criterion_group!(benches, products);
criterion_main!(benches);
