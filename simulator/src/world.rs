//! The world of a simulation: which data there are and how they lie over the clients.
//!
//! A plan says what a federation does; a world says what it finds.  The clients are those that
//! the plan names, in the plan's order.

mod baseline;
mod data;
mod division;
mod sources;

use std::borrow::Cow;
use std::num::NonZero;
use std::path::{Path, PathBuf};

use comity_burn_models::data_contract;
use comity_datasets::{Dataset, HeldOut, Partition, Source};
use comity_federation::Plan;
use serde::{Deserialize, Serialize};

pub use baseline::Baseline;
pub use data::{ClientRows, FederationData};
pub use division::divide;
pub use sources::{Sources, TrainData, folder_name};

use crate::{Conduct, SimulationError};

/// A world file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct World {
    /// Seeds the split over the clients and the simulated noise.
    pub seed: u64,
    /// Who trains instead of the federation, to compare it with; absent: the federation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Baseline>,
    /// The data.
    pub data: WorldData,
    /// How the training data lie over the clients.
    pub partition: Partition,
    /// What each client does with the last model by itself; absent: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fine_tune: Option<FineTune>,
    /// How the clients behave: what their links carry, who is slow, away, or works against the others.
    #[serde(default)]
    pub conduct: Conduct,
}

/// Fine-tuning at each client after the run, scored on the records that it keeps for testing (`client_test`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FineTune {
    /// Passes over the client's training records, at least 1.
    pub epochs: NonZero<u32>,
}

/// The data of a world.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorldData {
    /// Folder in which the files lie, relative to the world file; absent: the world file's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
    /// Divided over the clients.
    pub train: Sources,
    /// Public; on which every round's model is scored. Absent: all that the clients keep for testing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<Source>,
    /// How much each client keeps for testing and never trains on; absent: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_test: Option<HeldOut>,
    /// Where the numbers of records come from that clients declare.
    #[serde(default, skip_serializing_if = "Records::is_declared")]
    pub records: Records,
    /// By which statistics features are standardised before the plan's constants; absent: by none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standardise: Option<Standardise>,
}

/// By which statistics features are standardised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standardise {
    /// Each client's rows by the mean and standard deviation of those that it trains on.
    ///
    /// Published benchmarks do so. Under differential privacy it is **not covered** by the guarantee: each
    /// example then depends on all rows of its client, and no noise hides these statistics. The deployed
    /// way is a plan with `[analytics]` and a `standardise` layer, where they are released with noise and
    /// paid for.
    PerClient,
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

    /// Reads everything that a simulation of `plan`, as [`resolve`](Self::resolve) gives it, needs.
    ///
    /// # Errors
    /// [`SimulationError::DataMissing`], [`SimulationError::Data`] if a file does not fit the
    /// plan, [`SimulationError::Partition`], [`SimulationError::NoTest`].
    pub fn load(&self, plan: &Plan, base_dir: &Path) -> Result<FederationData, SimulationError> {
        if self.fine_tune.is_some() && self.data.client_test.is_none() {
            let reason =
                "fine_tune is scored on what clients keep for testing: add data.client_test";
            return Err(SimulationError::World(reason.to_owned()));
        }
        // The test set first: it is the smaller one, and a file of the wrong shape shows sooner.
        let public = self.load_public(plan, base_dir)?;
        let (train, rows) = self.load_rows(plan, base_dir)?;
        let test = public
            .or_else(|| {
                let mut kept: Vec<usize> =
                    rows.iter().flat_map(|rows| rows.test.iter().copied()).collect();
                kept.sort_unstable();
                (!kept.is_empty()).then(|| train.subset(&kept))
            })
            .ok_or(SimulationError::NoTest)?;
        let plan = self.baseline_plan(plan)?;
        FederationData::new(&plan, train, rows, test)
    }

    /// Reads the training data, and which of its rows each client of [`baseline_plan`](Self::baseline_plan)
    /// has, in its order.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_rows(
        &self,
        plan: &Plan,
        base_dir: &Path,
    ) -> Result<(Dataset, Vec<ClientRows>), SimulationError> {
        self.baseline_plan(plan)?;
        let WorldData { train, client_test, standardise, .. } = &self.data;
        let mut train = TrainData::load(train, &self.partition, plan, base_dir)?;
        let rows = divide(&train, &self.partition, *client_test, plan, self.seed)?;
        if let Some(Standardise::PerClient) = standardise {
            for rows in &rows {
                train.data.standardise(&rows.train, &[&rows.train, &rows.test])?;
            }
        }
        let rows = match &self.baseline {
            Some(baseline) => baseline.rows(plan, rows)?,
            None => rows,
        };
        Ok((train.data, rows))
    }

    /// The public test set, if there is one.
    fn load_public(
        &self,
        plan: &Plan,
        base_dir: &Path,
    ) -> Result<Option<Dataset>, SimulationError> {
        let Some(test) = &self.data.test else { return Ok(None) };
        if self.data.standardise.is_some() {
            return Err(SimulationError::World(
                "data.standardise = \"per_client\" has no statistics for the public data.test; score \
                 models on what clients keep (data.client_test), or leave one of them out"
                    .to_owned(),
            ));
        }
        let test = match &self.partition {
            Partition::Column { column, .. } => {
                let contract = data_contract(&plan.data, test);
                let (test, _) =
                    test.load_grouped(base_dir, &contract, column).map_err(sources::missing)?;
                test
            }
            _ => sources::load(test, plan, base_dir)?,
        };
        Ok(Some(test))
    }

    /// `plan` for those who train: the baseline, if there is one.
    ///
    /// # Errors
    /// [`SimulationError::UnknownClient`]; [`SimulationError::Plan`] if the plan makes no sense for one
    /// client.
    pub fn baseline_plan<'a>(&self, plan: &'a Plan) -> Result<Cow<'a, Plan>, SimulationError> {
        match &self.baseline {
            Some(baseline) => baseline.plan(plan).map(Cow::Owned),
            None => Ok(Cow::Borrowed(plan)),
        }
    }

    /// Reads what models are scored on: the public test set, or all that the clients keep.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_test(&self, plan: &Plan, base_dir: &Path) -> Result<Dataset, SimulationError> {
        match self.load_public(plan, base_dir)? {
            Some(test) => Ok(test),
            None => Ok(self.load(plan, base_dir)?.test),
        }
    }

    /// The plan that is run on `data`: `plan`, for the clients and with the numbers of records that this
    /// world says.
    ///
    /// # Errors
    /// [`SimulationError::Plan`] if it is not valid with these numbers, such as that of a client
    /// without a record.
    pub fn resolve(&self, plan: &Plan, data: &FederationData) -> Result<Plan, SimulationError> {
        let plan = self.baseline_plan(plan)?;
        match self.data.records {
            Records::Declared => Ok(plan.into_owned()),
            Records::FromPartition => data.declare(&plan),
        }
    }
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
        assert_eq!(world.partition, Partition::Dirichlet { alpha: 0.5, rows_min: None });
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
