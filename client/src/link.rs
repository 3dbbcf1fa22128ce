//! The node's connection to the coordinator: dials out, says hello, calls, and tells why it was
//! refused in a sentence that a person can act on.

use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, anyhow, bail};
use comity_certs::{CertificateSummary, Clock, Role, Seen, check_own, client_config_at, explain};
use comity_federation::{ClientId, Contribution, ModelDigest, PlanDigest, RunId};
use comity_journal::BlobStore;
use comity_proto::chunk::{CHUNK_BYTES, Reassembly};
use comity_proto::convert::update_header;
use comity_proto::limits::{MESSAGE_BYTES_MAX, PROGRESS_TIMEOUT};
use comity_proto::transport::{ConnectError, Dial, connect_over};
use comity_proto::v1::federation_client::FederationClient;
use comity_proto::v1::{self, update_part::Part};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

/// The node's own certificate and what it trusts.
pub(crate) struct Credentials {
    pub(crate) summary: CertificateSummary,
    tls: Arc<rustls::ClientConfig>,
    clock: Clock,
}

impl Credentials {
    /// Reads and checks `certificate.pem`, `key.pem` and `root.pem` in `dir`, at the date of `clock`.
    pub(crate) fn read(dir: &Path, clock: &Clock) -> anyhow::Result<Self> {
        let file = |name: &str| {
            let path = dir.join(name);
            std::fs::read_to_string(&path).with_context(|| {
                format!(
                    "{} cannot be read; ask the operator for the node's certificates",
                    path.display()
                )
            })
        };
        let (certificate, key, root) =
            (file("certificate.pem")?, file("key.pem")?, file("root.pem")?);
        let summary = check_own(&certificate, &key, &root, clock.date())?;
        let tls = client_config_at(&certificate, &key, &root, Arc::new(clock.clone()))?;
        Ok(Self { summary, tls, clock: clock.clone() })
    }

    /// The client that the certificate names.
    pub(crate) fn client_id(&self) -> anyhow::Result<ClientId> {
        match &self.summary.identity.role {
            Role::Client(client) => Ok(client.clone()),
            other => bail!(
                "the certificate is of {other}, not of a client; ask the operator for a client's \
                 certificate (`comity-coordinator certs issue COUNTRY/institution`)"
            ),
        }
    }
}

/// Why a call did not do what it should.
#[derive(Debug)]
pub(crate) enum CallError {
    /// The coordinator understood and refused; trying again does not help.
    Refused(Status),
    /// The connection or the coordinator failed; try again later.
    Lost(String),
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        match status.code() {
            Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Unauthenticated => Self::Refused(status),
            _ => Self::Lost(status.message().to_owned()),
        }
    }
}

/// An open connection on which the coordinator has said hello.
#[derive(Clone)]
pub(crate) struct Link {
    client: FederationClient<Channel>,
    pub(crate) hello: v1::HelloReply,
}

impl Link {
    /// Connects to `url` over `network` and says hello.
    pub(crate) async fn open(
        network: &dyn Dial,
        url: &str,
        credentials: &Credentials,
    ) -> anyhow::Result<Self> {
        let tls = Arc::clone(&credentials.tls);
        let channel = connect_over(network, url, tls).await.map_err(|e| match e {
            ConnectError::Refused { ref source, .. } => anyhow!(explain(
                source,
                &Seen::ByClient {
                    own: Some(&credentials.summary),
                    server: url,
                    now: credentials.clock.date()
                }
            )),
            other => anyhow!(other),
        })?;
        let mut client = FederationClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let hello = client
            .hello(v1::HelloRequest {
                protocol: comity_proto::PROTOCOL,
                software: concat!("comity-client ", env!("CARGO_PKG_VERSION")).to_owned(),
            })
            .await
            .map_err(|status| anyhow!("the coordinator refused: {}", status.message()))?
            .into_inner();
        Ok(Self { client, hello })
    }

    /// The stream of assignments; `open` are the runs that this node believes to be open.
    pub(crate) async fn follow(
        &mut self,
        open: Vec<RunId>,
    ) -> Result<Streaming<v1::Assignment>, CallError> {
        let open_run_ids = open.iter().map(RunId::to_string).collect();
        Ok(self.client.follow(v1::FollowRequest { open_run_ids }).await?.into_inner())
    }

    pub(crate) async fn check_in(
        &mut self,
        run: &RunId,
        plan: PlanDigest,
    ) -> Result<(), CallError> {
        let request =
            v1::CheckInRequest { run_id: run.to_string(), plan_digest: plan.0.to_vec().into() };
        self.client.check_in(request).await?;
        Ok(())
    }

    pub(crate) async fn decline(&mut self, run: &RunId, reason: &str) -> Result<(), CallError> {
        let request = v1::DeclineRequest { run_id: run.to_string(), reason: reason.to_owned() };
        self.client.decline(request).await?;
        Ok(())
    }

    pub(crate) async fn withdraw(
        &mut self,
        run: &RunId,
        round: u32,
        reason: &str,
    ) -> Result<(), CallError> {
        let request =
            v1::WithdrawRequest { run_id: run.to_string(), round, reason: reason.to_owned() };
        self.client.withdraw(request).await?;
        Ok(())
    }

    /// Fetches the model into `blobs`, unless it is there.
    pub(crate) async fn fetch_model(
        &mut self,
        run: &RunId,
        model: ModelDigest,
        bytes: u64,
        blobs: &BlobStore,
    ) -> Result<(), CallError> {
        if blobs.contains(&model.0) {
            return Ok(());
        }
        let lost = |e: &dyn std::fmt::Display| CallError::Lost(e.to_string());
        let request = v1::FetchModelRequest {
            run_id: run.to_string(),
            digest: model.0.to_vec().into(),
            offset: 0,
        };
        let mut chunks = self.client.fetch_model(request).await?.into_inner();
        let mut writer = blobs.writer().map_err(|e| lost(&e))?;
        let mut reassembly = Reassembly::new(bytes);
        loop {
            let next = tokio::time::timeout(PROGRESS_TIMEOUT, chunks.message()).await;
            let Some(chunk) = next.map_err(|_| lost(&"the model's transfer stands still"))?? else {
                break;
            };
            reassembly.accept(&chunk).map_err(|e| lost(&e))?;
            writer.write(&chunk.data).map_err(|e| lost(&e))?;
        }
        reassembly.finish().map_err(|e| lost(&e))?;
        writer.finish_expecting(model.0).map_err(|e| lost(&e))
    }

    /// Sends the stored update; returns whether the coordinator had it already.
    pub(crate) async fn submit(
        &mut self,
        run: &RunId,
        contribution: &Contribution,
        blobs: &BlobStore,
    ) -> Result<bool, CallError> {
        let mut reader = blobs
            .reader(&contribution.update.0)
            .map_err(|e| CallError::Lost(format!("the stored update cannot be read: {e}")))?;
        let header = v1::UpdatePart { part: Some(Part::Header(update_header(run, contribution))) };
        let (sender, receiver) = mpsc::channel(4);
        let feed = tokio::task::spawn_blocking(move || {
            let mut offset = 0;
            let mut next = Some(header);
            while let Some(part) = next {
                if sender.blocking_send(part).is_err() {
                    return Ok(());
                }
                let n = (reader.len() - offset).min(CHUNK_BYTES as u64);
                if n == 0 {
                    return Ok(());
                }
                let mut data = vec![0; n as usize];
                reader.read_exact(&mut data)?;
                let chunk = v1::Chunk { offset, data: data.into() };
                next = Some(v1::UpdatePart { part: Some(Part::Chunk(chunk)) });
                offset += n;
            }
            Ok::<(), std::io::Error>(())
        });
        let reply = self.client.submit_update(ReceiverStream::new(receiver)).await;
        if let Ok(Err(error)) = feed.await {
            return Err(CallError::Lost(format!("the stored update cannot be read: {error}")));
        }
        Ok(reply?.into_inner().already_had_it)
    }
}

/// The URL must be https, so that nobody believes in a connection without TLS.
pub(crate) fn check_url(url: &str) -> anyhow::Result<()> {
    if !url.starts_with("https://") {
        bail!("coordinator = {url:?} is not of the form https://HOST:PORT");
    }
    Ok(())
}
