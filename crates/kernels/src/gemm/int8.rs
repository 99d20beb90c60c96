//! A right factor in 8 bits, packed once for many products: weights at inference, at half the bytes of bfloat16.
//!
//! Each column of [`GROUP`] values has a scale, `w ≈ scale * q` with q in -127..127; rows of the left factor are rounded the same way
//! while they are multiplied. Sums of products of integers are exact, so a value depends neither on the rows and columns beside it nor
//! on the instructions of the CPU, but for the rounding of the final scaling, which is the same everywhere.

mod meeting;
mod rows;

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use super::amx;
use super::micro::{self, MR, NR, Target};
use super::packed::{Element, Part};
use super::{Cut, Finish, Matrix, Output, SERIAL, Tiling};
use crate::lines::Lines;
use crate::map::MappedFile;
use crate::parts::in_turn;
use crate::store::Store;
use meeting::Meeting;
pub(super) use rows::Rows;

/// Values that share a scale.
pub const GROUP: usize = 512;
/// Products that one instruction sums.
pub(super) const QUAD: usize = 4;
/// Left factors are stored with this added, as unsigned bytes, which the dot-product instruction wants.
const OFFSET: i32 = 128;
/// Panels that are worked on together where rows are few.
const PANELS: usize = 2;
/// Most rows that are worked on with several panels.
const FEW: usize = 4;
/// Panels of rows whose tiles stay in the first-level cache beside a group of the columns' values.
const HELD: usize = 8;
/// Bytes of rows that one task works on at a time, where rows are shared out.
const LEFT_BYTES: usize = 1100 << 10;
/// Up to so many rows every task takes all of them, and tasks share out the columns; rows are rounded before, whoever takes them.
const WHOLE: usize = 288;
/// Groups whose sums are added up before they go to C: a block of the left factor of that depth stays in the second-level cache.
const CHUNK: usize = 8;

/// A tile of C in the making, for each of P panels.
type Tiles<const P: usize> = [[[f32; NR]; MR]; P];

/// A matrix `[k, n]` in 8 bits.
#[derive(Debug, Clone)]
pub struct Int8Matrix {
    rows: usize,
    cols: usize,
    /// Panels of NR columns: `[panel][quad of depths][NR][QUAD]`.
    panels: Store<i8>,
    /// `[group][padded columns]`.
    scales: Store<f32>,
    /// [`OFFSET`] times the sum of a group's values, `[group][padded columns]`.
    offsets: Store<i32>,
}

/// The size of a step; 0, which makes all of them 0, where it is too small to divide by.
fn scale_of(values: impl Iterator<Item = f32>) -> f32 {
    let scale = values.fold(0.0f32, |most, value| most.max(value.abs())) / 127.0;
    if scale < f32::MIN_POSITIVE { 0.0 } else { scale }
}

/// The nearest step, ties to even; 0 where the scale is 0. Adding 1.5 * 2^23 leaves no room for a fraction, and the sum's low bits are the
/// integer: unlike `round_ties_even` this is no call on CPUs without the instruction, and it is vectorised.
#[inline(always)]
fn step(value: f32, inverse: f32) -> i32 {
    const MAGIC: f32 = 12_582_912.0;
    (value * inverse + MAGIC).to_bits() as i32 - MAGIC.to_bits() as i32
}

fn inverse(scale: f32) -> f32 {
    if scale > 0.0 { scale.recip() } else { 0.0 }
}

impl Int8Matrix {
    /// Rounds and packs `b`.
    pub fn new(b: Matrix<'_>) -> Self {
        let (k, n) = (b.rows, b.cols);
        let depth = k.next_multiple_of(QUAD);
        let (num_panels, groups) = (n.div_ceil(NR), k.div_ceil(GROUP));
        let padded = num_panels * NR;
        let mut panels = Lines::<i8>::zeros(num_panels * depth * NR);
        let mut scales = vec![0.0f32; groups * padded];
        let mut offsets = vec![0i32; groups * padded];
        if depth > 0 {
            let parts: Vec<Vec<(f32, i32)>> = panels
                .par_chunks_exact_mut(depth * NR)
                .enumerate()
                .map(|(panel, out)| {
                    let mut found = vec![(0.0, 0); groups * NR];
                    for lane in 0..NR.min(n - panel * NR) {
                        let at = |d: usize| b.data[d * b.row_stride + (panel * NR + lane) * b.col_stride];
                        for group in 0..groups {
                            let range = group * GROUP..k.min((group + 1) * GROUP);
                            let scale = scale_of(range.clone().map(at));
                            let inverse = inverse(scale);
                            let mut sum = 0;
                            for d in range {
                                let value = step(at(d), inverse);
                                out[d / QUAD * QUAD * NR + lane * QUAD + d % QUAD] = value as i8;
                                sum += value;
                            }
                            found[group * NR + lane] = (scale, OFFSET * sum);
                        }
                    }
                    found
                })
                .collect();
            for (panel, found) in parts.into_iter().enumerate() {
                for (place, (scale, offset)) in found.into_iter().enumerate() {
                    let place = place / NR * padded + panel * NR + place % NR;
                    (scales[place], offsets[place]) = (scale, offset);
                }
            }
        }
        Self { rows: k, cols: n, panels: panels.into(), scales: scales.into(), offsets: offsets.into() }
    }

    /// Rows: the depth of products.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// See [`super::PackedMatrix::layout`].
    pub(super) fn layout([rows, cols]: [usize; 2]) -> Vec<Part> {
        let (panels, groups) = (cols.div_ceil(NR), rows.div_ceil(GROUP));
        vec![
            Part { name: "panels", element: Element::I8, shape: vec![panels, rows.div_ceil(QUAD), NR, QUAD] },
            Part { name: "scales", element: Element::F32, shape: vec![groups, panels * NR] },
            Part { name: "offsets", element: Element::I32, shape: vec![groups, panels * NR] },
        ]
    }

    /// See [`super::PackedMatrix::mapped`]; `places` are those of the layout's parts.
    pub(super) fn mapped([rows, cols]: [usize; 2], places: &[(Arc<MappedFile>, Range<usize>)]) -> Self {
        let [panels, scales, offsets] = [0, 1, 2].map(|part| &places[part]);
        Self {
            rows,
            cols,
            panels: Store::mapped(&panels.0, panels.1.clone()),
            scales: Store::mapped(&scales.0, scales.1.clone()),
            offsets: Store::mapped(&offsets.0, offsets.1.clone()),
        }
    }

    /// See [`super::PackedMatrix::bytes`].
    pub(super) fn bytes(&self) -> Vec<&[u8]> {
        vec![self.panels.bytes(), self.scales.bytes(), self.offsets.bytes()]
    }

    /// Bytes in memory.
    pub fn num_bytes(&self) -> usize {
        self.panels.len() + size_of_val(&*self.scales) + size_of_val(&*self.offsets)
    }

    /// The rounded values, row-major `[k, n]`.
    pub fn unpack(&self) -> Vec<f32> {
        let (depth, padded) = (self.rows.next_multiple_of(QUAD), self.cols.div_ceil(NR) * NR);
        let value = |d: usize, column: usize| {
            let (panel, lane) = (column / NR, column % NR);
            let q = self.panels[panel * depth * NR + d / QUAD * QUAD * NR + lane * QUAD + d % QUAD];
            self.scales[d / GROUP * padded + column] * f32::from(q)
        };
        (0..self.rows).flat_map(|d| (0..self.cols).map(move |column| (d, column))).map(|(d, column)| value(d, column)).collect()
    }

    /// `c = a b`, or `c += a b` if `accumulate`; `c` is row-major `[a.rows, b.cols]`. Rows of `a` are rounded to 8 bits.
    ///
    /// # Panics
    /// If the inner sizes differ or `c` is too small: callers own the shapes.
    pub fn product(&self, a: Matrix<'_>, c: &mut [f32], accumulate: bool) {
        assert_eq!(a.cols, self.rows, "inner sizes of a matrix product");
        assert!(c.len() >= a.rows * self.cols, "room for the matrix product");
        if self.rows == 0 {
            return Finish::adding(accumulate).without_products(&mut c[..a.rows * self.cols], self.cols);
        }
        // SAFETY: C has room for the product, is borrowed mutably, and holds values.
        unsafe {
            self.put_product(a, Output::new(c, self.cols), Finish::adding(accumulate), a.rows * self.cols * self.rows > SERIAL)
        };
    }

    /// There is something to sum.
    ///
    /// # Safety
    /// As [`super::multiply`].
    pub(super) unsafe fn put_product(&self, a: Matrix<'_>, output: Output, finish: Finish<'_>, parallel: bool) {
        // SAFETY: the caller's promise.
        unsafe { self.put_rounded(&Rows::new(&a), a.rows, output, finish, parallel) }
    }

    /// As [`Int8Matrix::put_product`], of `m` rows that are rounded already.
    ///
    /// # Safety
    /// As [`super::multiply`].
    pub(super) unsafe fn put_rounded(&self, x: &Rows, m: usize, output: Output, finish: Finish<'_>, parallel: bool) {
        let (n, k) = (self.cols, self.rows);
        if m == 0 || n == 0 {
            return;
        }
        let num_panels = n.div_ceil(NR);
        let cut = match m <= FEW {
            true => {
                let panels = if parallel { 2 * PANELS } else { num_panels };
                Cut { rows: m, panels, row_tasks: 1, column_tasks: num_panels.div_ceil(panels), parallel }
            }
            false => Cut::new(
                m,
                Tiling { height: x.height, left_bytes: LEFT_BYTES, tasks: 4, whole: WHOLE },
                num_panels,
                k.min(CHUNK * GROUP),
                parallel,
            ),
        };
        let work = |task: usize| {
            let row0 = task / cut.column_tasks * cut.rows;
            let rows = row0..m.min(row0 + cut.rows);
            let first = task % cut.column_tasks * cut.panels;
            // SAFETY: rows and panels of tasks are disjoint, and C is ours until all tasks are done, as the caller promises.
            unsafe {
                let panels = first..num_panels.min(first + cut.panels);
                match x.height {
                    ..=FEW => self.tiles::<PANELS, 1>(x, rows, panels, output, finish),
                    #[cfg(target_arch = "x86_64")]
                    _ if x.unit != QUAD => self.amx_tiles(x, rows, panels, output, finish),
                    _ => self.tiles::<1, HELD>(x, rows, panels, output, finish),
                }
            };
        };
        let tasks = cut.row_tasks * cut.column_tasks;
        if cut.parallel && m <= FEW {
            in_turn(tasks, work);
        } else if cut.parallel {
            // Not in turn: what a task fetches ahead is the next one's.
            (0..tasks).into_par_iter().for_each(work);
        } else {
            (0..tasks).for_each(work);
        }
    }

    /// Puts the products of some rows with some panels, P at a time, into or onto C. HELD panels of rows meet a group of the columns' values
    /// while that is in the first-level cache.
    ///
    /// # Safety
    /// `output` is the start of C, valid for writes, and nobody else has access to the rows and columns that are named.
    unsafe fn tiles<const P: usize, const HELD: usize>(
        &self,
        x: &Rows,
        rows: Range<usize>,
        panels: Range<usize>,
        output: Output,
        finish: Finish<'_>,
    ) {
        let n = self.cols;
        let mut held: [Tiles<P>; HELD] = [[[[0.0; NR]; MR]; P]; HELD];
        for chunk in (0..x.groups).step_by(CHUNK) {
            let groups = chunk..x.groups.min(chunk + CHUNK);
            for panel in panels.clone().step_by(P) {
                let count = P.min(panels.end - panel);
                for first in rows.clone().step_by(HELD * x.height) {
                    let starts = || (first..rows.end).step_by(x.height).take(HELD);
                    let target = |row0: usize, panel: usize| {
                        let column = panel * NR;
                        let (height, width) = (x.height.min(rows.end - row0), NR.min(n - column));
                        let onto = finish.onto(chunk == 0, column);
                        Target { start: output.at(row0, column), stride: output.stride, height, width, onto }
                    };
                    for group in groups.clone() {
                        let fresh = group == groups.start;
                        #[cfg(target_arch = "x86_64")]
                        let last = group + 1 == groups.end;
                        for (row0, tiles) in starts().zip(&mut held) {
                            #[cfg(target_arch = "x86_64")]
                            if last {
                                (panel..panel + count).for_each(|panel| micro::x86::announce(target(row0, panel)));
                            }
                            if count == P {
                                self.add_group(x, row0 / x.height, panel, group, fresh, tiles);
                            } else if let Some(one) = tiles.first_chunk_mut::<1>() {
                                self.add_group(x, row0 / x.height, panel, group, fresh, one);
                            }
                        }
                    }
                    for (row0, tiles) in starts().zip(&held) {
                        for (panel, tile) in (panel..panel + count).zip(tiles) {
                            // SAFETY: the tile lies in the rows and columns that are ours, as the caller promises.
                            unsafe {
                                micro::put_rows(tile, target(row0, panel));
                                micro::activate(target(row0, panel), finish.act(groups.end == x.groups));
                            }
                        }
                    }
                }
            }
        }
    }

    /// As [`Int8Matrix::tiles`] with AMX, of rows in its units, which are there only where `level` found it.
    ///
    /// # Safety
    /// As [`Int8Matrix::tiles`].
    #[cfg(target_arch = "x86_64")]
    unsafe fn amx_tiles(&self, x: &Rows, rows: Range<usize>, panels: Range<usize>, output: Output, finish: Finish<'_>) {
        let (n, padded, depth) = (self.cols, self.cols.div_ceil(NR) * NR, self.rows.next_multiple_of(QUAD));
        let mut tiles: Vec<_> = (0..rows.len().div_ceil(x.height)).map(|_| amx::Tile([[0.0; NR]; amx::HEIGHT])).collect();
        let mut sums = amx::Tile([[0; NR]; amx::HEIGHT]);
        // SAFETY: rows in these units are there only where `level` found AMX; there are no other registers in use here.
        let registers = unsafe { amx::Registers::new() };
        for chunk in (0..x.groups).step_by(CHUNK) {
            let groups = chunk..x.groups.min(chunk + CHUNK);
            for panel in panels.clone() {
                let target = |row0: usize| {
                    let column = panel * NR;
                    let (height, width) = (x.height.min(rows.end - row0), NR.min(n - column));
                    let onto = finish.onto(chunk == 0, column);
                    Target { start: output.at(row0, column), stride: output.stride, height, width, onto }
                };
                // What comes next comes from memory while this panel is worked on; a group of it stays in the first-level cache while all
                // rows meet it.
                let next = ((panel + 1) * depth + groups.start * GROUP) * NR;
                let mut ahead = amx::Ahead::new(&self.panels[next.min(self.panels.len())..], tiles.len());
                for group in groups.clone() {
                    let start = group * GROUP;
                    let deep = (depth - start).min(GROUP);
                    let values = &self.panels[(panel * depth + start) * NR..][..deep * NR];
                    for (row0, tile) in rows.clone().step_by(x.height).zip(&mut tiles) {
                        let height = x.height.min(rows.end - row0);
                        let scales = amx::Scales {
                            rows: x.panel_scales(row0 / x.height, group),
                            columns: &self.scales[group * padded + panel * NR..][..NR],
                            offsets: &self.offsets[group * padded + panel * NR..][..NR],
                        };
                        amx::int8(
                            &registers,
                            &x.values[row0 * x.depth + start * x.height..],
                            values,
                            deep,
                            ahead,
                            &mut sums,
                            height,
                        );
                        ahead = ahead.behind(deep / amx::BLOCK_I8);
                        // SAFETY: CPUs with AMX have AVX-512.
                        unsafe { amx::add_scaled(&sums, &scales, height, group == groups.start, tile) };
                    }
                }
                for (row0, tile) in rows.clone().step_by(x.height).zip(&mut tiles) {
                    // SAFETY: the tile lies in the rows and columns that are ours, as the caller promises.
                    unsafe { micro::put_activated(&mut tile.0, target(row0), finish.act(groups.end == x.groups)) };
                }
            }
        }
    }

    /// Adds the products of one panel of rows with P panels in one group, scaled; `fresh` tiles hold nothing yet.
    fn add_group<const P: usize>(
        &self,
        x: &Rows,
        row_panel: usize,
        panel: usize,
        group: usize,
        fresh: bool,
        tiles: &mut Tiles<P>,
    ) {
        let padded = self.cols.div_ceil(NR) * NR;
        let start = group * GROUP;
        let quads = (x.depth - start).min(GROUP) / QUAD;
        let part = Meeting::<P> {
            a: &x.values[(row_panel * x.depth + start) * x.height..][..quads * QUAD * x.height],
            height: x.height,
            row_scales: x.panel_scales(row_panel, group),
            panels: std::array::from_fn(|p| &self.panels[((panel + p) * x.depth + start) * NR..][..quads * QUAD * NR]),
            scales: std::array::from_fn(|p| &self.scales[group * padded + (panel + p) * NR..][..NR]),
            offsets: std::array::from_fn(|p| &self.offsets[group * padded + (panel + p) * NR..][..NR]),
        };
        part.add(quads, fresh, tiles);
    }
}

#[cfg(test)]
mod tests;
