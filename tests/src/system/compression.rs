//! Plans and assignments that come compressed, where a node asks for it.

use std::fmt::Write as _;

use comity_federation::ClientStanding;

use super::{PLAN, Site, write};
use crate::Proxy;

/// A plan with so many more clients that its text is most of what is said before a round.
fn long_plan() -> String {
    let mut more = String::new();
    for i in 0..3_000 {
        let _ = writeln!(more, "    {{ id = \"TH/site-{i}\", records = {} }},", 100 + i);
    }
    PLAN.replace(
        "    { id = \"VN/c\", records = 200 },\n",
        &format!("    {{ id = \"VN/c\", records = 200 }},\n{more}"),
    )
}

/// Bytes that the coordinator sent to the first client until that agreed to the plan.
fn bytes_of_an_offer(compress: bool) -> u64 {
    let mut site = Site::new(PLAN);
    let clients = site.add_clients(None, true);
    write(&site.path("plan.toml"), &long_plan());
    let url = site.deployment.url().unwrap();
    let proxy = Proxy::start(url.strip_prefix("https://").unwrap().parse().unwrap()).unwrap();
    let config = site.deployment.client_dir(&clients[0]).join("client.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text.replace(&url, &format!("https://{}", proxy.address()));
    write(&config, &format!("{text}\n[connection]\ncompress = {compress}\n"));
    site.start_clients(&clients[..1]);
    let run = site.launch();
    site.wait(&run, |report| report.clients[0].standing == ClientStanding::Configured);
    proxy.n_bytes_down()
}

#[test]
fn a_long_plan_comes_in_a_fraction_of_its_bytes_to_a_node_that_asks_for_it() {
    let (plain, compressed) = (bytes_of_an_offer(false), bytes_of_an_offer(true));
    println!("a plan of 3,003 clients: {plain} bytes as it is, {compressed} compressed");
    assert!(plain > 100_000, "{plain}");
    assert!(compressed * 4 < plain, "{compressed} of {plain}");
}
