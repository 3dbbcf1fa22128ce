//! Transfers go on where they stopped: after a cut, after a kill of either side, both ways.

use std::time::{Duration, Instant};

use comity_federation::{ClientId, RunStatus};
use comity_proto::chunk::CHUNK_BYTES;

use super::{PATIENCE, PLAN, Site, write};
use crate::Proxy;

/// A plan whose models and updates have 5.4 MB: eleven chunks.
const LARGE: &str = r#"layers = [
    { type = "flatten" },
    { type = "linear", out = 20000 },
    { type = "linear", out = 2 },
]"#;
pub(super) const UPDATE_BYTES: u64 = 4 * (64 * 20_000 + 20_000 + 2 * 20_000 + 2);
/// What TLS, HTTP/2 and the small calls add, and one handshake after each cut.
const OVERHEAD_BYTES: u64 = 200_000;

/// A federation that trains large models, with its first client behind a proxy.
pub(super) fn site(rounds: u32) -> (Site, Vec<ClientId>, Proxy) {
    let start = PLAN.find("layers = [").unwrap();
    let end = start + PLAN[start..].find("\n]\n").unwrap() + 2;
    let plan = PLAN.replace(&PLAN[start..end], LARGE);
    let mut site = Site::new(&plan.replace("rounds = 3", &format!("rounds = {rounds}")));
    let clients = site.add_clients(None, true);
    let url = site.deployment.url().unwrap();
    let address = url.strip_prefix("https://").unwrap();
    site.keep_port();
    let proxy = Proxy::start(address.parse().unwrap()).unwrap();
    let config = site.deployment.client_dir(&clients[0]).join("client.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    write(&config, &text.replace(&url, &format!("https://{}", proxy.address())));
    (site, clients, proxy)
}

pub(super) fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(super) fn assert_finished(site: &mut Site, run: &str) {
    let report = site.wait_for_end(run);
    assert_eq!(report.status, RunStatus::Finished, "{report:#?}");
    assert!(report.history.iter().all(|round| round.contributions.len() == 3));
    assert_eq!(report.model.to_string(), site.simulated_model());
    site.deployment.wait_for_clients(PATIENCE).unwrap();
}

#[test]
fn a_cut_upload_costs_the_chunks_that_were_under_way_and_no_more() {
    let (mut site, clients, proxy) = site(1);
    site.start_clients(&clients);
    let run = site.launch();
    let n_cuts = 4;
    for _ in 0..n_cuts {
        proxy.cut_before_up(1_100_000);
        wait_until("a cut", || !proxy.has_to_cut());
    }
    assert_finished(&mut site, &run);
    let sent = proxy.n_bytes_up();
    let again = sent.saturating_sub(UPDATE_BYTES + OVERHEAD_BYTES);
    println!("cut {n_cuts} times: {sent} bytes sent of an update of {UPDATE_BYTES}");
    assert!(sent > UPDATE_BYTES, "the update did not pass the proxy");
    assert!(again <= n_cuts * CHUNK_BYTES as u64, "{again} bytes were sent again");
    assert!(site.deployment.client_said(&clients[0]).contains("update resumed"));
}

#[test]
fn uploads_and_downloads_go_on_after_a_kill_of_the_coordinator_or_the_client() {
    let (mut site, clients, proxy) = site(2);
    let (usual, slow) = (Some(2_000_000), Some(50_000));
    proxy.set_rate(usual);
    // Nothing is whole before the kill that follows, however busy the machine.
    let wait_until_half = |what: &str, n_bytes: &dyn Fn() -> u64, before: u64| {
        wait_until(what, || n_bytes() > before + UPDATE_BYTES / 2);
        proxy.set_rate(slow);
    };
    let mend = || {
        proxy.reset();
        proxy.set_rate(usual);
    };
    site.start_clients(&clients);
    let run = site.launch();
    let half = UPDATE_BYTES / 2;

    // Round 1: the client dies in the middle of the model, then the coordinator in the middle of the update.
    // What the proxy still holds of a dead machine's bytes is lost with it.
    wait_until_half("half a download", &|| proxy.n_bytes_down(), 0);
    site.deployment.kill_client(&clients[0]);
    mend();
    site.deployment.start_client(&clients[0], 1).unwrap();
    wait_until_half("half an upload", &|| proxy.n_bytes_up(), 0);
    let up_before = proxy.n_bytes_up();
    site.deployment.kill_coordinator();
    mend();
    site.deployment.serve().unwrap();
    let said = || site.deployment.client_said(&clients[0]);
    wait_until("the end of round 1", || said().contains("update accepted"));
    let chunk = CHUNK_BYTES as u64;
    let sent = proxy.n_bytes_up();
    assert!(said().contains("model resumed") && said().contains("update resumed"), "{}", said());
    assert!(
        sent - up_before < UPDATE_BYTES - half + chunk + OVERHEAD_BYTES,
        "{} bytes were sent after the coordinator's kill",
        sent - up_before
    );
    assert!(
        proxy.n_bytes_down() < 2 * UPDATE_BYTES + 2 * chunk + 2 * OVERHEAD_BYTES,
        "the model of round 1 was fetched again"
    );

    // Round 2: the coordinator in the middle of the model, the client in the middle of the update.
    let fetched = proxy.n_bytes_down();
    wait_until_half("half a download", &|| proxy.n_bytes_down(), fetched);
    site.deployment.kill_coordinator();
    mend();
    site.deployment.serve().unwrap();
    wait_until_half("half an upload", &|| proxy.n_bytes_up(), sent);
    site.deployment.kill_client(&clients[0]);
    mend();
    site.deployment.start_client(&clients[0], 1).unwrap();
    assert_finished(&mut site, &run);
    let (up, down) = (proxy.n_bytes_up(), proxy.n_bytes_down());
    println!("4 kills: {up} bytes up and {down} down for 2 x {UPDATE_BYTES} each way");
    let most = 2 * UPDATE_BYTES + 2 * chunk + 3 * OVERHEAD_BYTES;
    assert!(up < most && down < most, "{up} up and {down} down; at most {most}");
    let said = site.deployment.client_said(&clients[0]);
    let n_resumed = |what: &str| said.matches(&format!("{what} resumed")).count();
    assert_eq!((n_resumed("model"), n_resumed("update")), (2, 2), "{said}");
}
