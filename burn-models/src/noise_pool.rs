//! Threads that draw the noise of a session's steps while the steps before are computed.

use std::num::NonZero;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use comity_privacy::{NoiseAhead, PrivacyError, StepNoise};

/// Most memory of noise that waits for its step, in bytes; one step's is always held.
const WAITING_BYTES_MAX: usize = 256 << 20;
/// Steps that one thread may have ready: one in its channel, one in its hands.
const READY_PER_LANE: usize = 2;

/// Noise in the order of the steps.
pub(crate) struct NoisePool {
    lanes: Vec<Receiver<Result<StepNoise, PrivacyError>>>,
    step: usize,
}

impl NoisePool {
    /// Calls `body` with a pool that draws `ahead` on `n_threads` threads, fewer if what they hold
    /// ready would pass 256 MiB.
    pub(crate) fn with<T>(
        ahead: NoiseAhead,
        n_threads: NonZero<usize>,
        body: impl FnOnce(&mut Self) -> T,
    ) -> T {
        let n_fit = WAITING_BYTES_MAX / (READY_PER_LANE * ahead.step_bytes()).max(1);
        let n_lanes = u32::try_from(n_threads.get().min(n_fit).max(1)).expect("cores are few");
        thread::scope(|scope| {
            let lanes = ahead
                .lanes(n_lanes)
                .into_iter()
                .map(|lane| {
                    let (sender, receiver) = sync_channel(READY_PER_LANE - 1);
                    scope.spawn(move || {
                        for noise in lane {
                            if sender.send(noise).is_err() {
                                return;
                            }
                        }
                    });
                    receiver
                })
                .collect();
            // The pool is dropped before the threads are joined: those that wait to send then stop.
            body(&mut Self { lanes, step: 0 })
        })
    }

    /// The next step's noise.
    ///
    /// # Errors
    /// Those of the noise.
    ///
    /// # Panics
    /// If called more often than the session has steps.
    pub(crate) fn next(&mut self) -> Result<StepNoise, PrivacyError> {
        let lane = self.step % self.lanes.len();
        self.step += 1;
        self.lanes[lane].recv().expect("a session has noise for each of its steps")
    }
}
