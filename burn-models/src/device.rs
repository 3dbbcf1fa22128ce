//! Where arithmetic happens: the CPU, or an accelerator that this binary was built for.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An opened device; what the functions of this crate compute on.
pub type Device = burn::tensor::Device;

/// A device by its name in a configuration: `cpu`, or a kind of accelerator with an optional
/// number, such as `cuda` or `cuda:1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DeviceChoice {
    /// Pure Rust on the processor; in every build.
    #[default]
    Cpu,
    /// NVIDIA, by its index.
    Cuda(usize),
    /// AMD, by its index.
    Rocm(usize),
    /// Any graphics API that wgpu finds; the index counts discrete GPUs.
    Wgpu(Option<usize>),
    /// Vulkan; the index counts discrete GPUs.
    Vulkan(Option<usize>),
    /// Apple.
    Metal(Option<usize>),
}

/// Why a device cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// Not a device's name.
    #[error(
        "device {0:?} is not known; use cpu, cuda, rocm, wgpu, vulkan or metal, with a number where there are several, such as cuda:1"
    )]
    Unknown(String),
    /// This binary lacks the device's code.
    #[error("device {device} is not in this build ({}); build with `--features {feature}`", compiled.join(", "))]
    NotCompiled {
        /// Asked for.
        device: DeviceChoice,
        /// The cargo feature that brings it.
        feature: &'static str,
        /// What there is instead.
        compiled: Vec<&'static str>,
    },
    /// The device did not answer.
    #[error(
        "device {device} could not be opened: {reason}; check the driver, or use device = \"cpu\""
    )]
    Unavailable {
        /// Asked for.
        device: DeviceChoice,
        /// What the driver's layer said.
        reason: String,
    },
}

impl DeviceChoice {
    /// The kinds of device that this binary was built for; `cpu` is always among them.
    #[must_use]
    pub fn compiled() -> Vec<&'static str> {
        [
            ("cpu", true),
            ("cuda", cfg!(feature = "cuda")),
            ("rocm", cfg!(feature = "rocm")),
            ("wgpu", cfg!(feature = "wgpu")),
            ("vulkan", cfg!(feature = "vulkan")),
            ("metal", cfg!(feature = "metal")),
        ]
        .into_iter()
        .filter_map(|(kind, is_compiled)| is_compiled.then_some(kind))
        .collect()
    }

    /// Opens the device and computes one sum on it, so that a missing driver shows now and not in
    /// the middle of a round.
    ///
    /// # Errors
    /// [`DeviceError::NotCompiled`] if the binary was built without it,
    /// [`DeviceError::Unavailable`] if it does not work.
    pub fn open(self) -> Result<Device, DeviceError> {
        if !Self::compiled().contains(&self.kind()) {
            return Err(DeviceError::NotCompiled {
                device: self,
                feature: self.kind(),
                compiled: Self::compiled(),
            });
        }
        // Drivers are loaded lazily, and burn reports their absence by a panic only.
        std::panic::catch_unwind(|| {
            let device = self.device();
            let one = burn::tensor::Tensor::<1>::ones([1], &device);
            let sum = (one.clone() + one).try_into_data().map_err(|error| error.to_string())?;
            match sum.try_to_vec::<f32>() {
                Ok(sum) if sum == [2.0] => Ok(device),
                _ => Err("it computed 1 + 1 wrongly".to_owned()),
            }
        })
        .unwrap_or_else(|panic| {
            Err(panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                .unwrap_or_else(|| "its driver failed".to_owned()))
        })
        .map_err(|reason| DeviceError::Unavailable { device: self, reason })
    }

    fn kind(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda(_) => "cuda",
            Self::Rocm(_) => "rocm",
            Self::Wgpu(_) => "wgpu",
            Self::Vulkan(_) => "vulkan",
            Self::Metal(_) => "metal",
        }
    }

    /// The device, of a kind that was compiled.
    fn device(self) -> Device {
        #[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
        fn kind(index: Option<usize>) -> burn::tensor::DeviceKind {
            use burn::tensor::DeviceKind::{DefaultDevice, DiscreteGpu};
            index.map_or(DefaultDevice, DiscreteGpu)
        }
        match self {
            #[cfg(feature = "cuda")]
            Self::Cuda(index) => Device::cuda(index),
            #[cfg(feature = "rocm")]
            Self::Rocm(index) => Device::rocm(index),
            #[cfg(feature = "wgpu")]
            Self::Wgpu(index) => Device::wgpu(kind(index)),
            #[cfg(feature = "vulkan")]
            Self::Vulkan(index) => Device::vulkan(kind(index)),
            #[cfg(feature = "metal")]
            Self::Metal(index) => Device::metal(kind(index)),
            _ => Device::flex(),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = DeviceError;
    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let unknown = || DeviceError::Unknown(text.to_owned());
        let (kind, index) = match text.split_once(':') {
            Some((kind, index)) => (kind, Some(index.parse().map_err(|_| unknown())?)),
            None => (text, None),
        };
        match (kind, index) {
            ("cpu", None) => Ok(Self::Cpu),
            ("cuda", index) => Ok(Self::Cuda(index.unwrap_or(0))),
            ("rocm", index) => Ok(Self::Rocm(index.unwrap_or(0))),
            ("wgpu", index) => Ok(Self::Wgpu(index)),
            ("vulkan", index) => Ok(Self::Vulkan(index)),
            ("metal", index) => Ok(Self::Metal(index)),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())?;
        match self {
            Self::Cpu | Self::Cuda(0) | Self::Rocm(0) => Ok(()),
            Self::Cuda(index) | Self::Rocm(index) => write!(f, ":{index}"),
            Self::Wgpu(index) | Self::Vulkan(index) | Self::Metal(index) => {
                index.map_or(Ok(()), |index| write!(f, ":{index}"))
            }
        }
    }
}

impl Serialize for DeviceChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DeviceChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for name in ["cpu", "cuda", "cuda:1", "rocm:2", "wgpu", "wgpu:0", "vulkan:3", "metal"] {
            assert_eq!(name.parse::<DeviceChoice>().unwrap().to_string(), name);
        }
        for bad in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "CUDA"] {
            let error = bad.parse::<DeviceChoice>().unwrap_err();
            assert_eq!(error, DeviceError::Unknown(bad.to_owned()));
        }
    }

    #[test]
    fn the_cpu_opens() {
        assert!(DeviceChoice::Cpu.open().is_ok());
        assert_eq!(DeviceChoice::compiled()[0], "cpu");
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_device_that_was_not_compiled_names_the_feature() {
        let error = DeviceChoice::Cuda(1).open().unwrap_err().to_string();
        assert!(error.contains("cuda:1") && error.contains("--features cuda"), "{error}");
    }
}
