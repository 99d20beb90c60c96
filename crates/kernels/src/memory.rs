//! The allocator's habits.

#[cfg(not(unix))]
use std::alloc::System;
use std::alloc::{GlobalAlloc, Layout};

/// An allocator whose large blocks begin at a cache line, so that vectors of 64 bytes never cross one. glibc's own begin 16 bytes behind one, so
/// that every such vector does: a denoising step of the full model takes 4 to 5% longer. Meant as a program's `#[global_allocator]`; elsewhere
/// than on Unix it is the system's.
///
/// A large block lies in one of the C library's that is a line longer. (`posix_memalign` would leave slivers beside each block, and what is freed
/// then fits no block of the same size: picture and answer of the full model took 0.35 GB more.)
#[derive(Debug, Clone, Copy, Default)]
pub struct AlignedAllocator;

/// Where large blocks begin.
#[cfg(unix)]
const LINE: usize = 64;
/// Blocks of at least so many bytes are large.
#[cfg(unix)]
const LARGE: usize = 4096;

/// How the C library gives a block.
#[cfg(unix)]
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// As its plain functions do.
    Plain,
    /// At the first line in a plain one, behind the number of bytes between.
    Large,
    /// With an alignment of its own.
    Aligned,
}

#[cfg(unix)]
impl Kind {
    fn of(layout: Layout) -> Self {
        match layout.align() {
            align if layout.size() >= LARGE && align <= LINE => Self::Large,
            // What the plain functions give in any case.
            align if align <= 2 * size_of::<usize>() && align <= layout.size() => Self::Plain,
            _ => Self::Aligned,
        }
    }
}

/// The large block in a plain one.
///
/// # Safety
/// `plain` is null or a block of at least [`LINE`] bytes more than the large one has.
#[cfg(unix)]
unsafe fn in_plain(plain: *mut libc::c_void) -> *mut u8 {
    if plain.is_null() {
        return std::ptr::null_mut();
    }
    let offset = LINE - plain.addr() % LINE;
    // SAFETY: the caller's promise. Plain blocks begin at multiples of two numbers, so before the line there is room for one, at a multiple of its
    // size.
    unsafe {
        let block = plain.cast::<u8>().add(offset);
        block.cast::<usize>().sub(1).write(offset);
        block
    }
}

/// How far behind the start of its plain block a large one begins.
///
/// # Safety
/// `block` is one of [`in_plain`].
#[cfg(unix)]
unsafe fn offset_of(block: *mut u8) -> usize {
    // SAFETY: the caller's promise.
    unsafe { block.cast::<usize>().sub(1).read() }
}

/// The large block in a plain one that was moved with `kept` of its bytes, which lie `before` bytes behind its start: where that lies otherwise
/// to the lines than the old one did, they are moved once more.
///
/// # Safety
/// As [`in_plain`]; `before` is at most [`LINE`], and the large block has `kept` bytes.
#[cfg(unix)]
unsafe fn settled(plain: *mut libc::c_void, before: usize, kept: usize) -> *mut u8 {
    let after = LINE - plain.addr() % LINE;
    if !plain.is_null() && after != before {
        // SAFETY: the caller's promise: up to a line and `kept` bytes are in the plain block.
        unsafe { std::ptr::copy(plain.cast::<u8>().add(before), plain.cast::<u8>().add(after), kept) };
    }
    // SAFETY: the caller's promise.
    unsafe { in_plain(plain) }
}

/// A block with an alignment of its own.
#[cfg(unix)]
fn aligned(layout: Layout) -> *mut u8 {
    let mut block = std::ptr::null_mut();
    // SAFETY: the pointer is written to; the alignment is a power of two and a multiple of a pointer's size.
    let failed = unsafe { libc::posix_memalign(&mut block, layout.align().max(size_of::<usize>()), layout.size()) };
    if failed == 0 { block.cast() } else { std::ptr::null_mut() }
}

// SAFETY: blocks are as long and as aligned as wanted. Their kind follows from the layout, so each is given back in the way it was taken; all are
// of the C library's malloc family, whose `free` takes every block that it gave. No size overflows: a layout's is at most `isize::MAX`.
#[cfg(unix)]
unsafe impl GlobalAlloc for AlignedAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: `malloc` takes any size.
        unsafe {
            match Kind::of(layout) {
                Kind::Plain => libc::malloc(layout.size()).cast(),
                Kind::Large => in_plain(libc::malloc(layout.size() + LINE)),
                Kind::Aligned => aligned(layout),
            }
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise: the block was taken with this layout.
        unsafe {
            match Kind::of(layout) {
                Kind::Plain | Kind::Aligned => libc::free(block.cast()),
                Kind::Large => libc::free(block.sub(offset_of(block)).cast()),
            }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: `calloc` takes any size; an aligned block is as long as what is written.
        unsafe {
            match Kind::of(layout) {
                Kind::Plain => libc::calloc(layout.size(), 1).cast(),
                Kind::Large => in_plain(libc::calloc(layout.size() + LINE, 1)),
                Kind::Aligned => {
                    let block = aligned(layout);
                    if !block.is_null() {
                        block.write_bytes(0, layout.size());
                    }
                    block
                }
            }
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise: the block was taken with this layout, and the new size fits the alignment. In the last case the blocks don't
        // overlap, and the old one is given back once.
        unsafe {
            let wanted = Layout::from_size_align_unchecked(size, layout.align());
            let kept = size.min(layout.size());
            match (Kind::of(layout), Kind::of(wanted)) {
                (Kind::Plain, Kind::Plain) => libc::realloc(block.cast(), size).cast(),
                (Kind::Large, Kind::Large) => {
                    let before = offset_of(block);
                    settled(libc::realloc(block.sub(before).cast(), size + LINE), before, kept)
                }
                _ => {
                    let new = self.alloc(wanted);
                    if !new.is_null() {
                        std::ptr::copy_nonoverlapping(block, new, kept);
                        self.dealloc(block, layout);
                    }
                    new
                }
            }
        }
    }
}

// SAFETY: it is the system's.
#[cfg(not(unix))]
unsafe impl GlobalAlloc for AlignedAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { System.realloc(block, layout, size) }
    }
}

/// Asks the C library's allocator to keep freed memory for the next step instead of handing it back to the system, whose fresh pages
/// cost 4 to 15% of a training step. Memory in use doesn't grow; memory held stays near its peak. True where the system took the advice
/// (Linux with glibc); elsewhere nothing happens. Call it once, at the start of a long run.
pub fn keep_freed_memory() -> bool {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // From malloc.h; they are part of glibc's stable interface.
        const M_TRIM_THRESHOLD: i32 = -1;
        const M_MMAP_MAX: i32 = -4;
        unsafe extern "C" {
            fn mallopt(parameter: i32, value: i32) -> i32;
        }
        // SAFETY: the signature is that of malloc.h, and glibc takes its own lock.
        unsafe { mallopt(M_MMAP_MAX, 0) == 1 && mallopt(M_TRIM_THRESHOLD, i32::MAX) == 1 }
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    false
}

#[cfg(test)]
mod tests {
    use std::alloc::{GlobalAlloc, Layout};

    use super::AlignedAllocator;

    /// Blocks of this layout begin at multiples of it.
    fn begins(size: usize, align: usize) -> usize {
        if cfg!(unix) && size >= 4096 { align.max(64) } else { align }
    }

    #[test]
    fn large_blocks_begin_at_a_line_and_all_keep_what_they_hold() {
        for (size, align) in [(1, 1), (8, 8), (24, 64), (4000, 4), (4096, 4), (100_000, 1), (1 << 20, 4096), (5 << 20, 8)] {
            let layout = Layout::from_size_align(size, align).unwrap();
            for then in [size, 3 * size, 1 + size / 2] {
                // SAFETY: sizes are not zero, each block is used within its size and given back once with the layout of its last size.
                unsafe {
                    let zeros = AlignedAllocator.alloc_zeroed(layout);
                    assert!(!zeros.is_null() && zeros.addr().is_multiple_of(begins(size, align)));
                    assert!(std::slice::from_raw_parts(zeros, size).iter().all(|&byte| byte == 0));
                    AlignedAllocator.dealloc(zeros, layout);

                    let block = AlignedAllocator.alloc(layout);
                    assert!(!block.is_null() && block.addr().is_multiple_of(begins(size, align)));
                    (0..size).for_each(|i| block.add(i).write(i as u8));
                    let block = AlignedAllocator.realloc(block, layout, then);
                    assert!(!block.is_null() && block.addr().is_multiple_of(begins(then, align)));
                    let kept = std::slice::from_raw_parts(block, size.min(then));
                    assert!(kept.iter().enumerate().all(|(i, &byte)| byte == i as u8));
                    AlignedAllocator.dealloc(block, Layout::from_size_align(then, align).unwrap());
                }
            }
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_block_that_was_moved_is_found_at_the_lines_of_its_new_place() {
        const HELD: usize = 500;
        for (place, before) in (0..64).step_by(16).flat_map(|place| [16, 32, 48, 64].map(|before| (place, before))) {
            let layout = Layout::from_size_align(64 + 64 + HELD, 64).unwrap();
            // SAFETY: the plain block begins up to 48 bytes behind a line and has room for what it holds behind one line more.
            unsafe {
                let start = AlignedAllocator.alloc(layout);
                let plain = start.add(place);
                (0..HELD).for_each(|i| plain.add(before + i).write(i as u8));
                let block = super::settled(plain.cast(), before, HELD);
                assert!(block.addr().is_multiple_of(64) && block.sub(super::offset_of(block)) == plain, "{place} {before}");
                assert!((0..HELD).all(|i| block.add(i).read() == i as u8), "{place} {before}");
                AlignedAllocator.dealloc(start, layout);
            }
        }
    }

    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    /// Page faults of this thread that needed no disk.
    fn faults() -> u64 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        // Fields count from behind the name, which may hold blanks; this is the eighth.
        stat.rsplit(')').next().unwrap().split_whitespace().nth(7).unwrap().parse().unwrap()
    }

    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[test]
    fn a_block_taken_again_costs_no_fresh_pages() {
        assert!(super::keep_freed_memory());
        // Larger than the 32 MB above which glibc maps every block anew by default.
        let take = || drop(std::hint::black_box(vec![1u8; 48 << 20]));
        take();
        let before = faults();
        (0..4).for_each(|_| take());
        let pages = (48 << 20) / 4096;
        assert!(faults() - before < pages, "{} page faults", faults() - before);
    }
}
