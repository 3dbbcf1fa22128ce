//! The largest value of each square window, and its gradient, on the CPU.
//!
//! In place of burn's own it takes an eighth off a step of a small network on this backend
//! (`benches/results`). On an accelerator the values would have to travel, so there burn's is used.

use burn::tensor::{Tensor, TensorData};

use crate::model::read;

/// What the way back needs to know of the way there.
pub(super) struct Argmax {
    /// Of each output, the position of its value among all inputs.
    positions: Vec<u32>,
    dims: [usize; 4],
}

/// The largest value of each window of `input`, `[n, channels, height, width]`; NaN where a window
/// holds one, the first of several equal ones. `None` if there are too many values to number.
pub(super) fn max_pool(
    input: Tensor<4>,
    kernel: usize,
    stride: usize,
) -> Option<(Tensor<4>, Argmax)> {
    let dims = input.dims();
    let [n, channels, height, width] = dims;
    u32::try_from(dims.iter().product::<usize>()).ok()?;
    let (rows, columns) = ((height - kernel) / stride + 1, (width - kernel) / stride + 1);
    let device = input.device();
    let values = read(input);
    let mut largest = Vec::with_capacity(n * channels * rows * columns);
    let mut positions = Vec::with_capacity(largest.capacity());
    for plane in (0..values.len()).step_by((height * width).max(1)) {
        for row in 0..rows {
            for column in 0..columns {
                let corner = plane + row * stride * width + column * stride;
                let (mut best, mut at) = (f32::NEG_INFINITY, corner);
                for line in 0..kernel {
                    let start = corner + line * width;
                    for (i, value) in values[start..start + kernel].iter().enumerate() {
                        if *value > best || value.is_nan() {
                            (best, at) = (*value, start + i);
                        }
                    }
                }
                largest.push(best);
                positions.push(at as u32);
            }
        }
    }
    let output = Tensor::from_data(TensorData::new(largest, [n, channels, rows, columns]), &device);
    Some((output, Argmax { positions, dims }))
}

impl Argmax {
    /// The input's gradient from the output's.
    pub(super) fn gradient(self, d: Tensor<4>) -> Tensor<4> {
        let device = d.device();
        let mut gradient = vec![0.0; self.dims.iter().product()];
        for (position, d) in self.positions.into_iter().zip(read(d)) {
            gradient[position as usize] += d;
        }
        Tensor::from_data(TensorData::new(gradient, self.dims), &device)
    }
}
