//! Who is who: certificates, what they say, and what to do when one is refused.
//!
//! A federation has one offline root, one issuing CA for operators and the coordinator, and one for the
//! clients of each country.  The identity of a client, an operator or the coordinator is the one URI name in
//! its certificate, as far as the CA that signed it may give that name, and never something in a message.
//! TLS is 1.3 only, with a certificate on both sides.
//!
//! Deliberately not here: sockets (`proto`), and who is admitted (`coordinator`).

mod authority;
mod ca;
mod clock;
mod crl;
mod enrolment;
mod error;
mod explain;
mod files;
mod generation;
mod identity;
mod invitation;
mod key;
mod order;
mod papers;
mod revocation;
mod rotation;
mod serial;
mod signature;
mod tls;

pub use authority::{Authority, CLIENT_VALIDITY, COORDINATOR_VALIDITY, Certified, Issued};
pub use ca::IssuingCa;
pub use clock::{Clock, calendar, date_of, time_of, timestamp_of};
pub use crl::{CrlHealth, Reason, RevokedCertificate};
pub use enrolment::{
    CertificateFacts, enrolment_config, explain_joining, joining_config, new_secret,
    renewing_config, root_fingerprint, same_secret, token_given,
};
pub use error::CertError;
pub use explain::{CertificateSummary, Seen, check_own, explain, instant};
pub use files::{read_key_pem, replace};
pub use identity::{Identity, Role};
pub use invitation::Invitation;
pub use key::{MemberKey, SigningRequest, fingerprint_of_certificate};
pub use order::{verify_consent, verify_order};
pub use papers::{Checked, Verifier, certificates_of_pem, fingerprint};
pub use rotation::{Phase, ROTATION_WAIT, RotationStatus, TrustedRoot};
pub use serial::Serial;
pub use signature::{Document, SignedBy, Signer, verify};
pub use tls::{
    client_config, client_config_at, fixed_time, server_config, server_config_at,
    server_config_with_crls,
};
