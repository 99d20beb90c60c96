//! Who sees whom: causal over text, open inside an image (as in Show-o).
//!
//! Masks are built on plain ids, one row after the other, and given to the network as additive numbers: 0 where visible, [`HIDDEN`]
//! where not. B rows, L queries, S keys.

use burn::tensor::{Device, Tensor, TensorData};

use crate::config::SpecialIds;
use crate::error::{Result, input};

/// Added to a hidden score: -2^63, which float32 and bfloat16 hold exactly and softmax turns into an exact 0.
pub const HIDDEN: f32 = -9_223_372_036_854_775_808.0;

/// Visibility of S keys for L queries in B rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    dims: [usize; 3],
    visible: Vec<bool>,
}

/// The ids that the builders look for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    /// Padding.
    pub pad: u32,
    /// Start of image (or video).
    pub start: u32,
    /// End of image (or video).
    pub end: u32,
}

impl Marks {
    /// Of images.
    pub fn image(ids: &SpecialIds) -> Self {
        Self { pad: ids.pad, start: ids.soi, end: ids.eoi }
    }

    /// Of videos.
    pub fn video(ids: &SpecialIds) -> Self {
        Self { pad: ids.pad, start: ids.sov, end: ids.eov }
    }
}

impl Mask {
    fn from_fn(dims: [usize; 3], sees: impl Fn(usize, usize, usize) -> bool) -> Self {
        let [rows, queries, keys] = dims;
        let mut visible = Vec::with_capacity(rows * queries * keys);
        for row in 0..rows {
            for query in 0..queries {
                visible.extend((0..keys).map(|key| sees(row, query, key)));
            }
        }
        Self { dims, visible }
    }

    /// Everything sees everything: one row that serves any batch. For image tokens after a cached prompt, and for one new token.
    pub fn open(num_queries: usize, num_keys: usize) -> Self {
        Self { dims: [1, num_queries, num_keys], visible: vec![true; num_queries * num_keys] }
    }

    /// The last `num_queries` of `num_keys` positions, each seeing itself and what is before it: text after a cache.
    pub fn causal(num_queries: usize, num_keys: usize) -> Self {
        let before = num_keys.saturating_sub(num_queries);
        Self::from_fn([1, num_queries, num_keys], |_, query, key| key <= before + query)
    }

    /// Texts of `lengths` behind each other in one row, each position seeing itself and what is before it in its own text.
    pub fn causal_apart(lengths: &[usize]) -> Self {
        let mut first_of = Vec::new();
        for &length in lengths {
            first_of.resize(first_of.len() + length, first_of.len());
        }
        Self::from_fn([1, first_of.len(), first_of.len()], |_, query, key| (first_of[query]..=query).contains(&key))
    }

    /// New positions that see each other and, of a cache padded on the left to the longest row, the last `lengths[b]` positions.
    pub fn after_padded(lengths: &[usize], num_queries: usize) -> Self {
        let longest = lengths.iter().copied().max().unwrap_or(0);
        Self::from_fn([lengths.len(), num_queries, longest + num_queries], |row, _, key| key >= longest - lengths[row])
    }

    /// The last `num_new` of `past + num_new` positions in rows of text behind a shared image of `prefix` positions, with `pads[b]` pads
    /// between the two: a position sees the image, and of its own row everything up to itself but the pads. A pad sees itself, so that no
    /// query sees nothing.
    pub fn behind(prefix: usize, pads: &[usize], past: usize, num_new: usize) -> Self {
        Self::from_fn([pads.len(), num_new, past + num_new], |row, query, key| {
            let query = past + query;
            key <= query && (key == query || !(prefix..prefix + pads[row]).contains(&key))
        })
    }

    /// `[B, L, S]`.
    pub fn dims(&self) -> [usize; 3] {
        self.dims
    }

    /// Row-major visibility.
    pub fn visible(&self) -> &[bool] {
        &self.visible
    }

    /// Row-major additive numbers.
    pub fn additive(&self) -> Vec<f32> {
        self.visible.iter().map(|&visible| if visible { 0.0 } else { HIDDEN }).collect()
    }

    /// Additive numbers `[B, L, S]` on a device, outside any graph.
    pub fn tensor(&self, device: &Device) -> Tensor<3> {
        Tensor::from_data(TensorData::new(self.additive(), self.dims), &device.clone().without_autodiff())
    }
}

/// `ids` as rows of `length`.
fn rows<'a>(operation: &'static str, ids: &'a [u32], length: usize) -> Result<Vec<&'a [u32]>> {
    if length == 0 || ids.is_empty() || !ids.len().is_multiple_of(length) {
        return input(
            operation,
            format!("whole rows of {length} ids"),
            format!("{} ids", ids.len()),
            "pad all rows to one length",
        );
    }
    Ok(ids.chunks_exact(length).collect())
}

/// Generation and plain text: image positions (marks included) see the whole row, others are causal. With `hide_pads` (generation), the
/// image does not see pads, and text does not see the pads on its left.
///
/// # Errors
/// When `ids` are no whole rows, or with `hide_pads` a row has not exactly one start mark (the reference mixes rows up then).
pub fn predict_next(ids: &[u32], length: usize, marks: Marks, hide_pads: bool) -> Result<Mask> {
    const OPERATION: &str = "attention mask for generation";
    struct Row {
        in_image: Vec<bool>,
        first_start: usize,
        last_pad: Option<usize>,
    }
    let rows = rows(OPERATION, ids, length)?;
    let mut facts = Vec::with_capacity(rows.len());
    for (index, row) in rows.iter().enumerate() {
        let starts = row.iter().filter(|&&id| id == marks.start).count();
        if hide_pads && starts != 1 {
            return input(
                OPERATION,
                format!("one start-of-image mark in row {index}"),
                starts,
                "escape special tokens in user text",
            );
        }
        let mut open = 0i64;
        let in_image = row.iter().map(|&id| {
            open += i64::from(id == marks.start) - i64::from(id == marks.end);
            open > 0 || id == marks.start || id == marks.end
        });
        facts.push(Row {
            in_image: in_image.collect(),
            first_start: row.iter().position(|&id| id == marks.start).unwrap_or(length),
            last_pad: row.iter().rposition(|&id| id == marks.pad),
        });
    }
    Ok(Mask::from_fn([rows.len(), length, length], |row, query, key| {
        let Row { in_image, first_start, last_pad } = &facts[row];
        if hide_pads && query >= *first_start && rows[row][key] == marks.pad {
            return false;
        }
        if in_image[query] {
            return true;
        }
        let behind_pads = hide_pads && last_pad.is_some_and(|last| query > last && key <= last);
        key <= query && !behind_pads
    }))
}

/// Understanding: causal, and everything sees all positions up to the first end-of-image mark. As in the reference, the mark of the
/// first row counts for all rows.
///
/// # Errors
/// When `ids` are no whole rows, or the first row has no end mark.
pub fn for_mmu(ids: &[u32], length: usize, end_of_image: u32) -> Result<Mask> {
    const OPERATION: &str = "attention mask for understanding";
    let rows = rows(OPERATION, ids, length)?;
    let Some(end) = rows[0].iter().position(|&id| id == end_of_image) else {
        return input(OPERATION, "an end-of-image mark in the first row", "none", "put the image before the text");
    };
    Ok(Mask::from_fn([rows.len(), length, length], |_, query, key| key <= query || key <= end))
}

/// Understanding with projected features in the sequence (as in Show-o): causal, and everything sees the features, which follow
/// the task token, the system prompt and the start mark.
///
/// # Errors
/// When the features don't fit into `length`.
pub fn for_mmu_vit(length: usize, system_prompt_len: usize, num_features: usize) -> Result<Mask> {
    let start = 2 + system_prompt_len;
    if start + num_features > length {
        let expected = format!("at least {} positions", start + num_features);
        return input("attention mask for feature input", expected, length, "count task token, system prompt, mark and features");
    }
    Ok(Mask::from_fn([1, length, length], |_, query, key| key <= query || (start..start + num_features).contains(&key)))
}

/// Several images among text (in the reference, unused by its training): causal, pads hidden from the first start mark on, each image open
/// inside itself only.
///
/// # Errors
/// When `ids` are no whole rows, or marks don't come in pairs.
pub fn lvg(ids: &[u32], length: usize, marks: Marks) -> Result<Mask> {
    const OPERATION: &str = "attention mask for interleaved images";
    let rows = rows(OPERATION, ids, length)?;
    let mut images = Vec::with_capacity(rows.len());
    for (index, row) in rows.iter().enumerate() {
        let places = |mark: u32| (0..length).filter(|&place| row[place] == mark).collect::<Vec<_>>();
        let (starts, ends) = (places(marks.start), places(marks.end));
        if starts.len() != ends.len() || starts.iter().zip(&ends).any(|(start, end)| start > end) {
            let found = format!("{} and {}", starts.len(), ends.len());
            return input(OPERATION, format!("pairs of marks in row {index}"), found, "escape special tokens in user text");
        }
        images.push(starts.into_iter().zip(ends).collect::<Vec<_>>());
    }
    Ok(Mask::from_fn([rows.len(), length, length], |row, query, key| {
        if images[row].iter().any(|&(start, end)| (start..=end).contains(&query) && (start..=end).contains(&key)) {
            return true;
        }
        let after_start = images[row].first().is_some_and(|&(start, _)| query >= start);
        key <= query && !(after_start && rows[row][key] == marks.pad)
    }))
}

/// Rows that hold several questions on one image: `prefix` positions (task token, marks, image) that see each other, then blocks that see
/// the prefix and themselves causally, as if each were alone. What is left of `length` is padding.
/// Returns the mask and the positions of each row, which start again after the prefix for every block.
///
/// # Errors
/// When a row's blocks don't fit into `length`.
pub fn packed(prefix: usize, blocks: &[Vec<usize>], length: usize) -> Result<(Mask, Vec<Vec<u32>>)> {
    // Block number of each position; 0 is the prefix, and padding is one more block.
    let mut numbers = Vec::with_capacity(blocks.len());
    let mut positions = Vec::with_capacity(blocks.len());
    for (row, lengths) in blocks.iter().enumerate() {
        let total = prefix + lengths.iter().sum::<usize>();
        if total > length {
            let expected = format!("at most {length} positions in row {row}");
            return input("mask of packed questions", expected, total, "put fewer questions into a row");
        }
        let mut number = vec![0usize; prefix];
        let mut position: Vec<u32> = (0..prefix as u32).collect();
        for (block, &len) in lengths.iter().chain([&(length - total)]).enumerate() {
            number.extend(std::iter::repeat_n(block + 1, len));
            position.extend(prefix as u32..(prefix + len) as u32);
        }
        numbers.push(number);
        positions.push(position);
    }
    let mask = Mask::from_fn([blocks.len(), length, length], |row, query, key| {
        let number = &numbers[row];
        number[key] == 0 || (number[key] == number[query] && key <= query)
    });
    Ok((mask, positions))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARKS: Marks = Marks { pad: 0, start: 1, end: 2 };

    fn visible(mask: &Mask) -> Vec<String> {
        mask.visible().chunks(mask.dims()[2]).map(|row| row.iter().map(|&v| if v { 'x' } else { '.' }).collect()).collect()
    }

    #[test]
    fn mistakes_are_errors() {
        assert!(predict_next(&[5; 7], 3, MARKS, false).is_err());
        assert!(predict_next(&[], 3, MARKS, false).is_err());
        assert!(predict_next(&[5; 3], 0, MARKS, false).is_err());
        assert!(predict_next(&[5, 5, 5], 3, MARKS, true).unwrap_err().to_string().contains("row 0"));
        assert!(predict_next(&[1, 1, 2], 3, MARKS, true).is_err());
        assert!(for_mmu(&[5, 5], 2, 2).is_err());
        assert!(for_mmu_vit(5, 0, 4).is_err());
        assert!(lvg(&[2, 5, 1], 3, MARKS).is_err() && lvg(&[1, 5, 5], 3, MARKS).is_err());
        assert!(packed(2, &[vec![1, 3]], 5).is_err());
    }

    #[test]
    fn packed_questions_do_not_see_each_other() {
        let (mask, positions) = packed(2, &[vec![2, 1], vec![1]], 6).unwrap();
        assert_eq!(visible(&mask)[..6], ["xx....", "xx....", "xxx...", "xxxx..", "xx..x.", "xx...x"]);
        assert_eq!(visible(&mask)[6..], ["xx....", "xx....", "xxx...", "xx.x..", "xx.xx.", "xx.xxx"]);
        assert_eq!(positions, [[0, 1, 2, 3, 2, 2], [0, 1, 2, 2, 3, 4]]);
    }

    #[test]
    fn masks_for_caches() {
        assert_eq!(visible(&Mask::causal(2, 4)), ["xxx.", "xxxx"]);
        assert_eq!(visible(&Mask::causal_apart(&[2, 1, 3])), ["x.....", "xx....", "..x...", "...x..", "...xx.", "...xxx"]);
        assert_eq!(visible(&Mask::open(1, 3)), ["xxx"]);
        assert_eq!(visible(&Mask::after_padded(&[3, 1], 1)), ["xxxx", "..xx"]);
    }

    #[test]
    fn hidden_is_exact_in_both_formats() {
        assert_eq!(HIDDEN.to_bits() & 0xffff, 0);
        assert_eq!(HIDDEN as i64, i64::MIN);
    }
}
