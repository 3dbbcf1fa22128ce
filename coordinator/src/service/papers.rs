//! Receipts, records and countersignatures on their way out and in.

use comity_certs::{CertError, Document, certificates_of_pem, fingerprint};
use comity_federation::{
    ClientId, Contribution, Evaluation, Facts, KeyFingerprint, ModelCertificate, ModelFile,
    PlanDigest, RunId, SignedRecord,
};
use comity_proto::convert::{digest, run_id, signature};
use comity_proto::limits::{EVALUATION_BYTES_MAX, OPEN_RUNS_MAX};
use comity_proto::v1;
use tonic::{Response, Status};
use tracing::{debug, error, info, warn};

use super::status;
use crate::driver::{Countersigned, DriverHandle, RecordsHeld};

/// The answer to an update that was accepted, now or before, with its receipt.
pub(super) async fn submitted(
    driver: &DriverHandle,
    run: RunId,
    client: ClientId,
    contribution: &Contribution,
    already_had_it: bool,
) -> Result<v1::SubmitReply, Status> {
    let receipt = driver.receipt(run, client, contribution.update).await.map_err(status)?;
    let signed = receipt.map(|receipt| driver.papers().receipt(receipt));
    Ok(v1::SubmitReply {
        already_had_it,
        receipt_json: signed.iter().flat_map(|signed| signed.receipt.to_json()).collect(),
        receipt_signature: signed.map(|signed| (&signed.signature).into()),
    })
}

/// The latest records that a client says to hold.
pub(super) fn records_held(request: &v1::FollowRequest) -> Result<RecordsHeld, Status> {
    if request.records_held.len() > OPEN_RUNS_MAX {
        return Err(Status::invalid_argument(format!("records of more than {OPEN_RUNS_MAX} runs")));
    }
    let held = request.records_held.iter();
    held.map(|held| Ok((run_id(&held.run_id)?, held.round))).collect()
}

/// A record as a client is shown it, with others' signatures under the record before.
pub(super) fn shown(signed: &SignedRecord) -> v1::SignedRecord {
    let before = signed.record.round.saturating_sub(1);
    v1::SignedRecord {
        record_json: signed.record.to_json().into(),
        signature: Some((&signed.signature).into()),
        witnesses: countersignatures(signed, before),
    }
}

/// The countersignatures beside `signed`, which are under the record of `round`.
pub(super) fn countersignatures(signed: &SignedRecord, round: u32) -> Vec<v1::Countersignature> {
    let all = signed.countersignatures.iter();
    all.map(|countersignature| v1::Countersignature {
        client: countersignature.client.to_string(),
        round,
        signature: Some((&countersignature.signature).into()),
    })
    .collect()
}

/// Takes a client's signature under a record, once it is its own and under this very record.
pub(super) async fn countersign(
    driver: &DriverHandle,
    client: ClientId,
    request: v1::CountersignRequest,
) -> Result<Response<v1::CountersignReply>, Status> {
    let (run, round) = (run_id(&request.run_id)?, request.round);
    let signed = digest("record_digest", &request.record_digest)?;
    let signature = signature(request.signature)?;
    let record = driver.record(run.clone(), round, client.clone()).await.map_err(status)?;
    if record.digest().0 != signed {
        error!(
            %run, round, %client, theirs = %comity_federation::RecordDigest(signed), ours = %record.digest(),
            "a client signed another record of this round than the one that is kept here: this folder is a copy of \
             another coordinator's, or somebody signs with its key"
        );
        return Err(Status::failed_precondition(format!(
            "the record of round {round} that is kept here is {}, not {}",
            record.digest(),
            comity_federation::RecordDigest(signed)
        )));
    }
    let checked = driver.papers().check(&record, &client, &signature);
    checked.map_err(|refused: CertError| {
        warn!(%run, round, %client, %refused, "countersignature refused");
        Status::invalid_argument(refused.to_string())
    })?;
    debug!(%run, round, %client, "record countersigned");
    let signed = Countersigned { run, round, client, signature };
    driver.countersigned(signed).await.map_err(status)?;
    Ok(Response::new(v1::CountersignReply {}))
}

/// The records of a run with all countersignatures, one message each.
pub(super) async fn export(
    driver: &DriverHandle,
    request: v1::ExportRecordsRequest,
) -> Result<Vec<Result<v1::RecordExport, Status>>, Status> {
    let records = driver.records(run_id(&request.run_id)?).await.map_err(status)?;
    let part = |signed: SignedRecord| v1::RecordExport {
        record: Some(v1::SignedRecord {
            record_json: signed.record.to_json().into(),
            signature: Some((&signed.signature).into()),
            witnesses: Vec::new(),
        }),
        countersignatures: countersignatures(&signed, signed.record.round),
    };
    Ok(records.into_iter().map(|signed| Ok(part(signed))).collect())
}

/// The certificate of a run's model, for `operator`.
pub(super) async fn certify(
    driver: &DriverHandle,
    request: v1::CertifyModelRequest,
    operator: String,
) -> Result<v1::CertifyModelReply, Status> {
    if request.evaluation_json.len() > EVALUATION_BYTES_MAX {
        return Err(Status::invalid_argument(format!(
            "an evaluation has at most {EVALUATION_BYTES_MAX} bytes"
        )));
    }
    let evaluation = match &request.evaluation_json[..] {
        [] => None,
        json => Some(Evaluation {
            blake3: PlanDigest(*blake3::hash(json).as_bytes()),
            content: serde_json::from_slice(json).map_err(|error| {
                Status::invalid_argument(format!("the evaluation is no JSON: {error}"))
            })?,
        }),
    };
    let sha256 = request.model_file_sha256.as_ref();
    let file = sha256.map(|bytes| digest("model_file_sha256", bytes)).transpose()?;
    let file = file.map(|sha256| ModelFile { sha256: KeyFingerprint(sha256) });
    let run = run_id(&request.run_id)?;
    let (plan, report) = (driver.plan(run.clone()), driver.report(run.clone()));
    let (plan, report) = (plan.await.map_err(status)?, report.await.map_err(status)?);
    let records = driver.records(run.clone()).await.map_err(status)?;
    let (launch, certified) = driver.launch_of(run.clone()).await.map_err(status)?;
    let papers = driver.papers();
    let roots =
        certificates_of_pem(&papers.root_pem()).map_err(|e| Status::internal(e.to_string()))?;
    let federation = papers.federation();
    let facts = Facts {
        federation: &federation,
        plan: &plan,
        report: &report,
        records: &records,
        launch,
        evaluation,
        file,
        roots: roots.iter().map(|der| fingerprint(der)).collect(),
        software: concat!("comity-coordinator ", env!("CARGO_PKG_VERSION")).to_owned(),
        certified,
        certified_for: operator.clone(),
    };
    let certificate =
        ModelCertificate::of(facts).map_err(|e| status(crate::driver::DriverError::Plan(e)))?;
    let json = certificate.to_json();
    let signature = papers.sign(Document::ModelCertificate, &json);
    info!(%run, model = %certificate.model, operator, "model certified");
    Ok(v1::CertifyModelReply {
        certificate_json: json.into(),
        signature: Some((&signature).into()),
    })
}
