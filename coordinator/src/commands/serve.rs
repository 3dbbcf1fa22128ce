//! `comity-coordinator serve`: the daemon.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use comity_certs::server_config;
use comity_journal::DirLock;
use comity_proto::limits;
use comity_proto::transport::{incoming, server_builder};
use comity_proto::v1::control_server::ControlServer;
use comity_proto::v1::federation_server::FederationServer;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::service::interceptor::InterceptedService;
use tracing::info;

use crate::config::{Config, Home};
use crate::driver::Driver;
use crate::service::{Authenticate, ControlService, FederationService};
use crate::store::Store;

/// How long calls under way may take to end when the coordinator stops.
const GRACE: Duration = Duration::from_secs(3);

/// Serves until it is told to stop.
pub(crate) fn serve(home: &Home) -> anyhow::Result<()> {
    let config = Config::read(home)?;
    let _lock = DirLock::acquire(home.dir())?;
    let pem = |name: &str| {
        let path = home.certs().join(name);
        std::fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))
    };
    let tls = server_config(&pem("coordinator.pem")?, &pem("coordinator.key")?, &pem("root.pem")?)?;
    let (store, runs) = Store::open(home)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("the runtime cannot start")?;
    let result = runtime.block_on(async {
        let listener = TcpListener::bind(config.listen).await.map_err(|e| {
            let what = format!("cannot listen on {}", config.listen);
            match e.kind() {
                ErrorKind::AddrInUse => anyhow::anyhow!(
                    "{what}: the port is in use; stop the other program or change `listen` in {}",
                    home.config().display()
                ),
                _ => anyhow::anyhow!("{what}: {e}; change `listen` in {}", home.config().display()),
            }
        })?;
        let address = listener.local_addr()?;
        std::fs::write(home.address(), address.to_string())?;
        let (driver, handle) = Driver::new(config.federation.clone(), store, runs);
        let (stop, stopped) = watch::channel(false);
        let mut driver = tokio::spawn(driver.run(stopped.clone()));
        let authenticate = Authenticate { federation: config.federation.clone() };
        let federation = FederationServer::new(FederationService {
            driver: handle.clone(),
            federation: config.federation.clone(),
        })
        .max_decoding_message_size(limits::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(limits::MESSAGE_BYTES_MAX);
        let control = ControlServer::new(ControlService { driver: handle })
            .max_decoding_message_size(limits::MESSAGE_BYTES_MAX);
        let connections =
            incoming(listener, Arc::new(ArcSwap::from(tls)), limits::HANDSHAKE_TIMEOUT);
        let mut server_stopped = stopped.clone();
        let server = server_builder()
            .add_service(InterceptedService::new(federation, authenticate.clone()))
            .add_service(InterceptedService::new(control, authenticate))
            .serve_with_incoming_shutdown(connections, async move {
                let _ = server_stopped.wait_for(|stop| *stop).await;
            });
        let mut server = tokio::spawn(server);
        info!(%address, federation = config.federation, "serving");
        let outcome = tokio::select! {
            () = stop_signal() => {
                info!("stopping");
                Ok(())
            }
            ended = &mut driver => ended.context("the driver panicked")?,
            ended = &mut server => ended.context("the server panicked")?.map_err(Into::into),
        };
        let _ = stop.send(true);
        // Streams end when the driver does; whatever hangs longer is cut off.
        let _ = tokio::time::timeout(GRACE, server).await;
        let _ = std::fs::remove_file(home.address());
        outcome
    });
    runtime.shutdown_timeout(GRACE);
    result
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
