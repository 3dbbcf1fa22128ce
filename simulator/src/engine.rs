//! The deployed machines of coordinator and clients under a virtual clock.
//!
//! Messages lie in one queue, ordered by the time at which they arrive and then by the order in
//! which they were sent.  A message takes one virtual millisecond; training takes none, so that a
//! plan's deadlines never depend on how fast the computer is.  When nothing is under way, the
//! clock jumps to the run's own deadline.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use comity_burn_models::{
    Device, LocalRound, RoundError, all_cores, check_units, evaluate, local_round, normalisation,
};
use comity_federation::{
    Accumulator, Aggregation, Circumstances, ClientId, ClientState, Country, Effect, Encoded,
    Event, Fold, ModelDigest, Outcome, Parameters, Participant, ParticipantEffect,
    ParticipantEvent, Plan, Policy, Rejection, RoundReport, Run, RunId, RunReport, SquareSum, Task,
    Time, Update, UpdateDigest,
};
use comity_privacy::{
    Charge, Ledger, LedgerEntry, Limit, Mechanism, PrivacyPlan, ReservationKey, Statement,
};

use crate::institutions::TrustedCoordinator;
use crate::{ClientRound, FederationData, NoiseMode, Progress, RoundScore, SimulationError};

/// The federation's name in the run's id.
const FEDERATION: &str = "simulation";
/// Test examples that the device holds at once.
const EVALUATION_BATCH: usize = 500;
/// How long a message is under way, in virtual milliseconds.
const MESSAGE_MS: u64 = 1;

/// A plan, a world's data, and how to run them.
pub struct Simulation<'a> {
    /// What the federation does.
    pub plan: &'a Plan,
    /// What it finds; its shards are those of the plan's clients.
    pub data: &'a FederationData,
    /// Seeds the simulated noise and batches.
    pub seed: u64,
    /// Where noise and batches come from.
    pub noise: NoiseMode,
    /// Where models are trained and scored.
    pub device: &'a Device,
}

/// How a simulation ended.
#[derive(Clone, Debug)]
pub struct SimulationResult {
    /// What the coordinator's `run show` would say; times are virtual.
    pub report: RunReport,
    /// One score a finished round.
    pub rounds: Vec<RoundScore>,
    /// The last model.
    pub model: Parameters,
    /// Every client's ledger.
    pub ledgers: BTreeMap<ClientId, Ledger>,
    /// What was spent on whole institutions, where the plan protects them.
    pub institutions: Option<Statement>,
}

/// Something under way between coordinator and clients.
enum Message {
    ToCoordinator(Event),
    ToClient(ClientId, ParticipantEvent),
}

/// One institution: what `comity-client` keeps, in memory.
struct Client {
    participant: Participant,
    /// Its place in the plan and in the data.
    index: usize,
    policy: Policy,
    /// What it keeps of its own between the rounds.
    state: Option<ClientState>,
    privacy: Option<PrivacyPlan>,
    ledger: Ledger,
    entries: Vec<LedgerEntry>,
}

impl Simulation<'_> {
    /// Runs the plan to its end.
    ///
    /// A run that the rules end early (no quorum, say) is a result too: its report says why.
    ///
    /// # Errors
    /// [`SimulationError`] if the plan cannot be run on these data at all.
    pub fn run(
        &self,
        observe: &mut dyn FnMut(Progress<'_>),
    ) -> Result<SimulationResult, SimulationError> {
        let mut engine = Engine::new(self)?;
        engine.gather()?;
        while engine.run.outcome().is_none() {
            engine.advance(observe)?;
        }
        Ok(engine.finish())
    }
}

struct Engine<'a> {
    simulation: &'a Simulation<'a>,
    run: Run,
    clients: BTreeMap<ClientId, Client>,
    /// Where whole institutions are protected.
    trusted: Option<TrustedCoordinator>,
    now: Time,
    /// All messages take equally long, so the order of sending is the order of arrival.
    messages: VecDeque<(Time, Message)>,
    /// Clients that have a round to train, in the order of their invitations.
    due: Vec<(ClientId, Task)>,
    model: Arc<Parameters>,
    /// The models from which somebody may still train.
    bases: BTreeMap<ModelDigest, Arc<Parameters>>,
    updates: BTreeMap<UpdateDigest, Vec<u8>>,
    rounds: Vec<RoundScore>,
    round_started: Instant,
}

impl<'a> Engine<'a> {
    fn new(simulation: &'a Simulation<'a>) -> Result<Self, SimulationError> {
        let (plan, data) = (simulation.plan, simulation.data);
        let in_plan = plan.cohort.clients.iter().map(|named| &named.id);
        if !in_plan.eq(data.clients()) {
            return Err(SimulationError::Shards {
                in_plan: plan.cohort.clients.len(),
                in_data: data.n_clients(),
            });
        }
        let model = plan.manifest()?.initial_parameters(plan.seed);
        let now = Time::default();
        let id = RunId::derive(&plan.name, &plan.digest(), FEDERATION, now);
        let run = Run::new(id, plan.clone(), model.digest(), now);
        let mut clients = BTreeMap::new();
        // Where whole institutions are protected, a client's own ledger knows no DP.
        let budget = plan.budget()?.filter(|_| !plan.draws_in_secret());
        let plans = plan.privacy_plans()?;
        for (index, (named, privacy)) in plan.cohort.clients.iter().zip(plans).enumerate() {
            let limit = Limit { budget, exempt_allowed: budget.is_none() };
            clients.insert(
                named.id.clone(),
                Client {
                    participant: Participant::new(run.id().clone(), run.plan_digest()),
                    index,
                    // A simulated institution allows exactly what the plan asks for.
                    policy: Policy::of_plan(plan, named, budget),
                    state: None,
                    privacy,
                    ledger: Ledger::new(limit),
                    entries: Vec::new(),
                },
            );
        }
        Ok(Self {
            simulation,
            run,
            clients,
            trusted: TrustedCoordinator::new(plan)?,
            now,
            messages: VecDeque::new(),
            due: Vec::new(),
            model: Arc::new(model),
            bases: BTreeMap::new(),
            updates: BTreeMap::new(),
            rounds: Vec::new(),
            round_started: Instant::now(),
        })
    }

    /// Every institution reviews the plan.
    fn gather(&mut self) -> Result<(), SimulationError> {
        for named in &self.simulation.plan.cohort.clients {
            let client = &self.clients[&named.id];
            let plan = self.simulation.plan;
            let shard = self.simulation.data.shard(client.index);
            // No deployed institution agrees that the noise is added elsewhere; a simulated one does.
            let reviewed = match plan.draws_in_secret() {
                true => Ok(()),
                false => client
                    .policy
                    .review(plan, &named.id, Circumstances::default())
                    .map_err(|e| e.to_string()),
            };
            let event = match reviewed
                .and_then(|()| check_units(plan, &shard).map_err(|e| e.to_string()))
            {
                Ok(()) => ParticipantEvent::Accepted,
                Err(reason) => ParticipantEvent::Declined { reason },
            };
            self.step_client(&named.id, event)?;
        }
        Ok(())
    }

    /// Delivers the next message; without one, trains who is due; without either, lets time pass.
    fn advance(&mut self, observe: &mut dyn FnMut(Progress<'_>)) -> Result<(), SimulationError> {
        // Training takes no virtual time, so it comes before anything that arrives later.
        let arrives_now = self.messages.front().is_some_and(|(at, _)| *at <= self.now);
        if !arrives_now && !self.due.is_empty() {
            return self.train(observe);
        }
        let next = self.messages.front().map(|(at, _)| *at);
        match (next, self.run.deadline()) {
            (Some(at), deadline) if deadline.is_none_or(|deadline| at < deadline) => {
                let (at, message) = self.messages.pop_front().expect("it was seen");
                self.now = at;
                match message {
                    Message::ToCoordinator(event) => self.receive(event, observe),
                    Message::ToClient(client, event) => self.step_client(&client, event),
                }
            }
            (_, Some(deadline)) => {
                self.now = deadline;
                self.step_run(Event::Tick, observe)
            }
            (_, None) => unreachable!("a run that waits for nothing has ended"),
        }
    }

    fn step_client(
        &mut self,
        id: &ClientId,
        event: ParticipantEvent,
    ) -> Result<(), SimulationError> {
        use ParticipantEffect as Do;
        let client = self.clients.get_mut(id).expect("only named clients are addressed");
        for effect in client.participant.step(event)? {
            let answer = match effect {
                // Nothing survives a simulation, so nothing has to be made durable.
                Do::Record => continue,
                Do::CheckIn { plan } => Event::CheckedIn { client: id.clone(), plan },
                Do::Decline { reason } => Event::Declined { client: id.clone(), reason },
                Do::Train(task) => {
                    self.due.push((id.clone(), task));
                    continue;
                }
                Do::Submit { contribution } => {
                    Event::Submitted { client: id.clone(), contribution }
                }
                Do::Withdraw { round, reason } => {
                    Event::Withdrew { client: id.clone(), round, reason }
                }
            };
            self.send(Message::ToCoordinator(answer));
        }
        Ok(())
    }

    /// What a client says; like the deployed service, the coordinator answers a refusal and goes on.
    fn receive(
        &mut self,
        event: Event,
        observe: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), SimulationError> {
        let Event::Submitted { client, contribution } = &event else {
            return match self.run.step(event, self.now) {
                Ok(effects) => self.perform(effects, observe),
                Err(_) => Ok(()),
            };
        };
        let (client, round) = (client.clone(), contribution.round);
        let refusal = self.run.admit(&client, contribution).err().or_else(|| {
            let settings = &self.simulation.plan.aggregation;
            let mut squares = SquareSum::default();
            if settings.update_norm_max_l2.is_some() && round > 0 {
                let mut words = vec![0; 4 * contribution.n_parameters as usize];
                let all = 0..contribution.n_parameters as usize;
                let encoded = &self.updates[&contribution.update];
                contribution.encoding.decode(&all, encoded, &mut words);
                squares.add(&words);
            }
            settings.check_norm(squares.norm()).err()
        });
        self.send(Message::ToClient(client.clone(), ParticipantEvent::Settled { round }));
        match refusal {
            None => self.step_run(event, observe),
            Some(refusal @ (Rejection::Copied | Rejection::NormPassed { .. })) => {
                let reason = refusal.to_string();
                self.step_run(Event::Refused { client, round, reason }, observe)
            }
            Some(_) => Ok(()),
        }
    }

    fn step_run(
        &mut self,
        event: Event,
        observe: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), SimulationError> {
        let effects = self.run.step(event, self.now)?;
        self.perform(effects, observe)
    }

    fn perform(
        &mut self,
        effects: Vec<Effect>,
        observe: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), SimulationError> {
        for effect in effects {
            match effect {
                Effect::Record => {}
                Effect::Draw { round, present } => {
                    let Simulation { noise, seed, .. } = *self.simulation;
                    let trusted = self.trusted.as_mut().expect("the plan draws in secret");
                    let cohort = trusted.draw(self.run.id(), round, &present, noise, seed)?;
                    self.round_started = Instant::now();
                    self.step_run(Event::Drawn { round, cohort }, observe)?;
                }
                Effect::Invite { round, cohort, model, closes } => {
                    self.round_started = Instant::now();
                    self.bases.insert(model, Arc::clone(&self.model));
                    for client in cohort {
                        let task = Task {
                            run: self.run.id().clone(),
                            round,
                            plan: self.run.plan_digest(),
                            model,
                            closes,
                        };
                        self.send(Message::ToClient(client, ParticipantEvent::Assigned { task }));
                    }
                }
                Effect::Aggregate { round, updates, .. } => {
                    self.aggregate(round, &updates, observe)?;
                }
                Effect::Finish(outcome) => {
                    let status = match outcome {
                        Outcome::Finished(_) => "finished".to_owned(),
                        Outcome::Aborted(reason) => format!("aborted: {reason}"),
                    };
                    let ids: Vec<ClientId> = self.clients.keys().cloned().collect();
                    for client in ids {
                        let event = ParticipantEvent::RunEnded { status: status.clone() };
                        self.step_client(&client, event)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Rooms 1 to 5 for every client that is due.
    ///
    /// One after the other: each uses all cores by itself, and each draws its own randomness, so
    /// the order changes nothing.
    fn train(&mut self, observe: &mut dyn FnMut(Progress<'_>)) -> Result<(), SimulationError> {
        for (id, task) in std::mem::take(&mut self.due) {
            let client = self.clients.get_mut(&id).expect("only named clients are addressed");
            let base = Arc::clone(&self.bases[&task.model]);
            let event = match client.train(&id, &task, self.simulation, &base, observe) {
                Ok(update) => {
                    let contribution = update.contribution().clone();
                    self.updates.insert(contribution.update, update.delta_bytes().to_vec());
                    ParticipantEvent::Trained { contribution }
                }
                // As at a real client: the round goes on without it, and its record says why.
                Err(error) => {
                    ParticipantEvent::Failed { round: task.round, reason: error.to_string() }
                }
            };
            self.step_client(&id, event)?;
        }
        Ok(())
    }

    /// Rooms 9 and 10: the exact sum, the server's step, and the score of the new model.
    fn aggregate(
        &mut self,
        round: u32,
        updates: &[(UpdateDigest, u64)],
        observe: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), SimulationError> {
        let plan = self.simulation.plan;
        if round == 0 {
            return self.conclude(updates, observe);
        }
        // An update holds the trained parameters, the first ones; the frozen ones stay.
        let n_trainable = plan.manifest()?.n_trainable();
        let deltas: Vec<&[u8]> =
            updates.iter().map(|(digest, _)| self.updates[digest].as_slice()).collect();
        let model = if let Some(trusted) = &mut self.trusted {
            let (next, digest) =
                trusted.step(&plan.aggregation, &self.model, n_trainable, &deltas)?;
            self.model = Arc::new(next);
            digest
        } else {
            let weights = updates.iter().map(|(_, weight)| *weight).collect();
            let mut deltas = Encoded {
                updates: &deltas,
                encoding: plan.update_encoding(round),
                n_coordinates: n_trainable,
            };
            let next = next_model(&plan.aggregation, &self.model, weights, &mut deltas);
            self.model = Arc::new(next);
            self.model.digest()
        };
        let evaluation = evaluate(
            &plan.model,
            &self.model,
            &self.simulation.data.test,
            normalisation(&plan.data),
            self.simulation.device,
            EVALUATION_BATCH,
        )?;
        let delta = plan.budget()?.map(|budget| budget.delta.get());
        let shared = self.trusted.as_ref().map(TrustedCoordinator::epsilon);
        // Clients of one size have spent the same, and each reckoning is dear.
        let mut known: Vec<(Vec<Mechanism>, f64)> = Vec::new();
        let mut epsilon = |client: &Client| {
            if shared.is_some() {
                return shared;
            }
            let delta = delta?;
            let used: Vec<Mechanism> =
                client.ledger.runs().flat_map(|run| run.used.iter().copied()).collect();
            if let Some((_, epsilon)) = known.iter().find(|(mechanisms, _)| *mechanisms == used) {
                return Some(*epsilon);
            }
            let epsilon = client.ledger.spent_at(delta).epsilon;
            known.push((used, epsilon));
            Some(epsilon)
        };
        let epsilons: BTreeMap<&ClientId, Option<f64>> =
            self.clients.iter().map(|(id, client)| (id, epsilon(client))).collect();
        let record = self.run.report().history.pop().expect("a round is being aggregated");
        let clients = client_rounds(&record, &epsilons);
        let mut by_country: BTreeMap<Country, Option<f64>> = BTreeMap::new();
        for (id, epsilon) in &epsilons {
            let largest = by_country.entry(id.country()).or_default();
            *largest = largest.map_or(*epsilon, |largest| epsilon.map(|e| e.max(largest)));
        }
        let mut bytes: BTreeMap<Country, u64> = BTreeMap::new();
        for contribution in &record.contributions {
            *bytes.entry(contribution.client.country()).or_default() += contribution.bytes;
        }
        let score = RoundScore {
            round,
            accuracy: evaluation.accuracy,
            loss: evaluation.loss,
            model,
            seconds: self.round_started.elapsed().as_secs_f64(),
            clock_s: seconds(self.now),
            n_contributions: record.contributions.len() as u32,
            n_missing: record.missing.len() as u32,
            epsilon: by_country,
            bytes,
            fairness: None,
        };
        observe(Progress::Round { score: &score, clients: &clients });
        self.rounds.push(score);
        self.step_run(Event::Aggregated { round, model, statistics: None }, observe)?;
        self.forget();
        Ok(())
    }

    /// Drops the models and updates that nobody needs any more.
    fn forget(&mut self) {
        let (mut models, mut updates) = self.run.blobs_needed();
        models.extend(self.due.iter().map(|(_, task)| task.model));
        for (_, message) in &self.messages {
            match message {
                Message::ToCoordinator(Event::Submitted { contribution, .. }) => {
                    updates.insert(contribution.update);
                }
                Message::ToClient(_, ParticipantEvent::Assigned { task }) => {
                    models.insert(task.model);
                }
                _ => {}
            }
        }
        self.bases.retain(|model, _| models.contains(model));
        self.updates.retain(|update, _| updates.contains(update));
    }

    /// Rooms 9 and 10 of round 0: the sums of the statistics, and the first model with what they say.
    fn conclude(
        &mut self,
        updates: &[(UpdateDigest, u64)],
        observe: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), SimulationError> {
        let plan = self.simulation.plan;
        let n_values = self.updates[&updates[0].0].len() / 4;
        let mut sum = Accumulator::new(n_values);
        for (digest, weight) in updates {
            sum.add(&self.updates[digest], *weight);
        }
        let sums = sum.into_sum();
        if let Some((start, values)) = plan.standardisation(&sums)? {
            let mut model = self.model.values().to_vec();
            model[start..start + values.len()].copy_from_slice(&values);
            self.model = Arc::new(Parameters::new(model));
        }
        let model = self.model.digest();
        self.step_run(Event::Aggregated { round: 0, model, statistics: Some(sums) }, observe)?;
        self.forget();
        Ok(())
    }

    fn send(&mut self, message: Message) {
        let at = Time(self.now.0.saturating_add(MESSAGE_MS));
        self.messages.push_back((at, message));
    }

    fn finish(self) -> SimulationResult {
        SimulationResult {
            report: self.run.report(),
            rounds: self.rounds,
            model: Arc::unwrap_or_clone(self.model),
            institutions: self.trusted.map(|trusted| trusted.statement(self.simulation.noise)),
            ledgers: self.clients.into_iter().map(|(id, client)| (id, client.ledger)).collect(),
        }
    }
}

/// Everybody's part in the round of `record`, in the order of their ids.
fn client_rounds(
    record: &RoundReport,
    epsilons: &BTreeMap<&ClientId, Option<f64>>,
) -> Vec<ClientRound> {
    let round = |client: &ClientId| ClientRound {
        round: record.round,
        client: client.clone(),
        missing: None,
        staleness: 0,
        bytes: 0,
        epsilon: epsilons.get(client).copied().flatten(),
        arrived_s: None,
        accuracy: None,
        loss: None,
    };
    let contributed = record.contributions.iter().map(|c| ClientRound {
        staleness: c.staleness,
        bytes: c.bytes,
        arrived_s: Some(seconds(c.at)),
        ..round(&c.client)
    });
    let missing = record
        .missing
        .iter()
        .map(|(client, reason)| ClientRound { missing: Some(reason.clone()), ..round(client) });
    let mut clients: Vec<ClientRound> = contributed.chain(missing).collect();
    clients.sort_by(|a, b| a.client.cmp(&b.client));
    clients
}

fn seconds(time: Time) -> f64 {
    time.0 as f64 / 1000.0
}

/// `model` after the strategy's step on `updates`, which hold the trained parameters: the first ones.
fn next_model(
    settings: &Aggregation,
    model: &Parameters,
    weights: Vec<u64>,
    updates: &mut Encoded<'_>,
) -> Parameters {
    let n_trainable = updates.n_coordinates;
    let (trained, frozen) = model.values().split_at(n_trainable);
    let Ok(mut fold) = Fold::new(settings, weights, n_trainable, updates);
    let mut next = Vec::with_capacity(model.values().len());
    for range in fold.chunks() {
        let Ok(values) = fold.step(range.clone(), &trained[range], updates);
        next.extend(values);
    }
    next.extend(frozen);
    Parameters::new(next)
}

impl Client {
    /// Debits the ledger, trains, releases, and commits: only then may the update leave.
    fn train(
        &mut self,
        id: &ClientId,
        task: &Task,
        simulation: &Simulation<'_>,
        base: &Parameters,
        observe: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Update, RoundError> {
        let key = ReservationKey { run: task.run.to_string(), round: task.round };
        let (charge, privacy) = match &self.privacy {
            Some(privacy) => {
                let randomness = simulation.noise.randomness(simulation.seed, id, task.round)?;
                let charge = match task.round {
                    0 => privacy.analytics_charge(&randomness)?,
                    _ => privacy.charge(&randomness),
                };
                (charge, Some((privacy, randomness)))
            }
            None => (Charge::exempt(task.plan.0), None),
        };
        let reservation = self.ledger.reserve(&mut self.entries, key, charge)?;
        let shard = simulation.data.shard(self.index);
        let round = LocalRound {
            plan: simulation.plan,
            round: task.round,
            client: id,
            base,
            dataset: &shard,
            device: simulation.device,
            n_threads: all_cores(),
        };
        let state = self.state.as_ref();
        let trained = local_round(&round, state, privacy, reservation, &mut |step, n_steps| {
            observe(Progress::Step { round: task.round, client: id, step, n_steps });
        })?;
        let update = Update::new(task, simulation.plan, id, trained.release);
        let bytes = update.contribution().update.0;
        self.ledger.commit(&mut self.entries, update.release.receipt(), bytes)?;
        self.state = trained.state;
        Ok(update)
    }
}
