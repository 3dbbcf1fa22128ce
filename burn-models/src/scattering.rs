//! Wavelet scattering: convolutions with fixed Morlet wavelets, the modulus, and a mean over place
//! (Bruna & Mallat 2013, <https://arxiv.org/abs/1203.1513>), to order two.
//!
//! Filters, borders and the order of channels are those of Kymatio 0.3 (Andreux et al. 2020), so
//! that features can be compared; a test does.  All in the Fourier domain, one example at a time.

use std::f64::consts::PI;
use std::sync::Arc;

use rustfft::num_complex::Complex;
use rustfft::{Fft, FftPlanner};

/// What PyTorch adds to a variance before it divides by its root.
const NORM_EPSILON: f64 = 1e-5;
/// Copies of a filter on each side that its periodic form sums, as many as Kymatio.
const N_COPIES: i32 = 2;

/// A scattering transform for images of one size.
pub(crate) struct Scattering {
    scales: usize,
    angles: usize,
    norm_groups: Option<usize>,
    /// Channels, height and width of an example.
    input: [usize; 3],
    padded: [usize; 2],
    /// At each resolution `r`, from full to 2^-scales.
    grids: Vec<Grid>,
    /// `wavelets[j * angles + angle][r]`: scale `j` at resolution `r <= j`.
    wavelets: Vec<Vec<Vec<f32>>>,
    /// `low_pass[r]`.
    low_pass: Vec<Vec<f32>>,
}

/// Discrete Fourier transforms of images `[height, width]`.
///
/// A spectrum is kept as `[width, height]`, which saves a transposition each way. No transform
/// divides by the number of points; filters do.
struct Grid {
    height: usize,
    width: usize,
    /// Forward and inverse, along a row and along a column.
    along_row: [Arc<dyn Fft<f32>>; 2],
    along_column: [Arc<dyn Fft<f32>>; 2],
}

/// Memory that transforms need, kept from one to the next.
#[derive(Default)]
struct Scratch {
    transposed: Vec<Complex<f32>>,
    fft: Vec<Complex<f32>>,
}

impl Scattering {
    /// The transform of `shape`, `[channels, height, width]`, whose sides are above 2^`scales`;
    /// `norm_groups` divides the number of output channels.
    pub(crate) fn new(
        scales: usize,
        angles: usize,
        norm_groups: Option<usize>,
        shape: &[usize],
    ) -> Self {
        let &[channels, height, width] = shape else {
            unreachable!("ModelSpec::manifest has checked the front's input")
        };
        let step = 1 << scales;
        // One coefficient more on each side, whose border effects are then cut off.
        let padded = [height, width].map(|side| (side / step + 2) * step);
        let mut planner = FftPlanner::new();
        let grids: Vec<Grid> =
            (0..=scales).map(|r| Grid::new(padded[0] >> r, padded[1] >> r, &mut planner)).collect();
        let spectrum = |filter: Vec<Complex<f64>>| {
            let mut filter: Vec<Complex<f32>> =
                filter.iter().map(|z| Complex::new(z.re as f32, z.im as f32)).collect();
            grids[0].forward(&mut filter, &mut Scratch::default());
            // Real, because the filter is symmetric up to conjugation.
            filter.iter().map(|z| z.re).collect::<Vec<f32>>()
        };
        let at = |spectrum: &[f32], r| grids[0].at_resolution(spectrum, r);
        let mut wavelets = Vec::with_capacity(scales * angles);
        for j in 0..scales {
            for angle in 0..angles {
                let spectrum = spectrum(morlet(padded, j, angle, angles));
                wavelets.push((0..=j).map(|r| at(&spectrum, r)).collect());
            }
        }
        let sigma = 0.8 * f64::from(1u32 << (scales - 1));
        let low = spectrum(gabor(padded, sigma, 0.0, 0.0, 1.0));
        let low_pass = (0..scales).map(|r| at(&low, r)).collect();
        Self {
            scales,
            angles,
            norm_groups,
            input: [channels, height, width],
            padded,
            grids,
            wavelets,
            low_pass,
        }
    }

    /// Features of `examples`, `[n, channels, height, width]`: `[n, channels * paths, height /
    /// 2^scales, width / 2^scales]`. For each channel the mean, then the wavelets of order one by
    /// scale and angle, then those of order two.
    pub(crate) fn features(&self, examples: &[f32]) -> Vec<f32> {
        let [channels, height, width] = self.input;
        let mut features = Vec::new();
        let mut scratch = Scratch::default();
        for example in examples.chunks_exact(channels * height * width) {
            let start = features.len();
            for image in example.chunks_exact(height * width) {
                self.push_paths(image, &mut features, &mut scratch);
            }
            if let Some(groups) = self.norm_groups {
                let example = &mut features[start..];
                let group = example.len() / groups;
                example.chunks_exact_mut(group).for_each(normalise);
            }
        }
        features
    }

    fn push_paths(&self, image: &[f32], features: &mut Vec<f32>, scratch: &mut Scratch) {
        let mut whole = self.pad(image);
        self.grids[0].forward(&mut whole, scratch);
        self.push_low(&whole, 0, 1, features, scratch);
        let mut second = Vec::new();
        for (n1, wavelet) in self.wavelets.iter().enumerate() {
            let j1 = n1 / self.angles;
            let mut first = self.grids[0].filter(&whole, &wavelet[0], j1);
            self.grids[j1].inverse(&mut first, scratch);
            first.iter_mut().for_each(|z| *z = Complex::new(z.norm(), 0.0));
            self.grids[j1].forward(&mut first, scratch);
            self.push_low(&first, j1, 1, features, scratch);

            let later = &self.wavelets[(j1 + 1) * self.angles..];
            for (j2, wavelets) in (j1 + 1..).zip(later.chunks_exact(self.angles)) {
                // Moduli are real and so is the last filter: two angles share one transform.
                for pair in wavelets.chunks(2) {
                    let mut moduli: Vec<Complex<f32>> = Vec::new();
                    for (part, wavelet) in pair.iter().enumerate() {
                        let mut image = self.grids[j1].filter(&first, &wavelet[j1], j2 - j1);
                        self.grids[j2].inverse(&mut image, scratch);
                        if part == 0 {
                            moduli = image.iter().map(|z| Complex::new(z.norm(), 0.0)).collect();
                        } else {
                            moduli.iter_mut().zip(image).for_each(|(m, z)| m.im = z.norm());
                        }
                    }
                    self.grids[j2].forward(&mut moduli, scratch);
                    self.push_low(&moduli, j2, pair.len(), &mut second, scratch);
                }
            }
        }
        features.extend(second);
    }

    /// Appends the means over place of an image at resolution `r`, from its spectrum; where
    /// `n_images` is 2, the spectrum is that of one image plus i times another.
    fn push_low(
        &self,
        spectrum: &[Complex<f32>],
        r: usize,
        n_images: usize,
        features: &mut Vec<f32>,
        scratch: &mut Scratch,
    ) {
        let mut means = self.grids[r].filter(spectrum, &self.low_pass[r], self.scales - r);
        let grid = &self.grids[self.scales];
        grid.inverse(&mut means, scratch);
        for part in 0..n_images {
            for row in means.chunks_exact(grid.width).skip(1).take(grid.height - 2) {
                let inner = &row[1..grid.width - 1];
                features.extend(inner.iter().map(|z| if part == 0 { z.re } else { z.im }));
            }
        }
    }

    /// `image` with reflections at its borders.
    fn pad(&self, image: &[f32]) -> Vec<Complex<f32>> {
        let [_, height, width] = self.input;
        let source = |place: usize, padded: usize, side: usize| {
            let place = place as isize - ((padded - side) / 2) as isize;
            let last = side as isize - 1;
            (last - (last - place.abs()).abs()) as usize
        };
        let mut values = Vec::with_capacity(self.padded[0] * self.padded[1]);
        for y in 0..self.padded[0] {
            let row = source(y, self.padded[0], height) * width;
            for x in 0..self.padded[1] {
                values.push(Complex::new(image[row + source(x, self.padded[1], width)], 0.0));
            }
        }
        values
    }
}

impl Grid {
    fn new(height: usize, width: usize, planner: &mut FftPlanner<f32>) -> Self {
        let mut plans = |n| [planner.plan_fft_forward(n), planner.plan_fft_inverse(n)];
        Self { height, width, along_row: plans(width), along_column: plans(height) }
    }

    /// Image to spectrum, in place.
    fn forward(&self, data: &mut Vec<Complex<f32>>, scratch: &mut Scratch) {
        scratch.process(&*self.along_row[0], data);
        scratch.transpose(data, self.width);
        scratch.process(&*self.along_column[0], data);
    }

    /// Spectrum to image times its number of points, in place.
    fn inverse(&self, data: &mut Vec<Complex<f32>>, scratch: &mut Scratch) {
        scratch.process(&*self.along_column[1], data);
        scratch.transpose(data, self.height);
        scratch.process(&*self.along_row[1], data);
    }

    /// Multiplies a spectrum by a filter and keeps every 2^`halvings`-th point of the image: a fold
    /// of the spectrum.
    fn filter(
        &self,
        spectrum: &[Complex<f32>],
        filter: &[f32],
        halvings: usize,
    ) -> Vec<Complex<f32>> {
        let (width, height) = (self.width >> halvings, self.height >> halvings);
        let mut folded = vec![Complex::new(0.0, 0.0); width * height];
        let columns = spectrum.chunks_exact(self.height).zip(filter.chunks_exact(self.height));
        for (x, (spectrum, filter)) in columns.enumerate() {
            let folded = &mut folded[x % width * height..][..height];
            let parts = spectrum.chunks_exact(height).zip(filter.chunks_exact(height));
            for (spectrum, filter) in parts {
                for ((sum, z), factor) in folded.iter_mut().zip(spectrum).zip(filter) {
                    *sum += z * factor;
                }
            }
        }
        folded
    }

    /// The spectrum of a filter at 2^-`r` of this grid's resolution, divided by the number of points
    /// there: its low frequencies, without the middle ones that would fold into them.
    fn at_resolution(&self, spectrum: &[f32], r: usize) -> Vec<f32> {
        let (width, height) = (self.width >> r, self.height >> r);
        let low = |frequency: usize, side: usize, cut: usize| {
            let start = cut / 2;
            r == 0 || !(start..start + side - cut).contains(&frequency)
        };
        let mut filter = vec![0.0; width * height];
        for x in (0..self.width).filter(|x| low(*x, self.width, width)) {
            for y in (0..self.height).filter(|y| low(*y, self.height, height)) {
                filter[x % width * height + y % height] += spectrum[x * self.height + y];
            }
        }
        let n_points = (width * height) as f32;
        filter.iter().map(|value| value / n_points).collect()
    }
}

impl Scratch {
    fn process(&mut self, fft: &dyn Fft<f32>, data: &mut [Complex<f32>]) {
        let needed = fft.get_inplace_scratch_len();
        if self.fft.len() < needed {
            self.fft.resize(needed, Complex::default());
        }
        fft.process_with_scratch(data, &mut self.fft[..needed]);
    }

    /// Turns rows of `width` values into columns.
    fn transpose(&mut self, data: &mut Vec<Complex<f32>>, width: usize) {
        let height = data.len() / width;
        self.transposed.clear();
        for x in 0..width {
            self.transposed.extend((0..height).map(|y| data[y * width + x]));
        }
        std::mem::swap(data, &mut self.transposed);
    }
}

/// A Gaussian wave on a torus of `sides`, `[height, width]`: `exp(−u'Au / 2σ² + iξ·u)`, its axis
/// across the wave longer by `1 / slant`.
fn gabor(sides: [usize; 2], sigma: f64, theta: f64, xi: f64, slant: f64) -> Vec<Complex<f64>> {
    let (cos, sin) = (theta.cos(), theta.sin());
    let shape = slant * slant;
    let [yy, xy, xx] = [
        cos * cos + shape * sin * sin,
        2.0 * cos * sin * (1.0 - shape),
        sin * sin + shape * cos * cos,
    ]
    .map(|curvature| curvature / (2.0 * sigma * sigma));
    let norm = 2.0 * PI * sigma * sigma / slant;
    let mut values = Vec::with_capacity(sides[0] * sides[1]);
    for row in 0..sides[0] {
        for column in 0..sides[1] {
            let mut sum = Complex::new(0.0, 0.0);
            for copy_y in -N_COPIES..=N_COPIES {
                for copy_x in -N_COPIES..=N_COPIES {
                    let y = row as f64 + f64::from(copy_y) * sides[0] as f64;
                    let x = column as f64 + f64::from(copy_x) * sides[1] as f64;
                    let envelope = (-(yy * y * y + xy * y * x + xx * x * x)).exp();
                    sum += Complex::from_polar(envelope, xi * (y * cos + x * sin));
                }
            }
            values.push(sum / norm);
        }
    }
    values
}

/// A Morlet wavelet of scale `j`: a Gaussian wave less a multiple of its envelope, so that its mean
/// is zero.
fn morlet(sides: [usize; 2], j: usize, angle: usize, angles: usize) -> Vec<Complex<f64>> {
    let scale = f64::from(1u32 << j);
    let n_angles = angles as f64;
    let theta = ((n_angles / 2.0 - 1.0).trunc() - angle as f64) * PI / n_angles;
    let (sigma, slant) = (0.8 * scale, 4.0 / n_angles);
    let wave = gabor(sides, sigma, theta, 0.75 * PI / scale, slant);
    let envelope = gabor(sides, sigma, theta, 0.0, slant);
    let ratio = wave.iter().sum::<Complex<f64>>() / envelope.iter().sum::<Complex<f64>>();
    wave.into_iter().zip(envelope).map(|(wave, envelope)| wave - ratio * envelope).collect()
}

/// Brings a group of values to mean zero and variance one.
fn normalise(group: &mut [f32]) {
    let n = group.len() as f64;
    let mean = group.iter().map(|value| f64::from(*value)).sum::<f64>() / n;
    let variance = group.iter().map(|value| (f64::from(*value) - mean).powi(2)).sum::<f64>() / n;
    let factor = 1.0 / (variance + NORM_EPSILON).sqrt();
    group.iter_mut().for_each(|value| *value = ((f64::from(*value) - mean) * factor) as f32);
}

#[cfg(test)]
mod tests;
