//! From an invitation to a member, and what everybody reads who is not let in.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, SystemTime};

use comity_certs::Clock;
use comity_client::commands::join::{NewData, NewNode, join};
use comity_federation::{Approval, ClientId};

use super::{PLAN, Site};
use crate::{Binaries, Deployment, Finished};

fn id(text: &str) -> ClientId {
    text.parse().unwrap()
}

/// What a command that has to fail says.
fn refused(finished: Finished) -> String {
    assert!(!finished.status.success(), "{}", finished.stdout);
    finished.stderr
}

fn says(text: &str, words: &[&str]) {
    assert!(words.iter().all(|word| text.contains(word)), "{words:?} in: {text}");
}

#[test]
fn a_token_lets_one_key_in_once_and_every_other_try_is_told_why() {
    let mut site = Site::new(PLAN);
    let deployment = &site.deployment;
    let (client, dir) = (id("VN/hanoi"), site.path("hanoi"));
    let token = deployment.invite(&client).unwrap();
    assert!(token.starts_with("comity1-") && !token.contains(char::is_whitespace), "{token}");
    let joined = deployment.join_with(&token, &dir).unwrap().success().unwrap();
    assert!(!joined.stderr.contains(&token) && joined.stdout.is_empty(), "{joined:?}");
    let key = fs::read(dir.join("certs/key.pem")).unwrap();
    let mode = fs::metadata(dir.join("certs/key.pem")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    // A lost reply costs nothing: the same key asks again.
    fs::remove_file(dir.join("certs/certificate.pem")).unwrap();
    deployment.join_with(&token, &dir).unwrap().success().unwrap();
    assert_eq!(fs::read(dir.join("certs/key.pem")).unwrap(), key, "never overwritten");
    // Somebody else who saw the token comes too late, and both sides hear of it.
    let said = refused(deployment.join_with(&token, &site.path("thief")).unwrap());
    says(&said, &["VN/hanoi was used already", "if not by you, tell the operator"]);
    says(&deployment.coordinator_said(), &["enrolment refused", "used already"]);
    assert!(!deployment.coordinator_said().contains(&token));

    // Mistyped, of another coordinator, expired, and into a folder that is another member's.
    let said = refused(deployment.join_with(&token[..token.len() - 2], &site.path("x")).unwrap());
    says(&said, &["mistyped"]);
    let mut other =
        Deployment::init(Binaries::find().unwrap(), &site.path("other"), "test").unwrap();
    other.serve().unwrap();
    let foreign = other.invite(&client).unwrap();
    let invite = ["invite", "--country", "VN", "--institution", "Late", "--expires", "10ms"];
    let late = deployment.operator(&invite).unwrap().success().unwrap().stdout;
    std::thread::sleep(Duration::from_millis(20));
    says(
        &refused(deployment.join_with(late.trim(), &site.path("late")).unwrap()),
        &["the invitation of VN/late expired on", "this machine's clock shows"],
    );
    let invited = deployment.invite(&id("JP/osaka")).unwrap();
    says(&refused(deployment.join_with(&invited, &dir).unwrap()), &["VN/hanoi", "another --dir"]);
    // The other coordinator takes our port: its root is not the one of the invitation.
    let url = deployment.enrolment_url().unwrap();
    site.deployment.kill_coordinator();
    other.stop_coordinator().unwrap();
    let config = other.coordinator_dir().join("coordinator.toml");
    let text = fs::read_to_string(&config).unwrap();
    let (before, after) = text.split_at(text.find("[enrolment]").unwrap());
    let at = after.replacen("127.0.0.1:0", url.strip_prefix("https://").unwrap(), 1);
    fs::write(&config, format!("{before}{at}")).unwrap();
    other.serve().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let said = refused(other.join_with(&invited, dir.path()).unwrap());
    says(&said, &["not the coordinator of this invitation"]);
    drop(foreign);
}

#[test]
fn a_key_that_others_can_read_and_a_clock_that_is_off_by_a_day_stop_a_join_with_the_remedy() {
    let site = Site::new(PLAN);
    let (client, dir) = (id("VN/hanoi"), site.path("hanoi"));
    let token = site.deployment.invite(&client).unwrap();
    let node = NewNode {
        records: 10,
        persons: None,
        data: NewData::Unsaid,
        budget: None,
        without_dp: true,
        approval: Approval::Ask,
    };
    let day = Duration::from_secs(25 * 3600);
    let path = dir.join("client.toml");
    let ahead = Clock::from_fn(move || SystemTime::now() + day);
    let behind = Clock::from_fn(move || SystemTime::now() - day);
    for clock in [ahead, behind] {
        let error = join(&path, &token, &node, &clock).unwrap_err();
        says(&format!("{error:#}"), &["this machine's clock shows", "set the clock"]);
        assert!(!path.exists() && !dir.join("certs/certificate.pem").exists());
    }
    let key = dir.join("certs/key.pem");
    if !key.exists() {
        // Whichever clock it was, the second attempt had made a key.
        panic!("no key was made");
    }
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    says(&refused(site.deployment.join_with(&token, &dir).unwrap()), &["chmod 600"]);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    site.deployment.join_with(&token, &dir).unwrap().success().unwrap();
    assert!(path.exists());
}

#[test]
fn a_join_that_the_coordinators_crash_interrupts_is_repeated() {
    let mut site = Site::new(PLAN);
    site.keep_port();
    for place in
        ["before_enrolment", "after_enrolment", "before_membership_reply", "after_revocation"]
    {
        let client = id(&format!("VN/{}", place.replace('_', "-")));
        let dir = site.path(place);
        site.deployment.serve().unwrap();
        let token = site.deployment.invite(&client).unwrap();
        site.deployment.serve_failing(&format!("coordinator::{place}=return(abort)")).unwrap();
        let first = site.deployment.join_with(&token, &dir).unwrap();
        assert_eq!(first.status.success(), place == "after_revocation", "{}", first.stderr);
        site.deployment.serve().unwrap();
        site.deployment.join_with(&token, &dir).unwrap().success().unwrap();
    }
}

#[test]
fn what_happened_to_members_stands_in_the_record_with_who_and_why() {
    let mut site = Site::new(PLAN);
    let clients = site.add_clients(None, true);
    let revoke = ["revoke", "VN/c", "--reason", "its disk was stolen"];
    site.deployment.operator(&revoke).unwrap().success().unwrap();
    let shown = site.deployment.operator(&["journal", "show"]).unwrap().success().unwrap().stdout;
    says(
        &shown,
        &[
            "operator  founded test",
            "operator  invited KR/a",
            "operator  enrolled JP/b with key",
            "operator  revoked VN/c: its disk was stolen",
        ],
    );
    let listed = site.deployment.operator(&["members", "list", "--json"]).unwrap();
    let listed = listed.success().unwrap().json().unwrap();
    let standing = |name: &str| {
        let all = listed.as_array().unwrap();
        let found = all.iter().find(|member| member["name"] == name).unwrap();
        found["standing"].as_str().unwrap().to_owned()
    };
    assert_eq!(standing("VN/c"), "revoked");
    assert_eq!(standing(&clients[0].to_string()), "enrolled");
    let said = site.deployment.client(&clients[2], &["check"]).unwrap();
    let said = said.stdout + &said.stderr;
    says(&said, &["VN/c was revoked", "its disk was stolen"]);
    let last = ["revoke", "operator", "--reason", "no reason"];
    says(&refused(site.deployment.operator(&last).unwrap()), &["last admin"]);
}
