//! The operator's connection: the same mTLS port as the clients', with the operator's certificate, which renews
//! itself on the way.
//!
//! On the coordinator's own machine the folder is the coordinator's; on another one it is what `join` made, with
//! `operator.toml` instead of `coordinator.toml`.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, anyhow, bail, ensure};
use comity_certs::{
    CertificateFacts, CertificateSummary, Clock, MemberKey, Seen, Signer, check_own, client_config,
    explain, read_key_pem, renewing_config, replace,
};
use comity_proto::limits::MESSAGE_BYTES_MAX;
use comity_proto::transport::{ConnectError, connect};
use comity_proto::v1::control_client::ControlClient;
use comity_proto::v1::enrolment_client::EnrolmentClient;
use comity_proto::v1::{Enrolled, RenewRequest};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tonic::Status;
use tonic::transport::Channel;
use tracing::warn;

use crate::config::{Config, Home};

/// `operator.toml`: where an operator's coordinator is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OperatorConfig {
    /// `https://HOST:PORT` of the coordinator.
    pub(super) coordinator: String,
    /// `https://HOST:PORT` where certificates are renewed.
    pub(super) enrolment: String,
}

impl OperatorConfig {
    /// Of the operator's folder `home`, or of the coordinator's own.
    fn read(home: &Home) -> anyhow::Result<Self> {
        let path = home.operator();
        if path.exists() {
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("{} cannot be read", path.display()))?;
            return toml::from_str(&text)
                .with_context(|| format!("{} is not valid", path.display()));
        }
        let config = Config::read(home)?;
        // A served port 0 is known only from the files that `serve` writes.
        let served = |file: PathBuf| {
            let address = std::fs::read_to_string(file).ok()?;
            address.rsplit_once(':')?.1.trim().parse::<u16>().ok()
        };
        let port = served(home.address()).unwrap_or(config.listen.port());
        let enrolment =
            served(home.enrolment_address()).unwrap_or(config.enrolment_listen().port());
        Ok(Self { coordinator: config.url(port), enrolment: config.url(enrolment) })
    }
}

/// Connects as the operator whose certificate lies at `home`.
pub(super) async fn open(home: &Home) -> anyhow::Result<ControlClient<Channel>> {
    let config = OperatorConfig::read(home)?;
    if let Err(error) = renew_if_due(home, &config).await {
        warn!("the operator's certificate could not be renewed: {error:#}");
    }
    let pem = |name: &str| {
        let path = home.certs().join(name);
        std::fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))
    };
    let (certificate, root) = (pem("operator.pem")?, pem("root.pem")?);
    let key = read_key_pem(&home.certs().join("operator.key"))?;
    let now = OffsetDateTime::now_utc();
    let summary: CertificateSummary = check_own(&certificate, &key, &root, now)?;
    let tls = client_config(&certificate, &key, &root)?;
    let url = config.coordinator.clone();
    let channel = match connect(&url, tls).await {
        Ok(channel) => channel,
        Err(ConnectError::Refused { source, .. }) => {
            // TLS tells that a certificate was revoked, and not why; that is told where it is renewed.
            let alert = rustls::AlertDescription::CertificateRevoked;
            if source == rustls::Error::AlertReceived(alert)
                && let Err(why) = renew(home, &config).await
            {
                return Err(why);
            }
            let seen = Seen::ByClient { own: Some(&summary), server: &url, now };
            return Err(anyhow!(explain(&source, &seen)));
        }
        Err(e @ ConnectError::Unreachable { .. }) => {
            bail!("{e}; is `comity-coordinator serve` running there?")
        }
        Err(other) => return Err(other.into()),
    };
    Ok(ControlClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX))
}

/// The key with which this operator signs orders.
pub(super) fn signer(home: &Home) -> anyhow::Result<Signer> {
    let certs = home.certs();
    Ok(Signer::read(&certs.join("operator.pem"), &certs.join("operator.key"))?)
}

/// Asks for the next certificate when two thirds of the life of the latest are over.
async fn renew_if_due(home: &Home, config: &OperatorConfig) -> anyhow::Result<()> {
    let latest = std::fs::read_to_string(home.certs().join("operator.pem"))?;
    if Clock::system().date() < CertificateFacts::of_pem(&latest)?.renews_at() {
        return Ok(());
    }
    renew(home, config).await
}

/// Asks for the next certificate.
async fn renew(home: &Home, config: &OperatorConfig) -> anyhow::Result<()> {
    let (path, root) = (home.certs().join("operator.pem"), home.certs().join("root.pem"));
    let clock = Clock::system();
    let latest = CertificateFacts::of_pem(&std::fs::read_to_string(&path)?)?;
    let key = MemberKey::read(&home.certs().join("operator.key"))?;
    let tls = renewing_config(&std::fs::read_to_string(&root)?, Arc::new(clock.clone()))?;
    let channel = connect(&config.enrolment, tls).await?;
    let request = RenewRequest { csr_der: key.signing_request()?.into() };
    let renewed = EnrolmentClient::new(channel).renew(request).await.map_err(refused)?;
    let Enrolled { certificate_pem, root_pem, .. } = renewed.into_inner();
    let key_pem = read_key_pem(&home.certs().join("operator.key"))?;
    let summary = check_own(&certificate_pem, &key_pem, &root_pem, clock.date())?;
    ensure!(summary.identity == latest.identity, "the new certificate is another member's");
    replace(&root, &root_pem)?;
    replace(&path, &certificate_pem)?;
    Ok(())
}

/// A refusal, in the coordinator's words.
pub(super) fn refused(status: Status) -> anyhow::Error {
    anyhow!("{}", status.message())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_parses() {
        let sample = include_str!("../../../docs/samples/operator.toml");
        let config: OperatorConfig = toml::from_str(sample).unwrap();
        assert_eq!(config.enrolment, "https://coordinator.example.org:7444");
        assert!(toml::from_str::<OperatorConfig>(&format!("{sample}key = 1\n")).is_err());
    }
}
