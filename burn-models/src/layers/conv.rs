//! Convolution and pooling of images.

use burn::tensor::Tensor;
use burn::tensor::module::{
    avg_pool2d, avg_pool2d_backward, conv_transpose2d, conv2d, max_pool2d, max_pool2d_with_indices,
    max_pool2d_with_indices_backward, unfold4d,
};
use burn::tensor::ops::{
    AvgPoolOptions, ConvOptions, ConvTransposeOptions, MaxPoolOptions, PadMode, UnfoldOptions,
};

use super::max_pool::max_pool;
use super::{Backward, Builder, Parameter, ParameterMut, Signal};
use crate::Device;
use crate::site::Site;

/// From `[n, n_in, height, width]` to `[n, n_out, …]`.
#[derive(Clone, Debug)]
pub(crate) struct Conv2d {
    /// `[n_out, n_in, kernel, kernel]`.
    pub(super) weight: Parameter<4>,
    /// `[n_out]`.
    bias: Parameter<1>,
    stride: usize,
    padding: usize,
}

/// The largest or the mean of each square window.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pool {
    pub(super) is_max: bool,
    pub(super) kernel: usize,
    pub(super) stride: usize,
}

impl Conv2d {
    pub(super) fn new(
        builder: &Builder<'_>,
        prefix: &str,
        kernel: usize,
        stride: usize,
        padding: usize,
    ) -> Self {
        let weight: Parameter<4> = builder.parameter(prefix, "weight");
        debug_assert_eq!(weight.value.dims()[3], kernel);
        Self { weight, bias: builder.parameter(prefix, "bias"), stride, padding }
    }

    pub(super) fn parameters_mut(&mut self) -> Vec<ParameterMut<'_>> {
        vec![ParameterMut::Four(&mut self.weight), ParameterMut::One(&mut self.bias)]
    }

    pub(super) fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let options = ConvOptions::new([self.stride; 2], [self.padding; 2], [1, 1], 1);
        conv2d(input, self.weight.value.clone(), Some(self.bias.value.clone()), options)
    }

    /// By the input's windows as columns, which book-keeping needs anyway.
    pub(super) fn trace(&self, input: Tensor<4>, wants: bool) -> (Signal, Backward) {
        let dims = input.dims();
        let [n, n_in, height, width] = dims;
        let [n_out, _, kernel, _] = self.weight.value.dims();
        let side = |side: usize| (side + 2 * self.padding - kernel) / self.stride + 1;
        let (height_out, width_out) = (side(height), side(width));
        let columns = self.columns(input);
        let weight = self.weight.value.clone().reshape([1, n_out, n_in * kernel * kernel]);
        let output =
            weight.matmul(columns.clone()) + self.bias.value.clone().reshape([1, n_out, 1]);
        let output = Signal::Image(output.reshape([n, n_out, height_out, width_out]));
        let conv = self.clone();
        let back: Backward = Box::new(move |d, sites| {
            let d = d.image();
            if conv.weight.trainable {
                let d = d.clone().reshape([n, n_out, height_out * width_out]);
                Site::push_convolution(conv.weight.offset, conv.bias.offset, columns, d, sites);
            }
            wants.then(|| Signal::Image(conv.input_gradient(d, dims)))
        });
        (output, back)
    }

    /// The windows of `input` as columns, `[n, n_in * kernel², n_windows]`.
    fn columns(&self, input: Tensor<4>) -> Tensor<3> {
        // burn unfolds a padded input by a convolution with a kernel of ones and zeros, which
        // costs more than the layer itself; without padding it only rearranges.
        let p = self.padding;
        let input = if p == 0 { input } else { input.pad((p, p, p, p), PadMode::Constant(0.0)) };
        let kernel = self.weight.value.dims()[3];
        unfold4d(input, [kernel; 2], UnfoldOptions::new([self.stride; 2], [0, 0], [1, 1]))
    }

    /// The transposed convolution of the output's gradient, in the input's shape.
    fn input_gradient(&self, d: Tensor<4>, dims: [usize; 4]) -> Tensor<4> {
        let [_, _, kernel, _] = self.weight.value.dims();
        // Rows and columns that no window reached.
        let rest = |side: usize| (side + 2 * self.padding - kernel) % self.stride;
        let options = ConvTransposeOptions::new(
            [self.stride; 2],
            [self.padding; 2],
            [rest(dims[2]), rest(dims[3])],
            [1, 1],
            1,
        );
        conv_transpose2d(d, self.weight.value.clone(), None, options)
    }
}

impl Pool {
    pub(super) fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let (kernel, stride) = ([self.kernel; 2], [self.stride; 2]);
        if self.is_max {
            max_pool2d(input, MaxPoolOptions::new(kernel).with_stride(stride))
        } else {
            avg_pool2d(input, AvgPoolOptions::new(kernel).with_stride(stride))
        }
    }

    pub(super) fn trace(&self, input: Tensor<4>) -> (Signal, Backward) {
        let (kernel, stride) = ([self.kernel; 2], [self.stride; 2]);
        let is_cpu = input.device() == Device::flex();
        if self.is_max
            && is_cpu
            && let Some((output, argmax)) = max_pool(input.clone(), self.kernel, self.stride)
        {
            let back: Backward = Box::new(|d, _| Some(Signal::Image(argmax.gradient(d.image()))));
            return (Signal::Image(output), back);
        }
        let saved = input.clone();
        if self.is_max {
            let options = MaxPoolOptions::new(kernel).with_stride(stride);
            let (output, indices) = max_pool2d_with_indices(input, options);
            let back: Backward = Box::new(move |d, _| {
                let d = max_pool2d_with_indices_backward(
                    saved,
                    kernel,
                    stride,
                    [0, 0],
                    [1, 1],
                    false,
                    d.image(),
                    indices,
                );
                Some(Signal::Image(d))
            });
            return (Signal::Image(output), back);
        }
        let back: Backward = Box::new(move |d, _| {
            let d = avg_pool2d_backward(saved, d.image(), kernel, stride, [0, 0], true, false);
            Some(Signal::Image(d))
        });
        (Signal::Image(self.forward(input)), back)
    }
}
