//! Milliseconds of products with packed weights at the full model's shapes, and what part of a second's multiply-adds they are.
#![allow(clippy::print_stdout)]

use std::time::Instant;

use unif2ace_kernels::gemm::{Matrix, PackedMatrix, WeightFormat};

fn main() {
    for (m, n, k) in [(516, 2048, 2048), (516, 8192, 2048), (516, 2048, 8192), (258, 256, 2048), (1, 8192, 2048), (1, 2048, 8192)]
    {
        let values = |count: usize| -> Vec<f32> { (0..count).map(|i| (i * 7919 % 2003) as f32 / 1001.5 - 1.0).collect() };
        let (a, w) = (values(m * k), values(n * k));
        let mut c = vec![0.0; m * n];
        for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8] {
            // Copies, so that weights come from memory where rows are few, as in a model.
            let copies = if m == 1 { (1usize << 29) / (n * k * 4) } else { 1 };
            let packed: Vec<_> = (0..copies).map(|_| PackedMatrix::new(Matrix::new(&w, n, k).t(), format)).collect();
            let mut times: Vec<f64> = (0..9)
                .map(|_| {
                    let start = Instant::now();
                    packed.iter().for_each(|packed| packed.product(Matrix::new(&a, m, k), &mut c, false));
                    start.elapsed().as_secs_f64() / copies as f64
                })
                .collect();
            times.sort_by(f64::total_cmp);
            let per_second = 1e-9 * (m * n * k) as f64 / times[4];
            println!(
                "{m}x{n}x{k} {format:?}: {:.2} ms, best {:.2} ms, {per_second:.0} G multiply-adds/s",
                1e3 * times[4],
                1e3 * times[0]
            );
        }
    }
}
