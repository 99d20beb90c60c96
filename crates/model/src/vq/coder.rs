//! The convolutional encoder and decoder around the quantiser. B batch, H height, W width, C channels.
#![allow(non_snake_case)]

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use super::VqConfig;
use super::layers::{Conv2d, Downsample, GroupNorm, Mid, ResBlock, Upsample, depth_to_space, space_to_depth};

/// One level of the encoder.
#[derive(Module, Debug)]
pub struct DownLevel {
    /// Residual blocks; the first may change the channels.
    pub block: Vec<ResBlock>,
    /// Absent at the coarsest level.
    pub downsample: Option<Downsample>,
}

/// One level of the decoder.
#[derive(Module, Debug)]
pub struct UpLevel {
    /// Residual blocks; the first may change the channels.
    pub block: Vec<ResBlock>,
    /// Absent at the finest level.
    pub upsample: Option<Upsample>,
}

/// Pixels to the continuous code.
#[derive(Module, Debug)]
pub struct Encoder {
    /// 3x3 from the (folded) pixels.
    pub conv_in: Conv2d,
    /// From the finest level to the coarsest.
    pub down: Vec<DownLevel>,
    /// At the coarsest grid.
    pub mid: Mid,
    /// Before the last convolutions.
    pub norm_out: GroupNorm,
    /// 3x3 to the code's channels.
    pub conv_out: Conv2d,
    /// 1x1.
    pub quant_conv: Conv2d,
    #[module(skip)]
    patch_size: usize,
}

fn blocks(num_in: usize, num_out: usize, num: usize, device: &Device) -> Vec<ResBlock> {
    (0..num).map(|index| ResBlock::new(if index == 0 { num_in } else { num_out }, num_out, device)).collect()
}

impl Encoder {
    /// A new encoder for a checked configuration.
    pub fn new(config: &VqConfig, device: &Device) -> Self {
        let pixels = config.in_channels * config.patch_size * config.patch_size;
        let coarsest = config.enc_mult.len() - 1;
        let mut channels = config.ch;
        let mut down = Vec::with_capacity(coarsest + 1);
        for (level, (&mult, &num)) in config.enc_mult.iter().zip(&config.enc_blocks).enumerate() {
            let num_out = config.ch * mult;
            down.push(DownLevel {
                block: blocks(channels, num_out, num, device),
                downsample: (level < coarsest).then(|| Downsample::new(num_out, device)),
            });
            channels = num_out;
        }
        Self {
            conv_in: Conv2d::new(pixels, config.ch, 3, device),
            down,
            mid: Mid::new(channels, config.enc_transformer_blocks, config.num_positions(), device),
            norm_out: GroupNorm::new(channels, device),
            conv_out: Conv2d::new(channels, config.z_channels, 3, device),
            quant_conv: Conv2d::new(config.z_channels, config.z_channels, 1, device),
            patch_size: config.patch_size,
        }
    }

    pub(super) fn pack(&mut self) {
        [&mut self.conv_in, &mut self.conv_out, &mut self.quant_conv].into_iter().for_each(Conv2d::pack);
        self.mid.pack();
        for level in &mut self.down {
            level.block.iter_mut().for_each(ResBlock::pack);
            level.downsample.iter_mut().for_each(|layer| layer.conv.pack());
        }
    }

    /// `[B, H, W, C]` in -1..1 to `[B, h, w, z_channels]`.
    pub fn forward(&self, pixels_BHWC: Tensor<4>) -> Tensor<4> {
        let mut x_BHWC = self.conv_in.forward(space_to_depth(pixels_BHWC, self.patch_size));
        for level in &self.down {
            for block in &level.block {
                x_BHWC = block.forward(x_BHWC);
            }
            if let Some(downsample) = &level.downsample {
                x_BHWC = downsample.forward(x_BHWC);
            }
        }
        let x_BHWC = self.norm_out.forward_silu(self.mid.forward(x_BHWC));
        self.quant_conv.forward(self.conv_out.forward(x_BHWC))
    }
}

/// Codes to pixels.
#[derive(Module, Debug)]
pub struct Decoder {
    /// 1x1.
    pub post_quant_conv: Conv2d,
    /// 3x3 from the code's channels.
    pub conv_in: Conv2d,
    /// At the coarsest grid.
    pub mid: Mid,
    /// Index 0 is the finest level, which runs last.
    pub up: Vec<UpLevel>,
    /// Before the last convolution.
    pub norm_out: GroupNorm,
    /// 3x3 to the (folded) pixels.
    pub conv_out: Conv2d,
    #[module(skip)]
    patch_size: usize,
}

impl Decoder {
    /// A new decoder for a checked configuration.
    pub fn new(config: &VqConfig, device: &Device) -> Self {
        let pixels = config.in_channels * config.patch_size * config.patch_size;
        let of_level = |level: usize| config.ch * config.dec_mult[level];
        let coarsest = config.dec_mult.len() - 1;
        let up = (0..=coarsest)
            .map(|level| {
                let num_in = of_level((level + 1).min(coarsest));
                let num_out = of_level(level);
                UpLevel {
                    block: blocks(num_in, num_out, config.dec_blocks[level], device),
                    upsample: (level > 0).then(|| Upsample::new(num_out, device)),
                }
            })
            .collect();
        Self {
            post_quant_conv: Conv2d::new(config.z_channels, config.z_channels, 1, device),
            conv_in: Conv2d::new(config.z_channels, of_level(coarsest), 3, device),
            mid: Mid::new(of_level(coarsest), config.dec_transformer_blocks, config.num_positions(), device),
            up,
            norm_out: GroupNorm::new(of_level(0), device),
            conv_out: Conv2d::new(of_level(0), pixels, 3, device),
            patch_size: config.patch_size,
        }
    }

    pub(super) fn pack(&mut self) {
        [&mut self.post_quant_conv, &mut self.conv_in, &mut self.conv_out].into_iter().for_each(Conv2d::pack);
        self.mid.pack();
        for level in &mut self.up {
            level.block.iter_mut().for_each(ResBlock::pack);
            level.upsample.iter_mut().for_each(|layer| layer.conv.pack());
        }
    }

    /// The activations before [`Decoder::last_layer`], `[B, H/p, W/p, ch]`.
    pub fn features(&self, codes_BhwC: Tensor<4>) -> Tensor<4> {
        let mut x_BHWC = self.conv_in.forward(self.post_quant_conv.forward(codes_BhwC));
        x_BHWC = self.mid.forward(x_BHWC);
        for level in self.up.iter().rev() {
            for block in &level.block {
                x_BHWC = block.forward(x_BHWC);
            }
            if let Some(upsample) = &level.upsample {
                x_BHWC = upsample.forward(x_BHWC);
            }
        }
        self.norm_out.forward_silu(x_BHWC)
    }

    /// The last convolution and the unfolding into pixels.
    pub fn last_layer(&self, x_BHWC: Tensor<4>) -> Tensor<4> {
        depth_to_space(self.conv_out.forward(x_BHWC), self.patch_size)
    }

    /// `[B, h, w, z_channels]` to `[B, H, W, C]`, about -1..1 but neither squashed nor clamped.
    pub fn forward(&self, codes_BhwC: Tensor<4>) -> Tensor<4> {
        self.last_layer(self.features(codes_BhwC))
    }
}
