//! `comity-client start`: join the federation and train.

use std::path::Path;

use anyhow::Context as _;
use comity_certs::Role;
use comity_federation::ClientId;
use tokio::sync::watch;
use tracing::info;

use crate::config;
use crate::link::{Credentials, check_url};
use crate::node::Node;

/// Follows the coordinator until it is told to stop.
pub(crate) fn start(path: &Path, exit_after_runs: u32) -> anyhow::Result<()> {
    let settings = config::Node::read(path)?;
    check_url(&settings.config.coordinator)?;
    let credentials = Credentials::read(&settings.certificates())?;
    let id = client_id(&credentials)?;
    settings.config.device.open()?;
    let node = Node::open(id, settings, credentials)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("the runtime cannot start")?;
    runtime.block_on(async {
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(async move {
            stop_signal().await;
            info!("stopping; a round under way is trained again at the next start");
            let _ = stop.send(true);
        });
        node.run(exit_after_runs, stopped).await
    })?;
    // A training under way is not waited for: what it was debited stays debited, and it is
    // opened again at the next start.
    runtime.shutdown_background();
    Ok(())
}

/// The client that the node's certificate names.
pub(crate) fn client_id(credentials: &Credentials) -> anyhow::Result<ClientId> {
    match &credentials.summary.identity.role {
        Role::Client(client) => Ok(client.clone()),
        other => anyhow::bail!(
            "the certificate is of {other}, not of a client; ask the operator for a client's \
             certificate (`comity-coordinator certs issue COUNTRY/institution`)"
        ),
    }
}

/// Ctrl-C, or a service manager's request.
async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        let _ = tokio::signal::ctrl_c().await;
        return;
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}
