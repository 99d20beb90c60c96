//! Routed experts on burn's CPU backend, with their backward pass.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Flex, backend_extension};
use unif2ace_kernels::activation::Activation;
use unif2ace_kernels::gemm::Precision;
use unif2ace_kernels::moe::{self, Served, Shape, Weights};

use crate::cpu::{dims, targets, tensor, values};

/// The operation as burn sees it; shapes are those of [`crate::moe_mlp`].
#[backend_extension(Flex, Autodiff)]
pub trait ExpertOps: Backend {
    /// Routed experts.
    #[allow(clippy::too_many_arguments)]
    fn f2_moe(
        x: FloatTensor<Self>,
        index: IntTensor<Self>,
        gates: FloatTensor<Self>,
        w1: FloatTensor<Self>,
        b1: FloatTensor<Self>,
        w2: FloatTensor<Self>,
        b2: FloatTensor<Self>,
        act: Activation,
        precision: Precision,
    ) -> FloatTensor<Self>;
}

/// The tensors that have gradients: x, gates, w1, b1, w2, b2.
type Floats = [FlexTensor; 6];

fn shape([_, gates, w1, ..]: &Floats) -> Shape {
    let [experts, inner, width] = dims(w1);
    Shape { width, inner, experts, chosen: dims::<2>(gates)[1] }
}

fn forward(floats: &Floats, index: &FlexTensor, act: Activation, precision: Precision) -> (FlexTensor, Vec<Served>) {
    let [x, gates, w1, b1, w2, b2] = floats.each_ref().map(values);
    let weights = Weights { w1: &w1, b1: &b1, w2: &w2, b2: &b2 };
    let (y, served) = moe::forward(&x, &targets(index), &gates, weights, act, shape(floats), precision);
    (tensor(y, dims::<2>(&floats[0])), served)
}

impl ExpertOps for Flex {
    fn f2_moe(
        x: FlexTensor,
        index: FlexTensor,
        gates: FlexTensor,
        w1: FlexTensor,
        b1: FlexTensor,
        w2: FlexTensor,
        b2: FlexTensor,
        act: Activation,
        precision: Precision,
    ) -> FlexTensor {
        forward(&[x, gates, w1, b1, w2, b2], &index, act, precision).0
    }
}

#[derive(Debug)]
struct ExpertsBackward;

#[derive(Debug, Clone)]
struct ExpertsState {
    floats: Floats,
    served: Vec<Served>,
    act: Activation,
    precision: Precision,
}

impl Backward<Flex, 6> for ExpertsBackward {
    type State = ExpertsState;

    fn backward(self, ops: Ops<ExpertsState, 6>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let ExpertsState { floats, served, act, precision } = ops.state;
        let dy = grads.consume::<Flex>(&ops.node);
        let [x, gates, w1, b1, w2, b2] = floats.each_ref().map(values);
        let weights = Weights { w1: &w1, b1: &b1, w2: &w2, b2: &b2 };
        let found = moe::backward(&x, &gates, weights, &served, &values(&dy), act, shape(&floats), precision);
        let found = [found.x, found.gates, found.w1, found.b1, found.w2, found.b2];
        for ((node, gradient), like) in ops.parents.into_iter().zip(found).zip(&floats) {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, tensor(gradient, like.layout().shape().clone()));
            }
        }
    }
}

impl<C: CheckpointStrategy> ExpertOps for Autodiff<Flex, C> {
    fn f2_moe(
        x: FloatTensor<Self>,
        index: IntTensor<Self>,
        gates: FloatTensor<Self>,
        w1: FloatTensor<Self>,
        b1: FloatTensor<Self>,
        w2: FloatTensor<Self>,
        b2: FloatTensor<Self>,
        act: Activation,
        precision: Precision,
    ) -> FloatTensor<Self> {
        let inputs = [x, gates, w1, b1, w2, b2];
        let floats = inputs.each_ref().map(|input| input.primitive().clone());
        let (y, served) = forward(&floats, &index, act, precision);
        match ExpertsBackward.prepare::<C>(inputs.each_ref().map(|input| input.node())).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(ExpertsState { floats, served, act, precision }, y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}
