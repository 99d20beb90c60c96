use std::path::PathBuf;

/// What can go wrong with a face recognition network.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArcFaceError {
    /// The file can't be read.
    #[error(transparent)]
    Io(#[from] unif2ace_io::IoError),
    /// The picture can't be resized or cropped.
    #[error(transparent)]
    Image(#[from] unif2ace_image::ImageError),
    /// The file is no ONNX network that can be run.
    #[error("load {}: {reason}\nhint: expected the recognition network of an ArcFace package, such as glintr100.onnx", .path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// What is wrong, from the engine.
        reason: String,
    },
    /// The network takes or returns other tensors.
    #[error("load {}: expected {expected}, found {found}\nhint: detectors and landmark networks are other files of the same package", .path.display())]
    Interface {
        /// The file.
        path: PathBuf,
        /// What the network should have.
        expected: &'static str,
        /// What it has.
        found: String,
    },
    /// A picture of a wrong size.
    #[error(
        "embed face: expected an aligned face of 112x112 pixels, found {height}x{width}\nhint: call align with the five landmarks, or centre"
    )]
    Size {
        /// Rows.
        height: usize,
        /// Columns.
        width: usize,
    },
    /// Landmarks that don't determine a position.
    #[error(
        "align face: expected five different finite points, found {0:?}\nhint: give eyes, nose tip and mouth corners in pixels"
    )]
    Landmarks([[f32; 2]; 5]),
    /// The network failed, or returned no direction.
    #[error("embed face: {0}\nhint: check the network file")]
    Run(String),
}
