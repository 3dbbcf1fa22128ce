//! Splits of one data set over clients, for demonstrations and simulations.
//!
//! Seeded and the same on every machine: ChaCha20 for the bits, `libm` rather than the platform's
//! mathematical functions, which may differ in the last bit.  `partition/labels` splits by class,
//! `partition/sizes` by size alone, `partition/groups` by what a column or a file says.

mod draws;
mod groups;
mod labels;
mod sizes;

use std::path::PathBuf;

use chacha20::ChaCha20Rng;
use rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

pub use groups::Groups;
pub use sizes::Sizes;

use crate::Column;

/// How often a split that leaves a client without rows is drawn again.
const N_DRAWS_MAX: u32 = 100;

/// How examples are divided over clients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Partition {
    /// Shuffled and dealt out: every client sees every class, sizes differ by at most one.
    Iid,
    /// Each class is divided by proportions from a symmetric Dirichlet distribution (Hsu et al.
    /// 2019): the smaller `alpha`, the more the clients differ, in classes and in size.
    Dirichlet {
        /// Concentration; positive. 0.1 is extreme, 1 strong, 100 nearly even.
        alpha: f64,
        /// Rows that every client has at least: who has fewer takes some from who has most. Absent:
        /// a split that leaves a client without rows is drawn again, and refused in the end.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rows_min: Option<usize>,
    },
    /// Sorted by label, cut into `n_clients * per_client` shards of one size, and dealt out (McMahan
    /// et al. 2017, section 3): with two shards most clients have examples of two classes only.
    Shards {
        /// Shards of one client; positive.
        per_client: usize,
    },
    /// Clients differ in size alone; each has its rows at random from all classes, one at least.
    Quantity {
        /// Which sizes.
        sizes: Sizes,
    },
    /// Clients are what a column of the table says, such as a hospital's name; the column is then no
    /// feature. By default each value is one client, in the order of the values.
    Column {
        /// The column.
        column: Column,
        /// The values of each client, in the plan's order.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        values: Option<Vec<Vec<String>>>,
        /// Whether more values than clients are shuffled and dealt out, as many to each.
        #[serde(default, skip_serializing_if = "is_false")]
        dealt: bool,
    },
    /// Each sub-folder has the files of one client, named alike in each.
    Folder {
        /// The folder with the sub-folders, relative to the data's; absent: the data's own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        dir: Option<PathBuf>,
    },
    /// Each source in the list of sources is one client's, in the plan's order.
    Sources,
}

// What `skip_serializing_if` calls it with.
#[expect(clippy::trivially_copy_pass_by_ref)]
fn is_false(value: &bool) -> bool {
    !value
}

/// Why a split is impossible.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PartitionError {
    /// A Dirichlet distribution needs a positive, finite concentration.
    #[error("alpha {0} is not positive and finite; 0.1 is extreme, 100 nearly even")]
    Alpha(f64),
    /// Sizes by a power law that is none.
    #[error("exponent {0} is not positive and finite; 1 is strong, 0.1 nearly even")]
    Exponent(f64),
    /// Nothing or everything would be kept for testing.
    #[error("share {0} of the records for testing; it must be above 0 and below 1, such as 0.2")]
    Share(f64),
    /// No clients.
    #[error("a split over no clients; ask for at least one")]
    NoClients,
    /// Someone would have nothing, or less than everybody is to have.
    #[error(
        "{n_clients} clients with at least {rows_min} rows each, but {n_rows} rows; use fewer \
         clients or more data"
    )]
    TooFewRows {
        /// Clients asked for.
        n_clients: usize,
        /// Rows that each has at least.
        rows_min: usize,
        /// Rows there are.
        n_rows: usize,
    },
    /// No shards, or more shards than rows.
    #[error(
        "{n_clients} clients with {per_client} shards each of {n_rows} rows; per_client must be at \
         least 1, and no shard may be empty"
    )]
    Shards {
        /// Clients asked for.
        n_clients: usize,
        /// Shards of each.
        per_client: usize,
        /// Rows there are.
        n_rows: usize,
    },
    /// Every draw left a client with nothing.
    #[error(
        "{n_draws} draws each left a client without rows; raise alpha, use fewer clients, or set \
         rows_min = 1"
    )]
    EmptyClient {
        /// Draws made.
        n_draws: u32,
    },
    /// The data do not tell what they are to be split by.
    #[error(
        "the data do not say {0}; name a column of a csv table, or a list of sources, or choose \
         another kind of partition"
    )]
    NoGroups(&'static str),
    /// More or fewer values, folders or sources than clients.
    #[error("{n_groups} {what} but {n_clients} clients; {advice}")]
    Groups {
        /// What there are.
        what: &'static str,
        /// How many.
        n_groups: usize,
        /// Clients asked for.
        n_clients: usize,
        /// What to do.
        advice: &'static str,
    },
    /// A value that is listed and does not occur, or that is listed twice.
    #[error("the value {value:?} of `values` {problem}; list each value of the column once")]
    Value {
        /// As listed in the world.
        value: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// Values of the column that no client has.
    #[error("{n_values} values of the column stand in no list of `values`; list each value once")]
    Unlisted {
        /// How many.
        n_values: usize,
    },
}

impl Partition {
    /// Divides the indices `0..labels.len()` over `n_clients`: each index exactly once, ascending
    /// within a client, no client empty. The same arguments give the same split everywhere.
    ///
    /// `groups`: what the column of the table says of each index, or the folder or source that it comes
    /// from; only those kinds of partition need it.
    ///
    /// # Errors
    /// [`PartitionError`] if no such split exists or none was found.
    ///
    /// # Panics
    /// If `groups` are those of another number of rows.
    pub fn split(
        &self,
        labels: &[u32],
        groups: Option<&Groups>,
        n_clients: usize,
        seed: u64,
    ) -> Result<Vec<Vec<usize>>, PartitionError> {
        let n_rows = labels.len();
        if n_clients == 0 {
            return Err(PartitionError::NoClients);
        }
        self.check()?;
        let rows_min = match *self {
            Self::Dirichlet { rows_min: Some(rows_min), .. } => rows_min.max(1),
            _ => 1,
        };
        if n_clients.checked_mul(rows_min).is_none_or(|needed| needed > n_rows) {
            return Err(PartitionError::TooFewRows { n_clients, rows_min, n_rows });
        }
        let mut key = [0; 32];
        key[..19].copy_from_slice(b"comity partition v1");
        key[24..].copy_from_slice(&seed.to_le_bytes());
        let mut rng = ChaCha20Rng::from_seed(key);
        let groups = |what| groups.ok_or(PartitionError::NoGroups(what));
        match self {
            Self::Iid => Ok(labels::iid(n_rows, n_clients, &mut rng)),
            Self::Dirichlet { alpha, rows_min: None } => (0..N_DRAWS_MAX)
                .map(|_| labels::dirichlet(labels, n_clients, *alpha, &mut rng))
                .find(|clients| clients.iter().all(|rows| !rows.is_empty()))
                .ok_or(PartitionError::EmptyClient { n_draws: N_DRAWS_MAX }),
            Self::Dirichlet { alpha, rows_min: Some(_) } => {
                let mut clients = labels::dirichlet(labels, n_clients, *alpha, &mut rng);
                labels::top_up(&mut clients, rows_min, &mut rng);
                Ok(clients)
            }
            Self::Shards { per_client } => labels::shards(labels, n_clients, *per_client, &mut rng)
                .ok_or(PartitionError::Shards { n_clients, per_client: *per_client, n_rows }),
            Self::Quantity { sizes } => Ok(sizes.split(n_rows, n_clients, &mut rng)),
            Self::Column { values: Some(values), .. } => {
                groups("what the column is")?.listed(values, n_clients)
            }
            Self::Column { dealt, .. } => {
                groups("what the column is")?.by_value(*dealt, n_clients, &mut rng)
            }
            Self::Folder { .. } => groups("from which folder a row is")?.each(
                "sub-folders",
                "name one client in the plan for each sub-folder",
                n_clients,
            ),
            Self::Sources => groups("from which source a row is")?.each(
                "sources",
                "name one client in the plan for each source in `data.train`",
                n_clients,
            ),
        }
    }

    /// Refuses settings that fit no data.
    fn check(&self) -> Result<(), PartitionError> {
        match *self {
            Self::Dirichlet { alpha, .. }
            | Self::Quantity { sizes: Sizes::Dirichlet { alpha } }
                if !positive(alpha) =>
            {
                Err(PartitionError::Alpha(alpha))
            }
            Self::Quantity { sizes: Sizes::PowerLaw { exponent } } if !positive(exponent) => {
                Err(PartitionError::Exponent(exponent))
            }
            _ => Ok(()),
        }
    }
}

fn positive(value: f64) -> bool {
    value > 0.0 && value.is_finite()
}

#[cfg(test)]
mod tests;
