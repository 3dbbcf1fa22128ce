//! A coordinator, from its folder to its last answer: whoever holds one brings the clock and the network.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use comity_certs::{Clock, Identity, Seen, explain};
use comity_federation::{Run, RunId, RunReport};
use comity_journal::DirLock;
use comity_proto::limits;
use comity_proto::transport::{Connections, Listen, incoming_among, server_builder};
use comity_proto::v1::control_server::ControlServer;
use comity_proto::v1::enrolment_server::EnrolmentServer;
use comity_proto::v1::federation_server::FederationServer;
use tokio::sync::{Notify, watch};
use tonic::codec::CompressionEncoding;
use tonic::service::interceptor::InterceptedService;
use tracing::{error, warn};

use crate::config::{Config, Home};
use crate::credentials::Credentials;
use crate::driver::Driver;
use crate::membership::Membership;
use crate::orders::Orders;
use crate::papers::Papers;
use crate::registry::Registry;
use crate::service::{
    Authenticate, ControlService, EnrolmentService, FederationService, Inviting, Uploads,
};
use crate::store::Store;

/// How long calls under way may take to end when the coordinator stops.
const GRACE: Duration = Duration::from_secs(3);

/// A listener, and the port by which others reach it.
#[derive(Debug)]
pub struct Door<L> {
    /// What accepts.
    pub listener: L,
    /// Its port.
    pub port: u16,
}

/// A coordinator that holds its folder and has replayed its journal, ready to serve.
pub struct Coordinator {
    home: Home,
    config: Config,
    clock: Clock,
    papers: Papers,
    credentials: Credentials,
    /// Asks for a look at the certificates' files at once.
    reload: Arc<Notify>,
    store: Store,
    registry: Registry,
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
        let credentials = Credentials::read(home, &config.server_names, &clock)?;
        let papers = credentials.papers();
        let (mut store, runs, registry) = Store::open(home, config.storage.clone())?;
        store.sign_missing(&papers)?;
        if !registry.is_founded() {
            warn!("nobody is enrolled: this folder was made by an older version; make a new one");
        }
        let damage = store.check_models(runs.values());
        for what in &damage {
            error!(
                "{what}; the run waits until the file is back from a backup or `run abort` ends it"
            );
        }
        let home = home.clone();
        let reload = Arc::default();
        Ok(Self {
            home,
            config,
            clock,
            credentials,
            papers,
            reload,
            store,
            registry,
            runs,
            lock,
            damage,
        })
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

    /// What to notify when the certificates' files should be looked at at once; they are anyway, each second.
    #[must_use]
    pub fn reload(&self) -> Arc<Notify> {
        Arc::clone(&self.reload)
    }

    /// The address that its configuration names for those who join.
    #[must_use]
    pub fn enrolment_listen(&self) -> SocketAddr {
        self.config.enrolment_listen()
    }

    /// Name of its federation.
    #[must_use]
    pub fn federation(&self) -> &str {
        &self.config.federation
    }

    /// Serves members at one door, and those who join at another, until `stop` turns true.
    ///
    /// # Errors
    /// If a step cannot be made durable; nothing more may then be promised to anybody.
    pub async fn serve<L: Listen>(
        self,
        members: Door<L>,
        joining: Option<Door<L>>,
        mut stop: watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        let Self {
            home,
            config,
            clock,
            credentials,
            papers,
            reload,
            store,
            registry,
            runs,
            lock,
            damage: _,
        } = self;
        let connections = Connections::default();
        let membership = Membership::new(
            registry,
            home.certs(),
            clock.clone(),
            config.enrolment.clone(),
            connections.clone(),
            credentials.clone(),
        );
        let (driver, handle) = Driver::new(&clock, papers, store, runs, membership);
        let orders = Orders {
            federation: config.federation.clone(),
            root: home.certs().join("root.pem"),
            clock: clock.clone(),
        };
        let (all_stop, stopped) = watch::channel(false);
        let mut driver = tokio::spawn(driver.run(stopped.clone()));
        let authenticate = Authenticate {
            federation: config.federation.clone(),
            members: handle.members().clone(),
            clock: clock.clone(),
        };
        let inviting = Inviting {
            federation: config.federation.clone(),
            certs: home.certs(),
            url: joining.as_ref().map(|door| config.url(door.port)),
        };
        let url = config.url(members.port);
        let uploads = Uploads::new(Arc::clone(handle.blobs()));
        let service =
            FederationService::new(handle.clone(), config.federation, clock, uploads.clone());
        let federation = FederationServer::new(service)
            .max_decoding_message_size(limits::REQUEST_BYTES_MAX)
            .max_encoding_message_size(limits::MESSAGE_BYTES_MAX)
            // To whoever says that it takes it; nothing compressed is taken from anybody.
            .send_compressed(CompressionEncoding::Zstd);
        let enrolment = EnrolmentService::new(handle.clone(), url);
        let control =
            ControlServer::new(ControlService { driver: handle, orders, uploads, inviting })
                .max_decoding_message_size(limits::MESSAGE_BYTES_MAX);
        // A certificate without a name is refused call by call, with the reason.
        let who = |chain: &[Vec<u8>]| {
            Identity::of_chain(chain).map(|identity| identity.role.to_string()).unwrap_or_default()
        };
        let why = |error: &rustls::Error| explain(error, &Seen::ByServer);
        let (tls, joining_tls) =
            (Arc::clone(&credentials.members), Arc::clone(&credentials.joining));
        tokio::spawn(credentials.follow(reload, stopped.clone()));
        let timeout = limits::HANDSHAKE_TIMEOUT;
        let accepted = incoming_among(members.listener, tls, timeout, who, why, connections);
        let mut server_stopped = stopped.clone();
        let server = server_builder()
            .add_service(InterceptedService::new(federation, authenticate.clone()))
            .add_service(InterceptedService::new(control, authenticate))
            .serve_with_incoming_shutdown(accepted, async move {
                let _ = server_stopped.wait_for(|stop| *stop).await;
            });
        let mut server = tokio::spawn(server);
        if let Some(door) = joining {
            tokio::spawn(take_in(door, joining_tls, enrolment, stopped));
        }
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

/// Serves those who join, until `stopped`.
async fn take_in<L: Listen>(
    door: Door<L>,
    tls: Arc<ArcSwap<rustls::ServerConfig>>,
    service: EnrolmentService,
    mut stopped: watch::Receiver<bool>,
) {
    let connections = Connections::new(
        limits::ENROLMENT_CONNECTIONS_MAX,
        limits::ENROLMENT_CONNECTIONS_EACH_MAX,
        limits::ENROLMENT_CONNECTION_TIME,
    );
    let timeout = limits::HANDSHAKE_TIMEOUT;
    let nobody = |_: &[Vec<u8>]| String::new();
    let why = |error: &rustls::Error| explain(error, &Seen::ByServer);
    let accepted = incoming_among(door.listener, tls, timeout, nobody, why, connections);
    let enrolment = EnrolmentServer::new(service)
        .max_decoding_message_size(limits::ENROLMENT_BYTES_MAX)
        .max_encoding_message_size(limits::MESSAGE_BYTES_MAX);
    let served = server_builder()
        .max_connection_age(limits::ENROLMENT_CONNECTION_TIME)
        .add_service(enrolment)
        .serve_with_incoming_shutdown(accepted, async move {
            let _ = stopped.wait_for(|stop| *stop).await;
        })
        .await;
    if let Err(error) = served {
        error!(%error, "nobody can join any more");
    }
}
