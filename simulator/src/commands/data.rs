//! `comity-sim data`: public data sets of the examples, fetched and checked.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, anyhow, bail, ensure};
use clap::{Args, Subcommand, ValueEnum};
use comity_simulator::results::folder::partial;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::output::{self, Hint};

/// Fetch public data sets for the examples.
#[derive(Subcommand)]
pub(crate) enum Data {
    /// Download a data set's files and check them against pinned digests.
    Fetch(Fetch),
}

/// Download a data set's files and check them against pinned digests.
///
/// The files come from the data set's publisher by the system's curl. A file is whole and has the pinned SHA-256, or it
/// is not there; files that are there already are not fetched again, so that a second call goes on where
/// the first one ended.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  comity-sim data fetch heart-disease --out examples/heart/data
  comity-sim data fetch heart-disease --out data --from file:///mnt/mirror/heart-disease")]
pub(crate) struct Fetch {
    /// Which data set.
    #[arg(value_name = "NAME")]
    name: DataSet,
    /// Folder for the files.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// A mirror: address of the folder with the files, https://, http:// or file://.
    #[arg(long, value_name = "URL")]
    from: Option<String>,
    /// Print the files as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum DataSet {
    /// UCI Heart Disease, four centres (Janosi, Steinbrunn, Pfisterer, Detrano 1989; CC BY 4.0).
    HeartDisease,
}

/// A file of a data set.
struct Pinned {
    name: &'static str,
    bytes: u64,
    sha256: &'static str,
}

/// Most bytes that a download may take over its pinned size, so that a wrong address ends soon.
const SPARE_BYTES: u64 = 1 << 16;
/// Longest that one file may take.
const SECONDS_MAX: u32 = 600;

const HEART_DISEASE: [Pinned; 4] = [
    Pinned {
        name: "processed.cleveland.data",
        bytes: 18_461,
        sha256: "a74b7efa387bc9d108d7d0115d831fe9b414b29ae7124f331b622b4efa0427c8",
    },
    Pinned {
        name: "processed.hungarian.data",
        bytes: 10_263,
        sha256: "d1ad108f785768cd3d7e82dc522e6f5a61eea93cccfb3a46ee8076f73fc3d796",
    },
    Pinned {
        name: "processed.switzerland.data",
        bytes: 4_109,
        sha256: "834a405ccf5b66ab4056bb77794adc8df0b7125186454c0a1d002d33c6c3b314",
    },
    Pinned {
        name: "processed.va.data",
        bytes: 6_737,
        sha256: "e7c93d8d0d2acdadfa4c5e8de768e2191e7f618b952e29623f1f0d5949ff6b8f",
    },
];

impl DataSet {
    fn files(self) -> &'static [Pinned] {
        match self {
            Self::HeartDisease => &HEART_DISEASE,
        }
    }

    /// The publisher's folder.
    fn address(self) -> &'static str {
        match self {
            Self::HeartDisease => {
                "https://archive.ics.uci.edu/ml/machine-learning-databases/heart-disease"
            }
        }
    }
}

#[derive(Serialize)]
struct Fetched {
    path: PathBuf,
    sha256: &'static str,
    /// Whether it came now, or was there.
    fetched: bool,
}

impl Data {
    pub(crate) fn execute(&self) -> anyhow::Result<()> {
        match self {
            Self::Fetch(fetch) => fetch.execute(),
        }
    }
}

impl Fetch {
    fn execute(&self) -> anyhow::Result<()> {
        let from = self.from.as_deref().unwrap_or(self.name.address()).trim_end_matches('/');
        let known =
            ["https://", "http://", "file://"].iter().any(|scheme| from.starts_with(scheme));
        ensure!(known, "--from {from} is no address; write https://…, http://… or file:///…");
        output::make_dir(&self.out)?;
        let mut files = Vec::new();
        for pinned in self.name.files() {
            let path = self.out.join(pinned.name);
            let there = check(&path, pinned)?;
            if !there {
                fetch(&format!("{from}/{}", pinned.name), &path, pinned)?;
            }
            files.push(Fetched { path, sha256: pinned.sha256, fetched: !there });
        }
        if self.json { output::print_json(&files) } else { output::print(&text(&files)) }
    }
}

/// Whether the pinned file is at `path`; another one there is left alone.
fn check(path: &Path, pinned: &Pinned) -> anyhow::Result<bool> {
    match fs::read(path) {
        Ok(bytes) if digest(&bytes) == pinned.sha256 => Ok(true),
        Ok(_) => Err(Hint::attach(
            anyhow!("{} is another file than the one published", path.display()),
            "move it away, or give another folder with --out",
        )),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Downloads beside `path`, and moves the file there once it is the pinned one.
fn fetch(url: &str, path: &Path, pinned: &Pinned) -> anyhow::Result<()> {
    let partial = partial(path);
    let result = download(url, &partial, pinned).and_then(|()| {
        let bytes =
            fs::read(&partial).with_context(|| format!("cannot read {}", partial.display()))?;
        let found = digest(&bytes);
        if found != pinned.sha256 {
            return Err(Hint::attach(
                anyhow!("{url} has SHA-256 {found}, not the pinned {}", pinned.sha256),
                "nothing was kept; the publisher changed the file or something altered it on its \
                 way: try again, or a mirror with --from URL",
            ));
        }
        fs::rename(&partial, path).with_context(|| format!("cannot write {}", path.display()))
    });
    if result.is_err() {
        // What is left of a failed download is of no use; that it is gone is no reason to fail otherwise.
        let _ = fs::remove_file(&partial);
    }
    result
}

fn download(url: &str, to: &Path, pinned: &Pinned) -> anyhow::Result<()> {
    let output = Command::new("curl")
        .args(["--fail", "--location", "--silent", "--show-error", "--globoff"])
        .args(["--proto", "=https,http,file", "--proto-redir", "=https"])
        .args(["--retry", "2", "--max-time", &SECONDS_MAX.to_string()])
        .args(["--max-filesize", &(pinned.bytes + SPARE_BYTES).to_string()])
        .arg("--output")
        .arg(to)
        .args(["--url", url])
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(Hint::attach(
                anyhow!("curl is not installed, by which files are fetched"),
                format!("install it (apt-get install curl), or copy {url} to the folder by hand"),
            ));
        }
        Err(error) => return Err(error).context("curl cannot be started"),
    };
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{url} cannot be fetched: {}; check the connection, or give a mirror with --from URL",
            reason.trim()
        );
    }
    Ok(())
}

fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn text(files: &[Fetched]) -> String {
    let rows = files.iter().map(|file| {
        let state = if file.fetched { "fetched" } else { "was there" };
        vec![file.path.display().to_string(), state.to_owned(), file.sha256[..16].to_owned()]
    });
    let header = ["file", "", "SHA-256"].map(str::to_owned).to_vec();
    output::table(header, rows.collect())
}
