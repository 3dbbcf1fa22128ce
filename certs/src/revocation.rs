//! Who is no longer a member: the revocation lists of an authority, and of its countries.

use std::path::Path;

use comity_federation::Country;
use rustls::pki_types::CertificateRevocationListDer;
use time::OffsetDateTime;

use crate::crl::{CrlHealth, Entry, Place};
use crate::files::{Lock, create_dir, read_text, remove, rename};
use crate::tls::certificates;
use crate::{Authority, CertError, IssuingCa, Reason, RevokedCertificate, Serial};

impl Authority {
    /// Revokes the issuing CA of `country`, and with it every certificate that it signed; the next
    /// [`add_country`](Self::add_country) makes another. Its files are kept in `revoked/`.
    ///
    /// # Errors
    /// [`CertError::Ca`] if the country has none, [`CertError::RootKey`] if the root's key is not there.
    pub fn revoke_country(
        &self,
        country: Country,
        root_key: Option<&Path>,
        reason: Reason,
        now: OffsetDateTime,
    ) -> Result<(), CertError> {
        let _lock = Lock::of(&self.dir)?;
        let what = IssuingCa::Country(country);
        let mut refused = None;
        for generation in self.generations() {
            let (certificate, key) = generation.issuing(what);
            if !generation.has(what) {
                continue;
            }
            let root = match generation.root(root_key) {
                Ok(root) => root,
                Err(error) => {
                    refused = refused.or(Some(error));
                    continue;
                }
            };
            let der =
                certificates(&read_text(&certificate)?, "issuing CA's certificate")?.remove(0);
            let serial = Serial::of_certificate(&der)?;
            let mut entries = generation.root_crl().read()?.entries;
            if entries.iter().all(|entry| entry.serial != serial) {
                entries.push(Entry { serial: serial.clone(), at: now, reason });
            }
            // First of all it is revoked: after a crash the rest is done when this is asked again.
            generation.sign_root_crl(&root, entries, now)?;
            let away = generation.dir().join("revoked");
            create_dir(&away)?;
            if key.exists() {
                rename(&key, &away.join(format!("{country}-{serial}.key")))?;
            }
            rename(&certificate, &away.join(format!("{country}-{serial}.pem")))?;
            remove(&generation.crl(what).path)?;
            return Ok(());
        }
        Err(refused.unwrap_or_else(|| CertError::Ca {
            path: self.signing().issuing(what).0,
            reason: format!("{country} has no issuing CA"),
        }))
    }

    /// Signs the revocation lists of all issuing CAs anew, with those of `revoked` that each has signed;
    /// they are valid for a week from `now`.
    ///
    /// # Errors
    /// [`CertError`] if a key cannot be read or the disk refuses; lists that were not reached stay as they were.
    pub fn crls(
        &self,
        revoked: &[RevokedCertificate],
        now: OffsetDateTime,
    ) -> Result<(), CertError> {
        let _lock = Lock::of(&self.dir)?;
        for generation in self.generations() {
            for what in generation.issuing_cas()? {
                let own = revoked.iter().filter(|revoked| revoked.issuer == what);
                let entries = own.map(|revoked| Entry {
                    serial: revoked.serial.clone(),
                    at: revoked.at,
                    reason: revoked.reason,
                });
                generation.sign_crl(&generation.read(what)?, what, entries, now)?;
            }
        }
        Ok(())
    }

    /// Signs the root's own revocation list anew, with the root's key from `root_key` or from where
    /// [`init`](Self::init) wrote it; it is valid for 13 months from `now`.
    ///
    /// # Errors
    /// [`CertError::RootKey`] if the key is not there, [`CertError::Ca`] if it is another's.
    pub fn refresh_root_crl(
        &self,
        root_key: Option<&Path>,
        now: OffsetDateTime,
    ) -> Result<(), CertError> {
        let _lock = Lock::of(&self.dir)?;
        let mut refused = None;
        let mut signed = false;
        for generation in self.generations() {
            match generation.root(root_key) {
                Ok(root) => {
                    let entries = match generation.root_crl().read() {
                        Ok(list) => list.entries,
                        // A lost list may be made anew only if nothing was ever on it.
                        Err(_) if !generation.dir().join("revoked").exists() => Vec::new(),
                        Err(error) => return Err(error),
                    };
                    generation.sign_root_crl(&root, entries, now)?;
                    signed = true;
                }
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        match refused {
            Some(error) if !signed => Err(error),
            _ => Ok(()),
        }
    }

    /// All revocation lists that a server needs, each checked: whole, and signed by its authority.
    ///
    /// # Errors
    /// [`CertError::Crl`] names the file and the remedy.
    pub fn load_crls(&self) -> Result<Vec<CertificateRevocationListDer<'static>>, CertError> {
        self.each_crl(|place| Ok(place.read()?.der))
    }

    /// How long each revocation list lasts; the caller logs the warnings.
    ///
    /// # Errors
    /// As [`load_crls`](Self::load_crls).
    pub fn crl_health(&self) -> Result<Vec<CrlHealth>, CertError> {
        self.each_crl(Place::health)
    }

    fn each_crl<T>(
        &self,
        read: impl Fn(&Place) -> Result<T, CertError>,
    ) -> Result<Vec<T>, CertError> {
        let mut read_ones = Vec::new();
        for generation in self.generations() {
            for place in generation.crls()? {
                read_ones.push(read(&place)?);
            }
        }
        Ok(read_ones)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::{provider, unix_time};
    use crate::{Issued, Role};
    use rustls::server::WebPkiClientVerifier;
    use std::path::PathBuf;
    use std::sync::Arc;
    use time::Duration;

    struct Scene {
        dir: tempfile::TempDir,
        authority: Authority,
        now: OffsetDateTime,
    }

    impl Scene {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let now = OffsetDateTime::now_utc();
            let names = ["localhost".to_owned()];
            let authority = Authority::init(dir.path(), "demo", &names, now).unwrap();
            Self { dir, authority, now }
        }

        fn issue(&self, client: &str) -> Issued {
            self.authority.issue(&Role::Client(client.parse().unwrap()), 300, self.now).unwrap()
        }

        /// What TLS says of the client at `at`.
        fn seen(&self, issued: &Issued, at: OffsetDateTime) -> Result<(), String> {
            let roots = Arc::new(crate::tls::roots(self.authority.root_pem()).unwrap());
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
                .with_crls(self.authority.load_crls().unwrap())
                .enforce_revocation_expiration()
                .build()
                .unwrap();
            let chain = certificates(&issued.certificate_pem, "certificate").unwrap();
            verifier
                .verify_client_cert(&chain[0], &chain[1..], unix_time(at))
                .map(|_| ())
                .map_err(|error| error.to_string())
        }

        fn file(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn revoked(&self, issued: &Issued, issuer: &str) -> RevokedCertificate {
            let chain = certificates(&issued.certificate_pem, "certificate").unwrap();
            RevokedCertificate {
                issuer: issuer.parse().unwrap(),
                serial: Serial::of_certificate(&chain[0]).unwrap(),
                at: self.now,
                reason: Reason::KeyCompromise,
            }
        }
    }

    #[test]
    fn a_revoked_certificate_is_refused_and_its_neighbours_are_not() {
        let scene = Scene::new();
        let (out, stays) = (scene.issue("KR/out"), scene.issue("KR/stays"));
        assert_eq!(scene.seen(&out, scene.now), Ok(()));
        // Named under another issuing CA it says nothing of this one's.
        scene.issue("JP/other");
        scene.authority.crls(&[scene.revoked(&out, "JP")], scene.now).unwrap();
        assert_eq!(scene.seen(&out, scene.now), Ok(()));
        scene.authority.crls(&[scene.revoked(&out, "KR")], scene.now).unwrap();
        assert!(scene.seen(&out, scene.now).unwrap_err().contains("Revoked"));
        assert_eq!(scene.seen(&stays, scene.now), Ok(()));
    }

    #[test]
    fn lists_expire_after_a_week_and_warn_from_half_of_it_on() {
        let scene = Scene::new();
        let client = scene.issue("KR/a");
        let day = |n| scene.now + Duration::days(n);
        let said = scene.seen(&client, day(8)).unwrap_err();
        assert!(said.contains("ExpiredRevocationList") || said.contains("expired"), "{said}");
        let warnings = |at| {
            let health = scene.authority.crl_health().unwrap();
            assert_eq!(health.len(), 3, "root, federation, KR");
            health.iter().filter_map(|one| one.warning(at)).collect::<Vec<_>>()
        };
        assert!(warnings(day(3)).is_empty());
        let said = warnings(day(4));
        assert!(said.len() == 2 && said[0].contains("expires on"), "{said:?}");
        assert!(warnings(day(8))[0].contains("expired on"));
        scene.authority.crls(&[], day(7)).unwrap();
        assert_eq!(scene.seen(&client, day(8)), Ok(()));
        assert!(warnings(day(8)).is_empty());
        // The root's own lasts longer, and is signed anew with its key only.
        assert!(warnings(day(250)).iter().any(|said| said.contains("root.crl.pem")));
        scene.authority.crls(&[], day(299)).unwrap();
        let key = scene.file("ca-1/root.key");
        let stick = scene.file("elsewhere.key");
        std::fs::rename(key, &stick).unwrap();
        let said = scene.authority.refresh_root_crl(None, day(299)).unwrap_err().to_string();
        assert!(said.contains("--root-key"), "{said}");
        scene.authority.refresh_root_crl(Some(&stick), day(299)).unwrap();
        assert!(warnings(day(300)).is_empty());
    }

    #[test]
    fn a_revoked_country_is_out_with_all_its_clients_until_it_gets_another_ca() {
        let scene = Scene::new();
        let (korea, japan) = (scene.issue("KR/a"), scene.issue("JP/a"));
        let country = "KR".parse().unwrap();
        scene.authority.revoke_country(country, None, Reason::KeyCompromise, scene.now).unwrap();
        assert!(scene.seen(&korea, scene.now).unwrap_err().contains("Revoked"));
        assert_eq!(scene.seen(&japan, scene.now), Ok(()));
        let again = scene.authority.revoke_country(country, None, Reason::KeyCompromise, scene.now);
        assert!(again.unwrap_err().to_string().contains("no issuing CA"));
        let renewed = scene.issue("KR/a");
        assert_eq!(scene.seen(&renewed, scene.now), Ok(()));
        scene.authority.refresh_root_crl(None, scene.now).unwrap();
        assert!(scene.seen(&korea, scene.now).unwrap_err().contains("Revoked"));
    }

    // BAD_INPUTS 14, 15
    #[test]
    fn a_list_that_is_damaged_or_anothers_is_named_with_the_remedy() {
        let scene = Scene::new();
        scene.issue("KR/a");
        let path = scene.file("ca-1/crl/KR.crl.pem");
        let pem = std::fs::read(&path).unwrap();
        let der = scene.authority.load_crls().unwrap()[2].to_vec();
        let other = Scene::new();
        other.issue("KR/a");
        let others = std::fs::read(other.file("ca-1/crl/KR.crl.pem")).unwrap();
        let federations = std::fs::read(scene.file("ca-1/crl/issuing.crl.pem")).unwrap();
        let mut flipped = der.clone();
        flipped[der.len() - 1] ^= 1;
        let mut bad: Vec<(Vec<u8>, &str)> = vec![
            (Vec::new(), "empty"),
            (pem[..pem.len() / 2].to_vec(), "PEM"),
            (b"hello".to_vec(), "not a whole"),
            ([&der[..], b"x"].concat(), "bytes follow"),
            (others, "did not sign"),
            (federations, "did not sign"),
            (flipped, "altered"),
            (vec![0x30; 2 << 20], "more than"),
            (with_an_empty_bit_string(&scene), "not a whole"),
        ];
        bad.extend((1..der.len()).step_by(11).map(|end| (der[..end].to_vec(), "")));
        for (bytes, word) in bad {
            std::fs::write(&path, &bytes).unwrap();
            let said = scene.authority.load_crls().unwrap_err().to_string();
            let named = said.contains("KR.crl.pem") && said.contains("the running coordinator");
            assert!(named && said.contains(word), "{word}: {said}");
        }
        // A hundred megabytes, of which no more than one is read.
        std::fs::File::create(&path).unwrap().set_len(100 << 20).unwrap();
        assert!(scene.authority.load_crls().unwrap_err().to_string().contains("more than"));
        std::fs::remove_file(&path).unwrap();
        assert!(scene.authority.load_crls().unwrap_err().to_string().contains("KR.crl.pem"));
        // DER is as good as PEM.
        std::fs::write(&path, &der).unwrap();
        assert_eq!(scene.authority.load_crls().unwrap().len(), 3);
    }

    /// A list, signed by the right CA, whose distribution point has a BIT STRING without a byte: a verifier
    /// once panicked on it before it looked at the signature (RUSTSEC-2026-0104).
    fn with_an_empty_bit_string(scene: &Scene) -> Vec<u8> {
        use aws_lc_rs::rand::SystemRandom;
        use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
        use x509_parser::prelude::{CertificateRevocationList, FromDer};
        fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
            let n = content.len();
            let length = match n {
                0..128 => vec![n as u8],
                128..256 => vec![0x81, n as u8],
                _ => vec![0x82, (n >> 8) as u8, n as u8],
            };
            [&[tag][..], &length, content].concat()
        }
        let der = scene.authority.load_crls().unwrap()[2].to_vec();
        let (_, list) = CertificateRevocationList::from_der(&der).unwrap();
        let tbs = list.tbs_cert_list.as_ref();
        // Our extensions come last: one more goes to their end.
        let marker = tbs.windows(5).position(|w| w == [0x06, 0x03, 0x55, 0x1d, 0x14]).unwrap();
        let extensions = &tbs[..marker];
        let at = extensions.windows(5).position(|w| w == [0x06, 0x03, 0x55, 0x1d, 0x23]).unwrap();
        // [0] { SEQUENCE { SEQUENCE { OID ... : three headers before the first OID.
        let start = at - 6;
        assert_eq!((tbs[start], tbs[start + 2]), (0xa0, 0x30));
        let oid = [0x06, 0x03, 0x55, 0x1d, 0x1c];
        let point = tlv(0x30, &tlv(0x83, &[]));
        let extension = tlv(0x30, &[&oid[..], &[0x01, 0x01, 0xff], &tlv(0x04, &point)].concat());
        let all = tlv(0xa0, &tlv(0x30, &[&tbs[start + 4..], &extension[..]].concat()));
        let header = if tbs[1] < 0x80 { 2 } else { 2 + usize::from(tbs[1] & 0x7f) };
        let tbs = tlv(0x30, &[&tbs[header..start], &all[..]].concat());
        let ca = scene.authority.signing().read(IssuingCa::Country("KR".parse().unwrap())).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_ASN1_SIGNING,
            &ca.issuer.key().serialize_der(),
        )
        .unwrap();
        let signature = key.sign(&SystemRandom::new(), &tbs).unwrap();
        let algorithm = tlv(0x30, &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02]);
        let bits = tlv(0x03, &[&[0][..], signature.as_ref()].concat());
        tlv(0x30, &[tbs, algorithm, bits].concat())
    }
}
