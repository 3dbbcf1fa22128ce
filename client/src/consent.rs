//! Whether an offered run is what an operator ordered, and whether it may begin here: looked at before any data
//! are read and before anything is recorded.
//!
//! The order's signature has to be of an operator of this federation whose key the policy pins; plan, run and
//! federation are those that are offered; it is neither old nor of the future, neither had before nor
//! superseded by a later one; and institutions of enough countries have consented.

use std::collections::BTreeMap;

use comity_certs::{verify_consent, verify_order};
use comity_federation::{
    ClientId, Order, OrderRefusal, Plan, PlanDigest, Policy, RunId, SignedConsent, SignedOrder,
    Time, n_countries,
};
use comity_proto::convert::{signed_consents, signed_order};
use comity_proto::v1;

/// What came with an offered plan, and was found in order.
#[derive(Clone, Debug)]
pub(crate) struct Ordered {
    pub(crate) order: SignedOrder,
    pub(crate) consents: Vec<SignedConsent>,
}

/// What an offer is held against.
pub(crate) struct Scales<'a> {
    pub(crate) policy: &'a Policy,
    pub(crate) federation: &'a str,
    pub(crate) root_pem: &'a str,
    pub(crate) now: Time,
}

impl Scales<'_> {
    /// Checks the order, and the consents, that came with `offer` of `plan` as `run`.
    pub(crate) fn check(
        &self,
        run: &RunId,
        plan: &Plan,
        offer: &v1::Offer,
    ) -> Result<Ordered, OrderRefusal> {
        let order = signed_order(&offer.order_json, offer.order_signature.clone())?;
        order.order.check(plan, Some(run), self.federation)?;
        order.order.check_age(self.now, self.policy.order_age_max)?;
        let by = verify_order(&order, self.federation, self.root_pem)?;
        if !self.policy.pins(&order.order.by, by.key) {
            return Err(OrderRefusal::NotPinned { by: order.order.by.clone(), key: by.key });
        }
        let consents = signed_consents(offer.consents.clone())?;
        self.check_consents(plan, &consents)?;
        Ok(Ordered { order, consents })
    }

    fn check_consents(&self, plan: &Plan, consents: &[SignedConsent]) -> Result<(), OrderRefusal> {
        let wanted = self.policy.consents_countries_min;
        if wanted == 0 {
            return Ok(());
        }
        let (mut count, mut why_not): (Vec<&ClientId>, Vec<String>) = (Vec::new(), Vec::new());
        for signed in consents {
            let consent = &signed.consent;
            let checked = consent
                .check(plan, self.federation)
                .and_then(|()| consent.check_age(self.now, self.policy.order_age_max))
                .and_then(|()| verify_consent(signed, self.federation, self.root_pem));
            match checked {
                Ok(_) => count.push(&consent.by),
                Err(refusal) => why_not.push(format!("{}: {refusal}", consent.by)),
            }
        }
        let have = n_countries(count);
        if have >= wanted as usize {
            return Ok(());
        }
        Err(OrderRefusal::TooFewConsents { have, wanted, why_not: why_not.join("; ") })
    }
}

/// The orders that this node has seen: what keeps a run from being had twice, and an older plan from coming back.
#[derive(Debug, Default)]
pub(crate) struct SeenOrders {
    /// Each run that was offered, with its plan and its order; those of an earlier version had none.
    runs: BTreeMap<RunId, (PlanDigest, Option<Order>)>,
    /// The latest order of each operator for plans of each name.
    latest: BTreeMap<(String, String), (Time, RunId)>,
}

impl SeenOrders {
    /// Notes what was offered.
    pub(crate) fn note(&mut self, run: &RunId, plan: &Plan, order: Option<&Order>) {
        self.runs.insert(run.clone(), (plan.digest(), order.cloned()));
        let Some(order) = order else { return };
        let latest = self
            .latest
            .entry((order.by.clone(), plan.name.clone()))
            .or_insert_with(|| (order.issued, run.clone()));
        if latest.0 < order.issued {
            *latest = (order.issued, run.clone());
        }
    }

    /// Whether `order`, which was found in order, may begin a run of the plan called `name`, or is that of a run
    /// which has begun and not `ended`.
    pub(crate) fn check(&self, order: &Order, name: &str, ended: bool) -> Result<(), OrderRefusal> {
        let run = || order.run.clone();
        if let Some((plan, known)) = self.runs.get(&order.run) {
            if *plan != order.plan {
                return Err(OrderRefusal::Replayed { run: run(), what: "plan" });
            }
            if known.as_ref().is_some_and(|known| known != order) {
                return Err(OrderRefusal::Replayed { run: run(), what: "order" });
            }
            return if ended { Err(OrderRefusal::Ended { run: run() }) } else { Ok(()) };
        }
        match self.latest.get(&(order.by.clone(), name.to_owned())) {
            Some((issued, later)) if *issued > order.issued => {
                Err(OrderRefusal::Superseded { later: later.clone(), by: order.by.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Whether `run` was offered here under another plan than that of `digest`.
    pub(crate) fn knows_another(&self, run: &RunId, digest: PlanDigest) -> bool {
        self.runs.get(run).is_some_and(|(plan, _)| *plan != digest)
    }
}

#[cfg(test)]
mod tests;
