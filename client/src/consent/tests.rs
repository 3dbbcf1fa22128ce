use comity_certs::{Authority, Document, Role, Signer};
use comity_federation::{Approval, CLOCK_SKEW_MAX, Consent, PinnedOperator};
use tempfile::TempDir;
use time::OffsetDateTime;

use super::*;
use OrderRefusal as No;

/// A federation with one operator, members, a plan, and a client's policy that pins the operator.
struct World {
    dir: TempDir,
    authority: Authority,
    operator: Signer,
    plan: Plan,
    policy: Policy,
    now: Time,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let date = OffsetDateTime::now_utc();
        let names = ["localhost".to_owned()];
        let authority = Authority::init(dir.path().join("ca"), "demo", &names, date).unwrap();
        let file = |name: &str| dir.path().join("ca").join(name);
        let operator = Signer::read(&file("operator.pem"), &file("operator.key")).unwrap();
        let plan = Plan::from_toml(include_str!("../../../examples/fashion/plan.toml")).unwrap();
        let pinned = PinnedOperator { name: "operator".into(), key: operator.fingerprint() };
        let policy = Policy {
            operators: vec![pinned],
            order_age_max: std::time::Duration::from_secs(30 * 86_400),
            approval: Approval::Ask,
            ..Policy::of_plan(&plan, &plan.cohort.clients[0], None)
        };
        let now = Time(date.unix_timestamp() as u64 * 1000);
        Self { dir, authority, operator, plan, policy, now }
    }

    fn member(&self, index: usize) -> (ClientId, Signer) {
        let id = self.plan.cohort.clients[index].id.clone();
        let role = Role::Client(id.clone());
        let folder = self.dir.path().join(format!("member-{index}"));
        if !folder.exists() {
            let issued = self.authority.issue(&role, 1, OffsetDateTime::now_utc()).unwrap();
            issued.write(&folder).unwrap();
        }
        let signer =
            Signer::read(&folder.join("certificate.pem"), &folder.join("key.pem")).unwrap();
        (id, signer)
    }

    fn offer(&self, signer: &Signer, order: &Order) -> v1::Offer {
        v1::Offer {
            order_json: order.to_json().into(),
            order_signature: Some((&signer.sign(Document::Order, &order.to_json())).into()),
            ..Default::default()
        }
    }

    fn consent(&self, index: usize) -> SignedConsent {
        let (by, signer) = self.member(index);
        let consent =
            Consent { federation: "demo".into(), plan: self.plan.digest(), by, issued: self.now };
        let signature = signer.sign(Document::Consent, &consent.to_json());
        SignedConsent { consent, signature }
    }

    fn order(&self, issued: Time) -> Order {
        Order::new(&self.plan, "demo", issued, "operator")
    }

    fn check(&self, run: &RunId, plan: &Plan, offer: &v1::Offer) -> Result<Ordered, No> {
        let root_pem = self.authority.root_pem();
        let (policy, federation) = (&self.policy, "demo");
        Scales { policy, federation, root_pem, now: self.now }.check(run, plan, offer)
    }
}

#[test]
fn an_order_of_a_pinned_operator_is_taken_and_nobody_elses() {
    let mut world = World::new();
    let order = world.order(world.now);
    let offer = world.offer(&world.operator, &order);
    assert_eq!(world.check(&order.run, &world.plan, &offer).unwrap().order.order, order);

    let refused =
        |world: &World, offer: &v1::Offer| world.check(&order.run, &world.plan, offer).unwrap_err();
    assert_eq!(refused(&world, &v1::Offer::default()), No::Unsigned);
    let mut unsigned = offer.clone();
    unsigned.order_signature = None;
    assert_eq!(refused(&world, &unsigned), No::Unsigned);
    let mut altered = offer.clone();
    altered.order_json = [&offer.order_json[..], b" "].concat().into();
    assert!(matches!(refused(&world, &altered), No::Unreadable { .. }));
    // By a client, which the authority knows as well as it does the operator.
    let (_, client) = world.member(0);
    let said = refused(&world, &world.offer(&client, &order));
    assert!(matches!(said, No::OtherSigner { .. }), "{said}");
    // By an operator whose key is not pinned.
    world.policy.operators[0].key.0[0] ^= 1;
    let said = refused(&world, &offer);
    assert!(matches!(said, No::NotPinned { .. }), "{said}");
    world.policy.operators[0].key.0[0] ^= 1;
    // Another plan, another run.
    let mut other = world.plan.clone();
    other.rounds += 1;
    let said = world.check(&order.run, &other, &offer).unwrap_err();
    assert!(matches!(said, No::OtherPlan { .. }), "{said}");
    let said = world.check(&"sample-2".parse().unwrap(), &world.plan, &offer).unwrap_err();
    assert!(matches!(said, No::OtherRun { .. }), "{said}");
}

#[test]
fn an_order_of_another_day_is_refused_with_a_word_about_clocks() {
    let world = World::new();
    let day = 86_400_000;
    let skew = CLOCK_SKEW_MAX.as_millis() as u64;
    let at = |issued: u64| {
        let order = world.order(Time(issued));
        world.check(&order.run, &world.plan, &world.offer(&world.operator, &order))
    };
    assert!(at(world.now.0 + skew).is_ok());
    let said = at(world.now.0 + day).unwrap_err();
    assert!(matches!(said, No::FromTheFuture { .. }) && said.to_string().contains("clock"));
    let said = at(world.now.0 - 31 * day).unwrap_err();
    assert!(matches!(said, No::TooOld { .. }) && said.to_string().contains("clock"));
}

#[test]
fn consents_count_by_country_and_only_if_they_hold() {
    let mut world = World::new();
    world.policy.consents_countries_min = 2;
    let order = world.order(world.now);
    let with = |world: &World, consents: &[SignedConsent]| {
        let mut offer = world.offer(&world.operator, &order);
        offer.consents = consents.iter().map(Into::into).collect();
        world.check(&order.run, &world.plan, &offer)
    };
    let (first, second) = (world.consent(0), world.consent(1));
    assert!(with(&world, &[first.clone(), second.clone()]).is_ok());
    let twice = with(&world, &[first.clone(), first.clone()]).unwrap_err();
    assert!(matches!(twice, No::TooFewConsents { have: 1, wanted: 2, .. }), "{twice}");
    // One that another institution signed, and one to another plan.
    let mut forged = second.clone();
    forged.signature = first.signature.clone();
    let mut other = second;
    other.consent.plan = PlanDigest([9; 32]);
    for bad in [forged, other] {
        let said = with(&world, &[first.clone(), bad]).unwrap_err();
        assert!(matches!(said, No::TooFewConsents { have: 1, .. }), "{said}");
        assert!(said.to_string().contains("do not count"), "{said}");
    }
    world.policy.consents_countries_min = 0;
    assert!(with(&world, &[]).is_ok());
}

#[test]
fn a_run_is_had_once_and_an_older_order_does_not_come_back() {
    let world = World::new();
    let mut seen = SeenOrders::default();
    let (first, second) = (world.order(Time(1000)), world.order(Time(2000)));
    let name = &world.plan.name;
    assert_eq!(seen.check(&first, name, false), Ok(()));
    seen.note(&second.run, &world.plan, Some(&second));
    // Known, and the very same; until it has ended.
    assert_eq!(seen.check(&second, name, false), Ok(()));
    assert!(matches!(seen.check(&second, name, true), Err(No::Ended { .. })));
    let mut other = second.clone();
    other.plan = PlanDigest([3; 32]);
    for ended in [false, true] {
        let said = seen.check(&other, name, ended).unwrap_err();
        assert!(matches!(said, No::Replayed { what: "plan", .. }), "{said}");
    }
    assert!(seen.knows_another(&other.run, other.plan));
    let mut later = second.clone();
    later.issued = Time(3000);
    let said = seen.check(&later, name, false).unwrap_err();
    assert!(matches!(said, No::Replayed { what: "order", .. }), "{said}");
    // Older, by the same operator, for a plan of the same name.
    let said = seen.check(&first, name, false).unwrap_err();
    assert!(matches!(said, No::Superseded { .. }), "{said}");
    assert_eq!(seen.check(&first, "another", false), Ok(()));
    let mut of_bob = first.clone();
    of_bob.by = "bob".to_owned();
    assert_eq!(seen.check(&of_bob, name, false), Ok(()));
    // Noted in whatever order, the mark stays high.
    seen.note(&first.run, &world.plan, Some(&first));
    let between = world.order(Time(1500));
    assert!(matches!(seen.check(&between, name, false), Err(No::Superseded { .. })));
}
