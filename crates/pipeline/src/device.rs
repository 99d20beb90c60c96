//! Where to compute: the CPU's kernels, or a GPU through burn's portable operations.

use std::fmt;
use std::str::FromStr;

use burn::tensor::Device;
#[cfg(feature = "vulkan")]
use burn::tensor::DeviceKind;
#[cfg(any(feature = "vulkan", feature = "cuda"))]
use burn::tensor::DeviceType;

use crate::error::{PipelineError, Result};

/// Where to compute.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DeviceName {
    /// The best that this build and this machine have: CUDA, Vulkan on a GPU, the CPU.
    #[default]
    Auto,
    /// The CPU kernels.
    Cpu,
    /// The first Vulkan device, in a build with the feature `vulkan`. Where there is no GPU that may be a software one.
    Vulkan,
    /// The first CUDA device, in a build with the feature `cuda`.
    Cuda,
}

impl DeviceName {
    const ALL: [Self; 4] = [Self::Auto, Self::Cpu, Self::Vulkan, Self::Cuda];
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Vulkan => "vulkan",
            Self::Cuda => "cuda",
        })
    }
}

impl FromStr for DeviceName {
    type Err = PipelineError;

    fn from_str(name: &str) -> Result<Self> {
        let known = Self::ALL.into_iter().find(|known| known.to_string() == name);
        known.ok_or_else(|| PipelineError::Device {
            found: name.to_owned(),
            reason: "expected auto, cpu, vulkan or cuda".into(),
            hint: "auto takes the best that is there",
        })
    }
}

/// The Vulkan devices of this machine, GPUs before software ones; none in a build without them.
fn vulkan_devices() -> Vec<Device> {
    #[cfg(feature = "vulkan")]
    return Device::enumerate(DeviceType::Vulkan).into_iter().collect();
    #[cfg(not(feature = "vulkan"))]
    Vec::new()
}

/// The CUDA devices of this machine; none in a build without them.
fn cuda_devices() -> Vec<Device> {
    #[cfg(feature = "cuda")]
    return Device::enumerate(DeviceType::Cuda).into_iter().collect();
    #[cfg(not(feature = "cuda"))]
    Vec::new()
}

fn is_software(_device: &Device) -> bool {
    #[cfg(feature = "vulkan")]
    return *_device == Device::vulkan(DeviceKind::Cpu);
    #[cfg(not(feature = "vulkan"))]
    false
}

/// Opens a device.
///
/// # Errors
/// When the build has no such backend, or the machine no such device.
pub fn open(name: DeviceName) -> Result<Device> {
    let missing = |built: bool| PipelineError::Device {
        found: name.to_string(),
        reason: if built { "this machine has no such device" } else { "this build has no such backend" }.into(),
        hint: match (built, name) {
            (true, DeviceName::Cuda) => "is the driver there? nvidia-smi lists its devices; --device cpu works everywhere",
            (true, _) => "is the driver there? vulkaninfo lists its devices; --device cpu works everywhere",
            (false, DeviceName::Cuda) => "build with --features cuda, or use --device cpu",
            (false, _) => "build with --features vulkan, or use --device cpu",
        },
    };
    let first = |devices: Vec<Device>, built| devices.into_iter().next().ok_or_else(|| missing(built));
    match name {
        DeviceName::Cpu => Ok(Device::flex()),
        DeviceName::Vulkan => first(vulkan_devices(), cfg!(feature = "vulkan")),
        DeviceName::Cuda => first(cuda_devices(), cfg!(feature = "cuda")),
        DeviceName::Auto => {
            let found = cuda_devices().into_iter().chain(vulkan_devices()).find(|device| !is_software(device));
            if found.is_none() && cfg!(any(feature = "vulkan", feature = "cuda")) {
                tracing::warn!("no GPU was found: computing on the CPU");
            }
            Ok(found.unwrap_or_else(Device::flex))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test may end by it
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_others_are_refused_with_the_choice() {
        for name in DeviceName::ALL {
            assert_eq!(name.to_string().parse::<DeviceName>().unwrap(), name);
        }
        let error = "tpu".parse::<DeviceName>().unwrap_err().to_string();
        assert!(error.contains("tpu") && error.contains("vulkan") && error.contains("hint"), "{error}");
    }

    #[test]
    fn the_cpu_is_always_there() {
        assert_eq!(open(DeviceName::Cpu).unwrap(), Device::flex());
        assert!(cfg!(any(feature = "vulkan", feature = "cuda")) || open(DeviceName::Auto).unwrap() == Device::flex());
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_backend_that_was_not_built_says_how_to_build_it() {
        let error = open(DeviceName::Cuda).unwrap_err().to_string();
        assert!(error.contains("cuda") && error.contains("--features cuda"), "{error}");
    }
}
