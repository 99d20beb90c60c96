use crate::{ImageError, Result, RgbImage};

/// Largest contact sheet.
const MAX_SHEET_PIXELS: usize = 1 << 26;

/// Pictures side by side in rows of `columns`, `gap` pixels apart on `background`; each sits in the upper left corner of a cell as
/// large as the largest picture.
///
/// # Errors
/// When there is no picture, `columns` is zero, or the sheet would be larger than 2^26 pixels.
pub fn contact_sheet(images: &[RgbImage], columns: usize, gap: usize, background: [u8; 3]) -> Result<RgbImage> {
    let cell_width = images.iter().map(RgbImage::width).max().unwrap_or(0);
    let cell_height = images.iter().map(RgbImage::height).max().unwrap_or(0);
    let columns = columns.min(images.len());
    let rows = if columns == 0 { 0 } else { images.len().div_ceil(columns) };
    let extent =
        |cells: usize, cell: usize| cells.saturating_mul(cell).saturating_add(cells.saturating_sub(1).saturating_mul(gap));
    let (width, height) = (extent(columns, cell_width), extent(rows, cell_height));
    let pixels = width.saturating_mul(height);
    if pixels == 0 || pixels > MAX_SHEET_PIXELS {
        return Err(ImageError::WrongSize {
            operation: "make a contact sheet",
            expected: format!("1 to {MAX_SHEET_PIXELS} pixels"),
            width,
            height,
            hint: "give at least one picture and one column, and not too many",
        });
    }
    let mut sheet = RgbImage::filled(width, height, background)?;
    for (index, image) in images.iter().enumerate() {
        sheet.paste(image, index % columns * (cell_width + gap), index / columns * (cell_height + gap));
    }
    Ok(sheet)
}
