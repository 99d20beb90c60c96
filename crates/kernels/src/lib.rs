//! CPU kernels on plain slices. The only crate with unsafe code: SIMD behind run-time detection, each kernel with a scalar twin,
//! memory maps and the programs' allocator.

pub mod activation;
pub mod attention;
pub mod conv;
pub mod cpu;
pub mod gemm;
pub mod group_norm;
pub mod linear;
mod lines;
pub mod loss;
pub mod map;
pub mod memory;
pub mod moe;
pub mod norm;
pub mod optim;
mod parts;
pub mod pool;
pub mod rows;
mod simd;
pub mod store;
pub mod table;
