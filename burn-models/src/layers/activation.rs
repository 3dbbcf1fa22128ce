//! Functions of each value by itself, and their ways back.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use burn::tensor::{Tensor, activation};

pub(super) fn relu(input: Tensor<2>) -> Tensor<2> {
    activation::relu(input)
}

pub(super) fn relu_back(d: Tensor<2>, output: Tensor<2>) -> Tensor<2> {
    d.mask_fill(output.lower_equal_elem(0.0), 0.0)
}

pub(super) fn tanh(input: Tensor<2>) -> Tensor<2> {
    input.tanh()
}

pub(super) fn tanh_back(d: Tensor<2>, output: Tensor<2>) -> Tensor<2> {
    let slope = output.clone() * output;
    d.clone() - d * slope
}

/// `x Φ(x)`.
pub(super) fn gelu(input: Tensor<2>) -> Tensor<2> {
    activation::gelu(input)
}

/// `Φ(x) + x φ(x)`.
pub(super) fn gelu_back(d: Tensor<2>, input: Tensor<2>) -> Tensor<2> {
    let cumulative = ((input.clone() * FRAC_1_SQRT_2).erf() + 1.0) * 0.5;
    let density = (input.clone() * input.clone() * -0.5).exp() * (1.0 / (2.0 * PI).sqrt());
    d * (cumulative + input * density)
}
