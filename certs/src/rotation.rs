//! Which authorities are trusted, which one signs, and how one replaces the other.
//!
//! ```text
//! standby ── begin ──► begun ── switch ──► switched ── finish ──► standby, with the next authority
//!    ▲                   │                     │
//!    └────── abort ──────┴─────── abort ───────┘                   (with the old one)
//! ```
//!
//! Begun: members that renew get both roots. Switched: what they get is signed under the new one. Finished:
//! what is left of the old one is refused. A phase changes in the instant in which `rotation.toml` is
//! replaced: all files that the new phase needs were written before, and all that follows from it is done
//! after it, or by whoever opens the authority next.

use std::fmt;
use std::path::{Path, PathBuf};

use comity_federation::KeyFingerprint;
use rcgen::{SanType, SubjectPublicKeyInfo};
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::authority::{COORDINATOR_VALIDITY, MEMBERS, OPERATOR_VALIDITY, certify};
use crate::ca::CLOCK_SKEW;
use crate::explain::instant;
use crate::files::{Lock, create_dir, list, read_text, remove_dir, rename, replace};
use crate::generation::Generation;
use crate::key::sha256;
use crate::tls::certificates;
use crate::{Authority, CLIENT_VALIDITY, CertError, Identity, IssuingCa, Role};

/// How long a phase lasts at least: by then every client has renewed its certificate in it, or is out.
pub const ROTATION_WAIT: Duration = CLIENT_VALIDITY.saturating_add(Duration::HOUR);

const FILE: &str = "rotation.toml";
const HEADER: &str = "\
# Which certificate authorities this federation trusts, and which one signs.
# Written by `comity-coordinator certs rotate-ca`; do not edit it by hand.
";

/// How far the change from one authority to the next has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// There is one authority.
    Standby,
    /// The next one is trusted too; the old one signs.
    Begun,
    /// The next one signs; the old one is still trusted.
    Switched,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Standby => "standby",
            Self::Begun => "begun",
            Self::Switched => "switched",
        })
    }
}

/// What `rotation.toml` says. Everything else follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    pub(crate) phase: Phase,
    /// Number of the authority from which the change goes away.
    pub(crate) current: u32,
    /// Number of the one to which it goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) next: Option<u32>,
    /// The largest number that was ever trusted.
    pub(crate) last: u32,
    /// When the phase began, seconds since 1970.
    pub(crate) since: i64,
}

impl State {
    pub(crate) fn first(since: i64) -> Self {
        Self { phase: Phase::Standby, current: 1, next: None, last: 1, since }
    }

    /// Reads the state of the authority in `dir`.
    pub(crate) fn read(dir: &Path) -> Result<Self, CertError> {
        let refuse = |reason: String| CertError::NotAnAuthority {
            dir: dir.to_owned(),
            reason: format!("{FILE}: {reason}"),
        };
        let text = read_text(&Self::path(dir)).map_err(|error| refuse(error.to_string()))?;
        let state: Self = toml::from_str(&text).map_err(|error| refuse(error.to_string()))?;
        let two = state.phase != Phase::Standby;
        if two != state.next.is_some()
            || state.next == Some(state.current)
            || state.trusted().any(|n| n > state.last)
        {
            return Err(refuse("it contradicts itself; put it back from a backup".to_owned()));
        }
        Ok(state)
    }

    /// Makes this the state: the one instant at which a phase changes.
    pub(crate) fn write(&self, dir: &Path) -> Result<(), CertError> {
        let text = toml::to_string(self).expect("numbers and a word are TOML");
        replace(&Self::path(dir), &format!("{HEADER}{text}"))
    }

    pub(crate) fn path(dir: &Path) -> PathBuf {
        dir.join(FILE)
    }

    /// Number of the authority that signs.
    pub(crate) fn signing(&self) -> u32 {
        match (self.phase, self.next) {
            (Phase::Switched, Some(next)) => next,
            _ => self.current,
        }
    }

    /// Numbers of all that are trusted, the one that signs first.
    pub(crate) fn trusted(&self) -> impl Iterator<Item = u32> + use<> {
        let signing = self.signing();
        let others = [Some(self.current), self.next].into_iter().flatten();
        std::iter::once(signing).chain(others.filter(move |n| *n != signing))
    }
}

/// One root that is trusted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TrustedRoot {
    /// Its folder.
    pub folder: String,
    /// SHA-256 of its certificate, DER.
    pub fingerprint: KeyFingerprint,
    /// Whether new certificates come from below it.
    pub signs: bool,
}

/// How far the authorities have come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RotationStatus {
    /// The phase.
    pub phase: Phase,
    /// When it began.
    pub since: OffsetDateTime,
    /// When the next phase can begin without leaving anybody behind.
    pub ready: Option<OffsetDateTime>,
    /// The roots, the one that signs first.
    pub roots: Vec<TrustedRoot>,
}

/// What is not yet as the state says.
enum Unsettled {
    Roots,
    Member { from: PathBuf, to: PathBuf },
    Retired { from: PathBuf, name: String },
    NeverTrusted(PathBuf),
}

impl Authority {
    /// Makes the next authority beside this one, with the same countries: from now on both are trusted.
    /// Move the new root's key offline too.
    ///
    /// # Errors
    /// [`CertError::Rotation`] if a change is under way already.
    pub fn begin_rotation(self, now: OffsetDateTime) -> Result<Self, CertError> {
        self.change(now, None, |authority, now| {
            authority.expect(Phase::Standby, "finish or abort it first")?;
            let State { current, last, .. } = authority.state;
            let number = last + 1;
            let (old, new) = (authority.generation(current), authority.generation(number));
            // A crash may have left some of it, which nobody has ever trusted.
            remove_dir(new.dir())?;
            let root = new.make_root(&authority.federation, now)?;
            for what in old.issuing_cas()? {
                new.make_issuing(&root, &authority.federation, what, now)?;
            }
            Ok(State { phase: Phase::Begun, next: Some(number), last: number, ..authority.state })
        })
    }

    /// Lets the next authority sign; the coordinator and the operator beside it get certificates of it for
    /// their keys. `at_once`: without waiting for members that have not heard of it yet.
    ///
    /// # Errors
    /// [`CertError::Rotation`] if it is not begun, not for long enough, or lacks a country.
    pub fn switch_rotation(self, at_once: bool, now: OffsetDateTime) -> Result<Self, CertError> {
        self.change(now, Some(at_once), |authority, now| {
            authority.expect(Phase::Begun, "begin comes first")?;
            let [old, new] = authority.both()?;
            for country in old.countries()? {
                if !new.has(IssuingCa::Country(country)) {
                    return Err(CertError::Rotation(format!(
                        "the next authority has no issuing CA of {country}; bring its root's key and run \
                         `comity-coordinator certs add-country {country} --root-key FILE`"
                    )));
                }
            }
            authority.prepare(&new, now)?;
            Ok(State { phase: Phase::Switched, ..authority.state })
        })
    }

    /// Ends the trust in the old authority and archives it in `retired/`.
    /// `at_once`: without waiting for members that still have certificates of it.
    ///
    /// # Errors
    /// [`CertError::Rotation`] if it is not switched, or not for long enough.
    pub fn finish_rotation(self, at_once: bool, now: OffsetDateTime) -> Result<Self, CertError> {
        self.change(now, Some(at_once), |authority, _| {
            authority.expect(Phase::Switched, "switch comes first")?;
            let current = authority.state.signing();
            Ok(State { phase: Phase::Standby, current, next: None, ..authority.state })
        })
    }

    /// Goes back to the old authority and archives the next one in `retired/`. Members that already have
    /// certificates of that have to join again.
    ///
    /// # Errors
    /// [`CertError::Rotation`] if no change is under way.
    pub fn abort_rotation(self, now: OffsetDateTime) -> Result<Self, CertError> {
        self.change(now, None, |authority, now| {
            if authority.state.phase == Phase::Standby {
                return Err(CertError::Rotation(
                    "no change of authorities is under way".to_owned(),
                ));
            }
            if authority.state.phase == Phase::Switched {
                let [old, _] = authority.both()?;
                authority.prepare(&old, now)?;
            }
            Ok(State { phase: Phase::Standby, next: None, ..authority.state })
        })
    }

    /// How far it has come.
    ///
    /// # Errors
    /// [`CertError`] if a root cannot be read.
    pub fn rotation_status(&self) -> Result<RotationStatus, CertError> {
        let State { phase, since, .. } = self.state;
        let since =
            OffsetDateTime::from_unix_timestamp(since).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let roots = self.state.trusted().map(|number| {
            let root = certificates(&self.generation(number).root_text()?, "root")?.remove(0);
            Ok(TrustedRoot {
                folder: format!("ca-{number}"),
                fingerprint: KeyFingerprint(sha256(&root)),
                signs: number == self.state.signing(),
            })
        });
        let roots = roots.collect::<Result<_, CertError>>()?;
        let ready = (phase != Phase::Standby).then(|| since + ROTATION_WAIT);
        Ok(RotationStatus { phase, since, ready, roots })
    }

    /// One phase change: `prepare` writes what the next state needs, then the state is replaced, then the
    /// rest follows.
    fn change(
        self,
        now: OffsetDateTime,
        waits: Option<bool>,
        prepare: impl FnOnce(&Self, OffsetDateTime) -> Result<State, CertError>,
    ) -> Result<Self, CertError> {
        let lock = Lock::of(&self.dir)?;
        if State::read(&self.dir)? != self.state {
            return Err(CertError::Rotation(
                "another command changed the authorities in between; look at `certs rotate-ca status`"
                    .to_owned(),
            ));
        }
        let next = prepare(&self, now)?;
        if waits == Some(false)
            && let Some(ready) = self.rotation_status()?.ready
            && now < ready
        {
            return Err(CertError::Rotation(format!(
                "members that have not renewed their certificates since {} would be left behind; by {} all \
                 have, or use --at-once",
                instant(self.rotation_status()?.since),
                instant(ready)
            )));
        }
        State { since: now.unix_timestamp(), ..next }.write(&self.dir)?;
        drop(lock);
        Self::open(&self.dir)
    }

    fn expect(&self, phase: Phase, advice: &str) -> Result<(), CertError> {
        if self.state.phase == phase {
            return Ok(());
        }
        Err(CertError::Rotation(format!(
            "the change of authorities is in phase {}, not {phase}: {advice}",
            self.state.phase
        )))
    }

    fn generation(&self, number: u32) -> Generation {
        Generation::new(&self.dir, number)
    }

    /// The old authority and the next.
    fn both(&self) -> Result<[Generation; 2], CertError> {
        let next = self.state.next.ok_or_else(|| {
            CertError::Rotation("no change of authorities is under way".to_owned())
        })?;
        Ok([self.generation(self.state.current), self.generation(next)])
    }

    /// Writes certificates below `signer` for the keys of the coordinator and the operator beside it; they
    /// wait in its folder until it signs.
    fn prepare(&self, signer: &Generation, now: OffsetDateTime) -> Result<(), CertError> {
        let ca = signer.read(IssuingCa::Federation)?;
        for name in MEMBERS {
            let path = self.dir.join(format!("{name}.pem"));
            if !path.exists() {
                continue;
            }
            let der = certificates(&read_text(&path)?, "certificate")?.remove(0);
            let identity = Identity::of_certificate(&der)?;
            let lifetime = match identity.role {
                Role::Coordinator => COORDINATOR_VALIDITY,
                Role::Operator(_) => OPERATOR_VALIDITY,
                // Somebody put it there; it is renewed as a client's is.
                Role::Client(_) => continue,
            };
            let (_, leaf) = X509Certificate::from_der(&der)
                .map_err(|error| CertError::Ca { path: path.clone(), reason: error.to_string() })?;
            let key = SubjectPublicKeyInfo::from_der(leaf.public_key().raw)?;
            let period = (now - CLOCK_SKEW, now + lifetime);
            let names = server_names(&leaf)?;
            let certified = certify(&ca, &self.federation, &key, &identity.role, names, period)?;
            replace(&signer.prepared(name), &certified.certificate_pem)?;
        }
        Ok(())
    }

    /// What differs from what the state says.
    fn unsettled(&self) -> Result<Vec<Unsettled>, CertError> {
        let mut all = Vec::new();
        // Roots that cannot be read are written anew: they follow from the folders.
        if !read_text(&self.dir.join("root.pem")).is_ok_and(|text| text == self.root_pem()) {
            all.push(Unsettled::Roots);
        }
        let signing = self.generation(self.state.signing());
        for name in MEMBERS {
            let (from, to) = (signing.prepared(name), self.dir.join(format!("{name}.pem")));
            let (Ok(prepared), Ok(used)) = (read_text(&from), read_text(&to)) else { continue };
            if !used.ends_with(self.issuing_pem()) && key_of(&prepared) == key_of(&used) {
                all.push(Unsettled::Member { from, to });
            }
        }
        for path in list(&self.dir)? {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let number = name.strip_prefix("ca-").and_then(|number| number.parse::<u32>().ok());
            match number {
                Some(number) if number > self.state.last => {
                    all.push(Unsettled::NeverTrusted(path));
                }
                Some(number) if self.state.trusted().all(|trusted| trusted != number) => {
                    let name = name.to_owned();
                    all.push(Unsettled::Retired { from: path, name });
                }
                _ => {}
            }
        }
        Ok(all)
    }

    /// Does what follows from the state and was not done yet; `false` if the state is another by now.
    pub(crate) fn settle(&self) -> Result<bool, CertError> {
        if self.unsettled()?.is_empty() {
            return Ok(true);
        }
        let _lock = Lock::of(&self.dir)?;
        if State::read(&self.dir)? != self.state {
            return Ok(false);
        }
        for one in self.unsettled()? {
            match one {
                Unsettled::Roots => replace(&self.dir.join("root.pem"), self.root_pem())?,
                Unsettled::Member { from, to } => replace(&to, &read_text(&from)?)?,
                Unsettled::NeverTrusted(path) => remove_dir(&path)?,
                Unsettled::Retired { from, name } => {
                    let retired = self.dir.join("retired");
                    create_dir(&retired)?;
                    rename(&from, &retired.join(name))?;
                }
            }
        }
        Ok(true)
    }
}

/// The key of the first certificate.
fn key_of(pem: &str) -> Option<Vec<u8>> {
    let der = certificates(pem, "certificate").ok()?.remove(0);
    let (_, certificate) = X509Certificate::from_der(&der).ok()?;
    Some(certificate.public_key().raw.to_vec())
}

/// The names of hosts in a certificate.
fn server_names(certificate: &X509Certificate<'_>) -> Result<Vec<SanType>, CertError> {
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.map_or(&[][..], |extension| &extension.value.general_names);
    let mut hosts = Vec::new();
    for name in names {
        match name {
            GeneralName::DNSName(name) => hosts.push(SanType::DnsName((*name).try_into()?)),
            GeneralName::IPAddress(bytes) => {
                let address = match bytes.len() {
                    4 => <[u8; 4]>::try_from(*bytes).ok().map(Into::into),
                    16 => <[u8; 16]>::try_from(*bytes).ok().map(Into::into),
                    _ => None,
                };
                hosts.extend(address.map(SanType::IpAddress));
            }
            _ => {}
        }
    }
    Ok(hosts)
}

#[cfg(test)]
mod tests;
