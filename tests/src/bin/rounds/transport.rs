//! What one stream carries over mutual TLS on loopback, beside gRPC's C++ core under the same certificates.
//!
//! Raw: our connections, messages and windows between two processes that throw the bytes away, as the
//! peer's do.  Whole: one client's model and update through a real coordinator, which checks, hashes and
//! stores them.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use arc_swap::ArcSwap;
use bytes::Bytes;
use comity_certs::{client_config, server_config};
use comity_federation::{ModelDigest, RunId};
use comity_proto::chunk::CHUNK_BYTES;
use comity_proto::limits::{HANDSHAKE_TIMEOUT, MESSAGE_BYTES_MAX};
use comity_proto::transport::{incoming, server_builder};
use comity_proto::v1::federation_client::FederationClient;
use comity_proto::v1::federation_server::{Federation, FederationServer};
use comity_proto::v1::{self, update_part::Part};
use tokio::net::TcpListener;
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use crate::memory::{Updates, fetch};
use crate::peers;
use crate::site::{Site, hello};
use crate::table::{Row, best};

const RAW_BYTES: u64 = 1 << 30;
const REPEATS: usize = 5;
/// Kept of the anchor.
const RATIO_MIN: f64 = 0.8;

pub(crate) fn measure() -> anyhow::Result<Vec<Row>> {
    let site = Site::on_disk(1, 9)?;
    let (server, client) = (
        site.deployment.coordinator_dir().join("certs"),
        site.deployment.client_dir(&site.clients[0]).join("certs"),
    );
    let path = |dir: &Path, name: &str| dir.join(name).display().to_string();
    let peer = peers::run(
        "grpc_tls.py",
        &[
            &path(&server, "coordinator.pem"),
            &path(&server, "coordinator.key"),
            &path(&client, "certificate.pem"),
            &path(&client, "key.pem"),
            &path(&client, "root.pem"),
            &RAW_BYTES.to_string(),
            &REPEATS.to_string(),
        ],
    )?;
    let peer = [best(&peers::rates(&peer, "upload")?), best(&peers::rates(&peer, "download")?)];
    let runtime = tokio::runtime::Runtime::new()?;
    let raw = runtime.block_on(raw(&server, &client))?;
    let whole = runtime.block_on(whole(&site))?;
    let row = |figure: String, ours: f64, peer: f64, target: bool| Row {
        figure,
        ours: format!("{ours:.2} GB/s"),
        anchor: format!("gRPC C++ core, TLS, 1 MiB messages: {peer:.2} GB/s"),
        ratio: Some(ours / peer),
        target: if target { format!("≥ {RATIO_MIN} × gRPC") } else { String::new() },
        met: target.then_some(ours >= RATIO_MIN * peer),
    };
    let mut rows = Vec::new();
    for (way, direction) in ["upload", "download"].into_iter().enumerate() {
        rows.push(row(
            format!("one {direction} over mTLS, bytes dropped"),
            raw[way],
            peer[way],
            true,
        ));
    }
    for (way, what) in
        ["upload, hashed and durable", "download, from files"].into_iter().enumerate()
    {
        rows.push(row(format!("one {what}"), whole[way], peer[way], false));
    }
    Ok(rows)
}

/// Best rates up and down between this process and one that runs [`serve_raw`].
async fn raw(server: &Path, client: &Path) -> anyhow::Result<[f64; 2]> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["serve-raw"])
        .current_dir(server)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut address = String::new();
    BufReader::new(child.stdout.take().context("no output")?).read_line(&mut address)?;
    let pem = |name: &str| std::fs::read_to_string(client.join(name));
    let tls = client_config(&pem("certificate.pem")?, &pem("key.pem")?, &pem("root.pem")?)?;
    let mut client = hello(&format!("https://{}", address.trim()), tls).await?;
    let mut rates = [Vec::new(), Vec::new()];
    let any: RunId = "raw-1".parse()?;
    upload(&mut client, RAW_BYTES / 16).await?;
    for _ in 0..REPEATS {
        let began = Instant::now();
        upload(&mut client, RAW_BYTES).await?;
        rates[0].push(RAW_BYTES as f64 / began.elapsed().as_secs_f64() / 1e9);
        let began = Instant::now();
        let got = fetch(&mut client, &any, ModelDigest([0; 32])).await?;
        ensure!(got == RAW_BYTES, "bytes are missing");
        rates[1].push(RAW_BYTES as f64 / began.elapsed().as_secs_f64() / 1e9);
    }
    drop(child.stdin.take());
    child.wait()?;
    Ok(rates.map(|rates| best(&rates)))
}

async fn upload(client: &mut FederationClient<Channel>, n_bytes: u64) -> anyhow::Result<()> {
    let data = Bytes::from(vec![7; CHUNK_BYTES]);
    let parts = (0..n_bytes / CHUNK_BYTES as u64).map(move |number| {
        let chunk = v1::Chunk { offset: number * CHUNK_BYTES as u64, data: data.clone() };
        v1::UpdatePart { part: Some(Part::Chunk(chunk)) }
    });
    client.submit_update(tokio_stream::iter(parts)).await?;
    Ok(())
}

/// Rates of an update of 1 GB and of its model, through the coordinator of `site`.
async fn whole(site: &Site) -> anyhow::Result<[f64; 2]> {
    let run = site.launch(24_999, 10_000, 1)?;
    let report = site.deployment.report(&run)?;
    let mut client = site.connect(&site.clients[0]).await?;
    site.check_in(&mut client, &run).await?;
    let began = Instant::now();
    let n_bytes = fetch(&mut client, &run.parse()?, report.model).await? as f64;
    let down = n_bytes / began.elapsed().as_secs_f64() / 1e9;
    let updates = Updates::new(&run, report.plan, report.model)?;
    let digest = updates.digest(0).await?;
    let began = Instant::now();
    updates.send(&mut client, 0, digest).await?;
    let up = n_bytes / began.elapsed().as_secs_f64() / 1e9;
    Ok([up, down])
}

/// The other process: serves under the coordinator's certificate in the working folder, says where, and
/// ends when its standard input does.
pub(crate) fn serve_raw() -> anyhow::Result<()> {
    let pem = |name: &str| std::fs::read_to_string(name);
    let tls = server_config(&pem("coordinator.pem")?, &pem("coordinator.key")?, &pem("root.pem")?)?;
    tokio::runtime::Runtime::new()?.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        std::io::stdout().flush()?;
        let service = FederationServer::new(Sink)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let tls = Arc::new(ArcSwap::from(tls));
        let connections = incoming(
            listener,
            tls,
            HANDSHAKE_TIMEOUT,
            |_: &[Vec<u8>]| String::new(),
            ToString::to_string,
        );
        let ended = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()));
        server_builder()
            .add_service(service)
            .serve_with_incoming_shutdown(connections, async {
                let _ = ended.await;
            })
            .await?;
        Ok(())
    })
}

/// Takes and gives bytes, and does nothing with them.
struct Sink;

type Sending<T> = std::pin::Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The answer to what the bench does not ask.
fn not_here<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("only bytes are moved here"))
}

#[tonic::async_trait]
impl Federation for Sink {
    type FollowStream = Sending<v1::Assignment>;
    type FetchModelStream = Sending<v1::Chunk>;

    async fn hello(
        &self,
        _: Request<v1::HelloRequest>,
    ) -> Result<Response<v1::HelloReply>, Status> {
        Ok(Response::new(v1::HelloReply::default()))
    }

    async fn follow(
        &self,
        _: Request<v1::FollowRequest>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        not_here()
    }

    async fn check_in(
        &self,
        _: Request<v1::CheckInRequest>,
    ) -> Result<Response<v1::CheckInReply>, Status> {
        not_here()
    }

    async fn decline(
        &self,
        _: Request<v1::DeclineRequest>,
    ) -> Result<Response<v1::DeclineReply>, Status> {
        not_here()
    }

    async fn countersign(
        &self,
        _: Request<v1::CountersignRequest>,
    ) -> Result<Response<v1::CountersignReply>, Status> {
        not_here()
    }
    async fn withdraw(
        &self,
        _: Request<v1::WithdrawRequest>,
    ) -> Result<Response<v1::WithdrawReply>, Status> {
        not_here()
    }

    async fn fetch_model(
        &self,
        _: Request<v1::FetchModelRequest>,
    ) -> Result<Response<Self::FetchModelStream>, Status> {
        let data = Bytes::from(vec![7; CHUNK_BYTES]);
        let chunks = (0..RAW_BYTES / CHUNK_BYTES as u64).map(move |number| {
            Ok(v1::Chunk { offset: number * CHUNK_BYTES as u64, data: data.clone() })
        });
        Ok(Response::new(Box::pin(tokio_stream::iter(chunks))))
    }

    async fn upload_offset(
        &self,
        _: Request<v1::UpdateHeader>,
    ) -> Result<Response<v1::UploadOffsetReply>, Status> {
        not_here()
    }

    async fn submit_update(
        &self,
        request: Request<Streaming<v1::UpdatePart>>,
    ) -> Result<Response<v1::SubmitReply>, Status> {
        let mut parts = request.into_inner();
        while parts.next().await.transpose()?.is_some() {}
        Ok(Response::new(v1::SubmitReply::default()))
    }
}
