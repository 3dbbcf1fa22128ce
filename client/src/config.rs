//! `client.toml`: what an institution tells its node, parsed once.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use bytesize::ByteSize;
use comity_burn_models::DeviceChoice;
use comity_datasets::Source;
use comity_federation::Policy;
use comity_privacy::Limit;
use serde::Deserialize;

use crate::policy_file;

/// The settings of a node.  Nothing about privacy, identity or data has a default.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// `https://HOST:PORT` of the coordinator.
    pub(crate) coordinator: String,
    /// `https://HOST:PORT` at which the node renews its certificate; absent: the coordinator's host, port 7444.
    pub(crate) enrolment: Option<String>,
    /// Folder with `certificate.pem`, `key.pem` and `root.pem`.
    pub(crate) certificates: PathBuf,
    /// Folder of the node's journal, ledger and updates.
    pub(crate) state: PathBuf,
    /// Where to train.
    #[serde(default)]
    pub(crate) device: DeviceChoice,
    /// The institution's data.
    pub(crate) data: DataConfig,
    /// The file that says what the institution allows.
    pub(crate) policy: PathBuf,
    /// How much stays on the disk.
    #[serde(default)]
    pub(crate) storage: StorageConfig,
    /// How the node speaks with the coordinator.
    #[serde(default)]
    pub(crate) connection: ConnectionConfig,
}

/// How the node speaks with the coordinator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ConnectionConfig {
    /// Whether plans and assignments come compressed (zstd).
    pub(crate) compress: bool,
}

/// What stays on the disk of a node besides its journal.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct StorageConfig {
    /// Most bytes of released updates that are kept, so that the steward can show them.
    pub(crate) updates_bytes_max: ByteSize,
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self { updates_bytes_max: ByteSize::gib(10) }
    }
}

/// The institution's data set; the ledger counts what has been spent on it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DataConfig {
    /// The number of records that the institution has made public, rounded.
    pub(crate) records: u64,
    /// The number of persons that the institution has made public, rounded; needed for runs that
    /// protect persons.
    pub(crate) persons: Option<u64>,
    /// The files.
    pub(crate) source: Source,
}

/// Where coordinators renew certificates, unless they say otherwise.
const ENROLMENT_PORT: u16 = 7444;

/// A parsed configuration, and the folder from which its relative paths start.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) config: Config,
    pub(crate) base: PathBuf,
    pub(crate) policy: Policy,
}

impl Node {
    /// Reads the configuration at `path`.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| {
            format!("{} cannot be read; give the file with --config FILE", path.display())
        })?;
        let config: Config =
            toml::from_str(&text).with_context(|| format!("{} is not valid", path.display()))?;
        ensure!(
            config.data.records > 0,
            "{}: data.records must be the public, rounded number of records",
            path.display()
        );
        ensure!(
            config.data.persons.is_none_or(|persons| (1..=config.data.records).contains(&persons)),
            "{}: data.persons must be 1 to data.records",
            path.display()
        );
        let base = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let (records, persons) = (config.data.records, config.data.persons);
        let policy = policy_file::read(&base.join(&config.policy), records, persons)?;
        Ok(Self { config, base: base.to_owned(), policy })
    }

    /// The folder of the node's own files.
    pub(crate) fn state(&self) -> PathBuf {
        self.base.join(&self.config.state)
    }

    /// Where the node renews its certificate.
    pub(crate) fn enrolment(&self) -> String {
        self.config.enrolment.clone().unwrap_or_else(|| {
            let url = &self.config.coordinator;
            let host = url.rsplit_once(':').map_or(url.as_str(), |(host, _)| host);
            format!("{host}:{ENROLMENT_PORT}")
        })
    }

    /// The folder of certificates.
    pub(crate) fn certificates(&self) -> PathBuf {
        self.base.join(&self.config.certificates)
    }

    /// The public number of privacy units.
    pub(crate) fn units_declared(&self) -> u64 {
        self.config.data.records
    }

    /// What the ledger refuses to pass.
    pub(crate) fn limit(&self) -> Limit {
        Limit { budget: self.policy.budget, exempt_allowed: self.policy.without_dp_allowed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, toml::de::Error> {
        toml::from_str(text)
    }

    #[test]
    fn the_sample_parses() {
        let config = parse(include_str!("../../docs/samples/client.toml")).unwrap();
        assert_eq!(config.data.records, 21_000);
        assert_eq!(config.enrolment.as_deref(), Some("https://coordinator.example.org:7444"));
        assert_eq!(config.policy, Path::new("policy.toml"));
        assert_eq!(config.storage, StorageConfig::default(), "the sample shows the default");
    }

    #[test]
    fn a_policy_is_named_and_unknown_keys_are_refused() {
        let sample = include_str!("../../docs/samples/client.toml");
        let without = sample.replace("policy = \"policy.toml\"", "");
        assert!(parse(&without).unwrap_err().to_string().contains("policy"));
        let typo = sample.replace("[data]", "[data]\nrecord = 3");
        assert!(parse(&typo).unwrap_err().to_string().contains("record"));
    }
}
