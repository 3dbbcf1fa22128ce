//! An operator's order to run a plan: how it is given, and how the coordinator looks at it before it launches
//! anything. Clients look at it again, with keys that they pin themselves.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use comity_certs::{Clock, Document, Role, Signer, verify_consent, verify_order};
use comity_federation::{Order, OrderRefusal, Plan, SignedConsent, Time};
use comity_proto::convert::{signed_consents, signed_order};
use comity_proto::v1;

use crate::store::Launch;

/// The request that launches `plan`, which is that of `plan_toml`, by order of `signer` at `now`.
///
/// # Errors
/// If `signer` is not an operator.
pub fn start_request(
    plan_toml: String,
    plan: &Plan,
    signer: &Signer,
    now: Time,
    consents: &[SignedConsent],
) -> anyhow::Result<v1::StartRunRequest> {
    let identity = signer.identity();
    let Role::Operator(by) = &identity.role else {
        bail!("only operators order runs, and the certificate is of {}", identity.role)
    };
    let order = Order::new(plan, &identity.federation, now, by);
    let signature = signer.sign(Document::Order, &order.to_json());
    Ok(v1::StartRunRequest {
        plan_toml,
        order_json: order.to_json().into(),
        order_signature: Some((&signature).into()),
        consents: consents.iter().map(Into::into).collect(),
    })
}

/// What orders are held against.
#[derive(Clone, Debug)]
pub(crate) struct Orders {
    pub(crate) federation: String,
    /// The file of the roots, which is read anew for each order.
    pub(crate) root: PathBuf,
    pub(crate) clock: Clock,
}

impl Orders {
    /// What `request` launches `plan` by; `caller` is the operator on whose connection it came.
    pub(crate) fn check(
        &self,
        plan: &Plan,
        caller: &str,
        request: &v1::StartRunRequest,
    ) -> Result<Launch, OrderRefusal> {
        let signed = signed_order(&request.order_json, request.order_signature.clone())?;
        let order = &signed.order;
        order.check(plan, None, &self.federation)?;
        if order.by != caller {
            return Err(OrderRefusal::OtherSigner {
                what: "order",
                signer: order.by.clone(),
                expected: format!("operator {caller}, who hands it in"),
            });
        }
        order.check_fresh(self.clock.now())?;
        let root_pem = std::fs::read_to_string(&self.root).map_err(|error| {
            tracing::error!(%error, root = %self.root.display(), "the roots cannot be read");
            let reason = "the coordinator cannot read its roots; see its log".to_owned();
            OrderRefusal::Signature { what: "order", reason }
        })?;
        verify_order(&signed, &self.federation, &root_pem)?;
        let consents = signed_consents(request.consents.clone())?;
        for signed in &consents {
            signed.consent.check(plan, &self.federation)?;
            signed.consent.check_age(self.clock.now(), Duration::MAX)?;
            verify_consent(signed, &self.federation, &root_pem)?;
        }
        Ok(Launch { order: signed, consents })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use comity_certs::Authority;
    use time::OffsetDateTime;

    #[test]
    fn an_order_counts_for_its_plan_by_its_operator_in_its_time() {
        let dir = tempfile::tempdir().unwrap();
        let date = OffsetDateTime::now_utc();
        let names = ["localhost".to_owned()];
        Authority::init(dir.path().join("ca"), "demo", &names, date).unwrap();
        let file = |name: &str| dir.path().join("ca").join(name);
        let operator = Signer::read(&file("operator.pem"), &file("operator.key")).unwrap();
        let server = Signer::read(&file("coordinator.pem"), &file("coordinator.key")).unwrap();
        let text = include_str!("../../examples/fashion/plan.toml").to_owned();
        let plan = Plan::from_toml(&text).unwrap();
        let clock = Clock::system();
        let now = clock.now();
        let orders = Orders { federation: "demo".into(), root: file("root.pem"), clock };
        let request = start_request(text.clone(), &plan, &operator, now, &[]).unwrap();
        let launch = orders.check(&plan, "operator", &request).unwrap();
        assert_eq!(launch.order.order, Order::new(&plan, "demo", now, "operator"));
        assert!(start_request(text.clone(), &plan, &server, now, &[]).is_err());

        let refused = |request: &v1::StartRunRequest, caller: &str, plan: &Plan| {
            orders.check(plan, caller, request).unwrap_err()
        };
        use OrderRefusal as No;
        let unsigned = v1::StartRunRequest { plan_toml: text.clone(), ..Default::default() };
        assert_eq!(refused(&unsigned, "operator", &plan), No::Unsigned);
        let said = refused(&request, "bob", &plan);
        assert!(matches!(said, No::OtherSigner { .. }), "{said}");
        let mut altered = plan.clone();
        altered.rounds += 1;
        let said = refused(&request, "operator", &altered);
        assert!(matches!(said, No::OtherPlan { .. }), "{said}");
        let yesterday = Time(now.0 - 86_400_000);
        let old = start_request(text, &plan, &operator, yesterday, &[]).unwrap();
        let said = refused(&old, "operator", &plan);
        assert!(matches!(said, No::OtherClock { .. }) && said.to_string().contains("clock"));
        let mut forged = request.clone();
        let order = Order::from_json(&request.order_json).unwrap();
        let signature = server.sign(Document::Order, &order.to_json());
        forged.order_signature = Some((&signature).into());
        let said = refused(&forged, "operator", &plan);
        assert!(matches!(said, No::OtherSigner { .. }), "{said}");
    }
}
