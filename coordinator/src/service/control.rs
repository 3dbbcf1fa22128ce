//! What operators may ask of the coordinator.

use std::pin::Pin;

use comity_federation::{Command, Plan};
use comity_proto::convert::{client, run_id};
use comity_proto::limits::PLAN_BYTES_MAX;
use comity_proto::v1::control_server::Control;
use comity_proto::v1::{self, export_part::Part};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status};

use super::federation::stream_blob;
use super::members::Inviting;
use super::uploads::Uploads;
use super::{identity, papers, status};
use crate::driver::{DriverError, DriverHandle};
use crate::orders::Orders;

/// The service; cheap to clone.
#[derive(Clone)]
pub(crate) struct ControlService {
    pub(crate) driver: DriverHandle,
    pub(crate) orders: Orders,
    pub(crate) uploads: Uploads,
    pub(crate) inviting: Inviting,
}

type Reply<T> = Result<Response<T>, Status>;
type Sending<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Control for ControlService {
    async fn start_run(&self, request: Request<v1::StartRunRequest>) -> Reply<v1::StartRunReply> {
        let operator = identity::launcher(&request)?;
        if request.get_ref().plan_toml.len() > PLAN_BYTES_MAX {
            let why = format!("a plan has at most {PLAN_BYTES_MAX} bytes");
            return Err(Status::invalid_argument(why));
        }
        let plan = Plan::from_toml(&request.get_ref().plan_toml)
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        let launch = self.orders.check(&plan, &operator, request.get_ref());
        let launch = launch.map_err(|refusal| status(refusal.into()))?;
        let (run, digest) = self.driver.launch(plan, launch).await.map_err(status)?;
        Ok(Response::new(v1::StartRunReply {
            run_id: run.to_string(),
            plan_digest: digest.0.to_vec().into(),
        }))
    }

    async fn list_runs(&self, request: Request<v1::ListRunsRequest>) -> Reply<v1::ListRunsReply> {
        identity::viewer(&request)?;
        let reports = self.driver.reports().await.map_err(status)?;
        Ok(Response::new(v1::ListRunsReply {
            runs: reports.into_iter().map(v1::RunReport::from).collect(),
        }))
    }

    async fn show_run(&self, request: Request<v1::ShowRunRequest>) -> Reply<v1::RunReport> {
        identity::viewer(&request)?;
        let run = run_id(&request.get_ref().run_id)?;
        Ok(Response::new(self.driver.report(run).await.map_err(status)?.into()))
    }

    type WatchRunStream = Sending<v1::RunReport>;

    async fn watch_run(
        &self,
        request: Request<v1::WatchRunRequest>,
    ) -> Reply<Self::WatchRunStream> {
        identity::viewer(&request)?;
        let run = run_id(&request.get_ref().run_id)?;
        let driver = self.driver.clone();
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut changes = driver.changes();
            let mut last = None;
            loop {
                changes.mark_unchanged();
                let report = match driver.report(run.clone()).await {
                    Ok(report) => report,
                    Err(error) => {
                        let _ = sender.send(Err(status(error))).await;
                        return;
                    }
                };
                let ended = report.status.is_terminal();
                if last.as_ref() != Some(&report) {
                    last = Some(report.clone());
                    if sender.send(Ok(report.into())).await.is_err() {
                        return;
                    }
                }
                if ended {
                    return;
                }
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return },
                    () = sender.closed() => return,
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn abort_run(&self, request: Request<v1::AbortRunRequest>) -> Reply<v1::AbortRunReply> {
        let operator = identity::launcher(&request)?;
        let request = request.into_inner();
        let run = run_id(&request.run_id)?;
        let reason = match request.reason.trim() {
            "" => format!("aborted by operator {operator}"),
            reason => format!("aborted by operator {operator}: {reason}"),
        };
        self.driver.order(run, Command::Abort { reason }, operator).await.map_err(status)?;
        Ok(Response::new(v1::AbortRunReply {}))
    }

    async fn exclude_client(
        &self,
        request: Request<v1::ExcludeClientRequest>,
    ) -> Reply<v1::ExcludeClientReply> {
        let operator = identity::launcher(&request)?;
        let request = request.into_inner();
        let reason = match request.reason.trim() {
            "" => return Err(Status::invalid_argument("an exclusion needs a reason")),
            reason => format!("{reason} (operator {operator})"),
        };
        let command = Command::Exclude { client: client(&request.client)?, reason };
        let run = run_id(&request.run_id)?;
        self.driver.order(run, command, operator).await.map_err(status)?;
        Ok(Response::new(v1::ExcludeClientReply {}))
    }

    async fn readmit_client(
        &self,
        request: Request<v1::ReadmitClientRequest>,
    ) -> Reply<v1::ReadmitClientReply> {
        let operator = identity::launcher(&request)?;
        let request = request.into_inner();
        let reason = match request.reason.trim() {
            "" => return Err(Status::invalid_argument("taking a client back needs a reason")),
            reason => reason.to_owned(),
        };
        let command = Command::Readmit { client: client(&request.client)?, reason };
        let run = run_id(&request.run_id)?;
        self.driver.order(run, command, operator).await.map_err(status)?;
        Ok(Response::new(v1::ReadmitClientReply {}))
    }

    type ExportModelStream = Sending<v1::ExportPart>;

    async fn export_model(
        &self,
        request: Request<v1::ExportModelRequest>,
    ) -> Reply<Self::ExportModelStream> {
        identity::launcher(&request)?;
        let request = request.into_inner();
        let run = run_id(&request.run_id)?;
        let report = self.driver.report(run.clone()).await.map_err(status)?;
        let (round, model) = match request.round {
            None => {
                let last = report.history.iter().rfind(|r| r.model.is_some());
                (last.map_or(0, |last| last.round), report.model)
            }
            Some(0) => {
                let start = report.history.first().map_or(report.model, |first| first.base);
                (0, start)
            }
            Some(round) => {
                let record = report.history.iter().find(|r| r.round == round);
                let model = record.and_then(|r| r.model).ok_or_else(|| {
                    Status::not_found(format!("round {round} of run {run} has no model yet"))
                })?;
                (round, model)
            }
        };
        if !self.driver.blobs().contains(&model.0) {
            return Err(Status::not_found(format!(
                "the model of round {round} of run {run} is no longer on the coordinator's disk: \
                 [storage] in coordinator.toml says how many models are kept; the latest can be \
                 exported without --round"
            )));
        }
        let plan = self.driver.plan(run.clone()).await.map_err(status)?;
        let manifest = plan.manifest().map_err(|e| status(DriverError::Plan(e)))?;
        let header = v1::ExportHeader {
            run_id: run.to_string(),
            round,
            model_digest: model.0.to_vec().into(),
            n_parameters: manifest.n_parameters() as u64,
            tensors: manifest
                .tensors
                .iter()
                .map(|tensor| v1::TensorSpec {
                    name: tensor.name.clone(),
                    shape: tensor.shape.iter().map(|side| *side as u64).collect(),
                })
                .collect(),
        };
        let header = v1::ExportPart { part: Some(Part::Header(header)) };
        let (chunks, _) = stream_blob(&self.driver, model.0, 0).await?;
        let parts = tokio_stream::once(Ok(header)).chain(
            chunks
                .map(|chunk| chunk.map(|chunk| v1::ExportPart { part: Some(Part::Chunk(chunk)) })),
        );
        Ok(Response::new(Box::pin(parts)))
    }

    type ExportRecordsStream = Sending<v1::RecordExport>;

    async fn export_records(
        &self,
        request: Request<v1::ExportRecordsRequest>,
    ) -> Reply<Self::ExportRecordsStream> {
        identity::launcher(&request)?;
        let parts = papers::export(&self.driver, request.into_inner()).await?;
        Ok(Response::new(Box::pin(tokio_stream::iter(parts))))
    }

    async fn certify_model(
        &self,
        request: Request<v1::CertifyModelRequest>,
    ) -> Reply<v1::CertifyModelReply> {
        let operator = identity::launcher(&request)?;
        papers::certify(&self.driver, request.into_inner(), operator).await.map(Response::new)
    }

    async fn invite(&self, request: Request<v1::InviteRequest>) -> Reply<v1::InviteReply> {
        self.invite_member(request).await.map(Response::new)
    }

    async fn list_members(
        &self,
        request: Request<v1::ListMembersRequest>,
    ) -> Reply<v1::ListMembersReply> {
        self.members_now(&request).map(Response::new)
    }

    async fn decide_join(
        &self,
        request: Request<v1::DecideJoinRequest>,
    ) -> Reply<v1::DecideJoinReply> {
        self.decide(request).await.map(Response::new)
    }

    async fn revoke(&self, request: Request<v1::RevokeRequest>) -> Reply<v1::RevokeReply> {
        self.revoke_member(request).await.map(Response::new)
    }

    async fn set_role(&self, request: Request<v1::SetRoleRequest>) -> Reply<v1::SetRoleReply> {
        self.give_role(request).await.map(Response::new)
    }
}
