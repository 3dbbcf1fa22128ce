//! What an operator orders and an institution consents to, as documents that are signed.
//!
//! A run begins with an **order**: this plan, once, under this run's id, signed by the operator. A client
//! checks it against what the coordinator offers, so that a coordinator can neither alter a plan, nor run it
//! twice, nor come back with an older one. A **consent** is an institution's signature under a plan; a policy
//! may ask for those of several countries.
//!
//! The documents travel and are signed as their canonical JSON: keys in the order of declaration.
//!
//! Deliberately not here: keys, certificates and signatures (`certs`), and whom a client trusts (its policy).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{ClientId, KeyFingerprint, Plan, PlanDigest, RunId, Signature, Time};

/// How far two clocks may be apart before what one of them signed is refused by the other.
pub const CLOCK_SKEW_MAX: Duration = Duration::from_secs(300);
/// Longest document of this module, in bytes; ours have some 300.
const DOCUMENT_BYTES_MAX: usize = 4096;

/// An operator's order to run a plan, once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// In which federation.
    pub federation: String,
    /// Which plan.
    pub plan: PlanDigest,
    /// Under which id: it follows from the rest.
    pub run: RunId,
    /// When it was signed, by the operator's clock.
    pub issued: Time,
    /// The operator's name, as in the certificate.
    pub by: String,
}

/// An institution's consent to a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Consent {
    /// In which federation.
    pub federation: String,
    /// To which plan.
    pub plan: PlanDigest,
    /// Whose.
    pub by: ClientId,
    /// When it was signed, by the institution's clock.
    pub issued: Time,
}

/// An order and its operator's signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedOrder {
    /// What is ordered.
    pub order: Order,
    /// The operator's.
    pub signature: Signature,
}

/// A consent and its institution's signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedConsent {
    /// What is consented to.
    pub consent: Consent,
    /// The institution's.
    pub signature: Signature,
}

/// Why an order, or a consent that comes with it, does not count. It travels to the operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderRefusal {
    /// There is no order.
    #[error(
        "the plan is not signed: no operator's order came with it; launch it with `comity-coordinator run start`"
    )]
    Unsigned,
    /// The document cannot be read.
    #[error("the {what} cannot be read: {reason}; make it anew")]
    Unreadable {
        /// Order or consent.
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// It is of another federation.
    #[error("the {what} is of federation {got}, this is {expected}")]
    OtherFederation {
        /// Order or consent.
        what: &'static str,
        /// This one.
        expected: String,
        /// As signed.
        got: String,
    },
    /// Another plan was signed.
    #[error(
        "the {what} is for plan {got}, not for {expected}, which is offered: the plan was altered after it was \
         signed, or the signature belongs to another one"
    )]
    OtherPlan {
        /// Order or consent.
        what: &'static str,
        /// That is offered.
        expected: PlanDigest,
        /// That was signed.
        got: PlanDigest,
    },
    /// The order is for another run.
    #[error(
        "the order is for run {got}, not for {expected}: an order is for one run; launch the plan again"
    )]
    OtherRun {
        /// That is offered.
        expected: RunId,
        /// That was ordered.
        got: RunId,
    },
    /// The run's id does not follow from the order.
    #[error("the order's run is called {got}; by its plan and time it is {expected}")]
    RunNotDerived {
        /// As it follows.
        expected: RunId,
        /// As ordered.
        got: RunId,
    },
    /// It was signed too long ago.
    #[error(
        "the {what} was signed {days} days ago, and counts for {days_max}: launch the plan again, or set the clock \
         of the machine that is wrong"
    )]
    TooOld {
        /// Order or consent.
        what: &'static str,
        /// Its age.
        days: u64,
        /// As the policy says.
        days_max: u64,
    },
    /// It was signed in the future.
    #[error(
        "the {what} was signed {seconds} s in the future by this machine's clock: one of the two clocks is wrong; set \
         it, and launch the plan again"
    )]
    FromTheFuture {
        /// Order or consent.
        what: &'static str,
        /// How far.
        seconds: u64,
    },
    /// It was signed too long ago, or in the future, by the coordinator's clock.
    #[error(
        "the order was signed {seconds} s away from the coordinator's clock, more than the {seconds_max} s that \
         clocks may differ: set the clock of this machine, or the coordinator's"
    )]
    OtherClock {
        /// How far.
        seconds: u64,
        /// How far it may.
        seconds_max: u64,
    },
    /// The signature does not hold.
    #[error("the {what}'s signature does not count: {reason}")]
    Signature {
        /// Order or consent.
        what: &'static str,
        /// What the verifier says.
        reason: String,
    },
    /// Somebody signed who may not.
    #[error("the {what} is signed by {signer}, not by {expected}")]
    OtherSigner {
        /// Order or consent.
        what: &'static str,
        /// Whose the signature is.
        signer: String,
        /// Whose it should be.
        expected: String,
    },
    /// The operator's key is not one that the institution has pinned.
    #[error(
        "operator {by} signed with the key {key}, which this institution's policy does not name under `operators`; \
         its steward adds it after comparing it with the operator by another way, such as the telephone"
    )]
    NotPinned {
        /// The operator.
        by: String,
        /// Its key.
        key: KeyFingerprint,
    },
    /// The same run was offered before under something else.
    #[error(
        "run {run} was offered before with another {what}: an order is for one plan and one run"
    )]
    Replayed {
        /// Which run.
        run: RunId,
        /// Plan or order.
        what: &'static str,
    },
    /// The run has ended here.
    #[error("run {run} has ended here before: an order is for one run; launch the plan again")]
    Ended {
        /// Which run.
        run: RunId,
    },
    /// A later order for a plan of this name was seen before.
    #[error(
        "the order is older than that of run {later}, which operator {by} gave for a plan of the same name: it is \
         superseded; launch the plan again"
    )]
    Superseded {
        /// The run that was ordered later.
        later: RunId,
        /// Who ordered both.
        by: String,
    },
    /// Too few countries have consented.
    #[error(
        "institutions of {have} countries have consented to the plan{}; this institution's policy wants {wanted} \
         (`comity-client plan sign` at the institutions, `run start --consent FILE` at the operator)",
        if why_not.is_empty() { String::new() } else { format!(", and others do not count: {why_not}") }
    )]
    TooFewConsents {
        /// Countries whose consent counts.
        have: usize,
        /// As the policy says.
        wanted: u32,
        /// Consents that do not count, in words.
        why_not: String,
    },
    /// The coordinator has had this run.
    #[error("run {run} was launched before; `run show {run}` shows it")]
    AlreadyLaunched {
        /// Which run.
        run: RunId,
    },
}

fn read<T>(what: &'static str, bytes: &[u8]) -> Result<T, OrderRefusal>
where
    T: Serialize + for<'de> Deserialize<'de>,
{
    let refuse = |reason: String| OrderRefusal::Unreadable { what, reason };
    if bytes.len() > DOCUMENT_BYTES_MAX {
        return Err(refuse(format!("it has more than {DOCUMENT_BYTES_MAX} bytes")));
    }
    let read: T = serde_json::from_slice(bytes).map_err(|error| refuse(error.to_string()))?;
    // It is kept as values and signed as bytes: there is only one way to write it.
    if canonical(&read) != bytes {
        return Err(refuse("it is not canonical JSON".to_owned()));
    }
    Ok(read)
}

fn canonical(document: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(document).expect("a document has only string keys")
}

impl Order {
    /// The order of operator `by` to run `plan` in `federation`, given at `issued`.
    #[must_use]
    pub fn new(plan: &Plan, federation: &str, issued: Time, by: &str) -> Self {
        let digest = plan.digest();
        let run = RunId::derive(&plan.name, &digest, federation, issued);
        Self { federation: federation.to_owned(), plan: digest, run, issued, by: by.to_owned() }
    }

    /// The bytes that are signed.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        canonical(self)
    }

    /// Reads the bytes that were signed.
    ///
    /// # Errors
    /// [`OrderRefusal::Unreadable`] unless they are an order's canonical JSON, and
    /// [`OrderRefusal::Unsigned`] if there are none.
    pub fn from_json(bytes: &[u8]) -> Result<Self, OrderRefusal> {
        if bytes.is_empty() { Err(OrderRefusal::Unsigned) } else { read("order", bytes) }
    }

    /// Whether this is an order to run `plan` in `federation`; as `run`, if it was offered under that id.
    ///
    /// # Errors
    /// [`OrderRefusal`] says what differs.
    pub fn check(
        &self,
        plan: &Plan,
        run: Option<&RunId>,
        federation: &str,
    ) -> Result<(), OrderRefusal> {
        same_federation("order", &self.federation, federation)?;
        same_plan("order", self.plan, plan)?;
        if let Some(expected) = run
            && *expected != self.run
        {
            return Err(OrderRefusal::OtherRun {
                expected: expected.clone(),
                got: self.run.clone(),
            });
        }
        let expected = RunId::derive(&plan.name, &self.plan, federation, self.issued);
        if self.run != expected {
            return Err(OrderRefusal::RunNotDerived { expected, got: self.run.clone() });
        }
        Ok(())
    }

    /// Whether it was signed at most `age_max` before `now`, and not after it but for what clocks differ.
    ///
    /// # Errors
    /// [`OrderRefusal::TooOld`], [`OrderRefusal::FromTheFuture`].
    pub fn check_age(&self, now: Time, age_max: Duration) -> Result<(), OrderRefusal> {
        check_age("order", self.issued, now, age_max)
    }

    /// Whether it was signed just now, as a coordinator wants it.
    ///
    /// # Errors
    /// [`OrderRefusal::OtherClock`] if the clocks differ by more than [`CLOCK_SKEW_MAX`].
    pub fn check_fresh(&self, now: Time) -> Result<(), OrderRefusal> {
        let seconds = now.0.abs_diff(self.issued.0) / 1000;
        let seconds_max = CLOCK_SKEW_MAX.as_secs();
        if seconds > seconds_max {
            return Err(OrderRefusal::OtherClock { seconds, seconds_max });
        }
        Ok(())
    }
}

impl Consent {
    /// The bytes that are signed.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        canonical(self)
    }

    /// Reads the bytes that were signed.
    ///
    /// # Errors
    /// [`OrderRefusal::Unreadable`] unless they are a consent's canonical JSON.
    pub fn from_json(bytes: &[u8]) -> Result<Self, OrderRefusal> {
        read("consent", bytes)
    }

    /// Whether this is a consent to `plan` in `federation` of somebody whom the plan names.
    ///
    /// # Errors
    /// [`OrderRefusal`] says what differs.
    pub fn check(&self, plan: &Plan, federation: &str) -> Result<(), OrderRefusal> {
        same_federation("consent", &self.federation, federation)?;
        same_plan("consent", self.plan, plan)?;
        if plan.client(&self.by).is_none() {
            return Err(OrderRefusal::OtherSigner {
                what: "consent",
                signer: self.by.to_string(),
                expected: "a client that the plan names".to_owned(),
            });
        }
        Ok(())
    }

    /// As [`Order::check_age`].
    ///
    /// # Errors
    /// [`OrderRefusal::TooOld`], [`OrderRefusal::FromTheFuture`].
    pub fn check_age(&self, now: Time, age_max: Duration) -> Result<(), OrderRefusal> {
        check_age("consent", self.issued, now, age_max)
    }
}

fn same_federation(what: &'static str, got: &str, expected: &str) -> Result<(), OrderRefusal> {
    if got == expected {
        return Ok(());
    }
    let (expected, got) = (expected.to_owned(), got.to_owned());
    Err(OrderRefusal::OtherFederation { what, expected, got })
}

fn same_plan(what: &'static str, got: PlanDigest, plan: &Plan) -> Result<(), OrderRefusal> {
    let expected = plan.digest();
    if got == expected { Ok(()) } else { Err(OrderRefusal::OtherPlan { what, expected, got }) }
}

fn check_age(
    what: &'static str,
    issued: Time,
    now: Time,
    age_max: Duration,
) -> Result<(), OrderRefusal> {
    if issued > now.after(CLOCK_SKEW_MAX) {
        let seconds = (issued.0 - now.0) / 1000;
        return Err(OrderRefusal::FromTheFuture { what, seconds });
    }
    if now > issued.after(age_max) {
        let days = |milliseconds: u64| milliseconds / 86_400_000;
        let days_max = age_max.as_secs() / 86_400;
        return Err(OrderRefusal::TooOld { what, days: days(now.0 - issued.0), days_max });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::sample;
    use OrderRefusal as No;

    const NOW: Time = Time(1_800_000_000_000);
    const MONTH: Duration = Duration::from_secs(30 * 86_400);

    fn order() -> Order {
        Order::new(&sample(), "demo", NOW, "alice")
    }

    #[test]
    fn an_order_is_for_its_plan_its_run_and_its_federation() {
        let (plan, order) = (sample(), order());
        assert_eq!(order.check(&plan, Some(&order.run), "demo"), Ok(()));
        assert_eq!(order.check(&plan, None, "demo"), Ok(()));
        assert!(matches!(order.check(&plan, None, "demos"), Err(No::OtherFederation { .. })));
        let mut altered = plan.clone();
        altered.rounds += 1;
        assert!(matches!(order.check(&altered, None, "demo"), Err(No::OtherPlan { .. })));
        let other = RunId::derive(&plan.name, &plan.digest(), "demo", Time(1));
        let refused = order.check(&plan, Some(&other), "demo");
        assert!(matches!(refused, Err(No::OtherRun { .. })));
        let mut renamed = order.clone();
        renamed.run = other;
        assert!(matches!(renamed.check(&plan, None, "demo"), Err(No::RunNotDerived { .. })));
        let mut moved = order;
        moved.issued = Time(NOW.0 + 1);
        assert!(matches!(moved.check(&plan, None, "demo"), Err(No::RunNotDerived { .. })));
    }

    #[test]
    fn an_order_counts_neither_too_late_nor_before_its_time() {
        let order = order();
        let day = Duration::from_secs(86_400);
        for now in [NOW, Time(NOW.0 - 299_000), NOW.after(MONTH)] {
            assert_eq!(order.check_age(now, MONTH), Ok(()), "{now}");
        }
        let said = order.check_age(NOW.after(MONTH + day), MONTH).unwrap_err();
        assert!(matches!(said, No::TooOld { days: 31, days_max: 30, .. }), "{said}");
        let said = order.check_age(Time(NOW.0 - 86_400_000), MONTH).unwrap_err();
        assert!(matches!(said, No::FromTheFuture { seconds: 86_400, .. }), "{said}");
        assert!(said.to_string().contains("clock"), "{said}");
        assert_eq!(order.check_fresh(NOW), Ok(()));
        for now in [Time(NOW.0 - 86_400_000), Time(NOW.0 + 86_400_000)] {
            let said = order.check_fresh(now).unwrap_err();
            assert!(matches!(said, No::OtherClock { seconds: 86_400, .. }), "{said}");
        }
    }

    #[test]
    fn there_is_one_way_to_write_an_order() {
        let order = order();
        let bytes = order.to_json();
        assert_eq!(Order::from_json(&bytes), Ok(order));
        assert_eq!(Order::from_json(b""), Err(No::Unsigned));
        let text = String::from_utf8(bytes).unwrap();
        let reordered = text.replace("\"federation\":\"demo\",", "").replacen(
            '{',
            "{\"federation\":\"demo\" ,",
            1,
        );
        for other in [
            format!("{text} "),
            reordered,
            text.replace("\"by\"", "\"why\":1,\"by\""),
            text[..text.len() - 1].to_owned(),
            " ".repeat(5000),
        ] {
            let said = Order::from_json(other.as_bytes()).unwrap_err();
            assert!(matches!(said, No::Unreadable { .. }), "{other}: {said}");
        }
    }

    #[test]
    fn a_consent_is_of_somebody_whom_the_plan_names() {
        let plan = sample();
        let by: ClientId = "KR/a".parse().unwrap();
        let consent = Consent { federation: "demo".into(), plan: plan.digest(), by, issued: NOW };
        assert_eq!(Consent::from_json(&consent.to_json()), Ok(consent.clone()));
        assert_eq!(consent.check(&plan, "demo"), Ok(()));
        assert_eq!(consent.check_age(NOW, MONTH), Ok(()));
        assert!(consent.check(&plan, "other").is_err());
        let mut stranger = consent.clone();
        stranger.by = "KR/z".parse().unwrap();
        assert!(matches!(stranger.check(&plan, "demo"), Err(No::OtherSigner { .. })));
        let mut altered = plan;
        altered.seed += 1;
        assert!(matches!(consent.check(&altered, "demo"), Err(No::OtherPlan { .. })));
    }
}
