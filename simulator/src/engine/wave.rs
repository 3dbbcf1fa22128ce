//! Clients trained at the same time, one a core.
//!
//! Each client's result depends on nothing but its own state, records and task, so the number of threads
//! changes no bit.  Where there are fewer clients than cores, a client gets several.

use std::borrow::Cow;
use std::num::NonZero;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use comity_federation::{ClientId, ClientState, Contribution, Parameters, Task};
use serde::{Deserialize, Serialize};

use super::checkpoint::Digest;
use super::client::{Client, Trained, Work};
use super::queue::Moment;
use crate::conduct::Behaviour;
use crate::{Progress, SimulationError};

/// One client's training.
pub(super) struct Job<'a> {
    pub(super) moment: Moment,
    /// Its place in the plan.
    pub(super) position: usize,
    pub(super) id: &'a ClientId,
    pub(super) client: &'a mut Client,
    pub(super) task: Task,
    pub(super) base: Arc<Parameters>,
    /// What it keeps of its own; `None` before its first round.
    pub(super) state: Option<ClientState>,
}

/// A result that waits for its moment; its bytes are in the store of updates.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ready {
    pub(super) contribution: Contribution,
    /// What the client will keep of its own.
    #[serde(skip)]
    pub(super) state: Option<ClientState>,
    /// The same in a checkpoint.
    pub(super) saved: Option<Digest>,
}

/// What a worker has to tell.
enum News<'a> {
    Step { id: &'a ClientId, round: u32, step: u32, n_steps: u32 },
    Ended(Moment, Result<Trained, String>),
}

/// Trains `jobs`, and hands each result to `take` as it comes.
///
/// # Errors
/// [`SimulationError::Interrupted`] if the simulation was told to stop; jobs that had begun are then lost.
/// A client's own failure is its result.
pub(super) fn train<'a>(
    work: Work<'a>,
    behaviour: &Behaviour,
    jobs: Vec<Job<'a>>,
    observe: &mut dyn FnMut(Progress<'_>),
    mut take: impl FnMut(Moment, Result<Trained, String>) -> Result<(), SimulationError>,
) -> Result<(), SimulationError> {
    let n_threads = work.simulation.n_threads.get();
    let n_workers = n_threads.min(jobs.len()).max(1);
    let n_each = NonZero::new(n_threads / n_workers).unwrap_or(NonZero::<usize>::MIN);
    let is_over = AtomicBool::new(false);
    let jobs = Mutex::new(jobs.into_iter());
    let (sender, receiver) = mpsc::sync_channel(2 * n_workers);
    thread::scope(|scope| {
        for _ in 0..n_workers {
            let (sender, jobs, is_over) = (sender.clone(), &jobs, &is_over);
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some(job) = job else { return };
                    let (moment, id, round) = (job.moment, job.id, job.task.round);
                    let result = train_one(work, behaviour, job, n_each, &mut |step, n_steps| {
                        // Nobody to tell is no reason to stop in the middle.
                        let _ = sender.send(News::Step { id, round, step, n_steps });
                    });
                    let result = result.map_err(|error| error.to_string());
                    if sender.send(News::Ended(moment, result)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut ended = Ok(());
        for news in receiver {
            match news {
                News::Step { id: client, round, step, n_steps } => {
                    observe(Progress::Step { round, client, step, n_steps });
                }
                News::Ended(moment, result) => ended = ended.and_then(|()| take(moment, result)),
            }
            if work.simulation.is_stopped() {
                ended = ended.and(Err(SimulationError::Interrupted));
            }
            if ended.is_err() {
                is_over.store(true, Ordering::Relaxed);
            }
        }
        ended
    })
}

fn train_one(
    work: Work<'_>,
    behaviour: &Behaviour,
    job: Job<'_>,
    n_threads: NonZero<usize>,
    progress: &mut dyn FnMut(u32, u32),
) -> Result<Trained, SimulationError> {
    let attack = behaviour.attack(job.position);
    let own = work.simulation.data.shard(job.position);
    let records = match attack {
        Some(attack) => Cow::Owned(attack.poison(own.into_owned())?),
        None => own,
    };
    job.client.train(
        work,
        job.id,
        &job.task,
        &job.base,
        job.state.as_ref(),
        &records,
        attack,
        n_threads,
        progress,
    )
}
