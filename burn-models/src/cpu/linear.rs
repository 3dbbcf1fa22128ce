//! Linear maps of lists, all examples of a batch at once.

use fearless_simd::{Level, dispatch};

use super::conv::add_rows;
use super::padded;
use super::product::{Product, Rows, SLACK};

/// From `[n, n_in]` to `[n, n_out]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Linear {
    pub(super) n_in: usize,
    pub(super) n_out: usize,
}

/// The weights in the order in which a pass reads them.
#[derive(Clone, Debug)]
pub(super) struct LinearWeights {
    /// `[n_in, n_out]`, rows of whole vectors.
    forward: Vec<f32>,
    bias: Vec<f32>,
    /// `[n_out, n_in]`; empty where nobody goes back.
    back: Vec<f32>,
}

impl Linear {
    /// Rooms for the weights, to be filled by [`pack`](Self::pack).
    pub(super) fn weights(&self, goes_back: bool) -> LinearWeights {
        let back = if goes_back { self.n_in * self.n_out + SLACK } else { 0 };
        LinearWeights {
            forward: vec![0.0; self.n_in * padded(self.n_out) + SLACK],
            bias: vec![0.0; padded(self.n_out) + SLACK],
            back: vec![0.0; back],
        }
    }

    /// Takes `weight`, `[n_out, n_in]`, and `bias`, `[n_out]`.
    pub(super) fn pack(&self, weight: &[f32], bias: &[f32], weights: &mut LinearWeights) {
        /// Outputs that are written beside each other: a line of the cache.
        const BLOCK: usize = 16;
        let n_out_padded = padded(self.n_out);
        weights.bias[..self.n_out].copy_from_slice(bias);
        if !weights.back.is_empty() {
            weights.back[..weight.len()].copy_from_slice(weight);
        }
        for (block, weight) in weight.chunks(BLOCK * self.n_in).enumerate() {
            if let Ok(rows) = <[&[f32]; BLOCK]>::try_from(
                weight.chunks_exact(self.n_in).collect::<Vec<_>>().as_slice(),
            ) {
                let columns = weights.forward[block * BLOCK..].chunks_mut(n_out_padded);
                for (input, column) in columns.take(self.n_in).enumerate() {
                    for (value, row) in column[..BLOCK].iter_mut().zip(rows) {
                        *value = row[input];
                    }
                }
            } else {
                for (out, row) in weight.chunks_exact(self.n_in).enumerate() {
                    for (input, value) in row.iter().enumerate() {
                        weights.forward[input * n_out_padded + block * BLOCK + out] = *value;
                    }
                }
            }
        }
    }

    pub(super) fn forward(
        &self,
        level: Level,
        weights: &LinearWeights,
        input: &[f32],
        n: usize,
        output: &mut [f32],
    ) {
        let product = Product {
            m: n,
            n: self.n_out,
            k: self.n_in,
            n_segments: 1,
            a: input,
            a_rows: Rows::Apart(self.n_in),
            a_step: 1,
            a_segment: 0,
            b: &weights.forward,
            b_row: padded(self.n_out),
            b_segment: 0,
            start: Some(&weights.bias),
            c_rows: Rows::Apart(self.n_out),
            adds: false,
        };
        product.write(level, output);
    }

    /// Writes the gradient of the weight, `[n_out, n_in]`, summed over the examples.
    pub(super) fn weight_gradient(
        &self,
        level: Level,
        input: &[f32],
        d: &[f32],
        n: usize,
        sum: &mut [f32],
    ) {
        let product = Product {
            m: self.n_out,
            n: self.n_in,
            k: n,
            n_segments: 1,
            a: d,
            a_rows: Rows::Apart(1),
            a_step: self.n_out,
            a_segment: 0,
            b: input,
            b_row: self.n_in,
            b_segment: 0,
            start: None,
            c_rows: Rows::Apart(self.n_in),
            adds: false,
        };
        product.write(level, sum);
    }

    /// Writes the gradient of the bias, `[n_out]`, summed over the examples.
    pub(super) fn bias_gradient(&self, level: Level, d: &[f32], n: usize, sum: &mut [f32]) {
        sum[..self.n_out].fill(0.0);
        dispatch!(level, simd => add_rows(simd, d, n, self.n_out, sum));
    }

    pub(super) fn input_gradient(
        &self,
        level: Level,
        weights: &LinearWeights,
        d: &[f32],
        n: usize,
        d_input: &mut [f32],
    ) {
        let product = Product {
            m: n,
            n: self.n_in,
            k: self.n_out,
            n_segments: 1,
            a: d,
            a_rows: Rows::Apart(self.n_out),
            a_step: 1,
            a_segment: 0,
            b: &weights.back,
            b_row: self.n_in,
            b_segment: 0,
            start: None,
            c_rows: Rows::Apart(self.n_in),
            adds: false,
        };
        product.write(level, d_input);
    }
}
