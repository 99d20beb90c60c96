//! Layers whose weights are packed once, for inference: in f32 and bf16 the same numbers as the plain operations without packing at each
//! call, in int8 less memory to read.

use std::borrow::Cow;
use std::sync::Arc;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{Int, Tensor, TensorData};
use unif2ace_kernels::activation::Activation as KernelActivation;
use unif2ace_kernels::conv;
use unif2ace_kernels::gemm::{Matrix, PackedMatrix, gemm};
use unif2ace_kernels::linear;
use unif2ace_kernels::moe::{self, PackedExperts as Bank, Served, Weights};
use unif2ace_kernels::table::Table;

use crate::cpu::{dims, targets, tensor, values};
use crate::{Activation, Conv2dOptions, WeightFormat};

/// A frozen linear layer; clones share the weights. CPU only.
#[derive(Debug, Clone)]
pub struct PackedLinear(Arc<Layer>);

/// A packed layer as the backend sees it.
#[derive(Debug)]
pub struct Layer {
    /// `[in, out]`.
    weight: PackedMatrix,
    bias: Option<Vec<f32>>,
    format: WeightFormat,
}

impl Layer {
    fn forward(&self, x: &[f32], rows: usize, act: KernelActivation) -> Vec<f32> {
        self.weight.forward(Matrix::new(x, rows, self.weight.rows()), self.bias.as_deref(), act)
    }
}

fn floats(data: TensorData) -> Vec<f32> {
    data.try_to_vec::<f32>().unwrap_or_else(|_| data.iter::<f32>().collect())
}

impl PackedLinear {
    /// A layer of a packed `[in, out]` matrix and a bias `[out]`.
    pub fn new(weight: PackedMatrix, bias: Option<Vec<f32>>) -> Self {
        Self(Arc::new(Layer { format: weight.format(), weight, bias }))
    }
}

/// Packs `weight` `[out, in]` and `bias` `[out]` for [`packed_linear`]. They are copied: later changes of the tensors don't show. bf16 halves
/// the memory that each call reads, and int8 quarters it.
pub fn pack_linear(weight: Tensor<2>, bias: Option<Tensor<1>>, format: WeightFormat) -> PackedLinear {
    let [num_out, num_in] = weight.dims();
    let weight = floats(weight.into_data());
    PackedLinear::new(
        PackedMatrix::new(Matrix::new(&weight, num_out, num_in).t(), format),
        bias.map(|bias| floats(bias.into_data())),
    )
}

/// `act(x W^T + b)` over the last axis, in the format that the layer was packed in. Gradients reach x, not the layer.
pub fn packed_linear<const D: usize>(x: Tensor<D>, layer: &PackedLinear, act: Activation) -> Tensor<D> {
    let layer = &layer.0;
    let mut dims = x.dims();
    let rows = dims[..D - 1].iter().product::<usize>();
    let x = x.reshape([rows, dims[D - 1]]).into_dispatch();
    dims[D - 1] = layer.weight.cols();
    Tensor::<2>::from_dispatch(Dispatch::f2_packed_linear(x, layer.clone(), act.into())).reshape(dims)
}

/// [`packed_linear`] of the same x through several layers: what they share is done once. Where [`crate::has_passes`].
pub fn packed_linears<const D: usize>(x: &Tensor<D>, layers: &[(&PackedLinear, Activation)]) -> Vec<Tensor<D>> {
    let dims = x.dims();
    let rows = dims[..D - 1].iter().product::<usize>();
    let x = x.clone().reshape([rows, dims[D - 1]]).into_dispatch();
    let (layers, acts): (Vec<_>, _) = layers.iter().map(|(layer, act)| (layer.0.clone(), KernelActivation::from(*act))).unzip();
    let back = |y| {
        let y = Tensor::<2>::from_dispatch(y);
        let mut dims = dims;
        dims[D - 1] = y.dims()[1];
        y.reshape(dims)
    };
    Dispatch::f2_packed_linears(x, layers, acts).into_iter().map(back).collect()
}

/// A frozen convolution; clones share the weights. CPU only.
#[derive(Debug, Clone)]
pub struct PackedConv(Arc<ConvLayer>);

/// A packed convolution as the backend sees it.
#[derive(Debug)]
pub struct ConvLayer {
    weight: PackedMatrix,
    bias: Vec<f32>,
    kernel: [usize; 2],
}

/// Packs `weight` `[out, in, kh, kw]` and `bias` `[out]` for [`packed_conv2d`], in the precision of [`crate::precision`].
pub fn pack_conv2d(weight: Tensor<4>, bias: Tensor<1>) -> PackedConv {
    let [num_out, channels, kernel_height, kernel_width] = weight.dims();
    let kernel = [kernel_height, kernel_width];
    let weight = conv::pack(&floats(weight.into_data()), num_out, channels, kernel, crate::kernel_precision());
    PackedConv(Arc::new(ConvLayer { weight, bias: floats(bias.into_data()), kernel }))
}

/// [`crate::conv2d_nhwc`] with packed weights. For inference: no gradient passes.
pub fn packed_conv2d(x_BHWC: Tensor<4>, layer: &PackedConv, options: Conv2dOptions) -> Tensor<4> {
    let [batch, height, width, channels] = x_BHWC.dims();
    let device = x_BHWC.device();
    let layer = &layer.0;
    let Conv2dOptions { stride, padding, upsample } = options;
    let num_out = layer.weight.cols();
    let shape = conv::Shape { batch, height, width, channels, num_out, kernel: layer.kernel, stride, padding, upsample };
    let data = x_BHWC.into_data();
    let x = data.as_slice::<f32>().map_or_else(|_| Cow::Owned(data.iter::<f32>().collect()), Cow::Borrowed);
    let y = conv::forward_packed(&x, &layer.weight, &layer.bias, shape);
    let [height, width] = shape.output();
    Tensor::from_data(TensorData::new(y, [batch, height, width, num_out]), &device)
}

/// Frozen routed experts; clones share the weights. CPU only.
#[derive(Debug, Clone)]
pub struct PackedExperts(Arc<Bank>);

impl PackedExperts {
    /// Experts of packed matrices: `[D, F]` and `[F, D]` for each, and all biases, `[E * F]` and `[E * D]`.
    pub fn new(first: Vec<PackedMatrix>, second: Vec<PackedMatrix>, b1: Vec<f32>, b2: Vec<f32>) -> Self {
        Self(Arc::new(Bank::from_matrices(first, second, b1, b2)))
    }
}

/// A frozen table of embeddings; clones share the rows. CPU only.
#[derive(Debug, Clone)]
pub struct PackedTable(Arc<Table>);

impl PackedTable {
    /// A table as the kernels have it.
    pub fn new(table: Table) -> Self {
        Self(Arc::new(table))
    }

    /// Rows of `ids_BL`: `[B, L, width]`; ids beyond the table give zeros.
    pub fn lookup(&self, ids_BL: Tensor<2, Int>) -> Tensor<3> {
        let ([batch, length], device) = (ids_BL.dims(), ids_BL.device());
        let ids: Vec<i64> = ids_BL.into_data().iter::<i64>().collect();
        Tensor::from_data(TensorData::new(self.0.gather(&ids), [batch, length, self.0.width()]), &device)
    }
}

/// Packs experts for [`packed_moe_mlp`]; shapes and copying as in [`crate::moe_mlp`] and [`pack_linear`].
pub fn pack_experts(
    w1_EFD: Tensor<3>,
    b1_EF: Tensor<2>,
    w2_EDF: Tensor<3>,
    b2_ED: Tensor<2>,
    format: WeightFormat,
) -> PackedExperts {
    let [experts, inner, width] = w1_EFD.dims();
    let [w1, b1] = [floats(w1_EFD.into_data()), floats(b1_EF.into_data())];
    let [w2, b2] = [floats(w2_EDF.into_data()), floats(b2_ED.into_data())];
    let weights = Weights { w1: &w1, b1: &b1, w2: &w2, b2: &b2 };
    let shape = moe::Shape { width, inner, experts, chosen: 1 };
    PackedExperts(Arc::new(Bank::new(weights, shape, format)))
}

/// [`crate::moe_mlp`] with packed experts. Gradients reach x and the gates, not the experts.
pub fn packed_moe_mlp(
    x_RD: Tensor<2>,
    expert_index_RK: Tensor<2, Int>,
    gates_RK: Tensor<2>,
    experts: &PackedExperts,
    act: Activation,
) -> Tensor<2> {
    let bank = experts.0.clone();
    let [x, gates] = [x_RD, gates_RK].map(Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::f2_packed_moe(x, expert_index_RK.into_dispatch(), gates, bank, act.into()))
}

/// The operations as burn sees them.
#[backend_extension(Flex, Autodiff)]
pub trait PackedOps: Backend {
    /// See [`packed_linear`]; x is `[R, in]`.
    fn f2_packed_linear(x: FloatTensor<Self>, layer: Arc<Layer>, act: KernelActivation) -> FloatTensor<Self>;
    /// See [`packed_moe_mlp`].
    fn f2_packed_moe(
        x: FloatTensor<Self>,
        index: IntTensor<Self>,
        gates: FloatTensor<Self>,
        bank: Arc<Bank>,
        act: KernelActivation,
    ) -> FloatTensor<Self>;
}

/// What only inference asks for.
#[backend_extension(Flex)]
pub trait PackedPassOps: Backend {
    /// See [`packed_linears`]; x is `[R, in]`.
    fn f2_packed_linears(x: FloatTensor<Self>, layers: Vec<Arc<Layer>>, acts: Vec<KernelActivation>) -> Vec<FloatTensor<Self>>;
}

impl PackedPassOps for Flex {
    fn f2_packed_linears(x: FlexTensor, layers: Vec<Arc<Layer>>, acts: Vec<KernelActivation>) -> Vec<FlexTensor> {
        let [rows, width] = dims(&x);
        let parts: Vec<_> = layers.iter().zip(acts).map(|(layer, act)| (&layer.weight, layer.bias.as_deref(), act)).collect();
        let outputs = PackedMatrix::forward_all(Matrix::new(&values(&x), rows, width), &parts);
        outputs.into_iter().zip(&layers).map(|(y, layer)| tensor(y, [rows, layer.weight.cols()])).collect()
    }
}

impl PackedOps for Flex {
    fn f2_packed_linear(x: FlexTensor, layer: Arc<Layer>, act: KernelActivation) -> FlexTensor {
        let [rows, _] = dims(&x);
        tensor(layer.forward(&values(&x), rows, act), [rows, layer.weight.cols()])
    }

    fn f2_packed_moe(x: FlexTensor, index: FlexTensor, gates: FlexTensor, bank: Arc<Bank>, act: KernelActivation) -> FlexTensor {
        let shape = bank.shape(dims::<2>(&gates)[1]);
        let y = moe::infer_packed(&values(&x), &targets(&index), &values(&gates), &bank, act, shape);
        tensor(y, dims::<2>(&x))
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
            gemm(
                Matrix::new(&dy, rows, num_out),
                Matrix::new(&weight, num_in, num_out).t(),
                &mut dx,
                false,
                layer.format.precision(),
            );
            grads.register::<Flex>(node.id, tensor(dx, [rows, num_in]));
        }
    }
}

#[derive(Debug)]
struct ExpertsBackward;

#[derive(Debug, Clone)]
struct ExpertsState {
    x: FlexTensor,
    gates: FlexTensor,
    bank: Arc<Bank>,
    served: Vec<Served>,
    act: KernelActivation,
}

impl Backward<Flex, 2> for ExpertsBackward {
    type State = ExpertsState;

    fn backward(self, ops: Ops<ExpertsState, 2>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let ExpertsState { x, gates, bank, served, act } = ops.state;
        let dy = grads.consume::<Flex>(&ops.node);
        let [w1, b1, w2, b2] = bank.unpack();
        let weights = Weights { w1: &w1, b1: &b1, w2: &w2, b2: &b2 };
        let shape = bank.shape(dims::<2>(&gates)[1]);
        let precision = bank.format().precision();
        let found = moe::backward(&values(&x), &values(&gates), weights, &served, &values(&dy), act, shape, precision);
        for ((node, gradient), like) in ops.parents.into_iter().zip([found.x, found.gates]).zip([&x, &gates]) {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, tensor(gradient, dims::<2>(like)));
            }
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
                let mut y = layer.forward(&values(&x), rows, KernelActivation::None);
                let before = (act != KernelActivation::None).then(|| tensor(y.clone(), shape));
                linear::activate(&mut y, act);
                prep.finish(PackedState { layer, before, act }, tensor(y, shape))
            }
            OpsKind::UnTracked(prep) => prep.finish(Flex::f2_packed_linear(x.into_primitive(), layer, act)),
        }
    }

    fn f2_packed_moe(
        x: FloatTensor<Self>,
        index: IntTensor<Self>,
        gates: FloatTensor<Self>,
        bank: Arc<Bank>,
        act: KernelActivation,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), gates.node()];
        let (x, gates) = (x.into_primitive(), gates.into_primitive());
        let shape = bank.shape(dims::<2>(&gates)[1]);
        let (y, served) = moe::forward_packed(&values(&x), &targets(&index), &values(&gates), &bank, act, shape);
        let y = tensor(y, dims::<2>(&x));
        match ExpertsBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(ExpertsState { x, gates, bank, served, act }, y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}
