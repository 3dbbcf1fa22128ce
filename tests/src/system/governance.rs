//! Rounds that are governed: who has to be there, who is asked, who is sent away, and that all of it is said.

use comity_federation::{ClientStanding, RunStatus};

use super::{PLAN, Site};

/// The plan of these tests with a quorum of two.
fn quorum_of_two() -> String {
    PLAN.replace("min_clients = 3", "min_clients = 2")
        .replace("min_countries = 3", "min_countries = 2")
}

fn standings(report: &comity_federation::RunReport) -> Vec<(ClientStanding, Option<bool>)> {
    report.clients.iter().map(|c| (c.standing, c.connected)).collect()
}

#[test]
fn the_operator_sees_who_is_there_and_goes_on_without_who_is_not() {
    use ClientStanding as Is;
    let mut site = Site::new(&quorum_of_two());
    let clients = site.add_clients(None, true);
    site.start_clients(&clients[..2]);
    let run = site.launch();
    let there = (Is::Configured, Some(true));
    let gathering =
        site.wait(&run, |r| standings(r) == [there, there, (Is::Registered, Some(false))]);
    assert_eq!(gathering.status, RunStatus::Gathering);
    let exclude = |args: &[&str]| {
        site.deployment.operator(&[&["run", "exclude", &run, "VN/c"], args].concat()).unwrap()
    };
    assert!(exclude(&[]).stderr.contains("--reason"));
    assert!(exclude(&["--reason", " "]).stderr.contains("needs a reason"));
    exclude(&["--reason", "its link is down"]).success().unwrap();
    let report = site.wait_for_end(&run);
    assert_eq!(report.status, RunStatus::Finished, "{:?}", report.reason);
    let excluded = &report.clients[2];
    assert_eq!(excluded.standing, Is::Excluded);
    assert!(excluded.note.as_ref().unwrap().contains("its link is down (operator"));
    let shown = site.deployment.operator(&["run", "show", &run]).unwrap().success().unwrap();
    assert!(shown.stdout.contains("VN/c excluded"), "{}", shown.stdout);
}

#[test]
fn a_sampled_cohort_is_the_same_deployed_as_simulated() {
    let plan = quorum_of_two()
        .replace("weights = \"declared\"", "weights = \"declared\"\nsample = { clients = 2 }");
    let mut site = Site::new(&plan);
    let clients = site.add_clients(None, true);
    site.start_clients(&clients);
    let run = site.launch();
    let report = site.wait_for_end(&run);
    assert_eq!(report.status, RunStatus::Finished, "{:?}", report.reason);
    assert!(report.history.iter().all(|round| round.cohort.len() == 2));
    assert_eq!(report.model.to_string(), site.simulated_model());
}

#[test]
fn asynchronous_rounds_close_with_a_full_buffer_and_count_everybody_in_the_end() {
    let buffered = "strategy = { fedbuff = { buffer = 2, staleness_max = 3 } }";
    let plan = quorum_of_two()
        .replace("rounds = 3", "rounds = 6")
        .replace("strategy = \"fedavg\"", buffered);
    let mut site = Site::new(&plan);
    let clients = site.add_clients(None, true);
    site.start_clients(&clients);
    let run = site.launch();
    let report = site.wait_for_end(&run);
    assert_eq!(report.status, RunStatus::Finished, "{:?}", report.reason);
    let contributions = || report.history.iter().flat_map(|round| &round.contributions);
    assert!(report.history.iter().all(|round| round.contributions.len() >= 2));
    let stale = contributions().filter(|c| c.staleness > 0).count();
    assert!(stale > 0, "three clients and a buffer of two: somebody is always behind");
    assert!(clients.iter().all(|client| contributions().any(|c| c.client == *client)));
    let shown = site.deployment.operator(&["run", "show", &run]).unwrap().success().unwrap();
    assert!(shown.stdout.contains(", of round "), "{}", shown.stdout);
}

// BAD_INPUTS 41
#[test]
fn an_update_whose_norm_passes_the_plans_bound_is_refused_on_record() {
    let plan = quorum_of_two()
        .replace("fixed_point_bits = 22", "fixed_point_bits = 22\nupdate_norm_max_l2 = 0.0001");
    let mut site = Site::new(&plan);
    let clients = site.add_clients(None, true);
    // The others' updates come later, so that the round is open when the first one's refusal is.
    site.deployment.start_client(&clients[0], 1).unwrap();
    for client in &clients[1..] {
        let late = "client::before_submit=sleep(1000)";
        site.deployment.start_client_failing(client, 1, late).unwrap();
    }
    let run = site.launch();
    let report = site.wait_for_end(&run);
    assert_eq!(report.status, RunStatus::Aborted);
    let missing = &report.history[0].missing;
    assert_eq!(missing.len(), 3);
    assert!(missing.iter().all(|(_, why)| why.contains("passes 0.0001")), "{missing:?}");
    assert!(site.deployment.client_said(&clients[0]).contains("update_norm_max_l2"));
}
