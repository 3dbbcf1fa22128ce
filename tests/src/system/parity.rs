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

/// What the server remembers travels in the model's blob, which the digest covers; what is exported is the model.
#[test]
fn a_server_that_remembers_does_so_deployed_as_simulated() {
    let plan = PLAN.replace("\"fedavg\"", "{ fedadam = { tau = 0.01 } }");
    let plan = plan.replace("server_learning_rate = 1.0", "server_learning_rate = 0.03");
    let mut site = Site::new(&plan);
    let clients = site.add_clients(None, true);
    site.start_clients(&clients);
    let run = site.launch();
    let report = site.wait_for_end(&run);
    assert_eq!(report.status, RunStatus::Finished, "{report:#?}");
    assert_eq!(report.model.to_string(), site.simulated_model());
    let n_parameters = 4 * 9 + 4 + 2 * 36 + 2;
    assert_eq!(report.history[0].contributions[0].bytes, 4 * n_parameters);

    let (plain, whole) = (site.path("model.safetensors"), site.path("whole.safetensors"));
    let export = |file: &std::path::Path, more: &[&str]| {
        let args = ["model", "export", &run, "--out", file.to_str().unwrap()];
        let args: Vec<&str> = args.into_iter().chain(more.iter().copied()).collect();
        site.deployment.operator(&args).unwrap().success().unwrap();
        std::fs::metadata(file).unwrap().len()
    };
    let (n_plain, n_whole) = (export(&plain, &[]), export(&whole, &["--server-state"]));
    assert!(n_whole - n_plain >= 2 * 4 * n_parameters, "{n_plain} and {n_whole} bytes");
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
    assert!(scores[0]["accuracy"].as_f64().unwrap() > 0.8, "{scores}");
    // Only the whole file is what was certified.
    let papers = site.path("papers");
    let papers = papers.to_str().unwrap();
    let certify = ["model", "certify", &run, "--out", papers];
    site.deployment.operator(&certify).unwrap().success().unwrap();
    let verify = |file: &std::path::Path| {
        let certificate = format!("{papers}/certificate.json");
        let args = ["model", "verify", &certificate, "--model", file.to_str().unwrap()];
        site.deployment.operator(&args).unwrap()
    };
    verify(&whole).success().unwrap();
    let refused = verify(&plain);
    assert!(refused.stderr.contains("--server-state"), "{}", refused.stderr);
}

/// Control variates and a local layer: what each client keeps, and nobody sees, is the same too.
#[test]
fn what_clients_keep_is_the_same_deployed_as_simulated() {
    let plan = PLAN
        .replace("\"fedavg\"", "\"scaffold\"")
        .replace("local_epochs = 2", "local_steps = 9")
        .replace(
            "{ type = \"conv2d\", out = 4, kernel = 3 },",
            "{ type = \"conv2d\", out = 4, kernel = 3 },\n    \
             { type = \"local\", layers = [{ type = \"group_norm\", groups = 2 }] },",
        );
    let mut site = Site::new(&plan);
    let clients = site.add_clients(None, true);
    site.start_clients(&clients);
    let run = site.launch();
    let report = site.wait_for_end(&run);
    assert_eq!(report.status, RunStatus::Finished, "{report:#?}");
    assert_eq!(report.model.to_string(), site.simulated_model());
    // Neither the local layer nor a control variate leaves.
    assert_eq!(report.history[0].contributions[0].bytes, 4 * (4 * 9 + 4 + 2 * 36 + 2));
    site.deployment.wait_for_clients(PATIENCE).unwrap();

    // After the run each client can go on by itself, with its own layer, and sends nothing for it.
    let (file, tuned) = (site.path("model.safetensors"), site.path("tuned.safetensors"));
    let (file, tuned) = (file.to_str().unwrap(), tuned.to_str().unwrap());
    site.deployment.operator(&["model", "export", &run, "--out", file]).unwrap().success().unwrap();
    let journal = site.deployment.client_dir(&clients[0]).join("state/journal.log");
    let before = std::fs::read(&journal).unwrap();
    let args = ["model", "tune", &run, "--model", file, "--epochs", "2", "--out", tuned, "--json"];
    let said = site.deployment.client(&clients[0], &args).unwrap().success().unwrap();
    assert!(said.stderr.contains("NOT private"), "{}", said.stderr);
    let said = said.json().unwrap();
    assert_eq!((&said["own_layers"], &said["private"]), (&true.into(), &false.into()));
    assert_eq!(std::fs::read(&journal).unwrap(), before);
    let unknown = ["model", "tune", "stripes-00000000", "--model", file, "--out", tuned];
    let refused = site.deployment.client(&clients[0], &unknown).unwrap();
    assert!(refused.stderr.contains("was never offered here"), "{}", refused.stderr);
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
