use super::*;
use crate::cpu::at_every_level;

fn values(count: usize, seed: u32) -> Vec<f32> {
    (0..count as u32).map(|i| ((i ^ seed).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// What the product is by definition: both factors rounded, then multiplied in f64.
fn expected(a: &[f32], packed: &Int8Matrix, m: usize) -> Vec<f64> {
    let (k, n) = (packed.rows(), packed.cols());
    let w = packed.unpack();
    let mut rounded = vec![0.0f64; m * k];
    for (out, a) in rounded.chunks_mut(k).zip(a.chunks(k)) {
        for (out, a) in out.chunks_mut(GROUP).zip(a.chunks(GROUP)) {
            let scale = scale_of(a.iter().copied());
            out.iter_mut().zip(a).for_each(|(out, a)| *out = f64::from(scale) * f64::from(step(*a, inverse(scale))));
        }
    }
    (0..m * n).map(|i| (0..k).map(|d| rounded[i / n * k + d] * f64::from(w[d * n + i % n])).sum()).collect()
}

#[test]
fn products_equal_the_definition_at_every_level_and_odd_size() {
    at_every_level(|level| {
        for (m, n, k) in
            [(1, 1, 1), (1, 70, 1025), (2, 33, 7), (3, 64, 513), (4, 97, 30), (5, 31, 9), (12, 40, 64), (50, 129, 700)]
                // Shared out by columns, and by rows.
                .into_iter()
                .chain([(40, 600, 33), (300, 70, 64)])
        {
            let (a, w) = (values(m * k, 1), values(n * k, 2));
            let packed = Int8Matrix::new(Matrix::new(&w, n, k).t());
            let expected = expected(&a, &packed, m);
            let start = values(m * n, 3);
            for accumulate in [false, true] {
                let mut c = start.clone();
                packed.product(Matrix::new(&a, m, k), &mut c, accumulate);
                for ((c, e), s) in c.iter().zip(&expected).zip(&start) {
                    let e = if accumulate { e + f64::from(*s) } else { *e };
                    let tolerance = 1e-5 * (k as f64).sqrt() + 1e-6;
                    assert!((f64::from(*c) - e).abs() < tolerance, "{level:?} {m}x{n}x{k}: {c} vs {e}");
                }
            }
        }
    });
}

#[test]
fn a_row_gives_the_same_bits_alone_and_among_others_and_at_every_level() {
    let (m, n, k) = (30, 70, 600);
    let (a, w) = (values(m * k, 1), values(n * k, 2));
    let packed = Int8Matrix::new(Matrix::new(&w, n, k).t());
    let mut all = vec![0.0; m * n];
    packed.product(Matrix::new(&a, m, k), &mut all, false);
    at_every_level(|level| {
        for rows in [1, 2, 4, 5, 13] {
            let mut some = vec![0.0; rows * n];
            packed.product(Matrix::new(&a[7 * k..], rows, k), &mut some, false);
            assert_eq!(some, all[7 * n..][..rows * n], "{level:?} {rows} rows");
        }
    });
}

#[test]
fn steps_round_to_nearest_even() {
    for value in [-127.0f32, -2.5, -1.5, -0.51, -0.5, 0.0, 0.49, 0.5, 1.5, 2.5, 126.7, 127.0] {
        assert_eq!(step(value, 1.0), value.round_ties_even() as i32, "{value}");
    }
}

#[test]
fn rounding_is_within_half_a_step_and_zeros_stay_zeros() {
    let (k, n) = (1030, 9);
    let mut w = values(k * n, 4);
    w.iter_mut().skip(3).step_by(n).for_each(|value| *value = 0.0);
    let found = Int8Matrix::new(Matrix::new(&w, k, n)).unpack();
    for (found, w) in found.iter().zip(&w) {
        assert!((found - w).abs() <= 0.5 / 127.0 + 1e-6);
    }
    assert!(found.iter().skip(3).step_by(n).all(|&value| value == 0.0));
}
