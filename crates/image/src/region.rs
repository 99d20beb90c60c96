//! Named parts of an aligned portrait, as rectangles on the 8 x 8 grid of tokens.
//!
//! The rectangles fit the portraits of the mini model (head and shoulders, face in the middle of a 128 x 128 picture). They are a
//! convenience for such pictures; for any other, give a mask picture.

use std::fmt;
use std::str::FromStr;

use crate::{ImageError, Result, TokenMask};

/// Cells a side of the layout.
const LAYOUT: usize = 8;

/// A part of an aligned portrait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Region {
    /// Both eyes with brows and glasses.
    Eyes,
    /// The brows and the skin above them.
    Brows,
    /// Nose and the inner cheeks.
    Nose,
    /// Mouth, moustache and the lip's surroundings.
    Mouth,
    /// Chin, jaw and beard.
    Chin,
    /// Hair on top and at both sides of the face.
    Hair,
    /// A hat: the top rows over the whole head.
    Hat,
    /// Ears and earrings.
    Ears,
    /// The whole face without hair.
    Face,
    /// Neck, clothing and necklace.
    Clothes,
    /// What lies beside head and shoulders.
    Background,
}

impl Region {
    /// All regions.
    pub const ALL: [Self; 11] = [
        Self::Eyes,
        Self::Brows,
        Self::Nose,
        Self::Mouth,
        Self::Chin,
        Self::Hair,
        Self::Hat,
        Self::Ears,
        Self::Face,
        Self::Clothes,
        Self::Background,
    ];

    /// The name used on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Eyes => "eyes",
            Self::Brows => "brows",
            Self::Nose => "nose",
            Self::Mouth => "mouth",
            Self::Chin => "chin",
            Self::Hair => "hair",
            Self::Hat => "hat",
            Self::Ears => "ears",
            Self::Face => "face",
            Self::Clothes => "clothes",
            Self::Background => "background",
        }
    }

    /// The cells of the region, `#` in eight rows of eight.
    const fn layout(self) -> [&'static str; LAYOUT] {
        match self {
            Self::Eyes => LAYOUT_EYES,
            Self::Brows => LAYOUT_BROWS,
            Self::Nose => LAYOUT_NOSE,
            Self::Mouth => LAYOUT_MOUTH,
            Self::Chin => LAYOUT_CHIN,
            Self::Hair => LAYOUT_HAIR,
            Self::Hat => LAYOUT_HAT,
            Self::Ears => LAYOUT_EARS,
            Self::Face => LAYOUT_FACE,
            Self::Clothes => LAYOUT_CLOTHES,
            Self::Background => LAYOUT_BACKGROUND,
        }
    }

    /// The region on a grid of `side` x `side` tokens; each token takes the cell its centre lies in.
    pub fn token_mask(self, side: usize) -> TokenMask {
        let cell = |index: usize| (2 * index + 1) * LAYOUT / (2 * side);
        let layout = self.layout();
        let repaint =
            (0..side).flat_map(|row| (0..side).map(move |column| layout[cell(row)].as_bytes()[cell(column)] == b'#')).collect();
        TokenMask { side, repaint }
    }

    /// The union of regions named in a list with commas, as in `eyes,mouth`.
    ///
    /// # Errors
    /// When a name is unknown or the list is empty.
    pub fn parse_mask(list: &str, side: usize) -> Result<TokenMask> {
        let mut mask = TokenMask { side, repaint: vec![false; side * side] };
        for word in list.split(',') {
            mask = mask.union(&word.trim().parse::<Self>()?.token_mask(side))?;
        }
        Ok(mask)
    }
}

impl fmt::Display for Region {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Region {
    type Err = ImageError;

    fn from_str(word: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|region| region.name().eq_ignore_ascii_case(word)).ok_or_else(|| {
            let expected = Self::ALL.map(Self::name).join(", ");
            ImageError::UnknownRegion { found: word.to_string(), expected }
        })
    }
}

// Cells are 16 pixels of a 128-pixel portrait: brows and eyes lie in rows 3 and 4, the nose in 4, lips in 4 and 5, the chin in 6.
#[rustfmt::skip]
const LAYOUT_EYES: [&str; LAYOUT] = [
    "........",
    "........",
    "........",
    ".######.",
    ".######.",
    "........",
    "........",
    "........",
];
#[rustfmt::skip]
const LAYOUT_BROWS: [&str; LAYOUT] = [
    "........",
    "........",
    "..####..",
    "..####..",
    "........",
    "........",
    "........",
    "........",
];
#[rustfmt::skip]
const LAYOUT_NOSE: [&str; LAYOUT] = [
    "........",
    "........",
    "........",
    "...##...",
    "..####..",
    "........",
    "........",
    "........",
];
#[rustfmt::skip]
const LAYOUT_MOUTH: [&str; LAYOUT] = [
    "........",
    "........",
    "........",
    "........",
    "..####..",
    "..####..",
    "........",
    "........",
];
#[rustfmt::skip]
const LAYOUT_CHIN: [&str; LAYOUT] = [
    "........",
    "........",
    "........",
    "........",
    "........",
    "..####..",
    "..####..",
    "........",
];
#[rustfmt::skip]
const LAYOUT_HAIR: [&str; LAYOUT] = [
    ".######.",
    ".######.",
    "########",
    "##....##",
    "##....##",
    "##....##",
    "##....##",
    "........",
];
#[rustfmt::skip]
const LAYOUT_HAT: [&str; LAYOUT] = [
    ".######.",
    "########",
    "########",
    "........",
    "........",
    "........",
    "........",
    "........",
];
#[rustfmt::skip]
const LAYOUT_EARS: [&str; LAYOUT] = [
    "........",
    "........",
    "........",
    ".##..##.",
    ".##..##.",
    ".##..##.",
    "........",
    "........",
];
#[rustfmt::skip]
const LAYOUT_FACE: [&str; LAYOUT] = [
    "........",
    "........",
    "..####..",
    "..####..",
    "..####..",
    "..####..",
    "..####..",
    "........",
];
#[rustfmt::skip]
const LAYOUT_CLOTHES: [&str; LAYOUT] = [
    "........",
    "........",
    "........",
    "........",
    "........",
    "........",
    "###..###",
    "########",
];
#[rustfmt::skip]
const LAYOUT_BACKGROUND: [&str; LAYOUT] = [
    "########",
    "##....##",
    "##....##",
    "##....##",
    "##....##",
    "##....##",
    "........",
    "........",
];
