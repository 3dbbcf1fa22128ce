//! Chi-square tests for this crate's own tests.

/// The chi-square statistic over cells that expect at least 10, the rest pooled, and the number of
/// cells.
pub(crate) fn chi_square(observed: &[u64], expected: &[f64]) -> (f64, usize) {
    assert_eq!(observed.len(), expected.len());
    let (mut statistic, mut cells) = (0.0, 0);
    let mut pooled = (0.0, 0.0);
    for (&o, &e) in observed.iter().zip(expected) {
        if e >= 10.0 {
            statistic += (o as f64 - e).powi(2) / e;
            cells += 1;
        } else {
            pooled = (pooled.0 + o as f64, pooled.1 + e);
        }
    }
    if pooled.1 >= 5.0 {
        statistic += (pooled.0 - pooled.1).powi(2) / pooled.1;
        cells += 1;
    }
    (statistic, cells)
}

/// The two-sample chi-square statistic of equally large samples, and the number of cells; cells
/// with fewer than 20 in both together are pooled.
pub(crate) fn chi_square_two_samples(first: &[u64], second: &[u64]) -> (f64, usize) {
    let (mut statistic, mut cells) = (0.0, 0);
    let mut pooled = (0, 0);
    let cell = |a: u64, b: u64| (a as f64 - b as f64).powi(2) / (a + b) as f64;
    for (&a, &b) in first.iter().zip(second) {
        if a + b >= 20 {
            statistic += cell(a, b);
            cells += 1;
        } else {
            pooled = (pooled.0 + a, pooled.1 + b);
        }
    }
    if pooled.0 + pooled.1 >= 10 {
        statistic += cell(pooled.0, pooled.1);
        cells += 1;
    }
    (statistic, cells)
}

/// The chi-square value at `df` degrees of freedom that a fair sample exceeds as often as a normal
/// variable exceeds `z` (Wilson and Hilferty 1931). `z` 3.72 is 1e-4, 4.75 is 1e-6.
pub(crate) fn chi_square_limit(df: usize, z: f64) -> f64 {
    let k = 2.0 / (9.0 * df as f64);
    df as f64 * (1.0 - k + z * k.sqrt()).powi(3)
}
