//! The operator's connection: the same mTLS port as the clients', with the operator's certificate.

use anyhow::{Context as _, anyhow};
use comity_certs::{
    CertificateSummary, Seen, Signer, check_own, client_config, explain, read_key_pem,
};
use comity_proto::limits::MESSAGE_BYTES_MAX;
use comity_proto::transport::{ConnectError, connect};
use comity_proto::v1::control_client::ControlClient;
use time::OffsetDateTime;
use tonic::Status;
use tonic::transport::Channel;

use crate::config::{Config, Home};

/// Connects as the operator whose certificate lies at `home`.
pub(super) async fn open(home: &Home) -> anyhow::Result<ControlClient<Channel>> {
    let config = Config::read(home)?;
    let pem = |name: &str| {
        let path = home.certs().join(name);
        std::fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))
    };
    let (certificate, root) = (pem("operator.pem")?, pem("root.pem")?);
    let key = read_key_pem(&home.certs().join("operator.key"))?;
    let now = OffsetDateTime::now_utc();
    let summary: CertificateSummary = check_own(&certificate, &key, &root, now)?;
    let tls = client_config(&certificate, &key, &root)?;
    // A served port 0 is known only from the file that `serve` writes.
    let port = std::fs::read_to_string(home.address())
        .ok()
        .and_then(|address| address.rsplit_once(':')?.1.trim().parse::<u16>().ok())
        .unwrap_or(config.listen.port());
    let host = config.server_names.first().expect("the configuration names at least one");
    let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    let url = format!("https://{host}:{port}");
    let channel = connect(&url, tls).await.map_err(|e| match e {
        ConnectError::Refused { ref source, .. } => {
            anyhow!(explain(source, &Seen::ByClient { own: Some(&summary), server: &url, now }))
        }
        ConnectError::Unreachable { .. } => {
            anyhow!("{e}; is `comity-coordinator --dir {} serve` running?", home.dir().display())
        }
        other => anyhow!(other),
    })?;
    Ok(ControlClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX))
}

/// The key with which this operator signs orders.
pub(super) fn signer(home: &Home) -> anyhow::Result<Signer> {
    let certs = home.certs();
    Ok(Signer::read(&certs.join("operator.pem"), &certs.join("operator.key"))?)
}

/// A refusal, in the coordinator's words.
pub(super) fn refused(status: Status) -> anyhow::Error {
    anyhow!("{}", status.message())
}
