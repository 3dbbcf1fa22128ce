//! Bad input ends in a clear refusal that says what to do; nothing is lost, nobody else is
//! disturbed.

use std::fs;

use comity_federation::{ClientStanding, RunStatus};

use super::{PLAN, Site, WITH_DP, write};
use crate::Binaries;

#[test]
fn a_plan_that_cannot_be_run_is_refused_and_the_coordinator_goes_on() {
    let site = Site::new(PLAN);
    let path = site.path("bad.toml");
    let dp = |epsilon: &str, rho: &str| {
        let terms = WITH_DP.replace("epsilon = 8.0", epsilon).replace("0.01", rho);
        PLAN.replace("mode = \"none\"", &terms)
    };
    for (plan, expected) in [
        (PLAN.replace("seed = 3", "seed = 3\nsneed = 4"), "sneed"),
        (PLAN.replace("classes = 2", "classes = 3"), "3 classes"),
        (PLAN.replace("kernel = 3", "kernel = 30"), "layer 0"),
        (dp("epsilon = 0.001", "10.0"), "KR/a"),
        ("not a plan".to_owned(), "cannot be read"),
    ] {
        write(&path, &plan);
        let args = ["run", "start", path.to_str().unwrap()];
        let refused = site.deployment.operator(&args).unwrap();
        assert!(!refused.status.success(), "{plan}");
        assert!(refused.stderr.contains(expected), "{expected}: {}", refused.stderr);
        assert!(!refused.stderr.contains("panicked"), "{}", refused.stderr);
    }
    let list = site.deployment.operator(&["run", "list", "--json"]).unwrap().success().unwrap();
    assert_eq!(list.json().unwrap(), serde_json::json!([]));
    let missing = site.deployment.operator(&["run", "show", "nothing-1"]).unwrap();
    assert!(missing.stderr.contains("run list"), "{}", missing.stderr);
}

#[test]
fn data_that_do_not_fit_make_a_client_decline_and_the_others_are_named() {
    let mut site = Site::new(PLAN);
    let clients = site.add_clients(None, true);
    // KR's labels are cut in the middle; JP's images are missing; VN declares another number.
    let shard = |name: &str| site.path("shards").join(name);
    let labels = fs::read(shard("KR-a/labels.idx")).unwrap();
    fs::write(shard("KR-a/labels.idx"), &labels[..100]).unwrap();
    fs::remove_file(shard("JP-b/images.idx")).unwrap();
    let config = site.deployment.client_dir(&clients[2]).join("client.toml");
    let text = fs::read_to_string(&config).unwrap();
    write(&config, &text.replace("records = 200", "records = 300"));
    let plan = site.path("plan.toml");
    let plan = plan.to_str().unwrap();
    for (client, expected) in clients.iter().zip(["labels.idx", "images.idx", "300"]) {
        let check = site.deployment.client(client, &["check", "--plan", plan]).unwrap();
        assert!(!check.status.success());
        assert!(check.stdout.contains(expected), "{}", check.stdout);
    }
    site.start_clients(&clients);
    let run = site.launch();
    let report = site.wait_for_end(&run);
    assert_eq!(report.status, RunStatus::Aborted);
    assert!(report.clients.iter().all(|c| c.standing == ClientStanding::Declined));
    let notes: Vec<&str> = report.clients.iter().filter_map(|c| c.note.as_deref()).collect();
    assert!(notes[2].contains("300"), "{notes:?}");
    // No path of the institution's travels to the operator; its own log has it.
    assert!(notes.iter().all(|note| !note.contains(".idx")), "{notes:?}");
    assert!(site.deployment.client_said(&clients[0]).contains("labels.idx"));
}

#[test]
fn a_port_in_use_a_folder_in_use_and_a_second_init_are_told() {
    let mut site = Site::new(PLAN);
    let clients = site.add_clients(None, true);
    let dir = site.deployment.coordinator_dir();
    let again = site.deployment.operator(&["serve"]).unwrap();
    assert!(!again.status.success());
    assert!(again.stderr.contains("already served by process"), "{}", again.stderr);
    let again =
        site.deployment.operator(&["init", "--federation", "test", "--name", "localhost"]).unwrap();
    assert!(again.stderr.contains("another --dir"), "{}", again.stderr);

    let url = site.deployment.url().unwrap();
    let second = site.path("second");
    let second = second.to_str().unwrap();
    let listen = url.strip_prefix("https://").unwrap();
    let binaries = Binaries::find().unwrap();
    let run = |args: &[&str]| {
        let mut command = binaries.command("comity-coordinator");
        crate::Finished::of(command.args(["--dir", second]).args(args)).unwrap()
    };
    run(&["init", "--federation", "two", "--name", "localhost", "--listen", listen])
        .success()
        .unwrap();
    let refused = run(&["serve"]);
    assert!(refused.stderr.contains("in use"), "{}", refused.stderr);
    assert!(dir.join("journal.log").exists());

    site.deployment.start_client(&clients[0], 0).unwrap();
    let end = std::time::Instant::now() + super::PATIENCE;
    while !site.deployment.client_said(&clients[0]).contains("connected") {
        assert!(std::time::Instant::now() < end, "{}", site.deployment.client_said(&clients[0]));
        std::thread::sleep(std::time::Duration::from_millis(30));
    }
    let refused = site.deployment.client(&clients[0], &["start"]).unwrap();
    assert!(!refused.status.success());
    assert!(refused.stderr.contains("already"), "{}", refused.stderr);
}

#[test]
fn bad_configurations_say_which_key() {
    let mut site = Site::new(PLAN);
    let clients = site.add_clients(None, true);
    let config = site.deployment.client_dir(&clients[0]).join("client.toml");
    let text = fs::read_to_string(&config).unwrap();
    for (from, to, expected) in [
        ("policy = \"policy.toml\"", "", "policy"),
        ("policy.toml", "policies.toml", "policies.toml cannot be read"),
        ("device = \"cpu\"", "device = \"quantum\"", "quantum"),
        ("device = \"cpu\"", "devise = \"cpu\"", "devise"),
        ("https://", "http://", "https://HOST:PORT"),
        ("records = 200", "records = 0", "data.records"),
    ] {
        write(&config, &text.replace(from, to));
        let refused = site.deployment.client(&clients[0], &["start"]).unwrap();
        assert!(!refused.status.success(), "{to}");
        assert!(refused.stderr.contains(expected), "{expected}: {}", refused.stderr);
    }
}
