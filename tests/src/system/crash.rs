//! A federation goes on after any of its processes was killed.

use comity_federation::RunStatus;

use super::{PATIENCE, PLAN, Site, WITH_DP};

#[test]
fn a_run_survives_the_kill_of_its_coordinator_and_ends_in_the_same_model() {
    let mut site = Site::new(&PLAN.replace("rounds = 3", "rounds = 6"));
    let clients = site.add_clients(None, true);
    site.keep_port();
    site.start_clients(&clients);
    let run = site.launch();
    for round in [2, 4] {
        site.wait(&run, |report| report.round >= round || report.status.is_terminal());
        site.deployment.kill_coordinator();
        site.deployment.serve().unwrap();
    }
    let report = site.wait_for_end(&run);
    assert_eq!(report.status, RunStatus::Finished, "{report:#?}");
    assert_eq!(report.model.to_string(), site.simulated_model());
    site.deployment.wait_for_clients(PATIENCE).unwrap();
}

#[test]
fn a_killed_client_comes_back_without_paying_or_counting_twice() {
    let plan = PLAN.replace("mode = \"none\"", WITH_DP).replace("rounds = 3", "rounds = 5");
    let mut site = Site::new(&plan);
    let clients = site.add_clients(Some((8.0, 1e-4)), false);
    site.start_clients(&clients);
    let run = site.launch();
    for round in [2, 4] {
        site.wait(&run, |report| report.round >= round || report.status.is_terminal());
        site.deployment.kill_client(&clients[1]);
        site.deployment.start_client(&clients[1], 1).unwrap();
    }
    let report = site.wait_for_end(&run);
    assert_eq!(report.status, RunStatus::Finished, "{report:#?}");
    assert!(report.history.iter().all(|round| round.contributions.len() == 3));
    let ledger = site.deployment.client(&clients[1], &["ledger", "show", "--json"]).unwrap();
    let ledger = ledger.success().unwrap().json().unwrap();
    assert!(ledger["spent"]["epsilon"].as_f64().unwrap() <= 8.0);
    assert_eq!(ledger["runs"][0]["rounds_reserved"], 5);
    assert_eq!(ledger["runs"][0]["rounds_released"], 5);
}

#[test]
fn a_coordinator_that_is_asked_to_stop_ends_cleanly_and_resumes() {
    let mut site = Site::new(PLAN);
    let run = site.launch();
    site.deployment.stop_coordinator().unwrap();
    site.deployment.serve().unwrap();
    let report = site.deployment.report(&run).unwrap();
    assert_eq!(report.status, RunStatus::Gathering);
    site.deployment
        .operator(&["run", "abort", &run, "--reason", "enough"])
        .unwrap()
        .success()
        .unwrap();
    let report = site.deployment.report(&run).unwrap();
    assert_eq!(report.status, RunStatus::Aborted);
    assert!(report.reason.unwrap().ends_with("enough"));
    // An ended run is read from the index, after a restart too.
    site.deployment.kill_coordinator();
    std::fs::remove_dir_all(site.deployment.coordinator_dir().join("index")).unwrap();
    site.deployment.serve().unwrap();
    assert_eq!(site.deployment.report(&run).unwrap().status, RunStatus::Aborted);
}
