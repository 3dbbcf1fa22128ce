//! The world of a simulation: which data there are and how they lie over the clients.
//!
//! A plan says what a federation does; a world says what it finds.  The clients are those that
//! the plan names, in the plan's order.

use std::path::{Path, PathBuf};

use comity_burn_models::data_contract;
use comity_datasets::{DataError, Dataset, Partition, Source};
use comity_federation::{ClientId, Plan};
use comity_privacy::PrivacyUnit;
use serde::{Deserialize, Serialize};

use crate::SimulationError;

/// A world file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct World {
    /// Seeds the split over the clients and the simulated noise.
    pub seed: u64,
    /// The data.
    pub data: WorldData,
    /// How the training data lie over the clients.
    pub partition: Partition,
}

/// The data of a world.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorldData {
    /// Folder in which the files lie, relative to the world file; absent: the world file's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
    /// Divided over the clients.
    pub train: Source,
    /// Public; on which every round's model is scored.
    pub test: Source,
}

/// The data of every client, and the public test set.
#[derive(Clone, Debug)]
pub struct FederationData {
    /// One shard a client, in the plan's order.
    pub shards: Vec<(ClientId, Dataset)>,
    /// Public; on which every round's model is scored.
    pub test: Dataset,
}

impl World {
    /// Reads a world from TOML.
    ///
    /// # Errors
    /// [`SimulationError::World`] says what does not belong.
    pub fn from_toml(text: &str) -> Result<Self, SimulationError> {
        toml::from_str(text).map_err(|e| SimulationError::World(e.to_string().trim().to_owned()))
    }

    /// The folder at which the world's relative paths start: `data`, if given, else the world's own
    /// `data.dir`, else the folder of `world_path`.
    #[must_use]
    pub fn base_dir(&self, world_path: &Path, data: Option<&Path>) -> PathBuf {
        let beside = world_path.parent().unwrap_or_else(|| Path::new(""));
        match (data, &self.data.dir) {
            (Some(data), _) => data.to_owned(),
            (None, Some(dir)) => beside.join(dir),
            (None, None) => beside.to_owned(),
        }
    }

    /// Reads everything that a simulation of `plan` needs.
    ///
    /// # Errors
    /// [`SimulationError::DataMissing`], [`SimulationError::Data`] if a file does not fit the
    /// plan, [`SimulationError::Partition`].
    pub fn load(&self, plan: &Plan, base_dir: &Path) -> Result<FederationData, SimulationError> {
        // The test set first: it is the smaller one, and a file of the wrong shape shows sooner.
        let test = self.load_test(plan, base_dir)?;
        Ok(FederationData { shards: self.load_shards(plan, base_dir)?, test })
    }

    /// Reads the public test set.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_test(&self, plan: &Plan, base_dir: &Path) -> Result<Dataset, SimulationError> {
        load(&self.data.test, plan, base_dir)
    }

    /// Reads the training data and splits them over the clients that the plan names.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_shards(
        &self,
        plan: &Plan,
        base_dir: &Path,
    ) -> Result<Vec<(ClientId, Dataset)>, SimulationError> {
        split(&load(&self.data.train, plan, base_dir)?, self.partition, plan, self.seed)
    }
}

/// Divides `train` over the clients that `plan` names, in its order.
///
/// # Errors
/// [`SimulationError::Partition`] if it cannot be divided so.
pub fn split(
    train: &Dataset,
    partition: Partition,
    plan: &Plan,
    seed: u64,
) -> Result<Vec<(ClientId, Dataset)>, SimulationError> {
    let clients = &plan.cohort.clients;
    let rows = match (plan.unit(), train.rows_by_person()) {
        // Whole persons are dealt out, by the label of their first row, so that nobody's promise
        // is spread over two institutions.
        (Some(PrivacyUnit::Person { .. }), Some(persons)) => {
            let labels: Vec<u32> = persons.iter().map(|rows| train.labels()[rows[0]]).collect();
            let rows_of = |persons_of: Vec<usize>| {
                let mut rows: Vec<usize> =
                    persons_of.into_iter().flat_map(|p| persons[p].iter().copied()).collect();
                rows.sort_unstable();
                rows
            };
            partition.split(&labels, clients.len(), seed)?.into_iter().map(rows_of).collect()
        }
        _ => partition.split(train.labels(), clients.len(), seed)?,
    };
    Ok(clients
        .iter()
        .zip(rows)
        .map(|(client, rows)| (client.id.clone(), train.subset(&rows)))
        .collect())
}

fn load(source: &Source, plan: &Plan, base_dir: &Path) -> Result<Dataset, SimulationError> {
    let contract = data_contract(&plan.data, source);
    source.load(base_dir, &contract).map_err(|error| match error {
        DataError::Io { path, source } if source.kind() == std::io::ErrorKind::NotFound => {
            SimulationError::DataMissing { path }
        }
        other => SimulationError::Data(other),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORLD: &str = r#"
seed = 1
[data]
dir = "files"
train = { kind = "idx", images = "i", labels = "l" }
test = { kind = "idx", images = "ti", labels = "tl" }
[partition]
kind = "dirichlet"
alpha = 0.5
"#;

    #[test]
    fn a_world_is_read_and_unknown_keys_are_refused() {
        let world = World::from_toml(WORLD).unwrap();
        assert_eq!(world.partition, Partition::Dirichlet { alpha: 0.5 });
        for (from, to) in [
            ("seed = 1", "seed = 1\nsneed = 2"),
            ("dir = ", "folder = "),
            ("alpha = 0.5", "alpha = 0.5\nbeta = 1"),
        ] {
            let error = World::from_toml(&WORLD.replacen(from, to, 1)).unwrap_err();
            assert!(matches!(error, SimulationError::World(_)), "{error}");
        }
    }

    #[test]
    fn the_data_option_wins_over_the_worlds_folder() {
        let mut world = World::from_toml(WORLD).unwrap();
        let path = Path::new("a/world.toml");
        assert_eq!(world.base_dir(path, None), Path::new("a/files"));
        assert_eq!(world.base_dir(path, Some(Path::new("b"))), Path::new("b"));
        world.data.dir = None;
        assert_eq!(world.base_dir(path, None), Path::new("a"));
    }
}
