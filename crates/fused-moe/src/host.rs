//! Tensors in host memory, without a copy where the device is the CPU.

use burn::backend::{BackendTypes, Flex};
use burn::tensor::{DType, Device, Element, Int, Tensor, TensorData};
use bytes::Bytes;
use half::{bf16, f16};
use moekit_kernels::Rows;

use crate::FusedMoeError;

type FlexTensor = <Flex as BackendTypes>::FloatTensorPrimitive;

/// A float tensor whose values can be read as slices, row-major.
pub(crate) enum HostTensor {
    /// The memory of a tensor of the CPU backend.
    Flex(FlexTensor),
    /// A copy from another device.
    Data(TensorData),
}

impl HostTensor {
    /// Borrows the memory of a contiguous CPU tensor; copies any other.
    pub(crate) fn new<const D: usize>(tensor: Tensor<D>) -> Result<Self, FusedMoeError> {
        let tensor = tensor.without_autodiff();
        match tensor.clone().try_into_primitive::<Flex>() {
            // A contiguous view of a part of a buffer is read where it is.
            Ok(primitive) if primitive.is_contiguous() => Ok(Self::Flex(primitive)),
            Ok(primitive) => Ok(Self::Flex(primitive.to_contiguous())),
            Err(_) => {
                let data = tensor.try_into_data();
                Ok(Self::Data(
                    data.map_err(|e| FusedMoeError::Device(e.to_string()))?,
                ))
            }
        }
    }

    fn dtype(&self) -> DType {
        match self {
            Self::Flex(tensor) => tensor.dtype(),
            Self::Data(data) => data.dtype(),
        }
    }

    fn slice<E: Element + bytemuck::Pod>(&self) -> Option<&[E]> {
        match self {
            Self::Flex(tensor) => tensor.as_slice(),
            Self::Data(data) => data.as_slice().ok(),
        }
    }

    /// The values as activations.
    pub(crate) fn rows(&self) -> Result<Rows<'_>, FusedMoeError> {
        let rows = match self.dtype() {
            DType::F32 => self.slice().map(Rows::F32),
            DType::BF16 => self.slice().map(Rows::Bf16),
            _ => None,
        };
        rows.ok_or_else(|| FusedMoeError::Dtype {
            got: format!("{:?}", self.dtype()),
        })
    }

    /// The values as `f32`, copied only if they are of another type.
    pub(crate) fn into_floats(self) -> Result<Floats, FusedMoeError> {
        if self.slice::<f32>().is_some() {
            return Ok(Floats(FloatValues::Tensor(self)));
        }
        let values = match self.dtype() {
            DType::BF16 => self
                .slice::<bf16>()
                .map(|v| v.iter().map(|x| x.to_f32()).collect()),
            DType::F16 => self
                .slice::<f16>()
                .map(|v| v.iter().map(|x| x.to_f32()).collect()),
            DType::F64 => self
                .slice::<f64>()
                .map(|v| v.iter().map(|&x| x as f32).collect()),
            _ => None,
        };
        match values {
            Some(values) => Ok(Floats(FloatValues::Converted(values))),
            None => Err(FusedMoeError::Dtype {
                got: format!("{:?}", self.dtype()),
            }),
        }
    }
}

/// `f32` values in host memory.
pub(crate) struct Floats(FloatValues);

enum FloatValues {
    Tensor(HostTensor),
    Converted(Vec<f32>),
}

impl Floats {
    pub(crate) fn new<const D: usize>(tensor: Tensor<D>) -> Result<Self, FusedMoeError> {
        HostTensor::new(tensor)?.into_floats()
    }

    pub(crate) fn as_slice(&self) -> &[f32] {
        match &self.0 {
            FloatValues::Tensor(tensor) => tensor.slice().unwrap_or_default(),
            FloatValues::Converted(values) => values,
        }
    }

    /// The values as bytes that keep the tensor's memory alive instead of copying it.
    pub(crate) fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Floats {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(self.as_slice())
    }
}

/// Whether the kernels can read the memory of tensors of this device.
pub(crate) fn is_host(device: &Device) -> bool {
    // Packed weights are little-endian; tensors are as the machine is.
    cfg!(target_endian = "little") && !device.is_autodiff() && *device == Device::flex()
}

/// A tensor of `f32` values, without a copy on the CPU.
pub(crate) fn float_tensor<const D: usize>(
    values: Vec<f32>,
    shape: [usize; D],
    device: &Device,
) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

/// A tensor of indices.
pub(crate) fn index_tensor<const D: usize>(
    values: Vec<i64>,
    shape: [usize; D],
    device: &Device,
) -> Tensor<D, Int> {
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// A tensor in the element type of the layer's input.
pub(crate) fn output_tensor(
    values: Vec<f32>,
    shape: [usize; 2],
    dtype: DType,
    device: &Device,
) -> Tensor<2> {
    if dtype == DType::BF16 {
        let values: Vec<bf16> = values.into_iter().map(bf16::from_f32).collect();
        return Tensor::from_data(TensorData::new(values, shape), (device, DType::BF16));
    }
    float_tensor(values, shape, device)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(tensor: &HostTensor) -> *const f32 {
        tensor.slice::<f32>().unwrap().as_ptr()
    }

    #[test]
    fn cpu_tensors_are_read_where_they_are() {
        let device = Device::flex();
        let tensor = float_tensor((0..12).map(|i| i as f32).collect(), [4, 3], &device);
        let whole = HostTensor::new(tensor.clone()).unwrap();
        assert_eq!(
            address(&whole),
            address(&HostTensor::new(tensor.clone()).unwrap())
        );
        let tail = HostTensor::new(tensor.clone().narrow(0, 2, 2)).unwrap();
        assert_eq!(
            address(&tail),
            address(&whole).wrapping_add(6),
            "a part of a batch"
        );
        assert_eq!(
            tail.slice::<f32>().unwrap(),
            [6.0, 7.0, 8.0, 9.0, 10.0, 11.0]
        );
        let bytes = Floats::new(tensor.clone()).unwrap().into_bytes();
        assert_eq!(bytes.as_ptr(), address(&whole).cast());

        let transposed = HostTensor::new(tensor.transpose()).unwrap();
        assert_eq!(
            transposed.slice::<f32>().unwrap()[..4],
            [0.0, 3.0, 6.0, 9.0]
        );
    }

    #[test]
    fn other_types_are_converted_or_refused() {
        let device = Device::flex();
        let tensor = float_tensor(vec![0.5, -1.5], [1, 2], &device);
        for dtype in [DType::BF16, DType::F16, DType::F64, DType::F32] {
            let floats = Floats::new(tensor.clone().cast(dtype)).unwrap();
            assert_eq!(floats.as_slice(), [0.5, -1.5]);
        }
        let narrow = HostTensor::new(tensor.clone().cast(DType::BF16)).unwrap();
        assert!(matches!(narrow.rows(), Ok(Rows::Bf16(values)) if values.len() == 2));
        let half = HostTensor::new(tensor.cast(DType::F16)).unwrap();
        assert!(half.rows().unwrap_err().to_string().contains("F16"));
    }
}
