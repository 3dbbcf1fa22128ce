//! `comity-coordinator certs issue`: a certificate for one institution's node.

use std::path::Path;

use anyhow::Context as _;
use comity_certs::{Authority, Role};
use comity_federation::ClientId;
use time::OffsetDateTime;

use super::operator::signer;
use crate::config::{Config, Home};

/// Prints what an institution writes into its policy to take this operator's orders.
pub fn fingerprint(home: &Home) -> anyhow::Result<()> {
    let signer = signer(home)?;
    let identity = signer.identity();
    let Role::Operator(name) = &identity.role else {
        anyhow::bail!("operator.pem is of {}, not of an operator", identity.role)
    };
    println!("{{ name = \"{name}\", key = \"{}\" }}", signer.fingerprint());
    Ok(())
}

/// Makes key and certificate of `client` in `out`.
pub fn issue(home: &Home, client: ClientId, out: &Path, days: u16) -> anyhow::Result<()> {
    Config::read(home)?;
    let authority = Authority::open(home.certs())?;
    let issued = authority
        .issue(&Role::Client(client.clone()), i64::from(days), OffsetDateTime::now_utc())
        .with_context(|| format!("no certificate for {client}"))?;
    issued.write(out)?;
    println!("certificate of {client} for {days} days written to {}", out.display());
    println!("hand the folder over on a safe way: key.pem is the institution's identity");
    Ok(())
}
