//! `comity-client start`: join the federation and train.

use std::path::Path;

use anyhow::Context as _;
use tokio::sync::watch;
use tracing::info;

use crate::node::Node;
use crate::outside::Outside;

/// Follows the coordinator until it is told to stop.
pub fn start(path: &Path, exit_after_runs: u32) -> anyhow::Result<()> {
    let node = Node::open(path, Outside::deployed())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context(
            "the runtime cannot start; if too many files are open, raise the limit (`ulimit -n`)",
        )?;
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
