//! Which models and updates have to stay on the coordinator's disk, so that it does not fill with rounds.
//!
//! Of an open run: its latest models, as many as the configuration keeps, those that somebody may still train
//! from, and the updates that are to be folded. Of a run that has ended: its last model, or as many as the
//! configuration says. An update has done its work when the model that counts it is recorded; the record keeps
//! its digest.
//!
//! Deliberately not here: when to remove what (`driver`, `store`).

use std::collections::BTreeSet;

use comity_federation::Run;

use crate::config::StorageConfig;

/// Digests of blobs.
pub(crate) type Blobs = BTreeSet<[u8; 32]>;

/// Adds to `keep` what `run` still needs.
pub(crate) fn needed(run: &Run, kept: &StorageConfig, keep: &mut Blobs) {
    keep.insert(run.model().0);
    let n_models = match run.outcome() {
        None => {
            let (models, updates) = run.blobs_needed();
            keep.extend(models.iter().map(|model| model.0));
            keep.extend(updates.iter().map(|update| update.0));
            kept.models_kept
        }
        Some(_) => kept.models_kept_of_ended,
    };
    // Each round starts from a model; the latest model is the last round's start or its outcome.
    let last = run.rounds_from(run.n_rounds().saturating_sub(1)).pop();
    let closed = last.is_some_and(|round| round.model.is_some());
    let n_rounds = (n_models as usize).saturating_sub(usize::from(closed));
    let rounds = run.rounds_from(run.n_rounds().saturating_sub(n_rounds));
    keep.extend(rounds.iter().map(|round| round.base.0));
}

/// What the last two rounds of `run` used.
pub(crate) fn used_lately(run: &Run) -> Blobs {
    let rounds = run.rounds_from(run.n_rounds().saturating_sub(2));
    let updates = rounds.iter().flat_map(|round| &round.contributions).map(|c| c.update.0);
    updates.chain(rounds.iter().map(|round| round.base.0)).collect()
}

#[cfg(test)]
mod tests {
    use comity_federation::{
        ClientId, Command, Contribution, Event, ModelDigest, Plan, RunId, Time, UpdateDigest,
        UpdateEncoding,
    };

    use super::*;

    fn run() -> Run {
        let plan = Plan::from_toml(include_str!("../../examples/fashion/plan.toml")).unwrap();
        let id = RunId::derive("x", &plan.digest(), "test", Time(0));
        let mut run = Run::new(id, plan, ModelDigest([100; 32]), Time(0));
        for client in clients(&run) {
            let plan = run.plan_digest();
            run.step(Event::CheckedIn { client, plan }, Time(1)).unwrap();
        }
        run
    }

    fn clients(run: &Run) -> Vec<ClientId> {
        run.plan().cohort.clients.iter().map(|named| named.id.clone()).collect()
    }

    fn submit(run: &mut Run, round: u32, client: usize) {
        let contribution = Contribution {
            round,
            plan: run.plan_digest(),
            base: run.model(),
            update: UpdateDigest([(10 * round) as u8 + client as u8; 32]),
            n_parameters: run.plan().model_manifest().unwrap().n_shared() as u64,
            encoding: UpdateEncoding::Int32,
            n_correct: None,
            loss_sum: None,
        };
        let client = clients(run)[client].clone();
        run.step(Event::Submitted { client, contribution }, Time(2)).unwrap();
    }

    fn aggregate(run: &mut Run, round: u32) {
        let model = ModelDigest([100 + round as u8; 32]);
        run.step(Event::Aggregated { round, model, statistics: None }, Time(3)).unwrap();
    }

    fn storage(models_kept: u32) -> StorageConfig {
        StorageConfig { models_kept, models_kept_of_ended: models_kept - 1 }
    }

    fn kept(run: &Run, models_kept: u32) -> Vec<u8> {
        let mut keep = Blobs::new();
        needed(run, &storage(models_kept), &mut keep);
        keep.iter().map(|digest| digest[0]).collect()
    }

    #[test]
    fn an_open_run_keeps_its_latest_models_and_the_updates_of_its_open_round() {
        let mut run = run();
        assert_eq!(kept(&run, 2), [100]);
        for client in 0..2 {
            submit(&mut run, 1, client);
        }
        assert_eq!(kept(&run, 2), [10, 11, 100]);
        submit(&mut run, 1, 2);
        // It is being folded.
        assert_eq!(kept(&run, 2), [10, 11, 12, 100]);
        aggregate(&mut run, 1);
        assert_eq!(kept(&run, 2), [100, 101]);
        for round in 2..=3 {
            (0..3).for_each(|client| submit(&mut run, round, client));
            aggregate(&mut run, round);
        }
        assert_eq!(kept(&run, 2), [102, 103]);
        assert_eq!(kept(&run, 1), [103]);
        assert_eq!(kept(&run, 9), [100, 101, 102, 103]);
        let used: Vec<u8> = used_lately(&run).iter().map(|digest| digest[0]).collect();
        assert_eq!(used, [30, 31, 32, 102, 103]);
    }

    #[test]
    fn a_run_that_has_ended_keeps_its_last_model() {
        let mut run = run();
        (0..3).for_each(|client| submit(&mut run, 1, client));
        aggregate(&mut run, 1);
        submit(&mut run, 2, 0);
        let command = Command::Abort { reason: "enough".to_owned() };
        run.step(Event::Ordered { command }, Time(4)).unwrap();
        assert_eq!(kept(&run, 2), [101]);
        assert_eq!(kept(&run, 3), [100, 101]);
        let used: Vec<u8> = used_lately(&run).iter().map(|digest| digest[0]).collect();
        assert_eq!(used, [10, 11, 12, 20, 100, 101]);
    }
}
