//! The operations on burn's CPU backend, over the kernels, with their backward passes. All that touches backend internals is here.

use std::borrow::Cow;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Flex, backend_extension};
use burn::tensor::{Bytes, DType, Shape, bf16};
use unif2ace_kernels::activation::Activation;
use unif2ace_kernels::attention::{self, KeysValues, Mask, Tables};
use unif2ace_kernels::gemm::Precision;
use unif2ace_kernels::linear::{self, Shape as LinearShape};
use unif2ace_kernels::{loss, norm};

/// The operations as burn sees them. Shapes are those of the functions of the same name in the crate's root; `mask` and the rotary
/// tables are constants.
#[backend_extension(Flex, Autodiff)]
pub trait CpuOps: Backend {
    /// `act(x W^T + b)` with x `[R, in]`.
    fn f2_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        act: Activation,
        precision: Precision,
    ) -> FloatTensor<Self>;
    /// The activation behind a linear layer by itself, on rows `[R, D]`.
    fn f2_activate(x: FloatTensor<Self>, act: Activation) -> FloatTensor<Self>;
    /// Layer norm of rows `[R, D]`.
    fn f2_layer_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>, eps: f32) -> FloatTensor<Self>;
    /// Rotation of `[B, L, H * Dh]` by tables `[B or 1, L, R]`.
    fn f2_rotate(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>, heads: usize) -> FloatTensor<Self>;
    /// Attention; `mask` is `[B or 1, L, S]`, ignored unless `masked`.
    fn f2_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        mask: FloatTensor<Self>,
        masked: bool,
        heads: usize,
        precision: Precision,
    ) -> FloatTensor<Self>;
    /// Cross-entropy of rows.
    fn f2_cross_entropy(logits: FloatTensor<Self>, targets: IntTensor<Self>) -> FloatTensor<Self>;
}

/// Contiguous values of a tensor as f32, without a copy where they are that already.
pub(crate) fn values(tensor: &FlexTensor) -> Cow<'_, [f32]> {
    match tensor.as_slice::<f32>() {
        Some(values) => Cow::Borrowed(values),
        None => Cow::Owned(tensor.clone().into_data().iter::<f32>().collect()),
    }
}

/// As [`values`], to be changed: in place where nobody else holds the tensor.
pub(crate) fn owned(tensor: FlexTensor) -> Vec<f32> {
    match tensor.dtype() {
        DType::F32 => tensor.into_data().try_into_vec::<f32>().unwrap_or_default(),
        _ => values(&tensor).into_owned(),
    }
}

pub(crate) fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape.into()), DType::F32)
}

pub(crate) fn dims<const D: usize>(tensor: &FlexTensor) -> [usize; D] {
    let mut dims = [1; D];
    for (dim, &size) in dims.iter_mut().zip(tensor.layout().shape().iter()) {
        *dim = size;
    }
    dims
}

pub(crate) fn targets(tensor: &FlexTensor) -> Vec<i64> {
    tensor.clone().into_data().iter::<i64>().collect()
}

fn linear_shape(x: &FlexTensor, weight: &FlexTensor) -> LinearShape {
    let [rows, num_in] = dims(x);
    LinearShape { rows, num_in, num_out: dims::<2>(weight)[0] }
}

fn linear_forward(x: &FlexTensor, weight: &FlexTensor, bias: &FlexTensor, precision: Precision) -> Vec<f32> {
    linear::forward(&values(x), &values(weight), &values(bias), linear_shape(x, weight), precision)
}

/// Keys behind those that the mask knows of are room for positions to come.
fn attention_shape(q: &FlexTensor, k: &FlexTensor, mask: Option<&FlexTensor>, heads: usize) -> attention::Shape {
    let [batch, queries, width] = dims(q);
    let key_room = dims::<3>(k)[1];
    let keys = mask.map_or(key_room, |mask| dims::<3>(mask)[2]);
    attention::Shape { batch, queries, keys, key_room, heads, head_dim: width / heads }
}

fn attention_forward(
    q: &FlexTensor,
    k: &FlexTensor,
    v: &FlexTensor,
    mask: &FlexTensor,
    masked: bool,
    heads: usize,
    precision: Precision,
) -> (FlexTensor, Vec<Vec<f32>>) {
    let shape = attention_shape(q, k, masked.then_some(mask), heads);
    let mask_values = values(mask);
    let mask = masked.then(|| Mask { values: &mask_values, rows: dims::<3>(mask)[0] });
    let (out, weights) = attention::forward(&values(q), &values(k), &values(v), mask, shape, precision);
    (tensor(out, dims::<3>(q)), weights)
}

/// Keys and values as the kernels take them: in bf16 where a cache keeps them so.
pub(crate) fn with_keys_values<R>(k: &FlexTensor, v: &FlexTensor, run: impl FnOnce(KeysValues<'_>) -> R) -> R {
    match (k.as_slice::<bf16>(), v.as_slice::<bf16>()) {
        (Some(k), Some(v)) => run(KeysValues::Bf16([k, v])),
        _ => run(KeysValues::F32([&values(k), &values(v)])),
    }
}

/// As [`attention_forward`], without the weights.
fn attention_infer(
    [q, k, v]: [&FlexTensor; 3],
    mask: &FlexTensor,
    masked: bool,
    heads: usize,
    precision: Precision,
) -> FlexTensor {
    let shape = attention_shape(q, k, masked.then_some(mask), heads);
    let mask_values = values(mask);
    let mask = masked.then(|| Mask { values: &mask_values, rows: dims::<3>(mask)[0] });
    let mixed = with_keys_values(k, v, |kept| attention::infer(&values(q), kept, None, mask, shape, precision));
    tensor(mixed, dims::<3>(q))
}

/// In place where nobody else holds `x`.
fn rotate(x: FlexTensor, cos: &FlexTensor, sin: &FlexTensor, heads: usize, inverse: bool) -> FlexTensor {
    let [batch, length, width] = dims(&x);
    let [rows, _, rotated] = dims(cos);
    let mut out = owned(x);
    let (cos, sin) = (values(cos), values(sin));
    let tables = Tables { cos: &cos, sin: &sin, rows, dims: rotated };
    attention::rotate(&mut out, tables, [batch, length, heads, width / heads], inverse);
    tensor(out, [batch, length, width])
}

impl CpuOps for Flex {
    fn f2_linear(x: FlexTensor, weight: FlexTensor, bias: FlexTensor, act: Activation, precision: Precision) -> FlexTensor {
        let shape = linear_shape(&x, &weight);
        let mut y = linear_forward(&x, &weight, &bias, precision);
        linear::activate(&mut y, act);
        tensor(y, [shape.rows, shape.num_out])
    }

    fn f2_activate(x: FlexTensor, act: Activation) -> FlexTensor {
        let shape = dims::<2>(&x);
        tensor(linear::activated(&values(&x), act), shape)
    }

    fn f2_layer_norm(x: FlexTensor, weight: FlexTensor, bias: FlexTensor, eps: f32) -> FlexTensor {
        tensor(norm::layer_norm(&values(&x), &values(&weight), &values(&bias), eps), dims::<2>(&x))
    }

    fn f2_rotate(x: FlexTensor, cos: FlexTensor, sin: FlexTensor, heads: usize) -> FlexTensor {
        rotate(x, &cos, &sin, heads, false)
    }

    fn f2_attention(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        mask: FlexTensor,
        masked: bool,
        heads: usize,
        precision: Precision,
    ) -> FlexTensor {
        attention_infer([&q, &k, &v], &mask, masked, heads, precision)
    }

    fn f2_cross_entropy(logits: FlexTensor, target: FlexTensor) -> FlexTensor {
        let [rows, vocab] = dims(&logits);
        tensor(loss::cross_entropy(&values(&logits), &targets(&target), vocab).0, [rows])
    }
}

#[derive(Debug)]
struct LinearBackward;

#[derive(Debug, Clone)]
struct LinearState {
    x: FlexTensor,
    weight: FlexTensor,
    before: Option<FlexTensor>,
    act: Activation,
    precision: Precision,
}

impl Backward<Flex, 3> for LinearBackward {
    type State = LinearState;

    fn backward(self, ops: Ops<LinearState, 3>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let [node_x, node_weight, node_bias] = ops.parents;
        let LinearState { x, weight, before, act, precision } = ops.state;
        let mut dy = grads.consume::<Flex>(&ops.node);
        if let Some(before) = &before {
            let shape = dims::<2>(&dy);
            let mut gradient = owned(dy);
            linear::deactivate(&mut gradient, &values(before), act);
            dy = tensor(gradient, shape);
        }
        let dy = values(&dy);
        let shape = linear_shape(&x, &weight);
        if let Some(node) = node_x {
            let dx = linear::backward_input(&dy, &values(&weight), shape, precision);
            grads.register::<Flex>(node.id, tensor(dx, [shape.rows, shape.num_in]));
        }
        if let Some(node) = node_weight {
            let dw = linear::backward_weight(&dy, &values(&x), shape, precision);
            grads.register::<Flex>(node.id, tensor(dw, [shape.num_out, shape.num_in]));
        }
        if let Some(node) = node_bias {
            grads.register::<Flex>(node.id, tensor(linear::backward_bias(&dy, shape.num_out), [shape.num_out]));
        }
    }
}

#[derive(Debug)]
struct ActivateBackward;

impl Backward<Flex, 1> for ActivateBackward {
    type State = (FlexTensor, Activation);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let [node] = ops.parents;
        let (x, act) = ops.state;
        let dy = grads.consume::<Flex>(&ops.node);
        if let Some(node) = node {
            let mut dx = owned(dy);
            linear::deactivate(&mut dx, &values(&x), act);
            grads.register::<Flex>(node.id, tensor(dx, dims::<2>(&x)));
        }
    }
}

#[derive(Debug)]
struct LayerNormBackward;

impl Backward<Flex, 3> for LayerNormBackward {
    type State = (FlexTensor, FlexTensor, f32);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let [node_x, node_weight, node_bias] = ops.parents;
        let (x, weight, eps) = ops.state;
        let dy = grads.consume::<Flex>(&ops.node);
        let (dx, dw, db) = norm::layer_norm_backward(&values(&x), &values(&weight), eps, &values(&dy));
        let width = dw.len();
        if let Some(node) = node_x {
            grads.register::<Flex>(node.id, tensor(dx, dims::<2>(&x)));
        }
        if let Some(node) = node_weight {
            grads.register::<Flex>(node.id, tensor(dw, [width]));
        }
        if let Some(node) = node_bias {
            grads.register::<Flex>(node.id, tensor(db, [width]));
        }
    }
}

#[derive(Debug)]
struct RotateBackward;

impl Backward<Flex, 1> for RotateBackward {
    type State = (FlexTensor, FlexTensor, usize);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let [node] = ops.parents;
        let (cos, sin, heads) = ops.state;
        let dy = grads.consume::<Flex>(&ops.node);
        if let Some(node) = node {
            grads.register::<Flex>(node.id, rotate(dy, &cos, &sin, heads, true));
        }
    }
}

#[derive(Debug)]
struct AttentionBackward;

#[derive(Debug, Clone)]
struct AttentionState {
    q: FlexTensor,
    k: FlexTensor,
    v: FlexTensor,
    weights: Vec<Vec<f32>>,
    shape: attention::Shape,
    precision: Precision,
}

impl Backward<Flex, 3> for AttentionBackward {
    type State = AttentionState;

    fn backward(self, ops: Ops<AttentionState, 3>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let AttentionState { q, k, v, weights, shape, precision } = ops.state;
        let dout = grads.consume::<Flex>(&ops.node);
        let parts = attention::backward([&values(&q), &values(&k), &values(&v)], &weights, &values(&dout), shape, precision);
        for ((node, part), like) in ops.parents.into_iter().zip(parts).zip([&q, &k, &v]) {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, tensor(part, dims::<3>(like)));
            }
        }
    }
}

#[derive(Debug)]
struct CrossEntropyBackward;

impl Backward<Flex, 1> for CrossEntropyBackward {
    type State = (FlexTensor, Vec<i64>, Vec<f32>);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let [node] = ops.parents;
        let (logits, targets, log_sums) = ops.state;
        let dloss = grads.consume::<Flex>(&ops.node);
        let [rows, vocab] = dims(&logits);
        if let Some(node) = node {
            let gradient = loss::cross_entropy_backward(&values(&logits), &targets, &log_sums, &values(&dloss), vocab);
            grads.register::<Flex>(node.id, tensor(gradient, [rows, vocab]));
        }
    }
}

impl<C: CheckpointStrategy> CpuOps for Autodiff<Flex, C> {
    fn f2_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        act: Activation,
        precision: Precision,
    ) -> FloatTensor<Self> {
        match LinearBackward.prepare::<C>([x.node(), weight.node(), bias.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let (x, weight, bias) = (x.primitive().clone(), weight.primitive().clone(), bias.into_primitive());
                let shape = linear_shape(&x, &weight);
                let y = linear_forward(&x, &weight, &bias, precision);
                let (y, before) = match act {
                    Activation::None => (y, None),
                    act => (linear::activated(&y, act), Some(tensor(y, [shape.rows, shape.num_out]))),
                };
                prep.finish(LinearState { x, weight, before, act, precision }, tensor(y, [shape.rows, shape.num_out]))
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(Flex::f2_linear(x.into_primitive(), weight.into_primitive(), bias.into_primitive(), act, precision))
            }
        }
    }

    fn f2_activate(x: FloatTensor<Self>, act: Activation) -> FloatTensor<Self> {
        match ActivateBackward.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let x = x.into_primitive();
                let y = Flex::f2_activate(x.clone(), act);
                prep.finish((x, act), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(Flex::f2_activate(x.into_primitive(), act)),
        }
    }

    fn f2_layer_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>, eps: f32) -> FloatTensor<Self> {
        match LayerNormBackward.prepare::<C>([x.node(), weight.node(), bias.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let (x, weight) = (x.primitive().clone(), weight.primitive().clone());
                let y = Flex::f2_layer_norm(x.clone(), weight.clone(), bias.into_primitive(), eps);
                prep.finish((x, weight, eps), y)
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(Flex::f2_layer_norm(x.into_primitive(), weight.into_primitive(), bias.into_primitive(), eps))
            }
        }
    }

    fn f2_rotate(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>, heads: usize) -> FloatTensor<Self> {
        let (cos, sin) = (cos.into_primitive(), sin.into_primitive());
        match RotateBackward.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let y = rotate(x.into_primitive(), &cos, &sin, heads, false);
                prep.finish((cos, sin, heads), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(rotate(x.into_primitive(), &cos, &sin, heads, false)),
        }
    }

    fn f2_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        mask: FloatTensor<Self>,
        masked: bool,
        heads: usize,
        precision: Precision,
    ) -> FloatTensor<Self> {
        let mask = mask.into_primitive();
        match AttentionBackward.prepare::<C>([q.node(), k.node(), v.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let (q, k, v) = (q.primitive().clone(), k.primitive().clone(), v.primitive().clone());
                let (out, weights) = attention_forward(&q, &k, &v, &mask, masked, heads, precision);
                let shape = attention_shape(&q, &k, masked.then_some(&mask), heads);
                prep.finish(AttentionState { q, k, v, weights, shape, precision }, out)
            }
            // With the same bits as above: a block that is run again must give what it gave.
            OpsKind::UnTracked(prep) => {
                prep.finish(attention_forward(q.primitive(), k.primitive(), v.primitive(), &mask, masked, heads, precision).0)
            }
        }
    }

    fn f2_cross_entropy(logits: FloatTensor<Self>, target: IntTensor<Self>) -> FloatTensor<Self> {
        let vocab = dims::<2>(logits.primitive())[1];
        match CrossEntropyBackward.prepare::<C>([logits.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let logits = logits.primitive().clone();
                let target = targets(&target);
                let (losses, log_sums) = loss::cross_entropy(&values(&logits), &target, vocab);
                let rows = losses.len();
                prep.finish((logits, target, log_sums), tensor(losses, [rows]))
            }
            OpsKind::UnTracked(prep) => prep.finish(Flex::f2_cross_entropy(logits.into_primitive(), target)),
        }
    }
}
