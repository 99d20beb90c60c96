//! The allocator's habits.

#[cfg(not(unix))]
use std::alloc::System;
use std::alloc::{GlobalAlloc, Layout};

/// An allocator whose large blocks begin at a cache line, so that vectors of 64 bytes never cross one. glibc's own large blocks begin 16 bytes
/// behind one, so that every such vector does: a denoising step of the full model takes 4 to 5% longer. Meant as a program's
/// `#[global_allocator]`; elsewhere than on Unix it is the system's.
#[derive(Debug, Clone, Copy, Default)]
pub struct AlignedAllocator;

/// Where large blocks begin.
#[cfg(unix)]
const LINE: usize = 64;
/// Blocks of at least so many bytes are large.
#[cfg(unix)]
const LARGE: usize = 4096;

/// A block of the C library's.
#[cfg(unix)]
fn aligned(align: usize, size: usize) -> *mut u8 {
    let mut block = std::ptr::null_mut();
    // SAFETY: the pointer is written to; the alignment is a power of two and a multiple of a pointer's size.
    let failed = unsafe { libc::posix_memalign(&mut block, align.max(size_of::<usize>()), size) };
    if failed == 0 { block.cast() } else { std::ptr::null_mut() }
}

/// Whether the C library's plain functions give blocks that are aligned as wanted.
#[cfg(unix)]
fn plain(layout: Layout) -> bool {
    layout.align() <= 2 * size_of::<usize>() && layout.align() <= layout.size()
}

// SAFETY: all blocks are of the C library's malloc family, whose `free` and `realloc` take each other's; they are at least as long and as
// aligned as wanted.
#[cfg(unix)]
unsafe impl GlobalAlloc for AlignedAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() >= LARGE {
            aligned(layout.align().max(LINE), layout.size())
        } else if plain(layout) {
            // SAFETY: `malloc` takes any size.
            unsafe { libc::malloc(layout.size()).cast() }
        } else {
            aligned(layout.align(), layout.size())
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, _layout: Layout) {
        // SAFETY: the block is one of the C library's, as said above.
        unsafe { libc::free(block.cast()) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if plain(layout) {
            // Large ones aren't aligned: only `calloc` knows that fresh pages are zeros already.
            // SAFETY: `calloc` takes any size.
            return unsafe { libc::calloc(layout.size(), 1).cast() };
        }
        let block = aligned(layout.align(), layout.size());
        if !block.is_null() {
            // SAFETY: the block is as long.
            unsafe { block.write_bytes(0, layout.size()) };
        }
        block
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if plain(layout) && layout.align() <= size {
            // Large ones may come out unaligned: moving pages is worth more than that.
            // SAFETY: the block is one of the C library's, as said above.
            return unsafe { libc::realloc(block.cast(), size).cast() };
        }
        // SAFETY: the size is one that the caller may ask for with this alignment; both blocks hold what is copied and don't overlap; the old
        // one is given back once.
        unsafe {
            let new = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !new.is_null() {
                std::ptr::copy_nonoverlapping(block, new, size.min(layout.size()));
                self.dealloc(block, layout);
            }
            new
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

    #[test]
    fn large_blocks_begin_at_a_line_and_all_keep_what_they_hold() {
        for (size, align) in [(1, 1), (8, 8), (24, 64), (4000, 4), (4096, 4), (100_000, 1), (1 << 20, 4096), (5 << 20, 8)] {
            let layout = Layout::from_size_align(size, align).unwrap();
            for larger in [size, 3 * size, 1 + size / 2] {
                // SAFETY: sizes are not zero, each block is used within its size and given back once with the layout of its last size.
                unsafe {
                    let zeros = AlignedAllocator.alloc_zeroed(layout);
                    assert!(!zeros.is_null() && zeros.addr().is_multiple_of(align));
                    assert!(std::slice::from_raw_parts(zeros, size).iter().all(|&byte| byte == 0));
                    AlignedAllocator.dealloc(zeros, layout);

                    let block = AlignedAllocator.alloc(layout);
                    assert!(!block.is_null() && block.addr().is_multiple_of(align));
                    assert!(size < 4096 || cfg!(not(unix)) || block.addr().is_multiple_of(64));
                    (0..size).for_each(|i| block.add(i).write(i as u8));
                    let block = AlignedAllocator.realloc(block, layout, larger);
                    assert!(!block.is_null() && block.addr().is_multiple_of(align));
                    let kept = std::slice::from_raw_parts(block, size.min(larger));
                    assert!(kept.iter().enumerate().all(|(i, &byte)| byte == i as u8));
                    AlignedAllocator.dealloc(block, Layout::from_size_align(larger, align).unwrap());
                }
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
