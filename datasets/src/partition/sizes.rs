//! Splits in which clients differ in size alone.

use chacha20::ChaCha20Rng;
use serde::{Deserialize, Serialize};

use super::draws::{dirichlet_shares, shuffle};

/// How many rows clients have.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Sizes {
    /// Shares from a symmetric Dirichlet distribution (Li et al. 2022, "quantity skew").
    Dirichlet {
        /// Concentration; positive. 0.1 is extreme, 100 nearly even.
        alpha: f64,
    },
    /// The share of the client at place `k = 1, 2, …` is proportional to `k^-exponent`; who is at
    /// which place is drawn.
    PowerLaw {
        /// Positive. 1 is strong, 0.1 nearly even.
        exponent: f64,
    },
}

impl Sizes {
    /// Shuffles `n_rows`, of which there are at least `n_clients`, and cuts them by these sizes.
    pub(super) fn split(
        self,
        n_rows: usize,
        n_clients: usize,
        rng: &mut ChaCha20Rng,
    ) -> Vec<Vec<usize>> {
        let mut rows: Vec<usize> = (0..n_rows).collect();
        shuffle(&mut rows, rng);
        let mut start = 0;
        self.draw(n_rows, n_clients, rng)
            .into_iter()
            .map(|size| {
                let mut rows = rows[start..start + size].to_vec();
                start += size;
                rows.sort_unstable();
                rows
            })
            .collect()
    }

    /// Sizes that sum to `n_rows`: one row for each client, and its share of the others.
    fn draw(self, n_rows: usize, n_clients: usize, rng: &mut ChaCha20Rng) -> Vec<usize> {
        let shares = match self {
            Self::Dirichlet { alpha } => dirichlet_shares(n_clients, alpha, rng),
            Self::PowerLaw { exponent } => {
                let mut places: Vec<usize> = (1..=n_clients).collect();
                shuffle(&mut places, rng);
                let weights: Vec<f64> =
                    places.into_iter().map(|k| libm::pow(k as f64, -exponent)).collect();
                let sum: f64 = weights.iter().sum();
                weights.into_iter().map(|weight| weight / sum).collect()
            }
        };
        let n_shared = n_rows - n_clients;
        let mut sizes = Vec::with_capacity(n_clients);
        let (mut start, mut share_sum) = (0, 0.0);
        for share in shares {
            share_sum += share;
            let end = ((share_sum * n_shared as f64).round() as usize).clamp(start, n_shared);
            sizes.push(1 + end - start);
            start = end;
        }
        // Rounding of the sum of shares must not lose a row.
        *sizes.last_mut().expect("there are clients") += n_shared - start;
        sizes
    }
}
