//! `coordinator.toml`: where to listen and under which name, written by `init`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

/// Where the files of a coordinator lie in its folder.
#[derive(Clone, Debug)]
pub struct Home(PathBuf);

impl Home {
    /// The coordinator whose folder is `dir`.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self(dir.to_owned())
    }
    pub(crate) fn dir(&self) -> &Path {
        &self.0
    }
    pub(crate) fn config(&self) -> PathBuf {
        self.0.join("coordinator.toml")
    }
    pub(crate) fn certs(&self) -> PathBuf {
        self.0.join("certs")
    }
    pub(crate) fn journal(&self) -> PathBuf {
        self.0.join("journal.log")
    }
    pub(crate) fn blobs(&self) -> PathBuf {
        self.0.join("blobs")
    }
    pub(crate) fn index(&self) -> PathBuf {
        self.0.join("index")
    }
    /// Written by a running `serve`: the address that it really listens on.
    pub(crate) fn address(&self) -> PathBuf {
        self.0.join("address")
    }
}

/// The settings of a coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Name of the federation; part of every identity.
    pub(crate) federation: String,
    /// Address and port; port 0 takes a free one and `address` says which.
    pub(crate) listen: SocketAddr,
    /// Names and addresses by which clients reach the coordinator, as in its certificate.
    pub(crate) server_names: Vec<String>,
    /// How much stays on the disk.
    #[serde(default)]
    pub(crate) storage: StorageConfig,
}

/// What stays on the disk of a coordinator besides its journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct StorageConfig {
    /// Latest models that are kept of an open run, the current one included.
    pub(crate) models_kept: u32,
    /// Latest models that are kept of a run that has ended.
    pub(crate) models_kept_of_ended: u32,
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self { models_kept: 3, models_kept_of_ended: 1 }
    }
}

impl Config {
    /// Reads the configuration of the coordinator at `home`.
    pub(crate) fn read(home: &Home) -> anyhow::Result<Self> {
        let path = home.config();
        let text = std::fs::read_to_string(&path).with_context(|| {
            format!(
                "{} cannot be read; make a coordinator with `comity-coordinator init --dir {}`",
                path.display(),
                home.dir().display()
            )
        })?;
        let config: Self =
            toml::from_str(&text).with_context(|| format!("{} is not valid", path.display()))?;
        ensure!(
            !config.server_names.is_empty(),
            "{}: server_names is empty; name at least one host",
            path.display()
        );
        ensure!(
            config.storage.models_kept > 0 && config.storage.models_kept_of_ended > 0,
            "{}: [storage] keeps at least the latest model of a run; write 1 or more",
            path.display()
        );
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_parses() {
        let sample = include_str!("../../docs/samples/coordinator.toml");
        let config: Config = toml::from_str(sample).unwrap();
        assert_eq!(config.federation, "east-asia-health");
        assert_eq!(config.storage, StorageConfig::default(), "the sample shows the defaults");
    }

    #[test]
    fn an_unknown_key_is_refused() {
        let text = "federation = \"x\"\nlisten = \"127.0.0.1:1\"\nserver_names = []\nport = 3\n";
        assert!(toml::from_str::<Config>(text).unwrap_err().to_string().contains("port"));
    }
}
