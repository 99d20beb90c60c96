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

/// Devices, and whether they are software ones.
struct Found {
    devices: Vec<Device>,
    are_software: bool,
}

/// A Vulkan device of this machine, `None` where there is no such one. It is brought up here, once a process: a driver that refuses is an
/// error, where the first tensor on it would end the process.
#[cfg(feature = "vulkan")]
fn vulkan_device(kind: DeviceKind) -> Result<Option<Device>> {
    static OPENED: Mutex<Vec<(DeviceKind, Device)>> = Mutex::new(Vec::new());
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, device)) = opened.iter().find(|(known, _)| *known == kind) {
        return Ok(Some(device.clone()));
    }
    match Device::wgpu_options().device_kind(kind.clone()).graphics_api(WgpuBackend::Vulkan).init() {
        Ok(device) => {
            opened.push((kind, device.clone()));
            Ok(Some(device))
        }
        Err(WgpuInitError::AdapterUnavailable { .. }) => Ok(None),
        Err(error) => Err(PipelineError::Device {
            found: DeviceName::Vulkan.to_string(),
            reason: error.to_string(),
            hint: "try a newer driver; --device cpu works everywhere",
        }),
    }
}

/// The first Vulkan devices of this machine, at most `count`: GPUs, else, if asked for, the software one. None in a build without them.
fn vulkan_devices(software: bool, count: usize) -> Result<Found> {
    #[cfg_attr(not(feature = "vulkan"), expect(unused_mut))]
    let mut found = Found { devices: Vec::new(), are_software: false };
    #[cfg(feature = "vulkan")]
    {
        let gpus: [fn(usize) -> DeviceKind; 3] = [DeviceKind::DiscreteGpu, DeviceKind::IntegratedGpu, DeviceKind::VirtualGpu];
        for kind in gpus {
            for index in 0..count - found.devices.len() {
                let Some(device) = vulkan_device(kind(index))? else { break };
                found.devices.push(device);
            }
        }
        if found.devices.is_empty() && software {
            found.devices.extend(vulkan_device(DeviceKind::Cpu)?);
            found.are_software = true;
        }
    }
    #[cfg(not(feature = "vulkan"))]
    let _ = (software, count);
    Ok(found)
}

/// The first CUDA devices of this machine, at most `count`; none in a build without them.
fn cuda_devices(count: usize) -> Vec<Device> {
    #[cfg(feature = "cuda")]
    return Device::enumerate(DeviceType::Cuda).into_iter().take(count).collect();
    #[cfg(not(feature = "cuda"))]
    {
        let _ = count;
        Vec::new()
    }
}

/// Opens a device.
///
/// # Errors
/// When the build has no such backend, or the machine no such device.
pub fn open(name: DeviceName) -> Result<Device> {
    let mut devices = at_most(name, 1)?;
    devices.pop().ok_or_else(|| missing(name))
}

/// Opens `count` devices, at least one. On the CPU they all are the same one.
///
/// # Errors
/// When the build has no such backend, or the machine fewer devices.
pub fn open_several(name: DeviceName, count: usize) -> Result<Vec<Device>> {
    let devices = at_most(name, count.max(1))?;
    match devices.len() {
        0 => Err(missing(name)),
        found if found < count => Err(PipelineError::Device {
            found: name.to_string(),
            reason: format!("expected {count} devices, this machine has {found}"),
            hint: "ask for as many devices as there are",
        }),
        _ => Ok(devices),
    }
}

/// Opens the device of one of several processes on this machine, which are counted from 0: the one of its number, or the only one that it
/// sees, where a launcher shows each process its own.
///
/// # Errors
/// When the build has no such backend, or the machine too few devices.
pub fn open_nth(name: DeviceName, process: usize) -> Result<Device> {
    let mut devices = at_most(name, process + 1)?;
    match devices.len() {
        0 => Err(missing(name)),
        found if found == process + 1 || found == 1 => devices.pop().ok_or_else(|| missing(name)),
        found => Err(PipelineError::Device {
            found: name.to_string(),
            reason: format!("process {process} of this machine has no device of its own: there are {found}"),
            hint: "start as many processes on a machine as it has devices",
        }),
    }
}

fn missing(name: DeviceName) -> PipelineError {
    let [cuda, vulkan] = [cfg!(feature = "cuda"), cfg!(feature = "vulkan")];
    let built = if name == DeviceName::Cuda { cuda } else { vulkan };
    PipelineError::Device {
        found: name.to_string(),
        reason: if built { "this machine has no such device" } else { "this build has no such backend" }.into(),
        hint: match (built, name) {
            (true, DeviceName::Cuda) => "is the driver there? nvidia-smi lists its devices; --device cpu works everywhere",
            (true, _) => "is the driver there? vulkaninfo lists its devices; --device cpu works everywhere",
            (false, DeviceName::Cuda) => "build with --features cuda, or use --device cpu",
            (false, _) => "build with --features vulkan, or use --device cpu",
        },
    }
}

/// The first devices, at most `count`; none where there is none.
fn at_most(name: DeviceName, count: usize) -> Result<Vec<Device>> {
    match name {
        DeviceName::Cpu => Ok(vec![Device::flex(); count]),
        DeviceName::Vulkan => {
            let Found { devices, are_software } = vulkan_devices(true, count)?;
            if are_software && !devices.is_empty() {
                tracing::warn!("the only Vulkan device is a software one: --device cpu is faster");
            }
            Ok(devices)
        }
        DeviceName::Cuda => Ok(cuda_devices(count)),
        DeviceName::Auto => {
            let devices = cuda_devices(count);
            if !devices.is_empty() {
                return Ok(devices);
            }
            match vulkan_devices(false, count) {
                Ok(found) if !found.devices.is_empty() => return Ok(found.devices),
                Err(error) => tracing::warn!("computing on the CPU: {error}"),
                Ok(_) if cfg!(any(feature = "vulkan", feature = "cuda")) => {
                    tracing::warn!("no GPU was found: computing on the CPU");
                }
                Ok(_) => {}
            }
            Ok(vec![Device::flex(); count])
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
    fn the_cpu_is_there_as_often_as_asked_for() {
        assert_eq!(open_several(DeviceName::Cpu, 3).unwrap(), vec![Device::flex(); 3]);
        assert_eq!(open_nth(DeviceName::Cpu, 2).unwrap(), Device::flex());
    }

    #[cfg(feature = "vulkan")]
    #[test]
    fn more_devices_than_there_are_are_refused_with_their_number() {
        let one = open(DeviceName::Vulkan).unwrap();
        let error = open_several(DeviceName::Vulkan, 99).unwrap_err().to_string();
        assert!(error.contains("expected 99 devices, this machine has"), "{error}");
        assert_eq!(open_several(DeviceName::Vulkan, 1).unwrap(), [one]);
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
