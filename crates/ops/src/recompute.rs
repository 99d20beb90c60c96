//! A piece of a network that keeps only its inputs and is run again in the backward pass.
//!
//! Forward, the piece runs without a graph. In its place the graph gets a node with the piece's inputs as parents: its backward step runs
//! the piece once more with a graph of its own, goes back through that, and hands the gradients of the inputs on.
//!
//! ```text
//! inputs -> link -> .. -> link -> again -> output (one for each output of the piece)
//! ```
//! All of these nodes but the outputs hold one zero; what they are for is their order. An output comes before `again` in the backward pass
//! and leaves its gradient in a slot; the inputs come after it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, Flex};
use burn::tensor::Tensor;

use crate::cpu::tensor;

type WithGraph = Autodiff<Flex>;

/// A tensor of a graph, of any number of axes.
#[derive(Debug, Clone)]
pub struct Traced(FloatTensor<WithGraph>);

impl Traced {
    /// The tensor; `None` when it needs no gradient or is not on the CPU.
    pub fn of<const D: usize>(x: &Tensor<D>) -> Option<Self> {
        x.is_tracked().then(|| x.clone().try_into_primitive::<WithGraph>().ok().map(Self)).flatten()
    }
}

/// One run of a piece with a graph of its own.
pub struct Run {
    /// In the order of [`Recomputed::output`]; `None` for one that no leaf has a part in.
    pub outputs: Vec<Option<Traced>>,
    /// Leaves with the values of the inputs, in the order of [`Recomputed::new`].
    pub leaves: Vec<Traced>,
}

/// Runs the piece from leaves that share no graph with anything outside.
type RunAgain = Box<dyn Fn() -> Run + Send + Sync>;

/// The piece's place in the graph.
pub struct Recomputed {
    node: FloatTensor<WithGraph>,
    slots: Arc<Mutex<Vec<Option<FlexTensor>>>>,
}

impl Recomputed {
    /// A piece with these inputs, parameters among them.
    pub fn new(inputs: Vec<Traced>, run_again: impl Fn() -> Run + Send + Sync + 'static) -> Self {
        let slots = Arc::default();
        let places = inputs.iter().map(|input| input.0.id()).collect();
        let mut node = WithGraph::from_inner(zero());
        for Traced(input) in inputs {
            node = match LinkBackward.prepare::<NoCheckpointing>([node.node(), input.node()]).compute_bound().stateful() {
                OpsKind::Tracked(prep) => prep.finish(None, zero()),
                OpsKind::UnTracked(prep) => prep.finish(zero()),
            };
        }
        let state = Again(Arc::new(Piece { run_again: Box::new(run_again), places, slots: Arc::clone(&slots) }));
        let node = match AgainBackward.prepare::<NoCheckpointing>([node.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(state, zero()),
            OpsKind::UnTracked(prep) => prep.finish(zero()),
        };
        Self { node, slots }
    }

    /// The next output of the piece, with the value of the run without a graph.
    pub fn output<const D: usize>(&self, value: Tensor<D>) -> Tensor<D> {
        // Only a tensor of another backend is none of these.
        let Ok(value) = value.without_autodiff().try_into_primitive::<Flex>() else {
            debug_assert!(false, "outputs are on the CPU");
            return Tensor::from_primitive::<WithGraph>(self.node.clone());
        };
        let slot = {
            let mut slots = lock(&self.slots);
            slots.push(None);
            slots.len() - 1
        };
        let state = OutputState { slots: Arc::clone(&self.slots), slot };
        let output = match OutputBackward.prepare::<NoCheckpointing>([self.node.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(state, value),
            OpsKind::UnTracked(prep) => prep.finish(value),
        };
        Tensor::from_primitive::<WithGraph>(output)
    }
}

fn zero() -> FlexTensor {
    tensor(vec![0.0], [1])
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Piece {
    run_again: RunAgain,
    /// Where the gradients of the inputs go. Tensors of the outer graph must not be kept here: they would keep it alive.
    places: Vec<NodeId>,
    slots: Arc<Mutex<Vec<Option<FlexTensor>>>>,
}

#[derive(Clone)]
struct Again(Arc<Piece>);

impl std::fmt::Debug for Again {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Again")
    }
}

#[derive(Debug)]
struct AgainBackward;

impl Backward<Flex, 1> for AgainBackward {
    type State = Again;

    fn backward(self, ops: Ops<Again, 1>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let [before] = ops.parents;
        pass_on(before.map(|node| node.id), grads);
        let piece = ops.state.0;
        let gradients = std::mem::take(&mut *lock(&piece.slots));
        let Run { outputs, leaves } = (piece.run_again)();
        let mut root = WithGraph::from_inner(zero());
        for (output, gradient) in outputs.into_iter().zip(gradients) {
            let (Some(Traced(output)), Some(gradient)) = (output, gradient) else { continue };
            root = match LinkBackward.prepare::<NoCheckpointing>([root.node(), output.node()]).compute_bound().stateful() {
                OpsKind::Tracked(prep) => prep.finish(Some(gradient), zero()),
                OpsKind::UnTracked(prep) => prep.finish(zero()),
            };
        }
        if !root.is_tracked() {
            return;
        }
        let mut found = WithGraph::backward(root);
        for (place, leaf) in piece.places.iter().zip(leaves) {
            if let Some(gradient) = found.remove::<Flex>(&leaf.0) {
                grads.register::<Flex>(*place, gradient);
            }
        }
    }
}

/// A node behind another one and a tensor, which gets the state as its gradient.
#[derive(Debug)]
struct LinkBackward;

impl Backward<Flex, 2> for LinkBackward {
    type State = Option<FlexTensor>;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let [before, end] = ops.parents;
        pass_on(before.map(|node| node.id), grads);
        if let (Some(end), Some(gradient)) = (end, ops.state) {
            grads.register::<Flex>(end.id, gradient);
        }
    }
}

#[derive(Debug, Clone)]
struct OutputState {
    slots: Arc<Mutex<Vec<Option<FlexTensor>>>>,
    slot: usize,
}

#[derive(Debug)]
struct OutputBackward;

impl Backward<Flex, 1> for OutputBackward {
    type State = OutputState;

    fn backward(self, ops: Ops<OutputState, 1>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let gradient = grads.consume::<Flex>(&ops.node);
        lock(&ops.state.slots)[ops.state.slot] = Some(gradient);
        let [before] = ops.parents;
        pass_on(before.map(|node| node.id), grads);
    }
}

/// Gives a node of order its zero.
fn pass_on(node: Option<NodeId>, grads: &mut Gradients) {
    if let Some(node) = node {
        grads.register::<Flex>(node, zero());
    }
}
