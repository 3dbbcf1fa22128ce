//! A run's folder, read back: for its report, and to compare it with others.

use std::fs::File;
use std::path::{Path, PathBuf};

use comity_federation::{ClientId, Plan};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};

use super::folder::{self, read_json, read_plan, read_toml};
use super::rounds::{client_columns, countries, round_columns, round_from};
use super::table::{Cell, read_csv};
use super::{Environment, PartitionTable, report};
use crate::{RoundScore, SimulationError, World};

/// What the folder of a run holds, whether it has ended or not.
#[derive(Clone, Debug)]
pub struct RunFolder {
    /// The folder.
    pub dir: PathBuf,
    /// The plan as it was run.
    pub plan: Plan,
    /// The world as it was run.
    pub world: World,
    /// On what it ran.
    pub environment: Environment,
    /// How the training rows lie over the clients, where that was written down.
    pub partition: Option<PartitionTable>,
    /// A score a round, as far as the run came.
    pub rounds: Vec<RoundScore>,
    /// What each client's records said of the last round's model, in the order of the clients; empty where
    /// they keep none.
    pub accuracies: Vec<(ClientId, f64)>,
    /// `summary.json`; `None` while the run has not ended.
    pub summary: Option<serde_json::Value>,
}

impl RunFolder {
    /// Reads the folder `dir`.
    ///
    /// # Errors
    /// [`SimulationError::NoResult`] names the file that is missing or damaged.
    pub fn read(dir: &Path) -> Result<Self, SimulationError> {
        for name in [folder::PLAN, folder::WORLD, folder::ENVIRONMENT, folder::ROUNDS_CSV] {
            if !dir.join(name).exists() {
                return Err(SimulationError::no_result(dir, format!("it has no {name}")));
            }
        }
        let plan = read_plan(&dir.join(folder::PLAN))?;
        let environment = read_json(&dir.join(folder::ENVIRONMENT))?.expect("it is there");
        let rounds = read_rounds(&dir.join(folder::ROUNDS_CSV), &plan)?;
        let accuracies = match rounds.last() {
            Some(last) => read_accuracies(dir, last.round)?,
            None => Vec::new(),
        };
        Ok(Self {
            dir: dir.to_owned(),
            world: read_toml(&dir.join(folder::WORLD))?,
            environment,
            partition: read_json(&dir.join(folder::PARTITION))?,
            accuracies,
            rounds,
            plan,
            summary: read_json(&dir.join(folder::SUMMARY))?,
        })
    }

    /// Makes the folder's `report.html` anew, and returns its path.
    ///
    /// # Errors
    /// [`SimulationError::File`].
    pub fn write_report(&self) -> Result<PathBuf, SimulationError> {
        let path = self.dir.join(folder::REPORT);
        folder::write_whole(&path, report::html(self).as_bytes())?;
        Ok(path)
    }

    /// Why the run is not a finished one; `None` if it is.
    #[must_use]
    pub fn unfinished(&self) -> Option<String> {
        let Some(summary) = &self.summary else { return Some("interrupted".to_owned()) };
        match summary["status"].as_str() {
            Some("finished") => None,
            status => {
                let reason = summary["reason"].as_str().or(status).unwrap_or("unknown");
                Some(format!("aborted: {reason}"))
            }
        }
    }
}

fn read_rounds(path: &Path, plan: &Plan) -> Result<Vec<RoundScore>, SimulationError> {
    let countries = countries(plan);
    let columns = round_columns(&countries);
    read_csv(path, &columns)?
        .map(|cells| {
            round_from(&cells?, &countries)
                .ok_or_else(|| SimulationError::no_result(path, "a round lacks a value"))
        })
        .collect()
}

/// From the table of clients, or from what there is of it while the run goes on.
fn read_accuracies(dir: &Path, round: u32) -> Result<Vec<(ClientId, f64)>, SimulationError> {
    let part = dir.join(folder::CLIENTS_PART);
    let mut found = Vec::new();
    if part.exists() {
        for cells in read_csv(&part, &client_columns())? {
            let cells = cells?;
            if let (Cell::Integer(Some(at)), Cell::Text(Some(client)), Cell::Real(Some(accuracy))) =
                (&cells[0], &cells[1], &cells[7])
                && *at == i64::from(round)
            {
                let client = client.parse();
                found.push((client.map_err(|e| SimulationError::no_result(&part, e))?, *accuracy));
            }
        }
        return Ok(found);
    }
    let path = dir.join(folder::CLIENTS_PARQUET);
    if !path.exists() {
        return Ok(found);
    }
    let damaged = |error: parquet::errors::ParquetError| SimulationError::no_result(&path, error);
    let file = File::open(&path).map_err(SimulationError::file("read", &path))?;
    let reader = SerializedFileReader::new(file).map_err(damaged)?;
    // The last round's rows are the last ones.
    for group in (0..reader.num_row_groups()).rev() {
        let group = reader.get_row_group(group).map_err(damaged)?;
        let (mut of_group, mut is_whole) = (Vec::new(), true);
        for row in group.get_row_iter(None).map_err(damaged)? {
            match accuracy_in(&row.map_err(damaged)?, round) {
                Some(Some(found)) => of_group.push(found),
                Some(None) => {}
                None => is_whole = false,
            }
        }
        of_group.append(&mut found);
        found = of_group;
        if !is_whole {
            break;
        }
    }
    Ok(found)
}

/// A row's client and accuracy; `None` for a row of another round.
fn accuracy_in(row: &Row, round: u32) -> Option<Option<(ClientId, f64)>> {
    let field = |index: usize| row.get_column_iter().nth(index).map(|(_, field)| field);
    if !matches!(field(0), Some(Field::Long(at)) if *at == i64::from(round)) {
        return None;
    }
    Some(match (field(1), field(7)) {
        (Some(Field::Str(client)), Some(Field::Double(accuracy))) => {
            client.parse().ok().map(|client| (client, *accuracy))
        }
        _ => None,
    })
}
