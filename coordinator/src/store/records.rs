//! The signed records of rounds and the clients' signatures under them, in journal and index.

use anyhow::Context as _;
use comity_federation::{
    ClientId, Countersignature, Launched, PlanDigest, RecordDigest, RoundReport, Run, RunId,
    Signature, SignedRecord,
};
use comity_journal::JournalError;
use tracing::info;

use super::{Entry, Store, round_key};
use crate::papers::Papers;

/// Tree of [`SignedRecord`]s without countersignatures.
pub(super) const RECORDS: &str = "records";
/// Tree of [`Signature`]s under records.
const COUNTERSIGNATURES: &str = "countersignatures";

/// A round that was closed without a record: a crash came between, or an earlier version closed it.
#[derive(Debug)]
pub(super) struct Unsigned {
    run: RunId,
    plan: PlanDigest,
    round: RoundReport,
}

impl Unsigned {
    /// The rounds of `run` that have a model and, the latest record being `latest`, no record.
    pub(super) fn of(run: &Run, latest: Option<(u32, RecordDigest)>) -> Vec<Self> {
        run.rounds_from(0)
            .into_iter()
            .filter(|round| round.model.is_some())
            .filter(|round| latest.is_none_or(|(latest, _)| round.round > latest))
            .map(|round| Self { run: run.id().clone(), plan: run.plan_digest(), round })
            .collect()
    }
}

impl Store {
    /// Signs the closed rounds that have no record yet.
    ///
    /// # Errors
    /// If the journal cannot be written.
    pub(crate) fn sign_missing(&mut self, papers: &Papers) -> anyhow::Result<()> {
        for Unsigned { run, plan, round } in std::mem::take(&mut self.unsigned) {
            let previous = self.latest_record(&run).map(|(_, digest)| digest);
            let signed = papers.record(&run, plan, previous, &round);
            let signed = signed.context("a round without a model was to be signed")?;
            info!(%run, round = round.round, "record signed that a crash had left out");
            self.append(&recorded(&signed))?;
            self.put_record(&signed)?;
            self.mark()?;
        }
        Ok(())
    }

    /// Round and digest of the latest record of `run`.
    pub(crate) fn latest_record(&self, run: &RunId) -> Option<(u32, RecordDigest)> {
        self.latest_records.get(run).copied()
    }

    /// Who launched `run`.
    pub(crate) fn launch_of(&self, run: &RunId) -> Option<&Launched> {
        self.launched_by.get(run)
    }

    /// Notes a record that the journal has.
    pub(crate) fn put_record(&mut self, signed: &SignedRecord) -> anyhow::Result<()> {
        let record = &signed.record;
        self.latest_records.insert(record.run.clone(), (record.round, record.digest()));
        self.put_value(RECORDS, &round_key(&record.run, record.round), signed)
    }

    /// Notes a countersignature that the journal has.
    pub(crate) fn put_countersignature(
        &self,
        run: &RunId,
        round: u32,
        client: &ClientId,
        signature: &Signature,
    ) -> anyhow::Result<()> {
        Ok(self.index.put_json(COUNTERSIGNATURES, &member_key(run, round, client), signature)?)
    }

    /// The record of `round`, without countersignatures.
    pub(crate) fn record(&self, run: &RunId, round: u32) -> anyhow::Result<Option<SignedRecord>> {
        self.get_value(RECORDS, &round_key(run, round))
    }

    /// The signature of `client` under the record of `round`.
    pub(crate) fn countersignature(
        &self,
        run: &RunId,
        round: u32,
        client: &ClientId,
    ) -> anyhow::Result<Option<Signature>> {
        Ok(self.index.get_json(COUNTERSIGNATURES, &member_key(run, round, client))?)
    }

    /// The record of `round` with all signatures of `clients` under it.
    pub(crate) fn countersigned<'a>(
        &self,
        run: &RunId,
        round: u32,
        clients: impl Iterator<Item = &'a ClientId>,
    ) -> anyhow::Result<Option<SignedRecord>> {
        let Some(mut signed) = self.record(run, round)? else { return Ok(None) };
        for client in clients {
            if let Some(signature) = self.countersignature(run, round, client)? {
                let client = client.clone();
                signed.countersignatures.push(Countersignature { client, signature });
            }
        }
        signed.countersignatures.sort_by(|a, b| a.client.cmp(&b.client));
        Ok(Some(signed))
    }

    /// Reads all records and countersignatures from the journal into a new index.
    pub(super) fn index_records(&mut self, journal: &std::path::Path) -> anyhow::Result<()> {
        comity_journal::read(journal, |record| {
            let refuse = |error: anyhow::Error| -> JournalError { record.refuse(error) };
            match record.json::<Entry>()? {
                Entry::Recorded { record, signature } => {
                    let countersignatures = Vec::new();
                    let signed = SignedRecord { record: *record, signature, countersignatures };
                    self.put_record(&signed).map_err(refuse)
                }
                Entry::Countersigned { run, round, client, signature, .. } => {
                    self.put_countersignature(&run, round, &client, &signature).map_err(refuse)
                }
                _ => Ok(()),
            }
        })?;
        Ok(())
    }
}

/// Who launched which run, if that is what `entry` says.
pub(super) fn launch_in(entry: &Entry) -> Option<(RunId, Launched)> {
    let Entry::Launched { run, by, now, order, consents, .. } = entry else { return None };
    let order = order.as_ref().map(|signed| signed.order.to_json());
    let launched = Launched {
        by: by.clone(),
        at: *now,
        order: order.map(|json| PlanDigest(*blake3::hash(&json).as_bytes())),
        consents: consents.iter().map(|signed| signed.consent.by.clone()).collect(),
    };
    Some((run.clone(), launched))
}

/// The journal's line of a record.
pub(crate) fn recorded(signed: &SignedRecord) -> Entry {
    Entry::Recorded { record: Box::new(signed.record.clone()), signature: signed.signature.clone() }
}

fn member_key(run: &RunId, round: u32, client: &ClientId) -> String {
    format!("{}/{client}", round_key(run, round))
}
