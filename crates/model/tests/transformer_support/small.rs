//! A small network with experts, and a pass of it.

use burn::tensor::{Device, Tensor};
use unif2ace_golden::procedural;
use unif2ace_model::config::{ModelConfig, MoeConfig, MoeLevel};
use unif2ace_model::masks::{Marks, for_mmu, predict_next};
use unif2ace_model::moe::Task;
use unif2ace_model::transformer::{Input, Unif2ace};

use super::{features, ids_tensor, map_values, noise, small_experts, stir_experts, whole};

const N: usize = 4;

/// A network of two blocks with experts of `level`.
pub fn config(level: MoeLevel) -> ModelConfig {
    let config = ModelConfig {
        vocab_size: 20 + 10 + 8 + 1,
        hidden_size: 16,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        intermediate_size: 24,
        llm_vocab_size: 20,
        eot_token_id: 19,
        codebook_size: 8,
        num_vq_tokens: N,
        max_seq_length: 5,
        moe: MoeConfig { feature_token_dim: 6, ..small_experts(level) },
        ..ModelConfig::base()
    };
    config.check().unwrap();
    config
}

/// Every parameter away from its start. Sequence routers get a bias that makes `favoured` one of the two choices.
pub fn stirred(model: Unif2ace, favoured: usize) -> Unif2ace {
    map_values(stir_experts(model), |name, shape, values| {
        if name.starts_with("showo") && !name.contains(".moe.") && !name.contains(".sequence.") {
            let noise = procedural(name, shape);
            values.copy_from_slice(&noise);
        }
        if name.contains("sequence.") && name.ends_with("router.bias") {
            values[favoured] = 3.0;
        }
        if name.ends_with(".mix") {
            values.copy_from_slice(&[0.3, -0.2, -0.5, 0.4]);
        }
    })
}

/// Two rows of a task, and where the image starts.
pub fn rows(config: &ModelConfig, task: Task) -> (Vec<Vec<u32>>, usize) {
    let ids = config.special_ids();
    let image = |shift: u32| {
        (0..N as u32)
            .map(move |n| if task == Task::T2i && n != shift { ids.mask } else { ids.image_offset + (3 * n + shift) % 8 })
    };
    match task {
        Task::T2i => {
            let row = |head: [u32; 6], shift| [head.to_vec(), vec![ids.soi], image(shift).collect(), vec![ids.eoi]].concat();
            (vec![row([ids.pad, ids.pad, ids.t2i, 19, 4, 19], 1), row([ids.t2i, 19, 7, 2, 11, 19], 2)], config.max_seq_length + 2)
        }
        Task::Mmu => {
            let row =
                |text: [u32; 5], shift| [vec![ids.mmu, ids.soi], image(shift).collect(), vec![ids.eoi], text.to_vec()].concat();
            (vec![row([19, 3, 5, 8, 19], 1), row([19, 12, 1, 19, ids.pad], 2)], 2)
        }
    }
}

/// A scalar of everything the network gives, in pieces that are summed in f64, and which experts were used.
pub fn objective(model: &Unif2ace, task: Task, device: &Device) -> (Tensor<3>, Tensor<1>, [Vec<Vec<u32>>; 2]) {
    let config = model.config();
    let ids = config.special_ids();
    let (rows, start) = rows(config, task);
    let (flat, length) = (rows.concat(), rows[0].len());
    let mask = match task {
        Task::T2i => predict_next(&flat, length, Marks::image(&ids), true),
        Task::Mmu => for_mmu(&flat, length, ids.eoi),
    };
    let input = Input::Ids(ids_tensor(&rows, device));
    let features = features(config, task, rows.len(), device);
    let hidden = model.hidden(whole(input, mask.unwrap().tensor(device), task, Some(start), features));
    let logits_BLV = model.logits(hidden.x_BLD);
    let weighted = logits_BLV.clone() * noise("weights", logits_BLV.dims(), device);
    let used = [hidden.stats.token_use, hidden.stats.sequence_use];
    let balance = hidden.stats.balance_loss.map_or_else(|| Tensor::zeros([1], device), |loss| loss * 2.0);
    (weighted, balance, used)
}
