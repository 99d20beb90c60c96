//! One to eight rows times packed panels of 32 columns: decoding. The rows are not packed.
//!
//! Each output is summed in the order of the large products, so a row's result doesn't depend on the rows beside it, to the last bit.

#[cfg(target_arch = "x86_64")]
use super::amx;
use super::micro::{self, NR};
use crate::cpu::{Level, level};

/// Most rows that these kernels take.
pub(super) const MAX_ROWS: usize = 8;
/// Panels that are worked on together: with few rows, independent sums hide the latency of multiply-adds.
pub(super) const PANELS: usize = 2;

/// Sums of up to two panels: `[panel][row]`.
pub(super) type Sums = [[[f32; NR]; MAX_ROWS]; PANELS];

/// One to eight rows of equal length, one after the other.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a, T> {
    pub(super) values: &'a [T],
    pub(super) length: usize,
}

impl<T> Rows<'_, T> {
    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.values.len() / self.length
    }

    fn check(&self, start: usize, panels: &[&[T]], depth: usize) {
        assert!((1..=MAX_ROWS).contains(&self.count()) && start + depth <= self.length);
        assert!((1..=PANELS).contains(&panels.len()) && panels.iter().all(|panel| panel.len() >= depth * NR));
    }
}

/// Adds to `sums` the products of `depth` values of each row, from `start`, with each panel.
pub(super) fn rows_f32(x: Rows<'_, f32>, start: usize, panels: &[&[f32]], depth: usize, sums: &mut Sums) {
    x.check(start, panels, depth);
    match level() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `level` found AVX-512 on this CPU; `check` has found the lengths right.
        Level::Avx512 | Level::Amx => unsafe { x86::rows_f32(x, start, panels, depth, sums) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `level` found AVX2 and FMA on this CPU; `check` has found the lengths right.
        Level::Avx2 => unsafe { x86::rows_f32_avx2(x, start, panels, depth, sums) },
        _ => lanes(x, start, panels, depth, sums),
    }
}

/// As [`rows_f32`] on bf16 bit patterns, the panels in pairs of depths; `start` and `depth` are even.
pub(super) fn rows_bf16(x: Rows<'_, u16>, start: usize, panels: &[&[u16]], depth: usize, sums: &mut Sums) {
    x.check(start, panels, depth);
    assert!(start.is_multiple_of(2) && depth.is_multiple_of(2) && x.length.is_multiple_of(2));
    match level() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `level` found AVX-512 BF16 on this CPU; `check` and the assertion have found the lengths right.
        Level::Avx512 | Level::Amx => unsafe { x86::rows_bf16(x, start, panels, depth, sums) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `level` found AVX2 and FMA on this CPU; `check` and the assertion have found the lengths right.
        Level::Avx2 => unsafe { x86::rows_bf16_avx2(x, start, panels, depth, sums) },
        _ => pairs(x, start, panels, depth, sums),
    }
}

/// As [`rows_bf16`] with tiles; rows are zero behind their depth up to a whole block.
///
/// # Safety
/// The CPU has AMX and this process may use it.
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn rows_amx(x: Rows<'_, u16>, start: usize, panels: &[&[u16]], depth: usize, sums: &mut Sums) {
    x.check(start, panels, depth);
    assert!(start + depth.next_multiple_of(amx::BLOCK) <= x.length);
    // A panel without a neighbour is multiplied twice, into its sums and into those that nobody looks at.
    let pair = [panels[0], panels[panels.len() - 1]];
    // SAFETY: the caller's promise; the assertions give rows and panel their lengths.
    unsafe { amx::bf16_rows(x.values.as_ptr().add(start), x.length, x.count(), pair, depth, sums) };
}

/// The scalar twin of the bf16 kernels, see [`lanes`].
fn pairs(x: Rows<'_, u16>, start: usize, panels: &[&[u16]], depth: usize, sums: &mut Sums) {
    for (panel, sums) in panels.iter().zip(sums) {
        for (x, out) in x.values.chunks_exact(x.length).zip(sums) {
            let mut sums = *out;
            for (x, panel) in x[start..start + depth].chunks_exact(2).zip(panel.chunks_exact(2 * NR)) {
                micro::add_pairs(&mut sums, [x[0], x[1]], panel);
            }
            *out = sums;
        }
    }
}

/// The scalar twin.
fn lanes(x: Rows<'_, f32>, start: usize, panels: &[&[f32]], depth: usize, sums: &mut Sums) {
    for (panel, sums) in panels.iter().zip(sums) {
        for (x, out) in x.values.chunks_exact(x.length).zip(sums) {
            let mut sums = *out;
            for (&factor, values) in x[start..start + depth].iter().zip(panel.chunks_exact(NR)) {
                for (sum, &value) in sums.iter_mut().zip(values) {
                    *sum += factor * value;
                }
            }
            *out = sums;
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::super::avx2;
    use super::super::micro::x86::fetch;
    use super::{NR, Rows, Sums};

    /// Depths that panels are fetched ahead: the processor's own prefetching starts anew at each page.
    const AHEAD: usize = 32;

    /// Rows that an AVX2 kernel takes at a time with one panel: its registers hold no more sums.
    const FEW: usize = 3;

    /// Calls an AVX2 kernel on one row and both panels, or on up to three rows and a panel.
    macro_rules! by_three {
        ($kernel:path, $count:expr, $panels:expr, $sums:expr, $x:expr, $length:expr, $depth:expr) => {{
            let [first, second] = &mut *$sums;
            if let (1, [a, b]) = ($count, $panels) {
                let sums = [[&mut first[0]], [&mut second[0]]];
                $kernel($x, $length, [a.as_ptr().cast(), b.as_ptr().cast()], $depth, sums);
            } else {
                for (panel, sums) in $panels.iter().zip([first, second]) {
                    let panel = [panel.as_ptr().cast()];
                    for (row0, sums) in (0..$count).step_by(FEW).zip(sums[..$count].chunks_mut(FEW)) {
                        let x = $x.add(row0 * $length);
                        match sums {
                            [a, b, c] => $kernel(x, $length, panel, $depth, [[a, b, c]]),
                            [a, b] => $kernel(x, $length, panel, $depth, [[a, b]]),
                            [a] => $kernel(x, $length, panel, $depth, [[a]]),
                            _ => {}
                        }
                    }
                }
            }
        }};
    }

    /// # Safety
    /// The CPU has AVX2 and FMA, and [`Rows::check`] holds.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn rows_f32_avx2(x: Rows<'_, f32>, start: usize, panels: &[&[f32]], depth: usize, sums: &mut Sums) {
        // SAFETY: `start` lies in the rows, and so do the rows from `row0`; the rest is the caller's promise.
        unsafe { by_three!(avx2::rows_f32, x.count(), panels, sums, x.values.as_ptr().add(start), x.length, depth) }
    }

    /// # Safety
    /// The CPU has AVX2 and FMA, [`Rows::check`] holds, and the sizes are even.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn rows_bf16_avx2(x: Rows<'_, u16>, start: usize, panels: &[&[u16]], depth: usize, sums: &mut Sums) {
        let count = x.count();
        // SAFETY: as above.
        unsafe {
            let words = x.values.as_ptr().add(start).cast::<i32>();
            by_three!(avx2::rows_bf16, count, panels, sums, words, x.length / 2, depth / 2)
        }
    }

    /// Calls the kernel of the number of rows: on both panels at once if the registers hold the sums.
    macro_rules! by_rows {
        ($kernel:ident, $count:expr, $panels:expr, $sums:expr, $x:expr, $($arg:expr),*) => {
            match ($count, $panels) {
                (1, [a, b]) => $kernel::<1, 2>($x, [a.as_ptr().cast(), b.as_ptr().cast()], $($arg),*, $sums),
                (2, [a, b]) => $kernel::<2, 2>($x, [a.as_ptr().cast(), b.as_ptr().cast()], $($arg),*, $sums),
                (3, [a, b]) => $kernel::<3, 2>($x, [a.as_ptr().cast(), b.as_ptr().cast()], $($arg),*, $sums),
                (4, [a, b]) => $kernel::<4, 2>($x, [a.as_ptr().cast(), b.as_ptr().cast()], $($arg),*, $sums),
                (count, panels) => for (panel, sums) in panels.iter().zip($sums.chunks_mut(1)) {
                    let panel = [panel.as_ptr().cast()];
                    match count {
                        1 => $kernel::<1, 1>($x, panel, $($arg),*, sums),
                        2 => $kernel::<2, 1>($x, panel, $($arg),*, sums),
                        3 => $kernel::<3, 1>($x, panel, $($arg),*, sums),
                        4 => $kernel::<4, 1>($x, panel, $($arg),*, sums),
                        5 => $kernel::<5, 1>($x, panel, $($arg),*, sums),
                        6 => $kernel::<6, 1>($x, panel, $($arg),*, sums),
                        7 => $kernel::<7, 1>($x, panel, $($arg),*, sums),
                        _ => $kernel::<8, 1>($x, panel, $($arg),*, sums),
                    }
                },
            }
        };
    }

    /// # Safety
    /// The CPU has AVX-512 F, and [`Rows::check`] holds.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn rows_f32(x: Rows<'_, f32>, start: usize, panels: &[&[f32]], depth: usize, sums: &mut Sums) {
        // SAFETY: `start` lies in the rows; the rest is the caller's promise.
        unsafe { by_rows!(f32_kernel, x.count(), panels, sums, x.values.as_ptr().add(start), x.length, depth) }
    }

    /// # Safety
    /// The CPU has AVX-512 F and BF16, [`Rows::check`] holds, and the sizes are even.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn rows_bf16(x: Rows<'_, u16>, start: usize, panels: &[&[u16]], depth: usize, sums: &mut Sums) {
        // SAFETY: `start` lies in the rows; the rest is the caller's promise.
        unsafe { by_rows!(bf16_kernel, x.count(), panels, sums, x.values.as_ptr().add(start).cast(), x.length / 2, depth / 2) }
    }

    type Registers<const ROWS: usize, const PANELS: usize> = [[[__m512; 2]; PANELS]; ROWS];

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load<const ROWS: usize, const PANELS: usize>(sums: &[[[f32; NR]; super::MAX_ROWS]]) -> Registers<ROWS, PANELS> {
        let mut registers = [[[_mm512_setzero_ps(); 2]; PANELS]; ROWS];
        for (row, panels) in registers.iter_mut().enumerate() {
            for (panel, halves) in panels.iter_mut().enumerate() {
                let values = &sums[panel][row];
                // SAFETY: 32 values are two vectors.
                *halves = unsafe { [_mm512_loadu_ps(values.as_ptr()), _mm512_loadu_ps(values.as_ptr().add(16))] };
            }
        }
        registers
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn store<const ROWS: usize, const PANELS: usize>(
        registers: Registers<ROWS, PANELS>,
        sums: &mut [[[f32; NR]; super::MAX_ROWS]],
    ) {
        for (row, panels) in registers.into_iter().enumerate() {
            for (panel, halves) in panels.into_iter().enumerate() {
                let values = sums[panel][row].as_mut_ptr();
                // SAFETY: 32 values are two vectors.
                unsafe {
                    _mm512_storeu_ps(values, halves[0]);
                    _mm512_storeu_ps(values.add(16), halves[1]);
                }
            }
        }
    }

    /// # Safety
    /// The CPU has AVX-512 F; from `x` ROWS rows of `depth` values lie `length` apart; each panel holds `depth * NR` values.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn f32_kernel<const ROWS: usize, const PANELS: usize>(
        x: *const f32,
        panels: [*const f32; PANELS],
        length: usize,
        depth: usize,
        sums: &mut [[[f32; NR]; super::MAX_ROWS]],
    ) {
        let mut registers = load::<ROWS, PANELS>(sums);
        for d in 0..depth {
            // SAFETY: `d` is below `depth`; the caller's promise.
            unsafe {
                let values = panels.map(|panel| {
                    let line = panel.add(d * NR);
                    fetch(line.wrapping_add(AHEAD * NR));
                    fetch(line.wrapping_add(AHEAD * NR + 16));
                    [_mm512_loadu_ps(line), _mm512_loadu_ps(line.add(16))]
                });
                for (row, sums) in registers.iter_mut().enumerate() {
                    let factor = _mm512_set1_ps(*x.add(row * length + d));
                    for (sum, values) in sums.iter_mut().zip(values) {
                        sum[0] = _mm512_fmadd_ps(factor, values[0], sum[0]);
                        sum[1] = _mm512_fmadd_ps(factor, values[1], sum[1]);
                    }
                }
            }
        }
        store(registers, sums);
    }

    /// # Safety
    /// The CPU has AVX-512 F and BF16; from `x` ROWS rows of `pairs` words lie `length` apart; each panel holds `pairs * NR` words, each
    /// two bf16 bit patterns.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn bf16_kernel<const ROWS: usize, const PANELS: usize>(
        x: *const i32,
        panels: [*const i32; PANELS],
        length: usize,
        pairs: usize,
        sums: &mut [[[f32; NR]; super::MAX_ROWS]],
    ) {
        let mut registers = load::<ROWS, PANELS>(sums);
        for d in 0..pairs {
            // SAFETY: `d` is below `pairs`; the caller's promise; reads are unaligned ones. The casts reinterpret vectors of 32 bf16 bit
            // patterns, for which every pattern is a value.
            unsafe {
                let values: [[__m512bh; 2]; PANELS] = panels.map(|panel| {
                    let line = panel.add(d * NR);
                    fetch(line.wrapping_add(AHEAD * NR));
                    fetch(line.wrapping_add(AHEAD * NR + 16));
                    [
                        std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(line.cast())),
                        std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(line.add(16).cast())),
                    ]
                });
                for (row, sums) in registers.iter_mut().enumerate() {
                    let factor: __m512bh = std::mem::transmute(_mm512_set1_epi32(x.add(row * length + d).read_unaligned()));
                    for (sum, values) in sums.iter_mut().zip(values) {
                        sum[0] = _mm512_dpbf16_ps(sum[0], factor, values[0]);
                        sum[1] = _mm512_dpbf16_ps(sum[1], factor, values[1]);
                    }
                }
            }
        }
        store(registers, sums);
    }
}
