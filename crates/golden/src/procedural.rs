/// FNV-1a, 64 bits.
pub fn fnv1a_64(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Procedural weights: values that depend on the tensor's name, index and shape only (formula in the golden README), so that
/// large networks need no stored weights.
pub fn procedural(name: &str, shape: &[usize]) -> Vec<f32> {
    let num: usize = shape.iter().product();
    let (scale, offset) = if name.ends_with(".bias") {
        (0.05, 0.0)
    } else if shape.len() == 1 {
        (0.1, 1.0)
    } else {
        let fan_in: usize = shape[1..].iter().product();
        ((3.0 / fan_in as f64).sqrt(), 0.0)
    };
    let hash = fnv1a_64(name);
    (1..=num as u64)
        .map(|index| {
            let mut z = hash.wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^= z >> 31;
            let unit = (z >> 40) as f64 / f64::from(1u32 << 23) - 1.0;
            (offset + scale * unit) as f32
        })
        .collect()
}
