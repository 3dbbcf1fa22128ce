//! A whole federation of pure machines, `Run` and `Participant`, under random lists of operations: no
//! network, no disk, no threads, so that thousands of lists take a second.
//!
//! Messages wait in a bag, from which an operation delivers, repeats or loses any one. A crash is what it is
//! in the programs: the machine is folded again from what was recorded, and whatever was not recorded or
//! not sent is gone. Updates are named by client and round, so the fold's arguments show who was counted.
//!
//! `COMITY_SEEDS=n` is how many lists are played. A failing list is cut down to the operations that matter
//! before it is printed.

use std::collections::{BTreeMap, BTreeSet};

use comity_federation::{
    ClientId, Command, Contribution, Effect, Event, ModelDigest, Participant, ParticipantEffect,
    ParticipantEvent, Plan, Run, RunId, Strategy, Task, Time, UpdateDigest,
};

use crate::draws::Draws;

/// Lists of `make test`.
const LISTS: u64 = 10_000;
/// Operations of a list.
const OPERATIONS: u64 = 120;
/// Looks at deadlines until a mended federation has to be at its end.
const ROUNDS_TO_END: usize = 40;
const START: ModelDigest = ModelDigest([0; 32]);

/// One thing that happens; numbers choose among what there is at that moment.
#[derive(Clone, Copy, Debug)]
enum Operation {
    /// Deliver one of the messages under way.
    Deliver(u64),
    /// Deliver it and leave it in the bag: it will come again.
    Repeat(u64),
    /// Lose it.
    Lose(u64),
    /// Time passes, and the coordinator looks at its deadline.
    Pass(u64),
    /// The coordinator's fold ends.
    Fold,
    /// A client connects: both sides say what they owe each other.
    Connect(u64),
    /// A client's training ends.
    Train(u64),
    /// A client's training fails.
    Fail(u64),
    /// The coordinator dies and comes back from its records.
    CrashCoordinator,
    /// It dies in the middle of the next step, before that is recorded.
    CrashBeforeRecord,
    /// It dies in the middle of the next step, after that is recorded and before anybody is told.
    CrashAfterRecord,
    /// A client dies and comes back from its records.
    CrashClient(u64),
    /// The operator goes on without a client.
    Exclude(u64),
    /// The operator takes a client back.
    Readmit(u64),
    /// The operator ends the run.
    Abort,
}

#[derive(Clone, Debug)]
enum Message {
    ToCoordinator(Event),
    Offer { client: usize },
    Assign { client: usize, task: Task },
    Reply { client: usize, round: u32, accepted: bool },
    Ended { client: usize },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Crash {
    BeforeRecord,
    AfterRecord,
}

struct Client {
    id: ClientId,
    participant: Option<Participant>,
    recorded: Vec<ParticipantEvent>,
    training: Option<Task>,
    released: BTreeSet<u32>,
}

struct World {
    plan: Plan,
    run: Run,
    recorded: Vec<(Time, Event)>,
    now: Time,
    clients: Vec<Client>,
    bag: Vec<Message>,
    next_crash: Option<Crash>,
    /// Whom a fold counted in which round, and with which weight.
    counted: BTreeMap<(u32, usize), u64>,
    /// Rounds in which a client was told that its update is there.
    told: BTreeSet<(u32, usize)>,
}

fn plan(n_clients: usize, min_clients: u64, rounds: u64, governance: u64) -> Plan {
    let n_wanted = min_clients.max(n_clients as u64 / 2);
    let (cohort, strategy) = match governance {
        0 => ("late = { carry = { rounds_max = 2 } }".to_owned(), "\"fedavg\"".to_owned()),
        1 => {
            let buffer = format!("{{ fedbuff = {{ buffer = {n_wanted}, staleness_max = 2 }} }}");
            (String::new(), buffer)
        }
        2 => (format!("sample = {{ clients = {n_wanted} }}"), "\"fedavg\"".to_owned()),
        3 => {
            let late = "late = { carry = { rounds_max = 1 } }\nmin_weight_share = 0.3";
            (format!("sample = {{ clients = {n_wanted} }}\n{late}"), "\"fedavg\"".to_owned())
        }
        _ => (String::new(), "\"fedavg\"".to_owned()),
    };
    let clients: String = (0..n_clients)
        .map(|i| format!("{{ id = \"{}\", records = {} }},", client_id(i), 10 * (i + 1)))
        .collect();
    let text = format!(
        "name = \"lists\"\npurpose = \"A test.\"\nseed = 1\nrounds = {rounds}\n\
         [data]\nshape = [1, 2, 2]\nclasses = 4\nnormalise = {{ mean = 0.5, std = 0.5 }}\n\
         [model]\nlayers = [{{ type = \"flatten\" }}, {{ type = \"linear\", out = 4 }}]\n\
         [training]\noptimizer = {{ type = \"sgd\", learning_rate = 0.1 }}\nbatch = 4\n\
         local_epochs = 1\nmicrobatch = 4\n[privacy]\nmode = \"none\"\n\
         [cohort]\nmin_clients = {min_clients}\nmin_countries = 1\n\
         gathering_deadline = \"20s\"\nround_deadline = \"20s\"\nweights = \"declared\"\n\
         {cohort}\nclients = [{clients}]\n\
         [aggregation]\nstrategy = {strategy}\nserver_learning_rate = 1.0\nfixed_point_bits = 20\n"
    );
    Plan::from_toml(&text).expect("a valid plan")
}

fn client_id(index: usize) -> ClientId {
    format!("{}/site", ["KR", "JP", "VN", "TH", "KE"][index]).parse().expect("a name")
}

/// The name of what `client` contributes in `round`.
fn update(round: u32, client: usize) -> UpdateDigest {
    let mut name = [7; 32];
    name[0] = client as u8;
    name[1..5].copy_from_slice(&round.to_le_bytes());
    UpdateDigest(name)
}

fn owner(update: &UpdateDigest) -> (u32, usize) {
    let round = u32::from_le_bytes(update.0[1..5].try_into().expect("four bytes"));
    (round, usize::from(update.0[0]))
}

fn model(round: u32) -> ModelDigest {
    let mut name = [9; 32];
    name[..4].copy_from_slice(&round.to_le_bytes());
    ModelDigest(name)
}

fn run_id() -> RunId {
    "lists-1".parse().expect("an id")
}

impl World {
    fn new(draws: &mut Draws) -> Self {
        let n_clients = draws.between(2, 5) as usize;
        let (min_clients, rounds) = (draws.between(1, n_clients as u64), draws.between(1, 4));
        let plan = plan(n_clients, min_clients, rounds, draws.between(0, 7));
        let clients = (0..n_clients)
            .map(|i| Client {
                id: client_id(i),
                participant: None,
                recorded: Vec::new(),
                training: None,
                released: BTreeSet::new(),
            })
            .collect();
        Self {
            run: Run::new(run_id(), plan.clone(), START, Time(0)),
            plan,
            recorded: Vec::new(),
            now: Time(0),
            clients,
            bag: Vec::new(),
            next_crash: None,
            counted: BTreeMap::new(),
            told: BTreeSet::new(),
        }
    }

    fn index(&self, id: &ClientId) -> usize {
        self.clients.iter().position(|c| c.id == *id).expect("one of ours")
    }

    /// The coordinator's driver: step, record, then the effects. False where it died on the way.
    fn step(&mut self, event: Event) -> Result<Result<(), ()>, Crash> {
        let before = self.run.clone();
        let crash = self.next_crash.take();
        let effects = match self.run.step(event.clone(), self.now) {
            Ok(effects) => effects,
            Err(_) => {
                assert_eq!(self.run, before, "a refusal left a trace");
                return Ok(Err(()));
            }
        };
        if effects.is_empty() {
            assert_eq!(self.run, before, "a change without effects");
            return Ok(Ok(()));
        }
        assert_eq!(effects[0], Effect::Record, "Record comes first");
        if crash != Some(Crash::BeforeRecord) {
            self.recorded.push((self.now, event));
        }
        if let Some(crash) = crash {
            self.restart();
            return Err(crash);
        }
        for effect in effects {
            if let Effect::Invite { .. } = effect {
                self.announce();
            }
        }
        Ok(Ok(()))
    }

    fn restart(&mut self) {
        let fresh = Run::new(run_id(), self.plan.clone(), START, Time(0));
        self.run = fresh.replay(self.recorded.iter().cloned()).expect("a genuine record");
    }

    /// Tells everybody who is to train.
    fn announce(&mut self) {
        for index in 0..self.clients.len() {
            self.assign(index);
        }
    }

    fn assign(&mut self, index: usize) {
        if let Some(task) = self.run.task(&self.clients[index].id) {
            self.bag.push(Message::Assign { client: index, task });
        }
    }

    /// The node's driver.
    fn at_client(&mut self, index: usize, event: ParticipantEvent) {
        let client = &mut self.clients[index];
        let Some(participant) = &mut client.participant else { return };
        let before = participant.clone();
        let Ok(effects) = participant.step(event.clone()) else {
            assert_eq!(*participant, before, "a refusal left a trace");
            return;
        };
        for effect in effects {
            if effect == ParticipantEffect::Record {
                self.clients[index].recorded.push(event.clone());
            } else {
                self.perform(index, effect);
            }
        }
    }

    fn perform(&mut self, index: usize, effect: ParticipantEffect) {
        use ParticipantEffect as Do;
        let client = self.clients[index].id.clone();
        let event = match effect {
            Do::Record => return,
            Do::Train(task) => {
                self.clients[index].training.get_or_insert(task);
                return;
            }
            Do::CheckIn { plan } => Event::CheckedIn { client, plan },
            Do::Decline { reason } => Event::Declined { client, reason },
            Do::Submit { contribution } => Event::Submitted { client, contribution },
            Do::Withdraw { round, reason } => Event::Withdrew { client, round, reason },
        };
        self.bag.push(Message::ToCoordinator(event));
    }

    fn deliver(&mut self, message: Message) {
        match message {
            Message::ToCoordinator(event) => {
                let submitted = match &event {
                    Event::Submitted { client, contribution } => {
                        Some((self.index(client), contribution.round))
                    }
                    _ => None,
                };
                if let (Ok(answer), Some((client, round))) = (self.step(event), submitted) {
                    let accepted = answer.is_ok();
                    self.bag.push(Message::Reply { client, round, accepted });
                }
            }
            Message::Offer { client } => {
                let digest = self.plan.digest();
                let node = &mut self.clients[client];
                node.participant.get_or_insert_with(|| Participant::new(run_id(), digest));
                self.at_client(client, ParticipantEvent::Accepted);
            }
            Message::Assign { client, task } => {
                self.at_client(client, ParticipantEvent::Assigned { task });
            }
            Message::Reply { client, round, accepted } => {
                if accepted {
                    self.told.insert((round, client));
                }
                self.at_client(client, ParticipantEvent::Settled { round });
            }
            Message::Ended { client } => {
                let status = "over".to_owned();
                self.at_client(client, ParticipantEvent::RunEnded { status });
            }
        }
    }

    fn connect(&mut self, index: usize) {
        let node = &self.clients[index];
        if let Some(effect) = node.participant.as_ref().and_then(Participant::pending) {
            self.perform(index, effect);
        }
        if self.run.outcome().is_some() {
            self.bag.push(Message::Ended { client: index });
            return;
        }
        if !self.run.has_answered(&self.clients[index].id) {
            self.bag.push(Message::Offer { client: index });
        }
        self.assign(index);
    }

    fn trained(&mut self, index: usize) {
        let client = &mut self.clients[index];
        let Some(task) = client.training.take() else { return };
        let contribution = Contribution {
            round: task.round,
            plan: task.plan,
            base: task.model,
            update: update(task.round, index),
            n_parameters: 20,
            encoding: comity_federation::UpdateEncoding::Int32,
            n_correct: None,
            loss_sum: None,
        };
        let event = ParticipantEvent::Trained { contribution };
        // As the node does: what its machine does not want is not released.
        let wanted =
            client.participant.as_ref().is_some_and(|p| p.clone().step(event.clone()).is_ok());
        if wanted {
            assert!(client.released.insert(task.round), "round {} was let out twice", task.round);
            self.at_client(index, event);
        }
    }

    fn fold(&mut self) {
        let Some(Effect::Aggregate { round, updates, .. }) = self.run.pending() else { return };
        let event = Event::Aggregated { round, model: model(round), statistics: None };
        let n_recorded = self.recorded.len();
        let _ = self.step(event);
        if self.recorded.len() > n_recorded {
            for (update, weight) in updates {
                let (at, client) = owner(&update);
                let fits = at <= round && round - at <= self.plan.staleness_max();
                assert!(fits, "an update of round {at} was folded in round {round}");
                let earlier = self.counted.insert((at, client), weight);
                assert_eq!(earlier, None, "client {client}'s round {at} was counted twice");
            }
        }
    }

    fn pass(&mut self, ms: u64) {
        self.now = Time(self.now.0 + ms);
        if self.run.deadline().is_some_and(|deadline| deadline <= self.now) {
            let _ = self.step(Event::Tick);
        }
    }

    fn operate(&mut self, operation: Operation) {
        let n = self.clients.len() as u64;
        let choose = |k: u64, bag: &[Message]| (k % bag.len().max(1) as u64) as usize;
        match operation {
            Operation::Deliver(k) if !self.bag.is_empty() => {
                let message = self.bag.swap_remove(choose(k, &self.bag));
                self.deliver(message);
            }
            Operation::Repeat(k) if !self.bag.is_empty() => {
                let message = self.bag[choose(k, &self.bag)].clone();
                self.deliver(message);
            }
            Operation::Lose(k) if !self.bag.is_empty() => {
                self.bag.swap_remove(choose(k, &self.bag));
            }
            Operation::Deliver(_) | Operation::Repeat(_) | Operation::Lose(_) => {}
            Operation::Pass(ms) => self.pass(ms),
            Operation::Fold => self.fold(),
            Operation::Connect(k) => self.connect((k % n) as usize),
            Operation::Train(k) => self.trained((k % n) as usize),
            Operation::Fail(k) => {
                let index = (k % n) as usize;
                if let Some(task) = self.clients[index].training.take() {
                    let reason = "it failed".to_owned();
                    self.at_client(index, ParticipantEvent::Failed { round: task.round, reason });
                }
            }
            Operation::CrashCoordinator => {
                let before = self.run.clone();
                self.restart();
                assert_eq!(self.run, before, "the replayed run is another one");
            }
            Operation::CrashBeforeRecord => self.next_crash = Some(Crash::BeforeRecord),
            Operation::CrashAfterRecord => self.next_crash = Some(Crash::AfterRecord),
            Operation::CrashClient(k) => {
                let client = &mut self.clients[(k % n) as usize];
                if let Some(before) = &client.participant {
                    let fresh = Participant::new(run_id(), self.plan.digest());
                    let replayed =
                        fresh.replay(client.recorded.iter().cloned()).expect("a genuine record");
                    assert_eq!(replayed, *before, "the replayed participant is another one");
                    client.participant = Some(replayed);
                }
                client.training = None;
            }
            Operation::Exclude(k) => {
                let client = self.clients[(k % n) as usize].id.clone();
                let command = Command::Exclude { client, reason: "not ours".to_owned() };
                let _ = self.step(Event::Ordered { command });
            }
            Operation::Readmit(k) => {
                let client = self.clients[(k % n) as usize].id.clone();
                let command = Command::Readmit { client, reason: "ours".to_owned() };
                let _ = self.step(Event::Ordered { command });
            }
            Operation::Abort => {
                let command = Command::Abort { reason: "enough".to_owned() };
                let _ = self.step(Event::Ordered { command });
            }
        }
    }

    /// No more bad luck: the federation has to come to its end.
    fn mend(&mut self) {
        self.next_crash = None;
        for _ in 0..ROUNDS_TO_END {
            for index in 0..self.clients.len() {
                self.connect(index);
            }
            while let Some(message) = self.bag.pop() {
                self.deliver(message);
            }
            for index in 0..self.clients.len() {
                self.trained(index);
            }
            while let Some(message) = self.bag.pop() {
                self.deliver(message);
            }
            self.fold();
            if self.run.outcome().is_some() && self.clients.iter().all(Client::is_done) {
                return;
            }
            // Whoever failed his round does not come back to it.
            self.pass(10_000);
        }
        panic!("no end: {:?} {:?}", self.run.report().status, self.run.pending());
    }

    fn judge(&self) {
        let report = self.run.report();
        let ages = matches!(self.plan.aggregation.strategy, Strategy::Fedbuff { .. });
        let mut in_records = BTreeMap::new();
        let mut excluded = BTreeSet::new();
        for round in &report.history {
            for contribution in &round.contributions {
                let index = self.index(&contribution.client);
                let trained = round.round - contribution.staleness;
                assert_eq!(owner(&contribution.update), (trained, index));
                let named = self.plan.client(&contribution.client).expect("named");
                assert_eq!(contribution.weight, self.plan.weight(named));
                let weight = (contribution.weight, round.model.is_some());
                let earlier = in_records.insert((trained, index), weight);
                assert_eq!(earlier, None, "twice in the record");
                assert!(self.clients[index].released.contains(&trained), "from nowhere");
            }
            let out = round.missing.iter().filter(|(_, why)| why.starts_with("excluded"));
            excluded.extend(out.map(|(client, _)| self.index(client)));
        }
        for (key, weight) in &self.counted {
            let (declared, folded) = in_records[key];
            // FedBuff's weights sink with age.
            assert!(folded && (ages || declared == *weight), "{key:?} counted against the record");
        }
        for (key, (_, folded)) in &in_records {
            let counted = self.counted.contains_key(key);
            assert!(!folded || counted, "{key:?} recorded and lost");
        }
        for key in &self.told {
            let known = in_records.contains_key(key) || excluded.contains(&key.1);
            assert!(known, "{key:?} was told and is lost");
        }
    }
}

impl Client {
    fn is_done(&self) -> bool {
        self.participant.as_ref().is_none_or(|p| p.ended().is_some())
    }
}

fn list(draws: &mut Draws) -> Vec<Operation> {
    let n = draws.between(0, OPERATIONS);
    (0..n)
        .map(|_| {
            let k = draws.between(0, 1 << 20);
            match draws.between(0, 39) {
                0..=15 => Operation::Deliver(k),
                16 | 17 => Operation::Repeat(k),
                18 | 19 => Operation::Lose(k),
                20..=22 => Operation::Pass(k % 12_000),
                23..=25 => Operation::Fold,
                26..=29 => Operation::Connect(k),
                30..=33 => Operation::Train(k),
                34 => Operation::Fail(k),
                35 => Operation::CrashCoordinator,
                36 => Operation::CrashBeforeRecord,
                37 => Operation::CrashAfterRecord,
                38 => Operation::CrashClient(k),
                _ if k.is_multiple_of(40) => Operation::Abort,
                _ if k.is_multiple_of(7) => Operation::Exclude(k / 7),
                _ if k.is_multiple_of(5) => Operation::Readmit(k / 5),
                _ => Operation::Deliver(k),
            }
        })
        .collect()
}

/// Plays `operations` in the federation that `seed` draws; how many updates were counted.
fn play(seed: u64, operations: &[Operation]) -> usize {
    let mut world = World::new(&mut Draws::new(seed));
    for index in 0..world.clients.len() {
        world.connect(index);
    }
    for operation in operations {
        world.operate(*operation);
    }
    world.mend();
    world.judge();
    world.counted.len()
}

/// The list without what can be left out of it, one operation after the other.
fn shrink(seed: u64, mut operations: Vec<Operation>) -> Vec<Operation> {
    let fails = |list: &[Operation]| std::panic::catch_unwind(|| play(seed, list)).is_err();
    let mut at = 0;
    while at < operations.len() {
        let mut shorter = operations.clone();
        shorter.remove(at);
        if fails(&shorter) {
            operations = shorter;
        } else {
            at += 1;
        }
    }
    operations
}

#[test]
fn any_list_of_operations_ends_with_each_update_counted_once() {
    let n_lists = std::env::var("COMITY_SEEDS").map_or(LISTS, |n| 50 * n.parse::<u64>().unwrap());
    let (mut n_operations, mut n_counted) = (0, 0);
    for seed in 0..n_lists {
        let mut draws = Draws::new(seed ^ (1 << 40));
        let operations = list(&mut draws);
        n_operations += operations.len();
        match std::panic::catch_unwind(|| play(seed, &operations)) {
            Ok(n) => n_counted += n,
            Err(_) => panic!("seed {seed}: {:?}", shrink(seed, operations)),
        }
    }
    println!("operation lists: {n_lists}, {n_operations} operations, {n_counted} updates counted");
    assert!(n_counted as u64 > n_lists, "too few updates were counted to mean anything");
}

/// Found by the lists: an abort forgot the updates that had arrived in the open round.
#[test]
fn an_abort_in_the_middle_of_a_round_keeps_on_record_what_had_arrived() {
    let mut world = World::new(&mut Draws::new(3));
    for index in 0..world.clients.len() {
        world.connect(index);
    }
    while world.clients[0].training.is_none() {
        world.operate(Operation::Deliver(0));
    }
    world.trained(0);
    while !world.told.contains(&(1, 0)) {
        world.operate(Operation::Deliver(0));
    }
    world.operate(Operation::Abort);
    let report = world.run.report();
    assert_eq!(report.history[0].contributions[0].client, client_id(0));
    world.judge();
}
