//! Sums of branches and parts of rows, with gradients, each value written once by all threads: burn's operations are one thread's work, and a
//! gradient of its `narrow` is filled with zeros, copied into and added.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;
use unif2ace_kernels::rows;

use crate::cpu::{dims, tensor, values};
use crate::{on_cpu, portable};

/// The operations as burn sees them.
#[backend_extension(Flex, Autodiff)]
pub trait PartOps: Backend {
    /// See [`sum_of`]; `d` counts if `four`.
    fn f2_sum(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        d: FloatTensor<Self>,
        four: bool,
    ) -> FloatTensor<Self>;
    /// See [`part_of`].
    fn f2_part(x: FloatTensor<Self>, start: usize, num: usize) -> FloatTensor<Self>;
    /// See [`add_to_part`].
    fn f2_add_to_part(x: FloatTensor<Self>, y: FloatTensor<Self>, start: usize) -> FloatTensor<Self>;
}

impl PartOps for Flex {
    fn f2_sum(a: FlexTensor, b: FlexTensor, c: FlexTensor, d: FlexTensor, four: bool) -> FlexTensor {
        let d = four.then(|| values(&d));
        tensor(rows::sum(&values(&a), &values(&b), &values(&c), d.as_deref()), dims::<3>(&a))
    }

    fn f2_part(x: FlexTensor, start: usize, num: usize) -> FlexTensor {
        let [batch, length, width] = dims(&x);
        assert!(start + num <= length, "positions {start} to {} of {length}", start + num);
        match batch {
            // In the same memory.
            1 => x.narrow(1, start, num),
            _ => tensor(rows::part(&values(&x), length, width, start..start + num), [batch, num, width]),
        }
    }

    fn f2_add_to_part(x: FlexTensor, y: FlexTensor, start: usize) -> FlexTensor {
        let shape @ [_, length, width] = dims(&x);
        tensor(rows::added_to_part(&values(&x), &values(&y), length, width, start), shape)
    }
}

#[derive(Debug)]
struct SumBackward;

impl Backward<Flex, 4> for SumBackward {
    type State = bool;

    fn backward(self, ops: Ops<bool, 4>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let gradient = grads.consume::<Flex>(&ops.node);
        let count = if ops.state { 4 } else { 3 };
        for node in ops.parents.into_iter().take(count).flatten() {
            grads.register::<Flex>(node.id, gradient.clone());
        }
    }
}

#[derive(Debug)]
struct PartBackward;

impl Backward<Flex, 1> for PartBackward {
    /// Shape of the whole, and where the part starts.
    type State = ([usize; 3], usize);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let [node] = ops.parents;
        let (shape @ [batch, length, width], start) = ops.state;
        let gradient = grads.consume::<Flex>(&ops.node);
        if let Some(node) = node {
            grads.register::<Flex>(node.id, tensor(rows::placed(&values(&gradient), batch, length, width, start), shape));
        }
    }
}

#[derive(Debug)]
struct AddToPartBackward;

impl Backward<Flex, 2> for AddToPartBackward {
    /// Where the part starts, and its positions.
    type State = (usize, usize);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let [node_x, node_y] = ops.parents;
        let (start, num) = ops.state;
        let gradient = grads.consume::<Flex>(&ops.node);
        if let Some(node) = node_y {
            grads.register::<Flex>(node.id, Flex::f2_part(gradient.clone(), start, num));
        }
        if let Some(node) = node_x {
            grads.register::<Flex>(node.id, gradient);
        }
    }
}

impl<C: CheckpointStrategy> PartOps for Autodiff<Flex, C> {
    fn f2_sum(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        d: FloatTensor<Self>,
        four: bool,
    ) -> FloatTensor<Self> {
        let nodes = [a.node(), b.node(), c.node(), d.node()];
        let sum = Flex::f2_sum(a.into_primitive(), b.into_primitive(), c.into_primitive(), d.into_primitive(), four);
        match SumBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(four, sum),
            OpsKind::UnTracked(prep) => prep.finish(sum),
        }
    }

    fn f2_part(x: FloatTensor<Self>, start: usize, num: usize) -> FloatTensor<Self> {
        let (node, shape) = (x.node(), dims(x.primitive()));
        let part = Flex::f2_part(x.into_primitive(), start, num);
        match PartBackward.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((shape, start), part),
            OpsKind::UnTracked(prep) => prep.finish(part),
        }
    }

    fn f2_add_to_part(x: FloatTensor<Self>, y: FloatTensor<Self>, start: usize) -> FloatTensor<Self> {
        let (nodes, [_, num, _]) = ([x.node(), y.node()], dims(y.primitive()));
        let sum = Flex::f2_add_to_part(x.into_primitive(), y.into_primitive(), start);
        match AddToPartBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((start, num), sum),
            OpsKind::UnTracked(prep) => prep.finish(sum),
        }
    }
}

/// `a + b + c + d`, in this order, of equal shapes `[B, L, D]`.
///
/// # Panics
/// If the shapes differ.
pub fn sum_of(a: Tensor<3>, b: Tensor<3>, c: Tensor<3>, d: Option<Tensor<3>>) -> Tensor<3> {
    if !on_cpu(&a.device()) {
        return portable::sum_of(a, b, c, d);
    }
    let four = d.is_some();
    let d = d.unwrap_or_else(|| a.clone());
    let [a, b, c, d] = [a, b, c, d].map(Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::f2_sum(a, b, c, d, four))
}

/// `num` positions from `start`: `[B, L, D]` to `[B, num, D]`.
///
/// # Panics
/// If there are not as many.
pub fn part_of(x_BLD: Tensor<3>, start: usize, num: usize) -> Tensor<3> {
    if !on_cpu(&x_BLD.device()) {
        return portable::part_of(x_BLD, start, num);
    }
    Tensor::from_dispatch(Dispatch::f2_part(x_BLD.into_dispatch(), start, num))
}

/// `x` `[B, L, D]` with `y` `[B, num, D]` added to its positions from `start` on.
///
/// # Panics
/// If there are not as many.
pub fn add_to_part(x_BLD: Tensor<3>, y_BND: Tensor<3>, start: usize) -> Tensor<3> {
    if !on_cpu(&x_BLD.device()) {
        return portable::add_to_part(x_BLD, y_BND, start);
    }
    Tensor::from_dispatch(Dispatch::f2_add_to_part(x_BLD.into_dispatch(), y_BND.into_dispatch(), start))
}
