use super::*;

const NEEDED: u32 = 1;

fn key(n: u8) -> KeyFingerprint {
    KeyFingerprint([n; 32])
}

fn who(name: &str) -> MemberName {
    name.parse().unwrap()
}

struct Book {
    registry: Registry,
    now: Time,
}

impl Book {
    /// A federation whose first operator has key 1.
    fn founded() -> Self {
        let mut book = Self { registry: Registry::default(), now: Time(1000) };
        let (operator, coordinator) = (key(1), key(2));
        let federation = "demo".to_owned();
        book.take(Change::Founded { federation, operator, coordinator }, "operator");
        book.enrolled("operator", 1);
        book
    }

    fn take(&mut self, change: Change, by: &str) {
        // As the journal would give it back.
        let text = serde_json::to_string(&change).unwrap();
        let change: Change = serde_json::from_str(&text).unwrap();
        self.registry.apply(&change, self.now, by, "a reason").unwrap();
    }

    fn enrolled(&mut self, name: &str, n: u8) {
        let not_after = self.now.after(std::time::Duration::from_secs(100));
        let (who, key, serial) = (who(name), key(n), format!("{n:02x}"));
        self.take(Change::Enrolled { who, key, serial, not_after }, "operator");
    }

    fn invited(&mut self, name: &str, secret: &str, role: Option<OperatorRole>) {
        let (who, title, expires) = (who(name), name.to_owned(), Time(self.now.0 + 500));
        let secret_sha256 = secret.to_owned();
        self.registry.invite().unwrap();
        self.take(Change::Invited { who, title, role, secret_sha256, expires }, "operator");
    }

    fn join(&self, secret: &str, n: u8) -> Result<Joining, Refusal> {
        self.registry.join(secret, &key(n), self.now, NEEDED)
    }

    fn admit(&self, name: &str, n: u8) -> Result<Option<OperatorRole>, Refusal> {
        self.registry.admit(&who(name), &key(n), self.now)
    }
}

#[test]
fn a_token_is_used_once_and_asking_again_with_the_same_key_repeats_the_answer() {
    let mut book = Book::founded();
    book.invited("VN/c", "aa", None);
    assert_eq!(book.join("bb", 5), Err(Refusal::UnknownInvitation));
    assert_eq!(book.join("aa", 5), Ok(Joining::Enrol(who("VN/c"))));
    assert!(book.admit("VN/c", 5).is_err(), "invited is not enrolled");
    book.enrolled("VN/c", 5);
    assert_eq!(book.admit("VN/c", 5), Ok(None));
    assert_eq!(book.join("aa", 5), Ok(Joining::Again(who("VN/c"))));
    let used = book.join("aa", 6).unwrap_err();
    assert!(used.to_string().contains("if not by you, tell the operator"), "{used}");
    assert_eq!(book.admit("VN/c", 6), Err(Refusal::OtherKey(who("VN/c"))));
    assert_eq!(book.admit("JP/b", 5), Err(Refusal::NotAMember(who("JP/b"))));
}

#[test]
fn expired_replaced_and_withdrawn_invitations_have_sentences_of_their_own() {
    let mut book = Book::founded();
    book.invited("VN/c", "aa", None);
    book.invited("VN/c", "bb", None);
    assert_eq!(book.join("aa", 5), Err(Refusal::Replaced(who("VN/c"))));
    book.now = Time(book.now.0 + 501);
    assert!(matches!(book.join("bb", 5), Err(Refusal::Expired(..))));
    book.invited("VN/c", "cc", None);
    assert!(book.registry.revoke(&who("VN/c")).is_ok(), "an invitation is revoked too");
    book.take(Change::Revoked { who: who("VN/c") }, "operator");
    assert_eq!(book.join("cc", 5), Err(Refusal::Withdrawn(who("VN/c"))));
}

#[test]
fn whoever_is_revoked_calls_nothing_renews_nothing_and_comes_back_with_another_key_only() {
    let mut book = Book::founded();
    book.invited("VN/c", "aa", None);
    book.enrolled("VN/c", 5);
    book.take(Change::Revoked { who: who("VN/c") }, "operator");
    let said = book.admit("VN/c", 5).unwrap_err().to_string();
    assert!(said.contains("by operator operator: a reason"), "{said}");
    assert!(matches!(book.registry.renew(&key(5), book.now, 0), Err(Refusal::Revoked(..))));
    let serials = |book: &Book, at: Time| -> Vec<String> {
        book.registry.revoked_serials(at).map(|revoked| revoked.serial.clone()).collect()
    };
    assert_eq!(serials(&book, book.now), ["05"]);
    assert!(serials(&book, Time(book.now.0 + 100_000)).is_empty(), "it has expired anyway");
    assert!(matches!(book.join("aa", 5), Err(Refusal::Revoked(..))));
    assert!(book.registry.still_here(&who("VN/c")).is_err());
    book.invited("VN/c", "bb", None);
    assert!(book.admit("VN/c", 5).is_err() && book.registry.still_here(&who("VN/c")).is_err());
    assert_eq!(book.join("bb", 5), Err(Refusal::KeyTaken));
    assert_eq!(book.join("bb", 6), Ok(Joining::Enrol(who("VN/c"))));
    book.enrolled("VN/c", 6);
    assert_eq!(book.admit("VN/c", 6), Ok(None));
    assert!(book.registry.still_here(&who("VN/c")).is_ok());
}

#[test]
fn a_key_is_of_one_member_only() {
    let mut book = Book::founded();
    book.invited("VN/c", "aa", None);
    book.enrolled("VN/c", 5);
    book.invited("VN/d", "bb", None);
    assert_eq!(book.join("bb", 5), Err(Refusal::KeyTaken));
    // A new invitation of the same member may bring a new key; the old one ends with it.
    book.invited("VN/c", "cc", None);
    assert_eq!(book.admit("VN/c", 5), Ok(None), "until it is used, nothing changes");
    book.enrolled("VN/c", 6);
    assert_eq!(book.admit("VN/c", 5), Err(Refusal::OtherKey(who("VN/c"))));
    assert_eq!(book.registry.renew(&key(5), book.now, 0), Err(Refusal::KeyEnded));
}

#[test]
fn a_certificate_is_renewed_while_it_is_valid_and_for_the_grace_after_the_last_renewal() {
    let mut book = Book::founded();
    book.invited("VN/c", "aa", None);
    book.enrolled("VN/c", 5);
    let renew = |book: &Book, grace_ms| book.registry.renew(&key(5), book.now, grace_ms);
    book.now = Time(book.now.0 + 100_001);
    assert!(matches!(book.admit("VN/c", 5), Err(Refusal::CertificateExpired(..))));
    assert_eq!(renew(&book, 200_000), Ok(who("VN/c")));
    assert!(matches!(renew(&book, 50_000), Err(Refusal::GoneTooLong(..))));
    let not_after = Time(book.now.0 + 100_000);
    let serial = "99".to_owned();
    book.take(Change::Renewed { who: who("VN/c"), serial, not_after }, "VN/c");
    assert_eq!(book.admit("VN/c", 5), Ok(None));
}

#[test]
fn two_operators_approve_the_key_that_asks_and_one_cannot_twice() {
    let mut book = Book::founded();
    book.invited("alice", "aa", Some(OperatorRole::Admin));
    book.enrolled("alice", 3);
    book.invited("VN/c", "bb", None);
    let join = |book: &Book, n| book.registry.join("bb", &key(n), book.now, 2);
    assert_eq!(join(&book, 5), Ok(Joining::Ask(who("VN/c"))));
    let c = who("VN/c");
    assert!(matches!(
        book.registry.decide(&c, &key(5), true, "alice"),
        Err(Refusal::NobodyAsks(_))
    ));
    book.take(Change::Asked { who: c.clone(), key: key(5) }, "VN/c");
    assert_eq!(join(&book, 5), Ok(Joining::Await { approvals: 1, needed: 2 }));
    assert_eq!(join(&book, 6), Err(Refusal::UsedAlready(c.clone())));
    let wrong = book.registry.decide(&c, &key(6), true, "alice").unwrap_err();
    assert!(wrong.to_string().contains(&key(5).to_string()), "{wrong}");
    let twice = book.registry.decide(&c, &key(5), true, "operator");
    assert!(matches!(twice, Err(Refusal::ApprovedAlready { .. })));
    book.registry.decide(&c, &key(5), true, "alice").unwrap();
    book.take(Change::Approved { who: c.clone(), key: key(5) }, "alice");
    assert_eq!(join(&book, 5), Ok(Joining::Enrol(c.clone())));
    // Whoever approved and is an admin no more does not count.
    book.take(Change::RoleSet { who: who("alice"), role: OperatorRole::Viewer }, "operator");
    assert_eq!(join(&book, 5), Ok(Joining::Await { approvals: 1, needed: 2 }));
    book.take(Change::RefusedJoin { who: c, key: key(5) }, "operator");
    assert!(matches!(join(&book, 5), Err(Refusal::Refused(..))));
}

#[test]
fn there_is_always_an_admin() {
    let mut book = Book::founded();
    let operator = who("operator");
    assert_eq!(book.admit("operator", 1), Ok(Some(OperatorRole::Admin)));
    assert!(matches!(book.registry.revoke(&operator), Err(Refusal::LastAdmin(_))));
    let viewer = book.registry.set_role(&operator, OperatorRole::Viewer);
    assert!(matches!(viewer, Err(Refusal::LastAdmin(_))));
    book.invited("alice", "aa", Some(OperatorRole::Admin));
    assert!(book.registry.revoke(&operator).is_err(), "invited is not there yet");
    book.enrolled("alice", 3);
    assert!(book.registry.revoke(&operator).is_ok());
    assert_eq!(book.registry.admins(), ["alice", "operator"]);
}
