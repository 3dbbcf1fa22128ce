use super::*;
use crate::plan::tests::sample;
use crate::{Contribution, Plan, RunId, Task, UpdateEncoding};

const FEDERATION: &str = "test";

fn id(name: &str) -> ClientId {
    name.parse().unwrap()
}

fn run() -> RunId {
    "sample-1".parse().unwrap()
}

fn start() -> ModelDigest {
    first_model(&sample(), 1_000).unwrap()
}

fn update(name: &str, round: u32) -> UpdateDigest {
    UpdateDigest(*blake3::hash(format!("{name} {round}").as_bytes()).as_bytes())
}

fn contribution(name: &str, round: u32) -> Contribution {
    Contribution {
        round,
        plan: sample().digest(),
        base: start(),
        update: update(name, round),
        n_parameters: 15,
        encoding: UpdateEncoding::Int32,
        n_correct: None,
        loss_sum: None,
    }
}

fn terms<'a>(plan: &'a Plan, run: &'a RunId, me: &'a ClientId) -> Terms<'a> {
    Terms { federation: FEDERATION, run, plan, plan_digest: plan.digest(), me: Some(me) }
}

/// The record of `round` as an honest coordinator writes it.
fn record(round: u32) -> RoundRecord {
    let counted = |name: &str, weight| Counted {
        client: id(name),
        update: update(name, round),
        weight,
        staleness: 0,
    };
    let before = round.checked_sub(1).filter(|before| *before > 0);
    RoundRecord {
        federation: FEDERATION.to_owned(),
        run: run(),
        plan: sample().digest(),
        round,
        previous: before.map(|before| record(before).digest()),
        opened: Time(u64::from(round) * 10),
        closed: Time(u64::from(round) * 10 + 5),
        base: if round == 1 { start() } else { ModelDigest([round as u8 - 1; 32]) },
        model: ModelDigest([round as u8; 32]),
        cohort: ["JP/b", "KR/a", "VN/c"].map(id).into(),
        contributions: vec![counted("JP/b", 500), counted("KR/a", 1000)],
        missing: vec![(id("VN/c"), "late: nothing arrived by the deadline".to_owned())],
    }
}

fn receipt(name: &str, round: u32, weight: u64) -> Receipt {
    Receipt {
        federation: FEDERATION.to_owned(),
        run: run(),
        round,
        plan: sample().digest(),
        client: id(name),
        update: update(name, round),
        weight,
        accepted: Time(3),
    }
}

/// The book of `name`, which released updates of rounds 1 and 2, after the first `n` records.
fn book(name: &str, n: u32) -> RecordBook {
    let mut book = RecordBook::default();
    book.start_with(start());
    (1..=2).for_each(|round| book.released(&contribution(name, round)));
    let (plan, run, me) = (sample(), run(), id(name));
    let terms = terms(&plan, &run, &me);
    for round in 1..=n {
        assert_eq!(book.check(&terms, &record(round)), Ok(Standing::Next));
        book.take(&terms, &record(round));
    }
    book
}

/// What the book of `name` after `n` records says of `record`.
fn check(name: &str, n: u32, record: &RoundRecord) -> Result<Standing, Breach> {
    let (plan, run, me) = (sample(), run(), id(name));
    book(name, n).check(&terms(&plan, &run, &me), record)
}

#[test]
fn honest_records_follow_one_another_and_may_come_twice() {
    for name in ["KR/a", "JP/b", "VN/c"] {
        let book = book(name, 2);
        assert_eq!(book.latest(), Some((2, record(2).digest())));
        assert_eq!(check(name, 2, &record(1)), Ok(Standing::Held));
        assert_eq!(book.check_finish(&sample(), record(2).model), Ok(()));
    }
}

#[test]
fn a_record_reads_back_from_its_own_bytes_only() {
    let bytes = record(2).to_json();
    assert_eq!(RoundRecord::from_json(&bytes).unwrap(), record(2));
    for at in 0..bytes.len() {
        let mut altered = bytes.clone();
        altered[at] ^= 1;
        if let Ok(other) = RoundRecord::from_json(&altered) {
            assert_ne!(other.digest(), record(2).digest(), "byte {at}");
        }
    }
    let spaced = [b" ", &bytes[..]].concat();
    assert!(matches!(RoundRecord::from_json(&spaced), Err(PaperError::Altered { .. })));
    let receipt = receipt("KR/a", 1, 1000);
    assert_eq!(Receipt::from_json(&receipt.to_json()).unwrap(), receipt);
}

#[test]
fn another_record_of_a_round_that_is_held_is_a_fork() {
    let mut other = record(1);
    other.model = ModelDigest([9; 32]);
    assert!(matches!(check("KR/a", 1, &other), Err(Breach::Fork { round: 1, .. })));
    assert!(matches!(check("KR/a", 2, &other), Err(Breach::Fork { round: 1, .. })));
    let mut members = record(1);
    members.contributions.pop();
    members.missing.push((id("KR/a"), "late".to_owned()));
    assert!(matches!(check("VN/c", 1, &members), Err(Breach::Fork { round: 1, .. })));
}

#[test]
fn a_gap_a_rewritten_past_and_another_base_are_named() {
    assert_eq!(check("KR/a", 0, &record(2)), Err(Breach::Gap { held: None, got: 2 }));
    let mut rewritten = record(2);
    rewritten.previous = None;
    assert_eq!(check("KR/a", 1, &rewritten), Err(Breach::Previous { round: 2 }));
    let mut base = record(2);
    base.base = ModelDigest([9; 32]);
    assert!(matches!(check("KR/a", 1, &base), Err(Breach::Base { round: 2, .. })));
    let mut first = record(1);
    first.base = ModelDigest([9; 32]);
    let error = check("KR/a", 0, &first).unwrap_err();
    assert!(matches!(error, Breach::Base { expected, .. } if expected == start()), "{error}");
    let mut beyond = record(2);
    (beyond.round, beyond.previous) = (3, Some(record(2).digest()));
    assert!(
        matches!(check("KR/a", 2, &beyond), Err(Breach::Gap { .. })),
        "the plan has two rounds"
    );
}

#[test]
fn papers_of_another_federation_run_or_plan_are_refused() {
    let mut other = record(1);
    other.federation = "else".to_owned();
    assert_eq!(check("KR/a", 0, &other), Err(Breach::Other("federation")));
    let mut other = record(1);
    other.run = "sample-2".parse().unwrap();
    assert_eq!(check("KR/a", 0, &other), Err(Breach::Other("run")));
    let mut other = record(1);
    other.plan = PlanDigest([9; 32]);
    assert_eq!(check("KR/a", 0, &other), Err(Breach::Other("plan")));
}

#[test]
fn only_members_of_the_plan_stand_in_a_record_each_once_and_with_the_weight_of_the_plan() {
    let with = |change: fn(&mut RoundRecord)| {
        let mut record = record(1);
        change(&mut record);
        check("KR/a", 0, &record).unwrap_err()
    };
    let stranger = with(|r| {
        r.cohort.push(id("KE/knh"));
        r.contributions[0].client = id("KE/knh");
    });
    assert!(stranger.to_string().contains("KE/knh, whom the plan does not name"), "{stranger}");
    let twice = with(|r| r.contributions.push(r.contributions[0].clone()));
    assert!(twice.to_string().contains("twice"), "{twice}");
    let both = with(|r| r.missing.push((id("JP/b"), "late".to_owned())));
    assert!(both.to_string().contains("twice"), "{both}");
    let unasked = with(|r| r.cohort.retain(|c| *c != id("JP/b")));
    assert!(unasked.to_string().contains("not asked"), "{unasked}");
    let weight = with(|r| r.contributions[0].weight = 501);
    assert!(weight.to_string().contains("weight 501 where the plan says 500"), "{weight}");
    let stale = with(|r| r.contributions[0].staleness = 1);
    assert!(stale.to_string().contains("staleness 1 where the plan says 0"), "{stale}");
}

#[test]
fn an_update_that_this_client_never_released_is_not_its_own() {
    let mut foreign = record(1);
    foreign.contributions[1].update = update("KR/a", 7);
    let error = check("KR/a", 0, &foreign).unwrap_err();
    assert_eq!(error, Breach::Foreign { round: 1, update: update("KR/a", 7) });
    // Others cannot know.
    assert_eq!(check("JP/b", 0, &foreign), Ok(Standing::Next));
}

#[test]
fn a_contribution_that_is_left_out_after_its_receipt_is_noticed() {
    let (plan, run, me) = (sample(), run(), id("KR/a"));
    let terms = terms(&plan, &run, &me);
    let mut dropped = record(1);
    dropped.contributions.pop();
    dropped.cohort.retain(|client| *client != me);
    let expected = Err(Breach::Dropped { trained: 1, round: 1 });
    // Without a receipt it may have been too late.
    assert_eq!(book("KR/a", 0).check(&terms, &dropped), Ok(Standing::Next));
    let mut book = book("KR/a", 0);
    let receipt = receipt("KR/a", 1, 1000);
    book.check_receipt(&terms, &receipt).unwrap();
    book.take_receipt(&receipt);
    assert_eq!(book.check(&terms, &dropped).map(drop), expected);
    // With a reason it is on record.
    let mut excluded = dropped.clone();
    excluded.cohort.push(me.clone());
    excluded.missing.push((me.clone(), "excluded: test".to_owned()));
    assert_eq!(book.check(&terms, &excluded), Ok(Standing::Next));
    // The receipt may come after the record, too.
    let mut late = RecordBook::default();
    late.released(&contribution("KR/a", 1));
    late.take(&terms, &dropped);
    assert_eq!(late.check_receipt(&terms, &receipt), expected);
}

#[test]
fn a_late_update_that_was_promised_a_later_round_has_to_be_there() {
    let mut plan = sample();
    plan.cohort.late = crate::LatePolicy::Carry { rounds_max: 1 };
    let (run, me) = (run(), id("KR/a"));
    let terms = terms(&plan, &run, &me);
    let of = |round: u32| RoundRecord { plan: plan.digest(), ..record(round) };
    let mut promised = of(1);
    promised.contributions.pop();
    promised.missing.push((me.clone(), crate::run::LATE_STILL_TRAINING.to_owned()));
    let mut book = RecordBook::default();
    book.released(&contribution("KR/a", 1));
    assert_eq!(book.check(&terms, &promised), Ok(Standing::Next));
    book.take(&terms, &promised);
    let receipt = Receipt { plan: plan.digest(), ..receipt("KR/a", 1, 1000) };
    book.check_receipt(&terms, &receipt).unwrap();
    book.take_receipt(&receipt);
    let mut kept = of(2);
    kept.previous = Some(promised.digest());
    kept.contributions[1].update = update("KR/a", 1);
    kept.contributions[1].staleness = 1;
    assert_eq!(book.check(&terms, &kept), Ok(Standing::Next));
    let mut forgotten = kept.clone();
    forgotten.contributions.pop();
    forgotten.cohort.retain(|client| *client != me);
    assert_eq!(book.check(&terms, &forgotten), Err(Breach::Dropped { trained: 1, round: 2 }));
}

#[test]
fn a_receipt_of_something_else_than_was_sent_is_refused() {
    let (plan, run, me) = (sample(), run(), id("KR/a"));
    let terms = terms(&plan, &run, &me);
    let book = book("KR/a", 0);
    let refused = |receipt: Receipt| book.check_receipt(&terms, &receipt).unwrap_err().to_string();
    assert!(refused(receipt("JP/b", 1, 500)).contains("client"));
    assert!(refused(receipt("KR/a", 1, 999)).contains("weight"));
    let update = UpdateDigest([9; 32]);
    assert!(refused(Receipt { update, ..receipt("KR/a", 1, 1000) }).contains("update"));
    assert!(refused(receipt("KR/a", 3, 1000)).contains("update"), "no such round was released");
    let federation = "else".to_owned();
    assert!(refused(Receipt { federation, ..receipt("KR/a", 1, 1000) }).contains("federation"));
}

#[test]
fn a_task_is_served_only_from_the_model_that_the_records_lead_to() {
    let plan = sample();
    let task =
        |round, model| Task { run: run(), round, plan: plan.digest(), model, closes: Time(99) };
    let check = |n, round, model| book("KR/a", n).check_task(&plan, &task(round, model));
    assert_eq!(check(0, 1, start()), Ok(()));
    assert_eq!(check(1, 2, record(1).model), Ok(()));
    assert!(matches!(check(0, 1, ModelDigest([9; 32])), Err(WrongTask::OtherModel { .. })));
    assert!(matches!(check(1, 2, start()), Err(WrongTask::OtherModel { round: 2, .. })));
    assert_eq!(check(0, 2, record(1).model), Err(WrongTask::NoRecord { got: 2, needed: 1 }));
    let rolled_back = check(2, 1, start()).unwrap_err();
    assert_eq!(rolled_back, WrongTask::Older { got: 1, held: 2 });
    assert!(rolled_back.to_string().contains("rolled back"), "{rolled_back}");
    // A late round of a plan that takes late updates is no rollback.
    let mut carries = sample();
    carries.cohort.late = crate::LatePolicy::Carry { rounds_max: 1 };
    assert_eq!(book("KR/a", 1).check_task(&carries, &task(1, start())), Ok(()));
    assert!(book("KR/a", 2).check_task(&carries, &task(1, start())).is_err());
}

#[test]
fn a_run_that_is_called_finished_before_its_last_record_is_not_believed() {
    let model = record(2).model;
    assert!(book("KR/a", 1).check_finish(&sample(), model).is_err());
    assert!(book("KR/a", 2).check_finish(&sample(), ModelDigest([9; 32])).is_err());
}

fn export(by: &str, records: Vec<RoundRecord>) -> Export {
    let mut export = Export::new(by.to_owned(), FEDERATION.to_owned(), run(), sample());
    let signature = Signature { chain: vec![vec![1, 2, 3]], signature: vec![4; 70] };
    export.records = records
        .into_iter()
        .map(|record| SignedRecord {
            record,
            signature: signature.clone(),
            countersignatures: vec![Countersignature {
                client: id("JP/b"),
                signature: signature.clone(),
            }],
        })
        .collect();
    export
        .receipts
        .push(SignedReceipt { receipt: receipt("KR/a", 1, 1000), signature: signature.clone() });
    export
}

#[test]
fn every_altered_byte_of_an_export_is_found() {
    let export = export("KR/a", vec![record(1), record(2)]);
    export.check_chain().unwrap();
    let file = export.to_file();
    assert_eq!(Export::from_file(&file).unwrap(), export);
    for at in 0..file.len() {
        for bit in [1, 32, 128] {
            let mut altered = file.clone();
            altered[at] ^= bit;
            assert!(Export::from_file(&altered).is_err(), "byte {at}, bit {bit}");
        }
    }
    assert!(Export::from_file(&file[..file.len() - 1]).is_err());
    assert!(Export::from_file(b"").is_err());
}

#[test]
fn a_comparison_names_the_first_difference_by_round_and_member() {
    let ours = export("KR/a", vec![record(1), record(2)]);
    let same = Comparison::of(&ours, &export("JP/b", vec![record(1), record(2)]));
    assert_eq!(same, Comparison { n_same: 2, difference: None, ahead: None });
    let behind = Comparison::of(&ours, &export("JP/b", vec![record(1)]));
    assert_eq!(behind.n_same, 1);
    assert_eq!(behind.ahead, Some(("KR/a".to_owned(), 1)));
    let differing = |change: fn(&mut RoundRecord)| {
        let mut other = record(2);
        change(&mut other);
        let theirs = export("JP/b", vec![record(1), other]);
        Comparison::of(&ours, &theirs).difference.unwrap().to_string()
    };
    let members = differing(|r| {
        r.contributions.pop();
    });
    assert!(members.starts_with("round 2, KR/a: KR/a was shown that it contributed"), "{members}");
    assert!(members.ends_with("JP/b that it was asked"), "{members}");
    let models = differing(|r| r.model = ModelDigest([9; 32]));
    assert!(models.starts_with("round 2: KR/a was shown model"), "{models}");
    let mut other_plan = ours.clone();
    other_plan.plan.seed += 1;
    let plans = Comparison::of(&ours, &other_plan).difference.unwrap();
    assert!(plans.to_string().contains("under plan"), "{plans}");
}
