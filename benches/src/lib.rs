//! What the benches share: a network, and a clock that counts only what the bench itself computes.
//!
//! Wall time on a shared machine measures the neighbours. The benches here are of one thread, so
//! they are measured by the time that thread was on a processor.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use comity_federation::{Layer, ModelSpec};
use criterion::Throughput;
use criterion::measurement::{Measurement, ValueFormatter, WallTime};

/// The network that PyTorch, Opacus and the simulation peers are measured on: 56,714 parameters.
#[must_use]
pub fn small_cnn() -> ModelSpec {
    let conv = |out| Layer::Conv2d { out, kernel: 3, stride: 1, padding: 0 };
    let pool = || Layer::MaxPool2d { kernel: 2, stride: None };
    ModelSpec {
        layers: vec![
            conv(16),
            Layer::Relu,
            pool(),
            conv(32),
            Layer::Relu,
            pool(),
            Layer::Flatten,
            Layer::Linear { out: 64 },
            Layer::Relu,
            Layer::Linear { out: 10 },
        ],
    }
}

/// Time of the calling thread on a processor; wall time where the system does not tell.
///
/// Work that is handed to other threads is not counted.
#[derive(Clone, Copy, Debug)]
pub struct ThreadCpu;

/// A starting point of [`ThreadCpu`].
#[derive(Clone, Copy, Debug)]
pub enum Start {
    /// Nanoseconds on a processor so far.
    OnCpu(u64),
    /// Where the system does not tell.
    Wall(Instant),
}

impl Measurement for ThreadCpu {
    type Intermediate = Start;
    type Value = Duration;

    fn start(&self) -> Start {
        on_cpu_ns().map_or_else(|| Start::Wall(Instant::now()), Start::OnCpu)
    }

    fn end(&self, start: Start) -> Duration {
        match (start, on_cpu_ns()) {
            (Start::OnCpu(before), Some(now)) => Duration::from_nanos(now - before),
            (Start::OnCpu(_), None) => Duration::ZERO,
            (Start::Wall(before), _) => before.elapsed(),
        }
    }

    fn add(&self, first: &Duration, second: &Duration) -> Duration {
        *first + *second
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        value.as_nanos() as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        const WALL: &WallTime = &WallTime;
        WALL.formatter()
    }
}

/// First field of Linux' `schedstat`: nanoseconds that this thread has run.
fn on_cpu_ns() -> Option<u64> {
    // The kernel brings the figure up to date at a tick or when it schedules; without this, what
    // takes less than a tick would seem to take no time.
    thread::yield_now();
    fs::read_to_string("/proc/thread-self/schedstat").ok()?.split(' ').next()?.parse().ok()
}

/// Most memory that this process has held so far, in bytes, where the system tells.
#[must_use]
pub fn memory_peak_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

/// Elements a second, for benches over vectors of `n`.
#[must_use]
pub fn elements(n: usize) -> Throughput {
    Throughput::Elements(n as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleeping_costs_less_than_working() {
        let start = ThreadCpu.start();
        thread::sleep(Duration::from_millis(50));
        let asleep = ThreadCpu.end(start);
        if matches!(start, Start::OnCpu(_)) {
            assert!(asleep < Duration::from_millis(25), "{asleep:?}");
        }
    }
}
