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
    /// AMX tiles for bf16 and 8 bits.
    Amx,
}

impl Level {
    /// All levels, also those that this CPU lacks.
    pub const ALL: [Self; 4] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Amx];

    /// The name that [`MASK`] knows it by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Amx => "amx",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.name() == name)
    }
}

/// The environment variable that masks what the CPU has.
pub const MASK: &str = "UNIF2ACE_CPU";

/// What [`MASK`] says, if that is no level's name: programs should refuse it, as [`level`] takes no notice of it.
pub fn unknown_mask() -> Option<String> {
    let value = std::env::var_os(MASK)?;
    let known = value.to_str().is_some_and(|name| Level::named(name).is_some());
    (!known).then(|| value.to_string_lossy().into_owned())
}

static FORCED: AtomicU8 = AtomicU8::new(u8::MAX);

/// The level in use: the best the CPU has, or less where [`MASK`] (`portable`, `avx2`, `avx512`, `amx`) or [`force_level`] says so.
pub fn level() -> Level {
    static DETECTED: OnceLock<Level> = OnceLock::new();
    let detected = *DETECTED.get_or_init(|| {
        let wanted = std::env::var(MASK).ok().and_then(|name| Level::named(&name)).unwrap_or(Level::Amx);
        wanted.min(available())
    });
    match FORCED.load(Ordering::Relaxed) {
        0 => Level::Portable,
        1 => Level::Avx2.min(detected),
        2 => Level::Avx512.min(detected),
        _ => detected,
    }
}

/// Masks detection for tests: levels above `level` are not used from here on; `None` lifts the mask.
pub fn force_level(level: Option<Level>) {
    let code = match level {
        Some(Level::Portable) => 0,
        Some(Level::Avx2) => 1,
        Some(Level::Avx512) => 2,
        Some(Level::Amx) | None => u8::MAX,
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
            return if amx() { Level::Amx } else { Level::Avx512 };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Level::Avx2;
        }
    }
    Level::Portable
}

/// Whether the CPU has tiles for bf16 and 8 bits and the system lets this process use them, which is asked for here: the state of tiles is
/// so large that Linux keeps it only for processes that want it.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn amx() -> bool {
    const ARCH_PRCTL: usize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILEDATA: usize = 18;
    // Leaf 7: AMX-BF16, AMX-TILE, AMX-INT8.
    const BITS: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    if std::arch::x86_64::__cpuid_count(7, 0).edx & BITS != BITS {
        return false;
    }
    let result: isize;
    // SAFETY: the system call takes two numbers and touches no memory of ours; it clobbers rcx and r11, as all do. Permission once given
    // holds for all threads; systems that don't know the call return an error.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack)
        );
    }
    result == 0
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn amx() -> bool {
    false
}

/// Runs a test at every level, which is process-wide, apart from other such tests.
#[cfg(test)]
pub(crate) fn at_every_level(test: impl Fn(Level)) {
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _alone = ALONE.lock();
    for level in Level::ALL {
        force_level(Some(level));
        test(level);
    }
    force_level(None);
}
