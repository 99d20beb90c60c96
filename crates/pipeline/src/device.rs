//! Where to compute: the CPU's kernels, or a GPU through burn's portable operations.

use std::fmt;
use std::str::FromStr;
#[cfg(feature = "vulkan")]
use std::sync::{Mutex, PoisonError};

use burn::tensor::Device;
#[cfg(feature = "vulkan")]
use burn::tensor::DeviceKind;
#[cfg(feature = "cuda")]
use burn::tensor::DeviceType;
#[cfg(feature = "vulkan")]
use burn::tensor::wgpu::{WgpuBackend, WgpuInitError};

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

/// A Vulkan device, and whether it is a software one.
type Found = (Device, bool);

/// The first Vulkan device of this machine, GPUs before software ones; none in a build without them. It is brought up here: a driver that
/// refuses is an error, where the first tensor on it would end the process.
fn vulkan_device(software: bool) -> Result<Option<Found>> {
    #[cfg(feature = "vulkan")]
    {
        static OPENED: Mutex<Option<Found>> = Mutex::new(None);
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        let gpus = [DeviceKind::DiscreteGpu(0), DeviceKind::IntegratedGpu(0), DeviceKind::VirtualGpu(0)];
        for kind in gpus.into_iter().chain(software.then_some(DeviceKind::Cpu)) {
            if opened.is_some() {
                break;
            }
            let is_software = kind == DeviceKind::Cpu;
            match Device::wgpu_options().device_kind(kind).graphics_api(WgpuBackend::Vulkan).init() {
                Ok(device) => *opened = Some((device, is_software)),
                Err(WgpuInitError::AdapterUnavailable { .. }) => {}
                Err(error) => {
                    return Err(PipelineError::Device {
                        found: DeviceName::Vulkan.to_string(),
                        reason: error.to_string(),
                        hint: "try a newer driver; --device cpu works everywhere",
                    });
                }
            }
        }
        Ok(opened.clone().filter(|(_, is_software)| software || !is_software))
    }
    #[cfg(not(feature = "vulkan"))]
    {
        let _ = software;
        Ok(None)
    }
}

/// The CUDA devices of this machine; none in a build without them.
fn cuda_devices() -> Vec<Device> {
    #[cfg(feature = "cuda")]
    return Device::enumerate(DeviceType::Cuda).into_iter().collect();
    #[cfg(not(feature = "cuda"))]
    Vec::new()
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
    match name {
        DeviceName::Cpu => Ok(Device::flex()),
        DeviceName::Vulkan => {
            let (device, is_software) = vulkan_device(true)?.ok_or_else(|| missing(cfg!(feature = "vulkan")))?;
            if is_software {
                tracing::warn!("the only Vulkan device is a software one: --device cpu is faster");
            }
            Ok(device)
        }
        DeviceName::Cuda => cuda_devices().into_iter().next().ok_or_else(|| missing(cfg!(feature = "cuda"))),
        DeviceName::Auto => {
            if let Some(device) = cuda_devices().into_iter().next() {
                return Ok(device);
            }
            match vulkan_device(false) {
                Ok(Some((device, _))) => return Ok(device),
                Err(error) => tracing::warn!("computing on the CPU: {error}"),
                Ok(None) if cfg!(any(feature = "vulkan", feature = "cuda")) => {
                    tracing::warn!("no GPU was found: computing on the CPU");
                }
                Ok(None) => {}
            }
            Ok(Device::flex())
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
