//! The folders of a simulated federation: made by the same `init` and the same certificates as real ones.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use comity_certs::{
    Authority, Clock, Issued, MemberKey, Role, Signer, SigningRequest, read_key_pem,
};
use comity_client::policy_file::{NewPolicy, new_for};
use comity_coordinator::{Home, enrol};
use comity_datasets::{Contract, Dataset, Scale, write_idx};
use comity_federation::{Approval, ClientId, PinnedOperator, Plan};
use tempfile::TempDir;
use time::OffsetDateTime;

use super::faults::{Faults, Waiting};
use super::network::PORT;
use crate::deployment::copy_folder;

/// The date at which every simulation starts.
pub(super) fn start() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000)
}

const COUNTRIES: [&str; 5] = ["KR", "JP", "VN", "TH", "KE"];
/// The operator's host and name.
pub(super) const COORDINATOR: &str = "coordinator";

/// The host of client `index`.
pub(super) fn host(index: usize) -> String {
    format!("client-{index}")
}

/// Client `index`'s name.
pub(super) fn client_id(index: usize) -> ClientId {
    format!("{}/site-{index}", COUNTRIES[index]).parse().expect("a name")
}

/// Records that client `index` declares.
pub(super) fn records(index: usize) -> u64 {
    [100, 300, 200, 50, 700][index]
}

/// One authority for all simulations of a process: keys cost time, and no fault is about them.
struct Shared {
    authority: Authority,
    /// Each with its request, for another certificate of the same key.
    clients: Vec<(Issued, SigningRequest)>,
    _dir: TempDir,
}

fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    SHARED.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a folder");
        let now = OffsetDateTime::from(start());
        let names = [COORDINATOR.to_owned()];
        let authority = Authority::init(dir.path(), "sim", &names, now).expect("an authority");
        let clients = (0..COUNTRIES.len())
            .map(|i| {
                let (path, role) = (dir.path().join(host(i)), Role::Client(client_id(i)));
                let key = MemberKey::read_or_make(&path).expect("a key");
                let request = SigningRequest::of_der(&key.signing_request().unwrap()).unwrap();
                let lifetime = time::Duration::days(90);
                let certificate = authority.sign(&request, &role, lifetime, now);
                let root_pem = authority.root_pem().to_owned();
                let key_pem = read_key_pem(&path).unwrap();
                fs::remove_file(&path).unwrap();
                let certificate_pem = certificate.expect("one").certificate_pem;
                let issued = Issued { certificate_pem, key_pem, root_pem };
                (issued, request)
            })
            .collect();
        Shared { authority, clients, _dir: dir }
    })
}

/// The folders of one simulation; gone when it is dropped.
pub(super) struct Site {
    dir: TempDir,
    pub(super) plan: Plan,
    pub(super) plan_toml: String,
}

impl Site {
    /// Folders, certificates, configurations and data of the federation in `faults`.
    pub(super) fn new(faults: &Faults) -> Self {
        // Memory rather than a disk: a power cut is not among these faults, and fsync costs the most.
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() {
            tempfile::tempdir_in(memory).expect("a folder in memory")
        } else {
            tempfile::tempdir().expect("a folder")
        };
        let plan_toml = plan_toml(faults);
        let plan = Plan::from_toml(&plan_toml).expect("a valid plan");
        let site = Self { dir, plan, plan_toml };
        site.make_coordinator();
        for index in 0..faults.n_clients {
            site.make_client(index, faults);
        }
        site
    }

    pub(super) fn coordinator(&self) -> Home {
        Home::new(&self.coordinator_dir())
    }

    pub(super) fn coordinator_dir(&self) -> PathBuf {
        self.dir.path().join("coordinator")
    }

    pub(super) fn client_dir(&self, index: usize) -> PathBuf {
        self.dir.path().join(host(index))
    }

    pub(super) fn client_toml(&self, index: usize) -> PathBuf {
        self.client_dir(index).join("client.toml")
    }

    fn make_coordinator(&self) {
        let certs = self.coordinator_dir().join("certs");
        copy_folder(shared().authority.dir(), &certs);
        let text = format!(
            "federation = \"sim\"\nlisten = \"0.0.0.0:{PORT}\"\nserver_names = [\"{COORDINATOR}\"]\n\
             [storage]\nmodels_kept = 1000\nmodels_kept_of_ended = 1000\n"
        );
        fs::write(self.coordinator_dir().join("coordinator.toml"), text).unwrap();
        let certificates: Vec<&str> =
            shared().clients.iter().map(|(issued, _)| issued.certificate_pem.as_str()).collect();
        enrol(&self.coordinator(), "sim", &certificates, &Clock::from_fn(start)).unwrap();
    }

    fn make_client(&self, index: usize, faults: &Faults) {
        let dir = self.client_dir(index);
        fs::create_dir_all(dir.join("data")).unwrap();
        let contract = Contract { shape: vec![1, 2, 2], n_classes: 4, scale: Scale::Bytes };
        let data = Dataset::from_bytes(&contract, (0..16).collect(), vec![0, 1, 2, 3]).unwrap();
        write_idx(&dir.join("data"), &data).unwrap();
        let text = format!(
            "coordinator = \"https://{COORDINATOR}:{PORT}\"\ncertificates = \"certs\"\n\
             state = \"state\"\npolicy = \"policy.toml\"\ndevice = \"cpu\"\n[data]\nrecords = {}\n\
             source = {{ kind = \"idx\", images = \"data/images.idx\", labels = \"data/labels.idx\" }}\n",
            records(index)
        );
        let [certificate, key, _] = self.operator();
        let signer = Signer::of_pem(&certificate, &key).expect("the operator's key");
        let operator = PinnedOperator { name: "operator".to_owned(), key: signer.fingerprint() };
        let policy = NewPolicy {
            operators: vec![operator],
            budget: None,
            without_dp: true,
            approval: Approval::Auto,
        };
        fs::write(dir.join("policy.toml"), new_for(&policy)).unwrap();
        fs::write(self.client_toml(index), text).unwrap();
        match faults.expires {
            Some((client, ms)) if client == index => {
                let now = OffsetDateTime::from(start());
                let role = Role::Client(client_id(index));
                let (issued, request) = &shared().clients[index];
                let lifetime = time::Duration::milliseconds(ms.max(1_000).try_into().unwrap());
                let made = shared().authority.sign(request, &role, lifetime, now).unwrap();
                let certificate_pem = made.certificate_pem;
                let issued = Issued { certificate_pem, ..issued.clone() };
                issued.write(dir.join("certs")).unwrap();
            }
            _ => shared().clients[index].0.write(dir.join("certs")).unwrap(),
        }
    }

    /// Gives client `index` the certificate that it would get by asking again.
    pub(super) fn renew(&self, index: usize) {
        let certs = self.client_dir(index).join("certs");
        fs::remove_dir_all(&certs).unwrap();
        shared().clients[index].0.write(certs).unwrap();
    }

    /// The operator's certificate, key and root, PEM.
    pub(super) fn operator(&self) -> [String; 3] {
        ["operator.pem", "operator.key", "root.pem"].map(|name| {
            fs::read_to_string(self.coordinator_dir().join("certs").join(name)).unwrap()
        })
    }
}

fn plan_toml(faults: &Faults) -> String {
    let mut clients = String::new();
    for index in 0..faults.n_clients {
        let _ = writeln!(
            clients,
            "    {{ id = \"{}\", records = {} }},",
            client_id(index),
            records(index)
        );
    }
    let (cohort, strategy) = match faults.waiting {
        Waiting::Everybody => (String::new(), "\"fedavg\"".to_owned()),
        Waiting::Carry => {
            ("late = { carry = { rounds_max = 2 } }".to_owned(), "\"fedavg\"".to_owned())
        }
        Waiting::Buffer(n) => {
            (String::new(), format!("{{ fedbuff = {{ buffer = {n}, staleness_max = 2 }} }}"))
        }
        Waiting::Sample(n) => {
            (format!("sample = {{ clients = {n}, over_selection = 1 }}"), "\"fedavg\"".to_owned())
        }
    };
    format!(
        r#"
name = "sim"
purpose = "Count who is counted."
seed = 1
rounds = {}
[data]
shape = [1, 2, 2]
classes = 4
normalise = {{ mean = 0.5, std = 0.5 }}
[model]
layers = [{{ type = "flatten" }}, {{ type = "linear", out = 4 }}]
[training]
optimizer = {{ type = "sgd", learning_rate = 0.1 }}
batch = 4
local_epochs = 1
microbatch = 4
[privacy]
mode = "none"
[cohort]
min_clients = {}
min_countries = 1
gathering_deadline = "20s"
round_deadline = "20s"
weights = "{}"
{cohort}
clients = [
{clients}]
[aggregation]
strategy = {strategy}
server_learning_rate = 1.0
fixed_point_bits = 20
"#,
        faults.rounds,
        faults.min_clients,
        if faults.weighted { "declared" } else { "uniform" },
    )
}
