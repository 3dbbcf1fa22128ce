//! A federation for benches: a real coordinator process, and clients as each figure needs them.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use comity_certs::client_config;
use comity_federation::ClientId;
use comity_proto::limits::MESSAGE_BYTES_MAX;
use comity_proto::transport::connect;
use comity_proto::v1::federation_client::FederationClient;
use comity_proto::v1::{CheckInRequest, HelloRequest};
use comity_tests::{Binaries, ClientSetup, Deployment};
use tempfile::TempDir;
use tonic::transport::Channel;

use crate::peers::target;

const COUNTRIES: [&str; 4] = ["KR", "JP", "VN", "TH"];

/// One federation; its folder is gone when it is dropped.
pub(crate) struct Site {
    pub(crate) deployment: Deployment,
    pub(crate) clients: Vec<ClientId>,
    pub(crate) dir: TempDir,
}

impl Site {
    /// A serving coordinator and the folders of `n_clients`, under `parent`.
    ///
    /// Data are four examples of `n_features` bytes, with labels below four.
    pub(crate) fn new(parent: &Path, n_clients: usize, n_features: usize) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir_in(parent)?;
        let mut deployment = Deployment::init(Binaries::find()?, dir.path(), "bench")?;
        deployment.serve()?;
        let mut site = Self { deployment, clients: Vec::new(), dir };
        for index in 0..n_clients {
            let id: ClientId = format!("{}/site-{index}", COUNTRIES[index % 4]).parse()?;
            let setup = ClientSetup {
                id: id.clone(),
                source:
                    "source = { kind = \"idx\", images = \"images.idx\", labels = \"labels.idx\" }"
                        .to_owned(),
                records: 16,
                budget: None,
                without_dp: true,
            };
            site.deployment.add_client(&setup)?;
            write_data(&site.deployment.client_dir(&id), index, n_features)?;
            site.clients.push(id);
        }
        Ok(site)
    }

    /// [`new`](Self::new) on the disk.
    pub(crate) fn on_disk(n_clients: usize, n_features: usize) -> anyhow::Result<Self> {
        Self::new(&target(), n_clients, n_features)
    }

    /// Launches a run of one linear map from `n_features` to `n_classes`.
    pub(crate) fn launch(
        &self,
        n_features: usize,
        n_classes: usize,
        rounds: u32,
    ) -> anyhow::Result<String> {
        let path = self.dir.path().join("plan.toml");
        std::fs::write(&path, plan(&self.clients, n_features, n_classes, rounds))?;
        self.deployment.launch(&path)
    }

    /// A connection as `client` on which the coordinator has said hello.
    pub(crate) async fn connect(
        &self,
        client: &ClientId,
    ) -> anyhow::Result<FederationClient<Channel>> {
        let pem = |name: &str| {
            let path = self.deployment.client_dir(client).join("certs").join(name);
            std::fs::read_to_string(path)
        };
        let tls = client_config(&pem("certificate.pem")?, &pem("key.pem")?, &pem("root.pem")?)?;
        hello(&self.deployment.url()?, tls).await
    }

    /// Agrees to `run` in the name of `client`.
    pub(crate) async fn check_in(
        &self,
        client: &mut FederationClient<Channel>,
        run: &str,
    ) -> anyhow::Result<()> {
        let plan = self.deployment.report(run)?.plan;
        let request =
            CheckInRequest { run_id: run.to_owned(), plan_digest: plan.0.to_vec().into() };
        client.check_in(request).await?;
        Ok(())
    }
}

/// Connects to `url` and says hello.
pub(crate) async fn hello(
    url: &str,
    tls: Arc<rustls::ClientConfig>,
) -> anyhow::Result<FederationClient<Channel>> {
    let mut client = FederationClient::new(connect(url, tls).await?)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let request = HelloRequest { protocol: comity_proto::PROTOCOL, software: "bench".to_owned() };
    client.hello(request).await.context("no hello")?;
    Ok(client)
}

/// A plan without privacy, so that nothing but the round itself costs time.
pub(crate) fn plan(
    clients: &[ClientId],
    n_features: usize,
    n_classes: usize,
    rounds: u32,
) -> String {
    let named: String =
        clients.iter().map(|id| format!("    {{ id = \"{id}\", records = 16 }},\n")).collect();
    format!(
        r#"name = "bench"
purpose = "Measure a round."
seed = 1
rounds = {rounds}
[data]
shape = [{n_features}]
classes = {n_classes}
normalise = {{ mean = 0.5, std = 0.5 }}
[model]
layers = [{{ type = "linear", out = {n_classes} }}]
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
gathering_deadline = "10m"
round_deadline = "10m"
weights = "uniform"
clients = [
{named}]
[aggregation]
strategy = "fedavg"
server_learning_rate = 1.0
fixed_point_bits = 20
"#,
        clients.len()
    )
}

/// Four examples in IDX files, of each client its own: equal ones would be trained to equal updates, of
/// which a coordinator takes one.
fn write_data(dir: &Path, client_index: usize, n_features: usize) -> anyhow::Result<()> {
    let mut images = vec![0, 0, 8, 2, 0, 0, 0, 4];
    images.extend(u32::try_from(n_features)?.to_be_bytes());
    images.extend((0..4 * n_features).map(|i| ((i + 13 * client_index) * 37 % 251) as u8));
    std::fs::write(dir.join("images.idx"), images)?;
    std::fs::write(dir.join("labels.idx"), [0, 0, 8, 1, 0, 0, 0, 4, 0, 1, 2, 3])?;
    Ok(())
}
