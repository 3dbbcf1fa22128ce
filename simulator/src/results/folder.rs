//! The folder of one run: which files it has, whose result it is, and how a file gets into it whole.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use comity_federation::Plan;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Records, SimulationError, World};

/// The plan as it was run, with every setting of the command line in it.
pub const PLAN: &str = "plan.toml";
/// The world as it was run; its data folder is an absolute path.
pub const WORLD: &str = "world.toml";
/// On what the run ran: [`Environment`](super::Environment).
pub const ENVIRONMENT: &str = "environment.json";
/// Rows and labels of each client: [`PartitionTable`](super::PartitionTable).
pub const PARTITION: &str = "partition.json";
/// A line a round, whole after each round.
pub const ROUNDS_CSV: &str = "rounds.csv";
/// The same at the end of the run.
pub const ROUNDS_PARQUET: &str = "rounds.parquet";
/// A line a client and round, while the run goes on.
pub const CLIENTS_PART: &str = "clients.csv.part";
/// The same at the end of the run.
pub const CLIENTS_PARQUET: &str = "clients.parquet";
/// For TensorBoard, which knows such files by the `tfevents` in their names.
pub const EVENTS: &str = "events.out.tfevents.comity";
/// How the run ended; there only when it has.
pub const SUMMARY: &str = "summary.json";
/// The last model.
pub const MODEL: &str = "model.safetensors";
/// What was spent on whole institutions, where the plan protects them.
pub const STATEMENT: &str = "statement.json";
/// All of it to look at.
pub const REPORT: &str = "report.html";

/// Everything that a run writes.
pub const FILES: [&str; 13] = [
    PLAN,
    WORLD,
    ENVIRONMENT,
    PARTITION,
    ROUNDS_CSV,
    ROUNDS_PARQUET,
    CLIENTS_PART,
    CLIENTS_PARQUET,
    EVENTS,
    SUMMARY,
    MODEL,
    STATEMENT,
    REPORT,
];

/// Most differing keys that a refusal names.
const N_NAMED_MAX: usize = 3;

/// Whether `dir` holds the result of `plan` in `world`; `false` if it holds none.
///
/// Where the data lie is no part of a world: another folder with the same files is the same world.
///
/// # Errors
/// [`SimulationError::OtherResult`] if it holds another's, [`SimulationError::NoResult`] if what it
/// holds cannot be read.
pub fn holds_result_of(dir: &Path, plan: &Plan, world: &World) -> Result<bool, SimulationError> {
    let wanted = [("plan", PLAN, plan_leaves(plan, world)), ("world", WORLD, world_leaves(world))];
    let mut is_there = false;
    for (what, file, wanted) in wanted {
        let path = dir.join(file);
        if !path.exists() {
            continue;
        }
        is_there = true;
        let held = match what {
            "plan" => plan_leaves(&read_plan(&path)?, world),
            _ => world_leaves(&read_toml(&path)?),
        };
        if held != wanted {
            let differs = differing(&held, &wanted);
            return Err(SimulationError::OtherResult { dir: dir.to_owned(), what, file, differs });
        }
    }
    Ok(is_there)
}

/// The settings of `plan` by their dotted keys, without what follows from the data in `world`.
pub(crate) fn plan_leaves(plan: &Plan, world: &World) -> BTreeMap<String, String> {
    let mut table = to_table(plan);
    // Counted, not set: another seed of the world counts others.
    if world.data.records == Records::FromPartition
        && let Some(cohort) = table.get_mut("cohort").and_then(toml::Value::as_table_mut)
        && let Some(clients) = cohort.get_mut("clients").and_then(toml::Value::as_array_mut)
    {
        for client in clients.iter_mut().filter_map(toml::Value::as_table_mut) {
            client.remove("records");
        }
    }
    flat(&table)
}

/// The settings of `world` by their dotted keys, without where its data lie.
pub(crate) fn world_leaves(world: &World) -> BTreeMap<String, String> {
    let mut world = world.clone();
    world.data.dir = None;
    flat(&to_table(&world))
}

/// The leaves of `table` by their dotted keys, as TOML; an array is one leaf.
fn flat(table: &toml::Table) -> BTreeMap<String, String> {
    fn walk(table: &toml::Table, prefix: &str, leaves: &mut BTreeMap<String, String>) {
        for (name, value) in table {
            let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            match value {
                toml::Value::Table(table) => walk(table, &key, leaves),
                value => {
                    leaves.insert(key, value.to_string());
                }
            }
        }
    }
    let mut leaves = BTreeMap::new();
    walk(table, "", &mut leaves);
    leaves
}

fn differing(held: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> String {
    let mut keys: Vec<&str> = held
        .keys()
        .chain(wanted.keys())
        .filter(|k| held.get(*k) != wanted.get(*k))
        .map(String::as_str)
        .collect();
    keys.sort_unstable();
    keys.dedup();
    let rest = keys.len().saturating_sub(N_NAMED_MAX);
    keys.truncate(N_NAMED_MAX);
    let mut text = keys.join(", ");
    if rest > 0 {
        text += &format!(" and {rest} more");
    }
    text
}

/// What `value` is as TOML.
fn to_table(value: &impl Serialize) -> toml::Table {
    toml::Table::try_from(value).expect("plans and worlds are read from TOML")
}

/// The name under which `path` is written until it is whole.
#[must_use]
pub fn partial(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.partial"))
}

/// Writes a file that is never half there, even if the program is interrupted or the disk full.
///
/// # Errors
/// [`SimulationError::File`]; whatever was there before is then still there.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), SimulationError> {
    let partial = partial(path);
    fs::write(&partial, bytes).and_then(|()| fs::rename(&partial, path)).map_err(|error| {
        let _ = fs::remove_file(&partial);
        SimulationError::file("write", path)(error)
    })
}

/// `value` as JSON for files and people: indented, with a final newline.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), SimulationError> {
    let json = serde_json::to_string_pretty(value).expect("results have only string keys") + "\n";
    write_whole(path, json.as_bytes())
}

pub(crate) fn read_text(path: &Path) -> Result<String, SimulationError> {
    fs::read_to_string(path).map_err(SimulationError::file("read", path))
}

pub(crate) fn read_toml<T: DeserializeOwned>(path: &Path) -> Result<T, SimulationError> {
    toml::from_str(&read_text(path)?)
        .map_err(|error| SimulationError::no_result(path, error.to_string().trim()))
}

/// The plan in a folder.
pub(crate) fn read_plan(path: &Path) -> Result<Plan, SimulationError> {
    Plan::from_toml(&read_text(path)?).map_err(|error| SimulationError::no_result(path, error))
}

/// What the JSON file at `path` holds; `None` if there is no such file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, SimulationError> {
    if !path.exists() {
        return Ok(None);
    }
    serde_json::from_str(&read_text(path)?)
        .map(Some)
        .map_err(|error| SimulationError::no_result(path, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::samples;

    #[test]
    fn a_written_file_replaces_the_old_one_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write_whole(&path, b"old").unwrap();
        write_whole(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_resolved_plan_is_the_same_plan() {
        let plan = samples::plan();
        let text = toml::to_string(&plan).unwrap();
        assert_eq!(Plan::from_toml(&text).unwrap().digest(), plan.digest());
    }

    #[test]
    fn another_plan_or_world_is_refused_by_the_key_that_differs() {
        let dir = tempfile::tempdir().unwrap();
        let (plan, world) = (samples::plan(), samples::world());
        assert!(!holds_result_of(dir.path(), &plan, &world).unwrap());
        let mut there = world.clone();
        there.data.dir = Some(PathBuf::from("/elsewhere"));
        fs::write(dir.path().join(PLAN), toml::to_string(&plan).unwrap()).unwrap();
        fs::write(dir.path().join(WORLD), toml::to_string(&there).unwrap()).unwrap();
        assert!(holds_result_of(dir.path(), &plan, &world).unwrap(), "data may have moved");

        let mut other = plan.clone();
        other.rounds += 1;
        let error = holds_result_of(dir.path(), &other, &world).unwrap_err().to_string();
        assert!(error.contains("another plan") && error.contains("rounds"), "{error}");
        let mut other = world.clone();
        other.seed += 1;
        let error = holds_result_of(dir.path(), &plan, &other).unwrap_err().to_string();
        assert!(error.contains("world.toml differs in seed"), "{error}");
        fs::write(dir.path().join(PLAN), "x").unwrap();
        let error = holds_result_of(dir.path(), &plan, &world).unwrap_err();
        assert!(matches!(error, SimulationError::NoResult { .. }), "{error}");
    }
}
