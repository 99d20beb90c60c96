//! Gradients while the backward pass still runs: what a job of several ranks sends early.
//!
//! A model marks places along its depth with [`tap`]. When the backward pass comes by such a place, everything deeper is done, and the
//! listener of the thread may read the gradients of parameters ([`WatchedGradient`]) as they are by then.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, PoisonError};

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;

use crate::cpu::values;
use crate::on_cpu;

/// Gradients of a backward pass that has not ended.
pub struct PartialGradients<'a>(&'a Gradients);

/// Called on the thread of the backward pass, once for each tap.
pub type TapListener = Arc<dyn Fn(&PartialGradients<'_>) + Send + Sync>;

type Read = Box<dyn Fn(&Gradients) -> Option<Vec<f32>> + Send + Sync>;

/// Finds the gradient of one parameter.
pub struct WatchedGradient(Read);

impl WatchedGradient {
    /// What has been added up so far, row-major; `None` before the first part.
    pub fn values(&self, gradients: &PartialGradients<'_>) -> Option<Vec<f32>> {
        (self.0)(gradients.0)
    }
}

thread_local! {
    static LISTENER: RefCell<Option<TapListener>> = const { RefCell::new(None) };
}

/// Sets the listener for what is computed on this thread from now on; `None` ends it.
pub fn listen_to_taps(listener: Option<TapListener>) {
    LISTENER.with_borrow_mut(|known| *known = listener);
}

/// The activation itself; where the thread has a listener, it is called when the backward pass has come to this place.
pub fn tap<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    match LISTENER.with_borrow(Clone::clone) {
        Some(listener) if on_cpu(&x.device()) => Tensor::from_dispatch(Dispatch::f2_tap(x.into_dispatch(), Call(listener))),
        _ => x,
    }
}

/// A reader of the gradient of a parameter; `None` when the device has no gradients or none that can be read early.
pub fn watch_gradient<const D: usize>(parameter: &Tensor<D>) -> Option<WatchedGradient> {
    if !on_cpu(&parameter.device()) {
        return None;
    }
    let slot = Slot::default();
    Dispatch::f2_watch(parameter.clone().into_dispatch(), slot.clone());
    slot.0.lock().unwrap_or_else(PoisonError::into_inner).take().map(WatchedGradient)
}

/// A listener inside an operation's state.
#[derive(Clone)]
pub struct Call(TapListener);

impl std::fmt::Debug for Call {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Call")
    }
}

/// Where [`TapOps::f2_watch`] leaves its reader.
#[derive(Clone, Default)]
pub struct Slot(Arc<Mutex<Option<Read>>>);

/// The operations as burn sees them.
#[backend_extension(Flex, Autodiff)]
pub trait TapOps: Backend {
    /// See [`tap`].
    fn f2_tap(x: FloatTensor<Self>, call: Call) -> FloatTensor<Self>;
    /// See [`watch_gradient`]; gives the tensor back.
    fn f2_watch(x: FloatTensor<Self>, slot: Slot) -> FloatTensor<Self>;
}

impl TapOps for Flex {
    fn f2_tap(x: FlexTensor, _call: Call) -> FlexTensor {
        x
    }

    fn f2_watch(x: FlexTensor, _slot: Slot) -> FlexTensor {
        x
    }
}

#[derive(Debug)]
struct TapBackward;

impl Backward<Flex, 1> for TapBackward {
    type State = Call;

    fn backward(self, ops: Ops<Call, 1>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let [node] = ops.parents;
        let gradient = grads.consume::<Flex>(&ops.node);
        if let Some(node) = node {
            grads.register::<Flex>(node.id, gradient);
        }
        (ops.state.0)(&PartialGradients(grads));
    }
}

impl<C: CheckpointStrategy> TapOps for Autodiff<Flex, C> {
    fn f2_tap(x: FloatTensor<Self>, call: Call) -> FloatTensor<Self> {
        match TapBackward.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(call, x.into_primitive()),
            OpsKind::UnTracked(prep) => prep.finish(x.into_primitive()),
        }
    }

    fn f2_watch(x: FloatTensor<Self>, slot: Slot) -> FloatTensor<Self> {
        let parameter = x.clone();
        let read: Read = Box::new(move |grads| grads.get::<Flex>(&parameter).map(|gradient| values(&gradient).into_owned()));
        *slot.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(read);
        x
    }
}
