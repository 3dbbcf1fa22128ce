//! Who a certificate belongs to: its one URI name, strictly read.

use std::fmt;
use std::str::FromStr;

use comity_federation::ClientId;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::ca::{country_domain, has_signed, issuing_ca};
use crate::{CertError, IssuingCa};

const NAME_BYTES_MAX: usize = 64;
const SCHEME: &str = "comity://";

/// A member of a federation, as its certificate names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// Short name of the federation.
    pub federation: String,
    /// What it is there.
    pub role: Role,
}

/// What a member of a federation is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// The node of an institution: `comity://FEDERATION/client/KR/seoul-lab`.
    Client(ClientId),
    /// A person who launches runs: `comity://FEDERATION/operator/NAME`.
    Operator(String),
    /// The coordinator itself: `comity://FEDERATION/coordinator`.
    Coordinator,
}

impl Identity {
    /// The identity in an X.509 certificate; the certificate itself is not verified here.
    ///
    /// # Errors
    /// [`CertError::Identity`] unless there is exactly one URI name and it is one of ours.
    pub fn of_certificate(der: &[u8]) -> Result<Self, CertError> {
        let refuse = |reason: String| CertError::Identity { reason };
        let (rest, certificate) = X509Certificate::from_der(der)
            .map_err(|error| refuse(format!("not an X.509 certificate ({error})")))?;
        if !rest.is_empty() {
            return Err(refuse("bytes follow the certificate".to_owned()));
        }
        let names = certificate
            .subject_alternative_name()
            .map_err(|error| refuse(format!("its alternative names are malformed ({error})")))?;
        let names = names.map_or(&[][..], |extension| &extension.value.general_names);
        let uris: Vec<_> = names
            .iter()
            .filter_map(|name| match name {
                GeneralName::URI(uri) => Some(*uri),
                _ => None,
            })
            .collect();
        match uris[..] {
            [uri] => uri.parse(),
            _ => Err(refuse(format!("it has {} URI names, one is needed", uris.len()))),
        }
    }

    /// The identity in a verified chain, DER: the certificate, then the issuing CA that signed it. This is the
    /// one way in which a peer or the signer of a document gets its name.
    ///
    /// X.509 constrains only the DNS name of a client, and TLS looks no further: that the URI agrees with it,
    /// and both with the issuing CA, is seen here. A country's CA can sign clients of that country, the
    /// federation's can sign operators and the coordinator, and nothing else is taken.
    ///
    /// # Errors
    /// [`CertError::Identity`] as [`of_certificate`](Self::of_certificate), and [`CertError::Issuer`]
    /// unless the issuing CA may sign it.
    pub fn of_chain(chain: &[impl AsRef<[u8]>]) -> Result<Self, CertError> {
        let none = || CertError::Identity { reason: "there is no certificate".to_owned() };
        let leaf = chain.first().ok_or_else(none)?.as_ref();
        let identity = Self::of_certificate(leaf)?;
        let refuse =
            |reason: String| CertError::Issuer { identity: identity.role.to_string(), reason };
        let [_, ca] = chain else {
            return Err(refuse(format!(
                "{} certificates came with it, and one issuing CA's is needed",
                chain.len() - 1
            )));
        };
        let (_, leaf) = X509Certificate::from_der(leaf).map_err(|e| refuse(e.to_string()))?;
        let (rest, ca) = X509Certificate::from_der(ca.as_ref())
            .map_err(|error| refuse(format!("the certificate after it is none ({error})")))?;
        if !rest.is_empty() {
            return Err(refuse("bytes follow the issuing CA's certificate".to_owned()));
        }
        let (federation, signer) = issuing_ca(&ca)
            .map_err(|what| refuse(format!("the certificate after it is not usable: {what}")))?;
        let signed = leaf.issuer().as_raw() == ca.subject().as_raw()
            && has_signed(
                &ca,
                &leaf.signature_algorithm,
                leaf.tbs_certificate.as_ref(),
                &leaf.signature_value,
            );
        if !signed {
            return Err(refuse("the issuing CA that came with it did not sign it".to_owned()));
        }
        let needed = IssuingCa::of(&identity.role);
        if federation != identity.federation || signer != needed {
            let whose = |what| match what {
                IssuingCa::Federation => "of operators and the coordinator".to_owned(),
                IssuingCa::Country(country) => format!("of {country}"),
            };
            return Err(refuse(format!(
                "it was signed by the issuing CA {} in federation {federation}, and only the one {} in \
                 federation {} may sign it",
                whose(signer),
                whose(needed),
                identity.federation
            )));
        }
        let names = leaf.subject_alternative_name().ok().flatten();
        let names = names.map_or(&[][..], |extension| &extension.value.general_names);
        let others: Vec<_> =
            names.iter().filter(|name| !matches!(name, GeneralName::URI(_))).collect();
        let fits = match &identity.role {
            Role::Client(client) => {
                matches!(others[..], [GeneralName::DNSName(name)]
                    if *name == client_host(&identity.federation, client))
            }
            Role::Operator(_) => others.is_empty(),
            Role::Coordinator => others
                .iter()
                .all(|name| matches!(name, GeneralName::DNSName(_) | GeneralName::IPAddress(_))),
        };
        if !fits {
            return Err(refuse("its other names do not agree with the first".to_owned()));
        }
        Ok(identity)
    }

    /// The client, if it is one.
    #[must_use]
    pub fn client(&self) -> Option<&ClientId> {
        match &self.role {
            Role::Client(client) => Some(client),
            _ => None,
        }
    }
}

impl FromStr for Identity {
    type Err = CertError;

    fn from_str(uri: &str) -> Result<Self, CertError> {
        let refuse = |reason: &str| CertError::Identity { reason: format!("{uri:?} {reason}") };
        let rest =
            uri.strip_prefix(SCHEME).ok_or_else(|| refuse("does not start with comity://"))?;
        let (federation, path) = rest.split_once('/').ok_or_else(|| refuse("has no role"))?;
        if !is_name(federation) {
            return Err(refuse("has no proper federation name"));
        }
        let role = match path.split_once('/') {
            None if path == "coordinator" => Role::Coordinator,
            Some(("client", client)) => Role::Client(
                client
                    .parse()
                    .map_err(|_| refuse("has no client of the form COUNTRY/institution"))?,
            ),
            Some(("operator", name)) if is_name(name) => Role::Operator(name.to_owned()),
            _ => return Err(refuse("has no role that is known here")),
        };
        Ok(Self { federation: federation.to_owned(), role })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/", self.federation)?;
        match &self.role {
            Role::Client(client) => write!(f, "client/{client}"),
            Role::Operator(name) => write!(f, "operator/{name}"),
            Role::Coordinator => f.write_str("coordinator"),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(client) => client.fmt(f),
            Self::Operator(name) => f.pad(&format!("operator {name}")),
            Self::Coordinator => f.pad("coordinator"),
        }
    }
}

/// The DNS name of a client, which the constraints of its country's issuing CA bind; no host has it.
pub(crate) fn client_host(federation: &str, client: &ClientId) -> String {
    format!("{}.{}", client.institution(), country_domain(federation, client.country()))
}

/// Whether `text` may name a federation or an operator: the same rule as for institutions.
pub(crate) fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= NAME_BYTES_MAX
        && !text.starts_with('-')
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, SanType};

    #[test]
    fn identities_round_trip_through_their_uri() {
        for uri in [
            "comity://demo/client/KR/seoul-lab",
            "comity://demo-2/operator/alice",
            "comity://demo/coordinator",
        ] {
            assert_eq!(uri.parse::<Identity>().unwrap().to_string(), uri);
        }
    }

    #[test]
    fn anything_but_the_exact_form_is_refused() {
        for uri in [
            "",
            "comity://",
            "comity://demo",
            "comity://demo/",
            "comity:///coordinator",
            "http://demo/coordinator",
            "COMITY://demo/coordinator",
            "comity://Demo/coordinator",
            "comity://demo/coordinator/",
            "comity://demo/coordinator/x",
            "comity://demo//coordinator",
            "comity://demo/client",
            "comity://demo/client/",
            "comity://demo/client/KR",
            "comity://demo/client/KR/",
            "comity://demo/client/KR/..",
            "comity://demo/client/../JP/x",
            "comity://demo/client/KR/a/b",
            "comity://demo/client/kr/a",
            "comity://demo/client/KR/seoul-lab\0",
            "comity://demo/client/KR/seoul\0-lab",
            "comity://demo/client/KR/seoul-lab ",
            "comity://demo/client/KR/seoul-l\u{430}b",
            "comity://demo/client/KR/%73eoul",
            "comity://demo/client/KR/seoul?x=1",
            "comity://demo/client/KR/seoul#x",
            "comity://user@demo/client/KR/seoul",
            "comity://demo:1/client/KR/seoul",
            "comity://demo/operator/",
            "comity://demo/operator/a/b",
            "comity://demo/operator/Alice",
            "comity://demo/root",
            &format!("comity://{}/coordinator", "a".repeat(65)),
            &format!("comity://demo/client/KR/{}", "a".repeat(65)),
        ] {
            assert!(uri.parse::<Identity>().is_err(), "{uri:?} was accepted");
        }
    }

    fn with_names(names: &[&str]) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["coordinator.example".to_owned()]).unwrap();
        params
            .subject_alt_names
            .extend(names.iter().map(|name| SanType::URI((*name).try_into().unwrap())));
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn certificate_must_have_exactly_one_uri() {
        let one = with_names(&["comity://demo/client/KR/seoul-lab"]);
        assert_eq!(
            Identity::of_certificate(&one).unwrap().client().unwrap().to_string(),
            "KR/seoul-lab"
        );
        for names in [&[][..], &["comity://demo/coordinator", "comity://demo/client/KR/x"]] {
            assert!(Identity::of_certificate(&with_names(names)).is_err());
        }
        for der in
            [&b""[..], b"not a certificate", &one[..one.len() - 1], &[&one[..], b"x"].concat()]
        {
            assert!(Identity::of_certificate(der).is_err());
        }
    }
}
