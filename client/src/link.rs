//! The node's connection to the coordinator: dials out, says hello, calls, and tells why it was
//! refused in a sentence that a person can act on.

use std::fmt;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, anyhow, bail};
use comity_certs::{
    CertError, CertificateSummary, Clock, Role, Seen, Signer, Verifier, check_own,
    client_config_at, explain, read_key_pem,
};
use comity_federation::{
    ClientId, Contribution, ModelDigest, PlanDigest, RecordDigest, RunId, Signature, SignedReceipt,
};
use comity_journal::{BlobError, BlobStore, BlobWriter};
use comity_proto::chunk::{CHUNK_BYTES, Reassembly};
use comity_proto::convert::{signed_receipt, update_header};
use comity_proto::limits::{BACKOFF, MESSAGE_BYTES_MAX, PROGRESS_TIMEOUT, QUEUED_CHUNKS_MAX};
use comity_proto::transport::{ConnectError, Dial, connect_over, fraction};
use comity_proto::v1::federation_client::FederationClient;
use comity_proto::v1::{self, update_part::Part};
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::CompressionEncoding;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use tracing::{info, warn};

use crate::egress::{About, Egress, EgressError, Kind};

/// The node's own certificate and what it trusts.
pub(crate) struct Credentials {
    pub(crate) summary: CertificateSummary,
    /// Signs records.
    pub(crate) signer: Signer,
    /// Checks what others signed.
    pub(crate) verifier: Verifier,
    /// Why the certificate is not accepted now, though it is the node's own: its time. The next one may come.
    pub(crate) dated: Option<CertError>,
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
                    "{} cannot be read; run `comity-client join` with the operator's invitation",
                    path.display()
                )
            })
        };
        let (certificate, root) = (file("certificate.pem")?, file("root.pem")?);
        let key = read_key_pem(&dir.join("key.pem"))?;
        let files =
            || format!("certificate.pem, key.pem and root.pem in {} cannot be used", dir.display());
        let (summary, dated) = match check_own(&certificate, &key, &root, clock.date()) {
            Ok(summary) => (summary, None),
            Err(dated @ (CertError::Expired { .. } | CertError::NotYetValid { .. })) => {
                (CertificateSummary::of_pem(&certificate).with_context(files)?, Some(dated))
            }
            Err(error) => return Err(error).with_context(files),
        };
        let tls = client_config_at(&certificate, &key, &root, Arc::new(clock.clone()))?;
        let signer = Signer::of_pem(&certificate, &key).with_context(files)?;
        let verifier = Verifier::new(&summary.identity.federation, &root)?;
        Ok(Self { summary, dated, signer, verifier, tls, clock: clock.clone() })
    }

    /// The client that the certificate names.
    pub(crate) fn client_id(&self) -> anyhow::Result<ClientId> {
        match &self.summary.identity.role {
            Role::Client(client) => Ok(client.clone()),
            other => bail!(
                "the certificate is of {other}, not of a client; ask the operator for an invitation \
                 of this institution"
            ),
        }
    }
}

/// The coordinator has revoked this certificate; TLS tells that, and not why.
#[derive(Debug)]
pub(crate) struct Revoked(String);

impl fmt::Display for Revoked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Revoked {}

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
    /// For transfers: models and updates are sent as they are.
    client: FederationClient<Channel>,
    /// For everything else.
    metadata: FederationClient<Channel>,
    /// Nothing is sent that did not pass it.
    egress: Egress,
    pub(crate) hello: v1::HelloReply,
}

impl From<EgressError> for CallError {
    fn from(error: EgressError) -> Self {
        match error {
            EgressError::Journal(_) => Self::Lost(error.to_string()),
            EgressError::Ceiling { .. } => {
                Self::Refused(Status::failed_precondition(error.to_string()))
            }
        }
    }
}

impl Link {
    /// Connects to `url` over `network` and says hello; with `compress`, plans and assignments come
    /// compressed, no larger than others once they are unpacked.
    pub(crate) async fn open(
        network: &dyn Dial,
        url: &str,
        credentials: &Credentials,
        compress: bool,
        egress: Egress,
    ) -> anyhow::Result<Self> {
        let tls = Arc::clone(&credentials.tls);
        let channel = connect_over(network, url, tls).await.map_err(|e| match e {
            ConnectError::Refused { ref source, .. } => {
                let own = Some(&credentials.summary);
                let seen = Seen::ByClient { own, server: url, now: credentials.clock.date() };
                let why = explain(source, &seen);
                match source {
                    rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRevoked) => {
                        anyhow!(Revoked(why))
                    }
                    _ => anyhow!(why),
                }
            }
            other => anyhow!(other),
        })?;
        let client = FederationClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let mut metadata = match compress {
            true => client.clone().accept_compressed(CompressionEncoding::Zstd),
            false => client.clone(),
        };
        let hello = v1::HelloRequest {
            protocol: comity_proto::PROTOCOL,
            software: concat!("comity-client ", env!("CARGO_PKG_VERSION")).to_owned(),
        };
        let hello = egress.message(Kind::Hello, About::default(), hello)?;
        let hello = metadata
            .hello(hello.into_message())
            .await
            .map_err(|status| anyhow!("the coordinator refused: {}", status.message()))?
            .into_inner();
        Ok(Self { client, metadata, egress, hello })
    }

    /// The stream of assignments; `open` are the runs that this node believes to be open, each with the round of
    /// the latest record that it holds.
    pub(crate) async fn follow(
        &mut self,
        open: Vec<(RunId, Option<u32>)>,
    ) -> Result<Streaming<v1::Assignment>, CallError> {
        let open_run_ids = open.iter().map(|(run, _)| run.to_string()).collect();
        let records_held = open
            .iter()
            .filter_map(|(run, round)| {
                round.map(|round| v1::RecordHeld { run_id: run.to_string(), round })
            })
            .collect();
        let request = v1::FollowRequest { open_run_ids, records_held };
        let request = self.egress.message(Kind::Follow, About::default(), request)?;
        Ok(self.metadata.follow(request.into_message()).await?.into_inner())
    }

    pub(crate) async fn check_in(
        &mut self,
        run: &RunId,
        plan: PlanDigest,
    ) -> Result<(), CallError> {
        let request =
            v1::CheckInRequest { run_id: run.to_string(), plan_digest: plan.0.to_vec().into() };
        let about = About { plan: Some(plan), ..About::run(run) };
        let request = self.egress.message(Kind::CheckIn, about, request)?;
        self.metadata.check_in(request.into_message()).await?;
        Ok(())
    }

    pub(crate) async fn decline(&mut self, run: &RunId, reason: &str) -> Result<(), CallError> {
        let request = v1::DeclineRequest { run_id: run.to_string(), reason: reason.to_owned() };
        let request = self.egress.message(Kind::Decline, About::run(run), request)?;
        self.metadata.decline(request.into_message()).await?;
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
        let about = About { round: Some(round), ..About::run(run) };
        let request = self.egress.message(Kind::Withdraw, about, request)?;
        self.metadata.withdraw(request.into_message()).await?;
        Ok(())
    }

    /// Hands over this node's signature under a record.
    pub(crate) async fn countersign(
        &mut self,
        run: &RunId,
        round: u32,
        digest: RecordDigest,
        signature: &Signature,
    ) -> Result<(), CallError> {
        let request = v1::CountersignRequest {
            run_id: run.to_string(),
            round,
            record_digest: digest.0.to_vec().into(),
            signature: Some(signature.into()),
        };
        let about = About { round: Some(round), ..About::run(run) };
        let request = self.egress.message(Kind::Countersign, about, request)?;
        self.metadata.countersign(request.into_message()).await?;
        Ok(())
    }

    /// Fetches the model into `blobs` unless it is there, from where an earlier attempt stopped.
    ///
    /// `turn` is held while the staged part is written: by one attempt at a time.
    pub(crate) async fn fetch_model(
        &mut self,
        run: &RunId,
        model: ModelDigest,
        bytes: u64,
        blobs: &Arc<BlobStore>,
        turn: &Arc<Mutex<()>>,
    ) -> Result<(), CallError> {
        let mut n_wrong = 0;
        loop {
            let guard = Arc::clone(turn).lock_owned().await;
            let store = Arc::clone(blobs);
            let Some(writer) = disk(move || begin(&store, model, bytes)).await? else {
                return Ok(());
            };
            let Staged { writer, guard: _guard } =
                self.receive(run, model, bytes, writer, guard).await?;
            match disk(move || Ok(writer.finish_expecting(model.0))).await? {
                Ok(()) => return Ok(()),
                // Nothing of it stays, so the second attempt is from the first byte on.
                Err(error @ BlobError::DigestMismatch { .. }) if n_wrong == 0 => {
                    n_wrong += 1;
                    warn!(%run, %error, "model fetched again");
                }
                Err(error @ BlobError::DigestMismatch { .. }) => {
                    return Err(CallError::Refused(Status::data_loss(format!(
                        "the coordinator's model is not the one it announces: {error}"
                    ))));
                }
                Err(error) => return Err(lost(&error)),
            }
        }
    }

    /// Takes the chunks that `writer` lacks; what has arrived stays staged if this is given up.
    async fn receive(
        &mut self,
        run: &RunId,
        model: ModelDigest,
        bytes: u64,
        writer: BlobWriter,
        guard: OwnedMutexGuard<()>,
    ) -> Result<Staged, CallError> {
        let offset = writer.len();
        if offset > 0 {
            info!(%run, offset, "model resumed");
        }
        let request = v1::FetchModelRequest {
            run_id: run.to_string(),
            digest: model.0.to_vec().into(),
            offset,
        };
        let request = self.egress.message(Kind::FetchModel, About::run(run), request)?;
        let mut chunks = self.client.fetch_model(request.into_message()).await?.into_inner();
        let mut reassembly = Reassembly::new(offset, bytes);
        let (sender, arriving) = mpsc::channel(QUEUED_CHUNKS_MAX);
        let stored = tokio::spawn(store(Staged { writer, guard }, arriving));
        let received = async {
            loop {
                let next = tokio::time::timeout(PROGRESS_TIMEOUT, chunks.message()).await;
                let Some(chunk) =
                    next.map_err(|_| lost(&"the model's transfer stands still"))??
                else {
                    return reassembly.finish().map_err(|e| lost(&e));
                };
                reassembly.accept(&chunk).map_err(|e| lost(&e))?;
                if sender.send(chunk).await.is_err() {
                    // The disk failed, as is told below.
                    return Ok(());
                }
            }
        }
        .await;
        drop(sender);
        let staged = stored.await.map_err(|e| lost(&e))??;
        received.map(|()| staged)
    }

    /// Sends the stored update, from where the coordinator's part of it ends; a coordinator that has no
    /// place for it is asked again.
    pub(crate) async fn submit(
        &mut self,
        run: &RunId,
        contribution: &Contribution,
        blobs: &BlobStore,
    ) -> Result<Option<SignedReceipt>, CallError> {
        let (mut pause, mut n_again) = (BACKOFF.0, 0);
        loop {
            let status = match self.send(run, contribution, blobs).await? {
                Ok(reply) => return signed_receipt(reply).map_err(|error| lost(&error)),
                Err(status) => status,
            };
            match status.code() {
                Code::ResourceExhausted => {
                    info!(%run, reason = status.message(), "update not taken yet");
                    tokio::time::sleep(
                        pause.mul_f64(0.5 + fraction(&(pause, contribution.update.0)) / 2.0),
                    )
                    .await;
                    pause = (pause * 2).min(BACKOFF.1);
                }
                // An upload on an older connection had the turn, or the bytes were not those of the
                // digest: at once, but once.
                Code::Aborted | Code::DataLoss if n_again == 0 => n_again += 1,
                _ => return Err(status.into()),
            }
        }
    }

    /// One attempt; the outer error is the node's own disk.
    async fn send(
        &mut self,
        run: &RunId,
        contribution: &Contribution,
        blobs: &BlobStore,
    ) -> Result<Result<v1::SubmitReply, Status>, CallError> {
        let unreadable = |e: &dyn fmt::Display| {
            CallError::Lost(format!("the stored update cannot be read: {e}"))
        };
        let header = update_header(run, contribution);
        // What one chunk holds is sent whole sooner than it is asked where to go on.
        let whole = contribution.delta_bytes() <= CHUNK_BYTES as u64;
        let asked = match whole {
            true => Ok(None),
            false => {
                let plan = Some(contribution.plan);
                let about = About { plan, round: Some(contribution.round), run: Some(run) };
                let asking = self.egress.message(Kind::UploadOffset, about, header.clone())?;
                self.metadata.upload_offset(asking.into_message()).await.map(Some)
            }
        };
        let from = match asked.map(|reply| reply.map(tonic::Response::into_inner)) {
            Ok(None) => 0,
            // Of what had arrived before, the header alone is answered with the receipt.
            Ok(Some(reply)) => reply.offset,
            // A coordinator of the version before takes an update from its first byte only.
            Err(status) if status.code() == Code::Unimplemented => 0,
            Err(status) => return Ok(Err(status)),
        };
        let mut reader = blobs.reader(&contribution.update.0).map_err(|e| unreadable(&e))?;
        let mut offset = from.min(reader.len());
        if offset > 0 {
            info!(%run, round = contribution.round, offset, "update resumed");
            reader.seek(SeekFrom::Start(offset)).map_err(|e| unreadable(&e))?;
        }
        // From here on, bytes leave.
        let header = self.egress.update(run, contribution, header, offset)?.into_message();
        let header = v1::UpdatePart { part: Some(Part::Header(header)) };
        let (sender, receiver) = mpsc::channel(QUEUED_CHUNKS_MAX);
        let feed = tokio::spawn(async move {
            let mut next = Some(header);
            while let Some(part) = next {
                if sender.send(part).await.is_err() {
                    return Ok(());
                }
                let n = (reader.len() - offset).min(CHUNK_BYTES as u64);
                if n == 0 {
                    return Ok(());
                }
                let read = tokio::task::spawn_blocking(move || {
                    let mut data = vec![0; n as usize];
                    reader.read_exact(&mut data).map(|()| (reader, data))
                });
                let data;
                (reader, data) = read.await??;
                let chunk = v1::Chunk { offset, data: data.into() };
                next = Some(v1::UpdatePart { part: Some(Part::Chunk(chunk)) });
                offset += n;
            }
            Ok::<(), io::Error>(())
        });
        let reply = self.client.submit_update(ReceiverStream::new(receiver)).await;
        if let Ok(Err(error)) = feed.await {
            return Err(unreadable(&error));
        }
        Ok(reply.map(tonic::Response::into_inner))
    }
}

/// The staged part of a model, and the turn to write it; the writer is dropped first.
struct Staged {
    writer: BlobWriter,
    guard: OwnedMutexGuard<()>,
}

/// Writes what arrives, beside the network.
async fn store(
    mut staged: Staged,
    mut arriving: mpsc::Receiver<v1::Chunk>,
) -> Result<Staged, CallError> {
    let mut batch: Vec<v1::Chunk> = Vec::new();
    while arriving.recv_many(&mut batch, QUEUED_CHUNKS_MAX).await > 0 {
        (staged, batch) = disk(move || {
            for chunk in batch.drain(..) {
                staged.writer.write(&chunk.data)?;
            }
            Ok((staged, batch))
        })
        .await?;
    }
    Ok(staged)
}

fn lost(why: &dyn fmt::Display) -> CallError {
    CallError::Lost(why.to_string())
}

/// Disk work off the network's threads.
async fn disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BlobError> + Send + 'static,
) -> Result<T, CallError> {
    tokio::task::spawn_blocking(work).await.map_err(|e| lost(&e))?.map_err(|e| lost(&e))
}

/// The staged part of a model, unless the whole is there; one model is staged at a time.
fn begin(
    blobs: &BlobStore,
    model: ModelDigest,
    bytes: u64,
) -> Result<Option<BlobWriter>, BlobError> {
    let name = format!("model.{model}");
    // What the disk altered is fetched again.
    let whole = blobs.reader_of_whole(&model.0).is_ok();
    for (staged, n_staged) in blobs.staged()? {
        if staged.starts_with("model.") && (whole || staged != name || n_staged > bytes) {
            blobs.discard(&staged)?;
        }
    }
    if whole {
        return Ok(None);
    }
    blobs.resume(&name).map(Some)
}

/// The URL must be https, so that nobody believes in a connection without TLS.
pub(crate) fn check_url(url: &str) -> anyhow::Result<()> {
    if !url.starts_with("https://") {
        bail!("coordinator = {url:?} is not of the form https://HOST:PORT");
    }
    Ok(())
}
