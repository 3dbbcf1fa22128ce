//! One stream over a link whose answers take 200 ms: a model of 64 MB down and its update up, through a real
//! coordinator, which hashes and stores it. The delay is in user space, so what is measured is windows,
//! frames and waiting, not the kernel's congestion control.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use comity_certs::client_config;
use comity_federation::{Contribution, UpdateDigest};
use comity_proto::chunk::CHUNK_BYTES;
use comity_proto::convert::update_header;
use comity_proto::v1::{self, update_part::Part};
use comity_tests::Proxy;

use crate::memory::fetch;
use crate::site::{Site, hello};
use crate::table::Row;

/// 1,600 x 10,000 parameters, with the biases.
const SHAPE: (usize, usize) = (1_599, 10_000);
const N_PARAMETERS: u64 = 16_000_000;
/// Each way.
const LATENCY: Duration = Duration::from_millis(100);
const MEGABITS_MIN: f64 = 300.0;

pub(crate) fn measure() -> anyhow::Result<Vec<Row>> {
    let site = Site::on_disk(1, 9)?;
    let run = site.launch(SHAPE.0, SHAPE.1, 1)?;
    let report = site.deployment.report(&run)?;
    let url = site.deployment.url()?;
    let proxy = Proxy::start(url.strip_prefix("https://").context("no address")?.parse()?)?;
    proxy.set_latency(LATENCY);
    let certs = site.deployment.client_dir(&site.clients[0]).join("certs");
    let pem = |name: &str| std::fs::read_to_string(certs.join(name));
    let tls = client_config(&pem("certificate.pem")?, &pem("key.pem")?, &pem("root.pem")?)?;
    let bytes: Bytes =
        (0..N_PARAMETERS as u32).flat_map(|i| (i % 997).to_le_bytes()).collect::<Vec<_>>().into();
    let contribution = Contribution {
        round: 1,
        plan: report.plan,
        base: report.model,
        update: UpdateDigest(*blake3::hash(&bytes).as_bytes()),
        n_parameters: N_PARAMETERS,
        encoding: comity_federation::UpdateEncoding::Int32,
        n_correct: None,
        loss_sum: None,
    };
    let header = Part::Header(update_header(&run.parse()?, &contribution));
    let chunks = (0..bytes.len()).step_by(CHUNK_BYTES).map(move |at| {
        let end = (at + CHUNK_BYTES).min(bytes.len());
        Part::Chunk(v1::Chunk { offset: at as u64, data: bytes.slice(at..end) })
    });
    let parts =
        std::iter::once(header).chain(chunks).map(|part| v1::UpdatePart { part: Some(part) });
    let runtime = tokio::runtime::Runtime::new()?;
    let (down, up) = runtime.block_on(async {
        let mut client = hello(&format!("https://{}", proxy.address()), tls).await?;
        site.check_in(&mut client, &run).await?;
        let megabits =
            |began: Instant| 32.0 * N_PARAMETERS as f64 / began.elapsed().as_secs_f64() / 1e6;
        let began = Instant::now();
        let n_bytes = fetch(&mut client, &run.parse()?, report.model).await?;
        ensure!(n_bytes == 4 * N_PARAMETERS, "the model has {n_bytes} bytes");
        let down = megabits(began);
        let began = Instant::now();
        client.submit_update(tokio_stream::iter(parts)).await?;
        anyhow::Ok((down, megabits(began)))
    })?;
    let row = |way: &str, ours: f64| Row {
        figure: format!("64 MB {way} over a link of 200 ms there and back"),
        ours: format!("{ours:.0} Mbit/s"),
        anchor: "HTTP/2's usual windows: 38 up, 78 down".to_owned(),
        target: format!("≥ {MEGABITS_MIN} Mbit/s"),
        met: Some(ours >= MEGABITS_MIN),
        ..Row::default()
    };
    Ok(vec![row("down, from a file", down), row("up, hashed and durable", up)])
}
