//! Convolution of images whose channels lie together, `[height, width, channels]`, without padding:
//! a window's row is then one run of values, and products read windows where they lie.

use fearless_simd::prelude::*;
use fearless_simd::{Level, Simd, dispatch};

use super::product::{Product, Rows, SLACK};
use super::strip::{One, Strip, Three};
use super::{LANES, padded};

/// Channels whose zeros are looked for at once.
const BLOCK: usize = 64;

/// A convolution of one example.
#[derive(Clone, Debug)]
pub(super) struct Conv {
    pub(super) n_in: usize,
    pub(super) n_out: usize,
    pub(super) kernel: usize,
    pub(super) stride: usize,
    /// Of the input, its padding included.
    pub(super) width: usize,
    pub(super) height_out: usize,
    pub(super) width_out: usize,
    /// Where each output's window begins in the input.
    windows: Vec<usize>,
    /// Where each of a window's values is, from its beginning.
    taps: Vec<usize>,
    /// Whether few enough gradients of the output are not zero to go through those alone.
    pub(super) is_sparse: bool,
}

/// The weights in the order in which a pass reads them.
#[derive(Clone, Debug)]
pub(super) struct ConvWeights {
    /// `[kernel, kernel, n_in, n_out]`, rows of whole vectors.
    forward: Vec<f32>,
    bias: Vec<f32>,
    /// `[n_out, kernel, kernel * n_in]`, rows of whole vectors; empty where nobody goes back.
    back: Vec<f32>,
}

impl Conv {
    pub(super) fn new(
        [n_in, height, width]: [usize; 3],
        n_out: usize,
        kernel: usize,
        stride: usize,
    ) -> Self {
        let side = |side: usize| (side - kernel) / stride + 1;
        let (height_out, width_out) = (side(height), side(width));
        let windows = (0..height_out)
            .flat_map(|y| (0..width_out).map(move |x| (y * width + x) * stride * n_in))
            .collect();
        let taps = (0..kernel)
            .flat_map(|y| (0..kernel * n_in).map(move |at| y * width * n_in + at))
            .collect();
        Self {
            n_in,
            n_out,
            kernel,
            stride,
            width,
            height_out,
            width_out,
            windows,
            taps,
            is_sparse: false,
        }
    }

    /// Chooses how to go back where the output's gradient is that of a max pool, of which one value
    /// in `share` is not zero. In vector operations on [`LANES`] lanes, whatever the machine has, so
    /// that every machine sums in the same order.
    pub(super) fn set_sparse(&mut self, share: usize, wants: bool) {
        let ways = 1 + usize::from(wants);
        let n_positions = self.windows.len();
        let row = self.kernel * self.n_in;
        let dense = n_positions
            * (self.kernel * row * self.n_out.div_ceil(LANES)
                + usize::from(wants) * self.kernel * row.div_ceil(LANES) * self.n_out);
        // Each reads and writes what it adds to, which a dense product keeps in registers.
        let sparse =
            2 * ways * n_positions * self.n_out / share * self.kernel * row.div_ceil(LANES);
        self.is_sparse = sparse < dense;
    }

    pub(super) fn n_positions(&self) -> usize {
        self.windows.len()
    }

    fn row(&self) -> usize {
        self.kernel * self.n_in
    }

    /// Rooms for the weights, to be filled by [`pack`](Self::pack).
    pub(super) fn weights(&self, goes_back: bool) -> ConvWeights {
        let back = self.n_out * self.kernel * padded(self.row()) + SLACK;
        ConvWeights {
            forward: vec![0.0; self.kernel * self.row() * padded(self.n_out) + SLACK],
            bias: vec![0.0; padded(self.n_out) + SLACK],
            back: if goes_back { vec![0.0; back] } else { Vec::new() },
        }
    }

    /// Takes `weight`, `[n_out, n_in, kernel, kernel]`, and `bias`, `[n_out]`.
    pub(super) fn pack(&self, weight: &[f32], bias: &[f32], weights: &mut ConvWeights) {
        let (n_out_padded, row_padded) = (padded(self.n_out), padded(self.row()));
        weights.bias[..self.n_out].copy_from_slice(bias);
        for (out, weight) in weight.chunks_exact(self.n_in * self.kernel * self.kernel).enumerate()
        {
            for (channel, weight) in weight.chunks_exact(self.kernel * self.kernel).enumerate() {
                for (y, weight) in weight.chunks_exact(self.kernel).enumerate() {
                    for (x, value) in weight.iter().enumerate() {
                        let at = x * self.n_in + channel;
                        weights.forward[(y * self.row() + at) * n_out_padded + out] = *value;
                        if !weights.back.is_empty() {
                            weights.back[(out * self.kernel + y) * row_padded + at] = *value;
                        }
                    }
                }
            }
        }
    }

    pub(super) fn forward(
        &self,
        level: Level,
        weights: &ConvWeights,
        input: &[f32],
        output: &mut [f32],
    ) {
        let product = Product {
            m: self.n_positions(),
            n: self.n_out,
            k: self.row(),
            n_segments: self.kernel,
            a: input,
            a_rows: Rows::At(&self.windows),
            a_step: 1,
            a_segment: self.width * self.n_in,
            b: &weights.forward,
            b_row: padded(self.n_out),
            b_segment: self.row() * padded(self.n_out),
            start: Some(&weights.bias),
            c_rows: Rows::Apart(self.n_out),
            adds: false,
        };
        product.write(level, output);
    }

    /// Length of the sums that [`back`](Self::back) adds to: weights in an order of their own, then
    /// biases.
    pub(super) fn n_sums(&self) -> usize {
        self.n_weight_sums() + padded(self.n_out)
    }

    fn n_weight_sums(&self) -> usize {
        if self.is_sparse {
            self.n_out * self.kernel * padded(self.row())
        } else {
            self.kernel * self.row() * padded(self.n_out)
        }
    }

    /// Adds the gradients of weights and biases to `sums`, and that of the input to `d_input` if it
    /// is given, from the output's, `d`.
    pub(super) fn back(
        &self,
        level: Level,
        weights: &ConvWeights,
        input: &[f32],
        d: &[f32],
        sums: Option<&mut [f32]>,
        d_input: Option<&mut [f32]>,
    ) {
        let sums = sums.map(|sums| sums.split_at_mut(self.n_weight_sums()));
        match (self.is_sparse, sums, d_input) {
            (true, Some((sums, biases)), Some(d_input)) => dispatch!(level, simd => {
                back_sparse::<_, true>(simd, self, &weights.back, input, d, sums, biases, d_input)
            }),
            (true, Some((sums, biases)), None) => dispatch!(level, simd => {
                back_sparse::<_, false>(simd, self, &[], input, d, sums, biases, &mut [])
            }),
            (_, sums, d_input) => {
                if let Some((sums, biases)) = sums {
                    self.add_weight_gradient(level, input, d, sums);
                    dispatch!(level, simd => add_rows(simd, d, self.n_positions(), self.n_out, biases));
                }
                if let Some(d_input) = d_input {
                    self.add_input_gradient(level, weights, d, d_input);
                }
            }
        }
    }

    fn add_weight_gradient(&self, level: Level, input: &[f32], d: &[f32], sums: &mut [f32]) {
        let product = Product {
            m: self.taps.len(),
            n: self.n_out,
            k: self.width_out,
            n_segments: self.height_out,
            a: input,
            a_rows: Rows::At(&self.taps),
            a_step: self.stride * self.n_in,
            a_segment: self.stride * self.width * self.n_in,
            b: d,
            b_row: self.n_out,
            b_segment: self.width_out * self.n_out,
            start: None,
            c_rows: Rows::Apart(padded(self.n_out)),
            adds: true,
        };
        product.write(level, sums);
    }

    fn add_input_gradient(
        &self,
        level: Level,
        weights: &ConvWeights,
        d: &[f32],
        d_input: &mut [f32],
    ) {
        let row_padded = padded(self.row());
        // One value of a window after the other: the rows of such a product do not overlap, so the
        // order in which they are added does not depend on the product's tiles.
        for (y, x) in (0..self.kernel).flat_map(|y| (0..self.kernel).map(move |x| (y, x))) {
            let product = Product {
                m: self.n_positions(),
                n: self.n_in,
                k: self.n_out,
                n_segments: 1,
                a: d,
                a_rows: Rows::Apart(self.n_out),
                a_step: 1,
                a_segment: 0,
                b: &weights.back[y * row_padded + x * self.n_in..],
                b_row: self.kernel * row_padded,
                b_segment: 0,
                start: None,
                c_rows: Rows::At(&self.windows),
                adds: true,
            };
            product.write(level, &mut d_input[(y * self.width + x) * self.n_in..]);
        }
    }

    /// Writes what [`back`](Self::back) summed as `weight`, `[n_out, n_in, kernel, kernel]`, and
    /// `bias`, `[n_out]`.
    pub(super) fn unpack(&self, sums: &[f32], weight: &mut [f32], bias: &mut [f32]) {
        let (sums, biases) = sums.split_at(self.n_weight_sums());
        bias.copy_from_slice(&biases[..self.n_out]);
        let (n_out_padded, row_padded) = (padded(self.n_out), padded(self.row()));
        for (out, weight) in
            weight.chunks_exact_mut(self.n_in * self.kernel * self.kernel).enumerate()
        {
            for (channel, weight) in weight.chunks_exact_mut(self.kernel * self.kernel).enumerate()
            {
                for (y, weight) in weight.chunks_exact_mut(self.kernel).enumerate() {
                    for (x, value) in weight.iter_mut().enumerate() {
                        let at = x * self.n_in + channel;
                        *value = if self.is_sparse {
                            sums[(out * self.kernel + y) * row_padded + at]
                        } else {
                            sums[(y * self.row() + at) * n_out_padded + out]
                        };
                    }
                }
            }
        }
    }
}

/// Adds `n_rows` rows of `n` values of `rows`, which [`SLACK`] values follow, to `sums`.
pub(super) fn add_rows<S: Simd>(simd: S, rows: &[f32], n_rows: usize, n: usize, sums: &mut [f32]) {
    /// Sums that run beside each other, so that none waits for the one before.
    const N: usize = 4;
    simd.vectorize(
        #[inline(always)]
        || {
            let width = S::f32s::LEN;
            for (i, sums) in sums[..n].chunks_mut(width).enumerate() {
                let mut parts = [S::f32s::splat(simd, 0.0); N];
                for first in (0..n_rows).step_by(N) {
                    for (part, row) in parts.iter_mut().zip(first..n_rows) {
                        let at = row * n + i * width;
                        *part += S::f32s::from_slice(simd, &rows[at..at + width]);
                    }
                }
                let sum = (parts[0] + parts[1]) + (parts[2] + parts[3]);
                One::of(sum).write(simd, true, sums);
            }
        },
    );
}

/// The way back through the gradients `d` that are not zero.
#[expect(clippy::too_many_arguments, reason = "called in one place")]
fn back_sparse<S: Simd, const WANTS: bool>(
    simd: S,
    conv: &Conv,
    weights: &[f32],
    input: &[f32],
    d: &[f32],
    sums: &mut [f32],
    biases: &mut [f32],
    d_input: &mut [f32],
) {
    simd.vectorize(
        #[inline(always)]
        || {
            let width = S::f32s::LEN;
            let zero = S::f32s::splat(simd, 0.0);
            let row_padded = padded(conv.row());
            for (position, window) in conv.windows.iter().enumerate() {
                for first in (0..conv.n_out).step_by(BLOCK) {
                    let n = BLOCK.min(conv.n_out - first);
                    let d = &d[position * conv.n_out + first..];
                    let mut hits = 0;
                    for lane in (0..n).step_by(width) {
                        let values = S::f32s::from_slice(simd, &d[lane..lane + width]);
                        hits |= values.simd_ne(zero).to_bitmask() << lane;
                    }
                    hits &= u64::MAX >> (BLOCK - n);
                    if hits == 0 {
                        continue;
                    }
                    let mut rest = hits;
                    while rest != 0 {
                        let out = rest.trailing_zeros() as usize;
                        biases[first + out] += d[out];
                        rest &= rest - 1;
                    }
                    for y in 0..conv.kernel {
                        let seen = Seen {
                            hits,
                            d,
                            row: (first * conv.kernel + y) * row_padded,
                            from_row_to_row: conv.kernel * row_padded,
                            input: window + y * conv.width * conv.n_in,
                            n: conv.row(),
                        };
                        let mut at = 0;
                        while at < conv.row() {
                            if row_padded - at >= 3 * width {
                                seen.add::<S, WANTS, Three<S>>(
                                    simd, at, weights, input, sums, d_input,
                                );
                                at += 3 * width;
                            } else {
                                seen.add::<S, WANTS, One<S>>(
                                    simd, at, weights, input, sums, d_input,
                                );
                                at += width;
                            }
                        }
                    }
                }
            }
        },
    );
}

/// One row of one window, and the gradients of the outputs that saw it.
struct Seen<'a> {
    /// A bit for each gradient that is not zero.
    hits: u64,
    d: &'a [f32],
    /// Where the row is in the first output's weights.
    row: usize,
    from_row_to_row: usize,
    /// Where the row is in the input.
    input: usize,
    /// Its length.
    n: usize,
}

impl Seen<'_> {
    /// Takes the columns of `T` from `at` on.
    #[inline(always)]
    fn add<S: Simd, const WANTS: bool, T: Strip<S>>(
        &self,
        simd: S,
        at: usize,
        weights: &[f32],
        input: &[f32],
        sums: &mut [f32],
        d_input: &mut [f32],
    ) {
        let own = T::load(simd, &input[self.input + at..]);
        let mut d_own = T::zero(simd);
        let mut hits = self.hits;
        while hits != 0 {
            let out = hits.trailing_zeros() as usize;
            hits &= hits - 1;
            let d = S::f32s::splat(simd, self.d[out]);
            let row = self.row + out * self.from_row_to_row + at;
            let sums = &mut sums[row..][..T::LEN];
            T::load(simd, sums).add_product(d, own).write(simd, false, sums);
            if WANTS {
                d_own = d_own.add_product(d, T::load(simd, &weights[row..]));
            }
        }
        if WANTS {
            let n = T::LEN.min(self.n - at);
            d_own.write(simd, true, &mut d_input[self.input + at..][..n]);
        }
    }
}
