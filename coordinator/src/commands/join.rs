//! `comity-coordinator join`: an invited operator, on a machine of its own.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};
use comity_certs::{
    Clock, Invitation, MemberKey, Role, explain_joining, joining_config, read_key_pem, replace,
};
use comity_proto::transport::{ConnectError, connect};
use comity_proto::v1::enrolment_client::EnrolmentClient;
use comity_proto::v1::join_reply::Outcome;
use comity_proto::v1::{Enrolled, JoinRequest};

use super::operator::{OperatorConfig, refused};
use super::run::block_on;
use crate::config::Home;

/// How often somebody who waits for approval asks again.
const ASK_PAUSE: Duration = Duration::from_secs(2);

/// Joins with `token`; the key is made here and stays here.
pub fn join(home: &Home, token: &str) -> anyhow::Result<()> {
    let clock = Clock::system();
    let invitation: Invitation = token.parse()?;
    let Role::Operator(name) = &invitation.identity.role else {
        bail!(
            "this invitation is for the node of {}; run `comity-client join` there",
            invitation.identity.role
        );
    };
    ensure!(
        !home.config().exists(),
        "{} is the coordinator's own folder; use another --dir",
        home.dir().display()
    );
    invitation.check_time(&clock)?;
    let (certificate, root) = (home.certs().join("operator.pem"), home.certs().join("root.pem"));
    let path = home.certs().join("operator.key");
    let key = MemberKey::read_or_make(&path)?;
    let Enrolled { certificate_pem, root_pem, coordinator_url, .. } =
        block_on(ask(&invitation, &key, &clock))?;
    invitation.check_enrolled(&certificate_pem, &read_key_pem(&path)?, &root_pem, &clock)?;
    replace(&root, &root_pem)?;
    replace(&certificate, &certificate_pem)?;
    let config = OperatorConfig { coordinator: coordinator_url, enrolment: invitation.url.clone() };
    replace(&home.operator(), &toml::to_string(&config)?)?;
    eprintln!("operator {name} joined federation {}", invitation.identity.federation);
    eprintln!("next: comity-coordinator --dir {} run list", home.dir().display());
    Ok(())
}

async fn ask(invitation: &Invitation, key: &MemberKey, clock: &Clock) -> anyhow::Result<Enrolled> {
    let mut said = false;
    loop {
        let tls = joining_config(invitation.root, Arc::new(clock.clone()))?;
        let channel = connect(&invitation.url, tls).await.map_err(|e| match e {
            ConnectError::Refused { source, .. } => {
                anyhow!(explain_joining(&source, invitation, clock))
            }
            other => anyhow!(other),
        })?;
        let request = JoinRequest {
            secret: invitation.secret.to_vec().into(),
            csr_der: key.signing_request()?.into(),
            software: concat!("comity-coordinator ", env!("CARGO_PKG_VERSION")).to_owned(),
        };
        let reply = EnrolmentClient::new(channel).join(request).await.map_err(refused)?;
        match reply.into_inner().outcome.context("the coordinator gave an empty answer")? {
            Outcome::Enrolled(enrolled) => return Ok(enrolled),
            Outcome::Awaiting(waiting) => {
                if !said {
                    eprintln!(
                        "{} of {} operators approve; another one has to run `members approve {} --key {}`",
                        waiting.approvals,
                        waiting.approvals_needed,
                        match &invitation.identity.role {
                            Role::Operator(name) => name.clone(),
                            other => other.to_string(),
                        },
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
