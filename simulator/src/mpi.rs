//! The processes that `mpirun` started, as [`Ranks`].

use mpi::Threading;
use mpi::collective::SystemOperation;
use mpi::datatype::PartitionMut;
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives};

use crate::{Ranks, SimulationError};

/// Most values that are summed at once: MPI counts in 32 bits.
const SUM_VALUES_MAX: usize = 1 << 26;

/// All processes of one `mpirun`; by itself a process that was started without it.
pub struct Mpi {
    world: SimpleCommunicator,
    // Ends MPI when it is dropped, so after everything that uses it.
    _universe: Universe,
}

impl Mpi {
    /// Joins the others.
    ///
    /// # Errors
    /// [`SimulationError::Mpi`] if MPI cannot be begun, or was begun already.
    pub fn join() -> Result<Self, SimulationError> {
        // Only the thread that drives the simulation talks to the others.
        let (universe, threading) =
            mpi::initialize_with_threading(Threading::Funneled).ok_or(SimulationError::Mpi)?;
        if threading == Threading::Single {
            return Err(SimulationError::Mpi);
        }
        Ok(Self { world: universe.world(), _universe: universe })
    }
}

impl Ranks for Mpi {
    fn rank(&self) -> usize {
        usize::try_from(self.world.rank()).expect("ranks are counted from 0")
    }

    fn size(&self) -> usize {
        usize::try_from(self.world.size()).expect("there is at least this process")
    }

    fn gather(&self, mine: &[u8]) -> Vec<Vec<u8>> {
        let n = i32::try_from(mine.len()).expect("headers of a wave are some megabytes");
        let mut counts = vec![0; self.size()];
        self.world.all_gather_into(&n, &mut counts[..]);
        let starts: Vec<i32> = counts
            .iter()
            .scan(0, |next, count| {
                let start = *next;
                *next += count;
                Some(start)
            })
            .collect();
        let mut all = vec![0_u8; counts.iter().map(|count| *count as usize).sum()];
        let mut parts = PartitionMut::new(&mut all[..], &counts[..], &starts[..]);
        self.world.all_gather_varcount_into(mine, &mut parts);
        let part =
            |(start, count): (&i32, &i32)| all[*start as usize..(start + count) as usize].to_vec();
        starts.iter().zip(&counts).map(part).collect()
    }

    fn sum(&self, values: &mut [i64]) {
        for values in values.chunks_mut(SUM_VALUES_MAX) {
            let mine = values.to_vec();
            self.world.all_reduce_into(&mine[..], values, SystemOperation::sum());
        }
    }
}
