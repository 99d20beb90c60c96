//! Kernels for AVX2 and FMA: sixteen registers of eight values. They give the bits of the scalar twins with fused multiply-adds.

use std::arch::x86_64::*;

use super::int8::QUAD;
use super::micro::x86::fetch;
use super::micro::{MR, NR, Tile};

/// Values of a register.
const LANES: usize = 8;
/// Registers of a line of a panel.
const VECTORS: usize = NR / LANES;
/// Rows whose sums with two registers of columns are held at a time; 8 bits need more registers for other things.
const STRIP: usize = 6;
const STRIP_INT8: usize = 4;
/// Depths of panels that stay in the first-level cache while all strips of a tile meet them.
const BLOCK: usize = 256;
/// Quads of a group of depths in 8 bits.
const QUADS: usize = super::int8::GROUP / QUAD;
/// Lines that a panel is fetched ahead: the processor's own prefetching starts anew at each page.
const AHEAD: usize = 32;

/// Both bf16 values of each word as f32: the first, and the second.
#[inline]
#[target_feature(enable = "avx2")]
fn widen(words: __m256i) -> [__m256; 2] {
    let mask = _mm256_set1_epi32(0xFFFF_0000_u32 as i32);
    [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(words)), _mm256_castsi256_ps(_mm256_and_si256(words, mask))]
}

/// f32 tile, see [`super::micro::tile_f32`]; the tile is added to.
///
/// # Safety
/// The CPU has AVX2 and FMA; `a` holds `depth * MR` and `b` `depth * NR` values.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn tile_f32(a: *const f32, b: *const f32, depth: usize, tile: &mut Tile) {
    for start in (0..depth).step_by(BLOCK) {
        let depth = BLOCK.min(depth - start);
        for col0 in (0..NR).step_by(2 * LANES) {
            for row0 in (0..MR).step_by(STRIP) {
                // SAFETY: the strip lies in the tile, and `start` to `start + depth` in the panels.
                unsafe {
                    let mut sums = load::<STRIP>(tile, row0, col0);
                    let (mut a, mut b) = (a.add(start * MR + row0), b.add(start * NR + col0));
                    for _ in 0..depth {
                        fetch(b.wrapping_add(AHEAD * NR));
                        let values = [_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(LANES))];
                        for (row, sums) in sums.iter_mut().enumerate() {
                            let factor = _mm256_broadcast_ss(&*a.add(row));
                            sums[0] = _mm256_fmadd_ps(factor, values[0], sums[0]);
                            sums[1] = _mm256_fmadd_ps(factor, values[1], sums[1]);
                        }
                        a = a.add(MR);
                        b = b.add(NR);
                    }
                    store(&sums, tile, row0, col0);
                }
            }
        }
    }
}

/// # Safety
/// The CPU has AVX; the strip of ROWS rows and two registers lies in the tile.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load<const ROWS: usize>(tile: &Tile, row0: usize, col0: usize) -> [[__m256; 2]; ROWS] {
    let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
    for (sums, values) in sums.iter_mut().zip(&tile[row0..]) {
        // SAFETY: the caller's promise.
        *sums = unsafe { [_mm256_loadu_ps(values.as_ptr().add(col0)), _mm256_loadu_ps(values.as_ptr().add(col0 + LANES))] };
    }
    sums
}

/// # Safety
/// As [`load`].
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store(sums: &[[__m256; 2]], tile: &mut Tile, row0: usize, col0: usize) {
    for (sums, values) in sums.iter().zip(&mut tile[row0..]) {
        // SAFETY: the caller's promise.
        unsafe {
            _mm256_storeu_ps(values.as_mut_ptr().add(col0), sums[0]);
            _mm256_storeu_ps(values.as_mut_ptr().add(col0 + LANES), sums[1]);
        }
    }
}

/// Adds to `sums` the products of ROWS rows with PANELS panels, in f32; see [`super::rows::rows_f32`].
///
/// # Safety
/// The CPU has AVX2 and FMA; from `x` ROWS rows of `depth` values lie `length` apart; each panel holds `depth * NR` values.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn rows_f32<const ROWS: usize, const PANELS: usize>(
    x: *const f32,
    length: usize,
    panels: [*const f32; PANELS],
    depth: usize,
    mut sums: [[&mut [f32; NR]; ROWS]; PANELS],
) {
    let mut registers = load_lines(&sums);
    for d in 0..depth {
        for (panel, registers) in panels.iter().zip(&mut registers) {
            // SAFETY: `d` is below `depth`; the caller's promise.
            unsafe {
                let line = panel.add(d * NR);
                fetch(line.wrapping_add(AHEAD * NR));
                fetch(line.wrapping_add(AHEAD * NR + 2 * LANES));
                let values: [__m256; VECTORS] = std::array::from_fn(|vector| _mm256_loadu_ps(line.add(vector * LANES)));
                for (row, sums) in registers.iter_mut().enumerate() {
                    let factor = _mm256_broadcast_ss(&*x.add(row * length + d));
                    for (sum, values) in sums.iter_mut().zip(values) {
                        *sum = _mm256_fmadd_ps(factor, values, *sum);
                    }
                }
            }
        }
    }
    store_lines(&registers, &mut sums);
}

/// As [`rows_f32`] on pairs of bf16 bit patterns.
///
/// # Safety
/// The CPU has AVX2 and FMA; from `x` ROWS rows of `pairs` words lie `length` apart; each panel holds `pairs * NR` words.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn rows_bf16<const ROWS: usize, const PANELS: usize>(
    x: *const i32,
    length: usize,
    panels: [*const i32; PANELS],
    pairs: usize,
    mut sums: [[&mut [f32; NR]; ROWS]; PANELS],
) {
    let mut registers = load_lines(&sums);
    for d in 0..pairs {
        // SAFETY: `d` is below `pairs`; the caller's promise; reads are unaligned ones.
        let factors: [[__m256; 2]; ROWS] =
            std::array::from_fn(|row| widen(_mm256_set1_epi32(unsafe { x.add(row * length + d).read_unaligned() })));
        for (panel, registers) in panels.iter().zip(&mut registers) {
            // SAFETY: as above.
            unsafe {
                let line = panel.add(d * NR);
                fetch(line.wrapping_add(AHEAD * NR));
                fetch(line.wrapping_add(AHEAD * NR + 2 * LANES));
                for vector in 0..VECTORS {
                    let [first, second] = widen(_mm256_loadu_si256(line.add(vector * LANES).cast()));
                    for (sums, factors) in registers.iter_mut().zip(factors) {
                        sums[vector] = _mm256_fmadd_ps(factors[0], first, sums[vector]);
                        sums[vector] = _mm256_fmadd_ps(factors[1], second, sums[vector]);
                    }
                }
            }
        }
    }
    store_lines(&registers, &mut sums);
}

type Lines<const ROWS: usize, const PANELS: usize> = [[[__m256; VECTORS]; ROWS]; PANELS];

#[inline]
#[target_feature(enable = "avx2")]
fn load_lines<const ROWS: usize, const PANELS: usize>(sums: &[[&mut [f32; NR]; ROWS]; PANELS]) -> Lines<ROWS, PANELS> {
    let mut registers = [[[_mm256_setzero_ps(); VECTORS]; ROWS]; PANELS];
    for (registers, values) in registers.as_flattened_mut().iter_mut().zip(sums.as_flattened()) {
        for (register, values) in registers.iter_mut().zip(values.as_chunks::<LANES>().0) {
            // SAFETY: a chunk is a register.
            *register = unsafe { _mm256_loadu_ps(values.as_ptr()) };
        }
    }
    registers
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_lines<const ROWS: usize, const PANELS: usize>(
    registers: &Lines<ROWS, PANELS>,
    sums: &mut [[&mut [f32; NR]; ROWS]; PANELS],
) {
    for (registers, values) in registers.as_flattened().iter().zip(sums.as_flattened_mut()) {
        for (register, values) in registers.iter().zip(values.as_chunks_mut::<LANES>().0) {
            // SAFETY: a chunk is a register.
            unsafe { _mm256_storeu_ps(values.as_mut_ptr(), *register) };
        }
    }
}

/// Sums of products of a panel of rows, `[quads][height][QUAD]` with 128 added, with one of columns, `[quads][NR][QUAD]`: those of the rows as
/// they are, without what 128 adds.
///
/// # Safety
/// The CPU has AVX2; `height` is MR or at most 4, and `quads` at most [`QUADS`]; both panels have their lengths.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn int8(a: &[u8], height: usize, b: *const i8, quads: usize, sums: &mut [[i32; NR]; MR]) {
    // SAFETY: the caller's promise.
    unsafe {
        match height {
            1 => int8_panel::<1>(a, b, quads, sums),
            2 => int8_panel::<2>(a, b, quads, sums),
            3 => int8_panel::<3>(a, b, quads, sums),
            4 => int8_panel::<4>(a, b, quads, sums),
            _ => int8_panel::<MR>(a, b, quads, sums),
        }
    }
}

/// # Safety
/// As [`int8`], the height being HEIGHT.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn int8_panel<const HEIGHT: usize>(a: &[u8], b: *const i8, quads: usize, sums: &mut [[i32; NR]; MR]) {
    // Found once for all columns: the rows as they are, and their magnitudes.
    let mut values = [[[0u8; QUAD]; HEIGHT]; QUADS];
    let mut magnitudes = values;
    let found = values.as_flattened_mut().as_flattened_mut().iter_mut().zip(magnitudes.as_flattened_mut().as_flattened_mut());
    for ((value, magnitude), &a) in found.zip(&a[..quads * HEIGHT * QUAD]) {
        *value = a ^ 0x80;
        *magnitude = value.cast_signed().unsigned_abs();
    }
    let (values, magnitudes) = (values.as_flattened().as_flattened(), magnitudes.as_flattened().as_flattened());
    for row0 in (0..HEIGHT).step_by(STRIP_INT8) {
        let start = row0 * QUAD;
        let left = Left { values: values[start..].as_ptr(), magnitudes: magnitudes[start..].as_ptr(), height: HEIGHT };
        let sums = &mut sums[row0..];
        // SAFETY: the caller's promise; each kernel takes as many rows as its name says.
        unsafe {
            match HEIGHT - row0 {
                1 => int8_rows::<1, VECTORS>(left, b, quads, sums),
                2 => int8_rows::<2, VECTORS>(left, b, quads, sums),
                3 => int8_rows::<3, 2>(left, b, quads, sums),
                _ => int8_rows::<STRIP_INT8, 2>(left, b, quads, sums),
            }
        }
    }
}

/// Rows of a panel in 8 bits, `[quads][height][QUAD]`.
#[derive(Clone, Copy)]
struct Left {
    values: *const u8,
    magnitudes: *const u8,
    height: usize,
}

/// # Safety
/// The CPU has AVX2; the panel of rows has ROWS rows from where `left` starts, and both panels hold `quads` quads.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn int8_rows<const ROWS: usize, const WIDTH: usize>(left: Left, b: *const i8, quads: usize, sums: &mut [[i32; NR]]) {
    let ones = _mm256_set1_epi16(1);
    for first in (0..VECTORS).step_by(WIDTH) {
        let mut registers = [[_mm256_setzero_si256(); WIDTH]; ROWS];
        for quad in 0..quads {
            // SAFETY: `quad` is below `quads`; the caller's promise; loads are unaligned ones.
            unsafe {
                let line = b.add((quad * NR + first * LANES) * QUAD);
                fetch(line.wrapping_add(AHEAD * NR * QUAD));
                if WIDTH == VECTORS {
                    fetch(line.wrapping_add(AHEAD * NR * QUAD + 64));
                }
                let columns: [__m256i; WIDTH] =
                    std::array::from_fn(|vector| _mm256_loadu_si256(line.add(vector * LANES * QUAD).cast()));
                for (row, sums) in registers.iter_mut().enumerate() {
                    let place = (quad * left.height + row) * QUAD;
                    let magnitude = _mm256_set1_epi32(left.magnitudes.add(place).cast::<i32>().read_unaligned());
                    let value = _mm256_set1_epi32(left.values.add(place).cast::<i32>().read_unaligned());
                    for (sum, columns) in sums.iter_mut().zip(columns) {
                        // Two products of at most 128 * 127 fit into 16 bits.
                        let pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(columns, value));
                        *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
                    }
                }
            }
        }
        for (registers, sums) in registers.iter().zip(&mut *sums) {
            for (vector, register) in registers.iter().enumerate() {
                // SAFETY: the columns of `first + vector` are in the row.
                unsafe { _mm256_storeu_si256(sums.as_mut_ptr().add((first + vector) * LANES).cast(), *register) };
            }
        }
    }
}
