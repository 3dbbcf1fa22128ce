//! The node's part in receipts and records: checks each, countersigns those that it believes, and stops taking
//! part where the coordinator's own signature shows that it is not to be believed.

use std::time::Duration;

use comity_certs::{CertError, Document};
use comity_federation::{
    Breach, Countersignature, ModelDigest, ParticipantEffect, ParticipantEvent, RecordDigest,
    RoundRecord, RunId, Signature, SignedReceipt, Standing, Task, Terms, first_model,
};
use comity_proto::convert::signed_record;
use comity_proto::v1;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use super::Node;
use crate::link::CallError;
use crate::store::{Entry, Evidence, Part};
use crate::transfers::Wire;

/// How long a countersignature waits for other news: a round that begins has the way to itself.
const COUNTERSIGN_PAUSE: Duration = Duration::from_millis(20);
/// How long countersignatures may take that are left when the node ends.
const COUNTERSIGN_GRACE: Duration = Duration::from_secs(3);
/// Other clients' signatures of one round that the journal keeps; all that are shown are checked.
const WITNESSES_KEPT: usize = 4;
/// Largest first model that a node computes to see that a run starts from it: a second's work.
const FIRST_MODEL_PARAMETERS_MAX: usize = 50_000_000;

/// A record that was checked and signed, and that the coordinator is to have back.
#[derive(Clone, Debug)]
pub(super) struct Countersigned {
    run: RunId,
    round: u32,
    digest: RecordDigest,
    signature: Signature,
}

/// Countersignatures that wait to be sent.
#[derive(Debug, Default)]
pub(super) struct Outstanding {
    due: Option<Instant>,
    all: Vec<Countersigned>,
}

impl Outstanding {
    fn push(&mut self, signed: Countersigned) {
        self.due.get_or_insert_with(|| Instant::now() + COUNTERSIGN_PAUSE);
        self.all.push(signed);
    }

    /// Ends when the next one is to be sent; never, if there is none.
    pub(super) async fn due(&self) {
        match self.due {
            Some(due) => tokio::time::sleep_until(due).await,
            None => std::future::pending().await,
        }
    }
}

impl Node {
    fn terms<'a>(&'a self, run: &'a RunId, part: &'a Part) -> Terms<'a> {
        Terms {
            federation: self.credentials.verifier.federation(),
            run,
            plan: &part.plan,
            plan_digest: part.participant.plan(),
            me: Some(&self.id),
        }
    }

    /// Takes a record; the inner error is a lost connection.
    pub(super) async fn recorded(
        &mut self,
        wire: &mut Wire,
        run: RunId,
        shown: v1::SignedRecord,
    ) -> anyhow::Result<Result<(), String>> {
        let (record, signature, witnesses) = match signed_record(shown) {
            Ok(shown) => shown,
            Err(error) => return Ok(Err(error.to_string())),
        };
        self.find_start(&run);
        let Some(part) = self.parts.get(&run).filter(|part| part.book.breach().is_none()) else {
            debug!(%run, "record of a run in which this node takes no part");
            return Ok(Ok(()));
        };
        let believed = self.believe(&run, part, &record, &signature, &witnesses);
        let seen = match believed {
            Ok(None) => return Ok(Ok(())),
            Ok(Some(seen)) => seen,
            Err(Doubt::NotNow(why)) => return Ok(Err(why)),
            Err(Doubt::Breach(breach)) => {
                let evidence = Evidence::Record { record: Box::new(record), signature };
                return self.break_with(wire, &run, breach.to_string(), Some(evidence)).await;
            }
        };
        let countersignature = self.credentials.signer.sign(Document::Record, &record.to_json());
        let (round, digest) = (record.round, record.digest());
        debug!(%run, round, record = digest.short(), witnesses = seen.len(), "record checked");
        self.store.defer(Entry::Record {
            client: self.id.clone(),
            record: Box::new(record.clone()),
            signature,
            countersignature: countersignature.clone(),
            witnesses: seen.into_iter().take(WITNESSES_KEPT).collect(),
        });
        if let Some(part) = self.parts.get_mut(&run) {
            part.take(&self.id, record);
        }
        self.outstanding.push(Countersigned { run, round, digest, signature: countersignature });
        Ok(Ok(()))
    }

    /// The witnesses whose signatures hold, if the record is the next one and may be believed.
    fn believe(
        &self,
        run: &RunId,
        part: &Part,
        record: &RoundRecord,
        signature: &Signature,
        witnesses: &[Countersignature],
    ) -> Result<Option<Vec<Countersignature>>, Doubt> {
        let verifier = &self.credentials.verifier;
        verifier.record(record, signature).map_err(Doubt::of("the coordinator's record"))?;
        let standing = part.book.check(&self.terms(run, part), record)?;
        if standing == Standing::Held {
            return Ok(None);
        }
        let mut seen = Vec::new();
        let Some(before) = &part.record else { return Ok(Some(seen)) };
        for witness in witnesses.iter().filter(|witness| witness.client != self.id) {
            let client = &witness.client;
            if part.plan.client(client).is_none() {
                let why = format!("{client} countersigned, whom the plan does not name");
                return Err(Breach::Signature(why).into());
            }
            match verifier.countersignature(before, client, &witness.signature) {
                Ok(()) => seen.push(witness.clone()),
                Err(CertError::Signature { reason }) => {
                    return Err(Breach::Signature(format!(
                        "{client} signed another record of round {} than the one that this client was shown ({reason}): \
                         the coordinator shows different members different records",
                        before.round
                    ))
                    .into());
                }
                // A certificate that cannot be followed from here says nothing about the record.
                Err(other) => warn!(%run, %client, %other, "a countersignature cannot be checked"),
            }
        }
        Ok(Some(seen))
    }

    /// Takes the receipt of an update that was sent.
    pub(super) async fn receipted(
        &mut self,
        wire: &mut Wire,
        run: &RunId,
        signed: SignedReceipt,
    ) -> anyhow::Result<Result<(), String>> {
        let Some(part) = self.parts.get(run) else { return Ok(Ok(())) };
        let SignedReceipt { receipt, signature } = signed;
        let checked = self
            .credentials
            .verifier
            .receipt(&receipt, &signature)
            .map_err(Doubt::of("the coordinator's receipt"))
            .and_then(|()| Ok(part.book.check_receipt(&self.terms(run, part), &receipt)?));
        match checked {
            Ok(()) => {}
            Err(Doubt::NotNow(why)) => return Ok(Err(why)),
            Err(Doubt::Breach(breach)) => {
                let evidence = Evidence::Receipt { receipt: Box::new(receipt), signature };
                return self.break_with(wire, run, breach.to_string(), Some(evidence)).await;
            }
        }
        if let Some(part) = self.parts.get_mut(run) {
            part.book.take_receipt(&receipt);
        }
        self.store.defer(Entry::Receipt { receipt: Box::new(receipt), signature });
        Ok(Ok(()))
    }

    /// Why `task` is not served, if it is not.
    pub(super) fn refusal(&mut self, task: &Task) -> Option<String> {
        self.find_start(&task.run);
        let part = self.parts.get(&task.run)?;
        if let Some(reason) = part.book.breach() {
            return Some(reason.to_owned());
        }
        part.book.check_task(&part.plan, task).err().map(|wrong| wrong.to_string())
    }

    /// What is done instead of `effect` in a run whose coordinator is not believed any more.
    pub(super) fn instead(&self, run: &RunId, effect: ParticipantEffect) -> ParticipantEffect {
        use ParticipantEffect as Do;
        let breach = self.parts.get(run).and_then(|part| part.book.breach());
        let Some(reason) = breach.map(ToOwned::to_owned) else { return effect };
        match effect {
            Do::CheckIn { .. } => Do::Decline { reason },
            Do::Train(Task { round, .. }) => Do::Withdraw { round, reason },
            Do::Submit { contribution } => Do::Withdraw { round: contribution.round, reason },
            other => other,
        }
    }

    /// Looks whether the records lead to the model with which a run is said to have finished.
    pub(super) async fn check_finish(
        &mut self,
        wire: &mut Wire,
        run: &RunId,
        ended: &v1::Ended,
    ) -> anyhow::Result<Result<(), String>> {
        let Some(part) = self.parts.get(run) else { return Ok(Ok(())) };
        let believed = part.book.breach().is_none() && part.book.took_part();
        let model = <[u8; 32]>::try_from(&ended.model_digest[..]).map(ModelDigest);
        let (true, "finished", Ok(model)) = (believed, ended.status.as_str(), model) else {
            return Ok(Ok(()));
        };
        match part.book.check_finish(&part.plan, model) {
            Ok(()) => Ok(Ok(())),
            Err(breach) => self.break_with(wire, run, breach.to_string(), None).await,
        }
    }

    /// Stops taking part in a run, with the reason in the journal, in the log and at the operator's.
    async fn break_with(
        &mut self,
        wire: &mut Wire,
        run: &RunId,
        reason: String,
        evidence: Option<Evidence>,
    ) -> anyhow::Result<Result<(), String>> {
        error!(
            %run, reason,
            "THE COORDINATOR IS NOT BELIEVED ANY MORE: this node takes no further part in the run. The evidence is in its \
             journal (`comity-client receipts list`); compare records with another member (`receipts compare`)"
        );
        let now = self.outside.clock.now();
        let entry = Entry::Breach { run: run.clone(), reason: reason.clone(), evidence, now };
        self.store.append(&entry)?;
        let Some(part) = self.parts.get_mut(run) else { return Ok(Ok(())) };
        part.book.break_with(reason.clone());
        self.queue.retain(|task| task.run != *run);
        if let Some(round) = part.participant.task().map(|task| task.round) {
            let event = ParticipantEvent::Failed { round, reason: reason.clone() };
            if let Err(lost) = Box::pin(self.step(wire, run, event)).await? {
                return Ok(Err(lost));
            }
        }
        let Some(link) = &mut wire.link else { return Ok(Ok(())) };
        Ok(super::settle(run, link.decline(run, &reason).await))
    }

    /// Computes the run's first model from its plan, once.
    fn find_start(&mut self, run: &RunId) {
        let Some(part) = self.parts.get_mut(run) else { return };
        if part.book.start().is_none()
            && part.book.latest().is_none()
            && let Some(model) = first_model(&part.plan, FIRST_MODEL_PARAMETERS_MAX)
        {
            part.book.start_with(model);
        }
    }

    /// Notes the latest record of each open run to be countersigned again: the coordinator may have lost it.
    pub(super) fn countersign_again(&mut self) {
        for (run, part) in &self.parts {
            if let (Some(record), None) = (&part.record, part.book.breach()) {
                let signature = self.credentials.signer.sign(Document::Record, &record.to_json());
                let (round, digest) = (record.round, record.digest());
                let run = run.clone();
                self.outstanding.push(Countersigned { run, round, digest, signature });
            }
        }
    }

    /// Sends the countersignatures that wait, beside everything else.
    pub(super) fn countersign(&mut self, wire: &Wire) {
        let Some(link) = &wire.link else { return };
        self.outstanding.due = None;
        for Countersigned { run, round, digest, signature } in self.outstanding.all.drain(..) {
            let mut link = link.clone();
            self.countersigning.spawn(async move {
                match link.countersign(&run, round, digest, &signature).await {
                    Ok(()) => debug!(%run, round, "countersignature taken"),
                    Err(CallError::Refused(status)) => {
                        warn!(%run, round, reason = status.message(), "countersignature refused");
                    }
                    // It is sent again on the next connection.
                    Err(CallError::Lost(why)) => debug!(%run, round, why, "not countersigned yet"),
                }
            });
        }
        while self.countersigning.try_join_next().is_some() {}
    }

    /// Sends what waits before the node ends.
    pub(super) async fn countersign_rest(&mut self, wire: &Wire) {
        self.countersign(wire);
        let rest = async { while self.countersigning.join_next().await.is_some() {} };
        if tokio::time::timeout(COUNTERSIGN_GRACE, rest).await.is_err() {
            info!("some countersignatures were not taken before the end");
        }
    }
}

/// Why a paper is not taken.
enum Doubt {
    /// It, or its signature, shows a coordinator that is not to be believed.
    Breach(Breach),
    /// It cannot be checked from here.
    NotNow(String),
}

impl Doubt {
    fn of(what: &'static str) -> impl Fn(CertError) -> Self {
        move |error| match error {
            CertError::Signature { reason } => {
                Self::Breach(Breach::Signature(format!("{what} is not signed by it: {reason}")))
            }
            other => Self::NotNow(format!("{what} cannot be checked: {other}")),
        }
    }
}

impl From<Breach> for Doubt {
    fn from(breach: Breach) -> Self {
        Self::Breach(breach)
    }
}
