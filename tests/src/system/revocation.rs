//! Revocation and renewal while bytes are under way, and who may do what.

use std::fs;
use std::time::{Duration, Instant};

use comity_certs::Authority;
use comity_federation::{ClientId, ClientStanding};
use time::OffsetDateTime;

use super::resume::{UPDATE_BYTES, assert_finished, site, wait_until};
use super::{PATIENCE, PLAN, Site, write};
use crate::{Binaries, Deployment, Finished};

fn says(text: &str, words: &[&str]) {
    assert!(words.iter().all(|word| text.contains(word)), "{words:?} in: {text}");
}

fn refused(finished: Finished) -> String {
    assert!(!finished.status.success(), "{}", finished.stdout);
    finished.stderr
}

/// Changes the coordinator's configuration and starts it again at the same ports.
fn configure(site: &mut Site, from: &str, to: &str) {
    site.keep_port();
    let path = site.deployment.coordinator_dir().join("coordinator.toml");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{text}");
    write(&path, &text.replacen(from, to, 1));
    site.deployment.serve().unwrap();
}

#[test]
fn a_revoked_client_loses_its_open_upload_within_a_second() {
    let (mut site, clients, proxy) = site(1);
    let revoked = clients[0].clone();
    proxy.set_rate(Some(4_000_000));
    site.start_clients(&clients);
    let run = site.launch();
    let staged = site.deployment.coordinator_dir().join("blobs/staged");
    let of_revoked = || {
        let files = fs::read_dir(&staged).into_iter().flatten().flatten();
        files.filter(|file| file.file_name().to_string_lossy().contains(".KR.a.")).count()
    };
    wait_until("an upload under way", || proxy.n_bytes_up() > UPDATE_BYTES / 4 && of_revoked() > 0);
    proxy.set_rate(Some(100_000));
    let began = Instant::now();
    let revoke = ["revoke", "KR/a", "--reason", "its key was lost", "--json"];
    let done = site.deployment.operator(&revoke).unwrap().success().unwrap().json().unwrap();
    assert_eq!(done["runs"][0], run);
    wait_until("the end of the upload", || of_revoked() == 0);
    let connected = || {
        let report = site.deployment.report(&run).unwrap();
        let client = report.clients.into_iter().find(|c| c.client == revoked).unwrap();
        (client.connected, client.standing)
    };
    wait_until("the end of the connection", || connected().0 != Some(true));
    let took = began.elapsed();
    println!("revoked, upload discarded and connection ended after {} ms", took.as_millis());
    // The command itself starts a process and connects; what follows it is at once.
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(connected().1, ClientStanding::Excluded);
    // It reads why, and comes back no more.
    let said = || site.deployment.client_said(&revoked);
    wait_until("the reason", || said().contains("was revoked on"));
    says(&said(), &["by operator operator: its key was lost"]);
    let report = site.deployment.report(&run).unwrap();
    let counted = |id: &ClientId| {
        report.history.iter().any(|round| round.contributions.iter().any(|c| c.client == *id))
    };
    assert!(!counted(&revoked), "{report:#?}");
    let renewed = refused(site.deployment.client(&revoked, &["renew"]).unwrap());
    says(&renewed, &["was revoked on"]);
}

#[test]
fn a_renewed_client_notices_nothing() {
    let (mut site, clients, proxy) = site(1);
    configure(&mut site, "certificate_lifetime = \"1day\"", "certificate_lifetime = \"9s\"");
    // Its next certificate is a short one, and from now on it renews by itself, some times in an upload.
    site.deployment.client(&clients[0], &["renew"]).unwrap().success().unwrap();
    site.start_clients(&clients);
    let run = site.launch();
    wait_until("an upload under way", || proxy.n_bytes_up() > UPDATE_BYTES / 4);
    proxy.set_rate(Some(60_000));
    let n_connections = proxy.n_accepted();
    let n_renewed =
        || site.deployment.client_said(&clients[0]).matches("certificate renewed").count();
    let before = n_renewed();
    // Longer than the certificate lives with which it connected.
    wait_until("two renewals in the middle of an upload", || n_renewed() >= before + 2);
    assert!(proxy.n_bytes_up() < UPDATE_BYTES, "the upload was over before");
    assert_eq!(proxy.n_accepted(), n_connections, "it connected anew");
    proxy.set_rate(None);
    assert_finished(&mut site, &run);
    let said = site.deployment.client_said(&clients[0]);
    assert!(!said.contains("update resumed"), "{said}");
}

#[test]
fn a_node_whose_certificate_expired_renews_it_without_a_new_invitation() {
    let mut site = Site::new(PLAN);
    configure(&mut site, "certificate_lifetime = \"1day\"", "certificate_lifetime = \"1s\"");
    let clients = site.add_clients(None, true);
    std::thread::sleep(Duration::from_millis(1_500));
    let check = site.deployment.client(&clients[0], &["check"]).unwrap();
    says(&check.stdout, &["FAIL certificate", "expired on", "ok   renewal"]);
    configure(&mut site, "certificate_lifetime = \"1s\"", "certificate_lifetime = \"1h\"");
    site.deployment.client(&clients[0], &["renew"]).unwrap().success().unwrap();
    site.deployment.client(&clients[0], &["check"]).unwrap().success().unwrap();
    // The others do so by themselves when they start.
    site.start_clients(&clients);
    let run = site.launch();
    site.wait_for_end(&run);
    site.deployment.wait_for_clients(PATIENCE).unwrap();
    // But not after the grace is over.
    configure(&mut site, "renewal_grace = \"30days\"", "renewal_grace = \"1s\"");
    configure(&mut site, "certificate_lifetime = \"1h\"", "certificate_lifetime = \"1s\"");
    site.deployment.client(&clients[0], &["renew"]).unwrap().success().unwrap();
    std::thread::sleep(Duration::from_millis(2_500));
    let said = refused(site.deployment.client(&clients[0], &["renew"]).unwrap());
    says(&said, &["too long ago", "new invitation"]);
}

#[test]
fn operators_may_do_what_their_role_says_and_a_revoked_one_nothing() {
    let site = Site::new(PLAN);
    let (admin, dir) = (&site.deployment, site.path("alice"));
    let token = |name: &str, role: &str| {
        let invite = ["invite", "--operator", name, "--role", role];
        admin.operator(&invite).unwrap().success().unwrap().stdout.trim().to_owned()
    };
    let alice = |args: &[&str]| admin.operator_at(&dir, args, "").unwrap();
    admin.operator_at(&dir, &["join"], &token("alice", "viewer")).unwrap().success().unwrap();
    alice(&["run", "list"]).success().unwrap();
    alice(&["members", "list"]).success().unwrap();
    let invite = ["invite", "--country", "VN", "--institution", "hanoi"];
    let revoke = ["revoke", "operator", "--reason", "a coup"];
    let role = ["members", "role", "alice", "admin", "--reason", "I want to"];
    for args in [&invite[..], &revoke, &role] {
        let said = refused(alice(args));
        says(&said, &["operator alice is viewer, and this needs admin", "(operator)"]);
    }
    let plan = site.path("plan.toml");
    let start = ["run", "start", plan.to_str().unwrap()];
    says(&refused(alice(&start)), &["this needs launcher"]);
    admin.operator(&["members", "role", "alice", "launcher", "--reason", "trained"]).unwrap();
    alice(&start).success().unwrap();
    says(&refused(alice(&invite)), &["this needs admin"]);
    admin.operator(&["revoke", "alice", "--reason", "left"]).unwrap().success().unwrap();
    says(&refused(alice(&["run", "list"])), &["alice was revoked on", "left"]);
    // An invitation of an operator is none of a node, and the other way round.
    let said = refused(admin.join_with(&token("bob", "admin"), &site.path("x")).unwrap());
    says(&said, &["for an operator"]);
    let node = admin.invite(&"VN/c".parse().unwrap()).unwrap();
    let said = refused(admin.operator_at(&site.path("y"), &["join"], &node).unwrap());
    says(&said, &["for the node of VN/c"]);
}

#[test]
fn where_two_operators_have_to_approve_one_cannot_do_it_alone() {
    let mut site = Site::new(PLAN);
    let token = |site: &Site| {
        let invite = ["invite", "--operator", "alice", "--role", "admin"];
        site.deployment.operator(&invite).unwrap().success().unwrap().stdout.trim().to_owned()
    };
    let (alice, hanoi) = (site.path("alice"), site.path("hanoi"));
    let of_alice = token(&site);
    site.deployment.operator_at(&alice, &["join"], &of_alice).unwrap().success().unwrap();
    configure(&mut site, "approvals = 1", "approvals = 2");
    // Alice's folder knows the port from before.
    site.deployment.operator_at(&alice, &["run", "list"], "").unwrap_or_else(|e| panic!("{e}"));
    let invited = site.deployment.invite(&"VN/hanoi".parse().unwrap()).unwrap();
    let (waiting, said) = std::thread::scope(|scope| {
        let deployment = &site.deployment;
        let (invited, hanoi) = (&invited, &hanoi);
        let joining = scope.spawn(move || deployment.join_with(invited, hanoi).unwrap());
        let key = || -> Option<String> {
            let show = ["members", "show", "VN/hanoi", "--json"];
            let shown = deployment.operator(&show).unwrap().success().unwrap().json().unwrap();
            let awaits = shown["standing"] == "awaits approval";
            awaits.then(|| shown["key"].as_str().unwrap().to_owned())
        };
        wait_until("a request to join", || key().is_some());
        let key = key().unwrap();
        let approve =
            |key: &str| ["members", "approve", "VN/hanoi", "--key", key].map(str::to_owned);
        let wrong = "ab".repeat(32);
        let run = |dir: Option<&std::path::Path>, key: &str| {
            let args = approve(key);
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            match dir {
                Some(dir) => deployment.operator_at(dir, &args, "").unwrap(),
                None => deployment.operator(&args).unwrap(),
            }
        };
        let mut said = vec![refused(run(None, &key)), refused(run(Some(&alice), &wrong))];
        run(Some(&alice), &key).success().unwrap();
        said.push(key);
        (joining.join().unwrap(), said)
    });
    says(&said[0], &["has approved VN/hanoi already"]);
    says(&said[1], &["asks with the key", &said[2]]);
    let joined = waiting.success().unwrap();
    says(&joined.stderr, &["1 of 2 operators approve", &said[2]]);
}

#[test]
fn new_certificates_are_taken_while_it_serves_and_a_bad_set_is_refused() {
    let site = Site::new(PLAN);
    let certs = site.deployment.coordinator_dir().join("certs");
    let said = || site.deployment.coordinator_said();
    let (pem, key) = (certs.join("coordinator.pem"), certs.join("coordinator.key"));
    let before = fs::read_to_string(&pem).unwrap();
    fs::copy(certs.join("operator.pem"), &pem).unwrap();
    site.deployment.signal(None, "HUP").unwrap();
    wait_until("a refusal", || said().contains("new certificates refused"));
    site.deployment.operator(&["run", "list"]).unwrap().success().unwrap();
    write(&pem, &before);
    let now = OffsetDateTime::now_utc();
    let names = ["127.0.0.1".to_owned()];
    let authority = Authority::open(&certs).unwrap();
    let end = now + time::Duration::days(2);
    let issued = authority.issue_server(&names, now - time::Duration::hours(1), end).unwrap();
    write(&key, &issued.key_pem);
    write(&pem, &issued.certificate_pem);
    site.deployment.signal(None, "HUP").unwrap();
    wait_until("new certificates", || said().contains("new certificates taken"));
    site.deployment.operator(&["run", "list"]).unwrap().success().unwrap();
}

#[test]
fn from_nothing_to_a_trained_model_are_two_commands_on_each_side() {
    let mut site = Site::new(PLAN);
    site.sim(&["split", "--plan", "plan.toml", "--world", "world.toml", "--out", "shards"])
        .success()
        .unwrap();
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (members, joining) = (free(), free());
    let at = |listener: &std::net::TcpListener| listener.local_addr().unwrap().to_string();
    let (listen, enrolment) = (at(&members), at(&joining));
    drop((members, joining));
    let root = site.path("anew");
    let init = ["init", "--federation", "anew", "--name", "127.0.0.1", "--listen", &listen];
    let invite = ["--invite", "KR/a", "--invite", "JP/b", "--invite", "VN/c"];
    let init = [&init[..], &["--enrolment-listen", &enrolment], &invite].concat();
    let (mut anew, printed) =
        Deployment::init_with(Binaries::find().unwrap(), &root, &init).unwrap();
    let tokens: Vec<&str> = printed.stdout.lines().collect();
    assert_eq!(tokens.len(), 3, "{printed:?}");
    anew.serve().unwrap();
    let clients: Vec<ClientId> = ["KR/a", "JP/b", "VN/c"].map(|id| id.parse().unwrap()).into();
    for (client, token) in clients.iter().zip(tokens) {
        let shard = site.path(&format!("shards/{}-{}", client.country(), client.institution()));
        let file = |name: &str| shard.join(name).display().to_string();
        let (images, labels) = (file("images.idx"), file("labels.idx"));
        let args = ["join", "--records", "200", "--images", &images, "--labels", &labels];
        let policy = ["--without-dp", "--approve-automatically"];
        let args = [&args[..], &policy].concat();
        anew.client_with(client, &args, token).unwrap().success().unwrap();
        anew.client(client, &["check"]).unwrap().success().unwrap();
        anew.start_client(client, 1).unwrap();
    }
    let run = anew.launch(&site.path("plan.toml")).unwrap();
    anew.wait_for_clients(PATIENCE).unwrap();
    assert_eq!(anew.report(&run).unwrap().model.to_string(), site.simulated_model());
    site.deployment.kill_coordinator();
}
