//! Whose signature is under an order or a consent: the same question at the coordinator and at each client.

use comity_federation::{OrderRefusal, SignedConsent, SignedOrder};

use crate::{Document, Identity, Role, SignedBy, calendar, verify};

/// Whose signature is under `signed`: its operator's of `federation`, by certificates that led to `root_pem` when
/// it was given.
///
/// # Errors
/// [`OrderRefusal::Signature`] if it does not hold, [`OrderRefusal::OtherSigner`] if it is of anybody else.
pub fn verify_order(
    signed: &SignedOrder,
    federation: &str,
    root_pem: &str,
) -> Result<SignedBy, OrderRefusal> {
    let SignedOrder { order, signature } = signed;
    let refuse = |reason: String| OrderRefusal::Signature { what: "order", reason };
    let at = calendar(order.issued).ok_or_else(|| refuse("it has no date".to_owned()))?;
    let by = verify(signature, Document::Order, &order.to_json(), root_pem, at)
        .map_err(|error| refuse(error.to_string()))?;
    let expected = Role::Operator(order.by.clone());
    signed_by("order", by, &Identity { federation: federation.to_owned(), role: expected })
}

/// As [`verify_order`], of an institution's consent.
///
/// # Errors
/// As [`verify_order`].
pub fn verify_consent(
    signed: &SignedConsent,
    federation: &str,
    root_pem: &str,
) -> Result<SignedBy, OrderRefusal> {
    let SignedConsent { consent, signature } = signed;
    let refuse = |reason: String| OrderRefusal::Signature { what: "consent", reason };
    let at = calendar(consent.issued).ok_or_else(|| refuse("it has no date".to_owned()))?;
    let by = verify(signature, Document::Consent, &consent.to_json(), root_pem, at)
        .map_err(|error| refuse(error.to_string()))?;
    let expected = Role::Client(consent.by.clone());
    signed_by("consent", by, &Identity { federation: federation.to_owned(), role: expected })
}

fn signed_by(
    what: &'static str,
    by: SignedBy,
    expected: &Identity,
) -> Result<SignedBy, OrderRefusal> {
    if by.identity == *expected {
        return Ok(by);
    }
    let (signer, expected) = (by.identity.to_string(), expected.to_string());
    Err(OrderRefusal::OtherSigner { what, signer, expected })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Authority, Signer};
    use comity_federation::Time;
    use comity_federation::{Consent, Order, PlanDigest};
    use time::Duration;
    use time::OffsetDateTime;

    fn order(by: &str, issued: OffsetDateTime) -> Order {
        let issued = Time(issued.unix_timestamp() as u64 * 1000);
        Order {
            federation: "demo".into(),
            plan: PlanDigest([1; 32]),
            run: "sample-1".parse().unwrap(),
            issued,
            by: by.into(),
        }
    }

    #[test]
    fn an_order_is_its_operators_and_a_consent_its_institutions() {
        let dir = tempfile::tempdir().unwrap();
        let now = OffsetDateTime::now_utc();
        let names = ["localhost".to_owned()];
        let authority = Authority::init(dir.path().join("ca"), "demo", &names, now).unwrap();
        let root = authority.root_pem().to_owned();
        let file = |name: &str| dir.path().join("ca").join(name);
        let operator = Signer::read(&file("operator.pem"), &file("operator.key")).unwrap();
        let id: comity_federation::ClientId = "KR/a".parse().unwrap();
        let issued = authority.issue(&Role::Client(id.clone()), 1, now).unwrap();
        issued.write(dir.path().join("kr")).unwrap();
        let file = |name: &str| dir.path().join("kr").join(name);
        let client = Signer::read(&file("certificate.pem"), &file("key.pem")).unwrap();

        let sign = |signer: &Signer, order: Order| {
            let signature = signer.sign(Document::Order, &order.to_json());
            SignedOrder { order, signature }
        };
        let good = sign(&operator, order("operator", now));
        assert_eq!(verify_order(&good, "demo", &root).unwrap().key, operator.fingerprint());
        let mut altered = good.clone();
        altered.order.plan = PlanDigest([2; 32]);
        let said = verify_order(&altered, "demo", &root).unwrap_err();
        assert!(matches!(said, OrderRefusal::Signature { .. }), "{said}");
        for (signed, federation) in [
            (sign(&client, order("operator", now)), "demo"),
            (sign(&operator, order("alice", now)), "demo"),
            (good, "other"),
        ] {
            let said = verify_order(&signed, federation, &root).unwrap_err();
            assert!(matches!(said, OrderRefusal::OtherSigner { .. }), "{said}");
        }
        let late = sign(&operator, order("operator", now + Duration::days(4000)));
        let said = verify_order(&late, "demo", &root).unwrap_err().to_string();
        assert!(said.contains("expired"), "{said}");
        let never = sign(&operator, Order { issued: Time(u64::MAX), ..order("operator", now) });
        assert!(verify_order(&never, "demo", &root).is_err());

        let consent = Consent {
            federation: "demo".into(),
            plan: PlanDigest([1; 32]),
            by: id,
            issued: Time(now.unix_timestamp() as u64 * 1000),
        };
        let signature = client.sign(Document::Consent, &consent.to_json());
        let signed = SignedConsent { consent: consent.clone(), signature };
        assert_eq!(verify_consent(&signed, "demo", &root).unwrap().key, client.fingerprint());
        let signature = operator.sign(Document::Consent, &consent.to_json());
        let said = verify_consent(&SignedConsent { consent, signature }, "demo", &root);
        assert!(matches!(said, Err(OrderRefusal::OtherSigner { .. })), "{said:?}");
    }
}
