//! Receipts, records and certificates between real processes: what each side holds, and what a coordinator that
//! says different things comes to.

use std::fs;
use std::path::{Path, PathBuf};

use comity_certs::{Document, Signer, Verifier};
use comity_federation::{CertificateFile, ClientId, Export, RoundRecord, RunReport, RunStatus};
use comity_journal::Journal;
use serde_json::Value;

use super::{PATIENCE, PLAN, Site, short_rounds, write};

const HOSTILE: &str = "<script>alert('x')</script> & \\\"quoted\\\"";

/// A run that has ended, its clients too.
fn ended(plan: &str) -> (Site, Vec<ClientId>, String) {
    let mut site = Site::new(plan);
    let ids = site.add_clients(None, true);
    site.start_clients(&ids);
    let run = site.launch();
    assert_eq!(site.wait_for_end(&run).status, RunStatus::Finished);
    site.deployment.wait_for_clients(PATIENCE).unwrap();
    (site, ids, run)
}

impl Site {
    fn client_json(&self, id: &ClientId, args: &[&str]) -> Value {
        let printed = self.deployment.client(id, args).unwrap().success().unwrap();
        printed.json().unwrap()
    }

    /// What a client, or the coordinator, exports of `run`.
    fn exported(&self, id: Option<&ClientId>, run: &str) -> PathBuf {
        let name = id.map_or("coordinator".to_owned(), |id| id.to_string().replace('/', "-"));
        let out = self.path(&format!("{name}.records"));
        let args = ["receipts", "export", run, "--out", out.to_str().unwrap()];
        match id {
            Some(id) => self.deployment.client(id, &args),
            None => self.deployment.operator(&args),
        }
        .unwrap()
        .success()
        .unwrap();
        out
    }

    fn coordinator_signer(&self) -> Signer {
        let certs = self.deployment.coordinator_dir().join("certs");
        Signer::read(&certs.join("coordinator.pem"), &certs.join("coordinator.key")).unwrap()
    }

    fn root_pem(&self) -> String {
        fs::read_to_string(self.deployment.coordinator_dir().join("certs/root.pem")).unwrap()
    }

    /// The last round of which the coordinator, which does not serve, has a record.
    fn last_recorded(&self) -> u64 {
        let mut last = None;
        comity_journal::read(self.deployment.coordinator_dir().join("journal.log"), |record| {
            let entry: Value = record.json()?;
            if entry["entry"] == "recorded" {
                last = entry["record"]["round"].as_u64();
            }
            Ok(())
        })
        .unwrap();
        last.expect("a round has ended")
    }

    /// Writes the coordinator's journal anew: each record as `change` returns it, or without it.
    fn rewrite_journal(&self, mut change: impl FnMut(Value) -> Option<Value>) {
        let dir = self.deployment.coordinator_dir();
        let (old, new) = (dir.join("journal.log"), dir.join("journal.new"));
        let mut kept = Vec::new();
        comity_journal::read(&old, |record| {
            let entry: Value = record.json()?;
            kept.push((record.payload, entry));
            Ok(())
        })
        .unwrap();
        let (mut journal, _) = Journal::open(&new).unwrap();
        for (payload, entry) in kept {
            match change(entry.clone()) {
                Some(same) if same == entry => journal.append(&payload).map(drop).unwrap(),
                Some(other) => journal.append_json(&other).map(drop).unwrap(),
                None => {}
            }
        }
        drop(journal);
        fs::rename(new, old).unwrap();
        // It follows the journal, and would notice.
        fs::remove_dir_all(dir.join("index")).unwrap();
    }
}

#[test]
fn a_run_ends_with_the_same_records_on_all_sides_and_a_certificate() {
    // Training takes longer than a signature under the record before is on its way.
    let plan = PLAN
        .replace("Tell horizontal from vertical stripes; a test.", HOSTILE)
        .replace("local_epochs = 2", "local_epochs = 60");
    let (site, ids, run) = ended(&plan);
    for id in &ids {
        let verified = &site.client_json(id, &["receipts", "verify", "--json"])[0];
        assert_eq!(verified["ok"], true, "{id}: {verified}");
        for (what, n) in [("records", 3), ("receipts", 3), ("released", 3), ("receipted", 3)] {
            assert_eq!(verified[what], n, "{id}, {what}: {verified}");
        }
        // Their own, and those of the two others under all records but the last.
        assert_eq!(verified["countersignatures"], 3 + 2 * 2, "{id}: {verified}");
        let listed = site.client_json(id, &["receipts", "list", "--json"]);
        assert_eq!(listed["rounds"].as_array().unwrap().len(), 3, "{listed}");
    }
    let verified = site.deployment.operator(&["receipts", "verify", "--json"]).unwrap();
    let verified = &verified.success().unwrap().json().unwrap()[0];
    assert_eq!((&verified["records"], &verified["countersignatures"]), (&3.into(), &9.into()));

    let coordinators = site.exported(None, &run);
    let clients: Vec<PathBuf> = ids.iter().map(|id| site.exported(Some(id), &run)).collect();
    for (id, other) in ids.iter().zip(clients.iter().cycle().skip(1)) {
        for file in [&coordinators, other] {
            let args = ["receipts", "compare", file.to_str().unwrap()];
            let compared = site.deployment.client(id, &args).unwrap().success().unwrap();
            assert_eq!(compared.stdout, "ok   the same 3 records\n");
        }
    }
    let args = ["receipts", "compare", clients[0].to_str().unwrap()];
    let compared = site.deployment.operator(&args).unwrap().success().unwrap();
    assert_eq!(compared.stdout, "ok   the same 3 records\n");
    // From an operator's own machine.
    let (plan, remote) = (site.path("plan.toml"), site.path("remote.records"));
    let args = ["receipts", "export", &run, "--remote", plan.to_str().unwrap(), "--out"];
    let args = [&args[..], &[remote.to_str().unwrap()]].concat();
    site.deployment.operator(&args).unwrap().success().unwrap();
    assert_eq!(fs::read(&remote).unwrap(), fs::read(&coordinators).unwrap());

    altered_exports_are_found(&site, &coordinators);
    a_coordinator_that_signed_two_records_is_found(&site, &ids[0], &clients[1]);
    the_model_is_certified(&site, &run, &coordinators);
}

/// One flipped bit anywhere in an export is found.
fn altered_exports_are_found(site: &Site, export: &Path) {
    let bytes = fs::read(export).unwrap();
    let verifier = Verifier::new("test", &site.root_pem()).unwrap();
    verifier.export(&Export::from_file(&bytes).unwrap()).unwrap();
    for at in (0..bytes.len()).step_by(61) {
        let mut altered = bytes.clone();
        altered[at] ^= 1 << (at % 7);
        assert!(Export::from_file(&altered).is_err(), "byte {at}");
    }
    // Whoever makes the checksum anew has not signed.
    let mut forged = Export::from_file(&bytes).unwrap();
    forged.records[1].record.missing.push(("VN/c".parse().unwrap(), "no".to_owned()));
    let forged = Export::from_file(&forged.to_file()).unwrap();
    assert!(verifier.export(&forged).is_err());
    let mut moved = Export::from_file(&bytes).unwrap();
    let other = moved.records[0].countersignatures[0].signature.clone();
    moved.records[0].countersignatures[1].signature = other;
    let error = verifier.export(&moved).unwrap_err().to_string();
    assert!(error.contains("countersignature, round 1"), "{error}");
}

/// Two members who were shown different lists of members find it by comparing, and can prove it.
fn a_coordinator_that_signed_two_records_is_found(site: &Site, client: &ClientId, other: &Path) {
    let signer = site.coordinator_signer();
    let mut export = Export::from_file(&fs::read(other).unwrap()).unwrap();
    // The last record, so that the chain still holds; its countersignatures would not.
    let last = export.records.last_mut().unwrap();
    let left_out = last.record.contributions.pop().unwrap().client;
    last.record
        .missing
        .push((left_out.clone(), "late: nothing arrived by the deadline".to_owned()));
    last.signature = signer.sign(Document::Record, &last.record.to_json());
    last.countersignatures.clear();
    let file = site.path("other.records");
    fs::write(&file, export.to_file()).unwrap();
    let args = ["receipts", "compare", file.to_str().unwrap()];
    let compared = site.deployment.client(client, &args).unwrap();
    assert!(!compared.status.success());
    let said = &compared.stdout;
    assert!(said.contains(&format!("after 2 that are the same; round 3, {left_out}:")), "{said}");
    assert!(said.contains("showed its members different things"), "{said}");
    let compared = site.deployment.operator(&args).unwrap();
    assert!(!compared.status.success(), "{}", compared.stdout);
}

fn the_model_is_certified(site: &Site, run: &str, records: &Path) {
    let model = site.path("model.safetensors");
    let (model, out) = (model.to_str().unwrap(), site.path("papers"));
    site.deployment.operator(&["model", "export", run, "--out", model]).unwrap().success().unwrap();
    let scored = site
        .sim(&["evaluate", model, "--plan", "plan.toml", "--world", "world.toml", "--json"])
        .success()
        .unwrap();
    let evaluation = site.path("evaluation.json");
    write(&evaluation, &scored.stdout);
    let certify = ["model", "certify", run, "--model", model, "--evaluation"];
    let rest = [evaluation.to_str().unwrap(), "--out", out.to_str().unwrap()];
    site.deployment.operator(&[&certify[..], &rest].concat()).unwrap().success().unwrap();

    let certificate = out.join("certificate.json");
    let root = site.deployment.coordinator_dir().join("certs/root.pem");
    let verify = |certificate: &Path, model: &str, more: &[&str]| {
        let args = ["model", "verify", certificate.to_str().unwrap(), "--model", model];
        site.deployment.operator(&[&args[..], more].concat()).unwrap()
    };
    let with = ["--root", root.to_str().unwrap(), "--records", records.to_str().unwrap()];
    let verified = verify(&certificate, model, &with).success().unwrap().stdout;
    for said in ["signed by the coordinator of federation test", "very file", "3 signed records"] {
        assert!(verified.contains(said), "{verified}");
    }
    verify(&certificate, model, &[]).success().unwrap();

    let bytes = fs::read(&certificate).unwrap();
    let file = CertificateFile::from_file(&bytes).unwrap();
    assert_eq!(file.certificate.rounds.len(), 3);
    assert!(file.certificate.rounds.iter().all(|round| round.n_countersignatures == 3));
    assert!(file.certificate.evaluation.is_some() && file.certificate.file.is_some());
    let holds = |file: &CertificateFile| {
        let roots: Vec<_> = file.roots.iter().map(|der| comity_certs::fingerprint(der)).collect();
        let verifier = Verifier::of_roots("test", &file.roots);
        roots == file.certificate.roots
            && verifier.is_ok_and(|verifier| {
                let json = file.certificate.to_json();
                let (kind, at) = (Document::ModelCertificate, file.certificate.certified);
                verifier.coordinator(&file.signature, kind, &json, at).is_ok()
            })
    };
    assert!(holds(&file));
    for at in (0..bytes.len()).step_by(11) {
        let mut altered = bytes.clone();
        altered[at] ^= 1 << (at % 7);
        let found = CertificateFile::from_file(&altered).map_or(true, |file| !holds(&file));
        assert!(found, "byte {at}");
    }
    let altered = site.path("altered.json");
    fs::write(
        &altered,
        bytes.iter().map(|b| if *b == b'3' { b'4' } else { *b }).collect::<Vec<_>>(),
    )
    .unwrap();
    assert!(!verify(&altered, model, &[]).status.success());

    // One bit of the model is another model.
    let mut bytes = fs::read(model).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(model, bytes).unwrap();
    let refused = verify(&certificate, model, &[]);
    assert!(!refused.status.success() && refused.stderr.contains("another model"), "{refused:?}");

    let html = fs::read_to_string(out.join("certificate.html")).unwrap();
    assert!(html.contains("&lt;script&gt;alert(&#39;x&#39;)"), "{html}");
    assert!(!html.contains("<script") && !html.contains("http://") && !html.contains("https://"));
}

#[test]
fn a_coordinator_rolled_back_to_an_older_copy_is_refused_by_name() {
    let mut site = Site::new(&short_rounds(60));
    site.keep_port();
    let ids = site.add_clients(None, true);
    site.start_clients(&ids);
    let run = site.launch();
    let closed = |n: u32| {
        move |report: &RunReport| {
            report.history.iter().filter(|round| round.model.is_some()).count() >= n as usize
        }
    };
    site.wait(&run, closed(2));
    site.deployment.stop_coordinator().unwrap();
    let (dir, copy) = (site.deployment.coordinator_dir(), site.path("copy"));
    copy_folder(&dir, &copy);
    site.deployment.serve().unwrap();
    let before = site.report_rounds(&run);
    site.wait(&run, closed(before + 3));
    site.deployment.stop_coordinator().unwrap();
    fs::remove_dir_all(&dir).unwrap();
    copy_folder(&copy, &dir);
    site.deployment.serve().unwrap();
    let report = site.wait_for_end(&run);
    assert_eq!(report.status, RunStatus::Aborted, "{report:#?}");
    let said = site.deployment.coordinator_said();
    assert!(said.contains("its folder is an older copy"), "{said}");
    let refused = report.history.last().unwrap();
    let why: Vec<&String> = refused.missing.iter().map(|(_, why)| why).collect();
    assert!(why.iter().any(|why| why.contains("rolled back to an older copy")), "{why:?}");
    for id in &ids {
        let verified = site.deployment.client(id, &["receipts", "verify"]).unwrap();
        assert!(verified.status.success(), "{id}: {}", verified.stdout);
    }
}

impl Site {
    fn report_rounds(&self, run: &str) -> u32 {
        let report = self.deployment.report(run).unwrap();
        report.history.iter().filter(|round| round.model.is_some()).count() as u32
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[test]
fn a_coordinator_that_rewrites_its_past_loses_its_clients_and_they_say_why() {
    let mut site = Site::new(&short_rounds(60));
    site.keep_port();
    let ids = site.add_clients(None, true);
    site.start_clients(&ids);
    let run = site.launch();
    let mut n_closed = 2;
    let last = loop {
        let is_closed = |report: &RunReport| {
            report.history.iter().filter(|r| r.model.is_some()).count() >= n_closed
        };
        site.wait(&run, is_closed);
        site.deployment.stop_coordinator().unwrap();
        let last = site.last_recorded();
        // A record that nobody has seen is nobody's past: then the run goes on, and is stopped again.
        let is_known = |id: &ClientId| {
            let listed = site.client_json(id, &["receipts", "list", "--json"]);
            let rounds = listed["rounds"].as_array().unwrap();
            rounds.iter().any(|r| r["round"] == last && !r["record"].is_null())
        };
        if ids.iter().any(is_known) {
            break last;
        }
        site.deployment.serve().unwrap();
        n_closed = last as usize + 1;
        assert!(n_closed < 40, "no client holds the last record");
    };
    // It says now that the last round ended later, and signs that.
    let last = Some(last);
    let signer = site.coordinator_signer();
    site.rewrite_journal(|mut entry| {
        if entry["round"].as_u64() == last && entry["entry"] == "countersigned" {
            return None;
        }
        if entry["entry"] == "recorded" && entry["record"]["round"].as_u64() == last {
            let mut record: RoundRecord = serde_json::from_value(entry["record"].clone()).unwrap();
            record.closed.0 += 1;
            let signature = signer.sign(Document::Record, &record.to_json());
            entry["record"] = serde_json::to_value(&record).unwrap();
            entry["signature"] = serde_json::to_value(&signature).unwrap();
        }
        Some(entry)
    });
    site.deployment.serve().unwrap();
    let report = site.wait_for_end(&run);
    assert_eq!(report.status, RunStatus::Aborted, "{report:#?}");
    let mut n_broke = 0;
    for id in &ids {
        let said = site.deployment.client_said(id);
        if said.contains("THE COORDINATOR IS NOT BELIEVED ANY MORE") {
            n_broke += 1;
            assert!(said.contains("rewrote the run's past"), "{said}");
            let verified = site.deployment.client(id, &["receipts", "verify"]).unwrap();
            assert!(!verified.status.success());
            assert!(verified.stdout.contains("rewrote the run's past"), "{}", verified.stdout);
            let standing = report.clients.iter().find(|c| c.client == *id).unwrap();
            let note = standing.note.as_deref().unwrap_or_default();
            assert!(note.contains("rewrote the run's past"), "{note}");
        }
    }
    assert!(n_broke > 0, "{}", site.deployment.client_said(&ids[0]));
    let said = site.deployment.coordinator_said();
    assert!(said.contains("a client signed another record"), "{said}");
    let verified = site.deployment.operator(&["receipts", "verify"]).unwrap();
    assert!(verified.stdout.contains("says otherwise than the journal's steps"), "{verified:?}");
}

#[test]
fn rounds_that_were_closed_without_a_record_are_signed_at_the_next_start() {
    let (mut site, ids, run) = ended(&short_rounds(3));
    site.deployment.stop_coordinator().unwrap();
    site.rewrite_journal(|entry| {
        let signed = matches!(entry["entry"].as_str(), Some("recorded" | "countersigned"));
        (!signed).then_some(entry)
    });
    let unsigned = site.deployment.operator(&["receipts", "verify"]).unwrap();
    assert!(unsigned.stdout.contains("round 1 has no record yet"), "{unsigned:?}");
    site.deployment.serve().unwrap();
    site.deployment.operator(&["receipts", "verify"]).unwrap().success().unwrap();
    // They say what those said that the clients hold, because the journal's steps do.
    let file = site.exported(None, &run);
    for id in &ids {
        let args = ["receipts", "compare", file.to_str().unwrap()];
        let compared = site.deployment.client(id, &args).unwrap().success().unwrap();
        assert_eq!(compared.stdout, "ok   the same 3 records\n");
    }
}
