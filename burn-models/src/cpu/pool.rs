//! The largest or the mean value of square windows, of images whose channels lie together.

use fearless_simd::prelude::*;
use fearless_simd::{Level, Simd, dispatch};

use super::strip::{One, Strip};

/// Windows of one example's image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pool {
    pub(super) is_max: bool,
    pub(super) kernel: usize,
    pub(super) stride: usize,
    pub(super) channels: usize,
    pub(super) height: usize,
    pub(super) width: usize,
}

impl Pool {
    fn side_out(&self, side: usize) -> usize {
        (side - self.kernel) / self.stride + 1
    }

    pub(super) fn height_out(&self) -> usize {
        self.side_out(self.height)
    }

    pub(super) fn width_out(&self) -> usize {
        self.side_out(self.width)
    }

    /// Whether every value is in at most one window.
    fn is_apart(&self) -> bool {
        self.stride >= self.kernel
    }

    /// Windows' beginnings in input and output.
    #[inline(always)]
    fn windows(&self) -> impl Iterator<Item = (usize, usize)> {
        let (width, width_out, step) = (self.width, self.width_out(), self.stride * self.channels);
        let channels = self.channels;
        (0..self.height_out()).flat_map(move |y| {
            (0..width_out)
                .map(move |x| (y * width * step + x * step, (y * width_out + x) * channels))
        })
    }

    /// Where a window's values are, from its beginning.
    #[inline(always)]
    fn taps(&self) -> impl Iterator<Item = usize> {
        let (kernel, width, channels) = (self.kernel, self.width, self.channels);
        (0..kernel).flat_map(move |y| (0..kernel).map(move |x| (y * width + x) * channels))
    }

    /// Pools `input` into `output`; of the largest values it also writes to `chosen` which of the
    /// window's they were, the first of several equal ones; NaN where a window holds one.
    pub(super) fn forward(
        &self,
        level: Level,
        input: &[f32],
        output: &mut [f32],
        chosen: &mut [f32],
    ) {
        if self.is_max {
            dispatch!(level, simd => max(simd, *self, input, output, chosen));
        } else {
            dispatch!(level, simd => mean(simd, *self, input, output));
        }
    }

    /// The input's gradient from the output's, `d`.
    pub(super) fn back(&self, level: Level, d: &[f32], chosen: &[f32], d_input: &mut [f32]) {
        let n = self.height * self.width * self.channels;
        let covers = self.kernel == self.stride
            && self.height.is_multiple_of(self.stride)
            && self.width.is_multiple_of(self.stride);
        if !(self.is_max && covers) {
            d_input[..n].fill(0.0);
        }
        if self.is_max {
            dispatch!(level, simd => max_back(simd, *self, d, chosen, d_input));
        } else {
            dispatch!(level, simd => mean_back(simd, *self, d, d_input));
        }
    }
}

fn max<S: Simd>(simd: S, pool: Pool, input: &[f32], output: &mut [f32], chosen: &mut [f32]) {
    simd.vectorize(
        #[inline(always)]
        || {
            let width = S::f32s::LEN;
            for (from, to) in pool.windows() {
                for channel in (0..pool.channels).step_by(width) {
                    let n = width.min(pool.channels - channel);
                    let mut best = S::f32s::splat(simd, f32::NEG_INFINITY);
                    let mut which = S::f32s::splat(simd, 0.0);
                    for (number, tap) in pool.taps().enumerate() {
                        let at = from + channel + tap;
                        let value = S::f32s::from_slice(simd, &input[at..at + width]);
                        let is_better = value.simd_gt(best) | value.simd_ne(value);
                        best = is_better.select(value, best);
                        which = is_better.select(S::f32s::splat(simd, number as f32), which);
                    }
                    One::of(best).write(simd, false, &mut output[to + channel..to + channel + n]);
                    One::of(which).write(simd, false, &mut chosen[to + channel..to + channel + n]);
                }
            }
        },
    );
}

fn max_back<S: Simd>(simd: S, pool: Pool, d: &[f32], chosen: &[f32], d_input: &mut [f32]) {
    simd.vectorize(
        #[inline(always)]
        || {
            let width = S::f32s::LEN;
            let zero = S::f32s::splat(simd, 0.0);
            let is_apart = pool.is_apart();
            for (to, from) in pool.windows() {
                for channel in (0..pool.channels).step_by(width) {
                    let n = width.min(pool.channels - channel);
                    let at = from + channel;
                    let d = S::f32s::from_slice(simd, &d[at..at + width]);
                    let which = S::f32s::from_slice(simd, &chosen[at..at + width]);
                    for (number, tap) in pool.taps().enumerate() {
                        let is_it = which.simd_eq(S::f32s::splat(simd, number as f32));
                        let at = to + channel + tap;
                        let mut d = is_it.select(d, zero);
                        if !is_apart {
                            d += S::f32s::from_slice(simd, &d_input[at..at + width]);
                        }
                        One::of(d).write(simd, false, &mut d_input[at..at + n]);
                    }
                }
            }
        },
    );
}

fn mean<S: Simd>(simd: S, pool: Pool, input: &[f32], output: &mut [f32]) {
    simd.vectorize(
        #[inline(always)]
        || {
            let width = S::f32s::LEN;
            let share = 1.0 / (pool.kernel * pool.kernel) as f32;
            for (from, to) in pool.windows() {
                for channel in (0..pool.channels).step_by(width) {
                    let n = width.min(pool.channels - channel);
                    let mut sum = S::f32s::splat(simd, 0.0);
                    for tap in pool.taps() {
                        let at = from + channel + tap;
                        sum += S::f32s::from_slice(simd, &input[at..at + width]);
                    }
                    One::of(sum * share).write(
                        simd,
                        false,
                        &mut output[to + channel..to + channel + n],
                    );
                }
            }
        },
    );
}

fn mean_back<S: Simd>(simd: S, pool: Pool, d: &[f32], d_input: &mut [f32]) {
    simd.vectorize(
        #[inline(always)]
        || {
            let width = S::f32s::LEN;
            let share = 1.0 / (pool.kernel * pool.kernel) as f32;
            for (to, from) in pool.windows() {
                for channel in (0..pool.channels).step_by(width) {
                    let n = width.min(pool.channels - channel);
                    let at = from + channel;
                    let d = S::f32s::from_slice(simd, &d[at..at + width]) * share;
                    for tap in pool.taps() {
                        let at = to + channel + tap;
                        let sum = S::f32s::from_slice(simd, &d_input[at..at + width]) + d;
                        One::of(sum).write(simd, false, &mut d_input[at..at + n]);
                    }
                }
            }
        },
    );
}
