//! Linear layers whose weights are packed once, for inference: the same numbers as [`crate::linear`] without packing at each call.

use std::sync::Arc;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{Tensor, TensorData};
use unif2ace_kernels::activation::Activation as KernelActivation;
use unif2ace_kernels::gemm::{Matrix, PackedMatrix, Precision as KernelPrecision, gemm};
use unif2ace_kernels::linear;

use crate::cpu::{dims, tensor, values};
use crate::{Activation, Precision, on_cpu};

/// A frozen linear layer; clones share the weights. Made by [`pack_linear`].
#[derive(Debug, Clone)]
pub struct PackedLinear(Form);

// Some dozens exist in a process; a box would only add a step to each use.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone)]
enum Form {
    Packed(Arc<Layer>),
    /// As given, where the device isn't the CPU backend.
    Plain {
        weight: Tensor<2>,
        bias: Option<Tensor<1>>,
    },
}

/// A packed layer as the backend sees it.
#[derive(Debug)]
pub struct Layer {
    /// `[in, out]`.
    weight: PackedMatrix,
    bias: Option<Vec<f32>>,
    precision: KernelPrecision,
}

impl Layer {
    /// Before the activation.
    fn forward(&self, x: &[f32], rows: usize) -> Vec<f32> {
        let x = Matrix::new(x, rows, self.weight.rows());
        let num_out = self.weight.cols();
        let mut y = Vec::with_capacity(rows * num_out);
        match &self.bias {
            Some(bias) => (0..rows).for_each(|_| y.extend_from_slice(bias)),
            None => y.resize(rows * num_out, 0.0),
        }
        self.weight.product(x, &mut y, self.bias.is_some());
        y
    }
}

fn floats(data: TensorData) -> Vec<f32> {
    data.try_to_vec::<f32>().unwrap_or_else(|_| data.iter::<f32>().collect())
}

/// Packs `weight` `[out, in]` and `bias` `[out]` for [`packed_linear`]. They are copied: later changes of the tensors don't show. On the
/// CPU, bf16 halves the memory that each call reads.
pub fn pack_linear(weight: Tensor<2>, bias: Option<Tensor<1>>, precision: Precision) -> PackedLinear {
    if !on_cpu(&weight.device()) {
        return PackedLinear(Form::Plain { weight, bias });
    }
    let [num_out, num_in] = weight.dims();
    let weight = floats(weight.into_data());
    let precision = precision.into();
    PackedLinear(Form::Packed(Arc::new(Layer {
        weight: PackedMatrix::new(Matrix::new(&weight, num_out, num_in).t(), precision),
        bias: bias.map(|bias| floats(bias.into_data())),
        precision,
    })))
}

/// `act(x W^T + b)` over the last axis, in the precision that the layer was packed in. Gradients reach x, not the layer.
pub fn packed_linear<const D: usize>(x: Tensor<D>, layer: &PackedLinear, act: Activation) -> Tensor<D> {
    let layer = match &layer.0 {
        Form::Packed(layer) => layer,
        Form::Plain { weight, bias } => return crate::linear(x, weight.clone(), bias.clone(), act),
    };
    let mut dims = x.dims();
    let rows = dims[..D - 1].iter().product::<usize>();
    let x = x.reshape([rows, dims[D - 1]]).into_dispatch();
    dims[D - 1] = layer.weight.cols();
    Tensor::<2>::from_dispatch(Dispatch::f2_packed_linear(x, layer.clone(), act.into())).reshape(dims)
}

/// The operation as burn sees it.
#[backend_extension(Flex, Autodiff)]
pub trait PackedOps: Backend {
    /// See [`packed_linear`]; x is `[R, in]`.
    fn f2_packed_linear(x: FloatTensor<Self>, layer: Arc<Layer>, act: KernelActivation) -> FloatTensor<Self>;
}

impl PackedOps for Flex {
    fn f2_packed_linear(x: FlexTensor, layer: Arc<Layer>, act: KernelActivation) -> FlexTensor {
        let [rows, _] = dims(&x);
        let mut y = layer.forward(&values(&x), rows);
        linear::activate(&mut y, act);
        tensor(y, [rows, layer.weight.cols()])
    }
}

#[derive(Debug)]
struct PackedBackward;

#[derive(Debug, Clone)]
struct PackedState {
    layer: Arc<Layer>,
    before: Option<FlexTensor>,
    act: KernelActivation,
}

impl Backward<Flex, 1> for PackedBackward {
    type State = PackedState;

    fn backward(self, ops: Ops<PackedState, 1>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let [node] = ops.parents;
        let PackedState { layer, before, act } = ops.state;
        let dy = grads.consume::<Flex>(&ops.node);
        let [rows, num_out] = dims(&dy);
        let mut dy = values(&dy);
        if let Some(before) = &before {
            linear::deactivate(dy.to_mut(), &values(before), act);
        }
        if let Some(node) = node {
            let num_in = layer.weight.rows();
            let weight = layer.weight.unpack();
            let mut dx = vec![0.0; rows * num_in];
            gemm(Matrix::new(&dy, rows, num_out), Matrix::new(&weight, num_in, num_out).t(), &mut dx, false, layer.precision);
            grads.register::<Flex>(node.id, tensor(dx, [rows, num_in]));
        }
    }
}

impl<C: CheckpointStrategy> PackedOps for Autodiff<Flex, C> {
    fn f2_packed_linear(x: FloatTensor<Self>, layer: Arc<Layer>, act: KernelActivation) -> FloatTensor<Self> {
        match PackedBackward.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let x = x.into_primitive();
                let [rows, _] = dims(&x);
                let shape = [rows, layer.weight.cols()];
                let mut y = layer.forward(&values(&x), rows);
                let before = (act != KernelActivation::None).then(|| tensor(y.clone(), shape));
                linear::activate(&mut y, act);
                prep.finish(PackedState { layer, before, act }, tensor(y, shape))
            }
            OpsKind::UnTracked(prep) => prep.finish(Flex::f2_packed_linear(x.into_primitive(), layer, act)),
        }
    }
}
