//! Which instructions this CPU has, found at run time.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

/// Instruction level of the kernels; each includes those below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What every CPU of the target has.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, VL, VNNI and BF16.
    Avx512,
}

static FORCED: AtomicU8 = AtomicU8::new(u8::MAX);

/// The level in use: the best the CPU has, or less where `UNIF2ACE_CPU` (`portable`, `avx2`, `avx512`) or [`force_level`] says so.
pub fn level() -> Level {
    static DETECTED: OnceLock<Level> = OnceLock::new();
    let detected = *DETECTED.get_or_init(|| {
        let wanted = match std::env::var("UNIF2ACE_CPU").as_deref() {
            Ok("portable") => Level::Portable,
            Ok("avx2") => Level::Avx2,
            _ => Level::Avx512,
        };
        wanted.min(available())
    });
    match FORCED.load(Ordering::Relaxed) {
        0 => Level::Portable,
        1 => Level::Avx2.min(detected),
        _ => detected,
    }
}

/// Masks detection for tests: levels above `level` are not used from here on; `None` lifts the mask.
pub fn force_level(level: Option<Level>) {
    let code = match level {
        Some(Level::Portable) => 0,
        Some(Level::Avx2) => 1,
        Some(Level::Avx512) | None => u8::MAX,
    };
    FORCED.store(code, Ordering::Relaxed);
}

fn available() -> Level {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx512bf16")
        {
            return Level::Avx512;
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Level::Avx2;
        }
    }
    Level::Portable
}

/// Runs a test at every level, which is process-wide, apart from other such tests.
#[cfg(test)]
pub(crate) fn at_every_level(test: impl Fn(Level)) {
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _alone = ALONE.lock();
    for level in [Level::Portable, Level::Avx2, Level::Avx512] {
        force_level(Some(level));
        test(level);
    }
    force_level(None);
}
