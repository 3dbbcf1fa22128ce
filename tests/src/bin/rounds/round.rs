//! A deployed round in which nothing is trained: what the federation itself costs.
//!
//! The coordinator is a process of its own; each node is the deployed one on a thread of its own, over TCP
//! and mutual TLS, with everything that it keeps, and with a trainer that answers at once.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, ensure};
use comity_client::{Job, Node, Outside, Train, Trained};
use comity_federation::{Delta, RoundOutput, RunStatus};
use tokio::sync::{oneshot, watch};

use crate::peers::target;
use crate::site::Site;
use crate::table::{Row, median};

/// Rounds before those that are measured: connections, folders and files are new.
const N_WARM: usize = 2;

pub(crate) fn measure() -> anyhow::Result<Vec<Row>> {
    let sync = sync_ms(&target())?;
    let mut rows = Vec::new();
    let memory = Path::new("/dev/shm");
    for (what, n_features, n_classes, n_clients, rounds, target_ms) in
        [("1e4", 99, 100, 10, 60, 20.0), ("1e7", 9_999, 1_000, 4, 10, 1_000.0)]
    {
        let n_parameters = (n_features + 1) * n_classes;
        let mut places = vec![(target(), "a disk", format!("one fdatasync {sync:.1} ms"))];
        if memory.is_dir() && n_parameters < 1_000_000 {
            places.push((memory.to_owned(), "memory", "no disk".to_owned()));
        }
        for (place, on, anchor) in places {
            let ms = round_ms(&place, n_clients, n_features, n_classes, rounds)?;
            rows.push(Row {
                figure: format!(
                    "round without training, {what} parameters, {n_clients} clients, on {on}"
                ),
                ours: format!("{ms:.0} ms"),
                anchor: if n_parameters < 1_000_000 {
                    anchor
                } else {
                    format!("{anchor}; Flower 13.3 s (published)")
                },
                ratio: None,
                target: format!("≤ {target_ms} ms"),
                met: Some(ms <= target_ms),
            });
        }
    }
    Ok(rows)
}

/// The median time that the disk under `dir` takes to make a few bytes durable.
fn sync_ms(dir: &Path) -> anyhow::Result<f64> {
    use std::io::Write as _;
    let mut file = tempfile::tempfile_in(dir)?;
    let mut times = Vec::new();
    for _ in 0..50 {
        file.write_all(&[7; 300])?;
        let began = Instant::now();
        file.sync_data()?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    Ok(median(times))
}

/// The median time from one round's opening to the next one's.
fn round_ms(
    place: &Path,
    n_clients: usize,
    n_features: usize,
    n_classes: usize,
    rounds: u32,
) -> anyhow::Result<f64> {
    let site = Site::new(place, n_clients, n_features)?;
    let (stop, _) = watch::channel(false);
    let mut nodes = Vec::new();
    for (index, client) in site.clients.iter().enumerate() {
        let path = site.deployment.client_dir(client).join("client.toml");
        let outside = Outside { trainer: Arc::new(AtOnce { index }), ..Outside::deployed() };
        let node = Node::open(&path, outside)?;
        let stopped = stop.subscribe();
        nodes.push(std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(node.run(1, stopped))
        }));
    }
    let run = site.launch(n_features, n_classes, rounds)?;
    let end = Instant::now() + Duration::from_secs(150);
    while nodes.iter().any(|node| !node.is_finished()) {
        if Instant::now() > end {
            let _ = stop.send(true);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    for node in nodes {
        node.join().map_err(|_| anyhow!("a node panicked"))??;
    }
    let report = site.deployment.report(&run)?;
    ensure!(report.status == RunStatus::Finished, "the run is {:?}", report.status);
    let mut times = Vec::new();
    for round in &report.history {
        ensure!(round.contributions.len() == n_clients, "round {} lacks clients", round.round);
        let closed = round.closed.context("an open round")?;
        times.push(closed.seconds_since(round.opened) * 1e3);
    }
    Ok(median(times.split_off(N_WARM)))
}

/// Answers at once with a change that is this client's own.
struct AtOnce {
    index: usize,
}

impl Train for AtOnce {
    fn start(&self, job: Job) -> oneshot::Receiver<Trained> {
        let (sender, receiver) = oneshot::channel();
        let trained = (|| {
            let mut values = vec![0; job.plan.manifest()?.n_trainable()];
            values[self.index] = 1 + i32::try_from(job.task.round)?;
            let output = RoundOutput { delta: Delta::new(values), n_correct: None, loss_sum: None };
            Ok(job.reservation.release_exempt(output)?.into())
        })();
        let _ = sender.send(trained);
        receiver
    }
}
