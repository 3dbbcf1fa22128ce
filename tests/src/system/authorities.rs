//! Issuing CAs and roots come and go while a coordinator serves.

use comity_federation::ClientId;

use super::resume::wait_until;
use super::{PLAN, Site};

/// What `comity-client check` says, and whether it is content.
fn check(site: &Site, client: &ClientId) -> (bool, String) {
    let check = site.deployment.client(client, &["check"]).unwrap();
    (check.status.success(), check.stdout + &check.stderr)
}

fn is_well(site: &Site, client: &ClientId) {
    let (well, said) = check(site, client);
    assert!(well, "{client}: {said}");
}

/// One of the operator's `certs` commands, and the daemon has seen what it did.
fn certs(site: &Site, args: &[&str]) -> String {
    let taken = || site.deployment.coordinator_said().matches("new certificates taken").count();
    let before = taken();
    let done = site.deployment.operator(&[&["certs"], args].concat()).unwrap().success().unwrap();
    wait_until("new certificates", || taken() > before);
    done.stdout
}

#[test]
fn a_served_federation_gets_a_new_authority_and_loses_a_country_without_a_restart() {
    let mut site = Site::new(PLAN);
    let clients = site.add_clients(None, true);
    let renew = |client| site.deployment.client(client, &["renew"]).unwrap().success().unwrap();
    clients.iter().for_each(|client| is_well(&site, client));

    let said = certs(&site, &["rotate-ca", "begin"]);
    assert!(said.contains("change     begun") && said.contains("root.key offline"), "{said}");
    let early = site.deployment.operator(&["certs", "rotate-ca", "switch"]).unwrap();
    assert!(early.stderr.contains("would be left behind"), "{}", early.stderr);
    // All but the last hear of the next root.
    let (late, others) = clients.split_last().unwrap();
    others.iter().for_each(|client| drop(renew(client)));
    clients.iter().for_each(|client| is_well(&site, client));

    certs(&site, &["rotate-ca", "switch", "--at-once"]);
    others.iter().for_each(|client| is_well(&site, client));
    others.iter().for_each(|client| drop(renew(client)));
    certs(&site, &["rotate-ca", "finish", "--at-once"]);
    others.iter().for_each(|client| is_well(&site, client));
    site.deployment.operator(&["run", "list"]).unwrap().success().unwrap();
    let (well, said) = check(&site, late);
    assert!(!well && said.contains("root.pem"), "{said}");

    let country = others[0].country().to_string();
    certs(&site, &["revoke-ca", &country, "--reason", "key-compromise"]);
    let (well, said) = check(&site, &others[0]);
    assert!(!well && said.contains("it was revoked"), "{said}");
    // Its key is a member's still, so it gets a certificate of the country's next issuing CA.
    renew(&others[0]);
    is_well(&site, &others[0]);
    for other in others.iter().filter(|client| client.country() != others[0].country()) {
        is_well(&site, other);
    }
    let status =
        site.deployment.operator(&["certs", "status", "--json"]).unwrap().success().unwrap();
    let status: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    assert_eq!(status["phase"], "standby");
    assert!(status["countries"].to_string().contains(&country), "{status}");
}
