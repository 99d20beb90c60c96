//! Milliseconds of products with packed weights at the full model's shapes, multiply-adds and bytes of weights a second. Weights are 1
//! GiB of copies, so that they come from memory as in a model: with a folder as argument from a file there that is mapped.
#![allow(clippy::print_stdout)]

use std::fs::File;
use std::io::{BufWriter, Result, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use unif2ace_kernels::gemm::{Matrix, PackedMatrix, WeightFormat};
use unif2ace_kernels::map::MappedFile;
use unif2ace_kernels::memory::AlignedAllocator;

#[global_allocator]
static ALLOCATOR: AlignedAllocator = AlignedAllocator;

const WEIGHTS: usize = 1 << 30;
/// Parts of a matrix begin at multiples of it.
const ALIGN: usize = 64;

/// `copies` of a matrix in a file at `path`, mapped; the name is gone from the folder afterwards.
fn mapped(matrix: &PackedMatrix, copies: usize, path: &Path) -> Result<Vec<PackedMatrix>> {
    let mut file = BufWriter::new(File::create(path)?);
    let mut places = Vec::new();
    let mut at = 0;
    for _ in 0..copies {
        for bytes in matrix.bytes() {
            file.write_all(bytes)?;
            file.write_all(&vec![0; bytes.len().next_multiple_of(ALIGN) - bytes.len()])?;
            places.push(at..at + bytes.len());
            at += bytes.len().next_multiple_of(ALIGN);
        }
    }
    file.flush()?;
    let file = Arc::new(MappedFile::open(path)?);
    std::fs::remove_file(path)?;
    let mut places = places.into_iter();
    let dims = [matrix.rows(), matrix.cols()];
    let copy = |_| PackedMatrix::mapped(matrix.format(), dims, |_| Ok((file.clone(), places.next().unwrap_or(0..0))));
    (0..copies).map(copy).collect()
}

fn main() -> Result<()> {
    let folder = std::env::args().nth(1);
    for (n, k) in [(2048, 2048), (8192, 2048), (2048, 8192), (256, 2048)] {
        let values = |count: usize| -> Vec<f32> { (0..count).map(|i| (i * 7919 % 2003) as f32 / 1001.5 - 1.0).collect() };
        let w = values(n * k);
        for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8] {
            let matrix = PackedMatrix::new(Matrix::new(&w, n, k).t(), format);
            let bytes: usize = matrix.bytes().iter().map(|part| part.len()).sum();
            let copies = WEIGHTS / bytes;
            let weights = match &folder {
                None => (0..copies).map(|_| PackedMatrix::new(Matrix::new(&w, n, k).t(), format)).collect(),
                Some(folder) => mapped(&matrix, copies, &Path::new(folder).join(format!("weights-{}", std::process::id())))?,
            };
            for m in [1, 12, 30, 60, 120, 258, 516] {
                let a = values(m * k);
                let mut c = vec![0.0; m * n];
                // Many rows take their time with a part of the copies.
                let some = &weights[..copies.div_ceil(1 + m / 60)];
                let mut times: Vec<f64> = (0..5)
                    .map(|_| {
                        let start = Instant::now();
                        some.iter().for_each(|weights| weights.product(Matrix::new(&a, m, k), &mut c, false));
                        start.elapsed().as_secs_f64() / some.len() as f64
                    })
                    .collect();
                times.sort_by(f64::total_cmp);
                println!(
                    "{m}x{n}x{k} {format:?}: {:.3} ms, best {:.3} ms, {:.0} G multiply-adds/s, {:.1} GB/s",
                    1e3 * times[2],
                    1e3 * times[0],
                    1e-9 * (m * n * k) as f64 / times[2],
                    1e-9 * bytes as f64 / times[2],
                );
            }
        }
    }
    Ok(())
}
