//! `comity-coordinator serve`: the daemon.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use comity_certs::Clock;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, watch};
use tracing::info;

use crate::config::Home;
use crate::server::{Coordinator, Door};

/// How long disk work under way may take to end when the coordinator stops.
const GRACE: Duration = Duration::from_secs(3);

/// Serves until it is told to stop.
///
/// # Errors
/// If the folder cannot be opened or the address not be taken, and if nothing more can be made durable.
pub fn serve(home: &Home) -> anyhow::Result<()> {
    let coordinator = Coordinator::open(home, Clock::system())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context(
            "the runtime cannot start; if too many files are open, raise the limit (`ulimit -n`)",
        )?;
    let result = runtime.block_on(async {
        let (members, address) = open(home, coordinator.listen()).await?;
        let (joining, enrolment_address) = open(home, coordinator.enrolment_listen()).await?;
        // Before anybody can know that it serves: a signal that nobody waits for ends a process.
        let hangups = signal(SignalKind::hangup())?;
        std::fs::write(home.enrolment_address(), enrolment_address.to_string())?;
        std::fs::write(home.address(), address.to_string())?;
        info!(%address, %enrolment_address, federation = coordinator.federation(), "serving");
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(async move {
            stop_signal().await;
            info!("stopping");
            let _ = stop.send(true);
        });
        tokio::spawn(reload_signals(hangups, coordinator.reload()));
        let outcome = coordinator.serve(members, Some(joining), stopped).await;
        let _ = std::fs::remove_file(home.address());
        let _ = std::fs::remove_file(home.enrolment_address());
        outcome
    });
    runtime.shutdown_timeout(GRACE);
    result
}

/// SIGHUP: new certificates lie there.
async fn reload_signals(mut hangups: Signal, reload: Arc<Notify>) {
    while hangups.recv().await.is_some() {
        info!("asked to look at the certificates' files");
        reload.notify_one();
    }
}

/// Listens on `listen`, and says on which address it really does.
async fn open(home: &Home, listen: SocketAddr) -> anyhow::Result<(Door<TcpListener>, SocketAddr)> {
    let listener = TcpListener::bind(listen).await.map_err(|e| {
        let what = format!("cannot listen on {listen}");
        match e.kind() {
            ErrorKind::AddrInUse => anyhow::anyhow!(
                "{what}: the port is in use; stop the other program or change `listen` in {}",
                home.config().display()
            ),
            _ => anyhow::anyhow!("{what}: {e}; change `listen` in {}", home.config().display()),
        }
    })?;
    let address = listener.local_addr()?;
    Ok((Door { listener, port: address.port() }, address))
}

/// Ctrl-C, or a service manager's request.
async fn stop_signal() {
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        let _ = tokio::signal::ctrl_c().await;
        return;
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}
