//! Rotary tables (as in Show-o) for consecutive or arbitrary positions.

use burn::tensor::{Device, Tensor, TensorData};
use unif2ace_ops::Rotary;

use crate::config::ModelConfig;

/// Where the tokens of a pass stand in their rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Positions {
    /// `first, first + 1, ..` in every row. Pads that were left out before the first token count here.
    From(usize),
    /// One list of L positions a row.
    Rows(Vec<Vec<u32>>),
}

impl Positions {
    /// Cosines and sines `[B or 1, L, R]`: the angles `p / theta^(2i/R)`, i below R/2, twice in a row.
    pub fn rotary(&self, length: usize, config: &ModelConfig, device: &Device) -> Rotary {
        let dims = config.rotary_dim();
        let half = dims / 2;
        let inverse: Vec<f32> = (0..half).map(|i| 1.0 / (config.rope_theta as f32).powf(2.0 * i as f32 / dims as f32)).collect();
        let consecutive;
        let rows: &[Vec<u32>] = match self {
            Self::From(first) => {
                consecutive = [(*first as u32..(*first + length) as u32).collect::<Vec<_>>()];
                &consecutive
            }
            Self::Rows(rows) => rows,
        };
        let mut cos = Vec::with_capacity(rows.len() * length * dims);
        let mut sin = Vec::with_capacity(rows.len() * length * dims);
        for &position in rows.iter().flatten() {
            for index in 0..dims {
                let angle = position as f32 * inverse[index % half];
                cos.push(angle.cos());
                sin.push(angle.sin());
            }
        }
        let shape = [rows.len(), length, dims];
        let table = |values| Tensor::<3>::from_data(TensorData::new(values, shape), &device.clone().without_autodiff());
        Rotary { cos_BLR: table(cos), sin_BLR: table(sin) }
    }
}
