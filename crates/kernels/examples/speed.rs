//! GFLOP/s of the matrix product on training shapes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::print_stdout)]

use std::time::Instant;

use unif2ace_kernels::gemm::{Matrix, Precision, gemm};

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
    for (m, n, k) in
        [(2048, 1024, 256), (1024, 768, 256), (1024, 256, 768), (256, 768, 1024), (1024, 8192, 256), (8192, 256, 1024)]
    {
        let (a, b) = (vec![0.5f32; m * k], vec![0.25f32; k * n]);
        let mut c = vec![0.0; m * n];
        for precision in [Precision::F32, Precision::Bf16] {
            // Long runs, because the system counts CPU time in steps of milliseconds.
            let repeats = 1 + (1usize << 34) / (m * n * k);
            let mut best = f64::MAX;
            for _ in 0..3 {
                let start = clock();
                for _ in 0..repeats {
                    gemm(Matrix::new(&a, m, k), Matrix::new(&b, n, k).t(), &mut c, false, precision);
                }
                best = best.min((clock() - start) / repeats as f64);
            }
            println!("{m}x{n}x{k} {precision:?}: {:.0} GFLOP/s of CPU time", 2e-9 * (m * n * k) as f64 / best);
        }
    }
}
