//! A coordinator, from its folder to its last answer: whoever holds one brings the clock and the network.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use comity_certs::{
    CertError, Clock, Identity, Seen, check_own, explain, read_key_pem, server_config_at,
};
use comity_federation::{Run, RunId, RunReport};
use comity_journal::DirLock;
use comity_proto::limits;
use comity_proto::transport::{Listen, incoming, server_builder};
use comity_proto::v1::control_server::ControlServer;
use comity_proto::v1::federation_server::FederationServer;
use tokio::sync::watch;
use tonic::codec::CompressionEncoding;
use tonic::service::interceptor::InterceptedService;
use tracing::{error, warn};

use crate::config::{Config, Home};
use crate::driver::Driver;
use crate::orders::Orders;
use crate::papers::Papers;
use crate::service::{Authenticate, ControlService, FederationService};
use crate::store::Store;

/// How long calls under way may take to end when the coordinator stops.
const GRACE: Duration = Duration::from_secs(3);

/// A coordinator that holds its folder and has replayed its journal, ready to serve.
pub struct Coordinator {
    config: Config,
    clock: Clock,
    /// The file of the roots.
    root: PathBuf,
    tls: Arc<rustls::ServerConfig>,
    papers: Papers,
    store: Store,
    runs: BTreeMap<RunId, Run>,
    lock: DirLock,
    damage: Vec<String>,
}

impl Coordinator {
    /// Opens the coordinator at `home`, whose time is `clock`'s.
    ///
    /// # Errors
    /// If its configuration, certificates or journal cannot be read or are refused, and if another
    /// process holds the folder.
    pub fn open(home: &Home, clock: Clock) -> anyhow::Result<Self> {
        let config = Config::read(home)?;
        let lock = DirLock::acquire(home.dir())?;
        let pem = |name: &str| {
            let path = home.certs().join(name);
            std::fs::read_to_string(&path)
                .with_context(|| format!("{} cannot be read", path.display()))
        };
        let (certificate, root) = (pem("coordinator.pem")?, pem("root.pem")?);
        let key = read_key_pem(&home.certs().join("coordinator.key"))?;
        let files = || {
            format!(
                "coordinator.pem, coordinator.key and root.pem in {} do not belong together, or one is \
                 damaged; put them back from a backup",
                home.certs().display()
            )
        };
        match check_own(&certificate, &key, &root, clock.date()) {
            Ok(_) => {}
            // Clients will say so too; the operator can still see the runs.
            Err(dated @ (CertError::Expired { .. } | CertError::NotYetValid { .. })) => {
                warn!(%dated, "clients will refuse this certificate");
            }
            Err(other) => return Err(other).with_context(files),
        }
        let tls = server_config_at(&certificate, &key, &root, Arc::new(clock.clone()))
            .with_context(files)?;
        let papers = Papers::new(&certificate, &key, &root).with_context(files)?;
        let (mut store, runs) = Store::open(home, config.storage.clone())?;
        store.sign_missing(&papers)?;
        let damage = store.check_models(runs.values());
        for what in &damage {
            error!(
                "{what}; the run waits until the file is back from a backup or `run abort` ends it"
            );
        }
        let root = home.certs().join("root.pem");
        Ok(Self { config, clock, root, tls, papers, store, runs, lock, damage })
    }

    /// Which open runs cannot go on because the disk no longer holds the model that was written, each
    /// with the file's name. The other runs are not disturbed.
    #[must_use]
    pub fn damage(&self) -> &[String] {
        &self.damage
    }

    /// All its runs with their rounds, as `run show` would show them.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub fn reports(&self) -> anyhow::Result<Vec<RunReport>> {
        let runs = self.store.reports()?.into_iter();
        runs.map(|run| self.store.report(&run.run)?.context("a run without its rounds")).collect()
    }

    /// The address that its configuration names.
    #[must_use]
    pub fn listen(&self) -> SocketAddr {
        self.config.listen
    }

    /// Name of its federation.
    #[must_use]
    pub fn federation(&self) -> &str {
        &self.config.federation
    }

    /// Serves what `listener` accepts until `stop` turns true.
    ///
    /// # Errors
    /// If a step cannot be made durable; nothing more may then be promised to anybody.
    pub async fn serve<L: Listen>(
        self,
        listener: L,
        mut stop: watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        let Self { config, clock, root, tls, papers, store, runs, lock, damage: _ } = self;
        let (driver, handle) = Driver::new(&clock, papers, store, runs);
        let orders = Orders { federation: config.federation.clone(), root, clock: clock.clone() };
        let (all_stop, stopped) = watch::channel(false);
        let mut driver = tokio::spawn(driver.run(stopped.clone()));
        let authenticate = Authenticate { federation: config.federation.clone() };
        let service = FederationService::new(handle.clone(), config.federation, clock);
        let federation = FederationServer::new(service)
            .max_decoding_message_size(limits::REQUEST_BYTES_MAX)
            .max_encoding_message_size(limits::MESSAGE_BYTES_MAX)
            // To whoever says that it takes it; nothing compressed is taken from anybody.
            .send_compressed(CompressionEncoding::Zstd);
        let control = ControlServer::new(ControlService { driver: handle, orders })
            .max_decoding_message_size(limits::MESSAGE_BYTES_MAX);
        // A certificate without a name is refused call by call, with the reason.
        let who = |chain: &[Vec<u8>]| {
            Identity::of_chain(chain).map(|identity| identity.to_string()).unwrap_or_default()
        };
        let why = |error: &rustls::Error| explain(error, &Seen::ByServer);
        let tls = Arc::new(ArcSwap::from(tls));
        let connections = incoming(listener, tls, limits::HANDSHAKE_TIMEOUT, who, why);
        let mut server_stopped = stopped.clone();
        let server = server_builder()
            .add_service(InterceptedService::new(federation, authenticate.clone()))
            .add_service(InterceptedService::new(control, authenticate))
            .serve_with_incoming_shutdown(connections, async move {
                let _ = server_stopped.wait_for(|stop| *stop).await;
            });
        let mut server = tokio::spawn(server);
        let outcome = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => Ok(()),
            ended = &mut driver => ended.context("the driver panicked")?,
            ended = &mut server => ended.context("the server panicked")?.map_err(Into::into),
        };
        let _ = all_stop.send(true);
        // Streams end when the driver does; whatever hangs longer is cut off.
        let rest = async {
            if !server.is_finished() {
                let _ = server.await;
            }
            if !driver.is_finished() {
                let _ = driver.await;
            }
        };
        let _ = tokio::time::timeout(GRACE, rest).await;
        drop(lock);
        outcome
    }
}
