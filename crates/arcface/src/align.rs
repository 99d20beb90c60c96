//! From a portrait to the picture that ArcFace networks are trained on.

use unif2ace_image::{RgbImage, centre_crop, resize_short_side};

use crate::ArcFaceError;

/// Side of the network's pictures in pixels.
pub const SIDE: usize = 112;

/// Where the networks expect the left eye, right eye, nose tip, left and right mouth corner (left and right of the picture), as
/// (x, y) in pixels of the aligned face. The positions are ArcFace's convention (Deng et al. 2019).
pub const LANDMARKS: [[f32; 2]; 5] =
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]];

/// Turns, scales and shifts a picture such that its five landmarks (x, y in pixels, the order of [`LANDMARKS`]) come as near as
/// possible, in least squares, to where the networks expect them. Bilinear; outside the picture is black.
///
/// # Errors
/// When the landmarks are not finite or all one point.
pub fn align(image: &RgbImage, landmarks: &[[f32; 2]; 5]) -> Result<RgbImage, ArcFaceError> {
    let mean = |points: &[[f32; 2]; 5], axis: usize| points.iter().map(|p| f64::from(p[axis])).sum::<f64>() / 5.0;
    let from = [mean(&LANDMARKS, 0), mean(&LANDMARKS, 1)];
    let to = [mean(landmarks, 0), mean(landmarks, 1)];
    // Least squares of q = to + (a + bi)(p - from) over the pairs, p in the aligned face, q in the picture, as complex numbers.
    let (mut a, mut b, mut norm) = (0.0, 0.0, 0.0);
    for (p, q) in LANDMARKS.iter().zip(landmarks) {
        let p = [f64::from(p[0]) - from[0], f64::from(p[1]) - from[1]];
        let q = [f64::from(q[0]) - to[0], f64::from(q[1]) - to[1]];
        a += p[0] * q[0] + p[1] * q[1];
        b += p[0] * q[1] - p[1] * q[0];
        norm += p[0] * p[0] + p[1] * p[1];
    }
    let (a, b) = (a / norm, b / norm);
    let scale = a.hypot(b);
    if !(scale.is_finite() && scale > 1e-6) {
        return Err(ArcFaceError::Landmarks(*landmarks));
    }
    let mut data = Vec::with_capacity(SIDE * SIDE * 3);
    for y in 0..SIDE {
        for x in 0..SIDE {
            let (dx, dy) = (x as f64 - from[0], y as f64 - from[1]);
            data.extend(bilinear(image, to[0] + a * dx - b * dy, to[1] + b * dx + a * dy));
        }
    }
    Ok(RgbImage::new(SIDE, SIDE, data)?)
}

/// The middle square of a portrait at the networks' size: for pictures that are already centred on the face.
///
/// # Errors
/// When the picture can't be resized.
pub fn centre(image: &RgbImage) -> Result<RgbImage, ArcFaceError> {
    Ok(centre_crop(&resize_short_side(image, SIDE)?, SIDE)?)
}

/// The network's input `[3, 112, 112]` from an aligned face: red, green, blue planes of `(value - mean) / deviation`.
/// (insightface reads blue first and swaps on the way in, so its networks see red first too.)
///
/// # Errors
/// When the face is not 112x112.
pub fn input_values(face: &RgbImage, mean: f32, deviation: f32) -> Result<Vec<f32>, ArcFaceError> {
    if (face.height(), face.width()) != (SIDE, SIDE) {
        return Err(ArcFaceError::Size { height: face.height(), width: face.width() });
    }
    let plane = |channel: usize| face.data().iter().skip(channel).step_by(3);
    Ok((0..3).flat_map(plane).map(|value| (f32::from(*value) - mean) / deviation).collect())
}

fn bilinear(image: &RgbImage, x: f64, y: f64) -> [u8; 3] {
    let (left, top) = (x.floor(), y.floor());
    let (right_part, bottom_part) = (x - left, y - top);
    let mut sum = [0.0; 3];
    for (dy, row_weight) in [(0.0, 1.0 - bottom_part), (1.0, bottom_part)] {
        for (dx, column_weight) in [(0.0, 1.0 - right_part), (1.0, right_part)] {
            let (column, row) = (left + dx, top + dy);
            if column < 0.0 || row < 0.0 {
                continue;
            }
            // Float to integer saturates, and a place outside has no pixel.
            if let Some(pixel) = image.pixel(column as usize, row as usize) {
                for (sum, value) in sum.iter_mut().zip(pixel) {
                    *sum += row_weight * column_weight * f64::from(value);
                }
            }
        }
    }
    sum.map(|value| value.round() as u8)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A picture whose red rises with x and green with y.
    fn ramp(width: usize, height: usize) -> RgbImage {
        let data = (0..height).flat_map(|y| (0..width).flat_map(move |x| [x as u8, y as u8, 7])).collect();
        RgbImage::new(width, height, data).unwrap()
    }

    #[test]
    fn a_face_in_place_stays() {
        let image = ramp(SIDE, SIDE);
        assert_eq!(align(&image, &LANDMARKS).unwrap(), image);
    }

    #[test]
    fn a_shifted_larger_face_is_brought_home() {
        let image = ramp(250, 250);
        let moved = LANDMARKS.map(|[x, y]| [10.0 + 2.0 * x, 20.0 + 2.0 * y]);
        let face = align(&image, &moved).unwrap();
        for (x, y) in [(0, 0), (50, 60), (111, 100)] {
            assert_eq!(face.pixel(x, y), Some([10 + 2 * x as u8, 20 + 2 * y as u8, 7]));
        }
    }

    #[test]
    fn a_turned_face_is_turned_back_and_the_outside_is_black() {
        // A quarter turn: (x, y) of the aligned face lies at (111 - y, x).
        let image = ramp(SIDE, SIDE);
        let turned = LANDMARKS.map(|[x, y]| [111.0 - y, x]);
        let face = align(&image, &turned).unwrap();
        assert_eq!(face.pixel(30, 80), Some([31, 30, 7]));
        let outside = LANDMARKS.map(|[x, y]| [x - 1000.0, y]);
        assert!(align(&image, &outside).unwrap().data().iter().all(|value| *value == 0));
    }

    #[test]
    fn useless_landmarks_are_refused() {
        let image = ramp(8, 8);
        for bad in [[[3.0, 3.0]; 5], [[f32::NAN, 0.0]; 5], [[f32::INFINITY, 0.0]; 5]] {
            let error = align(&image, &bad).unwrap_err();
            assert!(matches!(error, ArcFaceError::Landmarks(_)) && error.to_string().contains("hint:"));
        }
    }

    #[test]
    fn input_is_red_first_planes() {
        let image = RgbImage::filled(SIDE, SIDE, [255, 0, 127]).unwrap();
        let values = input_values(&image, 127.5, 127.5).unwrap();
        let plane = SIDE * SIDE;
        assert_eq!(values.len(), 3 * plane);
        assert_eq!([values[0], values[plane], values[2 * plane]], [1.0, -1.0, -0.5 / 127.5]);
        let small = RgbImage::filled(SIDE, 96, [0; 3]).unwrap();
        assert!(matches!(input_values(&small, 0.0, 1.0), Err(ArcFaceError::Size { height: 96, width: 112 })));
        assert_eq!(centre(&ramp(200, 130)).unwrap().height(), SIDE);
    }
}
