//! Local fine-tuning: a finished model, trained on at one client without noise and without release.
//!
//! What comes out is a function of the client's own records that nothing has made private: it is for the client
//! alone. A simulation scores it to say what personalisation by fine-tuning gives.

use std::num::NonZero;

use comity_datasets::Dataset;
use comity_federation::{ClientId, ClientState, Parameters, Plan, PlanDigest, PlanError, Training};

use crate::contract::plan_units;
use crate::{Device, RoundError, TrainingTask, normalisation, train_plain};

/// What to tune, and on what.
#[derive(Clone, Copy, Debug)]
pub struct FineTuning<'a> {
    /// The plan of the run whose model it is; its local steps are taken, without its noise.
    pub plan: &'a Plan,
    /// Its digest.
    pub plan_digest: PlanDigest,
    /// The model; what the server remembers may follow it.
    pub model: &'a Parameters,
    /// What the client kept at the run's end: its local layers are taken from there, where it has any.
    pub state: Option<&'a ClientState>,
    /// Who tunes; with the plan it orders the batches.
    pub client: &'a ClientId,
    /// The client's records.
    pub dataset: &'a Dataset,
    /// Passes over them.
    pub n_epochs: u32,
    /// Where to compute.
    pub device: &'a Device,
    /// On how many cores, where the device is the CPU; the result does not depend on it.
    pub n_threads: NonZero<usize>,
}

/// The model after `task`, `[n_parameters]` of the model itself. It is NOT private.
///
/// `progress` is told the steps done and their number, which tells how many records there are.
///
/// # Errors
/// [`RoundError`] if model, state or data are of another plan, and if there are no data.
pub fn fine_tune(
    task: &FineTuning<'_>,
    progress: &mut dyn FnMut(u32, u32),
) -> Result<Parameters, RoundError> {
    let manifest = task.plan.model_manifest()?;
    let (n_shared, n_local) = (manifest.n_shared(), manifest.n_local());
    let expected = manifest.n_parameters();
    if task.model.values().len() < expected {
        return Err(RoundError::Base { expected, got: task.model.values().len() });
    }
    if task.n_epochs == 0 {
        let reason = "use 1 or more epochs".to_owned();
        return Err(PlanError::Invalid { key: "epochs", reason }.into());
    }
    let mut start = task.model.values()[..expected].to_vec();
    if let Some(state) = task.state {
        let (expected, got) = (task.plan.client_state_len()?, state.values().len());
        if got != expected {
            return Err(RoundError::State { expected, got });
        }
        start[n_shared..n_shared + n_local].copy_from_slice(&state.values()[..n_local]);
    }
    let start = Parameters::new(start);
    let dataset = plan_units(task.plan, task.dataset)?;
    let training = Training {
        local_epochs: Some(task.n_epochs),
        local_steps: None,
        ..task.plan.training.clone()
    };
    let training = TrainingTask {
        spec: &task.plan.model,
        start: &start,
        dataset: dataset.as_ref(),
        normalise: normalisation(&task.plan.data),
        training: &training,
        n_steps: None,
        correction: None,
        device: task.device,
        n_threads: task.n_threads,
    };
    let mut seed = blake3::Hasher::new_derive_key("comity fine-tuning order v1");
    seed.update(&task.plan_digest.0);
    seed.update(task.client.to_string().as_bytes());
    Ok(train_plain(&training, *seed.finalize().as_bytes(), progress)?)
}
