//! The certificate of a model: how it came about, in one document that the coordinator signs.
//!
//! It says nothing that the run's plan, records and journal do not say; it says it in one place, for whoever is
//! given the model and none of those. Whoever has the records too can check it against them.
//!
//! Deliberately not here: keys (`certs`), the printed page (`coordinator`), the model's bytes.

use comity_privacy::Estimate;
use serde::{Deserialize, Serialize};

use crate::record::{read, write};
use crate::{
    ClientId, Counted, DataContract, Difference, Export, KeyFingerprint, Layer, ModelDigest,
    PaperError, Plan, PlanDigest, PlanError, PrivacyTerms, RecordDigest, RunId, RunReport,
    RunStatus, Signature, SignedRecord, Time,
};

const FORMAT: &str = "comity model certificate v1";

/// How a model came about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelCertificate {
    format: String,
    /// Name of the federation.
    pub federation: String,
    /// The run that made the model.
    pub run: RunId,
    /// How far the run was.
    pub status: RunStatus,
    /// BLAKE3 of the model's parameters as little-endian `f32`, in the order of `tensors`.
    pub model: ModelDigest,
    /// The exported file, where one was shown when the certificate was made.
    pub file: Option<ModelFile>,
    /// The plan's digest.
    pub plan: PlanDigest,
    /// The plan's name.
    pub name: String,
    /// What the model is for, in the plan's words.
    pub purpose: String,
    /// Who launched the run, and under which order.
    pub launch: Launched,
    /// What the data look like.
    pub data: DataContract,
    /// The model's layers.
    pub layers: Vec<Layer>,
    /// Number of parameters.
    pub n_parameters: u64,
    /// Number of those that were trained.
    pub n_trained: u64,
    /// Names and shapes of the parameters.
    pub tensors: Vec<CertifiedTensor>,
    /// What the plan promises to the people in the data.
    pub privacy: PrivacyTerms,
    /// The institutions that the plan names.
    pub clients: Vec<CertifiedClient>,
    /// The rounds that ended in a model.
    pub rounds: Vec<CertifiedRound>,
    /// What the clients' noisy statistics before training say together.
    pub statistics: Option<Vec<Estimate>>,
    /// How good the model is, as the operator measured it.
    pub evaluation: Option<Evaluation>,
    /// Digest of the last round's record, which names the one before, and so all of them.
    pub records_root: Option<RecordDigest>,
    /// SHA-256 of the federation's root certificates.
    pub roots: Vec<KeyFingerprint>,
    /// Name and version of the program that made it.
    pub software: String,
    /// When it was made, by the coordinator's clock.
    pub certified: Time,
    /// The operator who asked for it.
    pub certified_for: String,
}

/// An exported file of the model, whose parameters the operator's program compared with the digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelFile {
    /// SHA-256 of its bytes.
    pub sha256: KeyFingerprint,
}

/// Who launched a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Launched {
    /// The operator, as its certificate names it.
    pub by: String,
    /// When, by the coordinator's clock.
    pub at: Time,
    /// BLAKE3 of the order that the operator signed, where there is one.
    pub order: Option<PlanDigest>,
    /// Institutions that signed the plan before it was launched.
    pub consents: Vec<ClientId>,
}

/// One tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertifiedTensor {
    /// Its name in the exported file.
    pub name: String,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
}

/// One institution and what was promised to the people in its data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertifiedClient {
    /// Which.
    pub client: ClientId,
    /// Its public, rounded number of records.
    pub records: u64,
    /// Everything that it sends in the whole run is (ε, δ)-DP with this ε, as calibrated; absent without DP.
    pub epsilon: Option<f64>,
    /// The δ of that ε.
    pub delta: Option<f64>,
    /// Standard deviation of the noise over the clipping norm.
    pub noise_multiplier: Option<f64>,
    /// Rounds in which it counted.
    pub n_rounds: u32,
}

/// One round that ended in a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertifiedRound {
    /// Which; 0 released statistics.
    pub round: u32,
    /// When it ended.
    pub closed: Time,
    /// The model in which it ended.
    pub model: ModelDigest,
    /// Digest of its signed record.
    pub record: RecordDigest,
    /// How many clients signed the record too.
    pub n_countersignatures: u32,
    /// Whose updates count.
    pub contributions: Vec<Counted>,
    /// What the contributors say, with noise, of the model from which the round started.
    pub correct: Vec<NoisyCorrect>,
    /// Who is missing, and why.
    pub missing: Vec<(ClientId, String)>,
}

/// A client's noisy count of own records that a round's first model got right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoisyCorrect {
    /// Whose.
    pub client: ClientId,
    /// The count; with noise, and so perhaps negative.
    pub n: i64,
}

/// An evaluation as the operator gave it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// BLAKE3 of the file.
    pub blake3: PlanDigest,
    /// What it says.
    pub content: serde_json::Value,
}

/// Everything from which a certificate is made.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// Name of the federation.
    pub federation: &'a str,
    /// The run's plan.
    pub plan: &'a Plan,
    /// The run as it stands.
    pub report: &'a RunReport,
    /// Its records with all countersignatures, oldest first.
    pub records: &'a [SignedRecord],
    /// Who launched it.
    pub launch: Launched,
    /// See [`ModelCertificate::evaluation`].
    pub evaluation: Option<Evaluation>,
    /// See [`ModelCertificate::file`].
    pub file: Option<ModelFile>,
    /// See [`ModelCertificate::roots`].
    pub roots: Vec<KeyFingerprint>,
    /// See [`ModelCertificate::software`].
    pub software: String,
    /// See [`ModelCertificate::certified`].
    pub certified: Time,
    /// See [`ModelCertificate::certified_for`].
    pub certified_for: String,
}

impl ModelCertificate {
    /// The certificate that follows from `facts`.
    ///
    /// # Errors
    /// [`PlanError`] if the plan's privacy cannot be calibrated, which was tried when it was launched.
    pub fn of(facts: Facts<'_>) -> Result<Self, PlanError> {
        let (plan, report, records) = (facts.plan, facts.report, facts.records);
        let manifest = plan.manifest()?;
        let counted = |client: &ClientId| {
            let counts =
                |s: &&SignedRecord| s.record.contributions.iter().any(|c| c.client == *client);
            records.iter().filter(counts).count() as u32
        };
        let clients = plan.cohort.clients.iter().map(|named| {
            let privacy = plan.privacy_plan(named)?;
            let finite = |value: f64| Some(value).filter(|value| value.is_finite());
            Ok(CertifiedClient {
                client: named.id.clone(),
                records: named.records,
                epsilon: privacy.as_ref().and_then(|p| finite(p.epsilon_total().epsilon)),
                delta: privacy.as_ref().map(|p| p.budget().delta.get()),
                noise_multiplier: privacy.as_ref().and_then(|p| finite(p.noise_multiplier())),
                n_rounds: counted(&named.id),
            })
        });
        Ok(Self {
            format: FORMAT.to_owned(),
            federation: facts.federation.to_owned(),
            run: report.run.clone(),
            status: report.status,
            model: report.model,
            file: facts.file,
            plan: report.plan,
            name: plan.name.clone(),
            purpose: plan.purpose.clone(),
            launch: facts.launch,
            data: plan.data.clone(),
            layers: plan.model.layers.clone(),
            n_parameters: manifest.n_parameters() as u64,
            n_trained: manifest.n_shared() as u64,
            tensors: manifest
                .tensors
                .iter()
                .map(|t| CertifiedTensor { name: t.name.clone(), shape: t.shape.clone() })
                .collect(),
            privacy: plan.privacy.clone(),
            clients: clients.collect::<Result<_, PlanError>>()?,
            rounds: records.iter().map(|signed| round(signed, report)).collect(),
            statistics: report.statistics.clone(),
            evaluation: facts.evaluation,
            records_root: records.last().map(|signed| signed.record.digest()),
            roots: facts.roots,
            software: facts.software,
            certified: facts.certified,
            certified_for: facts.certified_for,
        })
    }

    /// The bytes under the signature.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        write(self)
    }

    /// Reads a certificate from [`to_json`](Self::to_json).
    ///
    /// # Errors
    /// [`PaperError`] if the bytes are anything else.
    pub fn from_json(bytes: &[u8]) -> Result<Self, PaperError> {
        let what = "a model's certificate";
        let certificate: Self = read(what, bytes)?;
        match certificate.format == FORMAT {
            true => Ok(certificate),
            false => Err(PaperError::Altered { what }),
        }
    }

    /// Whether the records in `export` are those of which the certificate speaks.
    ///
    /// # Errors
    /// The first [`Difference`].
    pub fn check_records(&self, export: &Export) -> Result<(), Difference> {
        let differs =
            |round: Option<u32>, what: String| Err(Difference { round, member: None, what });
        if (&export.federation, &export.run) != (&self.federation, &self.run)
            || export.plan.digest() != self.plan
        {
            return differs(None, "the records are of another run than the certificate".to_owned());
        }
        for certified in &self.rounds {
            let round = Some(certified.round);
            let held = export.records.iter().find(|s| s.record.round == certified.round);
            let Some(held) = held else {
                return differs(round, format!("{}'s export has no record of it", export.by));
            };
            if held.record.digest() != certified.record {
                return differs(
                    round,
                    format!(
                        "the certificate names record {}, {} holds {}",
                        certified.record,
                        export.by,
                        held.record.digest()
                    ),
                );
            }
            if held.record.model != certified.model
                || held.record.contributions != certified.contributions
                || held.record.missing != certified.missing
            {
                return differs(round, "the certificate says otherwise than the record".to_owned());
            }
        }
        let last = self.rounds.last();
        if self.records_root != last.map(|round| round.record)
            || last.is_some_and(|round| round.model != self.model)
        {
            return differs(
                None,
                "the certificate's root is not its last round's record".to_owned(),
            );
        }
        Ok(())
    }
}

fn round(signed: &SignedRecord, report: &RunReport) -> CertifiedRound {
    let record = &signed.record;
    let reported = report.history.iter().find(|round| round.round == record.round);
    let contributions = reported.into_iter().flat_map(|round| &round.contributions);
    CertifiedRound {
        round: record.round,
        closed: record.closed,
        model: record.model,
        record: record.digest(),
        n_countersignatures: signed.countersignatures.len() as u32,
        contributions: record.contributions.clone(),
        correct: contributions
            .filter_map(|c| Some(NoisyCorrect { client: c.client.clone(), n: c.n_correct? }))
            .collect(),
        missing: record.missing.clone(),
    }
}

/// What stands in `certificate.json`: the certificate, its signature, and the root to which its signer's
/// certificates lead. The root is named by its digest in what is signed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateFile {
    /// What is signed.
    pub certificate: ModelCertificate,
    /// The coordinator's.
    pub signature: Signature,
    /// The federation's root certificates, DER.
    #[serde(with = "crate::signature::list")]
    pub roots: Vec<Vec<u8>>,
}

impl CertificateFile {
    /// The file's bytes: JSON that a person can read.
    #[must_use]
    pub fn to_file(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self)
            .expect("a certificate holds nothing but text and finite numbers");
        bytes.push(b'\n');
        bytes
    }

    /// Reads a file that [`to_file`](Self::to_file) made.
    ///
    /// # Errors
    /// [`PaperError`] if it is anything else, down to the last byte.
    pub fn from_file(bytes: &[u8]) -> Result<Self, PaperError> {
        let what = "a model's certificate";
        let file: Self = serde_json::from_slice(bytes)
            .map_err(|error| PaperError::Unreadable { what, reason: error.to_string() })?;
        if file.to_file() != bytes || file.certificate.format != FORMAT {
            return Err(PaperError::Altered { what });
        }
        Ok(file)
    }
}
