//! `comity-coordinator init`: a new coordinator, ready to serve.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use comity_certs::Authority;
use time::OffsetDateTime;

use crate::config::{Config, Home, StorageConfig};

/// Makes the folder, the authority and the configuration; refuses to touch an existing one.
pub fn init(
    home: &Home,
    federation: String,
    listen: SocketAddr,
    server_names: Vec<String>,
) -> anyhow::Result<()> {
    let path = home.config();
    ensure!(
        !path.exists(),
        "{} exists: this folder already holds a coordinator; use another --dir",
        path.display()
    );
    std::fs::create_dir_all(home.dir())
        .with_context(|| format!("folder {} cannot be made", home.dir().display()))?;
    Authority::init(home.certs(), &federation, &server_names, OffsetDateTime::now_utc())?;
    let storage = StorageConfig::default();
    let config = Config { federation, listen, server_names, storage };
    std::fs::write(&path, toml::to_string(&config)?)
        .with_context(|| format!("{} cannot be written", path.display()))?;
    let dir = home.dir().display();
    println!("coordinator of federation {} made in {dir}", config.federation);
    println!(
        "  {dir}/certs/ca-1/root.key   the root's key: move it offline once each country has a client"
    );
    println!("next: comity-coordinator --dir {dir} certs issue COUNTRY/institution --out DIR");
    println!("      comity-coordinator --dir {dir} serve");
    Ok(())
}
