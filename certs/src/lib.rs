//! Who is who: certificates, what they say, and what to do when one is refused.
//!
//! A federation has one offline root and one issuing CA.  The identity of a client, an operator
//! or the coordinator is the one URI name in its certificate, never something in a message.
//! TLS is 1.3 only, with a certificate on both sides.
//!
//! Deliberately not here: sockets (`proto`), and who is admitted (`coordinator`).

mod authority;
mod clock;
mod error;
mod explain;
mod files;
mod identity;
mod invitation;
mod key;
mod order;
mod signature;
mod tls;

pub use authority::{Authority, Issued};
pub use clock::Clock;
pub use error::CertError;
pub use explain::{CertificateSummary, Seen, check_own, explain};
pub use files::replace;
pub use identity::{Identity, Role};
pub use invitation::Invitation;
pub use key::{MemberKey, SigningRequest, fingerprint_of_certificate, read_key_pem};
pub use order::{verify_consent, verify_order};
pub use signature::{Document, SignedBy, Signer, verify};
pub use tls::{client_config, client_config_at, fixed_time, server_config, server_config_at};
