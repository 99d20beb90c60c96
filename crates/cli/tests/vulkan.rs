//! The first Vulkan device against the CPU, with the shipped model in f32. `.ci/vulkan` runs these tests. Who builds with the feature wants
//! the device, so without one they fail.
#![cfg(feature = "vulkan")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them
#![allow(clippy::print_stderr)] // what was measured is shown
#![allow(non_snake_case)] // tensor names carry their shape

mod common;

use std::time::Instant;

use common::tiny_run::TinyRun;
use common::{PROMPT, error_of, output_of, root, text, unif2ace};
use unif2ace_diffusion::MASKED;
use unif2ace_diffusion::sampler::{Sampler, SamplerConfig};
use unif2ace_image::{DecodeLimits, Region, RgbImage, load_rgb};
use unif2ace_model::prompts::Prompter;
use unif2ace_model::transformer::Features;
use unif2ace_pipeline::{
    AnswerOptions, DeviceName, EditOptions, GenerateOptions, GridRequest, Pipeline, PipelineOptions, ScoreOptions, open_device,
};
use unif2ace_train::{Outcome, Recipe, Session, run_on};

/// Largest difference of a logit, as a part of the largest logit.
const TOLERANCE: f32 = 1e-3;
const PROMPTS: [&str; 2] = [PROMPT, "an old man with a white beard and a gray fedora, looking calm"];

fn load(device: DeviceName) -> Pipeline {
    let options = PipelineOptions { device, ..PipelineOptions::default() };
    Pipeline::from_pretrained(root().join("models/mini"), &options).unwrap()
}

/// The shipped model on the CPU and on Vulkan.
fn both() -> [Pipeline; 2] {
    if let Err(error) = open_device(DeviceName::Vulkan) {
        panic!("these tests need a Vulkan device; Debian's mesa-vulkan-drivers has one in software.\n{error}");
    }
    [DeviceName::Cpu, DeviceName::Vulkan].map(load)
}

fn faces() -> Vec<RgbImage> {
    (1..=2).map(|n| load_rgb(root().join(format!("docs/gallery/real-{n}.png")), DecodeLimits::default()).unwrap()).collect()
}

/// Checks and shows the largest difference as a part of the largest value.
fn close(what: &str, cpu: &[f32], vulkan: &[f32]) {
    assert_eq!(cpu.len(), vulkan.len(), "{what}");
    let larger = |a: f32, b: f32| if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b.abs()) };
    let largest = |values: &mut dyn Iterator<Item = f32>| values.fold(0.0, larger);
    let scale = largest(&mut cpu.iter().copied());
    let difference = largest(&mut cpu.iter().zip(vulkan).map(|(a, b)| a - b)) / scale;
    eprintln!("{what}: {} values up to {scale:.2}, largest difference {difference:.1e} of that", cpu.len());
    assert!(difference <= TOLERANCE, "{what}: {difference} > {TOLERANCE}");
}

fn same_pictures(what: &str, cpu: &RgbImage, vulkan: &RgbImage) {
    assert_eq!((cpu.width(), cpu.height()), (vulkan.width(), vulkan.height()), "{what}");
    let differences: Vec<u8> = cpu.data().iter().zip(vulkan.data()).map(|(a, b)| a.abs_diff(*b)).filter(|&d| d > 0).collect();
    let largest = differences.iter().copied().max().unwrap_or(0);
    eprintln!("{what}: {} of {} bytes differ, by at most {largest} of 255", differences.len(), cpu.data().len());
    assert!(largest <= 1, "{what}: pictures differ by {largest} of 255");
}

#[test]
fn logits_of_codes_agree() {
    let models = both();
    let num_tokens = models[0].config().num_vq_tokens;
    let half: Vec<u32> = (0..num_tokens).map(|place| if place % 2 == 0 { MASKED } else { 97 * place as u32 % 8192 }).collect();
    for (what, grid) in [("masked", vec![MASKED; num_tokens]), ("half masked", half)] {
        let wanted: Vec<usize> = (0..num_tokens).filter(|&place| grid[place] == MASKED).collect();
        let masked_fraction = wanted.len() as f32 / num_tokens as f32;
        for guidance_scale in [0.0, 2.0] {
            let request = || GridRequest { grid: &grid, wanted: &wanted, masked_fraction };
            let [cpu, vulkan] = models
                .each_ref()
                .map(|model| model.denoiser(&PROMPTS, guidance_scale).unwrap().logits(&[request(), request()]).unwrap().concat());
            close(&format!("logits of codes, {what}, guidance {guidance_scale}"), &cpu, &vulkan);
        }
    }
}

#[test]
fn codes_of_generated_pictures_are_equal() {
    let models = both();
    for sampler in [Sampler::Maskgit, Sampler::Euler, Sampler::Tweedie] {
        let config = SamplerConfig { sampler, num_steps: 4, ..SamplerConfig::default() };
        let [cpu, vulkan] = models.each_ref().map(|model| model.denoiser(&PROMPTS, 2.0).unwrap().sample(&config, 5, 0).unwrap());
        let equal = cpu.iter().zip(&vulkan).filter(|(a, b)| a == b).count();
        eprintln!("{sampler}: {equal} of {} codes are equal", cpu.len());
        assert_eq!(cpu, vulkan, "{sampler}");
    }
}

#[test]
fn pictures_agree() {
    let models = both();
    let generate =
        GenerateOptions { prompt: PROMPT.into(), seed: 3, num_images: 2, num_inference_steps: 12, ..Default::default() };
    let [cpu, vulkan] = models.each_ref().map(|model| {
        let start = Instant::now();
        let images = model.generate(&generate, &mut |_| true).unwrap();
        eprintln!("two pictures in {:.1} s", start.elapsed().as_secs_f32());
        images
    });
    for (cpu, vulkan) in cpu.iter().zip(&vulkan) {
        same_pictures("generate", cpu, vulkan);
    }
    let generate = GenerateOptions { num_images: 1, num_inference_steps: 4, ..generate };
    let repaint = Region::parse_mask("eyes", models[0].grid()).unwrap();
    let options = EditOptions { generate, repaint };
    let [cpu, vulkan] = models.each_ref().map(|model| model.edit(&faces()[0], &options, &mut |_| true).unwrap());
    same_pictures("edit", &cpu[0], &vulkan[0]);
}

#[test]
fn answers_captions_and_scores_agree() {
    let models = both();
    let questions = ["What colour is the hair?", "Is this person wearing glasses?"];
    for (index, face) in faces().iter().enumerate() {
        let [cpu, vulkan] = models.each_ref().map(|model| {
            let picture = model.read_picture(face).unwrap();
            let options = AnswerOptions::default();
            let mut said = model.answers(&picture, &questions, &options).unwrap();
            said.push(model.caption_of(&picture, &options).unwrap());
            (picture.codes, said)
        });
        assert_eq!(cpu.0, vulkan.0, "codes of face {index}");
        assert_eq!(cpu.1, vulkan.1, "answers on face {index}");
        assert!(cpu.1.iter().all(|said| !said.trim().is_empty()), "{:?}", cpu.1);
    }
    let options = ScoreOptions { num_points: 4, seed: 0 };
    let [cpu, vulkan] = models.each_ref().map(|model| model.score(&faces()[0], PROMPT, &options).unwrap().nats as f32);
    close("score", &[cpu], &[vulkan]);
}

#[test]
fn logits_of_text_agree() {
    let [cpu, vulkan] = both().map(|model| {
        let pixels_BHWC = model.pixels(&faces()[0]).unwrap();
        let offset = model.config().special_ids().image_offset;
        let image: Vec<u32> = model.encode(pixels_BHWC.clone()).unwrap().into_iter().map(|code| code + offset).collect();
        let encode = |text: &str| model.tokenizer.encode(text).unwrap();
        let prompter = Prompter::new(model.config(), &encode).unwrap();
        let (prefix, question) = (prompter.mmu_prefix(&image).unwrap(), prompter.question_ids("What is this?").unwrap());
        let features = Features::Raw(model.features(pixels_BHWC).unwrap());
        let (mut reading, _) = model.unified.read_image(&prefix, features).unwrap();
        let (last_BD, _) = model.unified.read_text(&mut reading, &[&question]).unwrap();
        model.unified.text_logits(last_BD).into_data().iter::<f32>().collect::<Vec<f32>>()
    });
    close("logits of text", &cpu, &vulkan);
}

#[test]
fn the_command_takes_the_device() {
    let folder = tempfile::tempdir().unwrap();
    let [cpu, vulkan] = ["cpu", "vulkan"].map(|device| {
        let path = folder.path().join(format!("{device}.png"));
        output_of(&["generate", PROMPT, "-o", text(&path), "--num-inference-steps", "3", "--device", device]);
        load_rgb(&path, DecodeLimits::default()).unwrap()
    });
    same_pictures("generate", &cpu, &vulkan);
    let face = root().join("docs/gallery/real-1.png");
    let [cpu, vulkan] =
        ["cpu", "vulkan"].map(|device| output_of(&["ask", text(&face), "What colour is the hair?", "--device", device]));
    assert_eq!(cpu, vulkan);
}

#[test]
fn weights_that_the_device_lacks_are_refused_and_auto_takes_the_cpu() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("face.png");
    for dtype in ["bf16", "int8"] {
        let error = error_of(&["generate", PROMPT, "-o", text(&path), "--device", "vulkan", "--dtype", dtype]);
        assert!(error.contains("--device cpu"), "{error}");
    }
    assert!(!path.exists());
    let args = ["generate", PROMPT, "-o", text(&path), "--num-inference-steps", "1", "--dtype", "bf16", "--device", "auto"];
    let auto = unif2ace().args(args).output().unwrap();
    assert!(auto.status.success(), "{}", String::from_utf8_lossy(&auto.stderr));
}

/// Losses and gradient norms.
fn numbers(run: &TinyRun) -> Vec<f32> {
    let lines = run.metrics();
    let number = |line: &serde_json::Value, name| line[name].as_f64().map(|number| number as f32);
    lines.iter().flat_map(|line| ["loss", "grad_norm"].map(|name| number(line, name))).flatten().collect()
}

#[test]
fn training_agrees_and_goes_on_with_other_devices() {
    let folders = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let [cpu, vulkan, both] = folders.each_ref().map(|folder| TinyRun::shareable(folder.path(), 4));
    cpu.command(false).assert().success();
    let start = Instant::now();
    vulkan.command(false).args(["--device", "vulkan"]).assert().success();
    eprintln!("four steps of training in {:.1} s", start.elapsed().as_secs_f32());
    close("losses and gradient norms of training", &numbers(&cpu), &numbers(&vulkan));

    // Blocks that run again in the backward pass.
    let folder = tempfile::tempdir().unwrap();
    let recomputed = TinyRun::new(folder.path(), |recipe| {
        recipe["optimizer"]["batch_size"] = 4.into();
        recipe["optimizer"]["num_steps"] = 4.into();
        recipe["optimizer"]["schedule"] = "constant".into();
        recipe["unified"].as_table_mut().unwrap().insert("recompute".into(), "blocks".into());
    });
    recomputed.command(false).args(["--device", "vulkan"]).assert().success();
    close("training with recomputation", &numbers(&cpu), &numbers(&recomputed));

    // Two ranks on Vulkan take the first two steps (here they share the first device), one on the CPU the others.
    TinyRun::shareable(folders[2].path(), 2);
    let recipe = Recipe::read(&both.folder.join("recipe.toml")).unwrap();
    let device = open_device(DeviceName::Vulkan).unwrap();
    let session = Session { quiet: true, ..Session::default() };
    assert_eq!(run_on(&recipe, session, vec![device; 2]).unwrap(), Outcome::Finished);
    TinyRun::shareable(folders[2].path(), 4).command(true).assert().success();
    close("training on two ranks, then on the CPU", &numbers(&cpu), &numbers(&both));
}

#[test]
fn a_precision_that_the_device_lacks_is_refused_and_auto_takes_the_cpu() {
    let folder = tempfile::tempdir().unwrap();
    let run = TinyRun::new(folder.path(), |recipe| {
        recipe["run"].as_table_mut().unwrap().insert("precision".into(), "bf16".into());
        recipe["optimizer"]["num_steps"] = 1.into();
    });
    let recipe = run.folder.join("recipe.toml");
    let error = error_of(&["train", text(&recipe), "--quiet", "--device", "vulkan"]);
    assert!(error.contains("bf16") && error.contains("--device cpu"), "{error}");
    assert!(!run.path("metrics.jsonl").exists());
    run.command(false).args(["--device", "auto"]).assert().success();
}
