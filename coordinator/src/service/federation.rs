//! What clients may ask of the coordinator.

use std::collections::BTreeSet;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use comity_certs::Clock;
use comity_federation::{
    Admission, Aggregation, ClientId, Contribution, Event, ModelDigest, RunId, Task,
};
use comity_proto::chunk::{CHUNK_BYTES, Reassembly};
use comity_proto::convert::{digest, run_id};
use comity_proto::limits::{
    DOWNLOADS_EACH_MAX, FOLLOWS_EACH_MAX, OPEN_RUNS_MAX, PROGRESS_TIMEOUT, QUEUED_ASSIGNMENTS_MAX,
    QUEUED_CHUNKS_MAX,
};
use comity_proto::v1::federation_server::Federation;
use comity_proto::v1::{self, assignment::What, update_part::Part};
use comity_proto::{Taking, status_of_rejection};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::debug;

use super::crowd::Crowd;
use super::uploads::Uploads;
use super::{blocking, identity, papers, status, status_of_blob};
use crate::aggregate;
use crate::driver::{Admitted, Assignment, DriverError, DriverHandle};
use crate::registry::MemberName;

/// How often a quiet stream checks whether the coordinator is stopping.
const NEWS_PAUSE: Duration = Duration::from_secs(30);

/// The service; cheap to clone.
#[derive(Clone)]
pub(crate) struct FederationService {
    driver: DriverHandle,
    federation: String,
    clock: Clock,
    uploads: Uploads,
    follows: Crowd,
    downloads: Crowd,
}

impl FederationService {
    /// What clients may ask of `driver`'s coordinator in `federation`.
    pub(crate) fn new(
        driver: DriverHandle,
        federation: String,
        clock: Clock,
        uploads: Uploads,
    ) -> Self {
        let (follows, downloads) = (Crowd::new(FOLLOWS_EACH_MAX), Crowd::new(DOWNLOADS_EACH_MAX));
        Self { driver, federation, clock, uploads, follows, downloads }
    }

    /// Takes an update, chunk by chunk, and gives it to its run.
    async fn receive(
        self,
        client: ClientId,
        mut parts: Streaming<v1::UpdatePart>,
        taking: Taking,
    ) -> Result<v1::SubmitReply, Status> {
        let Some(v1::UpdatePart { part: Some(Part::Header(header)) }) = next(&mut parts).await?
        else {
            return Err(Status::invalid_argument("an update begins with its header"));
        };
        let (run, contribution) = announced(header)?;
        let total = contribution.delta_bytes();
        let admitted = self.admit(&run, &client, &contribution).await?;
        if admitted.admission == Admission::AlreadyHere {
            return papers::submitted(&self.driver, run, client, &contribution, true).await;
        }
        let mut part = next(&mut parts).await?;
        let from = match &part {
            Some(v1::UpdatePart { part: Some(Part::Chunk(first)) }) => Some(first.offset),
            _ => None,
        };
        let turn = self.uploads.turn(&client).await?;
        let mut upload =
            self.uploads.open(turn, &run, &client, &contribution, from, taking).await?;
        let mut reassembly = Reassembly::new(upload.offset, total);
        let mut changes = self.driver.changes();
        while let Some(got) = part {
            let Some(Part::Chunk(chunk)) = got.part else {
                return Err(Status::invalid_argument("an update has one header, then chunks"));
            };
            reassembly.accept(&chunk)?;
            upload.write(chunk).await?;
            let arrives = next(&mut parts);
            tokio::pin!(arrives);
            part = loop {
                tokio::select! {
                    part = &mut arrives => break part?,
                    refusal = upload.taken_over() => return Err(refusal),
                    // A round that closed meanwhile wants no more bytes.
                    changed = changes.changed() => {
                        changed.map_err(|_| status(DriverError::Stopping))?;
                        self.admit(&run, &client, &contribution).await?;
                    }
                }
            };
        }
        reassembly.finish()?;
        upload.finish(contribution.update.0).await?;
        debug!(%run, %client, bytes = total, "update stored");
        self.check_norm(&run, &client, &contribution, admitted.aggregation).await?;
        if let Err(gone) = self.driver.members().now().still_here(&client.clone().into()) {
            self.driver.discard(contribution.update).await;
            return Err(gone.into());
        }
        let event = Event::Submitted { client: client.clone(), contribution: contribution.clone() };
        let changed = self.driver.step(run.clone(), event).await.map_err(status)?;
        papers::submitted(&self.driver, run, client, &contribution, !changed).await
    }

    /// Looks at a stored update's norm, where the plan bounds it; one that passes the bound is on record.
    async fn check_norm(
        &self,
        run: &RunId,
        client: &ClientId,
        contribution: &Contribution,
        aggregation: Aggregation,
    ) -> Result<(), Status> {
        if aggregation.update_norm_max_l2.is_none() || contribution.round == 0 {
            return Ok(());
        }
        let blobs = Arc::clone(self.driver.blobs());
        let stored = contribution.clone();
        let norm = tokio::task::spawn_blocking(move || aggregate::norm_steps(&blobs, &stored))
            .await
            .map_err(|e| Status::internal(e.to_string()))?
            .map_err(|e| Status::internal(format!("the update cannot be read: {e:#}")))?;
        let Err(refusal) = aggregation.check_norm(norm) else { return Ok(()) };
        self.driver.discard(contribution.update).await;
        let (client, round) = (client.clone(), contribution.round);
        let reason = refusal.to_string();
        self.driver
            .step(run.clone(), Event::Refused { client, round, reason })
            .await
            .map_err(status)?;
        Err(status_of_rejection(&refusal))
    }

    async fn admit(
        &self,
        run: &RunId,
        client: &ClientId,
        contribution: &Contribution,
    ) -> Result<Admitted, Status> {
        // Whoever was revoked since the call began sends nothing more, whatever its runs say.
        let member = MemberName::Client(client.clone());
        self.driver.members().now().still_here(&member)?;
        let (run, client) = (run.clone(), client.clone());
        self.driver.admit(run, client, contribution.clone()).await.map_err(status)
    }
}

type Reply<T> = Result<Response<T>, Status>;
type Sending<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Federation for FederationService {
    async fn hello(&self, request: Request<v1::HelloRequest>) -> Reply<v1::HelloReply> {
        let you = identity::caller(&request)?.identity.role.to_string();
        let protocol = comity_proto::PROTOCOL;
        if request.get_ref().protocol != protocol {
            return Err(Status::failed_precondition(format!(
                "the client speaks protocol {}, the coordinator {protocol}; update the older one",
                request.get_ref().protocol
            )));
        }
        Ok(Response::new(v1::HelloReply {
            protocol,
            software: concat!("comity-coordinator ", env!("CARGO_PKG_VERSION")).to_owned(),
            federation: self.federation.clone(),
            you,
            now_ms: self.clock.now().0,
        }))
    }

    type FollowStream = Sending<v1::Assignment>;

    async fn follow(&self, request: Request<v1::FollowRequest>) -> Reply<Self::FollowStream> {
        let client = identity::client(&request)?;
        // A connection that has grown old is left by its client when this stream ends.
        let ends = identity::connection(&request)?.ages;
        let request = request.into_inner();
        let mut held = papers::records_held(&request)?;
        let open = request.open_run_ids;
        if open.len() > OPEN_RUNS_MAX {
            return Err(Status::invalid_argument(format!("more than {OPEN_RUNS_MAX} open runs")));
        }
        let mut open = open.iter().map(|id| run_id(id)).collect::<Result<BTreeSet<RunId>, _>>()?;
        let driver = self.driver.clone();
        let (sender, receiver) = mpsc::channel(QUEUED_ASSIGNMENTS_MAX);
        let following = driver.presence().follow(client.clone());
        let who = client.clone();
        let task = tokio::spawn(async move {
            let _following = following;
            let mut changes = driver.changes();
            let mut sent = BTreeSet::new();
            loop {
                changes.mark_unchanged();
                let asked: Vec<RunId> = open.iter().cloned().collect();
                let following = driver.assignments(client.clone(), asked, held.clone());
                let assignments = match following.await {
                    Ok(assignments) => assignments,
                    Err(error) => {
                        let _ = sender.send(Err(status(error))).await;
                        return;
                    }
                };
                for assignment in assignments {
                    let (run, key) = key(&assignment);
                    if let Assignment::Record { record, .. } = &assignment {
                        held.insert(run.clone(), record.record.round);
                    }
                    if matches!(assignment, Assignment::Ended { .. }) {
                        open.remove(&run);
                    } else {
                        open.insert(run);
                    }
                    if sent.insert(key) {
                        let message = match message(assignment, &driver) {
                            Ok(message) => message,
                            Err(error) => {
                                let _ = sender.send(Err(error)).await;
                                return;
                            }
                        };
                        if sender.send(Ok(message)).await.is_err() {
                            return;
                        }
                    }
                }
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return },
                    () = sender.closed() => return,
                    () = tokio::time::sleep(NEWS_PAUSE) => {}
                    () = tokio::time::sleep_until(ends) => return,
                }
            }
        });
        self.follows.enter(&who, task.abort_handle());
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn check_in(&self, request: Request<v1::CheckInRequest>) -> Reply<v1::CheckInReply> {
        let client = identity::client(&request)?;
        let request = request.into_inner();
        let plan = digest("plan_digest", &request.plan_digest)?;
        let event = Event::CheckedIn { client, plan: comity_federation::PlanDigest(plan) };
        self.driver.step(run_id(&request.run_id)?, event).await.map_err(status)?;
        Ok(Response::new(v1::CheckInReply {}))
    }

    async fn decline(&self, request: Request<v1::DeclineRequest>) -> Reply<v1::DeclineReply> {
        let client = identity::client(&request)?;
        let request = request.into_inner();
        let event = Event::Declined { client, reason: request.reason };
        self.driver.step(run_id(&request.run_id)?, event).await.map_err(status)?;
        Ok(Response::new(v1::DeclineReply {}))
    }

    async fn withdraw(&self, request: Request<v1::WithdrawRequest>) -> Reply<v1::WithdrawReply> {
        let client = identity::client(&request)?;
        let request = request.into_inner();
        let event = Event::Withdrew { client, round: request.round, reason: request.reason };
        self.driver.step(run_id(&request.run_id)?, event).await.map_err(status)?;
        Ok(Response::new(v1::WithdrawReply {}))
    }

    type FetchModelStream = Sending<v1::Chunk>;

    async fn fetch_model(
        &self,
        request: Request<v1::FetchModelRequest>,
    ) -> Reply<Self::FetchModelStream> {
        let client = identity::client(&request)?;
        let request = request.into_inner();
        let run = run_id(&request.run_id)?;
        let wanted = digest("digest", &request.digest)?;
        let report = self.driver.report(run).await.map_err(status)?;
        // Only models of a run that names the client, so that a digest opens no other blob.
        let named = report.clients.iter().any(|c| c.client == client);
        let known =
            report.model.0 == wanted || report.history.iter().any(|round| round.base.0 == wanted);
        if !named || !known {
            return Err(Status::not_found(format!(
                "run {} has no model {} for {client}",
                report.run,
                ModelDigest(wanted)
            )));
        }
        let (chunks, task) = stream_blob(&self.driver, wanted, request.offset).await?;
        self.downloads.enter(&client, task);
        Ok(Response::new(chunks))
    }

    async fn upload_offset(
        &self,
        request: Request<v1::UpdateHeader>,
    ) -> Reply<v1::UploadOffsetReply> {
        let client = identity::client(&request)?;
        let (run, contribution) = announced(request.into_inner())?;
        let admitted = self.admit(&run, &client, &contribution).await?;
        let already_had_it = admitted.admission == Admission::AlreadyHere;
        let turn = self.uploads.turn(&client).await?;
        let offset = match already_had_it {
            true => contribution.delta_bytes(),
            false => self.uploads.offset(&turn, &run, &client, &contribution).await?,
        };
        Ok(Response::new(v1::UploadOffsetReply { offset, already_had_it }))
    }

    async fn submit_update(
        &self,
        request: Request<Streaming<v1::UpdatePart>>,
    ) -> Reply<v1::SubmitReply> {
        let client = identity::client(&request)?;
        let taking = identity::connection(&request)?.take();
        let service = self.clone();
        // A task of its own: what is in memory when the connection breaks is still taken, and need not be
        // sent again.
        let received = tokio::spawn(service.receive(client, request.into_inner(), taking));
        received.await.map_err(|e| Status::internal(e.to_string()))?.map(Response::new)
    }

    async fn countersign(
        &self,
        request: Request<v1::CountersignRequest>,
    ) -> Reply<v1::CountersignReply> {
        let client = identity::client(&request)?;
        papers::countersign(&self.driver, client, request.into_inner()).await
    }
}

/// The next message; an upload that makes no progress is given up, however slow the link.
async fn next<T>(stream: &mut Streaming<T>) -> Result<Option<T>, Status> {
    tokio::time::timeout(PROGRESS_TIMEOUT, stream.message()).await.map_err(|_| {
        Status::deadline_exceeded(format!(
            "no bytes for {} s; send the update again",
            PROGRESS_TIMEOUT.as_secs()
        ))
    })?
}

/// The blob's chunks from `offset` on, read as the peer takes them; and the task that reads, which ends when
/// the peer takes nothing for long.
pub(super) async fn stream_blob(
    driver: &DriverHandle,
    wanted: [u8; 32],
    offset: u64,
) -> Result<(Sending<v1::Chunk>, AbortHandle), Status> {
    let blobs = Arc::clone(driver.blobs());
    let mut reader = blocking(move || blobs.reader_of_whole(&wanted)).await?;
    let total = reader.len();
    if offset > total {
        return Err(Status::out_of_range(format!("offset {offset} of {total} bytes")));
    }
    reader.seek(SeekFrom::Start(offset)).map_err(|e| Status::internal(e.to_string()))?;
    let (sender, receiver) = mpsc::channel(QUEUED_CHUNKS_MAX);
    let task = tokio::spawn(async move {
        let mut at = offset;
        while at < total {
            // A peer that takes nothing holds neither a thread nor a file for longer than this.
            let place = tokio::time::timeout(PROGRESS_TIMEOUT, sender.reserve()).await;
            let Ok(Ok(place)) = place else { return };
            let n = (total - at).min(CHUNK_BYTES as u64);
            let read = tokio::task::spawn_blocking(move || {
                let mut data = vec![0; n as usize];
                reader.read_exact(&mut data).map(|()| (reader, data))
            });
            match read.await {
                Ok(Ok((back, data))) => {
                    reader = back;
                    place.send(Ok(v1::Chunk { offset: at, data: data.into() }));
                }
                Ok(Err(error)) => return place.send(Err(Status::internal(error.to_string()))),
                Err(error) => return place.send(Err(Status::internal(error.to_string()))),
            }
            at += n;
        }
    });
    Ok((Box::pin(ReceiverStream::new(receiver)), task.abort_handle()))
}

/// An update's run and contribution, as its header announces them.
fn announced(header: v1::UpdateHeader) -> Result<(RunId, Contribution), Status> {
    let run = run_id(&header.run_id)?;
    let total = header.total_bytes;
    let contribution = Contribution::try_from(header)?;
    if total != contribution.delta_bytes() {
        return Err(Status::invalid_argument(format!(
            "update header: {total} bytes for {} parameters as {:?}",
            contribution.n_parameters, contribution.encoding
        )));
    }
    Ok((run, contribution))
}

/// What tells one assignment from another on a stream.
fn key(assignment: &Assignment) -> (RunId, String) {
    match assignment {
        Assignment::Offer { run, .. } => (run.clone(), format!("{run} offer")),
        Assignment::Record { run, record } => {
            (run.clone(), format!("{run} record {}", record.record.round))
        }
        Assignment::Train(Task { run, round, .. }) => (run.clone(), format!("{run} train {round}")),
        Assignment::Ended { report } => (report.run.clone(), format!("{} ended", report.run)),
    }
}

fn message(assignment: Assignment, driver: &DriverHandle) -> Result<v1::Assignment, Status> {
    let (run, what) = match assignment {
        Assignment::Offer { run, plan, digest, closes, launch } => {
            let launch = launch.as_deref();
            let offer = v1::Offer {
                plan_json: plan.to_json().into(),
                plan_digest: digest.0.to_vec().into(),
                deadline_ms: closes.map_or(0, |t| t.0),
                order_json: launch.map(|l| l.order.order.to_json().into()).unwrap_or_default(),
                order_signature: launch.map(|l| (&l.order.signature).into()),
                consents: launch
                    .map(|l| l.consents.iter().map(Into::into).collect())
                    .unwrap_or_default(),
            };
            (run, What::Offer(offer))
        }
        Assignment::Record { run, record } => (run, What::Record(papers::shown(&record))),
        Assignment::Train(Task { run, round, plan, model, closes }) => {
            let model_bytes =
                driver.blobs().reader(&model.0).map_err(|e| status_of_blob(&e))?.len();
            let train = v1::Train {
                round,
                plan_digest: plan.0.to_vec().into(),
                model_digest: model.0.to_vec().into(),
                model_bytes,
                closes_ms: closes.0,
            };
            (run, What::Train(train))
        }
        Assignment::Ended { report } => (
            report.run,
            What::Ended(v1::Ended {
                status: report.status.as_str().to_owned(),
                reason: report.reason.unwrap_or_default(),
                model_digest: report.model.0.to_vec().into(),
                rounds: report.round,
            }),
        ),
    };
    Ok(v1::Assignment { run_id: run.to_string(), what: Some(what) })
}
