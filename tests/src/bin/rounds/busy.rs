//! Sixteen client processes on a machine whose cores have other work: does every run end with everybody?

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use comity_federation::RunStatus;

use crate::site::Site;
use crate::table::Row;

const N_CLIENTS: usize = 16;
const N_BUSY: usize = 2;
const N_RUNS: usize = 5;
const ROUNDS: u32 = 3;
const RUN_TIMEOUT: Duration = Duration::from_secs(90);

pub(crate) fn measure() -> anyhow::Result<Vec<Row>> {
    let mut site = Site::on_disk(N_CLIENTS, 9)?;
    let stop = Arc::new(AtomicBool::new(false));
    let loops: Vec<_> = (0..N_BUSY)
        .map(|_| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        })
        .collect();
    let began = Instant::now();
    let mut n_whole = 0;
    let mut problems = Vec::new();
    for _ in 0..N_RUNS {
        match one_run(&mut site) {
            Ok(()) => n_whole += 1,
            Err(error) => problems.push(format!("{error:#}")),
        }
    }
    stop.store(true, Ordering::Relaxed);
    for one in loops {
        let _ = one.join();
    }
    for problem in problems {
        eprintln!("{problem}");
    }
    let seconds = began.elapsed().as_secs_f64() / N_RUNS as f64;
    Ok(vec![Row {
        figure: format!(
            "{N_CLIENTS} client processes, real training, {N_BUSY} busy loops beside them: runs that \
             finished with every client in each of {ROUNDS} rounds"
        ),
        ours: format!("{n_whole} of {N_RUNS}, {seconds:.1} s each"),
        anchor: "Flower's 16 nodes never finished (published)".to_owned(),
        ratio: None,
        target: "all".to_owned(),
        met: Some(n_whole == N_RUNS),
    }])
}

/// A run in which every client takes part in every round, and every process ends by itself.
fn one_run(site: &mut Site) -> anyhow::Result<()> {
    for client in site.clients.clone() {
        site.deployment.start_client(&client, 1)?;
    }
    let run = site.launch(9, 4, ROUNDS)?;
    let ended = site.deployment.wait_for_clients(RUN_TIMEOUT);
    let report = site.deployment.report(&run)?;
    let how = (report.status, &report.reason);
    anyhow::ensure!(report.status == RunStatus::Finished, "run {run} is {how:?}");
    for round in &report.history {
        anyhow::ensure!(round.contributions.len() == N_CLIENTS, "run {run}: {:?}", round.missing);
    }
    ended
}
