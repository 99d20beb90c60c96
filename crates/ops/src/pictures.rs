//! Convolution and group norm on burn's CPU backend, with their backward passes.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Flex, backend_extension};
use unif2ace_kernels::gemm::Precision;
use unif2ace_kernels::group_norm::Moments;
use unif2ace_kernels::{conv, group_norm, linear};

use crate::Conv2dOptions;
use crate::cpu::{dims, tensor, values};

/// The operations as burn sees them. Shapes are those of the functions of the same name in the crate's root.
#[backend_extension(Flex, Autodiff)]
pub trait PictureOps: Backend {
    /// Convolution of `[B, H, W, C]` with `[out, in, kh, kw]` and a bias.
    fn f2_conv2d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        options: Conv2dOptions,
        precision: Precision,
    ) -> FloatTensor<Self>;
    /// Group norm of `[B, H, W, C]`, then SiLU if asked.
    fn f2_group_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        groups: usize,
        eps: f32,
        silu: bool,
    ) -> FloatTensor<Self>;
}

fn conv_shape(x: &FlexTensor, weight: &FlexTensor, options: Conv2dOptions) -> conv::Shape {
    let [batch, height, width, channels] = dims(x);
    let [num_out, _, kernel_height, kernel_width] = dims(weight);
    let Conv2dOptions { stride, padding, upsample } = options;
    conv::Shape { batch, height, width, channels, num_out, kernel: [kernel_height, kernel_width], stride, padding, upsample }
}

fn group_norm_shape(x: &FlexTensor, groups: usize) -> group_norm::Shape {
    let [batch, height, width, channels] = dims(x);
    group_norm::Shape { batch, pixels: height * width, channels, groups }
}

fn normalise(
    x: &FlexTensor,
    weight: &FlexTensor,
    bias: &FlexTensor,
    groups: usize,
    eps: f32,
    silu: bool,
) -> (FlexTensor, Moments) {
    let shape = group_norm_shape(x, groups);
    let values_of_x = values(x);
    let moments = group_norm::moments(&values_of_x, shape, eps);
    let y = group_norm::forward(&values_of_x, &values(weight), &values(bias), &moments, shape, silu);
    (tensor(y, dims::<4>(x)), moments)
}

impl PictureOps for Flex {
    fn f2_conv2d(
        x: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        options: Conv2dOptions,
        precision: Precision,
    ) -> FlexTensor {
        let shape = conv_shape(&x, &weight, options);
        let [height, width] = shape.output();
        let y = conv::forward(&values(&x), &values(&weight), &values(&bias), shape, precision);
        tensor(y, [shape.batch, height, width, shape.num_out])
    }

    fn f2_group_norm(x: FlexTensor, weight: FlexTensor, bias: FlexTensor, groups: usize, eps: f32, silu: bool) -> FlexTensor {
        normalise(&x, &weight, &bias, groups, eps, silu).0
    }
}

#[derive(Debug)]
struct Conv2dBackward;

impl Backward<Flex, 3> for Conv2dBackward {
    type State = (FlexTensor, FlexTensor, Conv2dOptions, Precision);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let [node_x, node_weight, node_bias] = ops.parents;
        let (x, weight, options, precision) = ops.state;
        let dy = grads.consume::<Flex>(&ops.node);
        let dy = values(&dy);
        let shape = conv_shape(&x, &weight, options);
        if node_x.is_some() || node_weight.is_some() {
            let wanted = [node_x.is_some(), node_weight.is_some()];
            let (dx, dw) = conv::backward(&values(&x), &values(&weight), &dy, shape, wanted, precision);
            if let (Some(node), Some(dx)) = (node_x, dx) {
                grads.register::<Flex>(node.id, tensor(dx, dims::<4>(&x)));
            }
            if let (Some(node), Some(dw)) = (node_weight, dw) {
                grads.register::<Flex>(node.id, tensor(dw, dims::<4>(&weight)));
            }
        }
        if let Some(node) = node_bias {
            grads.register::<Flex>(node.id, tensor(linear::backward_bias(&dy, shape.num_out), [shape.num_out]));
        }
    }
}

#[derive(Debug)]
struct GroupNormBackward;

#[derive(Debug, Clone)]
struct GroupNormState {
    x: FlexTensor,
    weight: FlexTensor,
    bias: FlexTensor,
    moments: Moments,
    groups: usize,
    silu: bool,
}

impl Backward<Flex, 3> for GroupNormBackward {
    type State = GroupNormState;

    fn backward(self, ops: Ops<GroupNormState, 3>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let [node_x, node_weight, node_bias] = ops.parents;
        let GroupNormState { x, weight, bias, moments, groups, silu } = ops.state;
        let dy = grads.consume::<Flex>(&ops.node);
        let shape = group_norm_shape(&x, groups);
        let (dx, dw, db) =
            group_norm::backward(&values(&x), &values(&weight), &values(&bias), &moments, &values(&dy), shape, silu);
        if let Some(node) = node_x {
            grads.register::<Flex>(node.id, tensor(dx, dims::<4>(&x)));
        }
        if let Some(node) = node_weight {
            grads.register::<Flex>(node.id, tensor(dw, [shape.channels]));
        }
        if let Some(node) = node_bias {
            grads.register::<Flex>(node.id, tensor(db, [shape.channels]));
        }
    }
}

impl<C: CheckpointStrategy> PictureOps for Autodiff<Flex, C> {
    fn f2_conv2d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        options: Conv2dOptions,
        precision: Precision,
    ) -> FloatTensor<Self> {
        match Conv2dBackward.prepare::<C>([x.node(), weight.node(), bias.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let (x, weight) = (x.primitive().clone(), weight.primitive().clone());
                let y = Flex::f2_conv2d(x.clone(), weight.clone(), bias.primitive().clone(), options, precision);
                prep.finish((x, weight, options, precision), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(Flex::f2_conv2d(
                x.into_primitive(),
                weight.into_primitive(),
                bias.into_primitive(),
                options,
                precision,
            )),
        }
    }

    fn f2_group_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        groups: usize,
        eps: f32,
        silu: bool,
    ) -> FloatTensor<Self> {
        match GroupNormBackward.prepare::<C>([x.node(), weight.node(), bias.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let (x, weight, bias) = (x.primitive().clone(), weight.primitive().clone(), bias.primitive().clone());
                let (y, moments) = normalise(&x, &weight, &bias, groups, eps, silu);
                prep.finish(GroupNormState { x, weight, bias, moments, groups, silu }, y)
            }
            OpsKind::UnTracked(prep) => prep.finish(Flex::f2_group_norm(
                x.into_primitive(),
                weight.into_primitive(),
                bias.into_primitive(),
                groups,
                eps,
                silu,
            )),
        }
    }
}
