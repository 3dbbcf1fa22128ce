//! What is simulated is what is deployed.

use comity_federation::RunStatus;

use super::{PATIENCE, PLAN, Site, WITH_DP};

#[test]
fn the_same_plan_simulated_and_deployed_ends_in_the_same_model() {
    let mut site = Site::new(PLAN);
    let clients = site.add_clients(None, true);
    site.start_clients(&clients);
    let run = site.launch();
    let report = site.wait_for_end(&run);
    assert_eq!(report.status, RunStatus::Finished, "{report:#?}");
    assert_eq!(report.history.len(), 3);
    assert!(report.history.iter().all(|round| round.contributions.len() == 3));
    assert_eq!(report.model.to_string(), site.simulated_model());
    site.deployment.wait_for_clients(PATIENCE).unwrap();

    // The exported file is the model that the report names, and it has learnt something.
    let file = site.path("model.safetensors");
    let export = ["model", "export", &run, "--out", file.to_str().unwrap(), "--json"];
    let exported = site.deployment.operator(&export).unwrap().success().unwrap().json().unwrap();
    assert_eq!(exported["model"], report.model.to_string());
    let scores = site.sim(&[
        "evaluate",
        "model.safetensors",
        "--plan",
        "plan.toml",
        "--world",
        "world.toml",
        "--json",
    ]);
    let scores = scores.success().unwrap().json().unwrap();
    assert_eq!(scores[0]["model"], report.model.to_string());
    assert!(scores[0]["accuracy"].as_f64().unwrap() > 0.9, "{scores}");
}

#[test]
fn quantised_updates_end_in_the_same_model_deployed_as_simulated() {
    let exact = "fixed_point_bits = 22";
    let plan = PLAN.replace(exact, "fixed_point_bits = 22\nupdate_encoding = \"int8\"");
    let mut site = Site::new(&plan);
    let clients = site.add_clients(None, true);
    site.start_clients(&clients);
    let run = site.launch();
    let report = site.wait_for_end(&run);
    assert_eq!(report.status, RunStatus::Finished, "{report:#?}");
    assert_eq!(report.model.to_string(), site.simulated_model());
    // A byte a parameter, and one more for each 1024 of them.
    let bytes = report.history[0].contributions[0].bytes;
    assert_eq!(bytes, 4 * 9 + 4 + 2 * 36 + 2 + 1);
}

#[test]
fn a_private_run_spends_what_the_plan_says_and_a_second_one_is_declined() {
    let plan = PLAN.replace("mode = \"none\"", WITH_DP);
    let mut site = Site::new(&plan);
    let clients = site.add_clients(Some((8.0, 1e-4)), false);
    for client in &clients {
        // The ledger is asked here; that the policy would decline it before is tested with the policy.
        let policy = site.deployment.client_dir(client).join("policy.toml");
        let text = std::fs::read_to_string(&policy).unwrap();
        super::write(&policy, &text.replace("epsilon_year_max = 8.0", "epsilon_year_max = 100.0"));
        let plan = site.path("plan.toml");
        let check = ["check", "--json", "--plan", plan.to_str().unwrap()];
        let check = site.deployment.client(client, &check).unwrap().success().unwrap();
        assert!(check.stdout.contains("it would cost epsilon"), "{}", check.stdout);
    }
    for client in &clients {
        site.deployment.start_client(client, 2).unwrap();
    }
    let run = site.launch();
    let report = site.wait_for_end(&run);
    assert_eq!(report.status, RunStatus::Finished, "{report:#?}");
    assert!(report.history.iter().all(|r| r.contributions.iter().all(|c| c.n_correct.is_some())));
    for client in &clients {
        let ledger = site.deployment.client(client, &["ledger", "show", "--json"]).unwrap();
        let ledger = ledger.success().unwrap().json().unwrap();
        let spent = ledger["spent"]["epsilon"].as_f64().unwrap();
        assert!((7.9..=8.0).contains(&spent), "{client} spent {spent}");
        assert_eq!(ledger["runs"][0]["rounds_released"], 3);
    }
    // The budget is gone: the ledger refuses the first round of a second run, and the operator
    // reads why.
    let second = site.launch();
    let report = site.wait_for_end(&second);
    assert_eq!(report.status, RunStatus::Aborted);
    let missing = &report.history[0].missing;
    assert_eq!(missing.len(), 3);
    assert!(missing.iter().all(|(_, why)| why.contains("epsilon")), "{missing:?}");
    site.deployment.wait_for_clients(PATIENCE).unwrap();
}
