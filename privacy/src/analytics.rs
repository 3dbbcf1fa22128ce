//! Statistics of the data, released once, before training: counts, histograms, means, variances and
//! quantiles, with which a plan can normalise features without a private statistic in clear.
//!
//! Every query sums whole numbers over records. What one record adds is computed here, from the record
//! alone, and bounded here, so that the sensitivity is a property of this module and not of its
//! callers:
//!
//! | query | what a record adds | L2 norm at most |
//! |---|---|---|
//! | [`Query::Count`] | 1 | 1 |
//! | [`Query::LabelHistogram`] | 1 at its label | 1 |
//! | [`Query::Histogram`] | 1 in one bin | 1 |
//! | [`Query::Moments`] | h; for each of C channels a number in ±h and one in 0..h/2 | h √(1 + 5C/4) |
//!
//! with h = 2^(bits − 1) units. A privacy unit of k records can change a sum by k times that. The noise
//! is OpenDP's discrete Gaussian, ρ-zCDP by Canonne, Kamath and Steinke 2020, theorem 4; the ρ of all
//! queries together is divided evenly. What is estimated from noisy sums is post-processing.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{error::PrivacyError, noise::Noise, unit::PrivacyUnit};

/// Most queries of one plan.
const QUERIES_MAX: usize = 64;
/// Most values that the queries of one plan may release together.
const VALUES_MAX: u64 = 1 << 20;
/// The least standard deviation that is estimated, as a part of the range.
const STD_MIN: f64 = 1e-3;

/// One question about the data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Query {
    /// How many records there are.
    Count,
    /// How many records each class has.
    LabelHistogram,
    /// Mean and standard deviation of each channel (of each feature, where an example is a list of
    /// them), over all its values and all records.
    Moments {
        /// Values below count as this.
        lower: f64,
        /// Values above count as this.
        upper: f64,
    },
    /// How the records' values of one channel are distributed; a record with several values in the
    /// channel counts by their mean.
    Histogram {
        /// Which channel, or feature, from 0.
        channel: u32,
        /// Where the first bin starts; what lies below is counted in it.
        lower: f64,
        /// Where the last bin ends; what lies above is counted in it.
        upper: f64,
        /// Bins of equal width.
        bins: u32,
        /// Quantiles to estimate from the bins, each above 0 and below 1.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        quantiles: Vec<f64>,
    },
}

/// What is asked before training, and of what.  All of it is public.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnalyticsRequest {
    /// zCDP spent on all queries together.
    pub rho: f64,
    /// The questions.
    pub queries: Vec<Query>,
    /// Channels of an example; of a list of features, its length.
    pub n_channels: u64,
    /// Classes.
    pub n_classes: u64,
    /// Fineness of moments: values are counted in steps of 2^-bits of their range, 2 to 16.
    pub bits: u32,
}

/// What the noisy sums of one query say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Estimate {
    /// Number of records; noisy, and so perhaps negative.
    Count {
        /// The number.
        n: i64,
    },
    /// Number of records of each class; each noisy, and so perhaps negative.
    LabelHistogram {
        /// `[n_classes]`.
        counts: Vec<i64>,
    },
    /// Of each channel.
    Moments {
        /// `[n_channels]`, within the query's range.
        mean: Vec<f64>,
        /// `[n_channels]`, positive.
        std: Vec<f64>,
    },
    /// Of one channel.
    Histogram {
        /// `[bins]`; each noisy, and so perhaps negative.
        counts: Vec<i64>,
        /// `[quantiles]`, each with its value, interpolated within a bin.
        quantiles: Vec<(f64, f64)>,
    },
}

/// One line; long lists are cut.
impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn list<T>(values: &[T], show: impl Fn(&T) -> String) -> String {
            const SHOWN: usize = 12;
            let mut shown: Vec<String> = values.iter().take(SHOWN).map(show).collect();
            if values.len() > SHOWN {
                shown.push(format!("… {} in all", values.len()));
            }
            shown.join(", ")
        }
        match self {
            Self::Count { n } => write!(f, "count: {n}"),
            Self::LabelHistogram { counts } => {
                write!(f, "label histogram: {}", list(counts, ToString::to_string))
            }
            Self::Moments { mean, std } => {
                let pairs: Vec<(f64, f64)> =
                    mean.iter().copied().zip(std.iter().copied()).collect();
                write!(f, "mean ± std: {}", list(&pairs, |(m, s)| format!("{m:.4} ± {s:.4}")))
            }
            Self::Histogram { counts, quantiles } => {
                write!(f, "histogram: {}", list(counts, ToString::to_string))?;
                let quantiles = list(quantiles, |(q, value)| format!("{q}: {value:.4}"));
                if quantiles.is_empty() { Ok(()) } else { write!(f, "; quantiles {quantiles}") }
            }
        }
    }
}

impl AnalyticsRequest {
    /// Whether the request means anything.
    ///
    /// # Errors
    /// [`PrivacyError::Analytics`] says what to change.
    pub fn validate(&self) -> Result<(), PrivacyError> {
        let refuse = |reason: &'static str| Err(PrivacyError::Analytics { reason });
        if !(self.rho > 0.0 && self.rho.is_finite()) {
            return refuse("rho must be positive and finite");
        }
        if !(1..=QUERIES_MAX).contains(&self.queries.len()) {
            return refuse("ask 1 to 64 queries");
        }
        if self.n_channels == 0 || self.n_classes == 0 || !(2..=16).contains(&self.bits) {
            return refuse("there must be channels and classes, and bits must be 2 to 16");
        }
        for query in &self.queries {
            if let Query::Moments { lower, upper } | Query::Histogram { lower, upper, .. } = query
                && !(lower.is_finite()
                    && upper.is_finite()
                    && (upper - lower).is_finite()
                    && lower < upper)
            {
                return refuse("bounds must be finite and lower below upper");
            }
            if let Query::Histogram { channel, bins, quantiles, .. } = query {
                if u64::from(*channel) >= self.n_channels {
                    return refuse("a histogram's channel must be one of the data's, from 0");
                }
                if !(1..=65536).contains(bins) {
                    return refuse("a histogram has 1 to 65536 bins");
                }
                if quantiles.len() > 100 || quantiles.iter().any(|q| !(*q > 0.0 && *q < 1.0)) {
                    return refuse("quantiles lie above 0 and below 1; ask at most 100");
                }
            }
        }
        let total = self
            .queries
            .iter()
            .map(|query| self.n_values_of(query))
            .try_fold(0u64, u64::checked_add);
        if total.is_none_or(|total| total > VALUES_MAX) {
            return refuse("the queries release more than 2^20 values together");
        }
        Ok(())
    }

    /// Values that are released, of all queries together.
    pub fn n_values(&self) -> u64 {
        self.queries.iter().map(|query| self.n_values_of(query)).sum()
    }

    fn n_values_of(&self, query: &Query) -> u64 {
        match query {
            Query::Count => 1,
            Query::LabelHistogram => self.n_classes,
            Query::Moments { .. } => self.n_channels.saturating_mul(2).saturating_add(1),
            Query::Histogram { bins, .. } => u64::from(*bins),
        }
    }

    /// What one record can change the sums of `query` by, in L2 norm; rounded up.
    fn sensitivity_of(&self, query: &Query) -> f64 {
        match query {
            Query::Moments { .. } => {
                self.half_range() as f64 * (1.0 + 1.25 * self.n_channels as f64).sqrt().next_up()
            }
            Query::Count | Query::LabelHistogram | Query::Histogram { .. } => 1.0,
        }
    }

    /// The σ at which the sums of `query` are released, for `unit`; rounded up.
    pub(crate) fn sigma_of(&self, query: &Query, unit: PrivacyUnit) -> f64 {
        let rho = (self.rho / self.queries.len() as f64).next_down();
        let sensitivity = self.sensitivity_of(query) * f64::from(unit.records_max());
        (sensitivity.next_up() * (1.0 / (2.0 * rho)).next_up().sqrt().next_up()).next_up()
    }

    /// Half of a moment's range, in units.
    fn half_range(&self) -> i64 {
        1 << (self.bits - 1)
    }

    /// What the noisy `sums` say, `[n_values]`, of one client or added over several.
    ///
    /// # Errors
    /// [`PrivacyError::WrongLength`].
    pub fn estimate(&self, sums: &[i64]) -> Result<Vec<Estimate>, PrivacyError> {
        if sums.len() as u64 != self.n_values() {
            return Err(PrivacyError::WrongLength { expected: self.n_values(), got: sums.len() });
        }
        let mut rest = sums;
        let mut estimates = Vec::with_capacity(self.queries.len());
        for query in &self.queries {
            let (own, others) = rest.split_at(self.n_values_of(query) as usize);
            rest = others;
            estimates.push(match query {
                Query::Count => Estimate::Count { n: own[0] },
                Query::LabelHistogram => Estimate::LabelHistogram { counts: own.to_vec() },
                Query::Moments { lower, upper } => self.estimate_moments(own, *lower, *upper),
                Query::Histogram { lower, upper, quantiles, .. } => Estimate::Histogram {
                    counts: own.to_vec(),
                    quantiles: quantiles
                        .iter()
                        .map(|q| (*q, quantile(own, *lower, *upper, *q)))
                        .collect(),
                },
            });
        }
        Ok(estimates)
    }

    fn estimate_moments(&self, sums: &[i64], lower: f64, upper: f64) -> Estimate {
        let n = sums[0].max(self.half_range()) as f64;
        let (mut mean, mut std) = (Vec::new(), Vec::new());
        for pair in sums[1..].as_chunks::<2>().0 {
            // In halves of the range, around its middle.
            let first = (pair[0] as f64 / n).clamp(-1.0, 1.0);
            let second = (pair[1] as f64 / n * 2.0).clamp(0.0, 1.0);
            let variance = (second - first * first).max((2.0 * STD_MIN).powi(2));
            mean.push(lower + (upper - lower) * (first + 1.0) / 2.0);
            std.push((upper - lower) * variance.sqrt() / 2.0);
        }
        Estimate::Moments { mean, std }
    }
}

/// The value below which a part `q` of the counts lies.
fn quantile(counts: &[i64], lower: f64, upper: f64, q: f64) -> f64 {
    let width = (upper - lower) / counts.len() as f64;
    let total: f64 = counts.iter().map(|count| (*count).max(0) as f64).sum();
    let wanted = q * total;
    let mut below = 0.0;
    for (bin, count) in counts.iter().enumerate() {
        let count = (*count).max(0) as f64;
        if count > 0.0 && below + count >= wanted {
            return lower + width * (bin as f64 + (wanted - below) / count);
        }
        below += count;
    }
    // Nothing was counted at all: the middle tells nothing either way.
    lower + (upper - lower) * q
}

/// The sums of all queries over records, in clear: it leaves only through
/// [`PrivacyPlan::release_statistics`](crate::PrivacyPlan::release_statistics).
pub struct Tally {
    request: AnalyticsRequest,
    sums: Vec<i64>,
}

impl Tally {
    pub(crate) fn new(request: AnalyticsRequest) -> Self {
        let sums = vec![0; request.n_values() as usize];
        Self { request, sums }
    }

    /// Counts one record in.
    ///
    /// `features`: `[n_channels, values…]`, one channel after the other. What is not a number counts as the
    /// middle of a moment's range, and as the first bin.
    ///
    /// # Errors
    /// [`PrivacyError::WrongLength`] unless the features are a multiple of the channels and the label one
    /// of the classes.
    pub fn add(&mut self, features: &[f32], label: u32) -> Result<(), PrivacyError> {
        let n_channels = self.request.n_channels;
        let n_values = features.len() as u64 / n_channels;
        if n_values == 0 || n_values * n_channels != features.len() as u64 {
            return Err(PrivacyError::WrongLength { expected: n_channels, got: features.len() });
        }
        if u64::from(label) >= self.request.n_classes {
            return Err(PrivacyError::WrongLength {
                expected: self.request.n_classes,
                got: label as usize,
            });
        }
        let n_values = n_values as usize;
        let half = self.request.half_range();
        let mut at = 0;
        for query in &self.request.queries {
            let sums = &mut self.sums[at..];
            match query {
                Query::Count => sums[0] += 1,
                Query::LabelHistogram => sums[label as usize] += 1,
                Query::Moments { lower, upper } => {
                    sums[0] += half;
                    for (channel, pair) in
                        features.chunks_exact(n_values).zip(sums[1..].as_chunks_mut::<2>().0)
                    {
                        let (mut first, mut second) = (0.0, 0.0);
                        for value in channel {
                            let value = f64::from(*value).clamp(*lower, *upper);
                            // In halves of the range, around its middle.
                            let value = 2.0 * (value - lower) / (upper - lower) - 1.0;
                            let value = if value.is_nan() { 0.0 } else { value.clamp(-1.0, 1.0) };
                            first += value;
                            second += value * value;
                        }
                        let scale = half as f64 / n_values as f64;
                        pair[0] += ((first * scale).round() as i64).clamp(-half, half);
                        pair[1] += ((second * scale / 2.0).round() as i64).clamp(0, half / 2);
                    }
                }
                Query::Histogram { channel, lower, upper, bins, .. } => {
                    let start = *channel as usize * n_values;
                    let values = &features[start..start + n_values];
                    let mean =
                        values.iter().map(|value| f64::from(*value)).sum::<f64>() / n_values as f64;
                    let bin = f64::from(*bins) * (mean - lower) / (upper - lower);
                    // NaN becomes 0 by the cast.
                    sums[(bin.max(0.0) as usize).min(*bins as usize - 1)] += 1;
                }
            }
            at += self.request.n_values_of(query) as usize;
        }
        Ok(())
    }

    /// The sums with noise, `[n_values]`, held within the range of an `i32`, in which they travel.
    pub(crate) fn privatise(
        self,
        noise: &mut dyn Noise,
        unit: PrivacyUnit,
    ) -> Result<Vec<i32>, PrivacyError> {
        let mut sums = self.sums.iter();
        let mut released = Vec::with_capacity(self.sums.len());
        for query in &self.request.queries {
            let sigma = self.request.sigma_of(query, unit);
            for sum in sums.by_ref().take(self.request.n_values_of(query) as usize) {
                let noisy = noise.release_integer(*sum, sigma)?;
                released.push(noisy.clamp(i32::MIN.into(), i32::MAX.into()) as i32);
            }
        }
        Ok(released)
    }

    pub(crate) fn request(&self) -> &AnalyticsRequest {
        &self.request
    }
}

/// Shows no sum.
impl fmt::Debug for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tally").field("request", &self.request).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
