//! What the coordinator puts its signature under: receipts, records of rounds, certificates of models.
//!
//! A record is signed in the step that gives the round its model and reaches the journal with it, in one write:
//! nobody sees a model without its record. A receipt says nothing that the journal's step does not say, so it
//! is made again whenever it is asked for instead of being stored a second time.

use std::sync::Arc;

use arc_swap::ArcSwap;
use comity_certs::{CertError, Document, Signer, Verifier};
use comity_federation::{
    PlanDigest, Receipt, RecordDigest, RoundRecord, RoundReport, RunId, Signature, SignedReceipt,
    SignedRecord,
};

/// The coordinator's key for documents, and the root by which it checks those of others.
#[derive(Clone, Debug)]
pub(crate) struct Papers(Arc<ArcSwap<Keys>>);

#[derive(Debug)]
struct Keys {
    signer: Signer,
    verifier: Verifier,
    root_pem: String,
}

impl Papers {
    /// Signs with the key whose certificates are `chain_pem`, all PEM.
    ///
    /// # Errors
    /// If they do not belong together.
    pub(crate) fn new(chain_pem: &str, key_pem: &str, root_pem: &str) -> Result<Self, CertError> {
        Ok(Self(Arc::new(ArcSwap::from_pointee(Keys::new(chain_pem, key_pem, root_pem)?))))
    }

    /// Signs with these from now on.
    ///
    /// # Errors
    /// As [`new`](Self::new); those before are then used on.
    pub(crate) fn replace(
        &self,
        chain_pem: &str,
        key_pem: &str,
        root_pem: &str,
    ) -> Result<(), CertError> {
        self.0.store(Arc::new(Keys::new(chain_pem, key_pem, root_pem)?));
        Ok(())
    }

    /// Name of the federation, as the coordinator's certificate says it.
    pub(crate) fn federation(&self) -> String {
        self.0.load().verifier.federation().to_owned()
    }

    /// The root certificates, PEM.
    pub(crate) fn root_pem(&self) -> String {
        self.0.load().root_pem.clone()
    }

    /// Signs any document of the coordinator.
    pub(crate) fn sign(&self, kind: Document, document: &[u8]) -> Signature {
        self.0.load().signer.sign(kind, document)
    }

    /// Signs the record of a round that has its model; `None` if it has none yet.
    pub(crate) fn record(
        &self,
        run: &RunId,
        plan: PlanDigest,
        previous: Option<RecordDigest>,
        round: &RoundReport,
    ) -> Option<SignedRecord> {
        let record = RoundRecord::of(&self.federation(), run, plan, previous, round)?;
        let signature = self.sign(Document::Record, &record.to_json());
        Some(SignedRecord { record, signature, countersignatures: Vec::new() })
    }

    /// Signs a receipt.
    pub(crate) fn receipt(&self, receipt: Receipt) -> SignedReceipt {
        let signature = self.sign(Document::Receipt, &receipt.to_json());
        SignedReceipt { receipt, signature }
    }

    /// Whether `client` signed `record`.
    ///
    /// # Errors
    /// If it did not.
    pub(crate) fn check(
        &self,
        record: &RoundRecord,
        client: &comity_federation::ClientId,
        signature: &Signature,
    ) -> Result<(), CertError> {
        self.0.load().verifier.countersignature(record, client, signature)
    }
}

impl Keys {
    fn new(chain_pem: &str, key_pem: &str, root_pem: &str) -> Result<Self, CertError> {
        let signer = Signer::of_pem(chain_pem, key_pem)?;
        let verifier = Verifier::new(&signer.identity().federation, root_pem)?;
        Ok(Self { signer, verifier, root_pem: root_pem.to_owned() })
    }
}
