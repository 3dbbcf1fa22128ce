//! The fold of updates into a model, beside the machine's own limit.
//!
//! Every rate is in bytes of updates (of `x`) a second: four an update and coordinate.  A loop over arrays
//! larger than the cache moves twelve for each four (reads x, reads and writes y), so a limit that is
//! quoted as 18 GB/s of memory traffic is 6 GB/s here; ratios are the same in either unit.

use std::hint::black_box;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::time::Instant;

use comity_federation::{Aggregation, Fold, ServerStep, Strategy, Updates};
use comity_journal::{BlobReader, BlobStore};

use crate::peers;
use crate::table::{Row, best};

/// Coordinates of an update: 64 MiB, and eight of them.
const N: usize = 1 << 24;
/// Values in each array of the machine's own limit: 256 MiB, many times the largest cache.
const N_AXPY: usize = 1 << 26;
/// Updates of a round.
const N_UPDATES: usize = 8;
const REPEATS: usize = 7;

pub(crate) fn measure() -> anyhow::Result<Vec<Row>> {
    let limit = axpy();
    let numpy = peers::run("axpy.py", &[&N_AXPY.to_string(), &REPEATS.to_string()])?;
    let numpy = best(&peers::rates(&numpy, "axpy")?);
    let updates: Vec<Vec<u8>> = (0..N_UPDATES as u32)
        .map(|u| (0..N as u32).flat_map(|i| (i.wrapping_mul(u + 1) >> 9).to_le_bytes()).collect())
        .collect();
    let mut slices: Vec<&[u8]> = updates.iter().map(Vec::as_slice).collect();
    let memory = rate(&mut slices[..])?;

    let dir = tempfile::tempdir_in(peers::target())?;
    let blobs = BlobStore::open(dir.path())?;
    let mut files = Files(Vec::new());
    for update in &updates {
        files.0.push(blobs.reader(&blobs.put(update)?)?);
    }
    let from_files = rate(&mut files)?;
    let row = |figure: &str, ours: f64, target: Option<f64>| Row {
        figure: figure.to_owned(),
        ours: format!("{ours:.2} GB/s"),
        anchor: format!("axpy in Rust {limit:.2} GB/s, in numpy {numpy:.2}"),
        ratio: Some(ours / limit),
        target: target.map(|ratio| format!("≥ {ratio} × axpy")).unwrap_or_default(),
        met: target.map(|ratio| ours >= ratio * limit),
    };
    Ok(vec![
        row("fold of 8 updates, one thread, from memory", memory, Some(0.7)),
        row("fold of 8 updates, one thread, from files in the page cache", from_files, None),
    ])
}

/// The machine's one-thread rate of `y += a * x`.
fn axpy() -> f64 {
    let x = vec![1.0f32; N_AXPY];
    let mut y = vec![0.0f32; N_AXPY];
    let rates: Vec<f64> = (0..REPEATS)
        .map(|repeat| {
            let a = black_box(repeat as f32 + 0.5);
            let began = Instant::now();
            for (y, x) in y.iter_mut().zip(&x) {
                *y += a * x;
            }
            black_box(&mut y);
            (4 * N_AXPY) as f64 / began.elapsed().as_secs_f64() / 1e9
        })
        .collect();
    best(&rates)
}

/// The rate at which the coordinator's own fold takes `updates`.
fn rate<U: Updates + ?Sized>(updates: &mut U) -> anyhow::Result<f64>
where
    U::Error: Into<anyhow::Error>,
{
    let settings = Aggregation {
        strategy: Strategy::Fedavg,
        server_learning_rate: 1.0,
        fixed_point_bits: 20,
        country_weight_max: None,
        update_norm_max_l2: None,
        update_encoding: comity_federation::UpdateEncoding::Int32,
    };
    let weights: Vec<u64> = (0..N_UPDATES as u64).map(|u| 100 * u + 7).collect();
    let mut rates = Vec::new();
    let base = vec![0.5f32; N];
    for _ in 0..REPEATS {
        let step = ServerStep::new(&settings, N, 0);
        let mut fold = Fold::new(step, weights.clone(), 1.0, updates).map_err(Into::into)?;
        let began = Instant::now();
        for range in fold.chunks() {
            let next = fold.step(range, &mut &base[..], updates).map_err(Into::into)?;
            black_box(next);
        }
        rates.push((4 * N * N_UPDATES) as f64 / began.elapsed().as_secs_f64() / 1e9);
    }
    Ok(best(&rates))
}

/// Updates in files, as the coordinator reads them.
struct Files(Vec<BlobReader>);

impl Updates for Files {
    type Error = anyhow::Error;

    fn read(&mut self, index: usize, from: usize, into: &mut [u8]) -> anyhow::Result<()> {
        let file = &mut self.0[index];
        if from == 0 {
            file.seek(SeekFrom::Start(0))?;
        }
        Ok(file.read_exact(into)?)
    }
}
