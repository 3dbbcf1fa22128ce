//! What a node takes from outside itself: the date, the network, and who trains.

use std::sync::Arc;

use comity_certs::Clock;
use comity_proto::transport::{Dial, Tcp};

use crate::trainer::{Burn, Train};

/// The surroundings of a node. A deployed one has [`Outside::deployed`]; nothing in its configuration, its
/// arguments or a message chooses another.
#[derive(Clone)]
pub struct Outside {
    /// Where the date comes from.
    pub clock: Clock,
    /// How connections go out.
    pub network: Arc<dyn Dial>,
    /// What computes a round; whatever it is, only what the ledger paid for leaves.
    pub trainer: Arc<dyn Train>,
}

impl Outside {
    /// The operating system's clock and TCP, and training with burn.
    #[must_use]
    pub fn deployed() -> Self {
        Self { clock: Clock::system(), network: Arc::new(Tcp), trainer: Arc::new(Burn) }
    }
}
