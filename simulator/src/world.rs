//! The world of a simulation: which data there are and how they lie over the clients.
//!
//! A plan says what a federation does; a world says what it finds.  The clients are those that
//! the plan names, in the plan's order.

mod data;
mod division;

use std::path::{Path, PathBuf};

use comity_burn_models::data_contract;
use comity_datasets::{DataError, Dataset, HeldOut, Partition, Source};
use comity_federation::Plan;
use serde::{Deserialize, Serialize};

pub use data::{ClientRows, FederationData};
pub use division::divide;

use crate::{Conduct, SimulationError};

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
    /// How the clients behave: what their links carry, who is slow, away, or works against the others.
    #[serde(default)]
    pub conduct: Conduct,
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
    /// Public; on which every round's model is scored. Absent: all that the clients keep for testing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<Source>,
    /// How much each client keeps for testing and never trains on; absent: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_test: Option<HeldOut>,
    /// Where the numbers of records come from that clients declare.
    #[serde(default, skip_serializing_if = "Records::is_declared")]
    pub records: Records,
}

/// Where the numbers of records come from that clients declare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Records {
    /// The plan.
    #[default]
    Declared,
    /// The partition: every client declares what it really trains on, and the plan that is run is
    /// another one than the file's, with another digest.
    FromPartition,
}

impl Records {
    // What `skip_serializing_if` calls it with.
    #[expect(clippy::trivially_copy_pass_by_ref)]
    fn is_declared(&self) -> bool {
        *self == Self::Declared
    }
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
    /// plan, [`SimulationError::Partition`], [`SimulationError::NoTest`].
    pub fn load(&self, plan: &Plan, base_dir: &Path) -> Result<FederationData, SimulationError> {
        // The test set first: it is the smaller one, and a file of the wrong shape shows sooner.
        let public = self.data.test.as_ref().map(|test| load(test, plan, base_dir)).transpose()?;
        let (train, rows) = self.load_rows(plan, base_dir)?;
        let test = public
            .or_else(|| {
                let mut kept: Vec<usize> =
                    rows.iter().flat_map(|rows| rows.test.iter().copied()).collect();
                kept.sort_unstable();
                (!kept.is_empty()).then(|| train.subset(&kept))
            })
            .ok_or(SimulationError::NoTest)?;
        FederationData::new(plan, train, rows, test)
    }

    /// Reads the training data, and which of its rows each client has, in the plan's order.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_rows(
        &self,
        plan: &Plan,
        base_dir: &Path,
    ) -> Result<(Dataset, Vec<ClientRows>), SimulationError> {
        let train = load(&self.data.train, plan, base_dir)?;
        let rows = divide(&train, &self.partition, self.data.client_test, plan, self.seed)?;
        Ok((train, rows))
    }

    /// Reads what models are scored on: the public test set, or all that the clients keep.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_test(&self, plan: &Plan, base_dir: &Path) -> Result<Dataset, SimulationError> {
        match &self.data.test {
            Some(test) => load(test, plan, base_dir),
            None => Ok(self.load(plan, base_dir)?.test),
        }
    }

    /// The plan that is run on `data`: `plan`, with the numbers of records that this world says.
    ///
    /// # Errors
    /// [`SimulationError::Plan`] if it is not valid with these numbers, such as that of a client
    /// without a record.
    pub fn resolve(&self, plan: &Plan, data: &FederationData) -> Result<Plan, SimulationError> {
        match self.data.records {
            Records::Declared => Ok(plan.clone()),
            Records::FromPartition => data.declare(plan),
        }
    }
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
