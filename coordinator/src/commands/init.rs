//! `comity-coordinator init`: a new coordinator, ready to serve.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use comity_certs::{Authority, CertificateFacts, Clock};
use comity_federation::ClientId;

use crate::config::{Config, EnrolmentConfig, Home, StorageConfig};
use crate::founding::Books;
use crate::registry::{Change, FIRST_OPERATOR, MemberName};
use crate::service::Inviting;

/// For how long the invitations hold that `init` makes.
const INVITATION_TIME: Duration = Duration::from_secs(24 * 3600);

/// What `init` is told.
pub struct Init {
    /// Short name of the federation.
    pub federation: String,
    /// Where members are served.
    pub listen: SocketAddr,
    /// Where they join.
    pub enrolment_listen: Option<SocketAddr>,
    /// Names by which they reach the coordinator.
    pub names: Vec<String>,
    /// Whom to invite at once.
    pub invite: Vec<ClientId>,
}

/// Makes the folder, the authority, the configuration and the first lines of the journal; refuses to touch an
/// existing one.
pub fn init(home: &Home, init: Init) -> anyhow::Result<()> {
    let Init { federation, listen, enrolment_listen, names: server_names, invite } = init;
    let path = home.config();
    ensure!(
        !path.exists(),
        "{} exists: this folder already holds a coordinator; use another --dir",
        path.display()
    );
    let enrolment = EnrolmentConfig { listen: enrolment_listen, ..EnrolmentConfig::default() };
    let storage = StorageConfig::default();
    let config = Config { federation, listen, server_names, storage, enrolment };
    let port = config.enrolment_listen().port();
    ensure!(
        invite.is_empty() || port != 0,
        "--invite needs a port that is known now; give --enrolment-listen ADDRESS with one"
    );
    std::fs::create_dir_all(home.dir())
        .with_context(|| format!("folder {} cannot be made", home.dir().display()))?;
    let clock = Clock::system();
    Authority::init(home.certs(), &config.federation, &config.server_names, clock.date())?;
    let mut books = Books::open(home, &clock)?;
    books.found(home, &config.federation)?;
    let operator = std::fs::read_to_string(home.certs().join("operator.pem"))?;
    let operator = CertificateFacts::of_pem(&operator)?.key;
    let inviting = Inviting {
        federation: config.federation.clone(),
        certs: home.certs(),
        url: Some(config.url(port)),
    };
    let dir = home.dir().display();
    eprintln!("coordinator of federation {} made in {dir}", config.federation);
    eprintln!(
        "  {dir}/certs/ca-1/root.key   the root's key: move it offline once each country has a client"
    );
    for client in invite {
        let who = MemberName::Client(client);
        let (secret, secret_sha256) = Inviting::secret()?;
        let expires = books.now().after(INVITATION_TIME);
        let token = inviting.token(&who, secret, expires, (FIRST_OPERATOR, operator))?;
        let (who, title) = (who.clone(), who.to_string());
        let invited =
            Change::Invited { who: who.clone(), title, role: None, secret_sha256, expires };
        books.record(invited, FIRST_OPERATOR, "invited by init")?;
        eprintln!(
            "the invitation of {who}, for 24 hours, to be handed over by a way that you trust:"
        );
        println!("{}", *token);
    }
    // Last, so that a folder that `init` did not finish is not taken for a coordinator's.
    std::fs::write(&path, toml::to_string(&config)?)
        .with_context(|| format!("{} cannot be written", path.display()))?;
    eprintln!("next: comity-coordinator --dir {dir} serve");
    eprintln!(
        "      comity-coordinator --dir {dir} invite --country KR --institution \"Seoul Lab\""
    );
    Ok(())
}
