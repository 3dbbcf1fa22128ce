//! Where the training data of a world are: one source, a list of them, or one in each sub-folder.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use comity_burn_models::data_contract;
use comity_datasets::{DataError, Dataset, Groups, Partition, Source};
use comity_federation::{ClientId, Plan};
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::SimulationError;

/// One source, or a list of them, whose rows follow one another.
#[derive(Clone, Debug, PartialEq)]
pub struct Sources(Vec<Source>);

impl Sources {
    /// The sources, one at least.
    #[must_use]
    pub fn as_slice(&self) -> &[Source] {
        &self.0
    }
}

impl From<Source> for Sources {
    fn from(source: Source) -> Self {
        Self(vec![source])
    }
}

impl Serialize for Sources {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0[..] {
            [source] => source.serialize(serializer),
            sources => sources.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Sources {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;
        // By hand, because an untagged enum's errors do not tell which key is wrong.
        impl<'de> Visitor<'de> for OneOrMany {
            type Value = Sources;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a source, such as { kind = \"csv\", … }, or a list of sources")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Sources, A::Error> {
                Source::deserialize(MapAccessDeserializer::new(map)).map(Sources::from)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Sources, A::Error> {
                let sources = Vec::deserialize(SeqAccessDeserializer::new(seq))?;
                if sources.is_empty() {
                    return Err(serde::de::Error::custom("a list of no sources"));
                }
                Ok(Sources(sources))
            }
        }
        deserializer.deserialize_any(OneOrMany)
    }
}

/// Training data, and what they say of where each row belongs.
#[derive(Clone, Debug)]
pub struct TrainData {
    /// The rows of all sources.
    pub data: Dataset,
    /// By what the partition divides them, if not by their labels: a column, the source or the folder.
    pub groups: Option<Groups>,
}

impl From<Dataset> for TrainData {
    fn from(data: Dataset) -> Self {
        Self { data, groups: None }
    }
}

impl TrainData {
    /// Reads what `partition` needs of `sources`, whose paths start at `base_dir`.
    pub(super) fn load(
        sources: &Sources,
        partition: &Partition,
        plan: &Plan,
        base_dir: &Path,
    ) -> Result<Self, SimulationError> {
        match (partition, &sources.0[..]) {
            (Partition::Column { column, .. }, sources) => {
                let mut all = Vec::with_capacity(sources.len());
                for source in sources {
                    let contract = data_contract(&plan.data, source);
                    all.push(source.load_grouped(base_dir, &contract, column).map_err(missing)?);
                }
                let (data, groups): (Vec<_>, Vec<_>) = all.into_iter().unzip();
                Ok(Self { data: Dataset::concat(data)?, groups: Some(Groups::merged(groups)) })
            }
            (Partition::Folder { dir }, [source]) => {
                let parent = dir.as_ref().map_or(base_dir.to_owned(), |dir| base_dir.join(dir));
                let mut names = Vec::new();
                let mut all = Vec::new();
                for (name, folder) in folders(&parent, plan)? {
                    all.push(load(source, plan, &folder)?);
                    names.push(name);
                }
                Self::of_parts(names, all)
            }
            (Partition::Folder { .. }, _) => Err(SimulationError::World(
                "partition.kind = \"folder\" goes with one source in data.train, whose files are \
                 named alike in each sub-folder"
                    .to_owned(),
            )),
            (Partition::Sources, sources) => {
                let all: Result<Vec<_>, _> =
                    sources.iter().map(|source| load(source, plan, base_dir)).collect();
                let names = (0..sources.len()).map(|index| index.to_string()).collect();
                Self::of_parts(names, all?)
            }
            (_, sources) => {
                let all: Result<Vec<_>, _> =
                    sources.iter().map(|source| load(source, plan, base_dir)).collect();
                Ok(Dataset::concat(all?)?.into())
            }
        }
    }

    /// One group for each of `parts`.
    fn of_parts(names: Vec<String>, parts: Vec<Dataset>) -> Result<Self, SimulationError> {
        let of_row = parts
            .iter()
            .enumerate()
            .flat_map(|(index, part)| std::iter::repeat_n(index as u32, part.len()))
            .collect();
        Ok(Self { data: Dataset::concat(parts)?, groups: Some(Groups::new(names, of_row)) })
    }
}

/// Reads one source.
pub(super) fn load(
    source: &Source,
    plan: &Plan,
    base_dir: &Path,
) -> Result<Dataset, SimulationError> {
    source.load(base_dir, &data_contract(&plan.data, source)).map_err(missing)
}

pub(super) fn missing(error: DataError) -> SimulationError {
    match error {
        DataError::Io { path, source } if source.kind() == std::io::ErrorKind::NotFound => {
            SimulationError::DataMissing { path }
        }
        other => SimulationError::Data(other),
    }
}

/// The sub-folders of `parent`: those named `COUNTRY-institution` in the order of the plan's clients, as
/// `comity-sim split` writes them; others, which must then be all, in the order of their names.
fn folders(parent: &Path, plan: &Plan) -> Result<Vec<(String, PathBuf)>, SimulationError> {
    let failed = |source| missing(DataError::Io { path: parent.to_owned(), source });
    let mut found = Vec::new();
    for entry in fs::read_dir(parent).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && !name.starts_with('.') {
            found.push((name, path));
        }
    }
    if found.is_empty() {
        return Err(SimulationError::World(format!(
            "{} has no sub-folder; make one for each client, with its files",
            parent.display()
        )));
    }
    found.sort();
    let place =
        |name: &str| plan.cohort.clients.iter().position(|named| folder_name(&named.id) == name);
    let n_named = found.iter().filter(|(name, _)| place(name).is_some()).count();
    if n_named == found.len() {
        found.sort_by_key(|(name, _)| place(name));
    } else if n_named > 0 {
        let (stranger, _) =
            found.iter().find(|(name, _)| place(name).is_none()).expect("not all are named");
        return Err(SimulationError::World(format!(
            "{} has sub-folders of the plan's clients, but {stranger} is none of them; name it \
             COUNTRY-institution, or move it away",
            parent.display()
        )));
    }
    Ok(found)
}

/// The folder of a client's files.
#[must_use]
pub fn folder_name(client: &ClientId) -> String {
    format!("{}-{}", client.country(), client.institution())
}
