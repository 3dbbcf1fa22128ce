//! What is a client's own in a round: its local layers, and the control variate by which its steps are
//! corrected. One flat vector holds both, `[n_local][n_shared]`, each part only where the plan has it.
//!
//! Where a plan trains with differential privacy, all of it follows from what the round's noise has already
//! made private: local layers are clipped and noised with the others, a control variate is a function of
//! released updates, and both corrections are added to gradients after their noise. So they cost nothing.

use std::borrow::Cow;

use comity_federation::{ClientState, Delta, FixedPoint, Parameters, Plan, Rounding, ServerStep};

use crate::RoundError;

/// What is added to every gradient of a round's local steps, in which the shared parameters are the first ones.
#[derive(Clone, Debug, PartialEq)]
pub struct Correction {
    /// SCAFFOLD's `c - c_i` (Karimireddy et al. 2020, algorithm 1, line 10), `[n_shared]`; empty: none.
    pub drift: Vec<f32>,
    /// Weight of the pull to the round's model (Li et al. 2020, equation 2); 0: none.
    pub mu: f64,
    /// How many parameters are shared: nothing pulls the local ones.
    pub n_shared: usize,
}

impl Correction {
    /// `gradient` at `values` of a round that began at `start`, corrected; all begin with the shared parameters.
    pub(crate) fn apply(&self, gradient: &[f32], values: &[f32], start: &[f32]) -> Vec<f32> {
        let mut corrected = gradient.to_vec();
        for (position, corrected) in corrected[..self.n_shared].iter_mut().enumerate() {
            let drift = self.drift.get(position).map_or(0.0, |drift| f64::from(*drift));
            let gone = f64::from(values[position]) - f64::from(start[position]);
            *corrected = (f64::from(*corrected) + drift + self.mu * gone) as f32;
        }
        corrected
    }
}

/// A client's own part in one round.
pub(crate) struct Own<'a> {
    plan: &'a Plan,
    /// The round's model and what the server remembers of it.
    base: &'a Parameters,
    state: Option<&'a ClientState>,
    pub(crate) n_shared: usize,
    n_local: usize,
    n_model: usize,
    /// Whether the plan corrects steps by control variates.
    has_control: bool,
}

impl<'a> Own<'a> {
    /// The part of whoever kept `state` after its round before, in a round that begins at `base`.
    ///
    /// # Errors
    /// [`RoundError::State`] and [`RoundError::Base`] if they are of another plan.
    pub(crate) fn of(
        plan: &'a Plan,
        base: &'a Parameters,
        state: Option<&'a ClientState>,
    ) -> Result<Self, RoundError> {
        let expected = plan.client_state_len()?;
        if let Some(got) = state.map(|state| state.values().len()).filter(|n| *n != expected) {
            return Err(RoundError::State { expected, got });
        }
        let manifest = plan.model_manifest()?;
        let (n_shared, n_local) = (manifest.n_shared(), manifest.n_local());
        let n_model = manifest.n_parameters();
        // Not the plan's own step, which adds up everybody's weights.
        let n_values = ServerStep::new(&plan.aggregation, n_shared, n_model - n_shared).n_values();
        if base.values().len() != n_values {
            return Err(RoundError::Base { expected: n_values, got: base.values().len() });
        }
        let has_control = expected > n_local;
        Ok(Self { plan, base, state, n_shared, n_local, n_model, has_control })
    }

    /// The model from which the client trains and which it scores: the round's, with its own local layers once
    /// it has trained them.
    pub(crate) fn start(&self) -> Cow<'a, Parameters> {
        let values = self.base.values();
        let local = self.state.map(|state| &state.values()[..self.n_local]);
        match local.filter(|local| !local.is_empty()) {
            None if values.len() == self.n_model => Cow::Borrowed(self.base),
            None => Cow::Owned(Parameters::new(values[..self.n_model].to_vec())),
            Some(local) => {
                let mut values = values[..self.n_model].to_vec();
                values[self.n_shared..self.n_shared + self.n_local].copy_from_slice(local);
                Cow::Owned(Parameters::new(values))
            }
        }
    }

    /// What is added to its gradients; `None` where nothing is.
    pub(crate) fn correction(&self) -> Option<Correction> {
        let mu = self.plan.aggregation.strategy.proximal_mu();
        if !self.has_control && mu == 0.0 {
            return None;
        }
        let drift = match self.has_control {
            false => Vec::new(),
            true => self.controls().map(|(all, own)| (all - own) as f32).collect(),
        };
        Some(Correction { drift, mu, n_shared: self.n_shared })
    }

    /// SCAFFOLD's c and this client's c_i, which starts at 0, `[n_shared]`.
    fn controls(&self) -> impl Iterator<Item = (f64, f64)> {
        let all = &self.base.values()[self.n_model..self.n_model + self.n_shared];
        let own = self.state.map(|state| &state.values()[self.n_local..]);
        let own = move |position: usize| own.map_or(0.0, |own| f64::from(own[position]));
        all.iter().enumerate().map(move |(position, all)| (f64::from(*all), own(position)))
    }

    /// The change of what is shared; what is behind it stays.
    pub(crate) fn delta(&self, grid: FixedPoint, after: &Parameters) -> Result<Delta, RoundError> {
        let n = self.n_shared;
        Ok(grid.delta(&self.base.values()[..n], &after.values()[..n])?)
    }

    /// What the client keeps after it trained to `after` and released `delta`; `None` where it keeps nothing.
    ///
    /// The control variate follows from the released update as the server decodes it, by which both sides
    /// reckon: Karimireddy et al. 2020, algorithm 1, option II.
    pub(crate) fn next(
        &self,
        after: &Parameters,
        delta: &Delta,
        grid: FixedPoint,
        (round, rounding): (u32, Rounding<'_>),
    ) -> Option<ClientState> {
        if self.n_local == 0 && !self.has_control {
            return None;
        }
        let mut next = after.values()[self.n_shared..self.n_shared + self.n_local].to_vec();
        if self.has_control {
            let encoding = self.plan.update_encoding(round);
            let encoded = encoding.encode(delta.values(), rounding);
            let mut words = vec![0; 4 * self.n_shared];
            encoding.decode(&(0..self.n_shared), &encoded, &mut words);
            let changes = words.as_chunks::<4>().0.iter().map(|word| i32::from_le_bytes(*word));
            let path = self.plan.control_path();
            next.extend(self.controls().zip(changes).map(|((all, own), change)| {
                (own - all - grid.mean(i64::from(change), 1) / path) as f32
            }));
        }
        Some(ClientState::new(next))
    }
}

/// The model of a client that kept `state`: a round's `model` with the client's local layers in their place,
/// and without what the server remembers. It is the client's own, and no more private than its data are.
///
/// # Errors
/// [`RoundError`] if one of them is of another plan.
pub fn personal_model<'a>(
    plan: &Plan,
    model: &'a Parameters,
    state: Option<&ClientState>,
) -> Result<Cow<'a, Parameters>, RoundError> {
    Ok(match Own::of(plan, model, state)?.start() {
        Cow::Owned(own) => Cow::Owned(own),
        Cow::Borrowed(_) => Cow::Borrowed(model),
    })
}
