//! `comity-client model tune`: a finished run's model, trained on with this institution's records, for this
//! institution alone. Nothing is sent, so nothing is debited; works while the node runs.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, ensure};
use comity_burn_models::{
    FineTuning, all_cores, check_units, data_contract, fine_tune, read_safetensors,
    write_safetensors,
};
use comity_certs::Clock;
use comity_federation::{Manifest, ModelDigest, RunId};
use comity_journal::BlobStore;
use serde_json::json;

use crate::config;
use crate::link::Credentials;
use crate::store::{Folded, Part, journal_path};
use crate::trainer::stored_state;

/// Trains the model in `file`, which is the last one of `run`, for `n_epochs` more on this institution's records,
/// and writes it to `out`.
///
/// # Errors
/// If the run is not one that was agreed to here and has ended, if the file holds another model than the
/// coordinator signed, and if the data do not fit.
pub fn tune(
    path: &Path,
    run: &RunId,
    file: &Path,
    n_epochs: u32,
    out: &Path,
    as_json: bool,
) -> anyhow::Result<()> {
    let settings = config::Node::read(path)?;
    let mut folded = Folded::default();
    let journal = journal_path(&settings.state());
    ensure!(journal.exists(), "there is no journal at {}", journal.display());
    comity_journal::read(&journal, |record| folded.fold(record))?;
    let part = folded.parts.get(run);
    let part = part.with_context(|| {
        format!("run {run} was never offered here; `comity-client run list` says which were")
    })?;
    ensure!(
        part.participant.declined().is_none() && part.decision.as_ref().is_none_or(|d| d.approved),
        "this institution did not agree to run {run}, so its records are not for that model"
    );
    ensure!(
        part.participant.ended().is_some(),
        "run {run} goes on; its model is tuned when it has ended"
    );
    let plan = &part.plan;
    let manifest = plan.model_manifest()?;
    let model = read_safetensors(file, &manifest)?;
    check_signed(part, &manifest, &model.digest())?;
    let client = Credentials::read(&settings.certificates(), &Clock::system())?.client_id()?;
    let source = &settings.config.data.source;
    let dataset = source.load(&settings.base, &data_contract(&plan.data, source))?;
    check_units(plan, &dataset)?;
    let blobs = BlobStore::existing(settings.state().join("blobs"));
    let state = folded.states.get(run).map(|state| stored_state(&blobs, *state)).transpose()?;
    let device = settings.config.device.open()?;
    let task = FineTuning {
        plan,
        plan_digest: plan.digest(),
        model: &model,
        state: state.as_ref(),
        client: &client,
        dataset: &dataset,
        n_epochs,
        device: &device,
        n_threads: all_cores(),
    };
    let tuned = fine_tune(&task, &mut |_, _| {})?;
    let metadata = BTreeMap::from([
        ("comity.run".to_owned(), run.to_string()),
        ("comity.tuned_at".to_owned(), client.to_string()),
        ("comity.privacy".to_owned(), NOT_PRIVATE.to_owned()),
    ]);
    write_safetensors(out, &manifest, &tuned, &metadata)?;
    let own_layers = state.is_some();
    if as_json {
        let (run, file) = (run.to_string(), out.display().to_string());
        println!(
            "{}",
            json!({ "run": run, "file": file, "epochs": n_epochs, "own_layers": own_layers,
                    "private": false, "model": tuned.digest() })
        );
    } else {
        println!("model {} written to {}", tuned.digest(), out.display());
    }
    eprintln!("{NOT_PRIVATE}");
    Ok(())
}

/// What whoever holds the file has to know.
const NOT_PRIVATE: &str = "this model was trained on this institution's records without differential privacy: it is \
                           NOT private and must not leave the institution";

/// Refuses a model that the coordinator did not sign as the run's last. Where the server remembers something, the
/// signed digest is of more than the model, and the file is taken as it is.
fn check_signed(part: &Part, manifest: &Manifest, found: &ModelDigest) -> anyhow::Result<()> {
    let signed = part.record.as_ref().map(|record| record.model);
    let is_all = part.plan.manifest()?.n_parameters() == manifest.n_parameters();
    if let Some(signed) = signed.filter(|_| is_all) {
        ensure!(
            signed == *found,
            "the file holds model {found}, and the last one that the coordinator signed here is {signed}; ask the \
             operator for `comity-coordinator model export`"
        );
    }
    Ok(())
}
