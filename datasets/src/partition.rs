//! Splits of one data set over clients, for demonstrations and simulations.
//!
//! Seeded and the same on every machine: ChaCha20 for the bits, `libm` rather than the platform's
//! mathematical functions, which may differ in the last bit.

use chacha20::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

/// How often a split that leaves a client without rows is drawn again.
const N_DRAWS_MAX: u32 = 100;

/// How examples are divided over clients.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Partition {
    /// Shuffled and dealt out: every client sees every class, sizes differ by at most one.
    Iid,
    /// Each class is divided by proportions from a symmetric Dirichlet distribution (Hsu et al.
    /// 2019): the smaller `alpha`, the more the clients differ, in classes and in size.
    Dirichlet {
        /// Concentration; positive. 0.1 is extreme, 1 strong, 100 nearly even.
        alpha: f64,
    },
}

/// Why a split is impossible.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PartitionError {
    /// A Dirichlet distribution needs a positive, finite concentration.
    #[error("alpha {0} is not positive and finite; 0.1 is extreme, 100 nearly even")]
    Alpha(f64),
    /// Nothing or everything would be kept for testing.
    #[error("share {0} of the records for testing; it must be above 0 and below 1, such as 0.2")]
    Share(f64),
    /// No clients.
    #[error("a split over no clients; ask for at least one")]
    NoClients,
    /// Someone would have nothing.
    #[error("{n_clients} clients but {n_rows} rows; use fewer clients or more data")]
    TooFewRows {
        /// Clients asked for.
        n_clients: usize,
        /// Rows there are.
        n_rows: usize,
    },
    /// Every draw left a client with nothing.
    #[error("{n_draws} draws each left a client without rows; raise alpha or use fewer clients")]
    EmptyClient {
        /// Draws made.
        n_draws: u32,
    },
}

impl Partition {
    /// Divides the indices `0..labels.len()` over `n_clients`: each index exactly once, ascending
    /// within a client, no client empty. The same arguments give the same split everywhere.
    ///
    /// # Errors
    /// [`PartitionError`] if no such split exists or none was found.
    pub fn split(
        &self,
        labels: &[u32],
        n_clients: usize,
        seed: u64,
    ) -> Result<Vec<Vec<usize>>, PartitionError> {
        if n_clients == 0 {
            return Err(PartitionError::NoClients);
        }
        if let Self::Dirichlet { alpha } = *self
            && !(alpha > 0.0 && alpha.is_finite())
        {
            return Err(PartitionError::Alpha(alpha));
        }
        if n_clients > labels.len() {
            return Err(PartitionError::TooFewRows { n_clients, n_rows: labels.len() });
        }
        let mut key = [0; 32];
        key[..19].copy_from_slice(b"comity partition v1");
        key[24..].copy_from_slice(&seed.to_le_bytes());
        let mut rng = ChaCha20Rng::from_seed(key);
        match *self {
            Self::Iid => Ok(iid(labels.len(), n_clients, &mut rng)),
            Self::Dirichlet { alpha } => (0..N_DRAWS_MAX)
                .map(|_| dirichlet(labels, n_clients, alpha, &mut rng))
                .find(|clients| clients.iter().all(|rows| !rows.is_empty()))
                .ok_or(PartitionError::EmptyClient { n_draws: N_DRAWS_MAX }),
        }
    }
}

fn iid(n_rows: usize, n_clients: usize, rng: &mut ChaCha20Rng) -> Vec<Vec<usize>> {
    let mut rows: Vec<usize> = (0..n_rows).collect();
    shuffle(&mut rows, rng);
    let mut clients = vec![Vec::new(); n_clients];
    for (position, row) in rows.into_iter().enumerate() {
        clients[position % n_clients].push(row);
    }
    for rows in &mut clients {
        rows.sort_unstable();
    }
    clients
}

fn dirichlet(
    labels: &[u32],
    n_clients: usize,
    alpha: f64,
    rng: &mut ChaCha20Rng,
) -> Vec<Vec<usize>> {
    let mut by_class = std::collections::BTreeMap::<u32, Vec<usize>>::new();
    for (row, label) in labels.iter().enumerate() {
        by_class.entry(*label).or_default().push(row);
    }
    let mut clients = vec![Vec::new(); n_clients];
    for mut rows in by_class.into_values() {
        shuffle(&mut rows, rng);
        let shares = dirichlet_shares(n_clients, alpha, rng);
        let mut start = 0;
        let mut share_sum = 0.0;
        for (client, share) in clients.iter_mut().zip(&shares) {
            share_sum += share;
            let end = ((share_sum * rows.len() as f64).round() as usize).clamp(start, rows.len());
            client.extend_from_slice(&rows[start..end]);
            start = end;
        }
        // Rounding of the sum of shares must not lose a row.
        clients[n_clients - 1].extend_from_slice(&rows[start..]);
    }
    for rows in &mut clients {
        rows.sort_unstable();
    }
    clients
}

/// Shares that sum to one, from Gamma variates; in logarithms, because for a small `alpha` the
/// variates themselves are below the smallest `f64`.
fn dirichlet_shares(n: usize, alpha: f64, rng: &mut ChaCha20Rng) -> Vec<f64> {
    let logs: Vec<f64> = (0..n).map(|_| log_gamma_variate(alpha, rng)).collect();
    let largest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = logs.iter().map(|log| libm::exp(log - largest)).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

/// Logarithm of a Gamma(`alpha`, 1) variate; Marsaglia & Tsang 2000, with their boost for
/// `alpha < 1`: Gamma(a) = Gamma(a + 1) U^(1/a).
fn log_gamma_variate(alpha: f64, rng: &mut ChaCha20Rng) -> f64 {
    if alpha < 1.0 {
        return log_gamma_variate(alpha + 1.0, rng) + libm::log(open_unit(rng)) / alpha;
    }
    let d = alpha - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = normal_variate(rng);
        let v = 1.0 + c * x;
        if v <= 0.0 {
            continue;
        }
        let log_v = 3.0 * libm::log(v);
        let u = open_unit(rng);
        if libm::log(u) < 0.5 * x * x + d - d * v * v * v + d * log_v {
            return libm::log(d) + log_v;
        }
    }
}

/// Standard normal, by Marsaglia's polar method.
fn normal_variate(rng: &mut ChaCha20Rng) -> f64 {
    loop {
        let (x, y) = (2.0 * open_unit(rng) - 1.0, 2.0 * open_unit(rng) - 1.0);
        let s = x * x + y * y;
        if s > 0.0 && s < 1.0 {
            return x * (-2.0 * libm::log(s) / s).sqrt();
        }
    }
}

/// Uniform in the open interval (0, 1).
fn open_unit(rng: &mut ChaCha20Rng) -> f64 {
    ((rng.next_u64() >> 12) as f64 + 0.5) * (1.0 / (1u64 << 52) as f64)
}

/// Fisher–Yates.
fn shuffle(rows: &mut [usize], rng: &mut ChaCha20Rng) {
    for i in (1..rows.len()).rev() {
        rows.swap(i, below(i as u64 + 1, rng) as usize);
    }
}

/// Uniform in `0..n`, without bias (Lemire 2019).
fn below(n: u64, rng: &mut ChaCha20Rng) -> u64 {
    let threshold = n.wrapping_neg() % n;
    loop {
        let product = u128::from(rng.next_u64()) * u128::from(n);
        if product as u64 >= threshold {
            return (product >> 64) as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels(n: usize) -> Vec<u32> {
        (0..n).map(|i| (i * 7 % 10) as u32).collect()
    }

    fn assert_is_partition(clients: &[Vec<usize>], n_rows: usize) {
        let mut all: Vec<usize> = clients.concat();
        all.sort_unstable();
        assert_eq!(all, (0..n_rows).collect::<Vec<_>>());
        assert!(clients.iter().all(|rows| !rows.is_empty() && rows.is_sorted()));
    }

    proptest! {
        #[test]
        fn splits_are_partitions(
            n_rows in 1usize..400,
            n_clients in 1usize..12,
            alpha in prop_oneof![Just(0.001), Just(0.1), 0.2f64..200.0],
            seed: u64,
        ) {
            for partition in [Partition::Iid, Partition::Dirichlet { alpha }] {
                match partition.split(&labels(n_rows), n_clients, seed) {
                    Ok(clients) => {
                        prop_assert_eq!(clients.len(), n_clients);
                        assert_is_partition(&clients, n_rows);
                    }
                    Err(PartitionError::TooFewRows { .. }) => prop_assert!(n_clients > n_rows),
                    Err(error) => {
                        let gave_up = matches!(error, PartitionError::EmptyClient { .. });
                        prop_assert!(gave_up && partition != Partition::Iid, "{}", error);
                    }
                }
            }
        }
    }

    #[test]
    fn a_split_depends_on_the_seed_only() {
        let split = |seed| Partition::Dirichlet { alpha: 0.5 }.split(&labels(500), 3, seed);
        assert_eq!(split(1), split(1));
        assert_ne!(split(1), split(2));
    }

    /// Pinned, so that a published experiment can be repeated with a later version.
    #[test]
    fn splits_are_the_same_on_every_machine() {
        let sizes = |partition: Partition| -> Vec<usize> {
            partition.split(&labels(1000), 3, 7).unwrap().iter().map(Vec::len).collect()
        };
        assert_eq!(sizes(Partition::Iid), [334, 333, 333]);
        let first = &Partition::Dirichlet { alpha: 0.5 }.split(&labels(1000), 3, 7).unwrap()[0];
        assert_eq!(
            (sizes(Partition::Dirichlet { alpha: 0.5 }), &first[..4]),
            (vec![377, 211, 412], &[0, 1, 3, 5][..])
        );
    }

    #[test]
    fn a_large_alpha_is_nearly_even_and_a_small_one_is_not() {
        let largest = |alpha| {
            let clients = Partition::Dirichlet { alpha }.split(&labels(10_000), 4, 3).unwrap();
            clients.iter().map(Vec::len).max().unwrap()
        };
        assert!(largest(1e4) < 2_700);
        assert!(largest(0.2) > 2_900);
    }

    /// Mean and variance of Gamma(a) are both a. False alarm: 6 standard errors, below 1e-8.
    #[test]
    fn gamma_variates_have_the_right_mean() {
        let mut rng = ChaCha20Rng::from_seed([9; 32]);
        for alpha in [0.3, 1.0, 5.0] {
            let n = 40_000;
            let sum: f64 = (0..n).map(|_| libm::exp(log_gamma_variate(alpha, &mut rng))).sum();
            let mean = sum / f64::from(n);
            assert!((mean - alpha).abs() < 6.0 * (alpha / f64::from(n)).sqrt(), "{alpha}: {mean}");
        }
    }

    #[test]
    fn impossible_splits_are_refused() {
        let split = |partition: Partition, n| partition.split(&labels(5), n, 0);
        for alpha in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let error = split(Partition::Dirichlet { alpha }, 2).unwrap_err();
            assert!(matches!(error, PartitionError::Alpha(_)));
        }
        assert_eq!(split(Partition::Iid, 0), Err(PartitionError::NoClients));
        let error = split(Partition::Iid, 6).unwrap_err();
        assert_eq!(error, PartitionError::TooFewRows { n_clients: 6, n_rows: 5 });
        let error = Partition::Dirichlet { alpha: 1e-3 }.split(&[0; 50], 40, 0).unwrap_err();
        assert!(matches!(error, PartitionError::EmptyClient { .. }));
    }
}
