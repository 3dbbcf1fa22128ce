//! The coordinator's own certificate and what it trusts: read from its folder, and again whenever a file there
//! changes, so that nothing has to be restarted; a set that does not fit together is refused and the one before
//! stays.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use comity_certs::{CertError, Clock, check_own, enrolment_config, read_key_pem, server_config_at};
use tokio::sync::{Notify, watch};
use tracing::{info, warn};

use crate::config::Home;
use crate::papers::Papers;

/// How often the files are looked at.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// TLS as the files say.
pub(crate) struct Credentials {
    /// For members.
    pub(crate) members: Arc<ArcSwap<rustls::ServerConfig>>,
    /// For those who join.
    pub(crate) joining: Arc<ArcSwap<rustls::ServerConfig>>,
    papers: Papers,
    files: Files,
    clock: Clock,
    certs: PathBuf,
}

/// What the files held.
#[derive(PartialEq, Eq)]
struct Files {
    certificate: String,
    key: zeroize::Zeroizing<String>,
    root: String,
}

impl Files {
    fn read(certs: &std::path::Path) -> anyhow::Result<Self> {
        let pem = |name: &str| {
            let path = certs.join(name);
            std::fs::read_to_string(&path)
                .with_context(|| format!("{} cannot be read", path.display()))
        };
        let key = read_key_pem(&certs.join("coordinator.key"))?;
        Ok(Self { certificate: pem("coordinator.pem")?, key, root: pem("root.pem")? })
    }

    /// TLS for members and for those who join.
    fn configure(
        &self,
        clock: &Clock,
        certs: &std::path::Path,
    ) -> anyhow::Result<(Arc<rustls::ServerConfig>, Arc<rustls::ServerConfig>)> {
        let Self { certificate, key, root } = self;
        let files = || {
            format!(
                "coordinator.pem, coordinator.key and root.pem in {} do not belong together, or one is \
                 damaged; put them back from a backup",
                certs.display()
            )
        };
        match check_own(certificate, key, root, clock.date()) {
            Ok(_) => {}
            // Clients will say so too; the operator can still see the runs.
            Err(dated @ (CertError::Expired { .. } | CertError::NotYetValid { .. })) => {
                warn!(%dated, "clients will refuse this certificate");
            }
            Err(other) => return Err(other).with_context(files),
        }
        let members = server_config_at(certificate, key, root, Arc::new(clock.clone()))
            .with_context(files)?;
        let joining = enrolment_config(certificate, key, root, Arc::new(clock.clone()))
            .with_context(files)?;
        Ok((members, joining))
    }
}

impl Credentials {
    /// Reads and checks the files at `home`.
    pub(crate) fn read(home: &Home, clock: &Clock) -> anyhow::Result<Self> {
        let certs = home.certs();
        let files = Files::read(&certs)?;
        let (members, joining) = files.configure(clock, &certs)?;
        let (members, joining) =
            (Arc::new(ArcSwap::from(members)), Arc::new(ArcSwap::from(joining)));
        let Files { certificate, key, root } = &files;
        let papers = Papers::new(certificate, key, root)
            .with_context(|| format!("the certificates in {} cannot be used", certs.display()))?;
        Ok(Self { members, joining, papers, files, clock: clock.clone(), certs })
    }

    /// What the coordinator signs documents with; it changes with the files.
    pub(crate) fn papers(&self) -> Papers {
        self.papers.clone()
    }

    /// Takes the files as they are now, if they changed and fit together; connections that are open stay.
    fn reload(&mut self) -> anyhow::Result<bool> {
        let files = Files::read(&self.certs)?;
        if files == self.files {
            return Ok(false);
        }
        let (members, joining) = files.configure(&self.clock, &self.certs)?;
        self.papers.replace(&files.certificate, &files.key, &files.root)?;
        self.members.store(members);
        self.joining.store(joining);
        self.files = files;
        Ok(true)
    }

    /// Follows the files until `stopped`; `now` asks for a look at once.
    pub(crate) async fn follow(mut self, now: Arc<Notify>, mut stopped: watch::Receiver<bool>) {
        let mut said = String::new();
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_PAUSE) => {}
                () = now.notified() => said.clear(),
                _ = stopped.wait_for(|stop| *stop) => return,
            }
            match self.reload() {
                Ok(false) => said.clear(),
                Ok(true) => {
                    info!("new certificates taken; connections that are open go on");
                    said.clear();
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    if error != said {
                        warn!(error, "new certificates refused; those before stay in use");
                        said = error;
                    }
                }
            }
        }
    }
}
