use std::io::Cursor;
use std::path::Path;

use png::{BitDepth, ColorType, Compression, Encoder};
use unif2ace_io::write_atomic;

use crate::{ImageError, Result, RgbImage};

/// Longest text kept in one entry, in bytes.
const MAX_TEXT_BYTES: usize = 16 << 10;

/// Where a picture comes from; written into the PNG as text entries and as the XMP field that readers look at
/// (`Iptc4xmpExt:DigitalSourceType`). There is no time stamp, so that equal pictures are equal files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Provenance {
    /// Program and version.
    pub software: String,
    /// Model name, with its revision or hash.
    pub model: String,
    /// The prompt; `None` keeps it private.
    pub prompt: Option<String>,
    /// The seed that gives this picture again.
    pub seed: Option<u64>,
    /// Further settings, in the order given.
    pub settings: Vec<(String, String)>,
}

const PLAIN_STATEMENT: &str = "AI-generated";
const XMP: &str = concat!(
    r#"<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">"#,
    r#"<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" "#,
    r#"Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"/>"#,
    r#"</rdf:RDF></x:xmpmeta>"#
);

impl Provenance {
    /// Keyword and text of each entry.
    fn entries(&self) -> Vec<(String, String)> {
        let mut entries = vec![
            ("Software".to_string(), self.software.clone()),
            ("Model".to_string(), self.model.clone()),
            ("Source".to_string(), PLAIN_STATEMENT.to_string()),
        ];
        if let Some(prompt) = &self.prompt {
            entries.push(("Prompt".to_string(), prompt.clone()));
        }
        if let Some(seed) = self.seed {
            entries.push(("Seed".to_string(), seed.to_string()));
        }
        entries.extend(self.settings.iter().cloned());
        entries.push(("XML:com.adobe.xmp".to_string(), XMP.to_string()));
        entries
            .into_iter()
            .filter(|(keyword, text)| !keyword.is_empty() && !text.is_empty())
            .map(|(keyword, text)| (clean_keyword(&keyword), clean_text(&text)))
            .collect()
    }
}

/// PNG keywords are 1 to 79 printable Latin-1 characters; ASCII is enough here.
fn clean_keyword(keyword: &str) -> String {
    keyword.chars().map(|c| if c.is_ascii_graphic() { c } else { '_' }).take(79).collect()
}

/// Text may not hold a zero byte; other control characters but the newline have no place there either.
fn clean_text(text: &str) -> String {
    let mut clean: String = text.chars().filter(|c| !c.is_control() || *c == '\n').collect();
    let mut end = clean.len().min(MAX_TEXT_BYTES);
    while !clean.is_char_boundary(end) {
        end -= 1;
    }
    clean.truncate(end);
    clean
}

/// PNG bytes; the same picture and provenance give the same bytes.
///
/// # Errors
/// When the encoder refuses, which a valid picture doesn't make it do.
pub fn encode_png(image: &RgbImage, provenance: Option<&Provenance>) -> Result<Vec<u8>> {
    let fail = |reason: String| ImageError::Encode { format: "PNG", reason };
    let side = |size: usize| u32::try_from(size).map_err(|error| fail(error.to_string()));
    let png = |error: png::EncodingError| fail(error.to_string());
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, side(image.width())?, side(image.height())?);
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    encoder.set_compression(Compression::Balanced);
    for (keyword, text) in provenance.map(Provenance::entries).unwrap_or_default() {
        encoder.add_itxt_chunk(keyword, text).map_err(png)?;
    }
    let mut writer = encoder.write_header().map_err(png)?;
    writer.write_image_data(image.data()).map_err(png)?;
    writer.finish().map_err(png)?;
    Ok(bytes)
}

/// Writes a PNG; it is there completely or not at all.
///
/// # Errors
/// When the file can't be written.
pub fn save_png(path: impl AsRef<Path>, image: &RgbImage, provenance: Option<&Provenance>) -> Result<()> {
    Ok(write_atomic(path, &encode_png(image, provenance)?)?)
}

/// Keyword and text of each text entry of a PNG, in file order.
///
/// # Errors
/// When the file can't be read or is no PNG.
pub fn read_png_text(path: impl AsRef<Path>) -> Result<Vec<(String, String)>> {
    let path = path.as_ref();
    let bytes = unif2ace_io::read_capped(path, crate::DecodeLimits::default().max_bytes)?;
    let fail = |error: png::DecodingError| ImageError::NoPngText { path: path.to_path_buf(), reason: error.to_string() };
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), png::Limits { bytes: 8 << 20 });
    let info = decoder.read_header_info().map_err(fail)?;
    if u64::from(info.width) * u64::from(info.height) > crate::DecodeLimits::default().max_pixels {
        return Ok(Vec::new());
    }
    let reader = decoder.read_info().map_err(fail)?;
    let info = reader.info();
    let mut entries: Vec<(String, String)> =
        info.uncompressed_latin1_text.iter().map(|entry| (entry.keyword.clone(), entry.text.clone())).collect();
    for entry in &info.utf8_text {
        entries.push((entry.keyword.clone(), entry.get_text().map_err(fail)?));
    }
    Ok(entries)
}
