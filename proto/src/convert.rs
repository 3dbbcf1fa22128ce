//! Between wire messages and the types of the rules.  An error names the field.

use comity_federation::{
    ClientId, ClientReport, ClientStanding, Consent, Contribution, ContributionReport,
    Countersignature, ModelDigest, Order, OrderRefusal, PlanDigest, Receipt, RoundRecord,
    RoundReport, RunId, RunReport, RunStatus, Signature, SignedConsent, SignedOrder, SignedReceipt,
    Time, UpdateDigest, UpdateEncoding,
};
use tonic::Status;

use crate::limits::{
    CERTIFICATE_BYTES_MAX, CHAIN_MAX, CONSENTS_MAX, SIGNATURE_BYTES_MAX, WITNESSES_MAX,
};
use crate::v1;

/// Why a message cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A field holds something else than it should.
    #[error("field {field}: {reason}")]
    Field {
        /// Its name in the `.proto` file.
        field: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A chunk does not follow the one before.
    #[error("a chunk {0}")]
    Chunk(String),
}

impl From<WireError> for Status {
    fn from(error: WireError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

fn field(field: &'static str, reason: impl ToString) -> WireError {
    WireError::Field { field, reason: reason.to_string() }
}

/// The 32 bytes of a digest.
///
/// # Errors
/// [`WireError::Field`] if there are more or fewer.
pub fn digest(name: &'static str, bytes: &[u8]) -> Result<[u8; 32], WireError> {
    bytes.try_into().map_err(|_| field(name, format!("{} bytes instead of 32", bytes.len())))
}

/// A run id.
///
/// # Errors
/// [`WireError::Field`] if the text is not one.
pub fn run_id(text: &str) -> Result<RunId, WireError> {
    text.parse().map_err(|e| field("run_id", e))
}

/// A client's id.
///
/// # Errors
/// [`WireError::Field`] if the text is not one.
pub fn client(text: &str) -> Result<ClientId, WireError> {
    text.parse().map_err(|e| field("client", e))
}

impl TryFrom<v1::Signature> for Signature {
    type Error = WireError;
    fn try_from(wire: v1::Signature) -> Result<Self, WireError> {
        let fits = wire.chain.len() <= CHAIN_MAX
            && wire.chain.iter().all(|der| der.len() <= CERTIFICATE_BYTES_MAX)
            && wire.signature.len() <= SIGNATURE_BYTES_MAX;
        if !fits {
            return Err(field("signature", "it is longer than a signature of a member is"));
        }
        Ok(Self {
            chain: wire.chain.iter().map(|der| der.to_vec()).collect(),
            signature: wire.signature.to_vec(),
        })
    }
}

impl From<&Signature> for v1::Signature {
    fn from(signature: &Signature) -> Self {
        Self {
            chain: signature.chain.iter().map(|der| der.clone().into()).collect(),
            signature: signature.signature.clone().into(),
        }
    }
}

/// The order in a message, and its signature, which is not checked yet.
///
/// # Errors
/// [`OrderRefusal::Unsigned`] if one of them is missing, [`OrderRefusal::Unreadable`] if one means nothing.
pub fn signed_order(
    order_json: &[u8],
    signature: Option<v1::Signature>,
) -> Result<SignedOrder, OrderRefusal> {
    let order = Order::from_json(order_json)?;
    let signature = signature.ok_or(OrderRefusal::Unsigned)?;
    let signature = Signature::try_from(signature).map_err(|error| unreadable("order", &error))?;
    Ok(SignedOrder { order, signature })
}

/// The consents in a message, whose signatures are not checked yet.
///
/// # Errors
/// [`OrderRefusal::Unreadable`] if one means nothing, or there are more than [`CONSENTS_MAX`].
pub fn signed_consents(wire: Vec<v1::SignedConsent>) -> Result<Vec<SignedConsent>, OrderRefusal> {
    if wire.len() > CONSENTS_MAX {
        let reason = format!("there are more than {CONSENTS_MAX}");
        return Err(OrderRefusal::Unreadable { what: "consent", reason });
    }
    let consents = wire.into_iter().map(|wire| {
        let consent = Consent::from_json(&wire.consent_json)?;
        let signature = Signature::try_from(wire.signature.unwrap_or_default())
            .map_err(|error| unreadable("consent", &error))?;
        Ok(SignedConsent { consent, signature })
    });
    consents.collect()
}

fn unreadable(what: &'static str, error: &WireError) -> OrderRefusal {
    OrderRefusal::Unreadable { what, reason: error.to_string() }
}

impl From<&SignedConsent> for v1::SignedConsent {
    fn from(signed: &SignedConsent) -> Self {
        Self {
            consent_json: signed.consent.to_json().into(),
            signature: Some((&signed.signature).into()),
        }
    }
}

/// A record with its signature and the countersignatures that came with it, of whichever record they are.
///
/// # Errors
/// [`WireError::Field`] if one of them is not.
pub fn signed_record(
    wire: v1::SignedRecord,
) -> Result<(RoundRecord, Signature, Vec<Countersignature>), WireError> {
    if wire.witnesses.len() > WITNESSES_MAX {
        return Err(field("witnesses", format!("more than {WITNESSES_MAX}")));
    }
    let record =
        RoundRecord::from_json(&wire.record_json).map_err(|error| field("record_json", error))?;
    let witnesses = wire.witnesses.into_iter().map(countersignature).collect::<Result<_, _>>()?;
    Ok((record, signature(wire.signature)?, witnesses))
}

/// A client's countersignature; of which round, stands beside it.
///
/// # Errors
/// [`WireError::Field`] if it is not one.
pub fn countersignature(wire: v1::Countersignature) -> Result<Countersignature, WireError> {
    Ok(Countersignature { client: client(&wire.client)?, signature: signature(wire.signature)? })
}

/// A signature that has to be there.
///
/// # Errors
/// [`WireError::Field`] if it is not, or is none.
pub fn signature(wire: Option<v1::Signature>) -> Result<Signature, WireError> {
    wire.ok_or_else(|| field("signature", "it is missing"))?.try_into()
}

/// A receipt and its signature, if there is one.
///
/// # Errors
/// [`WireError::Field`] if it cannot be read.
pub fn signed_receipt(reply: v1::SubmitReply) -> Result<Option<SignedReceipt>, WireError> {
    if reply.receipt_json.is_empty() {
        return Ok(None);
    }
    let receipt =
        Receipt::from_json(&reply.receipt_json).map_err(|error| field("receipt_json", error))?;
    Ok(Some(SignedReceipt { receipt, signature: signature(reply.receipt_signature)? }))
}

impl TryFrom<v1::UpdateHeader> for Contribution {
    type Error = WireError;
    fn try_from(wire: v1::UpdateHeader) -> Result<Self, WireError> {
        let encoding = match v1::UpdateEncoding::try_from(wire.encoding) {
            Ok(v1::UpdateEncoding::Int32) => UpdateEncoding::Int32,
            Ok(v1::UpdateEncoding::Int16) => UpdateEncoding::Int16,
            Ok(v1::UpdateEncoding::Int8) => UpdateEncoding::Int8,
            Err(_) => return Err(field("encoding", format!("{} is unknown", wire.encoding))),
        };
        Ok(Self {
            encoding,
            round: wire.round,
            plan: PlanDigest(digest("plan_digest", &wire.plan_digest)?),
            base: ModelDigest(digest("base_digest", &wire.base_digest)?),
            update: UpdateDigest(digest("update_digest", &wire.update_digest)?),
            n_parameters: wire.n_parameters,
            n_correct: wire.n_correct,
            loss_sum: wire.loss_sum,
        })
    }
}

/// The header under which `contribution` travels for `run`.
#[must_use]
pub fn update_header(run: &RunId, contribution: &Contribution) -> v1::UpdateHeader {
    let encoding = match contribution.encoding {
        UpdateEncoding::Int32 => v1::UpdateEncoding::Int32,
        UpdateEncoding::Int16 => v1::UpdateEncoding::Int16,
        UpdateEncoding::Int8 => v1::UpdateEncoding::Int8,
    };
    v1::UpdateHeader {
        encoding: encoding.into(),
        run_id: run.to_string(),
        round: contribution.round,
        plan_digest: contribution.plan.0.to_vec().into(),
        base_digest: contribution.base.0.to_vec().into(),
        update_digest: contribution.update.0.to_vec().into(),
        n_parameters: contribution.n_parameters,
        total_bytes: contribution.delta_bytes(),
        n_correct: contribution.n_correct,
        loss_sum: contribution.loss_sum,
    }
}

impl From<RunReport> for v1::RunReport {
    fn from(report: RunReport) -> Self {
        let status = match report.status {
            RunStatus::Gathering => v1::RunStatus::Gathering,
            RunStatus::Training => v1::RunStatus::Training,
            RunStatus::Aggregating => v1::RunStatus::Aggregating,
            RunStatus::Finished => v1::RunStatus::Finished,
            RunStatus::Aborted => v1::RunStatus::Aborted,
        };
        Self {
            run_id: report.run.to_string(),
            name: report.name,
            plan_digest: report.plan.0.to_vec().into(),
            status: status.into(),
            reason: report.reason,
            round: report.round,
            rounds: report.rounds,
            started_ms: report.started.0,
            ended_ms: report.ended.map(|t| t.0),
            model_digest: report.model.0.to_vec().into(),
            clients: report.clients.into_iter().map(client_to_wire).collect(),
            history: report.history.into_iter().map(round_to_wire).collect(),
            statistics_json: report
                .statistics
                .map(|estimates| serde_json::to_vec(&estimates).expect("plain numbers"))
                .unwrap_or_default()
                .into(),
        }
    }
}

fn client_to_wire(report: ClientReport) -> v1::ClientReport {
    let standing = match report.standing {
        ClientStanding::Registered => v1::ClientStanding::Registered,
        ClientStanding::Configured => v1::ClientStanding::Configured,
        ClientStanding::Training => v1::ClientStanding::Training,
        ClientStanding::Contributed => v1::ClientStanding::Contributed,
        ClientStanding::Late => v1::ClientStanding::Late,
        ClientStanding::Declined => v1::ClientStanding::Declined,
        ClientStanding::Excluded => v1::ClientStanding::Excluded,
    };
    v1::ClientReport {
        client: report.client.to_string(),
        standing: standing.into(),
        note: report.note,
        connected: report.connected,
    }
}

fn round_to_wire(report: RoundReport) -> v1::RoundReport {
    v1::RoundReport {
        round: report.round,
        opened_ms: report.opened.0,
        closed_ms: report.closed.map(|t| t.0),
        base_digest: report.base.0.to_vec().into(),
        model_digest: report.model.map(|m| m.0.to_vec().into()),
        cohort: report.cohort.iter().map(ClientId::to_string).collect(),
        contributions: report
            .contributions
            .iter()
            .map(|c| v1::ContributionReport {
                client: c.client.to_string(),
                weight: c.weight,
                bytes: c.bytes,
                update_digest: c.update.0.to_vec().into(),
                n_correct: c.n_correct,
                at_ms: c.at.0,
                loss_sum: c.loss_sum,
                staleness: c.staleness,
            })
            .collect(),
        missing: report
            .missing
            .into_iter()
            .map(|(client, reason)| v1::MissingClient { client: client.to_string(), reason })
            .collect(),
    }
}

impl TryFrom<v1::RunReport> for RunReport {
    type Error = WireError;
    fn try_from(wire: v1::RunReport) -> Result<Self, WireError> {
        let status = match wire.status() {
            v1::RunStatus::Gathering => RunStatus::Gathering,
            v1::RunStatus::Training => RunStatus::Training,
            v1::RunStatus::Aggregating => RunStatus::Aggregating,
            v1::RunStatus::Finished => RunStatus::Finished,
            v1::RunStatus::Aborted => RunStatus::Aborted,
            v1::RunStatus::Unspecified => {
                return Err(field(
                    "status",
                    format!("{} is unknown; update this software", wire.status),
                ));
            }
        };
        Ok(Self {
            run: run_id(&wire.run_id)?,
            name: wire.name,
            plan: PlanDigest(digest("plan_digest", &wire.plan_digest)?),
            status,
            reason: wire.reason,
            round: wire.round,
            rounds: wire.rounds,
            started: Time(wire.started_ms),
            ended: wire.ended_ms.map(Time),
            model: ModelDigest(digest("model_digest", &wire.model_digest)?),
            clients: wire.clients.into_iter().map(client_from_wire).collect::<Result<_, _>>()?,
            history: wire.history.into_iter().map(round_from_wire).collect::<Result<_, _>>()?,
            statistics: match &wire.statistics_json[..] {
                [] => None,
                json => {
                    Some(serde_json::from_slice(json).map_err(|e| field("statistics_json", e))?)
                }
            },
        })
    }
}

fn client_from_wire(wire: v1::ClientReport) -> Result<ClientReport, WireError> {
    let standing = match wire.standing() {
        v1::ClientStanding::Registered => ClientStanding::Registered,
        v1::ClientStanding::Configured => ClientStanding::Configured,
        v1::ClientStanding::Training => ClientStanding::Training,
        v1::ClientStanding::Contributed => ClientStanding::Contributed,
        v1::ClientStanding::Late => ClientStanding::Late,
        v1::ClientStanding::Declined => ClientStanding::Declined,
        v1::ClientStanding::Excluded => ClientStanding::Excluded,
        v1::ClientStanding::Unspecified => {
            return Err(field("standing", format!("{} is unknown", wire.standing)));
        }
    };
    Ok(ClientReport {
        client: client(&wire.client)?,
        standing,
        note: wire.note,
        connected: wire.connected,
    })
}

fn round_from_wire(wire: v1::RoundReport) -> Result<RoundReport, WireError> {
    let contribution = |c: v1::ContributionReport| {
        Ok(ContributionReport {
            client: client(&c.client)?,
            weight: c.weight,
            bytes: c.bytes,
            update: UpdateDigest(digest("update_digest", &c.update_digest)?),
            n_correct: c.n_correct,
            loss_sum: c.loss_sum,
            at: Time(c.at_ms),
            staleness: c.staleness,
        })
    };
    Ok(RoundReport {
        round: wire.round,
        opened: Time(wire.opened_ms),
        closed: wire.closed_ms.map(Time),
        base: ModelDigest(digest("base_digest", &wire.base_digest)?),
        model: wire
            .model_digest
            .map(|bytes| digest("model_digest", &bytes).map(ModelDigest))
            .transpose()?,
        cohort: wire.cohort.iter().map(|c| client(c)).collect::<Result<_, _>>()?,
        contributions: wire
            .contributions
            .into_iter()
            .map(contribution)
            .collect::<Result<_, WireError>>()?,
        missing: wire
            .missing
            .into_iter()
            .map(|m| Ok((client(&m.client)?, m.reason)))
            .collect::<Result<_, WireError>>()?,
    })
}

#[cfg(test)]
mod tests {
    use comity_privacy::Estimate;

    use super::*;

    fn report() -> RunReport {
        let id: ClientId = "KR/a".parse().unwrap();
        RunReport {
            run: "x-1".parse().unwrap(),
            name: "x".into(),
            plan: PlanDigest([1; 32]),
            status: RunStatus::Aborted,
            reason: Some("why".into()),
            round: 1,
            rounds: 2,
            started: Time(3),
            ended: Some(Time(4)),
            model: ModelDigest([2; 32]),
            clients: vec![ClientReport {
                client: id.clone(),
                standing: ClientStanding::Declined,
                note: Some("no".into()),
                connected: Some(true),
            }],
            history: vec![RoundReport {
                round: 1,
                opened: Time(3),
                closed: None,
                base: ModelDigest([3; 32]),
                model: Some(ModelDigest([4; 32])),
                cohort: vec![id.clone()],
                contributions: vec![ContributionReport {
                    client: id.clone(),
                    weight: 7,
                    bytes: 60,
                    update: UpdateDigest([5; 32]),
                    n_correct: Some(-3),
                    loss_sum: Some(-77),
                    at: Time(4),
                    staleness: 2,
                }],
                missing: vec![(id, "late".into())],
            }],
            statistics: Some(vec![Estimate::Moments { mean: vec![0.1], std: vec![1.0 / 3.0] }]),
        }
    }

    #[test]
    fn statistics_that_are_none_are_refused() {
        let wire = v1::RunReport { statistics_json: b"[{}]".to_vec().into(), ..report().into() };
        let error = RunReport::try_from(wire).unwrap_err().to_string();
        assert!(error.contains("statistics_json"), "{error}");
    }

    #[test]
    fn reports_and_headers_come_back_as_they_went() {
        let wire = v1::RunReport::from(report());
        assert_eq!(RunReport::try_from(wire).unwrap(), report());
        let contribution = Contribution {
            round: 3,
            plan: PlanDigest([1; 32]),
            base: ModelDigest([2; 32]),
            update: UpdateDigest([3; 32]),
            n_parameters: 9,
            encoding: UpdateEncoding::Int32,
            n_correct: None,
            loss_sum: Some(5),
        };
        let header = update_header(&report().run, &contribution);
        assert_eq!(header.total_bytes, 36);
        assert_eq!(Contribution::try_from(header).unwrap(), contribution);
        let quantised = Contribution { encoding: UpdateEncoding::Int8, ..contribution };
        let header = update_header(&report().run, &quantised);
        assert_eq!(header.total_bytes, 10);
        let unknown = v1::UpdateHeader { encoding: 9, ..header.clone() };
        assert_eq!(Contribution::try_from(header).unwrap(), quantised);
        assert!(Contribution::try_from(unknown).unwrap_err().to_string().contains("encoding"));
    }

    // BAD_INPUTS 27
    #[test]
    fn a_bad_field_is_named() {
        let mut wire = v1::RunReport::from(report());
        wire.plan_digest = vec![0; 31].into();
        let error = RunReport::try_from(wire).unwrap_err().to_string();
        assert_eq!(error, "field plan_digest: 31 bytes instead of 32");
        let mut wire = v1::RunReport::from(report());
        wire.status = 77;
        assert!(RunReport::try_from(wire).unwrap_err().to_string().contains("77"));
        let mut wire = v1::RunReport::from(report());
        wire.history[0].cohort[0] = "../x".into();
        assert!(RunReport::try_from(wire).is_err());
    }
}
