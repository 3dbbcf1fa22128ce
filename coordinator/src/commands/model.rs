//! `comity-coordinator model export`: a model as a safetensors file, the format that every
//! framework reads and that holds no code.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use comity_federation::{ModelDigest, RunId, SERVER_STATE};
use comity_proto::chunk::Reassembly;
use comity_proto::convert::digest;
use comity_proto::v1::{self, export_part::Part};
use indicatif::{ProgressBar, ProgressStyle};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;

use super::operator::{open, refused};
use super::run::block_on;
use crate::config::Home;

/// Fetches the model of `round`, checks its digest and writes it to `out`; what the server remembers behind it
/// only if `server_state` says so.
pub fn export(
    home: &Home,
    run: &RunId,
    round: Option<u32>,
    out: &Path,
    server_state: bool,
    as_json: bool,
) -> anyhow::Result<()> {
    let (header, bytes) = block_on(fetch(home, run, round))?;
    let model = ModelDigest(digest("model_digest", &header.model_digest)?);
    let found = ModelDigest(*blake3::hash(&bytes).as_bytes());
    ensure!(found == model, "the model arrived as {found} instead of {model}; try again");
    let mut tensors = Vec::with_capacity(header.tensors.len());
    let mut rest = &bytes[..];
    for tensor in &header.tensors {
        let shape: Vec<usize> = tensor.shape.iter().map(|side| *side as usize).collect();
        let n = shape.iter().product::<usize>() * 4;
        let data = rest.split_off(..n).context("the model is shorter than its tensors")?;
        if server_state || !tensor.name.starts_with(SERVER_STATE) {
            tensors.push((tensor.name.clone(), TensorView::new(Dtype::F32, shape, data)?));
        }
    }
    ensure!(rest.is_empty(), "the model is longer than its tensors");
    let metadata = HashMap::from([
        ("run".to_owned(), header.run_id.clone()),
        ("round".to_owned(), header.round.to_string()),
        ("model".to_owned(), model.to_string()),
    ]);
    // Written beside and renamed, so that nobody finds half a file.
    let part = out.with_extension("part");
    safetensors::serialize_to_file(tensors, Some(metadata), &part)
        .and_then(|()| std::fs::rename(&part, out).map_err(Into::into))
        .with_context(|| format!("{} cannot be written", out.display()))?;
    if as_json {
        let file = out.display().to_string();
        println!("{}", json!({ "run": run, "round": header.round, "model": model, "file": file }));
    } else {
        println!("model {model} of round {} written to {}", header.round, out.display());
    }
    Ok(())
}

async fn fetch(
    home: &Home,
    run: &RunId,
    round: Option<u32>,
) -> anyhow::Result<(v1::ExportHeader, Vec<u8>)> {
    let request = v1::ExportModelRequest { run_id: run.to_string(), round };
    let mut parts = open(home).await?.export_model(request).await.map_err(refused)?.into_inner();
    let Some(v1::ExportPart { part: Some(Part::Header(header)) }) =
        parts.message().await.map_err(refused)?
    else {
        bail!("the export does not begin with its header; update this software");
    };
    let total = header.n_parameters * 4;
    let bar = ProgressBar::new(total).with_style(
        ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes}")
            .expect("the template is well-formed"),
    );
    let mut reassembly = Reassembly::new(0, total);
    let mut bytes = Vec::new();
    while let Some(part) = parts.message().await.map_err(refused)? {
        let Some(Part::Chunk(chunk)) = part.part else { bail!("a second header in the export") };
        reassembly.accept(&chunk)?;
        bytes.extend_from_slice(&chunk.data);
        bar.set_position(bytes.len() as u64);
    }
    reassembly.finish()?;
    bar.finish_and_clear();
    Ok((header, bytes))
}
