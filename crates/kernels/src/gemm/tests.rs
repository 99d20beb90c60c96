use super::{Matrix, Precision, gemm};
use crate::cpu::at_every_level;

fn values(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

fn naive(a: Matrix<'_>, b: Matrix<'_>, round: bool) -> Vec<f32> {
    let round = |v: f32| if round { half::bf16::from_f32(v).to_f32() } else { v };
    let at = |m: &Matrix<'_>, i: usize, j: usize| f64::from(round(m.data[i * m.row_stride + j * m.col_stride]));
    let mut c = Vec::new();
    for i in 0..a.rows {
        for j in 0..b.cols {
            c.push((0..a.cols).map(|k| at(&a, i, k) * at(&b, k, j)).sum::<f64>() as f32);
        }
    }
    c
}

#[test]
fn products_equal_the_definition_at_every_level_form_and_odd_size() {
    // The last two are shared out by columns and by rows where others aren't.
    let shapes = [
        (1, 1, 1),
        (3, 70, 33),
        (4, 129, 31),
        (5, 7, 3),
        (13, 33, 17),
        (97, 65, 530),
        (40, 100, 1025),
        (200, 96, 64),
        (40, 600, 33),
        (300, 70, 64),
    ];
    at_every_level(|level| {
        for (m, n, k) in shapes {
            let (a, b) = (values(m * k, 1), values(k * n, 2));
            let forms = [
                (Matrix::new(&a, m, k), Matrix::new(&b, k, n)),
                (Matrix::new(&a, m, k), Matrix::new(&b, n, k).t()),
                (Matrix::new(&a, k, m).t(), Matrix::new(&b, k, n)),
                (Matrix::new(&a, k, m).t(), Matrix::new(&b, n, k).t()),
            ];
            for (a, b) in forms {
                for precision in [Precision::F32, Precision::Bf16] {
                    let expected = naive(a, b, precision == Precision::Bf16);
                    let start = values(m * n, 3);
                    for accumulate in [false, true] {
                        let mut c = start.clone();
                        gemm(a, b, &mut c, accumulate, precision);
                        for ((c, e), s) in c.iter().zip(&expected).zip(&start) {
                            let e = if accumulate { e + s } else { *e };
                            let tolerance = 2e-5 * (k as f32).sqrt() + 1e-5;
                            assert!((c - e).abs() < tolerance, "{level:?} {precision:?} {m}x{n}x{k}: {c} vs {e}");
                        }
                    }
                }
            }
        }
    });
}

#[test]
fn a_row_gives_the_same_bits_alone_and_among_others() {
    at_every_level(|level| {
        for (n, k) in [(70, 33), (129, 1025), (31, 64)] {
            let (a, b) = (values(40 * k, 1), values(k * n, 2));
            for b in [Matrix::new(&b, k, n), Matrix::new(&b, n, k).t()] {
                for precision in [Precision::F32, Precision::Bf16] {
                    let mut all = vec![0.0; 40 * n];
                    gemm(Matrix::new(&a, 40, k), b, &mut all, false, precision);
                    for rows in [1, 2, 3, 4, 5, 8, 9, 20] {
                        let mut some = vec![0.0; rows * n];
                        gemm(Matrix::new(&a[7 * k..], rows, k), b, &mut some, false, precision);
                        assert_eq!(some, all[7 * n..][..rows * n], "{level:?} {precision:?} {rows} rows of {n}x{k}");
                    }
                }
            }
        }
    });
}
