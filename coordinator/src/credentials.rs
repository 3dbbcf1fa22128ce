//! The coordinator's own certificate and what it trusts: read from its folder, and again whenever a file there
//! changes, so that nothing has to be restarted; a set that does not fit together is refused and the one before
//! stays.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use comity_certs::{
    Authority, CertError, CertificateFacts, Clock, check_own, enrolment_config, read_key_pem,
    server_config_with_crls,
};
use tokio::sync::{Notify, watch};
use tracing::{info, warn};

use crate::config::Home;
use crate::papers::Papers;

/// How often the files are looked at.
const LOOK_PAUSE: Duration = Duration::from_secs(1);
/// Looks between two at the age of the coordinator's own certificate.
const LOOKS_PER_RENEWAL: u32 = 600;

/// TLS as the files say; clones share it.
#[derive(Clone)]
pub(crate) struct Credentials {
    /// For members.
    pub(crate) members: Arc<ArcSwap<rustls::ServerConfig>>,
    /// For those who join.
    pub(crate) joining: Arc<ArcSwap<rustls::ServerConfig>>,
    papers: Papers,
    files: Arc<Mutex<Files>>,
    clock: Clock,
    certs: PathBuf,
    /// Names in the coordinator's certificate.
    names: Vec<String>,
}

/// What the files held.
#[derive(PartialEq, Eq)]
struct Files {
    certificate: String,
    key: zeroize::Zeroizing<String>,
    root: String,
    /// Revocation lists, DER, or why they cannot be used.
    lists: Result<Vec<Vec<u8>>, String>,
}

impl Files {
    fn read(certs: &Path) -> anyhow::Result<Self> {
        let pem = |name: &str| {
            let path = certs.join(name);
            std::fs::read_to_string(&path)
                .with_context(|| format!("{} cannot be read", path.display()))
        };
        // Named before the others, if nothing is there at all.
        pem("coordinator.pem")?;
        let key = read_key_pem(&certs.join("coordinator.key"))?;
        let lists = Authority::open(certs)
            .and_then(|authority| authority.load_crls())
            .map(|lists| lists.iter().map(|list| list.to_vec()).collect())
            .map_err(|error| error.to_string());
        Ok(Self { certificate: pem("coordinator.pem")?, key, root: pem("root.pem")?, lists })
    }

    /// TLS for members and for those who join.
    fn configure(
        &self,
        clock: &Clock,
        certs: &Path,
    ) -> anyhow::Result<(Arc<rustls::ServerConfig>, Arc<rustls::ServerConfig>)> {
        let Self { certificate, key, root, lists } = self;
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
        let lists = lists.clone().map_err(anyhow::Error::msg).with_context(files)?;
        let lists = lists.into_iter().map(Into::into).collect();
        let members =
            server_config_with_crls(certificate, key, root, lists, Arc::new(clock.clone()))
                .with_context(files)?;
        let joining = enrolment_config(certificate, key, root, Arc::new(clock.clone()))
            .with_context(files)?;
        Ok((members, joining))
    }
}

impl Credentials {
    /// Reads and checks the files at `home`, of a coordinator with these `names`.
    pub(crate) fn read(home: &Home, names: &[String], clock: &Clock) -> anyhow::Result<Self> {
        let certs = home.certs();
        let files = Files::read(&certs)?;
        let (members, joining) = files.configure(clock, &certs)?;
        let Files { certificate, key, root, .. } = &files;
        let papers = Papers::new(certificate, key, root)
            .with_context(|| format!("the certificates in {} cannot be used", certs.display()))?;
        Ok(Self {
            members: Arc::new(ArcSwap::from(members)),
            joining: Arc::new(ArcSwap::from(joining)),
            papers,
            files: Arc::new(Mutex::new(files)),
            clock: clock.clone(),
            certs,
            names: names.to_vec(),
        })
    }

    /// What the coordinator signs documents with; it changes with the files.
    pub(crate) fn papers(&self) -> Papers {
        self.papers.clone()
    }

    /// Takes the files as they are now, if they changed and fit together; connections that are open stay.
    pub(crate) fn reload(&self) -> anyhow::Result<bool> {
        // Whatever panicked while it held this had changed nothing.
        let mut taken = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let files = Files::read(&self.certs)?;
        if files == *taken {
            return Ok(false);
        }
        let (members, joining) = files.configure(&self.clock, &self.certs)?;
        self.papers.replace(&files.certificate, &files.key, &files.root)?;
        self.members.store(members);
        self.joining.store(joining);
        *taken = files;
        Ok(true)
    }

    /// Makes the coordinator's next certificate, for the same key, when two thirds of the life of this one are
    /// over.
    fn renew_if_due(&self) -> anyhow::Result<()> {
        let latest = {
            let taken = self.files.lock().unwrap_or_else(PoisonError::into_inner);
            CertificateFacts::of_pem(&taken.certificate)?
        };
        let now = self.clock.date();
        if now < latest.renews_at() {
            return Ok(());
        }
        let made = Authority::open(&self.certs)?.renew_coordinator(&self.names, now)?;
        info!(until = %made.not_after, "the coordinator's certificate was renewed");
        Ok(())
    }

    /// Follows the files until `stopped`; `now` asks for a look at once.
    pub(crate) async fn follow(self, now: Arc<Notify>, mut stopped: watch::Receiver<bool>) {
        let (mut said, mut n_looks) = (String::new(), 0u32);
        loop {
            if n_looks.is_multiple_of(LOOKS_PER_RENEWAL)
                && let Err(error) = self.renew_if_due()
            {
                warn!(error = format!("{error:#}"), "the coordinator's certificate is not renewed");
            }
            n_looks = n_looks.wrapping_add(1);
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
