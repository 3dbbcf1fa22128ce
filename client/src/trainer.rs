//! One training at a time, on a thread of its own, so that the connection stays alive meanwhile.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use comity_burn_models::{
    DeviceChoice, LocalResult, LocalRound, all_cores, data_contract, local_round,
};
use comity_datasets::{Dataset, Source};
use comity_federation::{ClientId, ClientState, DataContract, Parameters, Plan, StateDigest, Task};
use comity_journal::BlobStore;
use comity_privacy::{PrivacyPlan, Randomness, Reservation};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::oneshot;

/// The institution's data, read when a plan first needs them and kept while plans agree on them.
pub(crate) struct Records {
    source: Source,
    base: PathBuf,
    loaded: Option<(DataContract, Arc<Dataset>)>,
}

impl Records {
    pub(crate) fn new(source: Source, base: PathBuf) -> Self {
        Self { source, base, loaded: None }
    }

    /// The data set, checked against what the plan says it looks like.
    pub(crate) fn load(&mut self, contract: &DataContract) -> anyhow::Result<Arc<Dataset>> {
        if let Some((known, dataset)) = &self.loaded
            && known.shape == contract.shape
            && known.classes == contract.classes
        {
            return Ok(Arc::clone(dataset));
        }
        let expected = data_contract(contract, &self.source);
        let dataset = Arc::new(self.source.load(&self.base, &expected)?);
        self.loaded = Some((contract.clone(), Arc::clone(&dataset)));
        Ok(dataset)
    }
}

/// A round that was paid for and can be trained.
pub struct Job {
    /// Which round, and from which model.
    pub task: Task,
    /// The plan that was agreed to.
    pub plan: Arc<Plan>,
    /// Who trains.
    pub client: ClientId,
    /// What the plan asks of this client's privacy; `None` without DP.
    pub privacy: Option<(PrivacyPlan, Randomness)>,
    /// The ledger's debit; what is released uses it up.
    pub reservation: Reservation,
    /// The institution's records.
    pub dataset: Arc<Dataset>,
    /// Where to compute.
    pub device: DeviceChoice,
    /// What the client kept after its round before, where it keeps anything.
    pub state: Option<StateDigest>,
    /// Where the round's model and what the client keeps lie.
    pub blobs: Arc<BlobStore>,
}

/// What a training ends in.
pub type Trained = anyhow::Result<LocalResult>;

/// Who computes a round: deployed, burn on a thread of its own; in tests of the system, something that
/// needs no data. Neither can make a release but by a [`Job`]'s reservation.
pub trait Train: Send + Sync {
    /// Starts the training; a closed channel says that it panicked.
    fn start(&self, job: Job) -> oneshot::Receiver<Trained>;
}

/// Training as it is deployed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Burn;

impl Train for Burn {
    fn start(&self, job: Job) -> oneshot::Receiver<Trained> {
        let (sender, receiver) = oneshot::channel();
        std::thread::spawn(move || {
            let _ = sender.send(train(job));
        });
        receiver
    }
}

fn train(job: Job) -> Trained {
    let base = Parameters::from_bytes(&job.blobs.read_all(&job.task.model.0)?)
        .context("the round's model is not a list of numbers")?;
    let state = job.state.map(|digest| stored_state(&job.blobs, digest)).transpose()?;
    let device = job.device.open()?;
    let round = LocalRound {
        plan: &job.plan,
        plan_digest: job.task.plan,
        round: job.task.round,
        client: &job.client,
        base: &base,
        dataset: &job.dataset,
        device: &device,
        n_threads: all_cores(),
    };
    let (plan, randomness) = job.privacy.unzip();
    let privacy = plan.as_ref().zip(randomness);
    let bar = ProgressBar::new(0).with_style(
        ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len} steps, {eta} left")
            .expect("the template is well-formed"),
    );
    bar.set_prefix(format!("{} round {}", job.task.run, job.task.round));
    let result =
        local_round(&round, state.as_ref(), privacy, job.reservation, &mut |step, n_steps| {
            bar.set_length(u64::from(n_steps));
            bar.set_position(u64::from(step));
        });
    bar.finish_and_clear();
    Ok(result?)
}

/// What this client kept of a run; it exists nowhere else.
pub(crate) fn stored_state(blobs: &BlobStore, digest: StateDigest) -> anyhow::Result<ClientState> {
    let bytes = blobs.read_all(&digest.0).context(
        "what this client keeps of the run is lost or damaged; put the node's state back from a backup",
    )?;
    ClientState::from_bytes(&bytes).context("what this client keeps is not a list of numbers")
}
