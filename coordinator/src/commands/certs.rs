//! `comity-coordinator certs`: certificates of members, and the authorities that sign them.

use std::path::Path;

use comity_certs::{Authority, Phase, Reason, Role, RotationStatus, instant};
use comity_federation::Country;
use serde_json::json;
use time::OffsetDateTime;

use super::operator::signer;
use crate::config::{Config, Home};

fn authority(home: &Home) -> anyhow::Result<Authority> {
    Config::read(home)?;
    Ok(Authority::open(home.certs())?)
}

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

/// Makes the issuing CA of `country`.
pub fn add_country(home: &Home, country: Country, root_key: Option<&Path>) -> anyhow::Result<()> {
    let authority = authority(home)?;
    if authority.add_country(country, root_key, OffsetDateTime::now_utc())? {
        println!("issuing CA of {country} made; it can sign clients of {country} and nothing else");
    } else {
        println!("{country} has an issuing CA already");
    }
    Ok(())
}

/// Revokes the issuing CA of `country`, and all that it signed.
pub fn revoke_ca(
    home: &Home,
    country: Country,
    root_key: Option<&Path>,
    reason: Reason,
) -> anyhow::Result<()> {
    authority(home)?.revoke_country(country, root_key, reason, OffsetDateTime::now_utc())?;
    println!("issuing CA of {country} revoked, and with it all certificates that it signed");
    println!(
        "next: comity-coordinator certs add-country {country} --root-key FILE makes another, under which its \
         members renew with their keys; what others signed with the old one stays out"
    );
    Ok(())
}

/// Signs the root's revocation list anew.
pub fn refresh_crl(home: &Home, root_key: Option<&Path>) -> anyhow::Result<()> {
    let authority = authority(home)?;
    authority.refresh_root_crl(root_key, OffsetDateTime::now_utc())?;
    for list in authority.crl_health()? {
        println!("{} is valid until {}", list.path.display(), list.next_update.date());
    }
    Ok(())
}

/// Prints which authorities there are, and how long their revocation lists last.
pub fn status(home: &Home, json: bool) -> anyhow::Result<()> {
    let authority = authority(home)?;
    let rotation = authority.rotation_status()?;
    let countries = authority.countries()?;
    let lists = authority.crl_health()?;
    let now = OffsetDateTime::now_utc();
    if json {
        let lists: Vec<_> = lists
            .iter()
            .map(|list| {
                json!({
                    "file": list.path,
                    "valid_until": list.next_update.date().to_string(),
                    "warning": list.warning(now),
                })
            })
            .collect();
        println!(
            "{}",
            json!({
                "federation": authority.federation(),
                "phase": rotation.phase,
                "since": rotation.since.date().to_string(),
                "roots": rotation.roots,
                "countries": countries,
                "revocation_lists": lists,
            })
        );
        return Ok(());
    }
    println!("federation {}", authority.federation());
    print(&rotation);
    let names: Vec<_> = countries.iter().map(ToString::to_string).collect();
    println!("countries  {}", if names.is_empty() { "none".to_owned() } else { names.join(" ") });
    for list in &lists {
        println!("list       {} until {}", list.path.display(), list.next_update.date());
    }
    for warning in lists.iter().filter_map(|list| list.warning(now)) {
        println!("warning    {warning}");
    }
    Ok(())
}

fn print(status: &RotationStatus) {
    for root in &status.roots {
        let signs = if root.signs { ", signs" } else { "" };
        println!("root       {} in {}{signs}", root.fingerprint, root.folder);
    }
    println!("change     {} since {}", status.phase, instant(status.since));
}

/// Brings the change of authorities one phase further, or back.
pub fn rotate(home: &Home, step: RotateStep) -> anyhow::Result<()> {
    let authority = authority(home)?;
    let now = OffsetDateTime::now_utc();
    let authority = match step {
        RotateStep::Begin => authority.begin_rotation(now)?,
        RotateStep::Switch { at_once } => authority.switch_rotation(at_once, now)?,
        RotateStep::Finish { at_once } => authority.finish_rotation(at_once, now)?,
        RotateStep::Abort => authority.abort_rotation(now)?,
        RotateStep::Status => authority,
    };
    let status = authority.rotation_status()?;
    print(&status);
    let when = status.ready.map(|ready| format!(" from {} on", instant(ready))).unwrap_or_default();
    match (step, status.phase) {
        (_, Phase::Begun) => {
            let folder = status.roots.last().map_or("", |root| &root.folder);
            println!("move {}/{folder}/root.key offline", home.certs().display());
            println!("next: comity-coordinator certs rotate-ca switch{when}");
        }
        (_, Phase::Switched) => println!("next: comity-coordinator certs rotate-ca finish{when}"),
        (RotateStep::Status, Phase::Standby) => {}
        (_, Phase::Standby) => println!("the other authority is archived in retired/"),
    }
    Ok(())
}

/// What to do about the change from one authority to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Subcommand)]
pub enum RotateStep {
    /// Make the next root and its issuing CAs; members that renew are told of both.
    Begin,
    /// Let the next authority sign; certificates of the old one are still good.
    Switch {
        /// Do not wait for members that have not heard of the next root yet.
        #[arg(long)]
        at_once: bool,
    },
    /// Trust the old authority no more.
    Finish {
        /// Do not wait for members that still have certificates of the old one.
        #[arg(long)]
        at_once: bool,
    },
    /// Go back to the old authority.
    Abort,
    /// Print the phase and the roots.
    Status,
}
