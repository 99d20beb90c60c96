//! CPU kernels on plain slices. The only crate with unsafe code: SIMD behind run-time detection, each kernel with a scalar twin.

pub mod activation;
pub mod attention;
pub mod cpu;
pub mod gemm;
pub mod linear;
pub mod loss;
pub mod norm;
mod simd;
