//! What becomes of a federation whose clients are slow, away, dying or hostile; and that the number of
//! threads changes no bit of it.

use std::num::NonZero;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, Mutex};

use comity_burn_models::{Device, DeviceChoice};
use comity_datasets::{Contract, Dataset, Scale};
use comity_federation::{Plan, RunStatus};
use comity_privacy::LedgerEntry;
use comity_simulator::{
    ClientRound, Conduct, FederationData, Progress, Ranks, RoundScore, Simulation, SimulationError,
    SimulationResult,
};

const PLAN: &str = r#"
name = "conduct"
purpose = "A test."
seed = 1
rounds = 6
[data]
shape = [6]
classes = 3
normalise = { mean = 0.5, std = 0.5 }
[model]
layers = [{ type = "linear", out = 8 }, { type = "tanh" }, { type = "linear", out = 3 }]
[training]
optimizer = { type = "sgd", learning_rate = 0.5 }
batch = 16
local_epochs = 1
microbatch = 16
[privacy]
mode = "none"
[cohort]
min_clients = 2
min_countries = 1
gathering_deadline = "1m"
round_deadline = "100s"
weights = "uniform"
clients = { n = 10, countries = ["KR", "JP"], records = 64 }
[aggregation]
strategy = "fedavg"
server_learning_rate = 1.0
fixed_point_bits = 22
"#;

fn plan(changes: &[(&str, &str)]) -> Plan {
    let mut text = PLAN.to_owned();
    for (from, to) in changes {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    Plan::from_toml(&text).unwrap()
}

/// Class `c` has a high feature `c`; the rest is a fixed pattern, which differs from client to client.
fn examples(plan: &Plan, n: u32, client: u32) -> Dataset {
    let contract = Contract { shape: plan.data.shape.clone(), n_classes: 3, scale: Scale::Bytes };
    let labels: Vec<u32> = (0..n).map(|i| (i * 7 + client) % 3).collect();
    let features = (0..n)
        .flat_map(|i| (0..6).map(move |feature| (i, feature)))
        .map(|(i, feature)| {
            let high = if (i * 7 + client) % 3 == feature { 120 } else { 0 };
            (high + (i * 31 + feature * 17 + client * 13) % 100) as u8
        })
        .collect();
    Dataset::from_bytes(&contract, features, labels).unwrap()
}

fn data(plan: &Plan) -> FederationData {
    let clients = plan.cohort.clients.iter().zip(0..);
    let shards = clients.map(|(named, i)| (named.id.clone(), examples(plan, 64, i))).collect();
    FederationData::of_shards(shards, examples(plan, 300, 99))
}

fn cpu() -> Device {
    DeviceChoice::Cpu.open().unwrap()
}

fn conduct(text: &str) -> Conduct {
    toml::from_str(text).unwrap()
}

struct Ran {
    result: SimulationResult,
    clients: Vec<ClientRound>,
}

fn run(plan: &Plan, conduct: &Conduct, n_threads: usize) -> Ran {
    let (data, device) = (data(plan), cpu());
    let simulation = Simulation {
        conduct: conduct.clone(),
        n_threads: NonZero::new(n_threads).unwrap(),
        ..Simulation::new(plan, &data, &device)
    };
    let mut clients = Vec::new();
    let result = simulation.run(&mut |progress| {
        if let Progress::Round { clients: round, .. } = progress {
            clients.extend_from_slice(round);
        }
    });
    Ran { result: result.unwrap(), clients }
}

const HARD_WORLD: &str = r#"
links = { latency = "200ms", up_mbit_s = 0.01, down_mbit_s = 0.1, spread = 0.5 }
compute = { records_s = 10.0, spread = 0.3 }
stragglers = { share = 0.2, slowdown = 30.0 }
dropouts = { probability = 0.05 }
crashes = { probability = 0.2, restart = "5s" }
attackers = { clients = 1, attack = { kind = "sign_flip" } }
"#;

/// Scores without what the clock on the wall says.
fn scores(rounds: &[RoundScore]) -> Vec<RoundScore> {
    rounds.iter().map(|score| RoundScore { seconds: 0.0, ..score.clone() }).collect()
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for strategy in [
        "strategy = \"fedavg\"",
        "strategy = \"median\"",
        "strategy = { fedbuff = { buffer = 5, staleness_max = 3 } }",
    ] {
        let plan = plan(&[("strategy = \"fedavg\"", strategy)]);
        for world in ["", HARD_WORLD] {
            let one = run(&plan, &conduct(world), 1);
            assert_eq!(one.result.report.status, RunStatus::Finished, "{:?}", one.result.report);
            for n_threads in [2, 3, 16] {
                let many = run(&plan, &conduct(world), n_threads);
                assert_eq!(one.result.report, many.result.report, "{strategy} {n_threads}");
                assert_eq!(scores(&one.result.rounds), scores(&many.result.rounds));
                assert_eq!(one.clients, many.clients);
            }
        }
    }
}

#[test]
fn stragglers_miss_the_deadline_and_everybody_else_waits_for_it() {
    let plan = plan(&[]);
    let world = "compute = { records_s = 64.0 }\nstragglers = { share = 0.3, slowdown = 200.0 }";
    let ran = run(&plan, &conduct(world), 2);
    let report = &ran.result.report;
    assert_eq!(report.status, RunStatus::Finished);
    for round in &report.history {
        assert_eq!((round.contributions.len(), round.missing.len()), (7, 3), "{round:?}");
        assert!(round.missing.iter().all(|(_, why)| why.starts_with("late")), "{round:?}");
    }
    // A second of training, two messages; and the deadline, for those that do not come.
    assert!(ran.clients.iter().filter_map(|c| c.arrived_s).take(7).all(|at| at < 2.0));
    assert!(ran.result.rounds[0].clock_s >= 100.0, "{:?}", ran.result.rounds[0]);
    let honest = run(&plan, &conduct("compute = { records_s = 64.0 }"), 2);
    assert!(honest.result.rounds[5].clock_s < 10.0, "{:?}", honest.result.rounds[5]);
}

#[test]
fn who_is_away_for_a_round_is_late_in_it_and_there_in_another() {
    let plan = plan(&[]);
    let ran = run(&plan, &conduct("dropouts = { probability = 0.2 }"), 2);
    let report = &ran.result.report;
    assert_eq!(report.status, RunStatus::Finished);
    let n_missing: usize = report.history.iter().map(|round| round.missing.len()).sum();
    let n_there: usize = report.history.iter().map(|round| round.contributions.len()).sum();
    assert_eq!(n_missing + n_there, 60);
    assert!((3..25).contains(&n_missing), "{n_missing}");
}

#[test]
fn who_dies_at_work_comes_back_and_the_round_is_as_if_it_had_not() {
    let plan = plan(&[]);
    let quiet = run(&plan, &conduct("compute = { records_s = 64.0 }"), 2);
    let world = "compute = { records_s = 64.0 }\ncrashes = { probability = 0.5, restart = \"7s\" }";
    let dying = run(&plan, &conduct(world), 2);
    assert_eq!(quiet.result.report.model, dying.result.report.model);
    assert!(dying.result.rounds[5].clock_s > quiet.result.rounds[5].clock_s + 20.0);
    for ledger in dying.result.ledgers.values() {
        let count =
            |is: fn(&LedgerEntry) -> bool| ledger.entries().iter().filter(|e| is(e)).count();
        assert_eq!(count(|e| matches!(e, LedgerEntry::Reserved { .. })), 6);
        assert_eq!(count(|e| matches!(e, LedgerEntry::Committed { .. })), 6);
    }
}

#[test]
fn sign_flips_ruin_the_mean_and_not_the_median() {
    let accuracy = |strategy: &str, world: &str| {
        let plan = plan(&[("strategy = \"fedavg\"", strategy)]);
        run(&plan, &conduct(world), 2).result.rounds.last().unwrap().accuracy
    };
    let attack = "attackers = { clients = 3, attack = { kind = \"sign_flip\", factor = 8.0 } }";
    let (mean, median) = ("strategy = \"fedavg\"", "strategy = \"median\"");
    assert!(accuracy(mean, "") > 0.95 && accuracy(median, attack) > 0.9);
    assert!(accuracy(mean, attack) < 0.5, "{}", accuracy(mean, attack));
}

#[test]
fn a_backdoor_is_scored() {
    let plan = plan(&[]);
    let world = "attackers = { clients = 4, attack = { kind = \"backdoor\", share = 0.6, factor = 3.0, \
                 trigger = { side = 1, value = 255, target = 2 } } }";
    let ran = run(&plan, &conduct(world), 2);
    let taught = ran.result.rounds.last().unwrap().backdoor.unwrap();
    assert!(taught > 0.6, "{taught}");
    assert!(run(&plan, &conduct(""), 1).result.rounds[0].backdoor.is_none());
}

#[test]
fn a_world_that_does_not_fit_the_plan_is_refused() {
    let plan = plan(&[]);
    let (data, device) = (data(&plan), cpu());
    for (world, says) in [
        ("attackers = { clients = 11, attack = { kind = \"label_flip\" } }", "attackers.clients"),
        (
            "attackers = { clients = 1, attack = { kind = \"backdoor\", share = 1.0, trigger = { side = \
             7, value = 255, target = 2 } } }",
            "trigger fits",
        ),
        ("stragglers = { share = 0.1, slowdown = 2.0 }", "nobody can be slow"),
    ] {
        let simulation =
            Simulation { conduct: conduct(world), ..Simulation::new(&plan, &data, &device) };
        let error = simulation.run(&mut |_| {}).unwrap_err();
        assert!(matches!(error, SimulationError::World(_)), "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[test]
fn a_simulation_stops_when_it_is_told_to() {
    let plan = plan(&[]);
    let (data, device) = (data(&plan), cpu());
    let stop = AtomicBool::new(false);
    let simulation = Simulation { stop: Some(&stop), ..Simulation::new(&plan, &data, &device) };
    let mut n_rounds = 0;
    let result = simulation.run(&mut |progress| {
        if let Progress::Round { .. } = progress {
            n_rounds += 1;
            stop.store(n_rounds == 2, Ordering::Relaxed);
        }
    });
    assert!(matches!(result, Err(SimulationError::Interrupted)));
    assert_eq!(n_rounds, 2);
}

/// Runs until `stop_after` rounds are done, and goes on from there.
fn resumed(plan: &Plan, conduct: &Conduct, stop_after: usize) -> Ran {
    let (data, device) = (data(plan), cpu());
    let dir = tempfile::tempdir().unwrap();
    let stop = AtomicBool::new(false);
    let first = Simulation {
        conduct: conduct.clone(),
        checkpoint: Some(dir.path()),
        stop: Some(&stop),
        ..Simulation::new(plan, &data, &device)
    };
    let mut clients = Vec::new();
    let mut n_rounds = 0;
    let ended = first.run(&mut |progress| match progress {
        Progress::Round { clients: round, .. } => {
            clients.extend_from_slice(round);
            n_rounds += 1;
            stop.store(n_rounds == stop_after, Ordering::Relaxed);
        }
        // Not between two rounds only: in the middle of one.
        Progress::Step { round, step, .. } if round as usize == stop_after + 1 && step == 2 => {
            stop.store(true, Ordering::Relaxed);
        }
        _ => {}
    });
    let ended = ended.map(|result| result.report);
    assert!(matches!(ended, Err(SimulationError::Interrupted)), "{ended:#?}");
    // What a process wrote that was killed before its next checkpoint is not read.
    let journal = dir.path().join("journal.jsonl");
    let mut text = std::fs::read(&journal).unwrap();
    text.extend_from_slice(b"{\"client\":[0,{\"event\":\"acc");
    std::fs::write(&journal, text).unwrap();
    let second = Simulation { stop: None, resume: true, ..first };
    let mut went_on_after = None;
    let result = second.run(&mut |progress| match progress {
        Progress::Resumed { rounds } => went_on_after = Some(rounds.len()),
        Progress::Round { clients: round, .. } => clients.extend_from_slice(round),
        Progress::Step { .. } => {}
    });
    assert_eq!(went_on_after, Some(stop_after));
    Ran { result: result.unwrap(), clients }
}

#[test]
fn a_resumed_simulation_ends_in_the_same_bits_as_an_uninterrupted_one() {
    let dp =
        "mode = \"dp_sgd\"\nunit = \"record\"\nepsilon = 8.0\ndelta = 1e-4\nclip_norm_l2 = 0.5";
    let institutions = "mode = \"dp_fedavg\"\nepsilon = 8.0\ndelta = 1e-2\nclip_norm_l2 = 0.5\ncohort_expected = 5\n\
         clip_adaptive = { quantile = 0.5, learning_rate = 0.2, count_noise_std = 2.0 }";
    let fedbuff =
        ("strategy = \"fedavg\"", "strategy = { fedbuff = { buffer = 5, staleness_max = 3 } }");
    let none = "mode = \"none\"";
    for (changes, world) in [
        (vec![], ""),
        (vec![("strategy = \"fedavg\"", "strategy = \"median\"")], HARD_WORLD),
        (vec![fedbuff], HARD_WORLD),
        (vec![(none, dp)], HARD_WORLD),
        (vec![(none, institutions)], ""),
        (
            vec![
                ("local_epochs = 1", "local_steps = 4"),
                ("strategy = \"fedavg\"", "strategy = \"scaffold\""),
            ],
            "",
        ),
    ] {
        let plan = plan(&changes);
        let whole = run(&plan, &conduct(world), 2);
        for stop_after in [1, 4] {
            let parts = resumed(&plan, &conduct(world), stop_after);
            assert_eq!(whole.result.report, parts.result.report, "{changes:?}");
            assert_eq!(scores(&whole.result.rounds), scores(&parts.result.rounds));
            assert_eq!(whole.clients, parts.clients);
        }
    }
}

#[test]
fn another_simulations_checkpoint_and_a_damaged_one_are_refused() {
    let plan = plan(&[]);
    let (data, device) = (data(&plan), cpu());
    let dir = tempfile::tempdir().unwrap();
    let simulation =
        Simulation { checkpoint: Some(dir.path()), ..Simulation::new(&plan, &data, &device) };
    simulation.run(&mut |_| {}).unwrap();
    // One that is done is done.
    let again = Simulation { resume: true, ..simulation };
    let mut n_steps = 0;
    let result = again.run(&mut |progress| {
        n_steps += usize::from(matches!(progress, Progress::Step { .. }));
    });
    assert_eq!((result.unwrap().report.status, n_steps), (RunStatus::Finished, 0));

    let reason = |simulation: &Simulation<'_>| match simulation.run(&mut |_| {}).unwrap_err() {
        SimulationError::Checkpoint { reason, .. } => reason,
        other => panic!("{other}"),
    };
    let other = plan_of_other_rounds();
    assert!(reason(&Simulation { plan: &other, ..again_of(&again) }).contains("the plan differs"));
    assert!(reason(&Simulation { seed: 2, ..again_of(&again) }).contains("seed differs"));
    let fewer = FederationData::of_shards(
        plan.cohort.clients.iter().map(|c| (c.id.clone(), examples(&plan, 63, 0))).collect(),
        examples(&plan, 300, 99),
    );
    assert!(reason(&Simulation { data: &fewer, ..again_of(&again) }).contains("the data differs"));
    for name in ["journal.jsonl", "checkpoint.json"] {
        let path = dir.path().join(name);
        let text = std::fs::read(&path).unwrap();
        std::fs::write(&path, &text[..text.len() / 2]).unwrap();
        reason(&again);
        std::fs::write(&path, text).unwrap();
    }
}

fn plan_of_other_rounds() -> Plan {
    plan(&[("rounds = 6", "rounds = 7")])
}

fn again_of<'a>(simulation: &Simulation<'a>) -> Simulation<'a> {
    Simulation {
        checkpoint: simulation.checkpoint,
        resume: true,
        ..Simulation::new(simulation.plan, simulation.data, simulation.device)
    }
}

/// Threads of this process in the place of several processes.
struct Thread<'a> {
    rank: usize,
    all: &'a Meeting,
}

/// Where they exchange what they have.
struct Meeting {
    barrier: Barrier,
    bytes: Mutex<Vec<Vec<u8>>>,
    values: Mutex<Vec<i64>>,
}

impl Ranks for Thread<'_> {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.all.bytes.lock().unwrap().len()
    }

    fn gather(&self, mine: &[u8]) -> Vec<Vec<u8>> {
        self.all.bytes.lock().unwrap()[self.rank] = mine.to_vec();
        self.all.barrier.wait();
        let gathered = self.all.bytes.lock().unwrap().clone();
        self.all.barrier.wait();
        gathered
    }

    fn sum(&self, values: &mut [i64]) {
        let mut sums = self.all.values.lock().unwrap();
        sums.resize(values.len(), 0);
        sums.iter_mut().zip(&*values).for_each(|(sum, value)| *sum += value);
        drop(sums);
        self.all.barrier.wait();
        values.copy_from_slice(&self.all.values.lock().unwrap());
        self.all.barrier.wait();
        self.all.values.lock().unwrap().clear();
        self.all.barrier.wait();
    }
}

#[test]
fn several_processes_give_the_bits_of_one() {
    let dp =
        "mode = \"dp_sgd\"\nunit = \"record\"\nepsilon = 8.0\ndelta = 1e-4\nclip_norm_l2 = 0.5";
    let scaffold = [
        ("local_epochs = 1", "local_steps = 4"),
        ("strategy = \"fedavg\"", "strategy = \"scaffold\""),
    ];
    for changes in [&[][..], &[("mode = \"none\"", dp)], &scaffold] {
        let plan = plan(changes);
        let one = run(&plan, &conduct(HARD_WORLD), 2);
        let (data, device) = (data(&plan), cpu());
        for n in [2, 3] {
            let all = Meeting {
                barrier: Barrier::new(n),
                bytes: Mutex::new(vec![Vec::new(); n]),
                values: Mutex::default(),
            };
            let results = std::thread::scope(|scope| {
                let ranks: Vec<_> = (0..n)
                    .map(|rank| {
                        let (plan, data, device, all) = (&plan, &data, &device, &all);
                        scope.spawn(move || {
                            let simulation = Simulation {
                                conduct: conduct(HARD_WORLD),
                                ..Simulation::new(plan, data, device)
                            };
                            simulation.run_on(&Thread { rank, all }, &mut |_| {}).unwrap()
                        })
                    })
                    .collect();
                ranks.into_iter().map(|rank| rank.join().unwrap()).collect::<Vec<_>>()
            });
            for result in results {
                assert_eq!(result.report, one.result.report, "{changes:?}");
                assert_eq!(scores(&result.rounds), scores(&one.result.rounds));
            }
        }
    }
}

#[test]
fn several_processes_refuse_what_needs_whole_updates() {
    let plan = plan(&[("strategy = \"fedavg\"", "strategy = \"median\"")]);
    let (data, device) = (data(&plan), cpu());
    let all = Meeting {
        barrier: Barrier::new(1),
        bytes: Mutex::new(vec![Vec::new(); 2]),
        values: Mutex::default(),
    };
    let simulation = Simulation::new(&plan, &data, &device);
    let error = simulation.run_on(&Thread { rank: 0, all: &all }, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("run in one process"), "{error}");
}
