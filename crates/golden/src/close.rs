/// The largest absolute difference and its index; a NaN on one side only counts as infinite.
///
/// # Panics
/// When the lengths differ.
pub fn max_abs_diff(actual: &[f32], expected: &[f32]) -> (f32, usize) {
    assert_eq!(actual.len(), expected.len(), "number of values");
    let mut worst = (0.0f32, 0);
    for (index, (&a, &e)) in actual.iter().zip(expected).enumerate() {
        let diff = if a == e || (a.is_nan() && e.is_nan()) { 0.0 } else { (a - e).abs() };
        let diff = if diff.is_nan() { f32::INFINITY } else { diff };
        if diff > worst.0 {
            worst = (diff, index);
        }
    }
    worst
}

/// Asserts that all values lie within `tol` (absolute) of the expected ones.
///
/// # Panics
/// When lengths differ or one value lies outside; the message names `what`, the place and both values.
#[track_caller]
pub fn assert_close(actual: &[f32], expected: &[f32], tol: f32, what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}: number of values");
    assert!(!expected.is_empty(), "{what}: nothing to compare");
    let (diff, index) = max_abs_diff(actual, expected);
    assert!(
        diff <= tol,
        "{what}: largest difference {diff:e} > {tol:e} at {index} of {}: actual {}, expected {}",
        actual.len(),
        actual[index],
        expected[index]
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_seen() {
        assert_close(&[1.0, 2.0], &[1.0, 2.00001], 2e-5, "near");
        assert!(std::panic::catch_unwind(|| assert_close(&[1.0, 2.1], &[1.0, 2.0], 1e-2, "far")).is_err());
        assert!(std::panic::catch_unwind(|| assert_close(&[f32::NAN], &[0.0], 1e9, "nan")).is_err());
        assert!(std::panic::catch_unwind(|| assert_close(&[], &[], 1.0, "empty")).is_err());
        assert_eq!(max_abs_diff(&[f32::INFINITY], &[f32::INFINITY]).0, 0.0);
    }
}
