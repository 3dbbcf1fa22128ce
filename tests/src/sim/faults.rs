//! What a seed draws: the plan, how long training takes, and the faults with their times.

use crate::draws::Draws;

/// One thing that goes wrong. Clients are named by their index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Everything between the client and the coordinator is swallowed for so long.
    Silence { client: usize, ms: u64 },
    /// Everything between them is held back for so long, then delivered.
    Delay { client: usize, ms: u64 },
    /// The client's connection breaks after so many more bytes.
    Cut { client: usize, after_bytes: u64 },
    /// One byte of the client's connection is flipped after so many more bytes.
    Flip { client: usize, after_bytes: u64 },
    /// The client's process is gone for so long.
    CrashClient { client: usize, ms: u64 },
    /// The coordinator's process is gone for so long.
    CrashCoordinator { ms: u64 },
    /// The client's clock jumps by so much.
    JumpClient { client: usize, by_ms: i64 },
    /// The coordinator's clock jumps by so much.
    JumpCoordinator { by_ms: i64 },
}

/// For whom a round waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiting {
    /// For everybody who was asked, until the deadline; late updates are rejected.
    Everybody,
    /// Late updates count in one of the next two rounds.
    Carry,
    /// FedBuff: so many updates close a round.
    Buffer(usize),
    /// So many of a sample close a round, and one more is asked.
    Sample(usize),
}

/// A federation and its bad luck.
#[derive(Clone, Debug)]
pub(super) struct Faults {
    pub(super) n_clients: usize,
    pub(super) rounds: u32,
    pub(super) min_clients: usize,
    pub(super) waiting: Waiting,
    /// Whether each client's declared number of records weighs it.
    pub(super) weighted: bool,
    /// Largest latency of a message.
    pub(super) latency_max_ms: u64,
    /// How long each client trains, `[n_clients]`.
    pub(super) training_ms: Vec<u64>,
    /// Of so many trainings of a client, one fails; 0: none.
    pub(super) fails_once_in: u64,
    /// A client whose certificate expires so many milliseconds after the start.
    pub(super) expires: Option<(usize, u64)>,
    /// When (ms after the start), and what.
    pub(super) faults: Vec<(u64, Fault)>,
}

/// Faults fall into this time after the start; quiet runs are over before.
const STORM_MS: u64 = 45_000;

impl Faults {
    /// A federation without bad luck.
    pub(super) fn none(n_clients: usize, rounds: u32) -> Self {
        Self {
            n_clients,
            rounds,
            min_clients: n_clients,
            waiting: Waiting::Everybody,
            weighted: true,
            latency_max_ms: 20,
            training_ms: vec![500; n_clients],
            fails_once_in: 0,
            expires: None,
            faults: Vec::new(),
        }
    }

    /// What `seed` draws.
    pub(super) fn drawn(seed: u64) -> Self {
        let mut draws = Draws::new(seed);
        let n_clients = draws.between(3, 5) as usize;
        let client = |draws: &mut Draws| draws.between(0, n_clients as u64 - 1) as usize;
        let n_faults = draws.between(1, 10);
        let mut faults: Vec<(u64, Fault)> = (0..n_faults)
            .map(|_| {
                let at = draws.between(0, STORM_MS);
                let client = client(&mut draws);
                let ms = draws.between(20, 200) * draws.between(1, 200);
                let after_bytes = draws.between(0, 6_000);
                let fault = match draws.between(0, 15) {
                    0 | 1 => Fault::Silence { client, ms },
                    2 | 3 => Fault::Delay { client, ms },
                    4..=6 => Fault::Cut { client, after_bytes },
                    7 => Fault::Flip { client, after_bytes },
                    8..=10 => Fault::CrashClient { client, ms },
                    11..=13 => Fault::CrashCoordinator { ms: ms.min(20_000) },
                    14 => Fault::JumpClient { client, by_ms: jump(&mut draws) },
                    _ => Fault::JumpCoordinator { by_ms: jump(&mut draws) },
                };
                (at, fault)
            })
            .collect();
        faults.sort_by_key(|(at, _)| *at);
        let mut drawn = Self {
            n_clients,
            rounds: draws.between(1, 3) as u32,
            min_clients: draws.between(1, n_clients as u64) as usize,
            waiting: Waiting::Everybody,
            weighted: draws.once_in(2),
            latency_max_ms: draws.between(2, 400),
            training_ms: (0..n_clients).map(|_| draws.between(10, 9_000)).collect(),
            fails_once_in: if draws.once_in(3) { draws.between(2, 6) } else { 0 },
            expires: draws.once_in(5).then(|| (client(&mut draws), draws.between(0, STORM_MS))),
            faults,
        };
        let some = |draws: &mut Draws| draws.between(1, n_clients as u64 - 1) as usize;
        drawn.waiting = match draws.between(0, 7) {
            0 | 1 => Waiting::Carry,
            2 | 3 => Waiting::Buffer(some(&mut draws)),
            4 => Waiting::Sample(some(&mut draws)),
            _ => Waiting::Everybody,
        };
        if let Waiting::Buffer(n) | Waiting::Sample(n) = drawn.waiting {
            drawn.min_clients = drawn.min_clients.min(n);
        }
        if matches!(drawn.waiting, Waiting::Carry | Waiting::Buffer(_)) {
            // Some of them later than a round's deadline.
            drawn.training_ms.iter_mut().for_each(|ms| *ms *= 3);
        }
        drawn
    }
}

/// A jump of a clock: seconds, an hour of daylight saving, or a day, forward or back.
fn jump(draws: &mut Draws) -> i64 {
    let size = match draws.between(0, 3) {
        0 => draws.between(1, 30_000),
        1 => 1_000,
        2 => 3_600_000,
        _ => 86_400_000,
    };
    if draws.once_in(2) { size as i64 } else { -(size as i64) }
}
