use super::*;
use crate::files::stop;
use crate::tls::{provider, roots, unix_time};
use crate::{Issued, check_own};
use rustls::server::WebPkiClientVerifier;
use std::sync::Arc;

/// A step of the change.
type Step = fn(Authority, OffsetDateTime) -> Result<Authority, CertError>;

const BEGIN: Step = |authority, now| authority.begin_rotation(now);
const SWITCH: Step = |authority, now| authority.switch_rotation(true, now);
const FINISH: Step = |authority, now| authority.finish_rotation(true, now);
const ABORT: Step = |authority, now| authority.abort_rotation(now);

struct Scene {
    dir: tempfile::TempDir,
    now: OffsetDateTime,
    /// A client from before the change, with the roots that it was told then.
    old: Issued,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let now = OffsetDateTime::now_utc();
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let authority = Authority::init(dir.path(), "demo", &names, now).unwrap();
        let old = client(&authority, now);
        Self { dir, now, old }
    }

    fn open(&self) -> Authority {
        Authority::open(self.dir.path()).unwrap()
    }

    fn step(&self, step: Step) -> Authority {
        step(self.open(), self.now).unwrap()
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).unwrap()
    }

    /// Whether the coordinator, as its files are, lets `client` in.
    fn lets_in(&self, client: &Issued) -> bool {
        let bundle = Arc::new(roots(&self.read("root.pem")).unwrap());
        let verifier = WebPkiClientVerifier::builder_with_provider(bundle, provider())
            .with_crls(self.open().load_crls().unwrap())
            .enforce_revocation_expiration()
            .build()
            .unwrap();
        let chain = certificates(&client.certificate_pem, "certificate").unwrap();
        verifier.verify_client_cert(&chain[0], &chain[1..], unix_time(self.now)).is_ok()
    }

    /// Whether somebody who trusts `root_pem` takes the coordinator's certificate.
    fn is_believed(&self, root_pem: &str) -> bool {
        check_own(&self.read("coordinator.pem"), &self.read("coordinator.key"), root_pem, self.now)
            .is_ok()
    }

    /// All that has to hold in each phase, and after a crash anywhere in the change to or from it.
    fn holds(&self, phase: Phase) {
        let authority = self.open();
        assert_eq!(authority.state.phase, phase);
        let bundle = self.read("root.pem");
        let n_roots = if phase == Phase::Standby { 1 } else { 2 };
        assert_eq!(certificates(&bundle, "root").unwrap().len(), n_roots);
        assert!(self.is_believed(&bundle));
        let operator = (self.read("operator.pem"), self.read("operator.key"));
        check_own(&operator.0, &operator.1, &bundle, self.now).unwrap();
        let new = client(&authority, self.now);
        assert!(self.lets_in(&new));
        if phase != Phase::Standby {
            assert!(self.lets_in(&self.old), "{phase}");
        }
        // It can be made again and again without an end of files.
        let folders = list(self.dir.path())
            .unwrap()
            .into_iter()
            .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("ca-"));
        assert_eq!(folders.count(), n_roots);
    }
}

fn client(authority: &Authority, now: OffsetDateTime) -> Issued {
    authority.issue(&Role::Client("KR/a".parse().unwrap()), 1, now).unwrap()
}

#[test]
fn old_and_new_certificates_are_good_until_the_change_is_finished() {
    let scene = Scene::new();
    scene.holds(Phase::Standby);
    let (coordinator, key) = (scene.read("coordinator.pem"), scene.read("coordinator.key"));

    let begun = scene.step(BEGIN);
    scene.holds(Phase::Begun);
    assert_eq!(scene.read("coordinator.pem"), coordinator, "the old authority signs");
    assert!(scene.is_believed(&scene.old.root_pem), "who has not renewed yet is left alone");
    let told_of_both = client(&begun, scene.now);
    assert_eq!(certificates(&told_of_both.root_pem, "root").unwrap().len(), 2);

    let switched = scene.step(SWITCH);
    scene.holds(Phase::Switched);
    assert_ne!(scene.read("coordinator.pem"), coordinator);
    assert_eq!(scene.read("coordinator.key"), key);
    assert!(scene.is_believed(&told_of_both.root_pem));
    assert!(scene.lets_in(&told_of_both));
    let new = client(&switched, scene.now);
    assert!(new.root_pem.starts_with(&switched.generation(2).root_text().unwrap()));
    // A new country is one of the next authority, and of the old one while its key is there.
    switched.add_country("TH".parse().unwrap(), None, scene.now).unwrap();

    scene.step(FINISH);
    scene.holds(Phase::Standby);
    assert!(scene.lets_in(&new) && scene.is_believed(&new.root_pem));
    assert!(!scene.lets_in(&scene.old) && !scene.lets_in(&told_of_both));
    assert!(scene.dir.path().join("retired/ca-1/root.pem").exists());
    assert_eq!(scene.open().countries().unwrap().len(), 2);
    // And once more.
    scene.step(BEGIN);
    scene.step(SWITCH);
    scene.step(FINISH);
    scene.holds(Phase::Standby);
    assert!(!scene.lets_in(&new));
}

#[test]
fn a_change_can_be_aborted_in_each_phase_and_begun_again() {
    for steps in [&[BEGIN][..], &[BEGIN, SWITCH]] {
        let scene = Scene::new();
        let root = scene.read("root.pem");
        let mut new = None;
        for step in steps {
            new = Some(client(&scene.step(*step), scene.now));
        }
        scene.step(ABORT);
        scene.holds(Phase::Standby);
        assert_eq!(scene.read("root.pem"), root);
        assert!(scene.lets_in(&scene.old) && scene.is_believed(&scene.old.root_pem));
        let signed_by_next = steps.len() == 2;
        assert_eq!(scene.lets_in(&new.unwrap()), !signed_by_next);
        assert!(scene.dir.path().join("retired/ca-2").exists());
        assert!(ABORT(scene.open(), scene.now).is_err());
        scene.step(BEGIN);
        assert_eq!(scene.open().state.next, Some(3), "a number is never used twice");
        scene.holds(Phase::Begun);
    }
}

#[test]
fn steps_out_of_turn_and_too_early_are_refused_with_the_next_one() {
    let scene = Scene::new();
    let said = |step: Step| step(scene.open(), scene.now).unwrap_err().to_string();
    assert!(said(SWITCH).contains("begin comes first"));
    assert!(said(FINISH).contains("switch comes first"));
    scene.step(BEGIN);
    assert!(said(BEGIN).contains("finish or abort"));
    assert!(said(FINISH).contains("phase begun"));
    let early = |now| scene.open().switch_rotation(false, now);
    let said = early(scene.now + Duration::hours(24)).unwrap_err().to_string();
    assert!(said.contains("left behind") && said.contains("--at-once"), "{said}");
    scene.holds(Phase::Begun);
    early(scene.now + ROTATION_WAIT).unwrap();
    assert!(scene.open().finish_rotation(false, scene.now + ROTATION_WAIT).is_err());
    scene.open().finish_rotation(false, scene.now + ROTATION_WAIT * 2).unwrap();
    // The state of another command is not overwritten.
    let stale = scene.open();
    scene.step(BEGIN);
    assert!(ABORT(stale, scene.now).unwrap_err().to_string().contains("another command"));
}

#[test]
fn a_next_authority_without_a_country_does_not_begin_to_sign() {
    let scene = Scene::new();
    let begun = scene.step(BEGIN);
    let next = begun.generation(2);
    let stick = scene.dir.path().join("stick.key");
    std::fs::rename(next.root_key(), &stick).unwrap();
    begun.add_country("TH".parse().unwrap(), None, scene.now).unwrap();
    let said = SWITCH(scene.open(), scene.now).unwrap_err().to_string();
    assert!(said.contains("certs add-country TH"), "{said}");
    begun.add_country("TH".parse().unwrap(), Some(&stick), scene.now).unwrap();
    scene.step(SWITCH);
}

/// Kills each step between any two changes of the disk, then opens the authority as the next start does.
#[test]
fn a_crash_anywhere_leaves_the_phase_before_or_the_phase_after() {
    let paths: [(&[Step], Step, Phase, Phase); 5] = [
        (&[], BEGIN, Phase::Standby, Phase::Begun),
        (&[BEGIN], SWITCH, Phase::Begun, Phase::Switched),
        (&[BEGIN, SWITCH], FINISH, Phase::Switched, Phase::Standby),
        (&[BEGIN], ABORT, Phase::Begun, Phase::Standby),
        (&[BEGIN, SWITCH], ABORT, Phase::Switched, Phase::Standby),
    ];
    for (before, step, from, to) in paths {
        let mut seen = [0, 0];
        for n in 0.. {
            assert!(n < 100, "it has an end");
            let scene = Scene::new();
            before.iter().for_each(|step| drop(scene.step(*step)));
            let authority = scene.open();
            stop::after(Some(n));
            let outcome = step(authority, scene.now);
            // The next start is killed too, at another place.
            let reopened = Authority::open(scene.dir.path());
            stop::after(Some(1));
            let again = Authority::open(scene.dir.path());
            stop::after(None);
            drop((reopened, again));
            let phase = scene.open().state.phase;
            assert!(phase == from || phase == to, "{phase} after {n} changes");
            scene.holds(phase);
            seen[usize::from(phase == to)] += 1;
            if outcome.is_ok() {
                assert_eq!(phase, to);
                break;
            }
            // What was interrupted can be done again, or was done.
            if phase == from {
                scene.step(step);
            }
            scene.holds(to);
        }
        assert!(seen[0] >= 2 && seen[1] >= 2, "{from} to {to}: {seen:?}");
    }
}

/// The same for the other changes of files.
#[test]
fn a_country_that_a_crash_left_half_made_or_half_revoked_is_made_or_revoked_the_next_time() {
    let thailand: comity_federation::Country = "TH".parse().unwrap();
    for n in 0.. {
        let scene = Scene::new();
        let authority = scene.open();
        stop::after(Some(n));
        let made = authority.add_country(thailand, None, scene.now);
        stop::after(None);
        scene.open().add_country(thailand, None, scene.now).unwrap();
        let role = Role::Client("TH/a".parse().unwrap());
        assert!(scene.lets_in(&scene.open().issue(&role, 1, scene.now).unwrap()));
        if made.is_ok() {
            break;
        }
    }
    for n in 0.. {
        let scene = Scene::new();
        let authority = scene.open();
        let korea = "KR".parse().unwrap();
        stop::after(Some(n));
        let revoked =
            authority.revoke_country(korea, None, crate::Reason::KeyCompromise, scene.now);
        stop::after(None);
        if revoked.is_err() {
            let again = scene.open();
            let _ = again.revoke_country(korea, None, crate::Reason::KeyCompromise, scene.now);
        }
        assert!(!scene.lets_in(&scene.old), "after {n} changes");
        assert!(scene.lets_in(&client(&scene.open(), scene.now)));
        if revoked.is_ok() {
            break;
        }
    }
}
