//! Normalisation of one example by itself: of groups of channels (Wu & He 2018), or of all values
//! of a list (Ba et al. 2016), which is one group of as many channels of one pixel.

/// Added to the variance, as in PyTorch.
const EPSILON: f32 = 1e-5;

/// To mean 0 and variance 1, then a scale and a shift of each channel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Norm {
    pub(super) pixels: usize,
    pub(super) channels: usize,
    pub(super) groups: usize,
}

impl Norm {
    /// Length of what [`forward`](Self::forward) saves of an example: normal values, then what each
    /// group's were multiplied by.
    pub(super) fn n_saved(&self) -> usize {
        self.pixels * self.channels + self.groups
    }

    pub(super) fn forward(
        &self,
        weight: &[f32],
        bias: &[f32],
        input: &[f32],
        output: &mut [f32],
        saved: &mut [f32],
    ) {
        let (normal, scales) = saved[..self.n_saved()].split_at_mut(self.pixels * self.channels);
        let input = &input[..normal.len()];
        let means = self.by_channel(&self.group_means(&self.sums(input.iter().copied())));
        for (normal, input) in self.rows_mut(normal).zip(input.chunks_exact(self.channels)) {
            for ((normal, input), mean) in normal.iter_mut().zip(input).zip(&means) {
                *normal = input - mean;
            }
        }
        let variances = self.group_means(&self.sums(normal.iter().map(|value| value * value)));
        for (scale, variance) in scales.iter_mut().zip(variances) {
            *scale = 1.0 / (variance + EPSILON).sqrt();
        }
        let scales = self.by_channel(scales);
        let output = output[..normal.len()].chunks_exact_mut(self.channels);
        for (normal, output) in normal.chunks_exact_mut(self.channels).zip(output) {
            for (channel, (normal, output)) in normal.iter_mut().zip(output).enumerate() {
                *normal *= scales[channel];
                *output = *normal * weight[channel] + bias[channel];
            }
        }
    }

    /// Writes the gradient of the input to `d_input`, if it is given, and adds those of scale and
    /// shift, `[channels]` each, to `sums`, from the output's, `d`.
    pub(super) fn back(
        &self,
        weight: &[f32],
        saved: &[f32],
        d: &[f32],
        sums: Option<&mut [f32]>,
        d_input: Option<&mut [f32]>,
    ) {
        let (normal, scales) = saved[..self.n_saved()].split_at(self.pixels * self.channels);
        let d = &d[..normal.len()];
        let weights = self.sums(d.iter().zip(normal).map(|(d, normal)| d * normal));
        let biases = self.sums(d.iter().copied());
        if let Some(sums) = sums {
            for (sum, value) in sums.iter_mut().zip(weights.iter().chain(&biases)) {
                *sum += value;
            }
        }
        let Some(d_input) = d_input else { return };
        let weighted = |sums: &[f32]| -> Vec<f32> {
            let products: Vec<f32> = sums.iter().zip(weight).map(|(sum, w)| sum * w).collect();
            self.by_channel(&self.group_means(&products))
        };
        let (along, mean) = (weighted(&weights), weighted(&biases));
        let scales = self.by_channel(scales);
        let rows = d.chunks_exact(self.channels).zip(normal.chunks_exact(self.channels));
        for (d_input, (d, normal)) in self.rows_mut(d_input).zip(rows) {
            for (channel, d_input) in d_input.iter_mut().enumerate() {
                let d = d[channel] * weight[channel] - mean[channel];
                *d_input = (d - normal[channel] * along[channel]) * scales[channel];
            }
        }
    }

    fn rows_mut<'a>(&self, values: &'a mut [f32]) -> impl Iterator<Item = &'a mut [f32]> {
        values[..self.pixels * self.channels].chunks_exact_mut(self.channels)
    }

    /// Sum of each channel's values, `[channels]`.
    fn sums(&self, values: impl Iterator<Item = f32>) -> Vec<f32> {
        let mut sums = vec![0.0; self.channels];
        let mut values = values;
        for _ in 0..self.pixels {
            for (sum, value) in sums.iter_mut().zip(&mut values) {
                *sum += value;
            }
        }
        sums
    }

    /// Means of each group's values from the sums of each channel's, `[groups]`.
    fn group_means(&self, sums: &[f32]) -> Vec<f32> {
        let channels = self.channels / self.groups;
        let n = (channels * self.pixels) as f32;
        sums.chunks_exact(channels).map(|sums| sums.iter().sum::<f32>() / n).collect()
    }

    /// Each channel's value of those of groups, `[channels]`.
    fn by_channel(&self, groups: &[f32]) -> Vec<f32> {
        let channels = self.channels / self.groups;
        groups.iter().flat_map(|value| std::iter::repeat_n(*value, channels)).collect()
    }
}
