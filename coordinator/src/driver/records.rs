//! The driver's part in records: who is shown which, and whose countersignature is kept.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use comity_federation::{
    ClientId, ClientStanding, Countersignature, Launched, Receipt, Rejection, RoundRecord, RunId,
    Signature, SignedRecord, Time, UpdateDigest,
};
use comity_proto::limits::WITNESSES_MAX;
use tokio::time::Instant;
use tracing::error;

use super::{Assignment, Driver, DriverError, DriverHandle, Reply, Request, storage};
use crate::store::Entry;

/// How long countersignatures wait for other news, to reach the disk with it.
const COUNTERSIGNATURES_PAUSE: Duration = Duration::from_millis(50);

/// A client's signature under a record, which was checked.
pub(crate) struct Countersigned {
    pub(crate) run: RunId,
    pub(crate) round: u32,
    pub(crate) client: ClientId,
    pub(crate) signature: Signature,
}

impl Countersigned {
    fn entry(&self, now: Time) -> Entry {
        Entry::Countersigned {
            run: self.run.clone(),
            round: self.round,
            now,
            client: self.client.clone(),
            signature: self.signature.clone(),
        }
    }
}

/// Countersignatures that are on their way to the disk, and who waits for that.
#[derive(Default)]
pub(super) struct Waiting {
    due: Option<Instant>,
    all: Vec<(Countersigned, Reply<()>)>,
}

impl DriverHandle {
    /// The receipt for an update that was accepted.
    pub(crate) async fn receipt(
        &self,
        run: RunId,
        client: ClientId,
        update: UpdateDigest,
    ) -> Result<Option<Receipt>, DriverError> {
        self.ask(|reply| Request::Receipt { run, client, update, reply }).await
    }

    /// The record of a round in which `client` may have a say, without countersignatures.
    pub(crate) async fn record(
        &self,
        run: RunId,
        round: u32,
        client: ClientId,
    ) -> Result<RoundRecord, DriverError> {
        self.ask(|reply| Request::Record { run, round, client, reply }).await
    }

    /// Keeps a countersignature that was checked; returns when the disk has it.
    pub(crate) async fn countersigned(&self, signed: Countersigned) -> Result<(), DriverError> {
        self.ask(|reply| Request::Countersigned { signed, reply }).await
    }

    /// Who launched a run; and the coordinator's time now.
    pub(crate) async fn launch_of(&self, run: RunId) -> Result<(Launched, Time), DriverError> {
        self.ask(|reply| Request::LaunchOf { run, reply }).await
    }

    /// The records of a run with all countersignatures, oldest first.
    pub(crate) async fn records(&self, run: RunId) -> Result<Vec<SignedRecord>, DriverError> {
        self.ask(|reply| Request::Records { run, reply }).await
    }
}

impl Driver {
    pub(super) fn receipt(
        &self,
        run: &RunId,
        client: &ClientId,
        update: UpdateDigest,
    ) -> Result<Option<Receipt>, DriverError> {
        let federation = &self.papers.federation();
        if let Some(run) = self.runs.get(run) {
            return Ok(run.receipt(federation, client, update));
        }
        let report = self.report(run)?;
        let rounds = report.history.iter();
        Ok(rounds
            .flat_map(|round| round.contributions.iter().map(|c| (c, round.round)))
            .find(|(c, _)| c.client == *client && c.update == update)
            .map(|(c, counts_in)| c.receipt(federation, run, report.plan, counts_in)))
    }

    pub(super) fn record(
        &self,
        run: &RunId,
        round: u32,
        client: &ClientId,
    ) -> Result<RoundRecord, DriverError> {
        if self.plan(run)?.client(client).is_none() {
            return Err(Rejection::NotInPlan(client.clone()).into());
        }
        let signed = self.store.record(run, round).map_err(|e| storage(&e))?;
        let signed = signed.ok_or_else(|| DriverError::NoRecord { run: run.clone(), round })?;
        Ok(signed.record)
    }

    /// Keeps `signed` until it reaches the disk with other news, or by itself a little later.
    pub(super) fn countersigned(&mut self, signed: Countersigned, reply: Reply<()>) {
        let known = self.store.countersignature(&signed.run, signed.round, &signed.client);
        match known {
            Ok(None) => {}
            Ok(Some(_)) => return drop(reply.send(Ok(()))),
            Err(error) => return drop(reply.send(Err(storage(&error)))),
        }
        self.waiting.due.get_or_insert_with(|| Instant::now() + COUNTERSIGNATURES_PAUSE);
        self.waiting.all.push((signed, reply));
    }

    /// When the countersignatures that wait are due.
    pub(super) fn countersignatures_due(&self) -> Option<Instant> {
        self.waiting.due
    }

    /// Makes `entries` durable, and with them the countersignatures that wait.
    pub(super) fn append(&mut self, entries: Vec<Entry>) -> anyhow::Result<()> {
        let now = self.now();
        let Waiting { all, .. } = std::mem::take(&mut self.waiting);
        let mut lines: Vec<Entry> = all.iter().map(|(signed, _)| signed.entry(now)).collect();
        lines.extend(entries);
        self.store.append_all(&lines)?;
        for (Countersigned { run, round, client, signature }, reply) in all {
            self.store.put_countersignature(&run, round, &client, &signature)?;
            // Whoever does not wait any more sends it again, and is told that it is here.
            let _ = reply.send(Ok(()));
        }
        Ok(())
    }

    /// Makes the countersignatures that wait durable, if it is time.
    pub(super) fn flush_countersignatures(&mut self) -> anyhow::Result<()> {
        if self.waiting.due.is_some_and(|due| due <= Instant::now()) {
            self.append(Vec::new())?;
            self.store.mark()?;
        }
        Ok(())
    }

    /// The records of `run` after the one of round `held`, each with signatures of others under the one before.
    pub(super) fn records_after(
        &self,
        run: &RunId,
        client: &ClientId,
        held: Option<u32>,
        first_round: u32,
    ) -> Result<Vec<Assignment>, DriverError> {
        let Some((latest, _)) = self.store.latest_record(run) else {
            if let Some(held) = held {
                self.is_older_copy(run, client, held, None);
            }
            return Ok(Vec::new());
        };
        if let Some(held) = held.filter(|held| *held > latest) {
            self.is_older_copy(run, client, held, Some(latest));
        }
        let mut records = Vec::new();
        for round in held.map_or(first_round, |held| held + 1)..=latest {
            let signed = self.store.record(run, round).map_err(|e| storage(&e))?;
            let mut signed =
                signed.ok_or_else(|| DriverError::NoRecord { run: run.clone(), round })?;
            if let Some(before) = round.checked_sub(1).filter(|before| *before >= first_round) {
                signed.countersignatures = self.witnesses(run, before, client, &signed.record)?;
            }
            let record = Arc::new(signed);
            records.push(Assignment::Record { run: run.clone(), record });
        }
        Ok(records)
    }

    /// Some signatures under the record of `round` by others than `client`: others for each client and round, so
    /// that in time everybody is shown everybody's.
    fn witnesses(
        &self,
        run: &RunId,
        round: u32,
        client: &ClientId,
        next: &RoundRecord,
    ) -> Result<Vec<Countersignature>, DriverError> {
        let digest = next.digest();
        let others = next.cohort.iter().filter(|other| *other != client);
        let mut ranked: Vec<([u8; 32], &ClientId)> = others
            .map(|other| {
                let mut hasher = blake3::Hasher::new_derive_key("comity witnesses v1");
                hasher.update(&digest.0);
                hasher.update(client.to_string().as_bytes()).update(b" ");
                hasher.update(other.to_string().as_bytes());
                (*hasher.finalize().as_bytes(), other)
            })
            .collect();
        ranked.sort_unstable();
        let mut witnesses = Vec::new();
        for (_, other) in ranked {
            if witnesses.len() >= WITNESSES_MAX {
                break;
            }
            let signature = self.store.countersignature(run, round, other);
            if let Some(signature) = signature.map_err(|e| storage(&e))? {
                let client = other.clone();
                witnesses.push(Countersignature { client, signature });
            }
        }
        Ok(witnesses)
    }

    fn is_older_copy(&self, run: &RunId, client: &ClientId, held: u32, latest: Option<u32>) {
        error!(
            %run, %client, held, ?latest,
            "a client holds a record that this coordinator signed and no longer knows: its folder is an older copy. \
             Stop, and put the folder back that has it; until then clients serve no round of this run"
        );
    }

    /// Whether `client` is shown the records of an ended run.
    pub(super) fn is_shown_records(standing: ClientStanding) -> bool {
        !matches!(standing, ClientStanding::Registered | ClientStanding::Declined)
    }

    /// All records of `run` with every countersignature.
    pub(super) fn records(&self, run: &RunId) -> Result<Vec<SignedRecord>, DriverError> {
        let plan = self.plan(run)?;
        let Some((latest, _)) = self.store.latest_record(run) else { return Ok(Vec::new()) };
        let clients = || plan.cohort.clients.iter().map(|named| &named.id);
        let rounds = plan.first_round()..=latest;
        let records =
            rounds.filter_map(|r| self.store.countersigned(run, r, clients()).transpose());
        records.collect::<Result<_, _>>().map_err(|e| storage(&e))
    }
}

/// The latest record that a client says to hold, of each run.
pub(crate) type RecordsHeld = BTreeMap<RunId, u32>;
