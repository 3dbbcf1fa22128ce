//! Kills of the real programs, at random instants and at named failpoints, over and over: nothing that was
//! acknowledged is lost, nothing counts twice, and the model is the simulator's to the bit.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt as _;
use std::time::{Duration, Instant};

use comity_federation::{ClientId, RunReport, RunStatus};
use comity_journal::BlobStore;

use super::{PATIENCE, Site, short_rounds};
use crate::draws::Draws;

/// Names the number of kills; `make chaos` makes more of them.
const N_KILLS: &str = "COMITY_LOOPS";
const N_KILLS_DEFAULT: u64 = 12;
/// Rounds of one run.
const ROUNDS: u32 = 12;
/// How long a process may take to come to its failpoint; then it is killed wherever it is.
const FAILPOINT_PATIENCE: Duration = Duration::from_secs(4);

const OF_THE_DISK: [&str; 8] = [
    "disk::any",
    "disk::create",
    "disk::write",
    "disk::sync",
    "disk::rename",
    "disk::remove",
    "disk::truncate",
    "disk::index",
];
const OF_THE_COORDINATOR: [&str; 8] = [
    "coordinator::before_record",
    "coordinator::after_record",
    "coordinator::after_index",
    "coordinator::before_reply",
    "coordinator::before_fold_stored",
    "coordinator::after_fold_stored",
    "coordinator::before_sweep",
    "coordinator::after_sweep",
];
const OF_A_CLIENT: [&str; 12] = [
    "client::before_record",
    "client::after_record",
    "client::after_fetch",
    "client::before_debit",
    "client::after_debit",
    "client::before_release",
    "client::before_commit",
    "client::after_release",
    "client::before_submit",
    "client::after_submit",
    "client::before_sweep",
    "client::after_sweep",
];

/// Kills by how they came.
#[derive(Default)]
struct Count {
    coordinator: u64,
    clients: u64,
    at_random: u64,
    at_failpoints: BTreeMap<&'static str, u64>,
}

/// Counts what the record of a run that has ended says; `Err` with what is wrong.
fn judge(report: &RunReport, clients: &[ClientId], model: &str) -> Result<u64, String> {
    if report.status != RunStatus::Finished || report.history.len() as u32 != ROUNDS {
        return Err(format!("not finished: {report:#?}"));
    }
    let mut n_counted = 0;
    for round in &report.history {
        let counted: BTreeSet<&ClientId> = round.contributions.iter().map(|c| &c.client).collect();
        if counted.len() != round.contributions.len() {
            return Err(format!("counted twice: {round:#?}"));
        }
        if counted.len() != clients.len() {
            return Err(format!("lost: {round:#?}"));
        }
        n_counted += counted.len() as u64;
    }
    if report.model.to_string() != model {
        return Err(format!("the model is {}, the simulator's {model}", report.model));
    }
    Ok(n_counted)
}

// BAD_INPUTS 73, 92
#[test]
fn killed_over_and_over_every_update_counts_once_and_the_model_is_the_simulators() {
    let n_kills: u64 = std::env::var(N_KILLS).map_or(N_KILLS_DEFAULT, |n| n.parse().unwrap());
    survives(&short_rounds(ROUNDS), n_kills);
}

/// A control variate that was of another round than the update beside it would end in another model.
#[test]
fn killed_over_and_over_clients_keep_what_belongs_to_their_last_update() {
    let plan = short_rounds(ROUNDS)
        .replace("\"fedavg\"", "\"scaffold\"")
        .replace("local_epochs = 1", "local_steps = 2");
    survives(&plan, N_KILLS_DEFAULT);
}

/// Kills whoever serves `plan` so many times.
fn survives(plan: &str, n_kills: u64) {
    let mut site = Site::new(plan);
    let clients = site.add_clients(None, true);
    site.keep_port();
    let model = site.simulated_model();
    for client in &clients {
        site.deployment.start_client(client, 0).unwrap();
    }
    let began = Instant::now();
    let mut draws = Draws::new(n_kills);
    let mut count = Count::default();
    let mut runs = vec![site.launch()];
    let mut n_counted = 0;
    loop {
        let n = count.coordinator + count.clients;
        if let Ok(report) = site.deployment.report(runs.last().unwrap())
            && report.status.is_terminal()
        {
            n_counted += judge(&report, &clients, &model).unwrap();
            if n >= n_kills {
                break;
            }
            runs.push(site.launch());
        }
        if n >= n_kills {
            assert!(began.elapsed() < PATIENCE * (1 + n_kills as u32 / 20), "the run does not end");
            std::thread::sleep(Duration::from_millis(50));
            continue;
        }
        // One kill of two hits the coordinator, because all clients hang on it.
        let victim = match draws.between(0, 5) {
            i @ 0..=2 => Some(&clients[i as usize]),
            _ => None,
        };
        // An attempt at a failpoint is an end at a random instant as well: together, half and half.
        let by_failpoint = !draws.once_in(5);
        let at = if by_failpoint { failpoint(&mut draws, victim) } else { ("", String::new()) };
        if by_failpoint {
            // It dies in its work: so it starts with the failpoint, after an end that counts as well.
            end(&mut site, victim, &mut count, None);
            restart(&mut site, victim, &at.1);
            let reached = wait_for_abort(&mut site, victim);
            end(&mut site, victim, &mut count, reached.then_some(at.0));
        } else {
            std::thread::sleep(Duration::from_millis(draws.between(0, 500)));
            end(&mut site, victim, &mut count, None);
        }
        restart(&mut site, victim, "");
    }
    println!(
        "{} kills ({} of the coordinator, {} of clients; {} at random instants, {} at failpoints), {} runs \
         finished, {n_counted} updates counted, lost 0, double 0, {} s",
        count.coordinator + count.clients,
        count.coordinator,
        count.clients,
        count.at_random,
        count.at_failpoints.values().sum::<u64>(),
        runs.len(),
        began.elapsed().as_secs()
    );
    for (point, n) in &count.at_failpoints {
        println!("  {n:>4} at {point}");
    }
    assert!(count.at_random > 0 && !count.at_failpoints.is_empty());
    leaves_nothing_behind(&mut site, &clients, &runs);
}

/// A failpoint of `victim`, and what makes it end there, the first or a later time that it comes by.
fn failpoint(draws: &mut Draws, victim: Option<&ClientId>) -> (&'static str, String) {
    let own: &[&str] = if victim.is_some() { &OF_A_CLIENT } else { &OF_THE_COORDINATOR };
    let points: Vec<&'static str> = OF_THE_DISK.iter().chain(own).copied().collect();
    let point = points[draws.between(0, points.len() as u64 - 1) as usize];
    let times = match point {
        "disk::any" => draws.between(0, 120),
        "disk::sync" | "disk::write" | "disk::index" => draws.between(0, 20),
        _ => draws.between(0, 2),
    };
    (point, format!("{point}={times}*off->return(abort)"))
}

fn restart(site: &mut Site, victim: Option<&ClientId>, failpoints: &str) {
    match victim {
        Some(client) => site.deployment.start_client_failing(client, 0, failpoints).unwrap(),
        // It may come to its failpoint before it serves.
        None if !failpoints.is_empty() => drop(site.deployment.serve_failing(failpoints)),
        None => site.deployment.serve().unwrap(),
    }
}

/// Whether the process ends by itself before patience does.
fn wait_for_abort(site: &mut Site, victim: Option<&ClientId>) -> bool {
    let end = Instant::now() + FAILPOINT_PATIENCE;
    while Instant::now() < end {
        let ended = match victim {
            Some(client) => site.deployment.client_ended(client).unwrap(),
            None if !site.deployment.is_serving() => return true,
            None => site.deployment.coordinator_ended().unwrap(),
        };
        if let Some(status) = ended {
            // SIGABRT: a failpoint and nothing else.
            assert_eq!(
                status.signal(),
                Some(6),
                "{victim:?}: {}",
                site.deployment.coordinator_said()
            );
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

/// Kills `victim`, which may have ended at the failpoint `at`.
fn end(site: &mut Site, victim: Option<&ClientId>, count: &mut Count, at: Option<&'static str>) {
    match victim {
        Some(client) => {
            site.deployment.kill_client(client);
            count.clients += 1;
        }
        None => {
            site.deployment.kill_coordinator();
            count.coordinator += 1;
        }
    }
    match at {
        Some(point) => *count.at_failpoints.entry(point).or_default() += 1,
        None => count.at_random += 1,
    }
}

/// After everything was told that all runs are over: journals verify, and no blob is left that nobody needs.
fn leaves_nothing_behind(site: &mut Site, clients: &[ClientId], runs: &[String]) {
    let last = site.deployment.report(runs.last().unwrap()).unwrap();
    for client in clients {
        let end = Instant::now() + PATIENCE;
        loop {
            let shown = site.deployment.client(client, &["journal", "show", "--json"]).unwrap();
            let records = shown.success().unwrap().json().unwrap();
            let over = |run: &String| {
                records
                    .as_array()
                    .unwrap()
                    .iter()
                    .any(|r| r["run"] == **run && r["what"] == "run finished")
            };
            if runs.iter().all(over) {
                break;
            }
            assert!(Instant::now() < end, "{client}: {}", site.deployment.client_said(client));
            std::thread::sleep(Duration::from_millis(50));
        }
        site.deployment.kill_client(client);
    }
    site.deployment.stop_coordinator().unwrap();
    site.deployment.serve().unwrap();
    site.deployment.stop_coordinator().unwrap();
    let verified = site.deployment.operator(&["journal", "verify"]).unwrap().success().unwrap();
    assert!(verified.stdout.starts_with("ok "), "{}", verified.stdout);
    let blobs = |dir: std::path::PathBuf| {
        let store = BlobStore::existing(dir);
        let listed = store.list().unwrap();
        listed.iter().for_each(|(digest, _)| store.verify(digest).unwrap());
        listed.into_iter().map(|(digest, _)| digest).collect::<BTreeSet<_>>()
    };
    // All runs are of one plan without noise: they end in the same model.
    let kept = blobs(site.deployment.coordinator_dir().join("blobs"));
    assert_eq!(kept, BTreeSet::from([last.model.0]));
    for client in clients {
        let verified = site.deployment.client(client, &["journal", "verify"]).unwrap();
        verified.success().unwrap();
        let updates: BTreeSet<[u8; 32]> = last
            .history
            .iter()
            .flat_map(|round| &round.contributions)
            .filter(|c| c.client == *client)
            .map(|c| c.update.0)
            .collect();
        let kept = blobs(site.deployment.client_dir(client).join("state/blobs"));
        assert!(kept.is_subset(&updates), "{client} keeps what no update is");
        assert_eq!(kept.len(), updates.len());
    }
}
