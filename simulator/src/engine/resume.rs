//! How a simulation is noted down after a round, and gone on with.

use std::collections::BTreeMap;
use std::sync::Arc;

use comity_federation::{ClientState, Event, Parameters, ParticipantEvent, Time, UpdateDigest};
use comity_privacy::{Ledger, LedgerEntry};

use super::checkpoint::{Checkpoints, ClientMark, Digest, Identity, Line, State};
use super::client::Entries;
use super::{Engine, TrustedCoordinator};
use crate::{Progress, SimulationError};

impl Engine<'_> {
    /// Goes on from the last checkpoint; `false` if there is none or none is asked for.
    ///
    /// # Errors
    /// [`SimulationError::Checkpoint`] if it is another simulation's, or damaged.
    pub(super) fn resume(
        &mut self,
        observe: &mut dyn FnMut(Progress<'_>),
    ) -> Result<bool, SimulationError> {
        let Some(dir) = self.simulation.checkpoint else { return Ok(false) };
        let found = match self.simulation.resume {
            true => Checkpoints::open(dir, &self.identity())?,
            false => None,
        };
        let Some((checkpoints, state, lines)) = found else {
            self.checkpoints = Some(Checkpoints::create(dir)?);
            return Ok(false);
        };
        self.replay(lines, &state.clients)?;
        let model = |digest: &Digest| -> Result<Arc<Parameters>, SimulationError> {
            let bytes = checkpoints.blob(digest)?;
            let model = Parameters::from_bytes(&bytes).expect("a blob is what was written");
            Ok(Arc::new(model))
        };
        let client_state = |digest: &Digest| -> Result<ClientState, SimulationError> {
            let bytes = checkpoints.blob(digest)?;
            Ok(ClientState::from_bytes(&bytes).expect("a blob is what was written"))
        };
        self.model = model(&state.model)?;
        for digest in &state.bases {
            let base = model(digest)?;
            self.bases.insert(base.digest(), base);
        }
        for digest in &state.updates {
            let bytes = checkpoints.blob(digest)?;
            self.updates.insert(UpdateDigest(*blake3::hash(&bytes).as_bytes()), bytes)?;
        }
        for (client, digest) in &state.states {
            self.states.set(*client, client_state(digest)?)?;
        }
        for (moment, result) in state.trained {
            let ready = match result {
                Ok(mut ready) => {
                    ready.state = ready.saved.take().map(|d| client_state(&d)).transpose()?;
                    Ok(ready)
                }
                Err(reason) => Err(reason),
            };
            self.trained.insert(moment, ready);
        }
        if let (Some(trusted), Some(saved)) = (&mut self.trusted, state.institutions) {
            trusted.go_on(saved)?;
        }
        self.saved_states = state.states;
        self.states.take_changed();
        self.queue = state.queue;
        self.now = state.now;
        self.rounds = state.rounds;
        self.checkpoints = Some(checkpoints);
        observe(Progress::Resumed { rounds: &self.rounds });
        self.published(state.round, self.model.digest(), observe)?;
        Ok(true)
    }

    /// The machines and ledgers as their journal says.
    fn replay(&mut self, lines: Vec<Line>, marks: &[ClientMark]) -> Result<(), SimulationError> {
        let mut run: Vec<(Time, Event)> = Vec::new();
        let n_clients = self.clients.len();
        let mut events: Vec<Vec<ParticipantEvent>> = vec![Vec::new(); n_clients];
        let mut entries: Vec<Vec<LedgerEntry>> = vec![Vec::new(); n_clients];
        for line in lines {
            match line {
                Line::Run(at, event) => run.push((at, event)),
                Line::Client(client, event) => events[client].push(event),
                Line::Ledger(client, entry) => entries[client].push(entry),
            }
        }
        self.run = self.run.clone().replay(run)?;
        let recorded = events.into_iter().zip(entries).zip(marks);
        for ((client, id), ((events, entries), mark)) in
            self.clients.iter_mut().zip(&self.ids).zip(recorded)
        {
            client.participant = client.participant.clone().replay(events)?;
            client.ledger = Ledger::replay(client.ledger.limit(), entries)
                .map_err(|source| SimulationError::Privacy { client: id.clone(), source })?;
            client.epsilon = mark.epsilon;
            client.died_in = mark.died_in;
        }
        Ok(())
    }

    /// Notes where the simulation is, if it is to: the model of `round` is there, and the run does not
    /// know it yet.
    pub(super) fn save(&mut self, round: u32) -> Result<(), SimulationError> {
        let Some(mut checkpoints) = self.checkpoints.take() else { return Ok(()) };
        let mut lines = std::mem::take(&mut self.lines);
        for (position, client) in self.clients.iter_mut().enumerate() {
            if let Entries::Kept(entries) = &mut client.entries {
                lines.extend(entries.drain(..).map(|entry| Line::Ledger(position, entry)));
            }
        }
        for client in self.states.take_changed() {
            let state = self.states.get(client)?.expect("it changed");
            self.saved_states.insert(client, checkpoints.put(&state.to_bytes())?);
        }
        let mut trained = Vec::new();
        for (moment, result) in std::mem::take(&mut self.trained) {
            let result = match result {
                Ok(mut ready) => {
                    if let Some(state) = &ready.state {
                        ready.saved = Some(checkpoints.put(&state.to_bytes())?);
                    }
                    Ok(ready)
                }
                Err(reason) => Err(reason),
            };
            trained.push((moment, result));
        }
        let bases = self.bases.values().map(|base| checkpoints.put(&base.to_bytes()));
        let bases = bases.collect::<Result<_, _>>()?;
        let digests: Vec<UpdateDigest> = self.updates.digests().copied().collect();
        let mut updates = Vec::with_capacity(digests.len());
        for digest in digests {
            updates.push(checkpoints.put(&self.updates.bytes(&digest)?)?);
        }
        let mark = |client: &super::Client| ClientMark {
            epsilon: client.epsilon,
            died_in: client.died_in,
        };
        let state = State {
            identity: self.identity(),
            journal_bytes: 0,
            now: self.now,
            round,
            model: checkpoints.put(&self.model.to_bytes())?,
            bases,
            updates,
            states: self.saved_states.clone(),
            queue: std::mem::take(&mut self.queue),
            trained,
            clients: self.clients.iter().map(mark).collect(),
            institutions: self.trusted.as_ref().map(TrustedCoordinator::saved),
            rounds: self.rounds.clone(),
        };
        let state = checkpoints.write(&lines, state)?;
        self.queue = state.queue;
        self.trained = state.trained.into_iter().collect::<BTreeMap<_, _>>();
        self.checkpoints = Some(checkpoints);
        Ok(())
    }

    fn identity(&self) -> Identity {
        let simulation = self.simulation;
        Identity {
            plan: simulation.plan.digest().to_string(),
            seed: simulation.seed,
            noise: simulation.noise.label().to_owned(),
            conduct: simulation.conduct.clone(),
            data: self.data_digest.clone(),
        }
    }
}
