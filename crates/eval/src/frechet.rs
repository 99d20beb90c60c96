//! Fréchet distance between two sets of pictures' features, each taken as a normal distribution (Heusel et al. 2017). With the features
//! of the model's own CLIP tower instead of Inception's it is *small*: comparable between models with that tower, never with published FIDs.

use nalgebra::{DMatrix, DVector, SymmetricEigen};

use crate::error::{EvalError, Result};

/// Mean and covariance of `rows` of `width` features.
fn moments(rows: &[f32], width: usize) -> (DVector<f64>, DMatrix<f64>) {
    let count = rows.len() / width;
    let features = DMatrix::from_row_iterator(count, width, rows.iter().map(|&value| f64::from(value)));
    let mean = features.row_mean();
    let centred = DMatrix::from_fn(count, width, |row, column| features[(row, column)] - mean[column]);
    let covariance = centred.tr_mul(&centred) / (count as f64 - 1.0).max(1.0);
    (mean.transpose(), covariance)
}

/// Square root of a symmetric positive semi-definite matrix.
fn root(matrix: &DMatrix<f64>) -> DMatrix<f64> {
    let eigen = SymmetricEigen::new(matrix.clone());
    let roots = DMatrix::from_diagonal(&eigen.eigenvalues.map(|value| value.max(0.0).sqrt()));
    &eigen.eigenvectors * roots * eigen.eigenvectors.transpose()
}

/// `|m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½)` of two sets of rows of `width` features.
///
/// # Errors
/// When a set has fewer than two rows or a value isn't finite.
pub fn frechet_distance(first: &[f32], second: &[f32], width: usize) -> Result<f64> {
    for rows in [first, second] {
        if width == 0
            || rows.len() < 2 * width
            || !rows.len().is_multiple_of(width)
            || rows.iter().any(|value| !value.is_finite())
        {
            let reason = format!("expected at least two rows of {width} finite features, found {} values", rows.len());
            return Err(EvalError::Step { operation: "Fréchet distance", reason });
        }
    }
    let ((mean1, covariance1), (mean2, covariance2)) = (moments(first, width), moments(second, width));
    let root1 = root(&covariance1);
    // The eigenvalues of C1 C2 are those of the symmetric C1^½ C2 C1^½.
    let product = &root1 * &covariance2 * &root1;
    let product = (&product + product.transpose()) * 0.5;
    let trace_of_root: f64 = SymmetricEigen::new(product).eigenvalues.iter().map(|value| value.max(0.0).sqrt()).sum();
    Ok((mean1 - mean2).norm_squared() + covariance1.trace() + covariance2.trace() - 2.0 * trace_of_root)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(count: usize, scale: [f32; 2], shift: f32) -> Vec<f32> {
        // Points of a circle are uncorrelated, with variance 1/2 an axis.
        let angle = |index: usize| std::f32::consts::TAU * index as f32 / count as f32;
        (0..count).flat_map(|index| [scale[0] * angle(index).cos() + shift, scale[1] * angle(index).sin()]).collect()
    }

    #[test]
    fn equal_sets_are_no_distance_apart_and_a_shift_counts_squared() {
        let set = rows(400, [1.0, 2.0], 0.0);
        assert!(frechet_distance(&set, &set, 2).is_ok_and(|distance| distance.abs() < 1e-9));
        let shifted = rows(400, [1.0, 2.0], 3.0);
        assert!(frechet_distance(&set, &shifted, 2).is_ok_and(|distance| (distance - 9.0).abs() < 1e-4));
    }

    #[test]
    fn widths_of_independent_axes_count_as_differences_of_deviations() {
        // For diagonal covariances the trace is the sum of squared differences of standard deviations.
        let (first, second) = (rows(4000, [1.0, 2.0], 0.0), rows(4000, [3.0, 2.5], 0.0));
        let expected = 0.5 * (4.0 + 0.25);
        assert!(frechet_distance(&first, &second, 2).is_ok_and(|distance| (distance - expected).abs() < 2e-3));
    }

    #[test]
    fn too_few_or_broken_rows_are_refused() {
        assert!(frechet_distance(&[1.0, 2.0], &[1.0, 2.0, 3.0, 4.0], 2).is_err());
        assert!(frechet_distance(&[1.0, f32::NAN, 3.0, 4.0], &[1.0, 2.0, 3.0, 4.0], 2).is_err());
    }
}
