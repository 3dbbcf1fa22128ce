//! The deployed machines of coordinator and clients under a virtual clock.
//!
//! What is under way lies in one queue ([`queue`]), ordered by the moment at which it arrives and then by
//! the order in which it was sent.  How long a message or a training takes is the world's
//! ([`Conduct`](crate::Conduct)), never this computer's, so that a plan's deadlines do not depend on it.
//! When nothing arrives before the run's own deadline, the clock jumps there.
//!
//! When a training ends is known when it begins, so it is computed only when its end comes up, together
//! with those that end next ([`wave`]): results wait for their moment in bounded memory.

mod checkpoint;
mod client;
mod fold;
mod queue;
mod ranks;
mod resume;
mod scoring;
mod states;
mod updates;
mod wave;

use std::collections::BTreeMap;
use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use comity_burn_models::{Device, all_cores, check_units};
use comity_federation::{
    Circumstances, ClientId, Contribution, Effect, Event, ModelDigest, Outcome, Parameters,
    Participant, ParticipantEffect, ParticipantEvent, Plan, Policy, Rejection, Run, RunId,
    RunReport, ServerStep, SquareSum, Task, Time,
};
use comity_privacy::{Budget, Ledger, Limit, Statement};

use self::checkpoint::{Checkpoints, Digest, Line};
use self::client::{Client, Entries, Reckoned, Trained, Work};
use self::queue::{Message, Moment, Next, Queue, Training};
pub use self::ranks::{OneProcess, Ranks};
use self::scoring::Scoring;
use self::states::States;
use self::updates::{RoundSum, UpdateStore};
use self::wave::{Job, Ready};
use crate::conduct::Behaviour;
use crate::institutions::TrustedCoordinator;
use crate::{Conduct, Fairness, FederationData, NoiseMode, Progress, RoundScore, SimulationError};

/// The federation's name in the run's id.
const FEDERATION: &str = "simulation";
/// Most results that wait for their moment, and about how many bytes of updates they may be.
const WAVE_MAX: usize = 1024;
const WAVE_BYTES_MAX: u64 = 64 << 20;

/// A plan, a world's data, and how to run them.
pub struct Simulation<'a> {
    /// What the federation does.
    pub plan: &'a Plan,
    /// What it finds; its shards are those of the plan's clients.
    pub data: &'a FederationData,
    /// Where models are trained and scored.
    pub device: &'a Device,
    /// Seeds the simulated noise and batches, and how clients behave.
    pub seed: u64,
    /// Where noise and batches come from.
    pub noise: NoiseMode,
    /// How clients behave.
    pub conduct: Conduct,
    /// On how many cores; the result does not depend on it.
    pub n_threads: NonZero<usize>,
    /// So many epochs each client trains the last model on, by itself, and scores what it gets on the
    /// records that it keeps for testing; `None`: that is not done.
    pub fine_tune: Option<NonZero<u32>>,
    /// A folder in which the simulation notes after each round where it is; `None`: nowhere.
    pub checkpoint: Option<&'a Path>,
    /// Whether it goes on from what is noted there; otherwise that is forgotten.
    pub resume: bool,
    /// Set to `true` by somebody else, it ends the simulation at the next opportunity.
    pub stop: Option<&'a AtomicBool>,
}

/// How a simulation ended.
#[derive(Clone, Debug)]
pub struct SimulationResult {
    /// What the coordinator's `run show` would say; times are virtual.
    pub report: RunReport,
    /// One score a finished round.
    pub rounds: Vec<RoundScore>,
    /// The last model, without what the server remembers behind it.
    pub model: Parameters,
    /// Every client's ledger.
    pub ledgers: BTreeMap<ClientId, Ledger>,
    /// What was spent on whole institutions, where the plan protects them.
    pub institutions: Option<Statement>,
    /// How the last model does at each client after fine-tuning there; `None` where none was asked for.
    pub fine_tuned: Option<Fairness>,
}

impl<'a> Simulation<'a> {
    /// A simulation of `plan` over `data` on `device`: seed 1, seeded noise, honest clients that take no
    /// time, all cores.
    #[must_use]
    pub fn new(plan: &'a Plan, data: &'a FederationData, device: &'a Device) -> Self {
        Self {
            plan,
            data,
            device,
            seed: 1,
            noise: NoiseMode::Seeded,
            conduct: Conduct::default(),
            n_threads: all_cores(),
            fine_tune: None,
            checkpoint: None,
            resume: false,
            stop: None,
        }
    }

    /// Runs the plan to its end.
    ///
    /// A run that the rules end early (no quorum, say) is a result too: its report says why.
    ///
    /// # Errors
    /// [`SimulationError`] if the plan cannot be run on these data at all, or if it was told to stop.
    pub fn run(
        &self,
        observe: &mut dyn FnMut(Progress<'_>),
    ) -> Result<SimulationResult, SimulationError> {
        self.run_on(&OneProcess, observe)
    }

    /// As [`run`](Self::run), in several processes, each of which calls this and gets the same result; the
    /// ledgers are those of the clients that it trained.
    ///
    /// # Errors
    /// Also [`SimulationError::Plan`] if the processes would have to exchange whole updates.
    ///
    /// # Panics
    /// If a checkpoint is asked for: no process has everything that it would hold.
    pub fn run_on(
        &self,
        ranks: &dyn Ranks,
        observe: &mut dyn FnMut(Progress<'_>),
    ) -> Result<SimulationResult, SimulationError> {
        assert!(ranks.size() == 1 || self.checkpoint.is_none(), "checkpoints are of one process");
        let mut engine = Engine::new(self, ranks)?;
        if !engine.resume(observe)? {
            engine.gather()?;
        }
        while engine.run.outcome().is_none() {
            engine.advance(observe)?;
        }
        engine.finish()
    }

    fn is_stopped(&self) -> bool {
        self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed))
    }
}

struct Engine<'a> {
    simulation: &'a Simulation<'a>,
    ranks: &'a dyn Ranks,
    /// Threads of all processes.
    n_workers: usize,
    run: Run,
    behaviour: Behaviour,
    scoring: Scoring<'a>,
    /// In the plan's order, as `clients` and everything that speaks of a client's place.
    ids: Vec<ClientId>,
    positions: BTreeMap<ClientId, usize>,
    clients: Vec<Client>,
    /// What each client may spend; `None` without DP of its own, as where whole institutions are protected.
    budget: Option<Budget>,
    reckoned: Reckoned,
    /// Where whole institutions are protected.
    trusted: Option<TrustedCoordinator>,
    now: Time,
    queue: Queue,
    /// Results that wait for their moment.
    trained: BTreeMap<Moment, Result<Ready, String>>,
    states: States,
    checkpoints: Option<Checkpoints>,
    /// What was recorded since the last checkpoint.
    lines: Vec<Line>,
    /// Where clients' states are in the last checkpoint.
    saved_states: BTreeMap<usize, Digest>,
    /// Of the data, where checkpoints are written.
    data_digest: Digest,
    model: Arc<Parameters>,
    /// The models from which somebody may still train.
    bases: BTreeMap<ModelDigest, Arc<Parameters>>,
    updates: UpdateStore,
    /// Where all that counts is the sum.
    sum: Option<RoundSum>,
    /// The server's.
    step: ServerStep,
    /// Coordinates of an update.
    n_coordinates: usize,
    rounds: Vec<RoundScore>,
    round_started: Instant,
}

impl<'a> Engine<'a> {
    fn new(simulation: &'a Simulation<'a>, ranks: &'a dyn Ranks) -> Result<Self, SimulationError> {
        let Simulation { plan, data, device, seed, .. } = *simulation;
        let in_plan = plan.cohort.clients.iter().map(|named| &named.id);
        if !in_plan.eq(data.clients()) {
            return Err(SimulationError::Shards {
                in_plan: plan.cohort.clients.len(),
                in_data: data.n_clients(),
            });
        }
        let step = plan.server_step()?;
        let n_coordinates = step.n_shared();
        let model = plan.manifest()?.initial_parameters(plan.seed);
        ranks::check(ranks, plan)?;
        let n_workers = ranks::n_workers(ranks, simulation.n_threads);
        let now = Time::default();
        let id = RunId::derive(&plan.name, &plan.digest(), FEDERATION, now);
        let run = Run::new(id, plan.clone(), model.digest(), now);
        // Where whole institutions are protected, a client's own ledger knows no DP.
        let budget = plan.budget()?.filter(|_| !plan.draws_in_secret());
        let limit = Limit { budget, exempt_allowed: budget.is_none() };
        let new_client = |privacy| Client {
            participant: Participant::new(run.id().clone(), run.plan_digest()),
            privacy,
            ledger: Ledger::new(limit),
            epsilon: budget.map(|_| 0.0),
            entries: match simulation.checkpoint {
                Some(_) => Entries::Kept(Vec::new()),
                None => Entries::Forgotten,
            },
            died_in: None,
        };
        let clients = plan.privacy_plans()?.into_iter().map(new_client).collect();
        let ids: Vec<ClientId> = plan.cohort.clients.iter().map(|named| named.id.clone()).collect();
        let behaviour = Behaviour::new(&simulation.conduct, ids.len(), seed)?;
        Ok(Self {
            simulation,
            ranks,
            n_workers,
            scoring: Scoring::new(plan, data, device, behaviour.trigger())?,
            behaviour,
            positions: ids.iter().cloned().zip(0..).collect(),
            ids,
            clients,
            budget,
            reckoned: Reckoned::default(),
            trusted: TrustedCoordinator::new(plan)?,
            run,
            now,
            queue: Queue::default(),
            trained: BTreeMap::new(),
            states: States::new(data.n_clients(), plan.client_state_len()?)?,
            checkpoints: None,
            lines: Vec::new(),
            saved_states: BTreeMap::new(),
            data_digest: simulation.checkpoint.map(|_| data.digest()).unwrap_or_default(),
            model: Arc::new(model),
            bases: BTreeMap::new(),
            updates: UpdateStore::default(),
            sum: plan.sums_on_arrival().then(|| RoundSum::new(n_coordinates)),
            step,
            n_coordinates,
            rounds: Vec::new(),
            round_started: Instant::now(),
        })
    }

    /// Every institution reviews the plan.
    fn gather(&mut self) -> Result<(), SimulationError> {
        let plan = self.simulation.plan;
        for (position, named) in plan.cohort.clients.iter().enumerate() {
            // No deployed institution agrees that the noise is added elsewhere; a simulated one does.
            // Otherwise it allows exactly what the plan asks for.
            let reviewed = match plan.draws_in_secret() {
                true => Ok(()),
                false => Policy::of_plan(plan, named, self.budget)
                    .review(plan, &named.id, Circumstances::default())
                    .map_err(|e| e.to_string()),
            };
            let shard = self.simulation.data.shard(position);
            let event = match reviewed
                .and_then(|()| check_units(plan, &shard).map_err(|e| e.to_string()))
            {
                Ok(()) => ParticipantEvent::Accepted,
                Err(reason) => ParticipantEvent::Declined { reason },
            };
            self.step_client(position, event)?;
        }
        Ok(())
    }

    /// Lets the next thing arrive or, where the run's deadline comes before, time pass.
    fn advance(&mut self, observe: &mut dyn FnMut(Progress<'_>)) -> Result<(), SimulationError> {
        if self.simulation.is_stopped() {
            return Err(SimulationError::Interrupted);
        }
        match (self.queue.next_at(), self.run.deadline()) {
            (Some(at), deadline) if deadline.is_none_or(|deadline| at < deadline) => {
                let training = self.queue.trainings().next().map(|(moment, _)| moment);
                if training.is_some_and(|m| m.0 == at && !self.trained.contains_key(&m)) {
                    self.train(observe)?;
                }
                let (at, next) = self.queue.pop().expect("it was seen");
                self.now = at;
                match next {
                    Next::Message(Message::ToCoordinator(event)) => self.receive(event, observe),
                    Next::Message(Message::ToClient(client, event)) => {
                        self.step_client(client, event)
                    }
                    Next::Message(Message::Restarted(client)) => self.restart(client),
                    Next::Trained(moment, training) => self.ended(moment, &training),
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
        client: usize,
        event: ParticipantEvent,
    ) -> Result<(), SimulationError> {
        let kept = self.checkpoints.is_some().then(|| event.clone());
        let effects = self.clients[client].participant.step(event)?;
        if let Some(event) = kept.filter(|_| !effects.is_empty()) {
            self.lines.push(Line::Client(client, event));
        }
        self.perform_client(client, effects)
    }

    fn perform_client(
        &mut self,
        client: usize,
        effects: Vec<ParticipantEffect>,
    ) -> Result<(), SimulationError> {
        use ParticipantEffect as Do;
        for effect in effects {
            let id = self.ids[client].clone();
            let (n_bytes, answer) = match effect {
                Do::Record => continue,
                Do::CheckIn { plan } => (0, Event::CheckedIn { client: id, plan }),
                Do::Decline { reason } => (0, Event::Declined { client: id, reason }),
                Do::Train(task) => {
                    self.begin(client, task)?;
                    continue;
                }
                Do::Submit { contribution } => {
                    (contribution.delta_bytes(), Event::Submitted { client: id, contribution })
                }
                Do::Withdraw { round, reason } => {
                    (0, Event::Withdrew { client: id, round, reason })
                }
            };
            let at = self.later(self.behaviour.up_ms(client, n_bytes));
            self.queue.send(at, Message::ToCoordinator(answer));
        }
        Ok(())
    }

    /// A client begins the round of `task`, unless this is where it dies.
    fn begin(&mut self, client: usize, task: Task) -> Result<(), SimulationError> {
        let plan = self.simulation.plan;
        let named = &plan.cohort.clients[client];
        let passes = u64::from(plan.steps_per_round(named)) * u64::from(plan.training.batch);
        let takes = self.behaviour.training_ms(client, passes);
        let dies = self.behaviour.fate(client, task.round).crashes_after;
        let is_mine = self.is_mine(client);
        let state = &mut self.clients[client];
        if let Some(part) = dies.filter(|_| state.died_in != Some(task.round)) {
            state.died_in = Some(task.round);
            // A real client's ledger was debited before it began.
            if is_mine {
                drop(state.debit(self.simulation, &self.ids[client], &task)?);
            }
            let lost = (part * takes as f64) as u64;
            let at = self.later(lost.saturating_add(self.behaviour.restart_ms()));
            self.queue.send(at, Message::Restarted(client));
        } else {
            let ends = self.later(takes);
            if let Some(given_up) = self.queue.train(ends, Training { client, task }) {
                self.trained.remove(&given_up);
            }
        }
        Ok(())
    }

    /// A client that had died replays its journal, calls, and gets its task again if it is still wanted.
    fn restart(&mut self, client: usize) -> Result<(), SimulationError> {
        let pending = self.clients[client].participant.pending();
        self.perform_client(client, pending.into_iter().collect())?;
        if let Some(task) = self.run.task(&self.ids[client]) {
            self.assign(client, task);
        }
        Ok(())
    }

    /// A training's moment has come.
    fn ended(&mut self, moment: Moment, training: &Training) -> Result<(), SimulationError> {
        let result = self.trained.remove(&moment).expect("it was trained when its moment came");
        let event = match result {
            Ok(Ready { contribution, state, .. }) => {
                if let Some(state) = state {
                    self.states.set(training.client, state)?;
                }
                ParticipantEvent::Trained { contribution }
            }
            Err(reason) => ParticipantEvent::Failed { round: training.task.round, reason },
        };
        self.step_client(training.client, event)
    }

    /// What a client says; like the deployed service, the coordinator answers a refusal and goes on.
    fn receive(
        &mut self,
        event: Event,
        observe: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), SimulationError> {
        let Event::Submitted { client, contribution } = &event else {
            return match self.step(event) {
                Ok(effects) => self.perform(effects, observe),
                Err(_) => Ok(()),
            };
        };
        let (client, contribution) = (client.clone(), contribution.clone());
        let round = contribution.round;
        let refusal = self.refusal(&client, &contribution)?;
        let position = self.positions[&client];
        let at = self.later(self.behaviour.down_ms(position, 0));
        let settled = ParticipantEvent::Settled { round };
        self.queue.send(at, Message::ToClient(position, settled));
        match refusal {
            None => {
                let effects = self.step(event)?;
                if !effects.is_empty() && round > 0 {
                    self.add(position, &contribution)?;
                }
                self.perform(effects, observe)
            }
            Some(refusal @ (Rejection::Copied | Rejection::NormPassed { .. })) => {
                let reason = refusal.to_string();
                self.step_run(Event::Refused { client, round, reason }, observe)
            }
            Some(_) => Ok(()),
        }
    }

    /// Why an update is not accepted, if it is not.
    fn refusal(
        &self,
        client: &ClientId,
        contribution: &Contribution,
    ) -> Result<Option<Rejection>, SimulationError> {
        if let Err(refusal) = self.run.admit(client, contribution) {
            return Ok(Some(refusal));
        }
        let settings = &self.simulation.plan.aggregation;
        if settings.update_norm_max_l2.is_none() || contribution.round == 0 {
            return Ok(None);
        }
        let mut squares = SquareSum::default();
        squares.add(&self.words(contribution)?);
        Ok(settings.check_norm(squares.norm()).err())
    }

    /// An update's coordinates, little-endian, four bytes each.
    fn words(&self, contribution: &Contribution) -> Result<Vec<u8>, SimulationError> {
        let encoded = self.updates.bytes(&contribution.update)?;
        if contribution.encoding.is_exact() {
            return Ok(encoded.into_owned());
        }
        let all = 0..contribution.n_parameters as usize;
        let mut words = vec![0; 4 * all.len()];
        contribution.encoding.decode(&all, &encoded, &mut words);
        Ok(words)
    }

    /// Adds an accepted update to the round's sum, where that is all that counts.
    fn add(&mut self, client: usize, contribution: &Contribution) -> Result<(), SimulationError> {
        // Whose client it is has its bytes.
        if self.sum.is_none() || !self.is_mine(client) {
            return Ok(());
        }
        let words = self.words(contribution)?;
        let plan = self.simulation.plan;
        let weight = plan.weight(&plan.cohort.clients[client]);
        if let Some(sum) = &mut self.sum {
            sum.add(words, weight);
        }
        self.updates.remove(&contribution.update);
        Ok(())
    }

    fn step_run(
        &mut self,
        event: Event,
        observe: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), SimulationError> {
        let effects = self.step(event)?;
        self.perform(effects, observe)
    }

    fn step(&mut self, event: Event) -> Result<Vec<Effect>, Rejection> {
        let kept = self.checkpoints.is_some().then(|| event.clone());
        let effects = self.run.step(event, self.now)?;
        if let Some(event) = kept.filter(|_| !effects.is_empty()) {
            self.lines.push(Line::Run(self.now, event));
        }
        Ok(effects)
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
                        self.assign(self.positions[&client], task);
                    }
                }
                Effect::Aggregate { round, updates, gain, .. } => {
                    self.aggregate(round, &updates, gain, observe)?;
                }
                Effect::Finish(outcome) => {
                    let status = match outcome {
                        Outcome::Finished(_) => "finished".to_owned(),
                        Outcome::Aborted(reason) => format!("aborted: {reason}"),
                    };
                    for client in 0..self.clients.len() {
                        let event = ParticipantEvent::RunEnded { status: status.clone() };
                        self.step_client(client, event)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Sends a task to a client, which may be away.
    fn assign(&mut self, client: usize, task: Task) {
        if self.behaviour.fate(client, task.round).is_away {
            return;
        }
        let n_bytes = 4 * self.model.values().len() as u64;
        let at = self.later(self.behaviour.down_ms(client, n_bytes));
        self.queue.send(at, Message::ToClient(client, ParticipantEvent::Assigned { task }));
    }

    /// Rooms 1 to 5 for those whose training ends next.
    fn train(&mut self, observe: &mut dyn FnMut(Progress<'_>)) -> Result<(), SimulationError> {
        let plan = self.simulation.plan;
        let n_bytes = plan.bytes_out_round()?.max(1);
        let n_jobs = usize::try_from(WAVE_BYTES_MAX / n_bytes).unwrap_or(WAVE_MAX);
        let n_jobs = n_jobs.clamp(self.n_workers, WAVE_MAX.max(self.n_workers));
        let untrained = self.queue.trainings().filter(|(m, _)| !self.trained.contains_key(m));
        let mut wanted: BTreeMap<usize, (Moment, Task)> = untrained
            .take(n_jobs)
            .map(|(moment, training)| (training.client, (moment, training.task.clone())))
            .collect();
        let moments: Vec<(Moment, usize)> =
            wanted.iter().map(|(client, (moment, _))| (*moment, *client)).collect();
        let mut jobs: Vec<Job<'_>> = Vec::with_capacity(wanted.len());
        for (position, client) in self.clients.iter_mut().enumerate() {
            let is_mine = ranks::is_mine(self.ranks, position);
            let Some((moment, task)) = wanted.remove(&position).filter(|_| is_mine) else {
                continue;
            };
            let base = Arc::clone(&self.bases[&task.model]);
            let (id, state) = (&self.ids[position], self.states.get(position)?);
            jobs.push(Job { moment, position, id, client, task, base, state });
        }
        jobs.sort_by_key(|job| job.moment);
        let work = Work {
            simulation: self.simulation,
            reckoned: &self.reckoned,
            delta: self.budget.map(|budget| budget.delta.get()),
        };
        let (updates, trained) = (&mut self.updates, &mut self.trained);
        wave::train(work, &self.behaviour, jobs, observe, |moment, result| {
            let result = match result {
                Ok(Trained { contribution, bytes, state }) => {
                    updates.insert(contribution.update, bytes)?;
                    Ok(Ready { contribution, state, saved: None })
                }
                Err(reason) => Err(reason),
            };
            trained.insert(moment, result);
            Ok(())
        })?;
        self.exchange(&moments);
        Ok(())
    }

    /// Drops the models and updates that nobody needs any more.
    fn forget(&mut self) {
        let (mut models, mut updates) = self.run.blobs_needed();
        models.extend(self.queue.trainings().map(|(_, training)| training.task.model));
        updates.extend(self.trained.values().flatten().map(|ready| ready.contribution.update));
        for message in self.queue.messages() {
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
        self.updates.retain(|update| updates.contains(update));
    }

    fn later(&self, ms: u64) -> Time {
        Time(self.now.0.saturating_add(ms))
    }

    fn finish(self) -> Result<SimulationResult, SimulationError> {
        let fine_tuned = match self.simulation.fine_tune {
            Some(n_epochs) => self.fine_tuned(n_epochs)?,
            None => None,
        };
        let ledgers = self.clients.into_iter().map(|client| client.ledger);
        Ok(SimulationResult {
            fine_tuned,
            report: self.run.report(),
            rounds: self.rounds,
            model: (self.simulation.plan)
                .model_of(&self.model)
                .expect("the plan was validated")
                .into_owned(),
            institutions: self.trusted.map(|trusted| trusted.statement(self.simulation.noise)),
            ledgers: self.ids.into_iter().zip(ledgers).collect(),
        })
    }
}
