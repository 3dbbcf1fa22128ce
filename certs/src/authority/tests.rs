use std::collections::BTreeMap;

use super::*;

/// Every file below `dir`, by its path in it.
fn all_files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
                files.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    files
}

fn names() -> Vec<String> {
    vec!["localhost".to_owned(), "127.0.0.1".to_owned()]
}

#[test]
fn init_makes_its_files_and_never_overwrites() {
    let dir = tempfile::tempdir().unwrap();
    let now = OffsetDateTime::now_utc();
    Authority::init(dir.path(), "demo", &names(), now).unwrap();
    let read = || all_files(dir.path());
    let before = read();
    assert_eq!(before.len(), 12, "{:?}", before.keys());
    let error = Authority::init(dir.path(), "demo", &names(), now).unwrap_err();
    assert!(matches!(error, CertError::AlreadyThere { .. }), "{error}");
    assert_eq!(read(), before);

    // One left over is enough, and nothing is added to it.
    let other = tempfile::tempdir().unwrap();
    std::fs::write(other.path().join("operator.key"), "mine").unwrap();
    assert!(Authority::init(other.path(), "demo", &names(), now).is_err());
    assert_eq!(std::fs::read_dir(other.path()).unwrap().count(), 1);
}

#[cfg(unix)]
#[test]
fn keys_are_readable_by_their_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let now = OffsetDateTime::now_utc();
    let authority = Authority::init(dir.path().join("ca"), "demo", &names(), now).unwrap();
    let role = Role::Client("KR/seoul-lab".parse().unwrap());
    let member = dir.path().join("kr");
    authority.issue(&role, 30, now).unwrap().write(&member).unwrap();
    let mut keys = vec![member.join("key.pem")];
    keys.extend(
        all_files(dir.path())
            .into_keys()
            .filter(|path| path.ends_with(".key"))
            .map(|path| dir.path().join(path)),
    );
    assert_eq!(keys.len(), 6, "{keys:?}");
    for key in &keys {
        let mode = std::fs::metadata(key).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", key.display());
    }
    let error = authority.issue(&role, 30, now).unwrap().write(&member).unwrap_err();
    assert!(matches!(error, CertError::AlreadyThere { .. }));
}

#[test]
fn reopened_authority_issues_without_the_root_key() {
    let dir = tempfile::tempdir().unwrap();
    let now = OffsetDateTime::now_utc();
    Authority::init(dir.path(), "demo", &names(), now).unwrap();
    let key = dir.path().join("ca-1/root.key");
    let offline = tempfile::tempdir().unwrap();
    let stick = offline.path().join("root.key");
    std::fs::rename(&key, &stick).unwrap();
    let authority = Authority::open(dir.path()).unwrap();
    assert_eq!(authority.federation(), "demo");
    let role = Role::Client("JP/osaka".parse().unwrap());
    // A new country needs it once.
    let said = authority.issue(&role, 30, now).unwrap_err().to_string();
    assert!(said.contains("certs add-country JP --root-key"), "{said}");
    let japan = "JP".parse().unwrap();
    let wrong = dir.path().join("ca-1/issuing.key");
    let said = authority.add_country(japan, Some(&wrong), now).unwrap_err().to_string();
    assert!(said.contains("does not belong"), "{said}");
    assert!(authority.add_country(japan, Some(&stick), now).unwrap());
    assert!(!authority.add_country(japan, None, now).unwrap());
    assert_eq!(authority.countries().unwrap(), [japan]);
    let issued = authority.issue(&role, 30, now).unwrap();
    let summary =
        crate::check_own(&issued.certificate_pem, &issued.key_pem, &issued.root_pem, now).unwrap();
    assert_eq!(summary.identity.to_string(), "comity://demo/client/JP/osaka");
}

#[test]
fn what_is_not_an_authority_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let text = Authority::open(dir.path()).unwrap_err().to_string();
    assert!(text.contains("rotation.toml") && text.contains("init"), "{text}");
    let now = OffsetDateTime::now_utc();
    Authority::init(dir.path(), "demo", &names(), now).unwrap();
    std::fs::copy(dir.path().join("operator.key"), dir.path().join("ca-1/issuing.key")).unwrap();
    let text = Authority::open(dir.path()).unwrap_err().to_string();
    assert!(text.contains("does not belong"), "{text}");
}

#[test]
fn bad_names_and_periods_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let now = OffsetDateTime::now_utc();
    for federation in ["", "Demo", "a/b", "..", "de mo", "demo-", &"a".repeat(64)] {
        assert!(Authority::init(dir.path(), federation, &names(), now).is_err());
    }
    for server in [vec![], vec!["a b".to_owned()], vec!["https://x".to_owned()]] {
        assert!(Authority::init(dir.path(), "demo", &server, now).is_err());
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    let authority = Authority::init(dir.path(), "demo", &names(), now).unwrap();
    let client = Role::Client("KR/x".parse().unwrap());
    assert!(authority.issue(&client, 6 * 365, now).unwrap_err().to_string().contains("fewer"));
    assert!(authority.issue_between(&client, now, now).is_err());
    assert!(authority.issue(&Role::Operator("../x".to_owned()), 1, now).is_err());
    for institution in ["x-", &"x".repeat(64)] {
        let client = Role::Client(format!("KR/{institution}").parse().unwrap());
        assert!(matches!(authority.issue(&client, 1, now), Err(CertError::Name { .. })));
    }
    assert!(matches!(
        authority.issue(&Role::Coordinator, 1, now),
        Err(CertError::NeedsServerNames)
    ));
}

#[test]
fn a_coordinator_renews_its_certificate_and_keeps_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let now = OffsetDateTime::now_utc();
    let authority = Authority::init(dir.path(), "demo", &names(), now).unwrap();
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    let (old, key) = (read("coordinator.pem"), read("coordinator.key"));
    let later = now + Duration::days(20);
    let renewed = authority.renew_coordinator(&names(), later).unwrap();
    assert_eq!(read("coordinator.pem"), renewed.certificate_pem);
    let still = now + Duration::days(40);
    assert!(check_own(&old, &key, authority.root_pem(), still).is_err());
    let summary =
        check_own(&renewed.certificate_pem, &read("coordinator.key"), authority.root_pem(), still);
    assert_eq!(summary.unwrap().identity.role, Role::Coordinator);
    assert!(authority.renew_coordinator(&[], later).is_err());
}

/// Whoever has the issuing key of KR has nothing of another country, no operator and no coordinator.
#[test]
fn a_countrys_key_makes_clients_of_that_country_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let now = OffsetDateTime::now_utc();
    let authority = Authority::init(dir.path(), "demo", &names(), now).unwrap();
    for country in ["KR", "JP"] {
        authority.add_country(country.parse().unwrap(), None, now).unwrap();
    }
    let korea = authority.signing().read(IssuingCa::Country("KR".parse().unwrap())).unwrap();
    let federation = authority.signing().read(IssuingCa::Federation).unwrap();
    let forge = |ca: &Ca, uri: &str, dns: &[&str], usage: ExtendedKeyUsagePurpose| {
        let key = KeyPair::generate().unwrap();
        let mut params =
            CertificateParams::new(dns.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
                .unwrap();
        params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
        params.extended_key_usages = vec![usage];
        (params.not_before, params.not_after) = (now - CLOCK_SKEW, now + Duration::days(1));
        let pem = params.signed_by(&key, &ca.issuer).unwrap().pem() + &ca.pem;
        check_own(&pem, &key.serialize_pem(), authority.root_pem(), now)
    };
    let client = ExtendedKeyUsagePurpose::ClientAuth;
    let (seoul, osaka) = ("comity://demo/client/KR/seoul", "comity://demo/client/JP/osaka");
    let (in_korea, in_japan) = ("seoul.kr.demo.comity.internal", "osaka.jp.demo.comity.internal");
    let good = forge(&korea, seoul, &[in_korea], client.clone()).unwrap();
    assert_eq!(good.identity.to_string(), seoul);
    let operator = "comity://demo/operator/operator";
    let coordinator = "comity://demo/coordinator";
    let server = ExtendedKeyUsagePurpose::ServerAuth;
    for (uri, dns, usage, word) in [
        // The name of another country in the URI only, in the DNS name only, in both.
        (osaka, &["osaka.kr.demo.comity.internal"][..], &client, "issuing CA of KR"),
        (seoul, &[in_japan], &client, "does not lead to this root"),
        (osaka, &[in_japan], &client, "does not lead to this root"),
        // Without the DNS name, which the constraints bind, with another one, and with one more.
        (osaka, &[], &client, "issuing CA of KR"),
        (seoul, &[], &client, "other names"),
        (seoul, &["busan.kr.demo.comity.internal"], &client, "other names"),
        (seoul, &[in_korea, "busan.kr.demo.comity.internal"], &client, "other names"),
        (seoul, &["kr.demo.comity.internal"], &client, "other names"),
        ("comity://other/client/KR/seoul", &["seoul.kr.other.comity.internal"], &client, "lead"),
        ("comity://other/client/KR/seoul", &[in_korea], &client, "federation"),
        // Other roles.
        (operator, &[], &client, "operators"),
        (operator, &[in_korea], &client, "operators"),
        (coordinator, &[], &server, "does not lead to this root"),
        (coordinator, &[in_korea], &server, "does not lead to this root"),
        (coordinator, &["localhost"], &server, "does not lead to this root"),
        (coordinator, &["127.0.0.1"], &server, "does not lead to this root"),
    ] {
        let said = forge(&korea, uri, dns, usage.clone()).unwrap_err().to_string();
        assert!(said.contains(word), "{uri} {dns:?}: {said}");
    }
    // And the federation's own signs no client.
    for dns in [&[][..], &[in_korea]] {
        assert!(forge(&federation, seoul, dns, client.clone()).is_err(), "{dns:?}");
    }
    assert!(forge(&federation, operator, &[], client.clone()).is_ok());
    assert!(forge(&federation, operator, &["x.example"], client).is_err());
}

#[test]
fn a_chain_is_a_certificate_and_the_ca_that_signed_it() {
    let dir = tempfile::tempdir().unwrap();
    let now = OffsetDateTime::now_utc();
    let authority = Authority::init(dir.path(), "demo", &names(), now).unwrap();
    let ders = |pem: &str| certificates(pem, "certificate").unwrap();
    let client = Role::Client("KR/seoul".parse().unwrap());
    let own = ders(&authority.issue(&client, 1, now).unwrap().certificate_pem);
    let other = ders(&authority.issue(&client, 1, now).unwrap().certificate_pem);
    let root = ders(authority.root_pem());
    assert_eq!(Identity::of_chain(&own).unwrap().client().unwrap().to_string(), "KR/seoul");
    let (leaf, ca) = (&own[0], &own[1]);
    for chain in [
        &[][..],
        &[leaf][..],
        &[leaf, ca, ca],
        &[leaf, ca, &root[0]],
        &[leaf, &root[0]],
        &[leaf, &other[0]],
        &[ca, &root[0]],
    ] {
        assert!(Identity::of_chain(chain).is_err(), "{}", chain.len());
    }
    // Any altered byte of either.
    for at in [0, 1] {
        for byte in (0..own[at].len()).step_by(7) {
            let mut altered: Vec<Vec<u8>> = own.iter().map(|der| der.to_vec()).collect();
            altered[at][byte] ^= 1;
            let read = Identity::of_chain(&altered);
            // The issuing CA's own signature is the root's affair, and seen by TLS.
            assert!(at == 1 || read.is_err(), "byte {byte}");
            assert!(read.is_err() || read.unwrap().to_string() == "comity://demo/client/KR/seoul");
        }
    }
}

#[test]
fn a_root_that_the_disk_altered_is_named_and_does_not_spread() {
    let dir = tempfile::tempdir().unwrap();
    let now = OffsetDateTime::now_utc();
    Authority::init(dir.path(), "demo", &names(), now).unwrap();
    let bundle = std::fs::read(dir.path().join("root.pem")).unwrap();
    for name in ["ca-1/root.pem", "ca-1/issuing.pem"] {
        let path = dir.path().join(name);
        let pem = std::fs::read(&path).unwrap();
        for at in [5, 60, 200, 400, pem.len() - 60] {
            let mut altered = pem.clone();
            altered[at] ^= 1;
            std::fs::write(&path, altered).unwrap();
            let said = Authority::open(dir.path()).unwrap_err().to_string();
            assert!(said.contains(name), "byte {at}: {said}");
            assert_eq!(std::fs::read(dir.path().join("root.pem")).unwrap(), bundle);
        }
        std::fs::write(&path, pem).unwrap();
    }
    // The bundle itself follows from the folders and is written anew.
    std::fs::write(dir.path().join("root.pem"), "x").unwrap();
    Authority::open(dir.path()).unwrap();
    assert_eq!(std::fs::read(dir.path().join("root.pem")).unwrap(), bundle);
}
