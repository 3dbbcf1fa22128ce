//! A federation of real processes over bad links ends in the very model that the simulator computes: no
//! update was lost, none counted twice, none changed on its way.

use std::time::Duration;

use comity_federation::RunStatus;

use super::{PATIENCE, PLAN, Site, write};
use crate::Proxy;
use crate::draws::Draws;

/// Rounds of `make test`; `make chaos` plays more of them.
const ROUNDS: u64 = 5;

#[test]
fn over_bad_links_the_deployed_model_is_the_simulated_one() {
    let rounds =
        std::env::var("COMITY_SEEDS").map_or(ROUNDS, |n| ROUNDS + n.parse::<u64>().unwrap() / 40);
    let mut site = Site::new(&PLAN.replace("rounds = 3", &format!("rounds = {rounds}")));
    let clients = site.add_clients(None, true);
    let url = site.deployment.url().unwrap();
    let server = url.strip_prefix("https://").unwrap().parse().unwrap();
    let proxies: Vec<Proxy> = clients.iter().map(|_| Proxy::start(server).unwrap()).collect();
    for (client, proxy) in clients.iter().zip(&proxies) {
        let config = site.deployment.client_dir(client).join("client.toml");
        let text = std::fs::read_to_string(&config).unwrap();
        assert!(text.contains(&url));
        write(&config, &text.replace(&url, &format!("https://{}", proxy.address())));
        proxy.set_latency(Duration::from_millis(20));
    }
    site.start_clients(&clients);
    let run = site.launch();
    let mut draws = Draws::new(rounds);
    let mut n_events = 0;
    let report = loop {
        let report = site.wait(&run, |_| true);
        if report.status.is_terminal() {
            break report;
        }
        let proxy = &proxies[draws.between(0, 2) as usize];
        n_events += 1;
        match draws.between(0, 7) {
            0 => proxy.set_latency(Duration::from_millis(draws.between(0, 60))),
            1 => proxy.set_rate(Some(draws.between(20_000, 200_000))),
            2 => proxy.set_rate(None),
            3 => proxy.stall(true),
            4 => proxy.stall(false),
            5 => proxy.reset(),
            6 => proxy.corrupt(1),
            _ => proxy.half_close(),
        }
        std::thread::sleep(Duration::from_millis(draws.between(10, 200)));
        if n_events % 8 == 0 {
            // A flip that waits for a client in its pause would meet every attempt of it.
            proxies.iter().for_each(|proxy| {
                proxy.stall(false);
                proxy.corrupt(0);
            });
        }
    };
    if report.status != RunStatus::Finished {
        // The last lines of each say who waited for whom.
        let said = clients.iter().map(|client| (client, site.deployment.client_said(client)));
        for (client, said) in said {
            let lines: Vec<&str> = said.lines().rev().take(40).collect();
            println!("{client}:\n{}", lines.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
        panic!("{}: {:?}", report.status.as_str(), report.reason);
    }
    assert_eq!(report.history.len() as u64, rounds);
    for round in &report.history {
        assert_eq!(round.contributions.len(), 3, "{round:#?}");
    }
    assert_eq!(report.model.to_string(), site.simulated_model());
    for proxy in &proxies {
        proxy.stall(false);
        proxy.set_rate(None);
    }
    site.deployment.wait_for_clients(PATIENCE).unwrap();
    let n_connections: u64 = proxies.iter().map(Proxy::n_accepted).sum();
    println!("bad links: {n_events} events, {n_connections} connections, {rounds} rounds");
    assert!(n_events >= 8 && n_connections > 3, "the weather was too fair to mean anything");
}
