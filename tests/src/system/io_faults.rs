//! The n-th call to the disk fails in a real process: it says which file and what to do, promises nothing more,
//! starts again cleanly, and the run ends in the simulator's model.

use std::time::{Duration, Instant};

use comity_federation::{ClientId, RunStatus};

use super::{PATIENCE, Site, short_rounds};

/// What a call does instead of its work, and what the message has to say.
const FAULTS: [(&str, &str); 3] =
    [("EIO", "check the disk"), ("ENOSPC", "make room"), ("short", "make room")];
/// Which calls fail, counted from the start of the process: its start takes the first twenty or so.
const CALLS: [u32; 8] = [0, 3, 9, 17, 25, 40, 70, 110];
/// How long a process may go on after a fault that did not end it, before the next one comes.
const ABSORBED: Duration = Duration::from_secs(1);

/// Lets call after call of one process fail, and returns how many ended it.
fn fail_calls(site: &mut Site, victim: Option<&ClientId>) -> u32 {
    let mut n_ended = 0;
    for (i, call) in CALLS.into_iter().enumerate() {
        let (fault, fix) = FAULTS[i % FAULTS.len()];
        let failpoints = format!("disk::any={call}*off->1*return({fault})");
        let said = |site: &Site| match victim {
            Some(client) => site.deployment.client_said(client),
            None => site.deployment.coordinator_said(),
        };
        let before = said(site).len();
        match victim {
            Some(client) => site.deployment.start_client_failing(client, 0, &failpoints).unwrap(),
            None => drop(site.deployment.serve_failing(&failpoints)),
        }
        let end = Instant::now() + ABSORBED;
        let ended = loop {
            let status = match victim {
                Some(client) => site.deployment.client_ended(client).unwrap(),
                None => site.deployment.coordinator_ended().unwrap(),
            };
            if status.is_some() || (victim.is_none() && !site.deployment.is_serving()) {
                break Some(status);
            }
            if Instant::now() > end {
                break None;
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let news = said(site)[before..].to_owned();
        assert!(!news.contains("panicked"), "call {call}, {fault}: {news}");
        if let Some(status) = ended {
            n_ended += 1;
            assert!(status.is_none_or(|status| status.code() == Some(1)), "{status:?}: {news}");
            let folder = match victim {
                Some(client) => site.deployment.client_dir(client),
                None => site.deployment.coordinator_dir(),
            };
            let last = news.lines().rfind(|line| line.starts_with("error: ")).unwrap_or(&news);
            assert!(
                last.contains(folder.to_str().unwrap()) && last.contains(fix),
                "call {call}, {fault}: {news}"
            );
        }
    }
    n_ended
}

#[test]
fn a_coordinator_whose_disk_fails_says_so_and_loses_nothing() {
    let mut site = Site::new(&short_rounds(150));
    let clients = site.add_clients(None, true);
    site.keep_port();
    site.start_clients(&clients);
    let run = site.launch();
    let n_ended = fail_calls(&mut site, None);
    assert!(n_ended >= 4, "{n_ended} faults ended the coordinator");
    site.deployment.serve().unwrap();
    let report = site.wait_for_end(&run);
    assert_eq!(report.status, RunStatus::Finished, "{report:#?}");
    assert_eq!(report.model.to_string(), site.simulated_model());
    site.deployment.wait_for_clients(PATIENCE).unwrap();
}

#[test]
fn a_client_whose_disk_fails_says_so_and_loses_nothing() {
    let mut site = Site::new(&short_rounds(150));
    let clients = site.add_clients(None, true);
    site.start_clients(&clients[1..]);
    let run = site.launch();
    let n_ended = fail_calls(&mut site, Some(&clients[0]));
    assert!(n_ended >= 4, "{n_ended} faults ended the client");
    site.deployment.start_client(&clients[0], 0).unwrap();
    let report = site.wait_for_end(&run);
    assert_eq!(report.status, RunStatus::Finished, "{report:#?}");
    assert!(report.history.iter().all(|round| round.contributions.len() == 3));
    assert_eq!(report.model.to_string(), site.simulated_model());
    site.deployment.kill_client(&clients[0]);
    site.deployment.wait_for_clients(PATIENCE).unwrap();
}

/// A fold that finds no room waits for it; an upload that finds none is sent again. Nobody ends for either.
#[test]
fn folds_and_uploads_that_find_no_room_are_tried_again() {
    let mut site = Site::new(&short_rounds(6));
    let clients = site.add_clients(None, true);
    site.keep_port();
    // Blobs get their names in this order: the start, three updates, round 1's model (twice no room), two
    // updates of round 2 (no room, then a disk that fails), and whatever comes.
    site.deployment
        .serve_failing(
            "disk::rename=4*off->2*return(ENOSPC)->1*off->1*return(ENOSPC)->1*return(EIO)->off",
        )
        .unwrap();
    site.start_clients(&clients);
    let run = site.launch();
    let report = site.wait_for_end(&run);
    assert_eq!(report.status, RunStatus::Finished, "{report:#?}");
    assert!(report.history.iter().all(|round| round.contributions.len() == 3));
    assert_eq!(report.model.to_string(), site.simulated_model());
    let said = site.deployment.coordinator_said();
    assert!(said.contains("the disk is full: updates are refused"), "{said}");
    assert!(said.contains("could not be aggregated yet"), "{said}");
    let heard = clients.iter().map(|client| site.deployment.client_said(client));
    let heard = heard.collect::<String>();
    assert!(heard.contains("the coordinator's disk is full"), "{heard}");
    site.deployment.wait_for_clients(PATIENCE).unwrap();
}

// BAD_INPUTS 90
#[test]
fn with_64_files_a_coordinator_and_a_client_serve_or_say_which_limit_to_raise() {
    let mut site = Site::new(&short_rounds(3));
    let clients = site.add_clients(None, true);
    site.keep_port();
    site.deployment.kill_coordinator();
    site.deployment.limit_files(Some(64));
    site.deployment.serve().unwrap();
    site.start_clients(&clients);
    let run = site.launch();
    let report = site.wait_for_end(&run);
    assert_eq!(report.status, RunStatus::Finished, "{report:#?}");
    assert_eq!(report.model.to_string(), site.simulated_model());
    site.deployment.wait_for_clients(PATIENCE).unwrap();
    // With far too few, the reason and the remedy.
    site.deployment.kill_coordinator();
    site.deployment.limit_files(Some(8));
    let refused = site.deployment.serve().unwrap_err().to_string();
    assert!(!refused.contains("panicked"), "{refused}");
    assert!(refused.contains("ulimit -n"), "{refused}");
}

// BAD_INPUTS 92
#[test]
fn a_client_and_a_coordinator_that_stand_still_for_a_while_go_on() {
    let mut site = Site::new(&short_rounds(12));
    let clients = site.add_clients(None, true);
    site.start_clients(&clients);
    let run = site.launch();
    site.wait(&run, |report| report.round >= 2);
    site.deployment.signal(Some(&clients[0]), "STOP").unwrap();
    std::thread::sleep(Duration::from_secs(3));
    site.deployment.signal(Some(&clients[0]), "CONT").unwrap();
    site.deployment.signal(None, "STOP").unwrap();
    std::thread::sleep(Duration::from_secs(3));
    site.deployment.signal(None, "CONT").unwrap();
    let report = site.wait_for_end(&run);
    assert_eq!(report.status, RunStatus::Finished, "{report:#?}");
    assert_eq!(report.model.to_string(), site.simulated_model());
    site.deployment.wait_for_clients(PATIENCE).unwrap();
}

// BAD_INPUTS 95
#[test]
fn a_second_coordinator_on_the_same_folder_is_refused_and_the_first_goes_on() {
    let mut site = Site::new(&short_rounds(4));
    let clients = site.add_clients(None, true);
    site.start_clients(&clients);
    let run = site.launch();
    for _ in 0..3 {
        let second = site.deployment.operator(&["serve"]).unwrap();
        assert!(second.stderr.contains("already served by process"), "{}", second.stderr);
    }
    let report = site.wait_for_end(&run);
    assert_eq!(report.model.to_string(), site.simulated_model());
    site.deployment.wait_for_clients(PATIENCE).unwrap();
}
