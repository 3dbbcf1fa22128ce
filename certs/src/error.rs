//! What can be wrong with certificates, keys and their files.

use std::io;
use std::path::PathBuf;

/// Why a certificate, a key or an authority cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// The operating system refused.
    #[error("cannot {action} {path}: {cause}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why it failed; part of the message, and so not its source.
        cause: io::Error,
    },
    /// A file that would be written is there already; nothing was changed.
    #[error(
        "{path} exists and is never overwritten, because a lost key cannot be made again; use another directory or move it away"
    )]
    AlreadyThere {
        /// The file.
        path: PathBuf,
    },
    /// The directory does not hold an authority.
    #[error("{dir} is not an authority made by `comity-coordinator init`: {reason}")]
    NotAnAuthority {
        /// The directory.
        dir: PathBuf,
        /// What is missing or wrong.
        reason: String,
    },
    /// A federation's, institution's or operator's name has other characters than allowed.
    #[error(
        "{what} {name:?} must be 1 to 63 of a-z, 0-9 and '-', neither starting nor ending with '-'"
    )]
    Name {
        /// Federation, institution or operator.
        what: &'static str,
        /// As given.
        name: String,
    },
    /// A server name is neither a DNS name nor an IP address.
    #[error(
        "server name {0:?} is neither a DNS name nor an IP address; give the name by which clients reach the coordinator"
    )]
    ServerName(String),
    /// The coordinator's certificate needs server names.
    #[error(
        "a coordinator's certificate is made with its server names; use `comity-coordinator init` or `Authority::issue_server`"
    )]
    NeedsServerNames,
    /// The period of validity is empty or outside of the authority's own.
    #[error("a certificate cannot be valid from {not_before} to {not_after}: {reason}")]
    Validity {
        /// Start, as a date.
        not_before: String,
        /// End, as a date.
        not_after: String,
        /// What is wrong.
        reason: String,
    },
    /// The text is not PEM of what it should be.
    #[error("{what} cannot be read: {reason}; check that the file is complete PEM text")]
    Pem {
        /// Certificate, key or root.
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The certificate does not say who it belongs to in the way Comity's do.
    #[error(
        "the certificate does not name a member of a federation: {reason}; use one issued by `comity-coordinator`"
    )]
    Identity {
        /// What is wrong.
        reason: String,
    },
    /// The private key belongs to another certificate.
    #[error(
        "the private key does not belong to the certificate; use the certificate.pem and key.pem that were issued together"
    )]
    KeyMismatch,
    /// Others than its owner can read a private key.
    #[error(
        "{path} can be read by others than its owner, and may be known to them; run `chmod 600 {path}`, or have it \
         revoked and join again"
    )]
    KeyReadable {
        /// The file.
        path: PathBuf,
    },
    /// A request for a certificate cannot be granted.
    #[error("this is no request for a certificate that can be granted: {reason}")]
    Request {
        /// What is wrong.
        reason: String,
    },
    /// A text is not an invitation's token.
    #[error(
        "this is not a whole token of an invitation: {reason}; copy the word that `comity-coordinator invite` \
         printed, beginning with comity1-"
    )]
    Token {
        /// What is wrong.
        reason: String,
    },
    /// A text is not a certificate's serial number.
    #[error("{0:?} is no serial number; it is written with 2 to 40 of 0-9 and a-f")]
    Serial(String),
    /// An authority's certificate or key cannot be used.
    #[error("{path} cannot be used: {reason}; put it back from a backup")]
    Ca {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The key of the root is needed and not there.
    #[error(
        "the root's key is not at {path}; bring it from where it is kept and name it with --root-key FILE"
    )]
    RootKey {
        /// Where `init` wrote it.
        path: PathBuf,
    },
    /// There is no issuing CA for the country yet, and none can be made.
    #[error(
        "{country} has no issuing CA yet, and the root's key, which signs one, is not at {root_key}; bring it and run \
         `comity-coordinator certs add-country {country} --root-key FILE`"
    )]
    NoCountry {
        /// The country.
        country: comity_federation::Country,
        /// Where `init` wrote the root's key.
        root_key: PathBuf,
    },
    /// A revocation list cannot be used.
    #[error("the revocation list {path} cannot be used: {reason}; {remedy}")]
    Crl {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A server is set up without the lists that say who was revoked.
    #[error("there is no revocation list, so nobody could be let in")]
    NoCrl,
    /// The authorities cannot go from one phase of the change to another.
    #[error("{0}")]
    Rotation(String),
    /// A certificate was signed by another authority than the one for its member.
    #[error(
        "the certificate of {identity} is not accepted: {reason}; join again, or ask the operator"
    )]
    Issuer {
        /// Whose certificate.
        identity: String,
        /// What is wrong.
        reason: String,
    },
    /// A signature is not under the document.
    #[error("the signature does not hold: {reason}")]
    Signature {
        /// What is wrong.
        reason: String,
    },
    /// The certificate does not lead to the root.
    #[error(
        "the certificate of {identity} does not lead to this root ({reason}); root.pem and certificate.pem must come from the same federation"
    )]
    Chain {
        /// Whose certificate.
        identity: String,
        /// What the verifier said.
        reason: String,
    },
    /// The certificate is no longer valid.
    #[error("the certificate of {identity} expired on {date}; ask the operator for a new one")]
    Expired {
        /// Whose certificate.
        identity: String,
        /// Last day.
        date: String,
    },
    /// The certificate is not valid yet.
    #[error("the certificate of {identity} is valid only from {date}; check this machine's clock")]
    NotYetValid {
        /// Whose certificate.
        identity: String,
        /// First instant.
        date: String,
    },
    /// The invitation's time is over.
    #[error(
        "the invitation of {identity} expired on {expired}, and this machine's clock shows {now}; if that is right, \
         ask the operator for another, otherwise set the clock and run the same command again"
    )]
    Invitation {
        /// Who was invited.
        identity: String,
        /// When it expired.
        expired: String,
        /// What the clock shows.
        now: String,
    },
    /// A new certificate is not valid by this machine's clock.
    #[error(
        "the new certificate is valid from {from} to {until}, and this machine's clock shows {now}; set the clock, by \
         NTP best, and run the same command again"
    )]
    Clock {
        /// First instant.
        from: String,
        /// Last instant.
        until: String,
        /// What the clock shows.
        now: String,
    },
    /// The operating system gives no random bytes.
    #[error("the operating system gives no random bytes, without which no secret can be made")]
    Randomness,
    /// Making a certificate failed.
    #[error("a certificate cannot be made: {0}")]
    Make(#[from] rcgen::Error),
    /// The TLS library refuses the certificates or the key.
    #[error("TLS cannot be set up with these certificates: {0}")]
    Tls(#[from] rustls::Error),
}

impl CertError {
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |cause| Self::Io { action, path, cause }
    }

    pub(crate) fn pem(what: &'static str) -> impl FnOnce(rustls::pki_types::pem::Error) -> Self {
        move |error| Self::Pem { what, reason: error.to_string() }
    }
}
