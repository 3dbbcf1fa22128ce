//! A mean over few runs and how far it can be trusted.

use serde::Serialize;

/// A mean with its 95 % confidence interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// How many values there were.
    pub n: usize,
    /// Their mean.
    pub mean: f64,
    /// Half the width of the 95 % confidence interval of the mean by Student's t, which takes the values
    /// for independent and normal; `None` for one value, which says nothing about its spread.
    pub half_width: Option<f64>,
}

impl Interval {
    /// Of `values`; `None` if there are none.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        let n = values.len();
        if n == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        let half_width = (n > 1).then(|| {
            let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
            let deviation = (squares / (n - 1) as f64).sqrt();
            quantile_975(n - 1) * deviation / (n as f64).sqrt()
        });
        Some(Self { n, mean, half_width })
    }
}

/// The 97.5 % quantile of Student's t distribution: a table, and beyond it the expansion of Cornish and
/// Fisher (Abramowitz & Stegun 26.7.5), which is right to four digits there.
fn quantile_975(n_degrees: usize) -> f64 {
    const TABLE: [f64; 30] = [
        12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010,
        2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860, 2.0796, 2.0739,
        2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
    ];
    if let Some(quantile) = n_degrees.checked_sub(1).and_then(|index| TABLE.get(index)) {
        return *quantile;
    }
    let (z, v) = (1.959_964_f64, n_degrees as f64);
    let first = (z.powi(3) + z) / 4.0;
    let second = (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0;
    z + first / v + second / (v * v)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_students() {
        // scipy.stats.t.ppf(0.975, n)
        for (n, expected) in
            [(1, 12.7062), (4, 2.7764), (30, 2.0423), (31, 2.0395), (60, 2.0003), (1000, 1.9623)]
        {
            assert!((quantile_975(n) - expected).abs() < 1e-4, "{n}");
        }
    }

    #[test]
    fn one_value_has_a_mean_and_no_interval() {
        assert_eq!(Interval::of(&[]), None);
        assert_eq!(Interval::of(&[0.5]).unwrap().half_width, None);
        // Mean 3, deviation sqrt(2.5): 2.7764 * sqrt(2.5 / 5).
        let five = Interval::of(&[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        assert_eq!((five.n, five.mean), (5, 3.0));
        assert!((five.half_width.unwrap() - 1.963_21).abs() < 1e-4);
        assert_eq!(Interval::of(&[2.0, 2.0]).unwrap().half_width, Some(0.0));
    }
}
