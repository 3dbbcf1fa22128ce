//! The disk does not grow with rounds.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use comity_federation::RunStatus;
use comity_journal::BlobStore;

use super::{PATIENCE, Site, short_rounds, write};

/// Number and bytes of the blobs in a folder.
fn blobs(dir: &Path) -> (usize, u64) {
    let listed = BlobStore::existing(dir).list().unwrap();
    (listed.len(), listed.iter().map(|(_, n_bytes)| n_bytes).sum())
}

/// Number of blobs that were in a folder at one and the same instant: a listing takes a while, in which some
/// come and others go, so only what two of them have counts.
fn at_once(dir: &Path) -> usize {
    let listed = || -> BTreeSet<_> {
        BlobStore::existing(dir).list().unwrap().into_iter().map(|(digest, _)| digest).collect()
    };
    let before = listed();
    listed().intersection(&before).count()
}

#[test]
fn fifty_rounds_take_no_more_room_than_five() {
    let mut site = Site::new(&short_rounds(50));
    let clients = site.add_clients(None, true);
    let n_parameters = 64 * 2 + 2;
    // Room for five updates at the client.
    for client in &clients {
        let config = site.deployment.client_dir(client).join("client.toml");
        let text = fs::read_to_string(&config).unwrap();
        write(
            &config,
            &format!("{text}\n[storage]\nupdates_bytes_max = \"{} B\"\n", 5 * 4 * n_parameters),
        );
    }
    let at_coordinator = site.deployment.coordinator_dir().join("blobs");
    let at_clients: Vec<_> = clients
        .iter()
        .map(|client| site.deployment.client_dir(client).join("state/blobs"))
        .collect();
    site.start_clients(&clients);
    let run = site.launch();
    let (mut most, mut most_at_clients) = (0, 0);
    let report = loop {
        let report = site.wait(&run, |_| true);
        most = most.max(at_once(&at_coordinator));
        most_at_clients =
            at_clients.iter().map(|dir| at_once(dir)).fold(most_at_clients, usize::max);
        if report.status.is_terminal() {
            break report;
        }
    };
    assert_eq!(report.status, RunStatus::Finished, "{report:#?}");
    assert_eq!(report.history.len(), 50);
    // Three models, three updates, and the next model while nobody needs it yet.
    assert!(most <= 7, "{most} blobs at once");
    // Five updates, the one that is due, and a model.
    assert!(most_at_clients <= 7, "{most_at_clients} blobs at once");
    site.deployment.wait_for_clients(PATIENCE).unwrap();
    assert_eq!(blobs(&at_coordinator), (1, 4 * n_parameters));
    for dir in &at_clients {
        assert_eq!(blobs(dir), (5, 5 * 4 * n_parameters));
    }

    // What is kept can be had, and what is not is told.
    let file = site.path("model.safetensors");
    let export = ["model", "export", &run, "--out", file.to_str().unwrap()];
    site.deployment.operator(&export).unwrap().success().unwrap();
    let earlier = site.deployment.operator(&[&export[..], &["--round", "7"]].concat()).unwrap();
    assert!(!earlier.status.success());
    assert!(
        earlier.stderr.contains("round 7") && earlier.stderr.contains("[storage]"),
        "{}",
        earlier.stderr
    );
    let proof = site.deployment.client(&clients[0], &["privacy", "verify"]).unwrap();
    let proof = proof.success().unwrap().stdout;
    assert!(proof.contains("5 are here") && proof.contains("45 are no longer stored"), "{proof}");

    // Both journals say what happened, while the coordinator serves.
    let shown = site.deployment.operator(&["journal", "show", "--last", "12"]).unwrap();
    let shown = shown.success().unwrap().stdout;
    assert_eq!(shown.lines().count(), 12);
    assert!(shown.contains("round 50: model") && shown.contains(&run), "{shown}");
    let all = site.deployment.operator(&["journal", "show", "--run", &run, "--json"]).unwrap();
    let all = all.success().unwrap().json().unwrap();
    // Launched, three clients, and in each round three updates, a model, its record and who countersigned it.
    assert_eq!(all.as_array().unwrap().len(), 4 + 50 * 8);
    assert_eq!(all[1]["what"], "checked in");
    let verified = site.deployment.operator(&["journal", "verify", "--json"]).unwrap();
    let verified = verified.success().unwrap().json().unwrap();
    assert_eq!(
        (verified["records"].as_u64(), verified["torn_bytes"].as_u64()),
        // And the federation was founded, and three members were invited and enrolled.
        (Some(404 + 2 + 3 * 2), Some(0))
    );
    let shown = site.deployment.client(&clients[0], &["journal", "show", "--last", "3"]).unwrap();
    let shown = shown.success().unwrap().stdout;
    assert!(shown.contains("run finished"), "{shown}");

    // Damage is told with record and byte, and ends in a failure.
    let journal = site.deployment.coordinator_dir().join("journal.log");
    let mut bytes = fs::read(&journal).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    fs::write(&journal, bytes).unwrap();
    let damaged = site.deployment.operator(&["journal", "verify"]).unwrap();
    assert_eq!(damaged.status.code(), Some(1));
    assert!(
        damaged.stderr.contains("at record ") && damaged.stderr.contains("(byte "),
        "{}",
        damaged.stderr
    );
}
