//! `comity-client join` and `renew`: how a node gets its certificates.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use comity_certs::{
    CertificateFacts, Clock, Invitation, MemberKey, Role, date_of, read_key_pem, replace, time_of,
};
use comity_proto::transport::Tcp;
use comity_proto::v1::Enrolled;

use crate::config;
use crate::enrolment::{Joined, Renewal, ask_to_join};
pub use crate::join::{NewData, NewNode};
use crate::join::{configuration, policy};

/// How often a node that waits for approval asks again.
const ASK_PAUSE: Duration = Duration::from_secs(2);

/// Joins with `token`, and writes configuration and policy beside `path`, which become the node's; the key is
/// made here and stays here. Nothing that exists is overwritten but certificates.
pub fn join(path: &Path, token: &str, node: &NewNode, clock: &Clock) -> anyhow::Result<()> {
    ensure!(node.records > 0, "--records is the public, rounded number of records: 1 or more");
    let invitation: Invitation = token.parse()?;
    let Role::Client(client) = &invitation.identity.role else {
        bail!("this invitation is for an operator; run `comity-coordinator join` with it");
    };
    invitation.check_time(clock)?;
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let certs = dir.join("certs");
    let (certificate, key_path) = (certs.join("certificate.pem"), certs.join("key.pem"));
    if let Ok(pem) = std::fs::read_to_string(&certificate) {
        let before = CertificateFacts::of_pem(&pem)?.identity;
        ensure!(
            before == invitation.identity,
            "{} is of {before}, and the invitation is for {}; use another --dir",
            certificate.display(),
            invitation.identity
        );
    }
    let key = MemberKey::read_or_make(&key_path)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let enrolled = runtime.block_on(wait(&invitation, &key, clock))?;
    let Enrolled { certificate_pem, root_pem, coordinator_url, .. } = enrolled;
    let key_pem = read_key_pem(&key_path)?;
    invitation.check_enrolled(&certificate_pem, &key_pem, &root_pem, clock)?;
    replace(&certs.join("root.pem"), &root_pem)?;
    replace(&certificate, &certificate_pem)?;
    let policy_path = dir.join("policy.toml");
    if !policy_path.exists() {
        replace(&policy_path, &policy(&invitation, node))?;
    }
    if path.exists() {
        eprintln!("{} is kept as it is", path.display());
    } else {
        replace(path, &configuration(&coordinator_url, &invitation, node)?)?;
    }
    eprintln!("{client} joined federation {}", invitation.identity.federation);
    eprintln!(
        "  key         {} (made here; its fingerprint is {})",
        key_path.display(),
        key.fingerprint()
    );
    eprintln!("  policy      {}: what no plan can pass; narrow it down", policy_path.display());
    eprintln!("next: comity-client --config {} check", path.display());
    eprintln!("      comity-client --config {} start", path.display());
    Ok(())
}

async fn wait(invitation: &Invitation, key: &MemberKey, clock: &Clock) -> anyhow::Result<Enrolled> {
    let mut said = false;
    loop {
        match ask_to_join(&Tcp, invitation, key, clock).await? {
            Joined::Enrolled(enrolled) => return Ok(*enrolled),
            Joined::Awaiting(waiting) => {
                if !said {
                    eprintln!(
                        "{} of {} operators approve; read this key's fingerprint to another one, by a way that you \
                         trust:\n  {}",
                        waiting.approvals,
                        waiting.approvals_needed,
                        key.fingerprint()
                    );
                    eprintln!("waiting; this can be interrupted and repeated");
                    said = true;
                }
                tokio::time::sleep(ASK_PAUSE).await;
            }
        }
    }
}

/// Renews the certificate now; a running node does so by itself.
pub fn renew(path: &Path) -> anyhow::Result<()> {
    let settings = config::Node::read(path)?;
    let renewal = Renewal {
        certificates: settings.certificates(),
        url: settings.enrolment(),
        clock: Clock::system(),
        network: Arc::new(Tcp),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let renewed = runtime
        .block_on(renewal.renew())
        .with_context(|| format!("{} did not renew the certificate", renewal.url))?;
    println!("renewed until {}", date_of(time_of(renewed.not_after)));
    Ok(())
}
