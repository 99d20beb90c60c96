//! What is in a model, and how often its experts fire (the paper's Figure 5).

use std::path::Path;

use plotters::prelude::*;
use plotters::style::register_font;
use serde::Serialize;
use unif2ace_diffusion::corruption::{keyed_uniforms, random_mask};
use unif2ace_diffusion::rng::Key;
use unif2ace_image::RgbImage;
use unif2ace_model::config::ModelConfig;
use unif2ace_model::masks::{Marks, for_mmu, predict_next};
use unif2ace_model::moe::{ExpertFeatures, MoeStats, Task};
use unif2ace_model::prompts::Prompter;
use unif2ace_model::transformer::{Batch, Features, Input, Positions};

use crate::answer::AnswerOptions;
use crate::error::{PipelineError, Result};
use crate::pretrained::Pipeline;

/// Sizes of a model.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Parameters of the transformer with all experts.
    pub parameters: usize,
    /// Those that a token of a generation row meets.
    pub active_text_to_image: usize,
    /// Those that a token of an understanding row meets.
    pub active_understanding: usize,
    /// Parameters of the image tokenizer.
    pub vq_parameters: usize,
    /// Parameters of the face network.
    pub face_parameters: usize,
    /// Parameters of the CLIP pair.
    pub clip_parameters: usize,
}

/// Sizes of the model in a folder, from its config.json and the headers of its files; parts that are not there count 0.
///
/// # Errors
/// When config.json can't be read, or a file is damaged.
pub fn summary(folder: &Path) -> Result<Summary> {
    let fail = |reason: String| PipelineError::Model { path: folder.to_path_buf(), reason };
    if !folder.is_dir() {
        return Err(fail("there is no such folder".into()));
    }
    let config = unif2ace_weights::read_model_config(folder).map_err(|error| fail(error.to_string()))?;
    let count = |task| -> Result<(usize, usize)> {
        if !config.contains_key("hidden_size") {
            return Ok((0, 0));
        }
        let config: ModelConfig =
            serde_json::from_value(config.clone().into()).map_err(|error| fail(format!("config.json: {error}")))?;
        config.check().map_err(|error| fail(format!("config.json: {error}")))?;
        Ok(config.num_parameters(task))
    };
    let stored = |part: &str| -> Result<usize> {
        let path = folder.join(format!("{part}.safetensors"));
        if !path.is_file() {
            return Ok(0);
        }
        let source = unif2ace_weights::SafetensorsDir::open(path).map_err(|error| fail(error.to_string()))?;
        Ok(source.names().filter_map(|name| source.info(name)).map(unif2ace_weights::TensorInfo::num_values).sum())
    };
    let (parameters, active_text_to_image) = count(Task::T2i)?;
    Ok(Summary {
        parameters,
        active_text_to_image,
        active_understanding: count(Task::Mmu)?.1,
        vq_parameters: stored("vq")?,
        face_parameters: stored("face")?,
        clip_parameters: stored("clip")?,
    })
}

/// Name, shape and stored type of every tensor of a folder's safetensors files, as lines.
///
/// # Errors
/// When a file is damaged.
pub fn tensors(folder: &Path) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for part in ["model", "vq", "face", "clip"] {
        let path = folder.join(format!("{part}.safetensors"));
        if !path.is_file() {
            continue;
        }
        let fail = |reason: String| PipelineError::Model { path: folder.to_path_buf(), reason };
        let source = unif2ace_weights::SafetensorsDir::open(&path).map_err(|error| fail(error.to_string()))?;
        for name in source.names() {
            if let Some(info) = source.info(name) {
                lines.push(format!("{part}: {name} {:?} {:?}", info.shape, info.dtype));
            }
        }
    }
    Ok(lines)
}

/// Firing frequency of each expert in each block, 0 to 1: `[block][expert]`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ExpertUse {
    /// Token level, understanding: part of the (token, slot) pairs.
    pub token_understanding: Vec<Vec<f64>>,
    /// Token level, generation.
    pub token_generation: Vec<Vec<f64>>,
    /// Sequence level, understanding: part of the (picture, slot) pairs.
    pub sequence_understanding: Vec<Vec<f64>>,
    /// Sequence level, generation.
    pub sequence_generation: Vec<Vec<f64>>,
}

/// Counts over several passes.
#[derive(Default)]
struct Counts(Vec<Vec<f64>>);

impl Counts {
    fn add(&mut self, blocks: &[Vec<u32>]) {
        self.0.resize_with(blocks.len().max(self.0.len()), Vec::new);
        for (sum, block) in self.0.iter_mut().zip(blocks) {
            sum.resize(block.len(), 0.0);
            sum.iter_mut().zip(block).for_each(|(sum, &count)| *sum += f64::from(count));
        }
    }

    fn frequencies(self) -> Vec<Vec<f64>> {
        let normalise = |block: Vec<f64>| {
            let total = block.iter().sum::<f64>().max(1.0);
            block.into_iter().map(|count| count / total).collect()
        };
        self.0.into_iter().map(normalise).collect()
    }
}

impl Pipeline {
    /// How often each expert fires: every picture is described once (understanding), and read back from its description with all its
    /// tokens masked, half of them, and few (generation).
    ///
    /// `images` are read one at a time.
    ///
    /// # Errors
    /// When a picture can't be read or resized, or `progress` says stop.
    pub fn expert_use(
        &self,
        images: impl Iterator<Item = Result<RgbImage>>,
        progress: &mut dyn FnMut(usize) -> bool,
    ) -> Result<ExpertUse> {
        let ids = self.config().special_ids();
        let n = self.config().num_vq_tokens;
        let encode = |text: &str| self.text_ids(text);
        let prompter = Prompter::new(self.config(), &encode)?.with_cut_prompts(true);
        let [mut token_u, mut token_g, mut sequence_u, mut sequence_g] = [(); 4].map(|()| Counts::default());
        for (number, image) in images.enumerate() {
            if !progress(number) {
                return Err(PipelineError::Stopped);
            }
            let pixels = self.pixels(&image?)?;
            let picture = self.read_pixels(pixels.clone())?;
            let caption = self.caption_of(&picture, &AnswerOptions::default())?;
            let image_ids: Vec<u32> = picture.codes.iter().map(|&code| code + ids.image_offset).collect();
            let row = prompter.mmu_inference(&caption, &image_ids)?;
            let understanding = self.observe(
                &row,
                for_mmu(&row, row.len(), ids.eoi)?.tensor(&self.device),
                Task::Mmu,
                2,
                0,
                self.features(pixels)?,
            );
            token_u.add(&understanding.token_use);
            sequence_u.add(&understanding.sequence_use);
            let head = prompter.t2i_head(&caption)?;
            for num_masked in [n, n / 2, n.div_ceil(8)] {
                let masked = random_mask(&keyed_uniforms(n, Key::new(0, number as u64)), num_masked);
                let mut row = head.clone();
                row.push(ids.soi);
                row.extend(image_ids.iter().zip(masked).map(|(&id, masked)| if masked { ids.mask } else { id }));
                row.push(ids.eoi);
                let mask = predict_next(&row, row.len(), Marks::image(&ids), true)?.tensor(&self.device);
                let features =
                    ExpertFeatures { noise_level: Some(vec![num_masked as f32 / n as f32]), ..ExpertFeatures::default() };
                let first = (self.config().max_seq_length + 1).saturating_sub(head.len());
                let generation = self.observe(&row, mask, Task::T2i, head.len() + 1, first, features);
                token_g.add(&generation.token_use);
                sequence_g.add(&generation.sequence_use);
            }
        }
        Ok(ExpertUse {
            token_understanding: token_u.frequencies(),
            token_generation: token_g.frequencies(),
            sequence_understanding: sequence_u.frequencies(),
            sequence_generation: sequence_g.frequencies(),
        })
    }

    fn observe(
        &self,
        row: &[u32],
        mask_BLS: burn::tensor::Tensor<3>,
        task: Task,
        image_start: usize,
        first: usize,
        features: ExpertFeatures,
    ) -> MoeStats {
        let batch = Batch {
            input: Input::Ids(self.id_rows(row, 1)),
            positions: Positions::From(first),
            mask_BLS,
            task,
            image_start: Some(image_start),
            features: Features::Raw(features),
        };
        self.unified.hidden(batch).stats
    }
}

/// Draws the four panels: token and sequence level, understanding and generation; blocks upwards, experts to the right. White is never,
/// full colour is twice the even share or more.
///
/// # Errors
/// When the picture can't be drawn or written.
pub fn draw_expert_use(expert_use: &ExpertUse, path: &Path) -> Result<()> {
    const WIDTH: u32 = 960;
    const HEIGHT: u32 = 720;
    let mut pixels = vec![255u8; (WIDTH * HEIGHT * 3) as usize];
    draw_panels(expert_use, &mut pixels, (WIDTH, HEIGHT)).map_err(|error| PipelineError::Drawing(error.to_string()))?;
    let image = RgbImage::new(WIDTH as usize, HEIGHT as usize, pixels)?;
    Ok(unif2ace_image::save_png(path, &image, None)?)
}

fn draw_panels(
    expert_use: &ExpertUse,
    pixels: &mut [u8],
    size: (u32, u32),
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    const FONT: &str = "sans-serif";
    // A second registration of the same font changes nothing; one that is no font is a defect of the build.
    register_font(FONT, FontStyle::Normal, epaint_default_fonts::HACK_REGULAR).map_err(|_| "the built-in font can't be read")?;
    let panels = [
        ("token level, understanding", &expert_use.token_understanding),
        ("token level, generation", &expert_use.token_generation),
        ("sequence level, understanding", &expert_use.sequence_understanding),
        ("sequence level, generation", &expert_use.sequence_generation),
    ];
    let root = BitMapBackend::with_buffer(pixels, size).into_drawing_area();
    root.fill(&WHITE)?;
    for (area, (title, panel)) in root.split_evenly((2, 2)).iter().zip(panels) {
        let (blocks, experts) = (panel.len(), panel.first().map_or(0, Vec::len));
        if blocks * experts == 0 {
            area.titled(&format!("{title}: this model has none"), (FONT, 16))?;
            continue;
        }
        let mut chart = ChartBuilder::on(area)
            .caption(title, (FONT, 16))
            .margin(10)
            .x_label_area_size(34)
            .y_label_area_size(40)
            .build_cartesian_2d((0..experts - 1).into_segmented(), (0..blocks - 1).into_segmented())?;
        let number = |value: &SegmentValue<usize>| match value {
            SegmentValue::CenterOf(number) | SegmentValue::Exact(number) => (number + 1).to_string(),
            SegmentValue::Last => String::new(),
        };
        chart
            .configure_mesh()
            .disable_mesh()
            .x_desc("expert")
            .y_desc("block")
            .label_style((FONT, 12))
            .axis_desc_style((FONT, 13))
            .x_label_formatter(&number)
            .y_label_formatter(&number)
            .x_labels(experts)
            .y_labels(blocks)
            .draw()?;
        let cells = panel
            .iter()
            .enumerate()
            .flat_map(|(block, row)| row.iter().enumerate().map(move |(expert, share)| (block, expert, share)));
        chart.draw_series(cells.map(|(block, expert, &share)| {
            let strength = (share * experts as f64 / 2.0).min(1.0);
            let shade = |full: f64| (255.0 - (255.0 - full) * strength) as u8;
            let edge = |index: usize, count: usize| if index < count { SegmentValue::Exact(index) } else { SegmentValue::Last };
            let corners = [(edge(expert, experts), edge(block, blocks)), (edge(expert + 1, experts), edge(block + 1, blocks))];
            Rectangle::new(corners, RGBColor(shade(20.0), shade(70.0), shade(150.0)).filled())
        }))?;
    }
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chart_shows_who_fires() {
        let mut expert_use = ExpertUse { token_understanding: vec![vec![1.0, 0.0], vec![0.0, 1.0]], ..ExpertUse::default() };
        let folder = tempfile::tempdir().unwrap();
        let draw = |expert_use: &ExpertUse| {
            let path = folder.path().join("experts.png");
            draw_expert_use(expert_use, &path).unwrap();
            unif2ace_image::load_rgb(path, unif2ace_image::DecodeLimits::default()).unwrap()
        };
        // Within the first panel: the lower left and the upper right cell are dark, the others white.
        let full = |image: &RgbImage| {
            [(150, 250), (380, 250), (150, 110), (380, 110)].map(|(x, y)| image.pixel(x, y).unwrap() == [20, 70, 150])
        };
        assert_eq!(full(&draw(&expert_use)), [true, false, false, true]);
        expert_use.token_understanding.reverse();
        assert_eq!(full(&draw(&expert_use)), [false, true, true, false]);
    }
}
