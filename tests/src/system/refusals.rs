//! Who is refused, and what they read. The handshakes themselves are tested in `proto`.

use std::fs;

use comity_certs::{Authority, Role};
use time::{Duration, OffsetDateTime};

use super::{PLAN, Site};
use crate::{Binaries, Deployment};

/// What `comity-client check` says when it cannot be used.
fn check(site: &Site, id: &comity_federation::ClientId) -> String {
    let check = site.deployment.client(id, &["check"]).unwrap();
    assert!(!check.status.success(), "{}", check.stdout);
    check.stdout + &check.stderr
}

#[test]
fn a_certificate_of_another_authority_an_expired_one_and_none_are_refused_with_a_reason() {
    let mut site = Site::new(PLAN);
    let clients = site.add_clients(None, true);
    let well = site.deployment.client(&clients[0], &["check"]).unwrap().success().unwrap();
    assert!(well.stdout.contains("says hello to"), "{}", well.stdout);
    let certs = site.deployment.client_dir(&clients[0]).join("certs");
    let ours = fs::read_to_string(certs.join("root.pem")).unwrap();

    // Another federation's, complete with its own root.
    let other = Deployment::init(Binaries::find().unwrap(), &site.path("other"), "test").unwrap();
    let authority = Authority::open(other.coordinator_dir().join("certs")).unwrap();
    let role = Role::Client(clients[0].clone());
    fs::remove_dir_all(&certs).unwrap();
    let now = OffsetDateTime::now_utc();
    authority.issue(&role, 1, now).unwrap().write(&certs).unwrap();
    let said = check(&site, &clients[0]);
    assert!(said.contains("FAIL connection") && said.contains("root"), "{said}");

    // The same with our root: the client itself sees that the two do not belong together.
    fs::write(certs.join("root.pem"), &ours).unwrap();
    let said = check(&site, &clients[0]);
    assert!(said.contains("FAIL certificate"), "{said}");

    // Expired yesterday.
    let authority = Authority::open(site.deployment.coordinator_dir().join("certs")).unwrap();
    fs::remove_dir_all(&certs).unwrap();
    let day = Duration::days(1);
    authority.issue_between(&role, now - day * 2, now - day).unwrap().write(&certs).unwrap();
    let said = check(&site, &clients[0]);
    assert!(said.contains("expired on") && said.contains("new"), "{said}");

    // None at all.
    fs::remove_dir_all(&certs).unwrap();
    let said = check(&site, &clients[0]);
    assert!(said.contains("certificate.pem cannot be read"), "{said}");
}

#[test]
fn a_client_cannot_give_an_operators_orders_and_a_stranger_is_not_in_the_plan() {
    let mut site = Site::new(PLAN);
    let clients = site.add_clients(None, true);
    // The operator's commands with a client's certificate.
    let certs = site.deployment.coordinator_dir().join("certs");
    let client = site.deployment.client_dir(&clients[0]).join("certs");
    fs::copy(client.join("certificate.pem"), certs.join("operator.pem")).unwrap();
    fs::remove_file(certs.join("operator.key")).unwrap();
    fs::copy(client.join("key.pem"), certs.join("operator.key")).unwrap();
    let refused = site.deployment.operator(&["run", "list"]).unwrap();
    assert!(!refused.status.success());
    assert!(refused.stderr.contains("for operators"), "{}", refused.stderr);
}
