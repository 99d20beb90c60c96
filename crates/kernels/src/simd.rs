//! One plain loop, compiled for each instruction level.

use half::bf16;

/// Defines a function whose body is compiled for every level of [`crate::cpu::Level`] and chosen at run time. The body is ordinary safe
/// Rust over slices (the portable version is its scalar twin); the compiler vectorises it.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<$t:ident: $bound:path>)? ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name $(<$t: $bound>)? ($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body $(<$t: $bound>)? ($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            fn avx512 $(<$t: $bound>)? ($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            fn avx2 $(<$t: $bound>)? ($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
            match $crate::cpu::level() {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `level` found these instructions on this CPU.
                $crate::cpu::Level::Avx512 | $crate::cpu::Level::Amx => unsafe { avx512($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `level` found these instructions on this CPU.
                $crate::cpu::Level::Avx2 => unsafe { avx2($($arg),*) },
                _ => body($($arg),*),
            }
        }
    };
}
pub(crate) use multiversion;

/// `e^x` within two units in the last place for x in -87..88, without a library call, so that loops of it vectorise.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 5.000_000_1e-1;
    let value = p * r * r + r + 1.0;
    value * f32::from_bits(shifted.to_bits().wrapping_shl(23).wrapping_add(0x3F80_0000))
}

/// `tanh(x)` from [`exp`].
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

/// Lanes of sums and maxima: value i of a row goes to lane i modulo 16, which vectorises and rounds less than one running value.
pub(crate) type Lanes = [f32; 16];

// In these three the lanes of the whole chunks are not those that the rest is added to: with a rest of any length the compiler would keep
// them in memory, and each chunk would wait for the store of the one before.

/// `lane = f(lane, x)` from lanes of `start`.
#[inline(always)]
pub(crate) fn fold(x: &[f32], start: f32, f: impl Fn(f32, f32) -> f32) -> Lanes {
    let mut lanes = [start; 16];
    let (chunks, rest) = x.as_chunks::<16>();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = f(*lane, x);
        }
    }
    let mut all = lanes;
    for (lane, &x) in all.iter_mut().zip(rest) {
        *lane = f(*lane, x);
    }
    all
}

/// A number as it is stored; computing is in f32.
pub(crate) trait Stored: Copy + Send + Sync {
    fn wide(self) -> f32;
}

impl Stored for f32 {
    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }
}

impl Stored for bf16 {
    // Not `to_f32`, which looks for quiet and signalling NaNs and does not vectorise.
    #[inline(always)]
    fn wide(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

/// `lane += x * y`, of as many values as the shorter one has.
#[inline(always)]
pub(crate) fn fold_products<T: Stored>(x: &[f32], y: &[T]) -> Lanes {
    let len = x.len().min(y.len());
    let mut lanes = [0.0; 16];
    let ((chunks, rest), (chunks_y, rest_y)) = (x[..len].as_chunks::<16>(), y[..len].as_chunks::<16>());
    for (x, y) in chunks.iter().zip(chunks_y) {
        for ((lane, x), y) in lanes.iter_mut().zip(x).zip(y) {
            *lane += x * y.wide();
        }
    }
    let mut all = lanes;
    for ((lane, x), y) in all.iter_mut().zip(rest).zip(rest_y) {
        *lane += x * y.wide();
    }
    all
}

/// `x = f(x)`, `lane += x`.
#[inline(always)]
pub(crate) fn map_and_sum(x: &mut [f32], f: impl Fn(f32) -> f32) -> Lanes {
    let mut lanes = [0.0; 16];
    let (chunks, rest) = x.as_chunks_mut::<16>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *x = f(*x);
            *lane += *x;
        }
    }
    let mut all = lanes;
    for (lane, x) in all.iter_mut().zip(rest) {
        *x = f(*x);
        *lane += *x;
    }
    all
}

/// The larger one, the second if the first is not a number: one instruction.
#[inline(always)]
pub(crate) fn larger(most: f32, x: f32) -> f32 {
    if x > most { x } else { most }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_take_every_value_once_whatever_the_length() {
        for length in [0, 1, 15, 16, 17, 50] {
            let x: Vec<f32> = (0..length).map(|i| i as f32 - 7.0).collect();
            let mut expected = [0.0f32; 16];
            let mut most = [f32::NEG_INFINITY; 16];
            for (i, &x) in x.iter().enumerate() {
                expected[i % 16] += x * x;
                most[i % 16] = most[i % 16].max(x);
            }
            assert_eq!(fold_products(&x, &x), expected);
            assert_eq!(fold(&x, 0.0, |sum, x| sum + x * x), expected);
            assert_eq!(fold(&x, f32::NEG_INFINITY, larger), most);
            let mut squares = x.clone();
            assert_eq!(map_and_sum(&mut squares, |x| x * x), expected);
            assert!(squares.iter().zip(&x).all(|(square, x)| *square == x * x));
        }
    }

    #[test]
    fn exp_and_tanh_follow_the_library() {
        for step in -8700..8800 {
            let x = step as f32 * 0.01;
            let (found, expected) = (super::exp(x), x.exp());
            assert!((found - expected).abs() <= 4e-7 * expected, "exp({x}) = {found}, {expected}");
            let (found, expected) = (super::tanh(x), x.tanh());
            assert!((found - expected).abs() <= 3e-7, "tanh({x}) = {found}, {expected}");
        }
    }
}
