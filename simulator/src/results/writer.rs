//! Writes a run's folder while the run goes on.
//!
//! After each round the folder is whole up to that round: the clients' lines first, then
//! TensorBoard's event, and the round's own line last, as the mark that the others are there.  What
//! can only be written at once comes at the end, `summary.json` last: a folder with a summary is
//! a finished run.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use comity_burn_models::{SafetensorsError, write_safetensors};
use comity_federation::{Country, Plan};
use sha2::{Digest, Sha256};

use super::folder::{self, holds_result_of, read_json, write_json, write_whole};
use super::rounds::{
    client_cells, client_columns, countries, round_cells, round_columns, round_from, scalars,
};
use super::table::{Cell, Column, csv_line, cut_csv, read_csv, write_parquet};
use super::{Environment, PartitionTable, Summary, tensorboard};
use crate::{
    ClientRound, FederationData, RoundScore, RunFolder, SimulationError, SimulationResult, World,
};

/// A run's folder, open for its next round.
#[derive(Debug)]
pub struct ResultsWriter {
    dir: PathBuf,
    countries: Vec<Country>,
    rounds: Growing,
    clients: Growing,
    events: Growing,
    /// Seconds since 1970 at which the last round closed, had nothing but rounds been going on.
    at_unix_s: f64,
    bytes_sent: u64,
}

impl ResultsWriter {
    /// Begins the folder `dir` of a run of `plan` in `world`, whose data folder should be absolute.
    ///
    /// What an earlier run of the same plan and world left there is replaced, anybody else's only
    /// if `overwrite` says so; files that are not a run's stay.
    ///
    /// # Errors
    /// [`SimulationError::OtherResult`] before anything is written; [`SimulationError::File`].
    pub fn create(
        dir: &Path,
        plan: &Plan,
        world: &World,
        environment: &Environment,
        overwrite: bool,
    ) -> Result<Self, SimulationError> {
        if !overwrite {
            holds_result_of(dir, plan, world)?;
        }
        fs::create_dir_all(dir).map_err(SimulationError::file("make the folder", dir))?;
        for name in folder::FILES {
            let path = dir.join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(SimulationError::file("replace", &path)(error));
                }
                _ => {}
            }
        }
        write_whole(&dir.join(folder::PLAN), to_toml(plan).as_bytes())?;
        write_whole(&dir.join(folder::WORLD), to_toml(world).as_bytes())?;
        write_json(&dir.join(folder::ENVIRONMENT), environment)?;
        let mut writer = Self::open(dir, plan, environment)?;
        writer.rounds.append(&header(&round_columns(&writer.countries)))?;
        writer.clients.append(&header(&client_columns()))?;
        writer.events.append(&tensorboard::header(environment.started_unix_s))?;
        Ok(writer)
    }

    /// Goes on with the folder `dir` of an interrupted run of `plan` in `world` after `last_round`:
    /// what stands there of later rounds is taken out.
    ///
    /// # Errors
    /// [`SimulationError::OtherResult`], [`SimulationError::NoResult`] if the folder does not reach
    /// `last_round`, [`SimulationError::File`].
    pub fn resume(
        dir: &Path,
        plan: &Plan,
        world: &World,
        last_round: u32,
    ) -> Result<Self, SimulationError> {
        if !holds_result_of(dir, plan, world)? {
            return Err(SimulationError::no_result(dir, "it holds no plan.toml"));
        }
        let path = dir.join(folder::ENVIRONMENT);
        let environment: Environment = read_json(&path)?
            .ok_or_else(|| SimulationError::no_result(dir, "it holds no environment.json"))?;
        // An ended run is open again.
        for name in [folder::SUMMARY, folder::REPORT] {
            let _ = fs::remove_file(dir.join(name));
        }
        let countries = countries(plan);
        let path = dir.join(folder::ROUNDS_CSV);
        let mut kept = Vec::new();
        cut_csv(&path, &round_columns(&countries), |cells| {
            let is_kept = is_kept(&cells, last_round);
            kept.extend(round_from(&cells, &countries).filter(|_| is_kept));
            is_kept
        })?;
        let part = dir.join(folder::CLIENTS_PART);
        cut_csv(&part, &client_columns(), |cells| is_kept(&cells, last_round))?;
        if !kept.iter().map(|score| score.round).eq(1..=last_round) {
            let reason = format!("it does not hold the rounds 1 to {last_round}");
            return Err(SimulationError::no_result(&path, reason));
        }
        // Events follow from the rounds, so they are written anew rather than cut.
        write_whole(&dir.join(folder::EVENTS), &tensorboard::header(environment.started_unix_s))?;
        let mut writer = Self::open(dir, plan, &environment)?;
        for score in &kept {
            writer.event(score)?;
        }
        Ok(writer)
    }

    fn open(dir: &Path, plan: &Plan, environment: &Environment) -> Result<Self, SimulationError> {
        Ok(Self {
            dir: dir.to_owned(),
            countries: countries(plan),
            rounds: Growing::open(dir.join(folder::ROUNDS_CSV))?,
            clients: Growing::open(dir.join(folder::CLIENTS_PART))?,
            events: Growing::open(dir.join(folder::EVENTS))?,
            at_unix_s: environment.started_unix_s,
            bytes_sent: 0,
        })
    }

    /// Writes down how the training rows lie over the clients.
    ///
    /// # Errors
    /// [`SimulationError::File`].
    pub fn partition(&self, data: &FederationData) -> Result<(), SimulationError> {
        let table = PartitionTable::of(data);
        write_whole(&self.dir.join(folder::PARTITION), table.to_json().as_bytes())
    }

    /// Writes down a round.
    ///
    /// # Errors
    /// [`SimulationError::File`]; the round's line is then not there, not even in part.
    pub fn round(
        &mut self,
        score: &RoundScore,
        clients: &[ClientRound],
    ) -> Result<(), SimulationError> {
        let mut lines = Vec::new();
        for client in clients {
            lines.extend(line(&client_cells(client)));
        }
        self.clients.append(&lines)?;
        self.event(score)?;
        self.rounds.append(&line(&round_cells(score, &self.countries)))
    }

    fn event(&mut self, score: &RoundScore) -> Result<(), SimulationError> {
        self.at_unix_s += score.seconds;
        let scalars = scalars(score, self.bytes_sent);
        self.bytes_sent += score.bytes.values().sum::<u64>();
        self.events.append(&tensorboard::scalars(self.at_unix_s, score.round, &scalars))
    }

    /// Writes what comes at the end of a run, and gives the summary its model's SHA-256.
    ///
    /// # Errors
    /// [`SimulationError::File`]; `summary.json` is then not there.
    pub fn finish(
        self,
        plan: &Plan,
        result: &SimulationResult,
        summary: &mut Summary,
    ) -> Result<(), SimulationError> {
        let Self { dir, countries, .. } = self;
        summary.model_sha256 = Some(write_model(&dir.join(folder::MODEL), plan, result)?);
        if let Some(statement) = &result.institutions {
            write_json(&dir.join(folder::STATEMENT), statement)?;
        }
        for (csv, parquet, columns) in [
            (folder::ROUNDS_CSV, folder::ROUNDS_PARQUET, round_columns(&countries)),
            (folder::CLIENTS_PART, folder::CLIENTS_PARQUET, client_columns()),
        ] {
            let csv = dir.join(csv);
            write_parquet(&dir.join(parquet), &columns, read_csv(&csv, &columns)?)?;
        }
        let summary = serde_json::to_value(&*summary).expect("a summary has only string keys");
        let mut folder = RunFolder::read(&dir)?;
        folder.summary = Some(summary.clone());
        folder.write_report()?;
        write_json(&dir.join(folder::SUMMARY), &summary)?;
        let part = dir.join(folder::CLIENTS_PART);
        fs::remove_file(&part).map_err(SimulationError::file("remove", &part))
    }
}

/// Writes the last model, and returns the SHA-256 of the file.
fn write_model(
    path: &Path,
    plan: &Plan,
    result: &SimulationResult,
) -> Result<String, SimulationError> {
    let metadata = BTreeMap::from([
        ("comity.run".to_owned(), result.report.run.to_string()),
        ("comity.plan".to_owned(), result.report.plan.to_string()),
        ("comity.model".to_owned(), result.report.model.to_string()),
    ]);
    write_safetensors(path, &plan.model_manifest()?, &result.model, &metadata).map_err(
        |error| match error {
            SafetensorsError::Io { source, .. } => SimulationError::file("write", path)(source),
            other => SimulationError::file("write", path)(std::io::Error::other(other)),
        },
    )?;
    let bytes = fs::read(path).map_err(SimulationError::file("read", path))?;
    Ok(hex::encode(Sha256::digest(bytes)))
}

/// A file that only grows, by whole pieces.
#[derive(Debug)]
struct Growing {
    path: PathBuf,
    file: File,
    n_bytes: u64,
}

impl Growing {
    fn open(path: PathBuf) -> Result<Self, SimulationError> {
        let opened = OpenOptions::new().append(true).create(true).open(&path);
        let file = opened.map_err(SimulationError::file("write", &path))?;
        let metadata = file.metadata().map_err(SimulationError::file("read", &path))?;
        Ok(Self { path, file, n_bytes: metadata.len() })
    }

    fn append(&mut self, piece: &[u8]) -> Result<(), SimulationError> {
        if let Err(error) = self.file.write_all(piece) {
            // A full disk may have taken a part.
            let _ = self.file.set_len(self.n_bytes);
            return Err(SimulationError::file("write", &self.path)(error));
        }
        self.n_bytes += piece.len() as u64;
        Ok(())
    }
}

/// Whether a row is of a round up to `last_round`.
fn is_kept(cells: &[Cell], last_round: u32) -> bool {
    matches!(cells[0], Cell::Integer(Some(round)) if round <= i64::from(last_round))
}

fn header(columns: &[Column]) -> Vec<u8> {
    csv_line(columns.iter().map(|(name, _)| name.as_str()))
}

fn line(cells: &[Cell]) -> Vec<u8> {
    let fields: Vec<String> = cells.iter().map(Cell::to_field).collect();
    csv_line(fields.iter().map(String::as_str))
}

fn to_toml(value: &impl serde::Serialize) -> String {
    toml::to_string(value).expect("plans and worlds are read from TOML")
}

#[cfg(test)]
mod tests {
    use comity_federation::RunStatus;

    use super::*;
    use crate::results::samples;

    /// A folder with `n` rounds, still open.
    fn open(dir: &Path, n: u32) -> ResultsWriter {
        let (plan, world) = (samples::plan(), samples::world());
        let environment = Environment { started_unix_s: 1e9, ..samples::environment() };
        let mut writer = ResultsWriter::create(dir, &plan, &world, &environment, false).unwrap();
        for score in samples::rounds(n) {
            writer.round(&score, &samples::clients(score.round)).unwrap();
        }
        writer
    }

    fn read(dir: &Path, name: &str) -> Vec<u8> {
        fs::read(dir.join(name)).unwrap()
    }

    #[test]
    fn a_resumed_folder_is_that_of_an_uninterrupted_run() {
        let whole = tempfile::tempdir().unwrap();
        open(whole.path(), 5);
        for torn in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let mut writer = open(dir.path(), 4);
            if torn {
                writer.rounds.append(b"5,0.9,").unwrap();
                writer.clients.append(b"5,KR/a,\"no end").unwrap();
            }
            drop(writer);
            let mut writer =
                ResultsWriter::resume(dir.path(), &samples::plan(), &samples::world(), 3).unwrap();
            assert_eq!(RunFolder::read(dir.path()).unwrap().rounds, samples::rounds(3));
            for score in &samples::rounds(5)[3..] {
                writer.round(score, &samples::clients(score.round)).unwrap();
            }
            for name in [folder::ROUNDS_CSV, folder::CLIENTS_PART, folder::EVENTS] {
                assert_eq!(read(dir.path(), name), read(whole.path(), name), "{name}, {torn}");
            }
        }
    }

    #[test]
    fn a_folder_that_does_not_reach_the_round_is_not_resumed() {
        let dir = tempfile::tempdir().unwrap();
        let resume = |dir: &Path, last| {
            ResultsWriter::resume(dir, &samples::plan(), &samples::world(), last).unwrap_err()
        };
        assert!(resume(dir.path(), 1).to_string().contains("no plan.toml"));
        open(dir.path(), 2);
        let error = resume(dir.path(), 3).to_string();
        assert!(error.contains("rounds 1 to 3"), "{error}");
    }

    #[test]
    fn a_killed_run_can_be_read_as_far_as_it_came() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = open(dir.path(), 3);
        writer.rounds.append(b"4,0.9").unwrap();
        let folder = RunFolder::read(dir.path()).unwrap();
        assert_eq!(folder.rounds, samples::rounds(3));
        assert_eq!(folder.accuracies.len(), 3);
        assert_eq!(folder.unfinished().as_deref(), Some("interrupted"));
    }

    #[test]
    fn an_ended_run_has_every_file_and_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let writer = open(dir.path(), 3);
        let plan = samples::plan();
        let result = samples::result(3);
        let mut summary = Summary::of(&plan, &result, crate::NoiseMode::Seeded, 1.5).unwrap();
        writer.finish(&plan, &result, &mut summary).unwrap();
        assert!(summary.model_sha256.is_some());
        let mut found: Vec<String> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        found.sort();
        let mut expected: Vec<&str> = folder::FILES.to_vec();
        let absent = [folder::CLIENTS_PART, folder::STATEMENT, folder::PARTITION];
        expected.retain(|name| !absent.contains(name));
        expected.sort_unstable();
        assert_eq!(found, expected);
        let folder = RunFolder::read(dir.path()).unwrap();
        assert_eq!(folder.rounds, samples::rounds(3));
        let clients = samples::clients(3);
        let accuracies: Vec<_> =
            clients.into_iter().map(|c| (c.client, c.accuracy.unwrap())).collect();
        assert_eq!(folder.accuracies, accuracies);
        assert_eq!(folder.unfinished(), None);
        assert_eq!(result.report.status, RunStatus::Finished);
    }

    /// No file of this program may be longer, as if the disk were full.
    #[test]
    fn a_piece_that_does_not_fit_is_not_there_in_part() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let mut file = Growing::open(path.clone()).unwrap();
        file.append(b"whole\n").unwrap();
        // A descriptor that cannot be written to fails as a full disk does.
        file.file = File::open(&path).unwrap();
        assert!(matches!(file.append(b"part"), Err(SimulationError::File { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"whole\n");
    }
}
