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

#[cfg(feature = "gpu")]
use burn::backend::Cube;
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::{Device, FloatTensor};
use burn::backend::{Autodiff, AutodiffBackend, Backend, Flex, TensorMetadata};
use burn::tensor::{FloatDType, Shape, Tensor};

/// A tensor of a graph, of any number of axes.
#[derive(Debug, Clone)]
pub struct Traced(Place<FloatTensor<Autodiff<Flex>>, GpuTensor>);

/// Something on the CPU or on a GPU; CUDA and Vulkan devices are of one backend.
#[derive(Debug, Clone)]
enum Place<C, G> {
    Cpu(C),
    #[cfg_attr(not(feature = "gpu"), expect(dead_code, reason = "there is none in this build"))]
    Gpu(G),
}

#[cfg(feature = "gpu")]
type GpuTensor = FloatTensor<Autodiff<Cube>>;
#[cfg(not(feature = "gpu"))]
type GpuTensor = std::convert::Infallible;

/// A backend whose tensors can be told from others'.
trait Known: Backend {
    fn of(traced: Traced) -> Option<FloatTensor<Autodiff<Self>>>;
    fn traced(tensor: FloatTensor<Autodiff<Self>>) -> Traced;
}

impl Known for Flex {
    fn of(Traced(place): Traced) -> Option<FloatTensor<Autodiff<Self>>> {
        match place {
            Place::Cpu(tensor) => Some(tensor),
            Place::Gpu(_) => None,
        }
    }

    fn traced(tensor: FloatTensor<Autodiff<Self>>) -> Traced {
        Traced(Place::Cpu(tensor))
    }
}

#[cfg(feature = "gpu")]
impl Known for Cube {
    fn of(Traced(place): Traced) -> Option<FloatTensor<Autodiff<Self>>> {
        match place {
            Place::Cpu(_) => None,
            Place::Gpu(tensor) => Some(tensor),
        }
    }

    fn traced(tensor: FloatTensor<Autodiff<Self>>) -> Traced {
        Traced(Place::Gpu(tensor))
    }
}

impl Traced {
    /// The tensor; `None` when it needs no gradient.
    pub fn of<const D: usize>(x: &Tensor<D>) -> Option<Self> {
        if !x.is_tracked() {
            return None;
        }
        #[cfg(feature = "gpu")]
        if let Ok(tensor) = x.clone().try_into_primitive::<Autodiff<Cube>>() {
            return Some(Cube::traced(tensor));
        }
        x.clone().try_into_primitive::<Autodiff<Flex>>().ok().map(Flex::traced)
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
pub struct Recomputed(Place<Node<Flex>, GpuNode>);

#[cfg(feature = "gpu")]
type GpuNode = Node<Cube>;
#[cfg(not(feature = "gpu"))]
type GpuNode = std::convert::Infallible;

impl Recomputed {
    /// A piece with these inputs, parameters among them, which are all on one device; `None` where none of them needs a gradient.
    pub fn new(inputs: Vec<Traced>, run_again: impl Fn() -> Run + Send + Sync + 'static) -> Option<Self> {
        match inputs.first()?.0 {
            Place::Cpu(_) => Node::new(inputs, Box::new(run_again)).map(|node| Self(Place::Cpu(node))),
            #[cfg(feature = "gpu")]
            Place::Gpu(_) => Node::new(inputs, Box::new(run_again)).map(|node| Self(Place::Gpu(node))),
            #[cfg(not(feature = "gpu"))]
            Place::Gpu(never) => match never {},
        }
    }

    /// The next output of the piece, with the value of the run without a graph.
    pub fn output<const D: usize>(&self, value: Tensor<D>) -> Tensor<D> {
        let value = value.without_autodiff();
        // Only a tensor of another device than the inputs' is not what is expected here; it stays outside of the graph.
        match &self.0 {
            Place::Cpu(node) => match value.clone().try_into_primitive::<Flex>() {
                Ok(inner) => Tensor::from_primitive::<Autodiff<Flex>>(node.output(inner)),
                Err(_) => value.autodiff(),
            },
            #[cfg(feature = "gpu")]
            Place::Gpu(node) => match value.clone().try_into_primitive::<Cube>() {
                Ok(inner) => Tensor::from_primitive::<Autodiff<Cube>>(node.output(inner)),
                Err(_) => value.autodiff(),
            },
            #[cfg(not(feature = "gpu"))]
            Place::Gpu(never) => match *never {},
        }
    }
}

struct Node<B: Known> {
    node: FloatTensor<Autodiff<B>>,
    slots: Slots<B>,
}

/// Gradients of the outputs.
type Slots<B> = Arc<Mutex<Vec<Option<FloatTensor<B>>>>>;

impl<B: Known> Node<B> {
    fn new(inputs: Vec<Traced>, run_again: RunAgain) -> Option<Self> {
        let inputs: Vec<_> = inputs.into_iter().filter_map(B::of).collect();
        let device = inputs.first()?.primitive().device();
        let slots = Slots::<B>::default();
        let places = inputs.iter().map(|input| input.id()).collect();
        let mut node = Autodiff::<B>::from_inner(zero::<B>(&device));
        for input in inputs {
            node = link::<B>(&node, &input, None, &device);
        }
        let state = Again(Arc::new(Piece { run_again, places, slots: Arc::clone(&slots), device: device.clone() }));
        let prepared = Backward::<B, 1>::prepare::<NoCheckpointing>(AgainBackward, [node.node()]);
        let node = match prepared.compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(state, zero::<B>(&device)),
            OpsKind::UnTracked(prep) => prep.finish(zero::<B>(&device)),
        };
        Some(Self { node, slots })
    }

    fn output(&self, value: FloatTensor<B>) -> FloatTensor<Autodiff<B>> {
        let slot = {
            let mut slots = lock(&self.slots);
            slots.push(None);
            slots.len() - 1
        };
        let device = value.device();
        let state = OutputState { slots: Arc::clone(&self.slots), slot, device };
        let prepared = Backward::<B, 1>::prepare::<NoCheckpointing>(OutputBackward, [self.node.node()]);
        match prepared.compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(state, value),
            OpsKind::UnTracked(prep) => prep.finish(value),
        }
    }
}

fn zero<B: Backend>(device: &Device<B>) -> FloatTensor<B> {
    B::float_zeros(Shape::new([1]), device, FloatDType::F32)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A node behind another one and a tensor, which gets `gradient`.
fn link<B: Backend>(
    before: &FloatTensor<Autodiff<B>>,
    end: &FloatTensor<Autodiff<B>>,
    gradient: Option<FloatTensor<B>>,
    device: &Device<B>,
) -> FloatTensor<Autodiff<B>> {
    let prepared = Backward::<B, 2>::prepare::<NoCheckpointing>(LinkBackward, [before.node(), end.node()]);
    match prepared.compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(LinkState { gradient, device: device.clone() }, zero::<B>(device)),
        OpsKind::UnTracked(prep) => prep.finish(zero::<B>(device)),
    }
}

struct Piece<B: Backend> {
    run_again: RunAgain,
    /// Where the gradients of the inputs go. Tensors of the outer graph must not be kept here: they would keep it alive.
    places: Vec<NodeId>,
    slots: Slots<B>,
    device: Device<B>,
}

#[derive(Clone)]
struct Again<B: Backend>(Arc<Piece<B>>);

impl<B: Backend> std::fmt::Debug for Again<B> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Again")
    }
}

#[derive(Debug)]
struct AgainBackward;

impl<B: Known> Backward<B, 1> for AgainBackward {
    type State = Again<B>;

    fn backward(self, ops: Ops<Again<B>, 1>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let [before] = ops.parents;
        let piece = ops.state.0;
        pass_on::<B>(before.map(|node| node.id), grads, &piece.device);
        let gradients = std::mem::take(&mut *lock(&piece.slots));
        let Run { outputs, leaves } = (piece.run_again)();
        let mut root = Autodiff::<B>::from_inner(zero::<B>(&piece.device));
        for (output, gradient) in outputs.into_iter().zip(gradients) {
            let (Some(output), Some(gradient)) = (output.and_then(B::of), gradient) else { continue };
            root = link::<B>(&root, &output, Some(gradient), &piece.device);
        }
        if !root.is_tracked() {
            return;
        }
        let mut found = Autodiff::<B>::backward(root);
        for (place, leaf) in piece.places.iter().zip(leaves) {
            if let Some(gradient) = B::of(leaf).and_then(|leaf| found.remove::<B>(&leaf)) {
                grads.register::<B>(*place, gradient);
            }
        }
    }
}

#[derive(Debug, Clone)]
struct LinkState<B: Backend> {
    gradient: Option<FloatTensor<B>>,
    device: Device<B>,
}

#[derive(Debug)]
struct LinkBackward;

impl<B: Backend> Backward<B, 2> for LinkBackward {
    type State = LinkState<B>;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let [before, end] = ops.parents;
        pass_on::<B>(before.map(|node| node.id), grads, &ops.state.device);
        if let (Some(end), Some(gradient)) = (end, ops.state.gradient) {
            grads.register::<B>(end.id, gradient);
        }
    }
}

#[derive(Debug, Clone)]
struct OutputState<B: Backend> {
    slots: Slots<B>,
    slot: usize,
    device: Device<B>,
}

#[derive(Debug)]
struct OutputBackward;

impl<B: Backend> Backward<B, 1> for OutputBackward {
    type State = OutputState<B>;

    fn backward(self, ops: Ops<OutputState<B>, 1>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        lock(&ops.state.slots)[ops.state.slot] = Some(gradient);
        let [before] = ops.parents;
        pass_on::<B>(before.map(|node| node.id), grads, &ops.state.device);
    }
}

/// Gives a node of order its zero.
fn pass_on<B: Backend>(node: Option<NodeId>, grads: &mut Gradients, device: &Device<B>) {
    if let Some(node) = node {
        grads.register::<B>(node, zero::<B>(device));
    }
}
