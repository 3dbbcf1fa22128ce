//! A model of 1 GB and eight clients with updates of their own: what the coordinator's process holds.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use comity_federation::{Contribution, ModelDigest, PlanDigest, RunId, RunStatus, UpdateDigest};
use comity_proto::chunk::CHUNK_BYTES;
use comity_proto::convert::update_header;
use comity_proto::v1::federation_client::FederationClient;
use comity_proto::v1::{self, FetchModelRequest, update_part::Part};
use tokio_stream::StreamExt as _;
use tonic::transport::Channel;

use crate::site::Site;
use crate::table::Row;

/// 25,000 x 10,000 parameters, with the biases.
const SHAPE: (usize, usize) = (24_999, 10_000);
const N_PARAMETERS: u64 = 250_000_000;
const N_CLIENTS: usize = 8;
const MEMORY_MAX: u64 = 150_000_000;
const FOLD_TIMEOUT: Duration = Duration::from_secs(240);

pub(crate) fn measure() -> anyhow::Result<Vec<Row>> {
    let site = Site::on_disk(N_CLIENTS, 9)?;
    let run = site.launch(SHAPE.0, SHAPE.1, 1)?;
    let after_launch = site.deployment.coordinator_memory_peak()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let report = site.deployment.report(&run)?;
    let update = Updates::new(&run, report.plan, report.model)?;
    let began = Instant::now();
    runtime.block_on(all(&site, &run, &update))?;
    let uploaded = began.elapsed().as_secs_f64();
    let end = Instant::now() + FOLD_TIMEOUT;
    let report = loop {
        let report = site.deployment.report(&run)?;
        if report.status == RunStatus::Finished {
            break report;
        }
        ensure!(Instant::now() < end, "the fold does not end: {:?}", report.status);
        std::thread::sleep(Duration::from_millis(100));
    };
    let round = &report.history[0];
    ensure!(round.contributions.len() == N_CLIENTS, "{:?}", round.missing);
    let arrived = round.contributions.iter().map(|c| c.at).max().context("nobody contributed")?;
    let folded = round.closed.context("the round is open")?.seconds_since(arrived);
    let peak = site.deployment.coordinator_memory_peak()?;
    let gigabytes = 4.0 * N_PARAMETERS as f64 / 1e9;
    let moved = 2.0 * N_CLIENTS as f64 * gigabytes;
    let row =
        |figure: &str, ours: String| Row { figure: figure.to_owned(), ours, ..Row::default() };
    Ok(vec![
        Row {
            figure:
                "model of 1 GB, 8 clients with distinct updates: peak memory of the coordinator"
                    .to_owned(),
            ours: format!("{} MB", peak / 1_000_000),
            anchor: "Flower, 4 x 0.4 GB: 6.4 GB; NVFlare, 6 x 3.4 GB: 137.8 GiB (published)"
                .to_owned(),
            ratio: None,
            target: format!("≤ {} MB", MEMORY_MAX / 1_000_000),
            met: Some(peak <= MEMORY_MAX),
        },
        row("the same after the launch", format!("{} MB", after_launch / 1_000_000)),
        row(
            "eight downloads, then eight uploads of 1 GB at once, hashed and durable",
            format!("{uploaded:.1} s, {:.2} GB/s", moved / uploaded),
        ),
        row(
            "fold of the eight into the next model of 1 GB, hashed and durable",
            format!("{folded:.1} s, {:.2} GB/s of updates", N_CLIENTS as f64 * gigabytes / folded),
        ),
    ])
}

/// Everybody agrees, fetches the model, and sends an update.
async fn all(site: &Site, run: &str, updates: &Updates) -> anyhow::Result<()> {
    let mut clients = Vec::new();
    for id in &site.clients {
        let mut client = site.connect(id).await?;
        site.check_in(&mut client, run).await?;
        clients.push(client);
    }
    let mut tasks = tokio::task::JoinSet::new();
    for (index, mut client) in clients.into_iter().enumerate() {
        let updates = updates.clone();
        tasks.spawn(async move {
            let fetched = fetch(&mut client, &updates.run, updates.base).await?;
            ensure!(fetched == 4 * N_PARAMETERS, "the model has {fetched} bytes");
            let digest = updates.digest(index).await?;
            updates.send(&mut client, index, digest).await
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

/// Fetches a model and forgets it; returns its size.
pub(crate) async fn fetch(
    client: &mut FederationClient<Channel>,
    run: &RunId,
    model: ModelDigest,
) -> anyhow::Result<u64> {
    let request =
        FetchModelRequest { run_id: run.to_string(), digest: model.0.to_vec().into(), offset: 0 };
    let mut chunks = client.fetch_model(request).await?.into_inner();
    let mut n_bytes = 0;
    while let Some(chunk) = chunks.message().await? {
        n_bytes += chunk.data.len() as u64;
    }
    Ok(n_bytes)
}

/// Updates of one run that are made while they are sent: no client holds one.
#[derive(Clone)]
pub(crate) struct Updates {
    run: RunId,
    plan: PlanDigest,
    base: ModelDigest,
}

impl Updates {
    pub(crate) fn new(run: &str, plan: PlanDigest, base: ModelDigest) -> anyhow::Result<Self> {
        Ok(Self { run: run.parse()?, plan, base })
    }

    /// The chunks of client `index`'s update: small numbers, the first of each chunk its own.
    fn chunks(index: usize) -> impl Iterator<Item = Bytes> + Send + 'static {
        let pattern: Vec<u8> =
            (0..CHUNK_BYTES as u32 / 4).flat_map(|i| (i % 997).to_le_bytes()).collect();
        let total = 4 * N_PARAMETERS;
        (0..total.div_ceil(CHUNK_BYTES as u64)).map(move |number| {
            let at = number * CHUNK_BYTES as u64;
            let n = (total - at).min(CHUNK_BYTES as u64) as usize;
            let mut chunk = pattern[..n].to_vec();
            let own = u32::try_from(number).expect("a few thousand chunks") * 16 + index as u32;
            chunk[..4].copy_from_slice(&own.to_le_bytes());
            chunk.into()
        })
    }

    /// The digest of client `index`'s update.
    pub(crate) async fn digest(&self, index: usize) -> anyhow::Result<UpdateDigest> {
        let digest = tokio::task::spawn_blocking(move || {
            let mut hasher = blake3::Hasher::new();
            Self::chunks(index).for_each(|chunk| {
                hasher.update(&chunk);
            });
            UpdateDigest(*hasher.finalize().as_bytes())
        });
        Ok(digest.await?)
    }

    /// Sends client `index`'s update, which has that digest.
    pub(crate) async fn send(
        &self,
        client: &mut FederationClient<Channel>,
        index: usize,
        update: UpdateDigest,
    ) -> anyhow::Result<()> {
        let contribution = Contribution {
            round: 1,
            plan: self.plan,
            base: self.base,
            update,
            n_parameters: N_PARAMETERS,
            encoding: comity_federation::UpdateEncoding::Int32,
            n_correct: None,
            loss_sum: None,
        };
        let header = Part::Header(update_header(&self.run, &contribution));
        let chunks = Self::chunks(index).scan(0u64, |offset, data| {
            let chunk = v1::Chunk { offset: *offset, data };
            *offset += chunk.data.len() as u64;
            Some(Part::Chunk(chunk))
        });
        let parts = std::iter::once(header).chain(chunks);
        let parts = tokio_stream::iter(parts).map(|part| v1::UpdatePart { part: Some(part) });
        let reply = client.submit_update(parts).await?.into_inner();
        ensure!(!reply.already_had_it, "a new update was there already");
        Ok(())
    }
}
