//! What lies in files: an institution's data, models, journals, configurations, certificates.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use comity_burn_models::{read_safetensors, write_safetensors};
use comity_certs::{
    Authority, CertificateSummary, Clock, Identity, Issued, Role, check_own, client_config,
    server_config,
};
use comity_client::{Node, Outside};
use comity_coordinator::{Coordinator, Home};
use comity_datasets::{Column, Contract, Scale, Source, Table};
use comity_federation::{Layer, Manifest, ModelSpec};
use comity_journal::{Journal, verify};
use comity_privacy::{Ledger, LedgerEntry, Limit};
use tempfile::TempDir;
use time::OffsetDateTime;

use super::halves;

/// A folder of this thread's own, in memory where there is such a place.
fn folder() -> PathBuf {
    thread_local! {
        static FOLDER: TempDir = {
            let memory = Path::new("/dev/shm");
            let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
            made.expect("a folder can be made")
        };
    }
    FOLDER.with(|folder| folder.path().to_owned())
}

/// Writes `bytes` to `name` in this thread's folder.
fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder().join(name);
    fs::write(&path, bytes).expect("the folder can be written");
    path
}

/// A pair of IDX files: the images up to the length that the first two bytes say, then the labels.
///
/// # Panics
/// If a data set that was taken breaks its contract.
pub fn idx(bytes: &[u8]) -> bool {
    let Some((first, rest)) = bytes.split_first_chunk::<2>() else { return false };
    let images = usize::from(u16::from_le_bytes(*first)).min(rest.len());
    file("images.idx", &rest[..images]);
    file("labels.idx", &rest[images..]);
    let source = Source::Idx { images: "images.idx".into(), labels: "labels.idx".into() };
    let mut understood = false;
    for shape in [vec![1, 2, 2], vec![4], vec![3, 2, 2]] {
        understood |= load(&source, &Contract { shape, n_classes: 4, scale: Scale::Bytes });
    }
    understood
}

/// A CSV table under several ways to read it.
///
/// # Panics
/// As [`idx()`].
pub fn csv(bytes: &[u8]) -> bool {
    file("table.csv", bytes);
    let mut understood = false;
    let by_name = |name: &str| Column::Name(name.to_owned());
    for (label, person, header, missing) in [
        (by_name("class"), None, true, None),
        (by_name("class"), Some(by_name("who")), true, Some("NA")),
        (Column::Index(0), None, false, Some("")),
        (Column::Index(2), Some(Column::Index(0)), false, None),
    ] {
        let missing = missing.map(str::to_owned);
        let source =
            Source::Csv(Table { person, missing, ..Table::new("table.csv", label, header) });
        for scale in [Scale::Bytes, Scale::Real] {
            understood |= load(&source, &Contract { shape: vec![2], n_classes: 3, scale });
        }
    }
    understood
}

fn load(source: &Source, contract: &Contract) -> bool {
    let loaded = source.load(&folder(), contract);
    if let Ok(data) = &loaded {
        assert!(!data.is_empty(), "a data set without an example");
        assert_eq!(data.shape(), contract.shape);
        assert!(data.labels().iter().all(|label| (*label as usize) < contract.n_classes));
        // As they were read: constants of a plan may take a finite number past the largest one.
        let batch = data.batch(&[0, data.len() - 1], comity_datasets::Normalise::IDENTITY);
        assert!(batch.features.iter().all(|feature| feature.is_finite()));
    }
    loaded.is_ok()
}

/// A file of a model.
///
/// # Panics
/// If a model that was taken does not come back from a file of our own.
pub fn safetensors(bytes: &[u8]) -> bool {
    static MANIFEST: OnceLock<Manifest> = OnceLock::new();
    let manifest = MANIFEST.get_or_init(|| {
        let layers = vec![Layer::LayerNorm, Layer::Linear { out: 2 }];
        ModelSpec { layers }.manifest(&[3], 2).expect("a model")
    });
    let read = read_safetensors(&file("model.safetensors", bytes), manifest);
    if let Ok(parameters) = &read {
        assert_eq!(parameters.values().len(), manifest.n_parameters());
        let path = folder().join("again.safetensors");
        write_safetensors(&path, manifest, parameters, &Default::default()).expect("it fits");
        let back = read_safetensors(&path, manifest).expect("our own file can be read");
        assert_eq!(back.to_bytes(), parameters.to_bytes());
    }
    read.is_ok()
}

/// A journal.
///
/// # Panics
/// If one that was refused is changed, or one that was taken loses a record or cannot go on.
pub fn journal(bytes: &[u8]) -> bool {
    let path = file("journal.log", bytes);
    let verified = verify(&path);
    match Journal::open(&path) {
        Err(_) => {
            assert_eq!(fs::read(&path).expect("it is there"), bytes, "a refusal changed it");
            false
        }
        Ok((mut journal, records)) => {
            let (seq, hash) = journal.head();
            assert_eq!(records.len() as u64, seq);
            if let Ok(verified) = verified {
                assert_eq!((verified.seq, verified.hash), (seq, hash));
                assert_eq!(verified.torn_bytes, journal.recovered_bytes());
            }
            journal.append(b"one more").expect("it can go on");
            drop(journal);
            let (_, again) = Journal::open(&path).expect("it can be opened again");
            assert_eq!(again[..records.len()], records);
            assert_eq!(again.len(), records.len() + 1);
            !records.is_empty()
        }
    }
}

/// Lines of a privacy ledger, as JSON.
///
/// # Panics
/// If a ledger that was taken is not the one of its lines.
pub fn ledger_lines(bytes: &[u8]) -> bool {
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let entries: Result<Vec<LedgerEntry>, _> = lines.map(serde_json::from_slice).collect();
    let Ok(entries) = entries else { return false };
    let limit = Limit { budget: None, exempt_allowed: true };
    let replayed = Ledger::replay(limit, entries.iter().cloned());
    if let Ok(ledger) = &replayed {
        assert_eq!(ledger.entries(), entries);
        let json = serde_json::to_vec(&entries).expect("plain values");
        let back: Vec<LedgerEntry> = serde_json::from_slice(&json).expect("our own lines");
        assert_eq!(back, entries);
    }
    replayed.is_ok()
}

/// A node's configuration; its folder holds nothing else, so no node can start.
///
/// # Panics
/// If one does.
pub fn client_toml(bytes: &[u8]) -> bool {
    file("policy.toml", include_bytes!("../../../docs/samples/policy.toml"));
    let started = Node::open(&file("client.toml", bytes), Outside::deployed());
    let refusal = started.err().expect("a node started without a certificate");
    format!("{refusal:#}").contains("certificate.pem")
}

/// A coordinator's configuration; its folder holds nothing else, so none can start.
///
/// # Panics
/// If one does.
pub fn coordinator_toml(bytes: &[u8]) -> bool {
    file("coordinator.toml", bytes);
    let started = Coordinator::open(&Home::new(&folder()), Clock::system());
    let refusal = started.err().expect("a coordinator started without a certificate");
    format!("{refusal:#}").contains("coordinator.pem")
}

/// An authority and one member's papers.
struct Papers {
    root: String,
    issued: Issued,
}

fn papers() -> &'static Papers {
    static PAPERS: OnceLock<Papers> = OnceLock::new();
    PAPERS.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a folder can be made");
        let now = OffsetDateTime::now_utc();
        let names = ["127.0.0.1".to_owned()];
        let authority = Authority::init(dir.path(), "fuzz", &names, now).expect("an authority");
        let client = "KR/a".parse().expect("a name");
        let issued = authority.issue(&Role::Client(client), 30, now).expect("a certificate");
        Papers { root: authority.root_pem().to_owned(), issued }
    })
}

/// Certificates: as PEM in each place where one is read, and as DER.
///
/// # Panics
/// If somebody else's certificate is taken with our key and root.
pub fn certificates(bytes: &[u8]) -> bool {
    let (pem, der) = halves(bytes);
    let mut understood =
        Identity::of_certificate(bytes).is_ok() || Identity::of_certificate(der).is_ok();
    let Ok(pem) = std::str::from_utf8(pem) else { return understood };
    let Papers { root, issued } = papers();
    let now = OffsetDateTime::now_utc();
    if let Ok(summary) = CertificateSummary::of_pem(pem) {
        let _ = (summary.days_left(now), summary.identity.to_string());
        understood = true;
    }
    let own = check_own(pem, &issued.key_pem, root, now);
    assert!(own.is_err(), "a certificate of another key was taken");
    let _ = check_own(&issued.certificate_pem, pem, root, now);
    let other_root = check_own(&issued.certificate_pem, &issued.key_pem, pem, now);
    assert!(other_root.is_err(), "a root that did not sign it was taken");
    let _ = client_config(pem, &issued.key_pem, root);
    let _ = client_config(&issued.certificate_pem, &issued.key_pem, pem);
    let _ = server_config(&issued.certificate_pem, pem, root);
    let _ = server_config(&issued.certificate_pem, &issued.key_pem, pem);
    understood
}
