//! AMX tiles: 32 x 32 values of C in four tile registers, from two of A and two of B.
//!
//! Panels of B are those of the other kernels, whose lines of pairs (or quads) of depths are what the tile instructions take. Panels of A
//! are rows of 64 bytes: `[block of depths][row][BLOCK]`. Rust has no stable intrinsics for tiles, so the kernels are assembly, each of
//! which configures the registers and releases them: nothing else sees them.

use std::arch::asm;
use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::micro::NR;

/// Rows of a tile of C.
pub(super) const HEIGHT: usize = 32;
/// Bytes of A that one task works on at a time: CPUs with AMX have second-level caches of 2 MiB.
pub(super) const LEFT_BYTES: usize = 1300 << 10;
/// Bytes of a row of a tile register.
const LINE: usize = 64;
/// Rows of a tile register.
const LINES: usize = 16;
/// Depths of a block in bf16.
pub(super) const BLOCK: usize = 32;
/// Depths of a block in 8 bits.
pub(super) const BLOCK_I8: usize = 64;

/// A tile of C.
#[repr(C, align(64))]
pub(super) struct Tile<T>(pub(super) [[T; NR]; HEIGHT]);

/// Palette 1 with all registers of 16 rows of 64 bytes; the instruction's operand.
#[repr(C, align(64))]
struct Config([u8; 64]);

static CONFIG: Config = {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    let mut register = 0;
    while register < 8 {
        bytes[16 + 2 * register] = LINE as u8;
        bytes[48 + register] = LINES as u8;
        register += 1;
    }
    Config(bytes)
};

/// One block of B whose end the matrix doesn't fill.
#[repr(C, align(64))]
struct Rest([u8; LINES * 2 * LINE]);

impl Rest {
    /// `lines` of a panel of B, then zeros.
    ///
    /// # Safety
    /// `lines` lines of 128 bytes from `b` are valid for reads; there are at most 16.
    unsafe fn new(b: *const u8, lines: usize) -> Self {
        debug_assert!(lines <= LINES);
        let mut rest = Self([0; LINES * 2 * LINE]);
        // SAFETY: the caller's promise; the block has room for 16 lines.
        unsafe { std::ptr::copy_nonoverlapping(b, rest.0.as_mut_ptr(), lines * 2 * LINE) };
        rest
    }
}

/// The tile registers of this thread, configured for whole tiles from here to the drop. Nothing else uses them: the compiler doesn't know of
/// them, and the system keeps them apart for each thread.
pub(super) struct Registers(PhantomData<*const ()>);

impl Registers {
    /// # Safety
    /// The CPU has AMX and this process may use it; this thread has no other `Registers`.
    pub(super) unsafe fn new() -> Self {
        // SAFETY: the operand is 64 bytes of a valid configuration; the instruction clears the tile registers, which nobody uses.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &CONFIG, options(nostack, preserves_flags, readonly)) };
        Self(PhantomData)
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        // SAFETY: the registers were configured and hold nothing that is needed.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
    }
}

/// What a kernel asks the caches for while it works.
#[derive(Clone, Copy)]
pub(super) enum Ahead {
    /// A part of the panel of B that comes next, for the second-level cache: where many rows meet a panel.
    Next(*const u8),
    /// All of what lies a little further on in this panel, for the first-level cache: where reading B takes the time. From mapped files,
    /// whose pages are small, B is read 1.3 times as fast as with [`Ahead::Next`] (30x8192x2048). At the end of a block of depth what is fetched is
    /// not what comes next; that is five blocks of 64.
    Near,
}

impl Ahead {
    /// Bytes of [`Ahead::Next`] for each block: the lines that its kernels fetch.
    const STEP: usize = 4 * LINE;
    /// How far [`Ahead::Near`] is: five blocks.
    const NEAR: usize = 5 * 2 * LINE * LINES;

    /// Where `panels` panels of rows meet one of B, and `next` begins where the next of B does.
    pub(super) fn new<T>(next: &[T], panels: usize) -> Self {
        if panels == 1 { Self::Near } else { Self::Next(next.as_ptr().cast()) }
    }

    /// Behind `blocks` blocks.
    pub(super) fn behind(self, blocks: usize) -> Self {
        match self {
            Self::Next(at) => Self::Next(at.wrapping_add(blocks * Self::STEP)),
            Self::Near => Self::Near,
        }
    }
}

/// Adds products of blocks to the four tiles of C (tmm0 to tmm3), which hold sums before and after.
macro_rules! kernel {
    ($name:ident, $product:literal, $hint:literal, $lines:literal) => {
        /// `c += a b` (or `c = a b` if `fresh`) over `blocks` blocks and, behind them, the rest; only the upper half of `c` if no more than
        /// that is wanted.
        ///
        /// # Safety
        /// `a` holds `blocks` (and one more if there is a rest) blocks of HEIGHT rows of 64 bytes, `b` `blocks` blocks of 16 lines of 128
        /// bytes.
        unsafe fn $name<T>(
            _registers: &Registers,
            a: *const u8,
            b: *const u8,
            blocks: usize,
            rest: Option<&Rest>,
            fresh: bool,
            ahead: *const u8,
            c: &mut Tile<T>,
            height: usize,
        ) {
            const { assert!(size_of::<T>() == 4) };
            let rest = rest.map_or(std::ptr::null(), |rest| rest.0.as_ptr());
            // SAFETY: the loop reads what the caller promises, the stores write the 4096 bytes of a tile. Prefetches read nothing. The tile
            // registers are configured.
            unsafe {
                asm!(
                    "test {fresh}, {fresh}",
                    "jnz 20f",
                    "tileloadd tmm0, [{c} + {wide}*1]",
                    "tileloadd tmm1, [{c} + {wide}*1 + 64]",
                    "tileloadd tmm2, [{c} + {wide}*1 + 2048]",
                    "tileloadd tmm3, [{c} + {wide}*1 + 2112]",
                    "jmp 21f",
                    "20:",
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "21:",
                    "test {blocks}, {blocks}",
                    "jz 23f",
                    "22:",
                    "tileloadd tmm6, [{b} + {wide}*1]",
                    "tileloadd tmm4, [{a} + {narrow}*1]",
                    concat!($product, " tmm0, tmm4, tmm6"),
                    "tileloadd tmm7, [{b} + {wide}*1 + 64]",
                    ".set unif2ace_ahead, 0",
                    concat!(".rept ", $lines),
                    concat!($hint, " [{ahead} + unif2ace_ahead]"),
                    ".set unif2ace_ahead, unif2ace_ahead + 64",
                    ".endr",
                    concat!($product, " tmm1, tmm4, tmm7"),
                    "cmp {height}, 16",
                    "jbe 25f",
                    "tileloadd tmm5, [{a} + {narrow}*1 + 1024]",
                    concat!($product, " tmm2, tmm5, tmm6"),
                    concat!($product, " tmm3, tmm5, tmm7"),
                    "25:",
                    "add {a}, 2048",
                    "add {b}, 2048",
                    concat!("add {ahead}, 64 * ", $lines),
                    "dec {blocks}",
                    "jnz 22b",
                    "23:",
                    "test {rest}, {rest}",
                    "jz 24f",
                    "mov {b}, {rest}",
                    "xor {rest:e}, {rest:e}",
                    "inc {blocks}",
                    "jmp 22b",
                    "24:",
                    "tilestored [{c} + {wide}*1], tmm0",
                    "tilestored [{c} + {wide}*1 + 64], tmm1",
                    "tilestored [{c} + {wide}*1 + 2048], tmm2",
                    "tilestored [{c} + {wide}*1 + 2112], tmm3",
                    fresh = in(reg) usize::from(fresh),
                    a = inout(reg) a => _,
                    b = inout(reg) b => _,
                    ahead = inout(reg) ahead => _,
                    blocks = inout(reg) blocks => _,
                    rest = inout(reg) rest => _,
                    c = in(reg) c.0.as_mut_ptr(),
                    wide = in(reg) 2 * LINE,
                    narrow = in(reg) LINE,
                    height = in(reg) height,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack)
                );
            }
        }
    };
}

kernel!(bf16_next, "tdpbf16ps", "prefetcht1", 4);
kernel!(bf16_near, "tdpbf16ps", "prefetcht0", 32);
kernel!(int8_next, "tdpbusd", "prefetcht1", 4);
kernel!(int8_near, "tdpbusd", "prefetcht0", 32);

/// One of the loops above.
type Kernel<T> = unsafe fn(&Registers, *const u8, *const u8, usize, Option<&Rest>, bool, *const u8, &mut Tile<T>, usize);

/// bf16 panels into a tile: `a` is `[blocks][HEIGHT][BLOCK]`, `b` `[depth / 2][NR][2]`; `depth` is even, and `a` is zero behind it. Added to
/// what `c` holds unless it is `fresh`. `height` rows of `c` are wanted.
pub(super) fn bf16(
    registers: &Registers,
    a: &[u16],
    b: &[u16],
    depth: usize,
    fresh: bool,
    ahead: Ahead,
    c: &mut Tile<f32>,
    height: usize,
) {
    assert!(depth.is_multiple_of(2) && a.len() >= depth.next_multiple_of(BLOCK) * HEIGHT && b.len() >= depth * NR);
    let (blocks, lines) = (depth / BLOCK, depth % BLOCK / 2);
    // SAFETY: the assertion gives the panels their lengths; the rest of `b` lies behind its blocks.
    unsafe {
        let rest = (lines > 0).then(|| Rest::new(b.as_ptr().add(blocks * BLOCK * NR).cast(), lines));
        let (kernel, ahead) = match ahead {
            Ahead::Next(at) => (bf16_next::<f32> as Kernel<f32>, at),
            Ahead::Near => (bf16_near::<f32> as Kernel<f32>, b.as_ptr().cast::<u8>().wrapping_add(Ahead::NEAR)),
        };
        kernel(registers, a.as_ptr().cast(), b.as_ptr().cast(), blocks, rest.as_ref(), fresh, ahead, c, height);
    }
}

/// Panels in 8 bits into a tile of exact sums: `a` is `[blocks][HEIGHT][BLOCK_I8]`, `b` `[depth / 4][NR][4]`; `depth` is a multiple of 4.
/// `height` rows of `c` are wanted.
pub(super) fn int8(registers: &Registers, a: &[u8], b: &[i8], depth: usize, ahead: Ahead, c: &mut Tile<i32>, height: usize) {
    assert!(depth.is_multiple_of(4) && a.len() >= depth.next_multiple_of(BLOCK_I8) * HEIGHT && b.len() >= depth * NR);
    let (blocks, lines) = (depth / BLOCK_I8, depth % BLOCK_I8 / 4);
    // SAFETY: as in `bf16`.
    unsafe {
        let rest = (lines > 0).then(|| Rest::new(b.as_ptr().add(blocks * BLOCK_I8 * NR).cast(), lines));
        let (kernel, ahead) = match ahead {
            Ahead::Next(at) => (int8_next::<i32> as Kernel<i32>, at),
            Ahead::Near => (int8_near::<i32> as Kernel<i32>, b.as_ptr().cast::<u8>().wrapping_add(Ahead::NEAR)),
        };
        kernel(registers, a.as_ptr(), b.as_ptr().cast(), blocks, rest.as_ref(), true, ahead, c, height);
    }
}

/// One to eight rows times two panels: from `a` rows of `length` values, added to `sums`; behind the depth each row is zero up to the next
/// block. Two panels at a time read the memory some 8% faster than one after the other (1x8192x2048, `kernels/examples/packed.rs`).
///
/// # Safety
/// The CPU has AMX and this process may use it. From `a`, `rows` rows of `depth.next_multiple_of(BLOCK)` values lie `length` apart.
pub(super) unsafe fn bf16_rows<const ROWS: usize>(
    a: *const u16,
    length: usize,
    rows: usize,
    b: [&[u16]; 2],
    depth: usize,
    sums: &mut [[[f32; NR]; ROWS]; 2],
) {
    assert!(depth.is_multiple_of(2) && b.iter().all(|b| b.len() >= depth * NR) && (1..=ROWS.min(LINES)).contains(&rows));
    let mut config = Config(CONFIG.0);
    for register in [0, 1, 2, 3, 4] {
        config.0[48 + register] = rows as u8;
    }
    let (blocks, lines) = (depth / BLOCK, depth % BLOCK / 2);
    let [first, second] = sums;
    const { assert!(size_of::<Rest>() == 2048) };
    // SAFETY: the assertion gives the panels their length; their rests lie behind their blocks, and live side by side, as long as `rests`, to
    // the end of the assembly. The loop reads whole blocks of the rows, as the caller promises, and the stores write `rows` rows of sums.
    // Prefetches read nothing. The tile registers are named as clobbered, and released at the end.
    unsafe {
        let rests = (lines > 0).then(|| b.map(|b| Rest::new(b.as_ptr().add(blocks * BLOCK * NR).cast(), lines)));
        let rest = rests.as_ref().map_or(std::ptr::null(), |rests| rests.as_ptr());
        asm!(
            "ldtilecfg [{config}]",
            "tileloadd tmm0, [{c} + {wide}*1]",
            "tileloadd tmm1, [{c} + {wide}*1 + 64]",
            "tileloadd tmm2, [{c2} + {wide}*1]",
            "tileloadd tmm3, [{c2} + {wide}*1 + 64]",
            "test {blocks}, {blocks}",
            "jz 23f",
            "22:",
            // The lines of the block four further on: decoding would wait for the memory at each tile.
            ".set unif2ace_ahead, 8192",
            ".rept 32",
            "prefetcht0 [{b} + unif2ace_ahead]",
            "prefetcht0 [{b2} + unif2ace_ahead]",
            ".set unif2ace_ahead, unif2ace_ahead + 64",
            ".endr",
            "tileloadd tmm4, [{a} + {length}*1]",
            "tileloadd tmm6, [{b} + {wide}*1]",
            "tileloadd tmm7, [{b} + {wide}*1 + 64]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{b2} + {wide}*1]",
            "tileloadd tmm6, [{b2} + {wide}*1 + 64]",
            "tdpbf16ps tmm2, tmm4, tmm5",
            "tdpbf16ps tmm3, tmm4, tmm6",
            "add {a}, 64",
            "add {b}, 2048",
            "add {b2}, 2048",
            "dec {blocks}",
            "jnz 22b",
            "23:",
            "test {rest}, {rest}",
            "jz 24f",
            "mov {b}, {rest}",
            "lea {b2}, [{rest} + 2048]",
            "xor {rest:e}, {rest:e}",
            "inc {blocks}",
            "jmp 22b",
            "24:",
            "tilestored [{c} + {wide}*1], tmm0",
            "tilestored [{c} + {wide}*1 + 64], tmm1",
            "tilestored [{c2} + {wide}*1], tmm2",
            "tilestored [{c2} + {wide}*1 + 64], tmm3",
            "tilerelease",
            config = in(reg) &config,
            a = inout(reg) a => _,
            b = inout(reg) b[0].as_ptr() => _,
            b2 = inout(reg) b[1].as_ptr() => _,
            blocks = inout(reg) blocks => _,
            rest = inout(reg) rest => _,
            c = in(reg) first.as_mut_ptr(),
            c2 = in(reg) second.as_mut_ptr(),
            wide = in(reg) 2 * LINE,
            length = in(reg) 2 * length,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack)
        );
    }
}

/// One group of sums in 8 bits: what turns them into values.
pub(super) struct Scales<'a> {
    /// One for each row.
    pub(super) rows: &'a [f32],
    /// NR for the columns.
    pub(super) columns: &'a [f32],
    /// NR that are taken off the sums.
    pub(super) offsets: &'a [i32],
}

/// Adds scaled sums to a tile, or puts them there if it is `fresh`, as the other kernels for 8 bits do.
#[target_feature(enable = "avx512f")]
pub(super) fn add_scaled(sums: &Tile<i32>, scales: &Scales<'_>, height: usize, fresh: bool, tile: &mut Tile<f32>) {
    for half in [0, 16] {
        let (columns, offsets) = (&scales.columns[half..half + 16], &scales.offsets[half..half + 16]);
        // SAFETY: both slices are 16 values.
        let (columns, offsets) = unsafe { (_mm512_loadu_ps(columns.as_ptr()), _mm512_loadu_si512(offsets.as_ptr().cast())) };
        for ((sums, tile), &row) in sums.0.iter().zip(&mut tile.0).zip(scales.rows).take(height) {
            let (sums, out) = (&sums[half..half + 16], &mut tile[half..half + 16]);
            // SAFETY: both slices are 16 values.
            unsafe {
                let sum = _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_loadu_si512(sums.as_ptr().cast()), offsets));
                let product = _mm512_mul_ps(sum, _mm512_mul_ps(_mm512_set1_ps(row), columns));
                let value = if fresh { product } else { _mm512_add_ps(_mm512_loadu_ps(out.as_ptr()), product) };
                _mm512_storeu_ps(out.as_mut_ptr(), value);
            }
        }
    }
}
