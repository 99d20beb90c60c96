//! Logits at some places of some grids are those of the same places among all of them, of the shipped model.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use unif2ace_diffusion::MASKED;
use unif2ace_pipeline::{GridRequest, Pipeline, PipelineOptions, WeightFormat};

#[test]
fn wanted_places_get_the_logits_that_they_get_among_all_places() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/mini");
    let options = PipelineOptions { weights: Some(WeightFormat::F32), ..PipelineOptions::default() };
    let pipeline = Pipeline::from_pretrained(&folder, &options).unwrap();
    let (num, codes) = (pipeline.config().num_vq_tokens, pipeline.config().codebook_size);
    // Two grids of which different places are known.
    let grids = [3, 5].map(|step| -> Vec<u32> {
        (0..num).map(|place| if place % step == 0 { MASKED } else { (place * 97 % codes) as u32 }).collect()
    });
    let all: Vec<usize> = (0..num).collect();
    let masked = grids.clone().map(|grid| (0..num).filter(|&place| grid[place] == MASKED).collect::<Vec<_>>());
    for guidance_scale in [0.0, 5.0] {
        let denoiser = pipeline.denoiser(&["an old man with a grey beard", "a girl, laughing"], guidance_scale).unwrap();
        let logits = |wanted: [&[usize]; 2]| {
            let request = |index: usize| GridRequest { grid: &grids[index], wanted: wanted[index], masked_fraction: 0.4 };
            denoiser.logits(&[request(0), request(1)]).unwrap()
        };
        let (whole, part) = (logits([&all, &all]), logits([&masked[0], &masked[1]]));
        for ((whole, part), wanted) in whole.iter().zip(&part).zip(&masked) {
            assert_eq!((whole.len(), part.len()), (num * codes, wanted.len() * codes));
            for (&place, found) in wanted.iter().zip(part.chunks_exact(codes)) {
                let expected = &whole[place * codes..][..codes];
                let off = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(off < 1e-4, "guidance {guidance_scale}, place {place}: {off} off");
            }
        }
        assert_ne!(part[0][..codes], part[1][..codes], "two grids and prompts give the same: the test is blind");
        // Nothing is wanted of a grid that is done.
        let rest = logits([&[], &masked[1]]);
        assert!(rest[0].is_empty());
        assert_eq!(rest[1], part[1]);
    }
}
