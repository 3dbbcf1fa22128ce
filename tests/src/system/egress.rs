//! Everything that leaves an institution is in its own journal, and nothing else leaves.

use std::collections::BTreeMap;
use std::fs;

use comity_federation::RunStatus;
use serde_json::Value;

use super::{PATIENCE, PLAN, Site, WITH_DP, write};

/// A federation that has finished a run with DP, and its clients.
fn finished() -> (Site, Vec<comity_federation::ClientId>, String) {
    let mut site = Site::new(&PLAN.replace("mode = \"none\"", WITH_DP));
    let clients = site.add_clients(Some((8.0, 1e-4)), false);
    site.start_clients(&clients);
    let run = site.launch();
    let report = site.wait_for_end(&run);
    assert_eq!(report.status, RunStatus::Finished, "{report:#?}");
    site.deployment.wait_for_clients(PATIENCE).unwrap();
    (site, clients, run)
}

#[test]
fn what_left_is_listed_shown_verified_made_again_and_handed_over() {
    let (site, clients, run) = finished();
    let client = &clients[0];
    let ask = |args: &[&str]| site.deployment.client(client, args).unwrap();
    let lines = ask(&["egress", "list", "--json"]).success().unwrap().json().unwrap();
    let lines = lines.as_array().unwrap().clone();
    let mut n_of_kind: BTreeMap<&str, usize> = BTreeMap::new();
    for line in &lines {
        *n_of_kind.entry(line["kind"].as_str().unwrap()).or_default() += 1;
    }
    assert_eq!((n_of_kind["update"], n_of_kind["check_in"]), (3, 1), "{n_of_kind:?}");
    assert!(n_of_kind["fetch_model"] >= 3 && n_of_kind["hello"] >= 1, "{n_of_kind:?}");
    assert!(!n_of_kind.contains_key("decline"), "{n_of_kind:?}");

    // The updates are those that the coordinator counted, and the last one's epsilon is the run's.
    let report = site.deployment.report(&run).unwrap();
    let updates: Vec<&Value> = lines.iter().filter(|line| line["kind"] == "update").collect();
    for (line, round) in updates.iter().zip(&report.history) {
        let counted = round.contributions.iter().find(|c| c.client == *client).unwrap();
        assert_eq!(line["digest"], counted.update.to_string());
        assert_eq!(line["plan"], report.plan.to_string());
        assert!(line["bytes"].as_u64().unwrap() > counted.bytes, "its header is counted too");
    }
    let ledger = ask(&["ledger", "show", "--json"]).success().unwrap().json().unwrap();
    let spent = ledger["runs"][0]["epsilon"]["epsilon"].as_f64().unwrap();
    let last = updates[2]["epsilon"].as_f64().unwrap();
    assert!((spent - last).abs() < 1e-9 && last <= 8.0, "{spent} {last}");
    assert!(updates[0]["epsilon"].as_f64().unwrap() < last);

    let n = updates[1]["n"].as_u64().unwrap().to_string();
    let shown = ask(&["egress", "show", &n]).success().unwrap().stdout;
    assert!(shown.contains("UpdateHeader") && shown.contains("epsilon"), "{shown}");
    let again = site.path("update.bin");
    ask(&["egress", "replay", &n, "--out", again.to_str().unwrap()]).success().unwrap();
    assert_eq!(fs::metadata(&again).unwrap().len(), updates[1]["bytes"].as_u64().unwrap());
    let verified = ask(&["egress", "verify"]).success().unwrap().stdout;
    assert!(verified.contains("update: 3 messages"), "{verified}");

    // A regulator has the export and the federation's root, and nothing else.
    let export = site.path("egress.json");
    ask(&["egress", "export", "--out", export.to_str().unwrap()]).success().unwrap();
    let text = fs::read_to_string(&export).unwrap();
    let root = site.deployment.client_dir(client).join("certs/root.pem");
    let verify = |config: &str| {
        let mut command = crate::Binaries::find().unwrap().command("comity-client");
        command.args(["--config", config, "egress", "verify", "--export"]);
        crate::Finished::of(command.arg(&export).arg("--root").arg(&root)).unwrap()
    };
    let said = verify("nowhere.toml").success().unwrap().stdout;
    assert!(said.contains("signed by comity://test/client/KR/a"), "{said}");
    let own = site.deployment.client_dir(client).join("client.toml");
    let said = verify(own.to_str().unwrap()).success().unwrap().stdout;
    assert!(said.contains("still says the same"), "{said}");
    for (from, to) in [
        ("\"bytes\": ", "\"bytes\": 1"),
        ("\"kind\": \"update\"", "\"kind\": \"upload_offset\""),
        ("comity://test/client/KR/a", "comity://test/client/JP/b"),
        ("\"round\": 2", "\"round\": 3"),
    ] {
        let altered = text.replacen(from, to, 1);
        assert_ne!(altered, text, "{from}");
        write(&export, &altered);
        let refused = verify("nowhere.toml");
        assert!(!refused.status.success(), "{from}: {}", refused.stdout);
    }
}

#[test]
fn an_update_that_was_never_released_is_told_by_its_line() {
    let (site, clients, _) = finished();
    let journal = site.deployment.client_dir(&clients[0]).join("state/journal.log");
    // A journal that says that something left which nobody paid for, sealed as a whole.
    let (_, records) = comity_journal::Journal::open(&journal).unwrap();
    fs::remove_file(&journal).unwrap();
    let (mut forged, _) = comity_journal::Journal::open(&journal).unwrap();
    for record in records {
        let is_release = record.payload.windows(19).any(|part| part == b"\"entry\":\"released\",");
        if !is_release {
            forged.append(&record.payload).unwrap();
        }
    }
    drop(forged);
    let refused = site.deployment.client(&clients[0], &["egress", "verify"]).unwrap();
    assert!(!refused.status.success());
    assert!(refused.stderr.contains("no release"), "{}", refused.stderr);
}
