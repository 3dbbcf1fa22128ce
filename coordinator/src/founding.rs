//! Membership while nobody serves: the founding of a federation, and members whose certificates were made by
//! other means, as set-up code does.

use anyhow::{Context as _, ensure};
use comity_certs::{CertificateFacts, Clock, time_of};
use comity_federation::Time;
use comity_journal::{DirLock, Journal};

use crate::config::Home;
use crate::registry::{Change, MemberName, Registry};
use crate::store::Entry;

/// The journal of a coordinator that does not serve, and who belongs to it.
pub(crate) struct Books {
    journal: Journal,
    registry: Registry,
    now: Time,
    _lock: DirLock,
}

impl Books {
    /// Opens the journal at `home`.
    pub(crate) fn open(home: &Home, clock: &Clock) -> anyhow::Result<Self> {
        let lock = DirLock::acquire(home.dir())?;
        let (mut registry, mut now) = (Registry::default(), clock.now());
        let journal = Journal::open_with(home.journal(), |record| {
            if let Entry::Membership { change, now: at, by, why } = record.json::<Entry>()? {
                now = now.max(at);
                registry.apply(&change, at, &by, &why).map_err(|e| record.refuse(e))?;
            }
            Ok(())
        })?;
        Ok(Self { journal, registry, now, _lock: lock })
    }

    /// The time of what is recorded now.
    pub(crate) fn now(&self) -> Time {
        self.now
    }

    /// Records `change`.
    pub(crate) fn record(&mut self, change: Change, by: &str, why: &str) -> anyhow::Result<()> {
        self.registry
            .apply(&change, self.now, by, why)
            .map_err(|wrong| anyhow::anyhow!("this does not follow from the journal: {wrong}"))?;
        let (by, why) = (by.to_owned(), why.to_owned());
        self.journal
            .append_json(&Entry::Membership { change, now: self.now, by, why })
            .context("the journal cannot be written")?;
        Ok(())
    }

    /// Founds `federation`, whose certificates lie at `home`.
    pub(crate) fn found(&mut self, home: &Home, federation: &str) -> anyhow::Result<()> {
        ensure!(!self.registry.is_founded(), "the federation was founded before");
        let (operator, coordinator) =
            (certified(home, "operator.pem")?, certified(home, "coordinator.pem")?);
        let founded = Change::Founded {
            federation: federation.to_owned(),
            operator: operator.key,
            coordinator: coordinator.key,
        };
        self.record(founded, "operator", "the federation was founded")?;
        self.enrol(&operator, "who founded the federation")
    }

    fn enrol(&mut self, certified: &CertificateFacts, why: &str) -> anyhow::Result<()> {
        let who = MemberName::of(&certified.identity.role)
            .context("the coordinator itself is not a member")?;
        let change = Change::Enrolled {
            who,
            key: certified.key,
            serial: certified.serial.clone(),
            not_after: time_of(certified.not_after),
        };
        self.record(change, "operator", why)
    }
}

fn certified(home: &Home, name: &str) -> anyhow::Result<CertificateFacts> {
    let path = home.certs().join(name);
    let pem = std::fs::read_to_string(&path)
        .with_context(|| format!("{} cannot be read", path.display()))?;
    CertificateFacts::of_pem(&pem).with_context(|| format!("{} cannot be used", path.display()))
}

/// Founds the federation whose certificates were made at `home`, unless that was done, and enrols whoever
/// `certificates` (PEM) belong to, as operators say `join` would. No coordinator may serve from `home`.
///
/// # Errors
/// If the folder is in use, its journal is damaged, or a certificate cannot be read.
pub fn enrol(
    home: &Home,
    federation: &str,
    certificates: &[&str],
    clock: &Clock,
) -> anyhow::Result<()> {
    let mut books = Books::open(home, clock)?;
    if !books.registry.is_founded() {
        books.found(home, federation)?;
    }
    for pem in certificates {
        books.enrol(&CertificateFacts::of_pem(pem)?, "enrolled without an invitation")?;
    }
    Ok(())
}
