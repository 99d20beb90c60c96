//! The layers that every network here is made of, with parameters laid out and named as in the checkpoints.

use burn::module::{Initializer, Module, Param};
use burn::tensor::{Device, Int, Tensor};
use std::ops::Range;

use unif2ace_ops::{
    Activation, PackedLinear, PackedTable, Precision, activate, has_passes, layer_norm, linear_in, packed_linear, packed_linears,
    part_of, precision,
};

use crate::lora::Factor;
use crate::packing::{PackSource, WeightRows};

/// Standard deviation of initial linear and embedding weights (as in Show-o).
pub const INIT_STD: f64 = 0.02;

/// A parameter of normal values with standard deviation `std`, zeros for 0. They are drawn when they are first used: a network that is
/// loaded from a file draws nothing.
pub(crate) fn normal<const D: usize>(shape: [usize; D], std: f64, device: &Device) -> Param<Tensor<D>> {
    let values = if std == 0.0 { Initializer::Zeros } else { Initializer::Normal { mean: 0.0, std } };
    values.init(shape, device)
}

/// What is left of a parameter whose values have been packed; values that were never drawn stay undrawn.
pub(crate) fn let_go<const D: usize>(param: &Param<Tensor<D>>) -> Param<Tensor<D>> {
    Param::from_tensor(Tensor::zeros([0; D], &param.lazy_device()))
}

/// A parameter's values in order.
pub(crate) fn values<const D: usize>(param: &Param<Tensor<D>>) -> Vec<f32> {
    let data = param.val().into_data();
    data.try_to_vec::<f32>().unwrap_or_else(|_| data.iter::<f32>().collect())
}

/// `x W^T + b` over the last axis.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Param<Tensor<2>>,
    /// `[out]`.
    pub bias: Option<Param<Tensor<1>>>,
    /// `[rank, in]` of a low-rank adapter, where the layer has one.
    pub lora_A: Option<Factor>,
    /// `[out, rank]` of it.
    pub lora_B: Option<Factor>,
    #[module(skip)]
    pub(crate) lora_scale: f32,
    #[module(skip)]
    packed: Option<PackedLinear>,
}

impl Linear {
    /// Normal weights with standard deviation [`INIT_STD`], zero bias.
    pub fn new(num_in: usize, num_out: usize, bias: bool, device: &Device) -> Self {
        Self::with_std(num_in, num_out, bias, INIT_STD, device)
    }

    /// Normal weights with standard deviation `std` (0 for a layer that starts as zero), zero bias.
    pub fn with_std(num_in: usize, num_out: usize, bias: bool, std: f64, device: &Device) -> Self {
        let weight = normal([num_out, num_in], std, device);
        let bias = bias.then(|| normal([num_out], 0.0, device));
        Self { weight, bias, lora_A: None, lora_B: None, lora_scale: 0.0, packed: None }
    }

    /// Packs the weights for inference. The plain ones are let go: from here on the layer can be neither trained nor saved. An adapter must
    /// have been merged before.
    pub(crate) fn pack<S: PackSource>(&mut self, path: &str, source: &mut S) -> Result<(), S::Error> {
        if self.packed.is_none() {
            let [num_out, num_in] = self.weight.lazy_shape().dims();
            let parameter = format!("{path}.weight");
            let rows = WeightRows { parameter: &parameter, rows: 0..num_out, width: num_in };
            let matrix = source.matrix(&rows, &|| values(&self.weight))?;
            let bias = match &self.bias {
                Some(bias) => Some(source.bias(&format!("{path}.bias"), num_out, &|| values(bias))?),
                None => None,
            };
            self.packed = Some(PackedLinear::new(matrix, bias));
            self.weight = let_go(&self.weight);
        }
        Ok(())
    }

    /// Applies the layer and then `act`.
    pub fn forward_act<const D: usize>(&self, x: Tensor<D>, act: Activation) -> Tensor<D> {
        match &self.packed {
            Some(packed) => packed_linear(x, packed, act),
            None => self.forward_plain(precision(), x, None, act),
        }
    }

    /// Some of the layer's outputs only. Not for packed layers.
    pub(crate) fn forward_rows<const D: usize>(&self, x: Tensor<D>, rows: Range<usize>) -> Tensor<D> {
        self.forward_plain(precision(), x, Some(rows), Activation::None)
    }

    /// With the weights as tensors, and the adapter beside them.
    fn forward_plain<const D: usize>(
        &self,
        precision: Precision,
        x: Tensor<D>,
        rows: Option<Range<usize>>,
        act: Activation,
    ) -> Tensor<D> {
        fn part<const N: usize>(param: &Param<Tensor<N>>, rows: &Option<Range<usize>>) -> Tensor<N> {
            let value = param.val();
            let Some(rows) = rows else { return value };
            let mut dims = value.dims();
            let (all, width) = (dims[0], dims[1..].iter().product());
            dims[0] = rows.len();
            part_of(value.reshape([1, all, width]), rows.start, rows.len()).reshape(dims)
        }
        let (weight, bias) = (part(&self.weight, &rows), self.bias.as_ref().map(|bias| part(bias, &rows)));
        let Some((down, up)) = self.lora_A.as_ref().zip(self.lora_B.as_ref()) else {
            return linear_in(precision, x, weight, bias, act);
        };
        let plain = |x, weight, bias| linear_in(precision, x, weight, bias, Activation::None);
        let low = plain(x.clone(), down.weight.val(), None).mul_scalar(self.lora_scale);
        activate(plain(x, weight, bias) + plain(low, part(&up.weight, &rows), None), act)
    }

    /// Applies the layer.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.forward_act(x, Activation::None)
    }

    /// What each of several packed layers, with an activation behind it, gives for the same x; `None` if one of them isn't packed, or
    /// gradients are asked for.
    pub(crate) fn forward_all<const D: usize, const N: usize>(
        x: &Tensor<D>,
        layers: [(&Self, Activation); N],
    ) -> Option<[Tensor<D>; N]> {
        let packed: Vec<_> = layers.iter().map_while(|(layer, act)| Some((layer.packed.as_ref()?, *act))).collect();
        if packed.len() < N || !has_passes(&x.device()) {
            return None;
        }
        packed_linears(x, &packed).try_into().ok()
    }

    /// Applies the layer in f32, whatever the precision of the other products. Not for packed layers.
    pub fn forward_f32<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.forward_plain(Precision::F32, x, None, Activation::None)
    }
}

/// Layer norm over the last axis.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// `[width]`.
    pub weight: Param<Tensor<1>>,
    /// `[width]`.
    pub bias: Param<Tensor<1>>,
    /// Guard of the variance.
    #[module(skip)]
    pub eps: f64,
}

impl LayerNorm {
    /// Weight 1, bias 0.
    pub fn new(width: usize, eps: f64, device: &Device) -> Self {
        Self {
            weight: Param::from_tensor(Tensor::ones([width], device)),
            bias: Param::from_tensor(Tensor::zeros([width], device)),
            eps,
        }
    }

    /// Applies the norm.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        layer_norm(x, self.weight.val(), self.bias.val(), self.eps)
    }
}

/// A table of vectors.
#[derive(Module, Debug)]
pub struct Embedding {
    /// `[entries, width]`.
    pub weight: Param<Tensor<2>>,
    #[module(skip)]
    packed: Option<PackedTable>,
}

impl Embedding {
    /// Normal rows with standard deviation [`INIT_STD`].
    pub fn new(num_entries: usize, width: usize, device: &Device) -> Self {
        Self { weight: normal([num_entries, width], INIT_STD, device), packed: None }
    }

    /// As [`Linear::pack`].
    pub(crate) fn pack<S: PackSource>(&mut self, path: &str, source: &mut S) -> Result<(), S::Error> {
        if self.packed.is_none() {
            let dims = self.weight.lazy_shape().dims();
            let table = source.table(&format!("{path}.weight"), dims, &|| values(&self.weight))?;
            self.packed = Some(PackedTable::new(table));
            self.weight = let_go(&self.weight);
        }
        Ok(())
    }

    /// Rows of `ids_BL`: `[B, L, width]`.
    pub fn forward(&self, ids_BL: Tensor<2, Int>) -> Tensor<3> {
        if let Some(packed) = &self.packed {
            return packed.lookup(ids_BL);
        }
        let [batch, length] = ids_BL.dims();
        let width = self.weight.dims()[1];
        self.weight.val().select(0, ids_BL.reshape([batch * length])).reshape([batch, length, width])
    }
}
