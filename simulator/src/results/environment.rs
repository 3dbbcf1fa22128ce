//! On what a run ran: what is needed to repeat it, or to understand why it took as long as it did.

use std::fs;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Versions, machine and choices of one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// Version of Comity.
    pub comity: String,
    /// Operating system and processor family, such as `linux x86_64`.
    pub platform: String,
    /// Version of the operating system's kernel, where it tells.
    pub kernel: Option<String>,
    /// The processor's own name, where it tells.
    pub cpu: Option<String>,
    /// How many threads the operating system lets this program run at once.
    pub n_cores: usize,
    /// How many threads trained.
    pub n_threads: usize,
    /// What trained and scored.
    pub device: String,
    /// Where noise and batches came from.
    pub noise: String,
    /// The world's seed.
    pub seed: u64,
    /// The plan's seed.
    pub plan_seed: u64,
    /// When the run began, in UTC.
    pub started: String,
    /// The same in seconds since 1970.
    pub started_unix_s: f64,
}

impl Environment {
    /// Of this machine and this moment.
    #[must_use]
    pub fn here(n_threads: usize, device: &str, noise: &str, seed: u64, plan_seed: u64) -> Self {
        let now = OffsetDateTime::now_utc();
        let whole = now.replace_nanosecond(0).expect("0 is a nanosecond");
        Self {
            comity: env!("CARGO_PKG_VERSION").to_owned(),
            platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .ok()
                .map(|text| text.trim().to_owned()),
            cpu: fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| cpu_name(&text)),
            n_cores: std::thread::available_parallelism().map_or(1, usize::from),
            n_threads,
            device: device.to_owned(),
            noise: noise.to_owned(),
            seed,
            plan_seed,
            started: whole.format(&Rfc3339).expect("the year has four digits"),
            started_unix_s: now.unix_timestamp_nanos() as f64 / 1e9,
        }
    }
}

fn cpu_name(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_named_where_it_tells() {
        let text = "processor\t: 0\nmodel name\t: A CPU @ 2.00GHz\nmodel name\t: B\n";
        assert_eq!(cpu_name(text).as_deref(), Some("A CPU @ 2.00GHz"));
        assert_eq!(cpu_name("Processor: ARM"), None);
        let here = Environment::here(3, "cpu", "exact noise", 1, 2);
        assert!(here.started.ends_with('Z') && here.started_unix_s > 1.7e9, "{here:?}");
    }
}
