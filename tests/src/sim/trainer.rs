//! The stand-in for training: after a while, a unit vector of the client's own for the round, let out by
//! the real door.

use std::sync::Mutex;
use std::time::Duration;

use anyhow::bail;
use comity_client::{Job, Train, Trained};
use comity_federation::{Delta, RoundOutput};
use tokio::sync::oneshot;

use crate::draws::Draws;

/// The coordinate that is client `client_index`'s in `round`.
pub(super) fn coordinate(n_clients: usize, round: u32, client_index: usize) -> usize {
    (round as usize - 1) * n_clients + client_index
}

/// One client's stand-in.
pub(super) struct UnitVectors {
    pub(super) client_index: usize,
    pub(super) n_clients: usize,
    pub(super) training: Duration,
    /// Of so many trainings one fails; 0: none.
    pub(super) fails_once_in: u64,
    pub(super) draws: Mutex<Draws>,
}

impl Train for UnitVectors {
    fn start(&self, job: Job) -> oneshot::Receiver<Trained> {
        let (sender, receiver) = oneshot::channel();
        let fails =
            self.fails_once_in > 0 && self.draws.lock().unwrap().once_in(self.fails_once_in);
        let at = coordinate(self.n_clients, job.task.round, self.client_index);
        let training = self.training;
        tokio::spawn(async move {
            tokio::time::sleep(training).await;
            let trained = (|| {
                if fails {
                    bail!("a failure that the seed drew");
                }
                let mut values = vec![0; job.plan.manifest()?.n_trainable()];
                values[at] = 1 << job.plan.aggregation.fixed_point_bits;
                let delta = Delta::new(values);
                let output = RoundOutput { delta, n_correct: None, loss_sum: None };
                Ok(job.reservation.release_exempt(output)?.into())
            })();
            let _ = sender.send(trained);
        });
        receiver
    }
}
