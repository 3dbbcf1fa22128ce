//! What a client says of its privacy is what its journal proves, whatever happens to it.

use std::fs;
use std::time::{Duration, Instant};

use comity_federation::RunStatus;
use comity_privacy::Estimate;
use serde_json::Value;

use super::{PATIENCE, PLAN, Site, WITH_DP, write};
use crate::Binaries;

/// Kills of a client at work; `make kills` asks for more.
const N_KILLS: &str = "COMITY_KILLS";
const N_KILLS_DEFAULT: u32 = 20;

fn show(site: &Site, client: &comity_federation::ClientId) -> Value {
    let shown = site.deployment.client(client, &["ledger", "show", "--json"]).unwrap();
    shown.success().unwrap().json().unwrap()
}

#[test]
fn a_statement_is_proved_by_the_journal_and_a_changed_one_is_not() {
    let plan = PLAN.replace("mode = \"none\"", WITH_DP);
    let mut site = Site::new(&plan);
    let clients = site.add_clients(Some((9.0, 1e-4)), false);
    let client = &clients[0];
    site.start_clients(&clients);
    let run = site.launch();
    assert_eq!(site.wait_for_end(&run).status, RunStatus::Finished);
    site.deployment.wait_for_clients(PATIENCE).unwrap();

    let ask = |args: &[&str]| site.deployment.client(client, args).unwrap();
    let text = ask(&["privacy", "statement"]).success().unwrap().stdout;
    for part in
        ["record", "add or remove one", "Poisson", "discrete Gaussian", "ChaCha20", "Not covered"]
    {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    let json = ask(&["privacy", "statement", "--json"]).success().unwrap();
    let file = site.path("statement.json");
    write(&file, &json.stdout);
    let file = file.to_str().unwrap();
    let proof = ask(&["privacy", "verify", "--statement", file]).success().unwrap().stdout;
    assert!(proof.contains("3 attempts") && proof.contains("every figure the same"), "{proof}");

    // One figure, one digit.
    let statement = json.json().unwrap();
    let epsilon = statement["total"][0]["epsilon"]["epsilon"].to_string();
    let changed = json.stdout.replace(&epsilon, &format!("0.{}", &epsilon[2..]));
    assert_ne!(changed, json.stdout);
    write(&site.path("changed.json"), &changed);
    let changed = site.path("changed.json");
    let refused = ask(&["privacy", "verify", "--statement", changed.to_str().unwrap()]);
    assert!(refused.clone().success().is_err());
    assert!(refused.stderr.contains("does not say what the journal says"), "{}", refused.stderr);

    // A second run of the same plan: the forecast says what the node would do.
    let forecast = ask(&["ledger", "forecast", site.path("plan.toml").to_str().unwrap()]);
    assert!(forecast.stdout.contains("no room for it"), "{}", forecast.stdout);
    assert!(forecast.success().is_err());

    // An older copy of the journal does not carry the newer statement.
    let journal = site.deployment.client_dir(client).join("state/journal.log");
    let whole = fs::read(&journal).unwrap();
    fs::write(&journal, &whole[..whole.len() / 2]).unwrap();
    let refused = ask(&["privacy", "verify", "--statement", file]);
    assert!(refused.clone().success().is_err());
    assert!(refused.stderr.contains("older copy"), "{}", refused.stderr);
    // Nor does a node start on it, or on an edited one: what it has spent would be forgotten.
    let start = ["start", "--exit-after-runs", "1"];
    let refused = ask(&start);
    assert!(refused.clone().success().is_err());
    assert!(refused.stderr.contains("restored from an older copy"), "{}", refused.stderr);
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    fs::write(&journal, &flipped).unwrap();
    assert!(ask(&["privacy", "verify"]).success().is_err());
    assert!(ask(&start).success().is_err());
    fs::write(&journal, &whole).unwrap();
    assert!(ask(&["privacy", "verify", "--statement", file]).success().is_ok());

    // For the second implementation, which continuous integration runs.
    let exports = Binaries::find().unwrap().folder().join("../ledgers");
    fs::create_dir_all(&exports).unwrap();
    write(&exports.join("one-run.json"), &ask(&["ledger", "show", "--json"]).stdout);
}

/// Statistics before training, deployed: three noisy answers become one, and are in everybody's ledger.
#[test]
fn statistics_are_released_before_training_and_paid_for() {
    let loss = "0.01, loss = { rho_per_round = 0.01, upper = 4.0 }";
    let asked = "[analytics]\nrho = 0.05\nqueries = [{ type = \"count\" }, \
                 { type = \"moments\", lower = -1.0, upper = 1.0 }]\n[cohort]";
    let plan = PLAN
        .replace("mode = \"none\"", &WITH_DP.replace("0.01", loss))
        .replace("[cohort]", asked)
        .replace("layers = [", "layers = [\n    { type = \"standardise\" },");
    let mut site = Site::new(&plan);
    let clients = site.add_clients(Some((8.0, 1e-4)), false);
    site.start_clients(&clients);
    let run = site.launch();
    let report = site.wait_for_end(&run);
    assert_eq!(report.status, RunStatus::Finished, "{report:#?}");
    let rounds: Vec<u32> = report.history.iter().map(|round| round.round).collect();
    assert_eq!(rounds, [0, 1, 2, 3]);
    let [Estimate::Count { n }, Estimate::Moments { mean, std }] =
        &report.statistics.as_ref().unwrap()[..]
    else {
        panic!("{:?}", report.statistics)
    };
    assert!((n - 600).abs() < 120, "{n}");
    assert!(mean.len() == 1 && (-1.0..1.0).contains(&mean[0]) && std[0] > 0.0);
    assert!(
        report.history[1..].iter().all(|r| r.contributions.iter().all(|c| c.loss_sum.is_some()))
    );
    let shown = site.deployment.operator(&["run", "show", &run]).unwrap().success().unwrap().stdout;
    assert!(shown.contains("asked   count: ") && shown.contains("loss"), "{shown}");
    site.deployment.wait_for_clients(PATIENCE).unwrap();
    for client in &clients {
        let ledger = show(&site, client);
        assert_eq!(ledger["runs"][0]["rounds_released"], 4);
        let spent = ledger["spent"]["epsilon"].as_f64().unwrap();
        assert!((7.9..=8.0).contains(&spent), "{client} spent {spent}");
        let proof = site.deployment.client(client, &["privacy", "verify"]).unwrap();
        assert!(proof.clone().success().is_ok(), "{}", proof.stderr);
    }
}

/// The client is killed at a random moment of its work, again and again. What it has spent never
/// shrinks, no round is debited or committed twice, and no key of noise is used twice.
#[test]
fn a_client_that_is_killed_at_random_never_forgets_what_it_spent() {
    let n_kills: u32 =
        std::env::var(N_KILLS).map_or(N_KILLS_DEFAULT, |n| n.parse().expect("a number of kills"));
    let plan = PLAN
        .replace("mode = \"none\"", WITH_DP)
        .replace("rounds = 3", "rounds = 5000")
        .replace("rho_per_round = 0.01", "rho_per_round = 0.000001")
        .replace("min_clients = 3", "min_clients = 1")
        .replace("min_countries = 3", "min_countries = 1")
        .replace(
            "    { id = \"JP/b\", records = 200 },\n    { id = \"VN/c\", records = 200 },\n",
            "",
        );
    let mut site = Site::new(&plan);
    let client = site.add_clients(Some((8.0, 1e-4)), false).remove(0);
    site.launch();
    let mut state = 0x2545_f491_4f6c_dd1d_u64 ^ u64::from(n_kills);
    // How long it takes to come to work here, so that kills fall into all of its life.
    let began = Instant::now();
    site.deployment.start_client(&client, 1).unwrap();
    let at_work = || {
        // At the instant of the first start the journal has no beginning yet.
        let shown = site.deployment.client(&client, &["ledger", "show", "--json"]).unwrap();
        let ledger = shown.success().and_then(|shown| shown.json());
        ledger.is_ok_and(|ledger| !ledger["entries"].as_array().unwrap().is_empty())
    };
    while !at_work() {
        assert!(began.elapsed() < PATIENCE, "the client does not come to work");
        std::thread::sleep(Duration::from_millis(20));
    }
    site.deployment.kill_client(&client);
    let longest = began.elapsed().as_millis() as u64 + 400;
    let (mut last, mut n_entries) = (0.0, 0);
    for kill in 1..=n_kills {
        site.deployment.start_client(&client, 1).unwrap();
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        std::thread::sleep(Duration::from_millis(20 + (state >> 33) % longest));
        site.deployment.kill_client(&client);
        let ledger = show(&site, &client);
        let spent = ledger["spent"]["epsilon"].as_f64().unwrap();
        let entries = ledger["entries"].as_array().unwrap().len();
        assert!(spent >= last && entries >= n_entries, "kill {kill}: {last} became {spent}");
        assert!(spent <= 8.0, "kill {kill}: {spent}");
        (last, n_entries) = (spent, entries);
    }
    let proof = site.deployment.client(&client, &["privacy", "verify"]).unwrap();
    let proof = proof.success().unwrap().stdout;
    assert!(proof.contains("no key used twice"), "{proof}");
    let ledger = show(&site, &client);
    let of_kind = |kind: &str| {
        ledger["entries"].as_array().unwrap().iter().filter(|e| e["kind"] == kind).count()
    };
    let [reserved, reopened, committed] = ["reserved", "reopened", "committed"].map(of_kind);
    println!(
        "{n_kills} kills: {reserved} rounds debited, {reopened} made again under fresh keys, \
         {committed} committed; epsilon {last:.4}"
    );
    assert!(committed <= reserved && reserved <= committed + 1);
    assert!(reserved > 0 && (n_kills < 100 || reopened > 0));
}
