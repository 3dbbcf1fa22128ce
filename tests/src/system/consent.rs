//! What an institution agrees to: signed plans, its policy, and its steward.

use std::fs;
use std::time::Instant;

use comity_certs::{Clock, Document, Signer, client_config};
use comity_coordinator::start_request;
use comity_federation::{ClientId, ClientStanding, Order, Plan, RunId, RunStatus, Time};
use comity_proto::transport::connect;
use comity_proto::v1::assignment::What;
use comity_proto::v1::control_client::ControlClient;
use comity_proto::v1::{self, StartRunRequest};
use serde_json::Value;

use super::rogue::{Answer, Rogue, offer};
use super::{PATIENCE, PLAN, Site, WITH_DP, short_rounds, write};

fn plan(text: &str) -> Plan {
    Plan::from_toml(text).unwrap()
}

fn operator(site: &Site) -> Signer {
    let certs = site.deployment.coordinator_dir().join("certs");
    Signer::read(&certs.join("operator.pem"), &certs.join("operator.key")).unwrap()
}

/// Changes a line of `client`'s policy.
fn amend(site: &Site, client: &ClientId, from: &str, to: &str) {
    let path = site.deployment.client_dir(client).join("policy.toml");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{from}: {text}");
    write(&path, &text.replace(from, to));
}

const ASK: (&str, &str) = ("approval = \"auto\"", "approval = \"ask\"");

fn now() -> Time {
    Clock::system().now()
}

fn runs(site: &Site, client: &ClientId) -> Vec<Value> {
    let list = site.deployment.client(client, &["run", "list", "--json"]).unwrap();
    list.success().unwrap().json().unwrap().as_array().unwrap().clone()
}

/// Waits until `client`'s list of runs is as `wanted`.
fn wait_for_list(site: &Site, client: &ClientId, wanted: impl Fn(&[Value]) -> bool) {
    let end = Instant::now() + PATIENCE;
    loop {
        let runs = runs(site, client);
        if wanted(&runs) {
            return;
        }
        assert!(Instant::now() < end, "still {runs:#?}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// A site of three clients of which one follows a rogue coordinator, and has no data: whoever reads them is seen.
fn beguiled(plan: &str) -> (Site, Rogue, ClientId) {
    let mut site = Site::new(plan);
    let clients = site.add_clients(Some((8.0, 1e-4)), true);
    fs::remove_dir_all(site.path("shards/KR-a")).unwrap();
    let rogue = Rogue::serve(&site);
    rogue.beguile(&site, &clients[0]);
    site.deployment.start_client(&clients[0], 0).unwrap();
    (site, rogue, clients[0].clone())
}

#[test]
fn what_no_operator_ordered_is_refused_by_name_before_data_are_read_or_anything_is_recorded() {
    let private = PLAN.replace("mode = \"none\"", WITH_DP);
    let (site, rogue, client) = beguiled(&private);
    let (ordered, signer) = (plan(&private), operator(&site));
    let (run, good) = offer(&ordered, &signer, now());
    let mut n = 0;
    let mut refused = |run: &RunId, offer: v1::Offer, expected: &str| {
        rogue.say(run, What::Offer(offer));
        n += 1;
        let reason = rogue.refusal(n, run);
        assert!(reason.contains(expected), "{expected}: {reason}");
    };
    let instead_of = |plan: &Plan| v1::Offer {
        plan_json: plan.to_json().into(),
        plan_digest: plan.digest().0.to_vec().into(),
        ..good.clone()
    };
    // Altered after it was signed: more rounds, a larger epsilon, no differential privacy at all.
    for (from, to) in [
        ("rounds = 3", "rounds = 4"),
        ("epsilon = 8.0", "epsilon = 80.0"),
        (WITH_DP, "mode = \"none\""),
    ] {
        let altered = plan(&private.replace(from, to));
        refused(&run, instead_of(&altered), "altered after it was signed");
    }
    // With the digest that was agreed to, and another plan behind it.
    let mut lied = instead_of(&plan(&private.replace("rounds = 3", "rounds = 4")));
    lied.plan_digest = good.plan_digest.clone();
    refused(&run, lied, "not the one of its digest");
    // Not signed, or not by the operator: by the coordinator itself, or by another client.
    let unsigned = v1::Offer { order_signature: None, ..good.clone() };
    refused(&run, unsigned, "not signed");
    let unordered = v1::Offer { order_json: Default::default(), ..good.clone() };
    refused(&run, unordered, "not signed");
    let certs = site.deployment.coordinator_dir().join("certs");
    let of_coordinator =
        Signer::read(&certs.join("coordinator.pem"), &certs.join("coordinator.key")).unwrap();
    let other = site.deployment.client_dir(&"JP/b".parse().unwrap()).join("certs");
    let of_client = Signer::read(&other.join("certificate.pem"), &other.join("key.pem")).unwrap();
    for signer in [&of_coordinator, &of_client] {
        let signature = signer.sign(Document::Order, &good.order_json);
        let forged = v1::Offer { order_signature: Some((&signature).into()), ..good.clone() };
        refused(&run, forged, "is signed by comity://test/");
    }
    // The operator's signature, under another kind of document.
    let signature = signer.sign(Document::Receipt, &good.order_json);
    let forged = v1::Offer { order_signature: Some((&signature).into()), ..good.clone() };
    refused(&run, forged, "did not sign this document");
    // Under another run's id, in another federation, or from another day.
    let other_run: RunId = "stripes-00000000".parse().unwrap();
    refused(&other_run, good.clone(), "an order is for one run");
    let order = Order::new(&ordered, "elsewhere", now(), "operator");
    let signature = signer.sign(Document::Order, &order.to_json());
    let elsewhere = v1::Offer {
        order_json: order.to_json().into(),
        order_signature: Some((&signature).into()),
        ..good.clone()
    };
    refused(&order.run, elsewhere, "of federation elsewhere");
    let day = 86_400_000;
    let (future, of_tomorrow) = offer(&ordered, &signer, Time(now().0 + day));
    refused(&future, of_tomorrow, "one of the two clocks is wrong");
    let (past, of_long_ago) = offer(&ordered, &signer, Time(now().0 - 31 * day));
    refused(&past, of_long_ago, "set the clock");
    // Signed by the operator, and still nothing that this institution takes part in.
    assert_eq!(runs(&site, &client), Vec::<Value>::new(), "nothing of this was recorded");
    let unnamed = plan(&private.replace("KR/a", "KR/z"));
    let (unnamed, of_others) = offer(&unnamed, &signer, now());
    refused(&unnamed, of_others, "does not name KR/a");
    let more = plan(&private.replace("epsilon = 8.0", "epsilon = 8.5"));
    let (more, of_more) = offer(&more, &signer, Time(now().0 + 1));
    refused(&more, of_more, "asks for epsilon 8.5");
    assert!(!site.deployment.client_said(&client).contains("images.idx"), "data were read");
    // And one that is in order gets as far as the data, which are gone.
    let (good_run, good) = offer(&ordered, &signer, Time(now().0 + 2));
    refused(&good_run, good, "could not be read as the plan describes them");
}

#[test]
fn a_run_is_had_once_and_an_older_order_does_not_come_back() {
    let mut site = Site::new(PLAN);
    let clients = site.add_clients(None, true);
    let rogue = Rogue::serve(&site);
    rogue.beguile(&site, &clients[0]);
    let (ordered, signer) = (plan(PLAN), operator(&site));
    let (run, first) = offer(&ordered, &signer, now());
    let (older_run, older) = offer(&ordered, &signer, Time(now().0 - 60_000));
    site.deployment.start_client(&clients[0], 0).unwrap();
    rogue.say(&run, What::Offer(first.clone()));
    assert_eq!(rogue.answer(1), Answer::CheckedIn(run.to_string()));
    // The same offer again is answered again; another plan under the same run is not.
    rogue.say(&run, What::Offer(first.clone()));
    assert_eq!(rogue.answer(2), Answer::CheckedIn(run.to_string()));
    let other = plan(&PLAN.replace("rounds = 3", "rounds = 9"));
    let another = v1::Offer {
        plan_json: other.to_json().into(),
        plan_digest: other.digest().0.to_vec().into(),
        ..first.clone()
    };
    rogue.say(&run, What::Offer(another.clone()));
    assert!(rogue.refusal(3, &run).contains("offered before with another plan"));
    rogue.say(&older_run, What::Offer(older.clone()));
    assert!(rogue.refusal(4, &older_run).contains("superseded"));
    // It ends, and the node forgets nothing over a restart.
    rogue.say(&run, What::Ended(v1::Ended { status: "aborted".into(), ..Default::default() }));
    wait_for_list(&site, &clients[0], |runs| runs.len() == 1 && runs[0]["ended"].is_string());
    site.deployment.kill_client(&clients[0]);
    let before = rogue.url.clone();
    drop(rogue);
    let rogue = Rogue::serve(&site);
    let config = site.deployment.client_dir(&clients[0]).join("client.toml");
    let text = fs::read_to_string(&config).unwrap();
    write(&config, &text.replace(&before, &rogue.url));
    site.deployment.start_client(&clients[0], 0).unwrap();
    rogue.say(&run, What::Offer(first));
    assert!(rogue.refusal(1, &run).contains("has ended here before"));
    rogue.say(&run, What::Offer(another));
    assert!(rogue.refusal(2, &run).contains("offered before with another plan"));
    rogue.say(&older_run, What::Offer(older));
    assert!(rogue.refusal(3, &older_run).contains("superseded"));
}

#[test]
fn an_operator_whose_key_is_not_pinned_is_named_with_the_key() {
    let mut site = Site::new(PLAN);
    let clients = site.add_clients(None, true);
    let key = site.deployment.operator_key().unwrap().key.to_string();
    let printed = site.deployment.operator(&["certs", "fingerprint"]).unwrap().success().unwrap();
    assert_eq!(printed.stdout.trim(), format!("{{ name = \"operator\", key = \"{key}\" }}"));
    let other = format!("{}{}", if key.starts_with('0') { '1' } else { '0' }, &key[1..]);
    amend(&site, &clients[0], &key, &other);
    site.deployment.start_client(&clients[0], 0).unwrap();
    let run = site.launch();
    let report = site.wait(&run, |r| r.clients[0].standing == ClientStanding::Declined);
    let note = report.clients[0].note.clone().unwrap();
    assert!(note.contains(&key) && note.contains("operators"), "{note}");
}

#[test]
fn the_coordinator_launches_nothing_without_an_order_of_the_one_who_calls_and_of_today() {
    let site = Site::new(PLAN);
    let certs = site.deployment.coordinator_dir().join("certs");
    let pem = |name: &str| fs::read_to_string(certs.join(name)).unwrap();
    let tls = client_config(&pem("operator.pem"), &pem("operator.key"), &pem("root.pem")).unwrap();
    let (signer, ordered) = (operator(&site), plan(PLAN));
    let order = |at: Time| start_request(PLAN.to_owned(), &ordered, &signer, at, &[]).unwrap();
    let (day, today) = (86_400_000, now());
    let unsigned = StartRunRequest { plan_toml: PLAN.to_owned(), ..Default::default() };
    let mut altered = order(today);
    altered.plan_toml = PLAN.replace("rounds = 3", "rounds = 4");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let url = site.deployment.url().unwrap();
        let mut control = ControlClient::new(connect(&url, tls).await.unwrap());
        for (request, expected) in [
            (unsigned, "not signed"),
            (altered, "altered after it was signed"),
            (order(Time(today.0 - day)), "clock"),
            (order(Time(today.0 + day)), "clock"),
        ] {
            let refused = control.start_run(request).await.unwrap_err();
            assert!(refused.message().contains(expected), "{expected}: {refused:?}");
        }
        control.start_run(order(today)).await.unwrap();
        let again = control.start_run(order(today)).await.unwrap_err();
        assert!(again.message().contains("launched before"), "{again:?}");
    });
    let list = site.deployment.operator(&["run", "list", "--json"]).unwrap().success().unwrap();
    assert_eq!(list.json().unwrap().as_array().unwrap().len(), 1);
}

#[test]
fn a_plan_needs_the_consents_of_as_many_countries_as_the_policy_says() {
    let mut site = Site::new(PLAN);
    let clients = site.add_clients(None, true);
    amend(&site, &clients[0], "consents_countries_min = 0", "consents_countries_min = 2");
    let path = site.path("plan.toml");
    let plan = path.to_str().unwrap();
    let mut files = Vec::new();
    for client in &clients[1..] {
        let file = site.path(&format!("{}.consent", client.institution()));
        let file = file.to_str().unwrap().to_owned();
        let sign = ["plan", "sign", plan, "--out", &file];
        site.deployment.client(client, &sign).unwrap().success().unwrap();
        let again = site.deployment.client(client, &sign).unwrap();
        assert!(again.stderr.contains("exists"), "{}", again.stderr);
        files.push(file);
    }
    site.deployment.start_client(&clients[0], 0).unwrap();
    let start = |consents: &[&str]| {
        let mut args = vec!["run", "start", plan, "--json"];
        consents.iter().for_each(|file| args.extend(["--consent", file]));
        let started = site.deployment.operator(&args).unwrap().success().unwrap();
        started.json().unwrap()["run"].as_str().unwrap().to_owned()
    };
    let run = start(&[&files[0]]);
    let report = site.wait(&run, |r| r.clients[0].standing == ClientStanding::Declined);
    let note = report.clients[0].note.clone().unwrap();
    assert!(note.contains("of 1 countries have consented"), "{note}");
    let run = start(&[&files[0], &files[1]]);
    site.wait(&run, |r| r.clients[0].standing == ClientStanding::Configured);
    let shown = site.deployment.client(&clients[0], &["run", "show", &run]).unwrap();
    assert!(shown.stdout.contains("consent   of JP/b"), "{}", shown.stdout);
    // A consent to another plan is refused where it is handed in.
    write(&path, &PLAN.replace("rounds = 3", "rounds = 4"));
    let refused = site.deployment.operator(&["run", "start", plan, "--consent", &files[0]]);
    assert!(refused.unwrap().stderr.contains("the consent is for plan"));
}

#[test]
fn a_run_that_waits_for_its_steward_trains_when_it_is_approved() {
    let mut site = Site::new(&short_rounds(2));
    let clients = site.add_clients(None, true);
    amend(&site, &clients[0], ASK.0, ASK.1);
    site.start_clients(&clients);
    let run = site.launch();
    let waits = |runs: &[Value]| runs.len() == 1 && runs[0]["waits_for_steward"] == true;
    wait_for_list(&site, &clients[0], waits);
    let shown = site.deployment.client(&clients[0], &["run", "show", &run]).unwrap();
    let said = shown.success().unwrap().stdout;
    assert!(said.contains("It waits for you") && said.contains("by operator"), "{said}");
    let report = site.deployment.report(&run).unwrap();
    assert_eq!(report.status, RunStatus::Gathering);
    assert_eq!(report.clients[0].standing, ClientStanding::Registered);
    // A decision about something else than what was shown counts neither at the command nor at the node.
    let decide =
        |args: &[&str]| site.deployment.client(&clients[0], &[&["run"], args].concat()).unwrap();
    let refused = decide(&["approve", &run, "--plan", "00000000"]);
    assert!(refused.stderr.contains("changed since it was shown"), "{}", refused.stderr);
    let folder = site.deployment.client_dir(&clients[0]).join("state/decisions");
    fs::create_dir_all(&folder).unwrap();
    let file = folder.join(format!("{run}.json"));
    let forged = serde_json::json!({
        "run": run, "plan": "00".repeat(32), "approved": true, "reason": "", "at": 1,
    });
    write(&folder.join("new"), &forged.to_string());
    fs::rename(folder.join("new"), &file).unwrap();
    let end = Instant::now() + PATIENCE;
    while file.exists() {
        assert!(Instant::now() < end, "{}", site.deployment.client_said(&clients[0]));
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert!(site.deployment.client_said(&clients[0]).contains("changed since it was shown"));
    wait_for_list(&site, &clients[0], waits);
    // The real one.
    let plan = plan(&short_rounds(2)).digest().to_string();
    let why = "agreed with the ministry";
    decide(&["approve", &run, "--plan", &plan[..8], "--reason", why]).success().unwrap();
    let report = site.wait_for_end(&run);
    assert_eq!(report.status, RunStatus::Finished, "{:?}", report.reason);
    let list = runs(&site, &clients[0]);
    assert_eq!(list[0]["decision"]["reason"], why);
    assert!(!list[0]["decision"]["by"].as_str().unwrap().is_empty());
    let journal = site.deployment.client(&clients[0], &["journal", "show"]).unwrap().stdout;
    assert!(journal.contains("steward") && journal.contains(why), "{journal}");
    let late = decide(&["refuse", &run, "--reason", "too late"]);
    assert!(late.stderr.contains("is over"), "{}", late.stderr);
}

#[test]
fn the_operator_reads_why_a_steward_refused_before_and_in_the_middle_of_a_run() {
    let plan = short_rounds(400)
        .replace("min_clients = 3", "min_clients = 1")
        .replace("min_countries = 3", "min_countries = 1");
    let mut site = Site::new(&plan);
    let clients = site.add_clients(None, true);
    amend(&site, &clients[0], ASK.0, ASK.1);
    site.start_clients(&clients);
    let run = site.launch();
    wait_for_list(&site, &clients[0], |runs| runs.len() == 1);
    let refuse = |client: &ClientId, args: &[&str]| {
        site.deployment.client(client, &[&["run", "refuse", &run], args].concat()).unwrap()
    };
    assert!(refuse(&clients[0], &["--reason", " "]).stderr.contains("needs a reason"));
    refuse(&clients[0], &["--reason", "no agreement yet"]).success().unwrap();
    let declined = |index: usize| {
        let report = site.wait(&run, |r| r.clients[index].standing == ClientStanding::Declined);
        report.clients[index].note.clone().unwrap()
    };
    assert!(declined(0).contains("steward refused: no agreement yet"));
    // The others train; one of them thinks better of it.
    site.wait(&run, |r| r.round > 1);
    refuse(&clients[1], &["--reason", "its data are being corrected"]).success().unwrap();
    assert!(declined(1).contains("its data are being corrected"));
    let from = site.deployment.report(&run).unwrap().round;
    let report = site.wait(&run, |r| r.round > from + 1);
    let later = report.history.iter().filter(|round| round.round > from);
    assert!(later.clone().count() > 0);
    for round in later {
        assert!(round.cohort.iter().all(|client| *client == clients[2]), "{round:?}");
    }
    // And comes back.
    let approve = ["run", "approve", &run];
    site.deployment.client(&clients[1], &approve).unwrap().success().unwrap();
    site.wait(&run, |r| r.clients[1].standing != ClientStanding::Declined);
    let abort = ["run", "abort", &run, "--reason", "seen enough"];
    site.deployment.operator(&abort).unwrap().success().unwrap();
    // Who ordered what, and why.
    let journal = site.deployment.operator(&["journal", "show", "--json"]).unwrap();
    let lines = journal.success().unwrap().json().unwrap();
    let of = |what: &str| {
        let mut lines = lines.as_array().unwrap().iter();
        let found = lines.find(|line| line["what"].as_str().unwrap().contains(what));
        found.unwrap_or_else(|| panic!("no {what}: {lines:#?}")).clone()
    };
    assert_eq!(of("launched plan")["who"], "operator");
    assert!(of("ordered to abort")["what"].as_str().unwrap().contains("seen enough"));
    assert_eq!(of("ordered to abort")["who"], "operator");
}

#[test]
fn a_round_outside_the_institutions_hours_is_left_out_with_the_hours() {
    let plan = short_rounds(2)
        .replace("min_clients = 3", "min_clients = 2")
        .replace("min_countries = 3", "min_countries = 2");
    let mut site = Site::new(&plan);
    let clients = site.add_clients(None, true);
    // From two to three hours from now, in UTC.
    let hour = now().0 / 3_600_000 % 24;
    let at = |ahead: u64| format!("{:02}:00", (hour + ahead) % 24);
    let hours = format!(
        "hours = {{ from = \"{}\", to = \"{}\", utc_offset = \"+00:00\" }}\n{}",
        at(2),
        at(3),
        ASK.0
    );
    amend(&site, &clients[0], ASK.0, &hours);
    site.start_clients(&clients);
    let run = site.launch();
    let report = site.wait_for_end(&run);
    assert_eq!(report.status, RunStatus::Finished, "{:?}", report.reason);
    for round in &report.history {
        assert_eq!(round.contributions.len(), 2);
        let (who, why) = &round.missing[0];
        assert_eq!(who, &clients[0]);
        assert!(why.contains("hours") && why.contains(&at(2)), "{why}");
    }
}

#[test]
fn a_run_for_which_the_year_has_no_room_is_declined_by_the_policy() {
    let private = short_rounds(1).replace("mode = \"none\"", WITH_DP);
    let mut site = Site::new(&private);
    let clients = site.add_clients(Some((8.0, 1e-4)), false);
    for client in &clients {
        site.deployment.start_client(client, 2).unwrap();
    }
    let run = site.launch();
    assert_eq!(site.wait_for_end(&run).status, RunStatus::Finished);
    let second = site.launch();
    let report = site.wait_for_end(&second);
    assert_eq!(report.status, RunStatus::Aborted);
    for client in &report.clients {
        assert_eq!(client.standing, ClientStanding::Declined);
        assert!(client.note.as_ref().unwrap().contains("the last 365 days"), "{client:?}");
    }
    let explain =
        ["policy", "explain", site.path("plan.toml").to_str().unwrap()].map(str::to_owned);
    let said = site.deployment.client(&clients[0], &explain.each_ref().map(|s| &s[..])).unwrap();
    assert!(!said.status.success() && said.stdout.contains("NO   epsilon_year_max"), "{said:?}");
}

#[test]
fn a_policy_is_explained_rule_by_rule_and_an_unknown_key_is_refused() {
    let mut site = Site::new(&PLAN.replace("mode = \"none\"", WITH_DP));
    let clients = site.add_clients(Some((8.0, 1e-4)), false);
    let path = site.path("plan.toml");
    let explain = |args: &[&str]| {
        let args = [&["policy", "explain", path.to_str().unwrap()], args].concat();
        site.deployment.client(&clients[0], &args).unwrap()
    };
    let said = explain(&[]).success().unwrap().stdout;
    assert!(said.contains("the plan is allowed") && said.contains("ok   epsilon"), "{said}");
    amend(&site, &clients[0], "epsilon_run_max = 8.0", "epsilon_run_max = 7.5");
    amend(&site, &clients[0], "purposes = [\"*\"]", "purposes = [\"*diabetes*\"]");
    let refused = explain(&["--json"]);
    assert!(!refused.status.success());
    let said = refused.json().unwrap();
    assert_eq!(said["allowed"], false);
    let broken: Vec<&Value> = said["findings"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|finding| finding["holds"] == false)
        .map(|finding| &finding["rule"])
        .collect();
    assert_eq!(broken, ["purposes", "epsilon_run_max"]);
    let check = || site.deployment.client(&clients[0], &["policy", "check"]).unwrap();
    let said = check().success().unwrap().stdout;
    assert!(said.contains("*diabetes*") && said.contains("at once"), "{said}");
    amend(&site, &clients[0], "without_dp = false", "without_dp = false\nwithout_dq = true");
    let said = check();
    assert!(!said.status.success() && said.stderr.contains("without_dq"), "{}", said.stderr);
    let started = site.deployment.client(&clients[0], &["start"]).unwrap();
    assert!(!started.status.success() && started.stderr.contains("without_dq"));
}
