//! `comity-client plan sign`: an institution's consent to a plan, which the operator hands in with its order.

use std::path::Path;

use anyhow::{Context as _, ensure};
use comity_certs::{Clock, Document, Role, Signer};
use comity_federation::{Circumstances, Consent, Plan, SignedConsent};

use crate::config;

/// Signs a consent to the plan at `plan` with the node's key, into the new file `out`.
pub fn sign(path: &Path, plan: &Path, out: &Path) -> anyhow::Result<()> {
    let settings = config::Node::read(path)?;
    let text = std::fs::read_to_string(plan)
        .with_context(|| format!("{} cannot be read", plan.display()))?;
    let plan = Plan::from_toml(&text).with_context(|| plan.display().to_string())?;
    let certs = settings.certificates();
    let signer = Signer::read(&certs.join("certificate.pem"), &certs.join("key.pem"))?;
    let Role::Client(by) = &signer.identity().role else {
        anyhow::bail!("the certificate is of {}, not of a client", signer.identity().role)
    };
    // What the institution's own policy does not allow, it does not recommend to others.
    settings.policy.review(&plan, by, Circumstances::default())?;
    ensure!(!out.exists(), "{} exists; give the name of a new file with --out", out.display());
    let consent = Consent {
        federation: signer.identity().federation.clone(),
        plan: plan.digest(),
        by: by.clone(),
        issued: Clock::system().now(),
    };
    let signature = signer.sign(Document::Consent, &consent.to_json());
    let signed = SignedConsent { consent, signature };
    std::fs::write(out, serde_json::to_string(&signed)? + "\n")
        .with_context(|| format!("{} cannot be written", out.display()))?;
    println!(
        "consent of {} to plan {} written to {}",
        signed.consent.by,
        signed.consent.plan,
        out.display()
    );
    println!(
        "hand it to the operator: comity-coordinator run start PLAN --consent {}",
        out.display()
    );
    Ok(())
}
