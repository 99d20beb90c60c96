//! Running the ONNX file, with an engine in pure Rust.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use tract_onnx::pb::ModelProto;
use tract_onnx::prelude::*;
use unif2ace_image::RgbImage;

use crate::{ArcFaceError, SIDE, input_values};

/// Width of the embedding.
pub const EMBEDDING: usize = 512;

/// The largest file that is read; the largest released network is a quarter of it.
const MAX_BYTES: u64 = 1 << 30;

/// How many of the first nodes are searched for a network's own scaling.
const FIRST_NODES: usize = 8;

/// How byte values become the network's input.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scaling {
    /// Taken off first.
    pub mean: f32,
    /// Divided by then.
    pub deviation: f32,
}

/// A recognition network, ready to run. Cheap to clone.
#[derive(Clone)]
pub struct ArcFace {
    plan: Arc<TypedRunnableModel>,
    scaling: Scaling,
}

impl std::fmt::Debug for ArcFace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ArcFace").field("scaling", &self.scaling).finish_non_exhaustive()
    }
}

impl ArcFace {
    /// Loads a network that takes `[batch, 3, 112, 112]` and returns `[batch, 512]`.
    ///
    /// # Errors
    /// When the file can't be read, is no ONNX network that the engine can run, or is a network of another kind.
    pub fn load(path: &Path) -> Result<Self, ArcFaceError> {
        let bytes = unif2ace_io::read_capped(path, MAX_BYTES)?;
        let load_error = |reason: String| ArcFaceError::Load { path: path.to_path_buf(), reason };
        // The file comes from outside, and the engine's checks of malformed graphs are not complete: a panic is an error too.
        let built = catch_unwind(AssertUnwindSafe(|| build(&bytes)))
            .map_err(|_| load_error("the network is malformed (the engine gave up)".into()))?;
        let (plan, scaling) = built.map_err(|error| load_error(format!("{error:#}")))?;
        let network = Self { plan, scaling };
        let shape = network.run_values(&vec![0.0; 3 * SIDE * SIDE]).map_err(|error| load_error(error.to_string()))?.0;
        if shape.iter().product::<usize>() != EMBEDDING {
            return Err(ArcFaceError::Interface {
                path: path.to_path_buf(),
                expected: "an output of 512 values for one face of [3, 112, 112]",
                found: format!("{shape:?}"),
            });
        }
        Ok(network)
    }

    /// How byte values are scaled: `(value - 127.5) / 127.5`, or not at all where the network's first nodes do it.
    pub fn scaling(&self) -> Scaling {
        self.scaling
    }

    /// The identity embedding of an aligned face of 112x112 pixels (see [`crate::align`]): 512 numbers, length 1.
    ///
    /// # Errors
    /// When the face has another size, or the network fails on it.
    pub fn embed(&self, face: &RgbImage) -> Result<Vec<f32>, ArcFaceError> {
        let values = input_values(face, self.scaling.mean, self.scaling.deviation)?;
        let mut embedding = self.run_values(&values)?.1;
        let length = embedding.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        if !(length.is_finite() && length > 1e-12) {
            return Err(ArcFaceError::Run(format!("expected a finite direction, found length {length}")));
        }
        for value in &mut embedding {
            *value = (f64::from(*value) / length) as f32;
        }
        Ok(embedding)
    }

    fn run_values(&self, values: &[f32]) -> Result<(Vec<usize>, Vec<f32>), ArcFaceError> {
        let run = || -> TractResult<(Vec<usize>, Vec<f32>)> {
            let input = Tensor::from_shape(&[1, 3, SIDE, SIDE], values)?;
            let outputs = self.plan.run(tvec!(input.into()))?;
            let output = outputs.first().map(|output| output.to_plain_array_view::<f32>()).transpose()?;
            Ok(output.map_or_else(Default::default, |output| (output.shape().to_vec(), output.iter().copied().collect())))
        };
        catch_unwind(AssertUnwindSafe(run))
            .map_err(|_| ArcFaceError::Run("the engine gave up".into()))?
            .map_err(|error| ArcFaceError::Run(format!("{error:#}")))
    }
}

fn build(mut bytes: &[u8]) -> TractResult<(Arc<TypedRunnableModel>, Scaling)> {
    let engine = tract_onnx::onnx();
    let proto = engine.proto_model_for_read(&mut bytes)?;
    let scaling = scaling_of(&proto);
    let fact = f32::fact([1, 3, SIDE, SIDE]);
    let model = engine.model_for_proto_model(&proto)?;
    let num_inputs = model.input_outlets()?.len();
    if num_inputs != 1 {
        return Err(TractError::msg(format!("expected one input, found {num_inputs}")));
    }
    let plan = model.with_input_fact(0, fact.into())?.into_optimized()?.into_runnable()?;
    Ok((plan, scaling))
}

/// insightface's rule: a network that subtracts and multiplies in its first nodes scales its input itself.
fn scaling_of(proto: &ModelProto) -> Scaling {
    let nodes = proto.graph.as_ref().map_or(&[][..], |graph| graph.node.as_slice());
    let first = || nodes.iter().take(FIRST_NODES);
    let has = |name: &str, old_name: &str| {
        first().any(|node| node.op_type == name || node.name.starts_with(name) || node.name.starts_with(old_name))
    };
    if has("Sub", "_minus") && has("Mul", "_mul") {
        Scaling { mean: 0.0, deviation: 1.0 }
    } else {
        Scaling { mean: 127.5, deviation: 127.5 }
    }
}
