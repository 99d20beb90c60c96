//! Attention masks against the golden ones, exactly.
#![allow(clippy::unwrap_used)]

use unif2ace_golden::{Tensors, json, root};
use unif2ace_model::masks::{HIDDEN, Marks, Mask, for_mmu, for_mmu_vit, lvg, predict_next};

#[test]
fn every_golden_mask_is_reproduced() {
    let folder = root().join("masks");
    let tensors = Tensors::load(folder.join("attention_masks.safetensors"));
    let cases = json(folder.join("attention_masks.json"));
    let cases = cases.as_array().unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let number = |key: &str| case["args"][key].as_u64().map(|v| v as usize);
        let id = |key: &str| number(key).unwrap_or(0) as u32;
        let marks = Marks { pad: id("pad_id"), start: id("soi_id"), end: id("eoi_id") };
        let (shape, expected) = tensors.u8(&format!("{name}.visible"));
        let length = shape[3];
        let ids: Vec<u32> = if tensors.has(&format!("{name}.ids")) {
            tensors.i64(&format!("{name}.ids")).1.iter().map(|&id| id as u32).collect()
        } else {
            Vec::new()
        };
        let mask: Mask = match case["function"].as_str().unwrap() {
            "create_attention_mask_predict_next" => {
                let hide_pads = case["args"]["rm_pad_in_image"].as_bool().unwrap_or(false);
                predict_next(&ids, length, marks, hide_pads).unwrap()
            }
            "create_attention_mask_for_mmu" => for_mmu(&ids, length, marks.end).unwrap(),
            "create_attention_mask_for_mmu_vit" => for_mmu_vit(length, number("system_prompt_len").unwrap_or(0), 576).unwrap(),
            "create_attention_mask_lvg" => lvg(&ids, length, marks).unwrap(),
            other => unreachable!("{other}"),
        };
        assert_eq!(mask.dims().to_vec(), [shape[0], shape[2], shape[3]], "{name}");
        let visible: Vec<u8> = mask.visible().iter().map(|&v| u8::from(v)).collect();
        assert_eq!(visible, expected, "{name}");
        if tensors.has(&format!("{name}.additive")) {
            let (shape, expected) = tensors.f32(&format!("{name}.additive"));
            let additive = mask.additive();
            for row in 0..shape[0] {
                let start = row * length * length;
                assert_eq!(additive[start..start + 2 * length], expected[row * 2 * length..(row + 1) * 2 * length], "{name}");
            }
        }
        assert_eq!(case["masked_value"].as_f64().unwrap() as f32, HIDDEN);
        assert!(mask.visible().chunks(length).all(|row| row.contains(&true)), "{name}: a query sees nothing");
    }
}
