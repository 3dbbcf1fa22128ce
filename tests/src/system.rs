//! Facts about whole federations of real processes.

mod authorities;
mod bad_input;
mod compression;
mod consent;
mod corruption;
mod crash;
mod disk_full;
mod egress;
mod enrolment;
mod governance;
mod hostile;
mod io_faults;
mod kills;
mod papers;
mod parity;
mod privacy;
mod readme;
mod refusals;
mod resume;
mod retention;
mod revocation;
mod rogue;
mod weather;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use comity_datasets::{Contract, Dataset, Scale, write_idx};
use comity_federation::{ClientId, RunReport};
use tempfile::TempDir;

use crate::{Binaries, ClientSetup, Deployment, Finished};

/// How long anything in these tests may take; they need a second or two.
const PATIENCE: Duration = Duration::from_secs(120);

/// The plan of these tests, without DP; each test changes what it is about.
const PLAN: &str = r#"
name = "stripes"
purpose = "Tell horizontal from vertical stripes; a test."
seed = 3
rounds = 3
[data]
shape = [1, 8, 8]
classes = 2
normalise = { mean = 0.5, std = 0.5 }
[model]
layers = [
    { type = "conv2d", out = 4, kernel = 3 },
    { type = "tanh" },
    { type = "max_pool2d", kernel = 2 },
    { type = "flatten" },
    { type = "linear", out = 2 },
]
[training]
optimizer = { type = "sgd", learning_rate = 0.1 }
batch = 32
local_epochs = 2
microbatch = 16
[privacy]
mode = "none"
[cohort]
min_clients = 3
min_countries = 3
gathering_deadline = "2m"
round_deadline = "2m"
weights = "declared"
clients = [
    { id = "KR/a", records = 200 },
    { id = "JP/b", records = 200 },
    { id = "VN/c", records = 200 },
]
[aggregation]
strategy = "fedavg"
server_learning_rate = 1.0
fixed_point_bits = 22
"#;

/// A plan of many short rounds, for tests that disturb them.
fn short_rounds(rounds: u32) -> String {
    let layers = "layers = [{ type = \"flatten\" }, { type = \"linear\", out = 2 }]";
    let (before, rest) = PLAN.split_once("layers = [").unwrap();
    let (_, after) = rest.split_once("\n]\n").unwrap();
    format!("{before}{layers}\n{after}")
        .replace("rounds = 3", &format!("rounds = {rounds}"))
        .replace("local_epochs = 2", "local_epochs = 1")
        .replace("batch = 32", "batch = 100")
        .replace("microbatch = 16", "microbatch = 100")
}

const WITH_DP: &str = "mode = \"dp_sgd\"\nunit = \"record\"\nepsilon = 8.0\ndelta = 1e-4\nclip_norm_l2 = 0.5\n\
                       metrics = { accuracy_rho_per_round = 0.01 }";

/// A folder with the plan, a world of striped images, and a federation that is served from it.
struct Site {
    dir: TempDir,
    deployment: Deployment,
}

impl Site {
    /// Everything made, the coordinator serving, no client yet.
    fn new(plan: &str) -> Self {
        Self::prepared(plan, |_| {})
    }

    /// The same, after `prepare` has seen the folder in which everything will lie: the coordinator in
    /// `run/coordinator`, each client in one like `run/KR-a`.
    fn prepared(plan: &str, prepare: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        prepare(root);
        fs::write(root.join("plan.toml"), plan).unwrap();
        fs::write(
            root.join("world.toml"),
            "seed = 5\n[data]\n\
             train = { kind = \"idx\", images = \"train/images.idx\", labels = \"train/labels.idx\" }\n\
             test = { kind = \"idx\", images = \"test/images.idx\", labels = \"test/labels.idx\" }\n\
             [partition]\nkind = \"iid\"\n",
        )
        .unwrap();
        for (folder, n) in [("train", 600), ("test", 200)] {
            let folder = root.join(folder);
            fs::create_dir_all(&folder).unwrap();
            write_idx(&folder, &stripes(n)).unwrap();
        }
        let mut deployment =
            Deployment::init(Binaries::find().unwrap(), &root.join("run"), "test").unwrap();
        deployment.serve().unwrap();
        Self { dir, deployment }
    }

    /// Makes the coordinator's ports stay the same, because clients come back to them.
    fn keep_port(&self) {
        let config = self.deployment.coordinator_dir().join("coordinator.toml");
        let mut text = fs::read_to_string(&config).unwrap();
        // The members' port comes first in the file.
        for url in [self.deployment.url(), self.deployment.enrolment_url()] {
            let url = url.unwrap();
            text = text.replacen("127.0.0.1:0", url.strip_prefix("https://").unwrap(), 1);
        }
        write(&config, &text);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn sim(&self, args: &[&str]) -> Finished {
        let mut command = Binaries::find().unwrap().command("comity-sim");
        Finished::of(command.current_dir(self.dir.path()).args(args)).unwrap()
    }

    /// Splits the world's data and makes the three clients, which are not started.
    fn add_clients(&mut self, budget: Option<(f64, f64)>, without_dp: bool) -> Vec<ClientId> {
        self.sim(&["split", "--plan", "plan.toml", "--world", "world.toml", "--out", "shards"])
            .success()
            .unwrap();
        let ids: Vec<ClientId> = ["KR/a", "JP/b", "VN/c"].map(|id| id.parse().unwrap()).into();
        for id in &ids {
            let folder = self.path(&format!("shards/{}-{}", id.country(), id.institution()));
            let folder = folder.display();
            self.deployment
                .add_client(&ClientSetup {
                    id: id.clone(),
                    source: format!(
                        "source = {{ kind = \"idx\", images = \"{folder}/images.idx\", labels = \"{folder}/labels.idx\" }}"
                    ),
                    records: 200,
                    budget,
                    without_dp,
                })
                .unwrap();
        }
        ids
    }

    fn start_clients(&mut self, ids: &[ClientId]) {
        for id in ids {
            self.deployment.start_client(id, 1).unwrap();
        }
    }

    fn launch(&self) -> String {
        self.deployment.launch(&self.path("plan.toml")).unwrap()
    }

    /// Waits until the run's report is as `wanted`.
    fn wait(&self, run: &str, wanted: impl Fn(&RunReport) -> bool) -> RunReport {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Ok(report) = self.deployment.report(run) {
                if wanted(&report) {
                    return report;
                }
                assert!(Instant::now() < end, "still {report:#?}");
            }
            assert!(Instant::now() < end, "the coordinator does not answer");
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    fn wait_for_end(&self, run: &str) -> RunReport {
        self.wait(run, |report| report.status.is_terminal())
    }

    /// Digest of the model to which the simulator brings the same plan.
    fn simulated_model(&self) -> String {
        let run = self.sim(&["run", "plan.toml", "--world", "world.toml", "--json"]);
        run.success().unwrap().json().unwrap()["model"].as_str().unwrap().to_owned()
    }
}

/// Images of 8 × 8 bytes: even ones with horizontal stripes, odd ones with vertical ones.
fn stripes(n: usize) -> Dataset {
    let contract = Contract { shape: vec![1, 8, 8], n_classes: 2, scale: Scale::Bytes };
    let mut features = Vec::with_capacity(n * 64);
    let mut state = 1u64;
    for i in 0..n {
        for pixel in 0..64 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let noise = (state >> 58) as u8;
            let line = if i % 2 == 0 { pixel / 8 } else { pixel % 8 };
            features.push(noise + if (line + i / 2) % 2 == 0 { 190 } else { 0 });
        }
    }
    Dataset::from_bytes(&contract, features, (0..n).map(|i| (i % 2) as u32).collect()).unwrap()
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
}
