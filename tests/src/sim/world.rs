//! One simulation, from folders to verdict.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use comity_certs::{Clock, Signer, client_config_at};
use comity_client::{Node, Outside};
use comity_coordinator::{Coordinator, Door, start_request};
use comity_federation::RunStatus;
use comity_journal::BlobStore;
use comity_proto::transport::connect_over;
use comity_proto::v1::control_client::ControlClient;
use tokio::sync::watch;
use tracing::{Instrument as _, info_span};
use tracing_subscriber::layer::SubscriberExt as _;

use super::faults::{Fault, Faults};
use super::network::{Fuse, Listener, Network, PORT};
use super::oracle;
use super::site::{COORDINATOR, Site, client_id, host, start};
use super::trainer::UnitVectors;
use super::witness::Witness;
use crate::draws::Draws;

/// Virtual time between two looks at the network.
const TICK: Duration = Duration::from_millis(10);
/// When everything that is broken is mended.
const MENDED_MS: u64 = 60_000;
/// By when every run is over and every node knows it: gathering and three rounds of 20 s each after a
/// coordinator's last crash, the longest pause before a node dials again, and a stalled connection's end.
const OVER_MS: u64 = MENDED_MS + 180_000;
/// How long a program that could not start waits before its next attempt, as a service manager does.
const RESTART: Duration = Duration::from_secs(3);

/// What a simulation came to; sums over several.
#[derive(Clone, Debug, Default)]
pub(super) struct Outcome {
    pub(super) n_faults: u64,
    pub(super) n_crashes: u64,
    pub(super) n_finished: u64,
    pub(super) n_aborted: u64,
    pub(super) n_counted: u64,
    pub(super) virtual_ms: u64,
    pub(super) log: Vec<String>,
    pub(super) wrongs: Vec<String>,
}

impl Outcome {
    pub(super) fn add(&mut self, other: Self) {
        self.n_faults += other.n_faults;
        self.n_crashes += other.n_crashes;
        self.n_finished += other.n_finished;
        self.n_aborted += other.n_aborted;
        self.n_counted += other.n_counted;
        self.virtual_ms += other.virtual_ms;
        self.wrongs.extend(other.wrongs);
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} faults, {} of them crashes; {} runs finished, {} aborted; {} updates counted, \
             {} lost or counted twice; {} s of virtual time",
            self.n_faults,
            self.n_crashes,
            self.n_finished,
            self.n_aborted,
            self.n_counted,
            self.wrongs.len(),
            self.virtual_ms / 1000
        )
    }
}

/// A machine's clock: the simulation's time and its own error.
#[derive(Clone)]
struct Wall {
    elapsed_ms: Arc<AtomicU64>,
    error_ms: Arc<AtomicI64>,
}

impl Wall {
    fn new(elapsed_ms: &Arc<AtomicU64>) -> Self {
        Self { elapsed_ms: Arc::clone(elapsed_ms), error_ms: Arc::default() }
    }

    fn clock(&self) -> Clock {
        let wall = self.clone();
        Clock::from_fn(move || {
            let true_time =
                start() + Duration::from_millis(wall.elapsed_ms.load(Ordering::Relaxed));
            let error = wall.error_ms.load(Ordering::Relaxed);
            let size = Duration::from_millis(error.unsigned_abs());
            if error < 0 { true_time - size } else { true_time + size }
        })
    }

    fn jump(&self, by_ms: i64) {
        self.error_ms.fetch_add(by_ms, Ordering::Relaxed);
    }

    fn set_right(&self) {
        self.error_ms.store(0, Ordering::Relaxed);
    }
}

/// Failures of a program that only a person could mend, and that no fault here excuses.
type Failures = Arc<Mutex<Vec<String>>>;

/// Plays `faults`; `seed` draws what they leave open (latencies, which training fails).
pub(super) fn simulate(seed: u64, faults: &Faults) -> Outcome {
    let witness = Witness::default();
    let subscriber = tracing_subscriber::registry().with(witness.clone());
    let mut outcome =
        tracing::subscriber::with_default(subscriber, || play(seed, faults, &witness));
    outcome.log = std::mem::take(&mut witness.0.lock().unwrap().log);
    outcome
}

fn play(seed: u64, faults: &Faults, witness: &Witness) -> Outcome {
    let site = Arc::new(Site::new(faults));
    let elapsed_ms = Arc::new(AtomicU64::new(0));
    let failures = Failures::default();
    let coordinator_wall = Wall::new(&elapsed_ms);
    let walls: Vec<Wall> = (0..faults.n_clients).map(|_| Wall::new(&elapsed_ms)).collect();
    let fuses: Vec<Fuse> = (0..faults.n_clients).map(|_| Fuse::default()).collect();

    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .tick_duration(TICK)
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(faults.latency_max_ms.max(2)))
        .simulation_duration(Duration::from_millis(2 * OVER_MS))
        .tcp_capacity(1 << 16)
        .build();
    {
        let (site, wall, failures) =
            (Arc::clone(&site), coordinator_wall.clone(), Arc::clone(&failures));
        sim.host(COORDINATOR, move || {
            let (site, wall, failures) = (Arc::clone(&site), wall.clone(), Arc::clone(&failures));
            async move {
                if let Err(error) = serve(&site, &wall).await {
                    failures.lock().unwrap().push(format!("the coordinator: {error:#}"));
                }
                Ok(())
            }
        });
    }
    for index in 0..faults.n_clients {
        let trainer = Arc::new(UnitVectors {
            client_index: index,
            n_clients: faults.n_clients,
            training: Duration::from_millis(faults.training_ms[index]),
            fails_once_in: faults.fails_once_in,
            draws: Mutex::new(Draws::new(seed ^ (index as u64 + 1))),
        });
        let outside = Outside {
            clock: walls[index].clock(),
            network: Arc::new(Network(fuses[index].clone())),
            trainer,
        };
        let (site, failures) = (Arc::clone(&site), Arc::clone(&failures));
        sim.host(host(index), move || {
            let (site, failures, outside) =
                (Arc::clone(&site), Arc::clone(&failures), outside.clone());
            async move {
                take_part(&site, index, outside, &failures).await;
                Ok(())
            }
            .instrument(info_span!("client", index))
        });
    }
    let launched = Arc::new(Mutex::new(None));
    {
        let (site, launched, clock) =
            (Arc::clone(&site), Arc::clone(&launched), coordinator_wall.clock());
        sim.client("operator", async move {
            let run = launch(&site, clock).await?;
            *launched.lock().unwrap() = Some(run);
            Ok(())
        });
    }

    // Faults begin when the run has been launched: an operator would try again.
    let (mut storm, mut upcoming) = (None, faults.faults.iter().peekable());
    let (mut n_faults, mut n_crashes, mut mended) = (0, 0, false);
    let mut repairs: Vec<(u64, Repair)> = Vec::new();
    let mut wrongs = Vec::new();
    loop {
        let now = sim.elapsed().as_millis() as u64;
        elapsed_ms.store(now, Ordering::Relaxed);
        if let Err(error) = sim.step() {
            wrongs.push(format!("the simulation broke: {error}"));
            break;
        }
        if storm.is_none() && launched.lock().unwrap().is_some() {
            storm = Some(now);
        }
        let Some(storm_began) = storm else {
            if now > MENDED_MS {
                wrongs.push("no run could be launched on a quiet network".to_owned());
                break;
            }
            continue;
        };
        let since = now - storm_began;
        let mut due = Vec::new();
        repairs.retain(|(at, repair)| {
            let is_due = *at <= since;
            if is_due {
                due.push(repair.clone());
            }
            !is_due
        });
        for repair in due {
            repair.make(&mut sim);
        }
        while upcoming.peek().is_some_and(|(at, _)| *at <= since) {
            let (_, fault) = upcoming.next().expect("peeked");
            tracing::warn!(?fault, "FAULT");
            n_faults += 1;
            let repair = match fault {
                Fault::Silence { client, ms } => {
                    sim.partition(host(*client), COORDINATOR);
                    Some((*ms, Repair::Silence(*client)))
                }
                Fault::Delay { client, ms } => {
                    sim.hold(host(*client), COORDINATOR);
                    Some((*ms, Repair::Delay(*client)))
                }
                Fault::Cut { client, after_bytes } => {
                    fuses[*client].cut_after(*after_bytes);
                    None
                }
                Fault::Flip { client, after_bytes } => {
                    fuses[*client].flip_after(*after_bytes);
                    None
                }
                Fault::CrashClient { client, ms } => {
                    n_crashes += 1;
                    sim.crash(host(*client));
                    Some((*ms, Repair::Start(host(*client))))
                }
                Fault::CrashCoordinator { ms } => {
                    n_crashes += 1;
                    sim.crash(COORDINATOR);
                    Some((*ms, Repair::Start(COORDINATOR.to_owned())))
                }
                Fault::JumpClient { client, by_ms } => {
                    walls[*client].jump(*by_ms);
                    None
                }
                Fault::JumpCoordinator { by_ms } => {
                    coordinator_wall.jump(*by_ms);
                    None
                }
            };
            repairs.extend(repair.map(|(ms, repair)| (since + ms, repair)));
        }
        if !mended && since >= MENDED_MS {
            mended = true;
            coordinator_wall.set_right();
            for (_, repair) in std::mem::take(&mut repairs) {
                repair.make(&mut sim);
            }
            for index in 0..faults.n_clients {
                fuses[index].clear();
                walls[index].set_right();
                if faults.expires.is_some_and(|(client, _)| client == index) {
                    site.renew(index);
                    sim.bounce(host(index));
                }
            }
        }
        let all_left = (0..faults.n_clients).all(|index| !sim.is_host_running(host(index)));
        let quiet = upcoming.peek().is_none() && repairs.is_empty();
        if since >= OVER_MS || (all_left && quiet) {
            break;
        }
        if !failures.lock().unwrap().is_empty() {
            break;
        }
    }
    let virtual_ms = sim.elapsed().as_millis() as u64;
    drop(sim);

    wrongs.append(&mut failures.lock().unwrap());
    let mut released = BTreeMap::new();
    for client in 0..faults.n_clients {
        match oracle::client_books(&site.client_dir(client).join("state")) {
            Ok(books) => {
                if !books.open.is_empty() {
                    wrongs.push(format!("client {client} still takes part in {:?}", books.open));
                }
                let rounds = books.released.into_iter();
                released.extend(rounds.map(|(round, n)| ((client, round), n)));
            }
            Err(error) => wrongs.push(error),
        }
    }
    let mut outcome = Outcome { n_faults, n_crashes, virtual_ms, ..Outcome::default() };
    match oracle::runs(&site.coordinator_dir()) {
        Err(error) => wrongs.push(error),
        Ok(runs) if runs.len() != 1 => wrongs.push(format!("{} runs instead of one", runs.len())),
        Ok(runs) => {
            let report = runs.values().next().expect("there is one").report();
            match report.status {
                RunStatus::Finished => outcome.n_finished = 1,
                RunStatus::Aborted => outcome.n_aborted = 1,
                _ => {}
            }
            let blobs = BlobStore::open(site.coordinator_dir().join("blobs")).expect("the blobs");
            let accepted = &witness.0.lock().unwrap().accepted;
            let (n_counted, found) =
                oracle::judge(&report, &site.plan, faults.n_clients, &blobs, &released, accepted);
            outcome.n_counted = n_counted;
            wrongs.extend(found);
        }
    }
    // Whatever happened, both sides start again from what they wrote.
    for (index, wall) in walls.iter().enumerate() {
        wall.set_right();
        site.renew(index);
        let outside = Outside { clock: wall.clock(), ..Outside::deployed() };
        if let Err(error) = Node::open(&site.client_toml(index), outside) {
            wrongs.push(format!("client {index} cannot start again: {error:#}"));
        }
    }
    coordinator_wall.set_right();
    if let Err(error) = Coordinator::open(&site.coordinator(), coordinator_wall.clock()) {
        wrongs.push(format!("the coordinator cannot start again: {error:#}"));
    }
    outcome.wrongs = wrongs;
    outcome
}

/// What ends a fault.
#[derive(Clone, Debug)]
enum Repair {
    Silence(usize),
    Delay(usize),
    Start(String),
}

impl Repair {
    fn make(&self, sim: &mut turmoil::Sim<'_>) {
        match self {
            Self::Silence(client) => sim.repair(host(*client), COORDINATOR),
            Self::Delay(client) => sim.release(host(*client), COORDINATOR),
            Self::Start(name) => {
                if !sim.is_host_running(name.as_str()) {
                    sim.bounce(name.as_str());
                }
            }
        }
    }
}

/// The coordinator's program.
async fn serve(site: &Site, wall: &Wall) -> anyhow::Result<()> {
    let coordinator = Coordinator::open(&site.coordinator(), wall.clock())?;
    let (_stop, stopped) = watch::channel(false);
    let members = Door { listener: Listener::bind().await?, port: PORT };
    coordinator.serve(members, None, stopped).await
}

/// A client's program, started again when it ends with an error, as a service manager would.
async fn take_part(site: &Site, index: usize, outside: Outside, failures: &Failures) {
    loop {
        let result = match Node::open(&site.client_toml(index), outside.clone()) {
            Ok(node) => {
                let (_stop, stopped) = watch::channel(false);
                node.run(1, stopped).await
            }
            Err(error) => Err(error),
        };
        let Err(error) = result else { return };
        let text = format!("{error:#}");
        // A clock that is wrong by a day, or a certificate that has expired, is a reason not to start.
        if !text.contains("certificate") {
            failures.lock().unwrap().push(format!("client {}: {text}", client_id(index)));
            return;
        }
        tracing::warn!(text, "not started");
        tokio::time::sleep(RESTART).await;
    }
}

/// The operator launches the run; nothing goes wrong yet.
async fn launch(site: &Site, clock: Clock) -> Result<String, Box<dyn std::error::Error>> {
    let [certificate, key, root] = site.operator();
    let signer = Signer::of_pem(&certificate, &key)?;
    let request = start_request(site.plan_toml.clone(), &site.plan, &signer, clock.now(), &[])?;
    let tls = client_config_at(&certificate, &key, &root, Arc::new(clock))?;
    let url = format!("https://{COORDINATOR}:{PORT}");
    let channel = connect_over(&Network(Fuse::default()), &url, tls).await?;
    Ok(ControlClient::new(channel).start_run(request).await?.into_inner().run_id)
}
