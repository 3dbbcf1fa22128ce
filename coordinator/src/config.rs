//! `coordinator.toml`: where to listen and under which name, written by `init`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

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
    /// Written by a running `serve`: where members really join.
    pub(crate) fn enrolment_address(&self) -> PathBuf {
        self.0.join("enrolment_address")
    }
    /// Of an operator's folder on another machine, written by `join`.
    pub(crate) fn operator(&self) -> PathBuf {
        self.0.join("operator.toml")
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
    /// How members join and stay.
    #[serde(default)]
    pub(crate) enrolment: EnrolmentConfig,
}

/// Where members join, unless the configuration says otherwise.
const ENROLMENT_PORT: u16 = 7444;
/// Longest certificate of a member.
const LIFETIME_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// How members join and stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct EnrolmentConfig {
    /// Address and port where members join and renew; absent: the one of `listen`, with port 7444, or a free
    /// one if that has port 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) listen: Option<SocketAddr>,
    /// How long a member's certificate is valid; it renews itself when two thirds of that are over.
    #[serde(with = "humantime_serde")]
    pub(crate) certificate_lifetime: Duration,
    /// For how long after its latest renewal a member may renew a certificate that has expired.
    #[serde(with = "humantime_serde")]
    pub(crate) renewal_grace: Duration,
    /// Operators who have to let a member in, the one who invites included: 1 or 2.
    pub(crate) approvals: u32,
}

impl Default for EnrolmentConfig {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        Self { listen: None, certificate_lifetime: DAY, renewal_grace: 30 * DAY, approvals: 1 }
    }
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
        let enrolment = &config.enrolment;
        ensure!(
            (1..=2).contains(&enrolment.approvals),
            "{}: [enrolment] approvals is 1 or 2",
            path.display()
        );
        ensure!(
            (Duration::from_secs(1)..=LIFETIME_MAX).contains(&enrolment.certificate_lifetime),
            "{}: [enrolment] certificate_lifetime is 1s to 366d; 24h is usual",
            path.display()
        );
        Ok(config)
    }

    /// Where members join.
    pub(crate) fn enrolment_listen(&self) -> SocketAddr {
        let port = if self.listen.port() == 0 { 0 } else { ENROLMENT_PORT };
        self.enrolment.listen.unwrap_or_else(|| SocketAddr::new(self.listen.ip(), port))
    }

    /// `https://HOST:PORT` by which others reach `port` of this coordinator.
    pub(crate) fn url(&self, port: u16) -> String {
        let host = self.server_names.first().expect("the configuration names at least one");
        if host.contains(':') {
            return format!("https://[{host}]:{port}");
        }
        format!("https://{host}:{port}")
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
        let enrolment = EnrolmentConfig { listen: None, ..config.enrolment.clone() };
        assert_eq!(enrolment, EnrolmentConfig::default(), "the sample shows the defaults");
        assert_eq!(config.enrolment_listen(), "0.0.0.0:7444".parse().unwrap());
    }

    #[test]
    fn an_unknown_key_is_refused() {
        let text = "federation = \"x\"\nlisten = \"127.0.0.1:1\"\nserver_names = []\nport = 3\n";
        assert!(toml::from_str::<Config>(text).unwrap_err().to_string().contains("port"));
    }
}
