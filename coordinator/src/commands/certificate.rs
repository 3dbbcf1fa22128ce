//! `comity-coordinator model certify|verify`: how a model came about, signed, and checked against its file.

use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use comity_certs::{Document, Verifier, fingerprint};
use comity_federation::{
    CertificateFile, Export, ModelCertificate, ModelDigest, RunId, SERVER_STATE,
};
use comity_proto::convert::signature;
use comity_proto::v1;
use safetensors::{Dtype, SafeTensors};
use serde_json::json;

use super::certificate_page::page;
use super::operator::{open, refused};
use super::run::block_on;
use crate::config::Home;

/// Has the coordinator certify the model of `run`, and writes `certificate.json` and `certificate.html` to `out`.
pub fn certify(
    home: &Home,
    run: &RunId,
    evaluation: Option<&Path>,
    model: Option<&Path>,
    out: &Path,
    as_json: bool,
) -> anyhow::Result<()> {
    let read = |path: &Path| {
        std::fs::read(path).with_context(|| format!("{} cannot be read", path.display()))
    };
    let evaluation_json = evaluation.map(read).transpose()?.unwrap_or_default();
    let model = model.map(|path| Ok::<_, anyhow::Error>((path, read(path)?))).transpose()?;
    let reply = block_on(async {
        let request = v1::CertifyModelRequest {
            run_id: run.to_string(),
            evaluation_json: evaluation_json.into(),
            model_file_sha256: model
                .as_ref()
                .map(|(_, bytes)| fingerprint(bytes).0.to_vec().into()),
        };
        Ok(open(home).await?.certify_model(request).await.map_err(refused)?.into_inner())
    })?;
    let certificate = ModelCertificate::from_json(&reply.certificate_json)?;
    let root = home.certs().join("root.pem");
    let root_pem = std::fs::read_to_string(&root)
        .with_context(|| format!("{} cannot be read", root.display()))?;
    let roots = comity_certs::certificates_of_pem(&root_pem)?;
    let file = CertificateFile { certificate, signature: signature(reply.signature)?, roots };
    check_signature(&file, Some(&root_pem))?;
    if let Some((path, bytes)) = &model {
        check_model(&file.certificate, bytes).with_context(|| path.display().to_string())?;
    }
    std::fs::create_dir_all(out)
        .with_context(|| format!("folder {} cannot be made", out.display()))?;
    let write = |name: &str, bytes: &[u8]| {
        let path = out.join(name);
        std::fs::write(&path, bytes)
            .with_context(|| format!("{} cannot be written", path.display()))
    };
    write("certificate.json", &file.to_file())?;
    write("certificate.html", page(&file).as_bytes())?;
    let certificate = &file.certificate;
    if as_json {
        let dir = out.display().to_string();
        println!("{}", json!({ "run": run, "model": certificate.model, "folder": dir }));
    } else {
        println!("model {} of run {run} certified", certificate.model);
        println!("  {}   the certificate, signed", out.join("certificate.json").display());
        println!("  {}   the same as a page to print", out.join("certificate.html").display());
    }
    Ok(())
}

/// Checks a certificate, the model's file against it, and records against its root.
pub fn verify(
    certificate: &Path,
    model: &Path,
    root: Option<&Path>,
    records: Option<&Path>,
    as_json: bool,
) -> anyhow::Result<()> {
    let read = |path: &Path| {
        std::fs::read(path).with_context(|| format!("{} cannot be read", path.display()))
    };
    let file = CertificateFile::from_file(&read(certificate)?)
        .with_context(|| certificate.display().to_string())?;
    let root_pem = root
        .map(|path| {
            std::fs::read_to_string(path)
                .with_context(|| format!("{} cannot be read", path.display()))
        })
        .transpose()?;
    let verifier = check_signature(&file, root_pem.as_deref())
        .with_context(|| certificate.display().to_string())?;
    let paper = &file.certificate;
    let same_file =
        check_model(paper, &read(model)?).with_context(|| model.display().to_string())?;
    let n_records = match records {
        None => None,
        Some(path) => {
            let export =
                Export::from_file(&read(path)?).with_context(|| path.display().to_string())?;
            let checked = verifier.export(&export).with_context(|| path.display().to_string())?;
            if let Err(difference) = paper.check_records(&export) {
                bail!("{}: {difference}", path.display());
            }
            Some(checked.n_records)
        }
    };
    let roots: Vec<String> = paper.roots.iter().map(ToString::to_string).collect();
    if as_json {
        println!(
            "{}",
            json!({
                "ok": true,
                "run": paper.run,
                "model": paper.model,
                "root_given": root.is_some(),
                "roots_sha256": roots,
                "same_file": same_file,
                "records": n_records,
            })
        );
        return Ok(());
    }
    println!("ok   signed by the coordinator of federation {}", paper.federation);
    match root {
        Some(root) => println!("ok   its certificate leads to {}", root.display()),
        None => println!(
            "     by the root that came with it: compare its SHA-256 with the one that the federation published\n     {}",
            roots.join("\n     ")
        ),
    }
    println!("ok   {} is model {} of run {}", model.display(), paper.model, paper.run);
    match same_file {
        Some(true) => println!("ok   it is the very file that was certified"),
        Some(false) => {
            println!("     another file than the certified one, with the same parameters")
        }
        None => {}
    }
    match n_records {
        Some(n) => println!("ok   {n} signed records lead to it, as the certificate says"),
        None => println!("     the records were not looked at; `--records EXPORT` checks them too"),
    }
    Ok(())
}

/// Whether the coordinator signed, by the certificate's own root or, where there is one, by `root_pem`.
fn check_signature(file: &CertificateFile, root_pem: Option<&str>) -> anyhow::Result<Verifier> {
    let paper = &file.certificate;
    let found: Vec<_> = file.roots.iter().map(|der| fingerprint(der)).collect();
    ensure!(
        found == paper.roots && !found.is_empty(),
        "the root that came with the certificate is not the one that it names; it was exchanged"
    );
    let verifier = match root_pem {
        Some(pem) => Verifier::new(&paper.federation, pem)?,
        None => Verifier::of_roots(&paper.federation, &file.roots)?,
    };
    verifier.coordinator(
        &file.signature,
        Document::ModelCertificate,
        &paper.to_json(),
        paper.certified,
    )?;
    Ok(verifier)
}

/// Whether `bytes` are a safetensors file of the certified model; and whether of the very bytes that were certified,
/// where the certificate says so.
fn check_model(paper: &ModelCertificate, bytes: &[u8]) -> anyhow::Result<Option<bool>> {
    let file = SafeTensors::deserialize(bytes).context("this is no safetensors file")?;
    let remembers = paper.tensors.iter().any(|tensor| tensor.name.starts_with(SERVER_STATE));
    ensure!(
        !remembers || file.names().iter().any(|name| name.starts_with(SERVER_STATE)),
        "the certified digest is of the model with what the server remembers of it, which this file lacks: \
         export it with `model export --server-state`"
    );
    ensure!(
        file.len() == paper.tensors.len(),
        "the file has {} tensors, the certified model {}",
        file.len(),
        paper.tensors.len()
    );
    let mut hasher = blake3::Hasher::new();
    for tensor in &paper.tensors {
        let found = file
            .tensor(&tensor.name)
            .with_context(|| format!("the file has no tensor {:?}", tensor.name))?;
        ensure!(
            found.dtype() == Dtype::F32 && found.shape() == tensor.shape,
            "tensor {:?} is {:?} {:?}, the certified one F32 {:?}",
            tensor.name,
            found.dtype(),
            found.shape(),
            tensor.shape
        );
        hasher.update(found.data());
    }
    let found = ModelDigest(*hasher.finalize().as_bytes());
    ensure!(
        found == paper.model,
        "the file holds model {found}, the certificate is of {}: it is another model, or was altered",
        paper.model
    );
    Ok(paper.file.as_ref().map(|certified| certified.sha256 == fingerprint(bytes)))
}
