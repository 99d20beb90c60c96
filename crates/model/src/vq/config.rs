use serde::{Deserialize, Serialize};

use super::VqError;

/// Shape of the tokenizer network.
///
/// Levels count from the finest to the coarsest in all four lists, as in the checkpoints' names (`down.0`, `up.0` work at the
/// finest grid). Every level but the coarsest halves the grid, so one token covers `patch_size * 2^(levels - 1)` pixels a side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VqConfig {
    /// Channels of the pictures, 3 for RGB.
    pub in_channels: usize,
    /// Pixels a side that are folded into channels at the entry and unfolded at the exit; 1 is MAGVIT-v2 exactly. Larger values
    /// spare the work at the finest grids, which is most of the network's.
    pub patch_size: usize,
    /// Base number of channels, multiplied by `enc_mult` and `dec_mult`.
    pub ch: usize,
    /// Channel multiplier of each encoder level.
    pub enc_mult: Vec<usize>,
    /// Residual blocks of each encoder level.
    pub enc_blocks: Vec<usize>,
    /// Channel multiplier of each decoder level.
    pub dec_mult: Vec<usize>,
    /// Residual blocks of each decoder level.
    pub dec_blocks: Vec<usize>,
    /// Transformer blocks in the encoder's middle, in place of its convolutions and attention; 0 is MAGVIT-v2 exactly.
    #[serde(default)]
    pub enc_transformer_blocks: usize,
    /// The same in the decoder's middle.
    #[serde(default)]
    pub dec_transformer_blocks: usize,
    /// Bits of a code; the codebook has `2^z_channels` entries.
    pub z_channels: usize,
    /// Side of the pictures the network is trained on; others work too.
    pub resolution: usize,
}

impl VqConfig {
    /// The released MAGVIT-v2 tokenizer of Show-o. Its config.json has no numbers, so they are built in.
    pub fn magvitv2() -> Self {
        Self {
            in_channels: 3,
            patch_size: 1,
            ch: 128,
            enc_mult: vec![1, 2, 2, 4, 4],
            enc_blocks: vec![4, 3, 4, 3, 4],
            dec_mult: vec![1, 1, 2, 2, 4],
            dec_blocks: vec![4, 4, 3, 4, 3],
            enc_transformer_blocks: 0,
            dec_transformer_blocks: 0,
            z_channels: 13,
            resolution: 256,
        }
    }

    /// The tokenizer of the small model: 128 pixels, 64 tokens, the full codebook, transformer blocks at the token grid.
    pub fn mini() -> Self {
        Self {
            in_channels: 3,
            patch_size: 16,
            ch: 256,
            enc_mult: vec![1],
            enc_blocks: vec![0],
            dec_mult: vec![1],
            dec_blocks: vec![0],
            enc_transformer_blocks: 3,
            dec_transformer_blocks: 4,
            z_channels: 13,
            resolution: 128,
        }
    }

    /// Tokens of a picture of the training resolution.
    pub fn num_positions(&self) -> usize {
        let side = self.resolution / self.downsampling().max(1);
        side * side
    }

    /// Number of codes.
    pub fn codebook_size(&self) -> usize {
        1 << self.z_channels
    }

    /// Pixels a side that one token covers.
    pub fn downsampling(&self) -> usize {
        self.patch_size << (self.enc_mult.len().saturating_sub(1))
    }

    /// The token grid of a picture of `height x width` pixels. Sizes that the levels don't divide are floored at each level.
    ///
    /// # Errors
    /// When a side is smaller than one token or no multiple of the patch size.
    pub fn grid(&self, height: usize, width: usize) -> Result<[usize; 2], VqError> {
        let down = self.downsampling();
        let fits = |side: usize| side >= down && side.is_multiple_of(self.patch_size);
        let has_positions = self.enc_transformer_blocks + self.dec_transformer_blocks > 0;
        if has_positions && [height, width] != [self.resolution; 2] {
            return Err(VqError::OnlyResolution { height, width, resolution: self.resolution });
        }
        if fits(height) && fits(width) {
            Ok([height / down, width / down])
        } else {
            Err(VqError::ImageSize { height, width, multiple: self.patch_size, least: down })
        }
    }

    /// Checks that the numbers describe a network.
    ///
    /// # Errors
    /// Names the first field that does not fit.
    pub fn check(&self) -> Result<(), VqError> {
        let wrong = |field: &'static str, expected: String, found: String| Err(VqError::Config { field, expected, found });
        let levels = self.enc_mult.len();
        if levels == 0 || levels > 12 {
            return wrong("enc_mult", "1 to 12 levels".into(), levels.to_string());
        }
        for (field, list) in [
            ("enc_mult", &self.enc_mult),
            ("enc_blocks", &self.enc_blocks),
            ("dec_mult", &self.dec_mult),
            ("dec_blocks", &self.dec_blocks),
        ] {
            let least = usize::from(field.ends_with("mult"));
            if list.len() != levels || list.iter().any(|&number| number < least) {
                return wrong(field, format!("{levels} numbers of at least {least}"), format!("{list:?}"));
            }
        }
        for (field, value, most) in [
            ("in_channels", self.in_channels, 1024),
            ("patch_size", self.patch_size, 256),
            ("ch", self.ch, 1 << 16),
            ("z_channels", self.z_channels, 24),
            ("resolution", self.resolution, 1 << 16),
        ] {
            if value == 0 || value > most {
                return wrong(field, format!("1 to {most}"), value.to_string());
            }
        }
        for mult in self.enc_mult.iter().chain(&self.dec_mult) {
            let channels = self.ch.saturating_mul(*mult);
            if channels > 1 << 16 || !channels.is_multiple_of(super::num_groups(channels)) {
                return wrong(
                    "ch",
                    "channels of every level up to 65536, and 32 divides them where they are more".into(),
                    format!("{} x {mult}", self.ch),
                );
            }
        }
        // Channels change in the first block of a level.
        let mut enc_in = 1;
        for (level, (&mult, &blocks)) in self.enc_mult.iter().zip(&self.enc_blocks).enumerate() {
            let dec_in = self.dec_mult[(level + 1).min(levels - 1)];
            let starved = [
                ("enc_blocks", blocks == 0 && mult != enc_in),
                ("dec_blocks", self.dec_blocks[level] == 0 && self.dec_mult[level] != dec_in),
            ];
            if let Some((field, _)) = starved.into_iter().find(|(_, starved)| *starved) {
                return wrong(field, format!("a block in level {level}, where the channels change"), "0".into());
            }
            enc_in = mult;
        }
        for (field, blocks, mult) in [
            ("enc_transformer_blocks", self.enc_transformer_blocks, &self.enc_mult),
            ("dec_transformer_blocks", self.dec_transformer_blocks, &self.dec_mult),
        ] {
            let channels = self.ch * mult.last().unwrap_or(&1);
            let heads = super::transformer::num_heads(channels);
            if blocks > 256 || (blocks > 0 && !channels.is_multiple_of(heads)) {
                return wrong(
                    field,
                    "up to 256 over channels that 64 divides".into(),
                    format!("{blocks} over {channels} channels"),
                );
            }
            if blocks > 0 && !(1..=1 << 16).contains(&self.num_positions()) {
                return wrong("resolution", "1 to 65536 tokens".into(), self.num_positions().to_string());
            }
        }
        Ok(())
    }
}
