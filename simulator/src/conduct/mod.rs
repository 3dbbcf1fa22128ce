//! How simulated clients behave: their links, their speed, and what goes wrong with them.
//!
//! Everything is drawn from the world's seed, a client's place in the plan and the round, never from a
//! generator that is passed around: so it depends neither on the order in which clients are looked at
//! nor on the number of threads.  All times are of the simulated world.  Without any of it a message
//! takes a millisecond, training takes no time, and everybody is honest.

mod attack;

use std::time::Duration;

use chacha20::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};

pub use attack::{Attack, Attackers, Trigger};

use crate::SimulationError;

/// How long a message is under way where the world has no links, in milliseconds.
const MESSAGE_MS: u64 = 1;
/// Longest that anything may take, in milliseconds: a year.
const MS_MAX: f64 = 365.0 * 86_400_000.0;

/// How the clients of a world behave.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Conduct {
    /// What the clients' connections carry; absent: a message takes a millisecond.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub links: Option<Links>,
    /// How fast they train; absent: in no time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compute: Option<Compute>,
    /// Who is slow; absent: nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stragglers: Option<Stragglers>,
    /// Who is away for a round; absent: nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropouts: Option<Dropouts>,
    /// Who dies at work and comes back; absent: nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crashes: Option<Crashes>,
    /// Who works against the federation; absent: nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attackers: Option<Attackers>,
}

/// The connections between clients and coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Links {
    /// How long the first byte is under way.
    #[serde(with = "humantime_serde")]
    pub latency: Duration,
    /// Of a client's way to the coordinator, in Mbit/s.
    pub up_mbit_s: f64,
    /// Of the coordinator's way to a client, in Mbit/s.
    pub down_mbit_s: f64,
    /// How unlike the clients' speeds are: standard deviation of their natural logarithm.
    #[serde(default)]
    pub spread: f64,
}

/// The clients' computers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compute {
    /// Training speed: records a second.
    pub records_s: f64,
    /// How unlike the clients' speeds are: standard deviation of their natural logarithm.
    #[serde(default)]
    pub spread: f64,
}

/// Clients that are slow from first to last.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stragglers {
    /// What part of the clients, in `[0, 1]`.
    pub share: f64,
    /// How many times longer their training and their transfers take, at least 1.
    pub slowdown: f64,
}

/// Clients that are not there for a round: nothing of theirs arrives, and the round waits for its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dropouts {
    /// How probable it is for a client in a round, in `[0, 1]`.
    pub probability: f64,
}

/// Clients that die in the middle of training: what was computed is lost, what was debited is not, and
/// after a while they are there again and train the same round.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Crashes {
    /// How probable it is for a client in a round, in `[0, 1]`.
    pub probability: f64,
    /// How long until it is back.
    #[serde(with = "humantime_serde")]
    pub restart: Duration,
}

/// What happens to one client in one round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Fate {
    /// It does not get the round's task.
    pub(crate) is_away: bool,
    /// It dies after this part of its training.
    pub(crate) crashes_after: Option<f64>,
}

/// The conduct of the clients of one simulation.
#[derive(Clone, Debug)]
pub(crate) struct Behaviour {
    conduct: Conduct,
    seed: u64,
    /// In the plan's order.
    clients: Vec<Nature>,
}

/// What stays the same of a client.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Nature {
    /// Of its link against the world's, and of its computer.
    link: f64,
    compute: f64,
    is_attacker: bool,
}

impl Conduct {
    /// Refuses what means nothing.
    ///
    /// # Errors
    /// [`SimulationError::World`] names the key and what to write.
    pub fn validate(&self, n_clients: usize) -> Result<(), SimulationError> {
        let check = |holds: bool, what: &str| {
            if holds { Ok(()) } else { Err(SimulationError::World(what.to_owned())) }
        };
        let share = |value: f64| (0.0..=1.0).contains(&value);
        let positive = |value: f64| value > 0.0 && value.is_finite();
        let spread = |value: f64| (0.0..=10.0).contains(&value);
        if let Some(links) = &self.links {
            check(
                positive(links.up_mbit_s) && positive(links.down_mbit_s) && spread(links.spread),
                "links: up_mbit_s and down_mbit_s are positive, spread is 0 to 10",
            )?;
        }
        if let Some(compute) = &self.compute {
            check(
                positive(compute.records_s) && spread(compute.spread),
                "compute: records_s is positive, spread is 0 to 10",
            )?;
        }
        if let Some(stragglers) = &self.stragglers {
            check(
                share(stragglers.share)
                    && stragglers.slowdown >= 1.0
                    && stragglers.slowdown.is_finite(),
                "stragglers: share is 0 to 1, slowdown at least 1",
            )?;
            check(
                self.links.is_some() || self.compute.is_some(),
                "stragglers: nothing takes time here, so that nobody can be slow; add [links] or [compute]",
            )?;
        }
        if let Some(dropouts) = &self.dropouts {
            check(share(dropouts.probability), "dropouts.probability is 0 to 1")?;
        }
        if let Some(crashes) = &self.crashes {
            check(share(crashes.probability), "crashes.probability is 0 to 1")?;
        }
        self.attackers.as_ref().map_or(Ok(()), |attackers| attackers.validate(n_clients))
    }
}

impl Behaviour {
    /// Draws what stays the same of each of `n_clients`.
    pub(crate) fn new(
        conduct: &Conduct,
        n_clients: usize,
        seed: u64,
    ) -> Result<Self, SimulationError> {
        conduct.validate(n_clients)?;
        let slow = match &conduct.stragglers {
            Some(stragglers) => {
                let n = (stragglers.share * n_clients as f64).round() as usize;
                chosen(n, n_clients, seed, "stragglers")
            }
            None => vec![false; n_clients],
        };
        let attackers = match &conduct.attackers {
            Some(attackers) => chosen(attackers.clients, n_clients, seed, "attackers"),
            None => vec![false; n_clients],
        };
        let clients = (0..n_clients).map(|client| {
            let mut rng = rng(seed, "speeds", client, 0);
            let mut factor = |spread: f64| -> f64 {
                let normal: f64 = StandardNormal.sample(&mut rng);
                libm::exp(spread * normal)
            };
            let link = factor(conduct.links.map_or(0.0, |links| links.spread));
            let compute = factor(conduct.compute.map_or(0.0, |compute| compute.spread));
            let slowdown = match &conduct.stragglers {
                Some(stragglers) if slow[client] => stragglers.slowdown,
                _ => 1.0,
            };
            Nature {
                link: link / slowdown,
                compute: compute / slowdown,
                is_attacker: attackers[client],
            }
        });
        Ok(Self { conduct: conduct.clone(), seed, clients: clients.collect() })
    }

    /// What happens to `client` in `round`.
    pub(crate) fn fate(&self, client: usize, round: u32) -> Fate {
        let draw = |what: &str| unit(&mut rng(self.seed, what, client, round));
        let is_away = self.conduct.dropouts.is_some_and(|d| draw("dropouts") < d.probability);
        let crashes = self.conduct.crashes.filter(|c| draw("crashes") < c.probability);
        Fate { is_away, crashes_after: crashes.map(|_| draw("crash after")) }
    }

    /// How long until a client that died is back, in milliseconds.
    pub(crate) fn restart_ms(&self) -> u64 {
        self.conduct.crashes.map_or(0, |crashes| {
            u64::try_from(crashes.restart.as_millis()).unwrap_or(u64::MAX).min(MS_MAX as u64)
        })
    }

    /// How long `n_records` passes of a record through training take `client`, in milliseconds.
    pub(crate) fn training_ms(&self, client: usize, n_records: u64) -> u64 {
        let Some(compute) = &self.conduct.compute else { return 0 };
        let speed = compute.records_s * self.clients[client].compute;
        ms(n_records as f64 / speed)
    }

    /// How long a message of `n_bytes` is under way from the coordinator to `client`, in milliseconds.
    pub(crate) fn down_ms(&self, client: usize, n_bytes: u64) -> u64 {
        self.conduct
            .links
            .map_or(MESSAGE_MS, |links| self.link_ms(links, client, n_bytes, links.down_mbit_s))
    }

    /// How long a message of `n_bytes` is under way from `client` to the coordinator, in milliseconds.
    pub(crate) fn up_ms(&self, client: usize, n_bytes: u64) -> u64 {
        self.conduct
            .links
            .map_or(MESSAGE_MS, |links| self.link_ms(links, client, n_bytes, links.up_mbit_s))
    }

    fn link_ms(&self, links: Links, client: usize, n_bytes: u64, mbit_s: f64) -> u64 {
        let seconds = 8e-6 * n_bytes as f64 / (mbit_s * self.clients[client].link);
        ms(links.latency.as_secs_f64() + seconds).max(MESSAGE_MS)
    }

    /// What `client` does against the federation; `None` if it is honest.
    pub(crate) fn attack(&self, client: usize) -> Option<&Attack> {
        let attackers = self.conduct.attackers.as_ref()?;
        self.clients[client].is_attacker.then_some(&attackers.attack)
    }

    /// What the federation's model is to answer where a trigger is shown, if somebody teaches it that.
    pub(crate) fn trigger(&self) -> Option<&Trigger> {
        match &self.conduct.attackers.as_ref()?.attack {
            Attack::Backdoor { trigger, .. } => Some(trigger),
            _ => None,
        }
    }
}

/// `n` of `n_clients`, drawn without putting back.
fn chosen(n: usize, n_clients: usize, seed: u64, what: &str) -> Vec<bool> {
    let mut ranked: Vec<(u64, usize)> =
        (0..n_clients).map(|client| (rng(seed, what, client, 0).next_u64(), client)).collect();
    ranked.sort_unstable();
    let mut chosen = vec![false; n_clients];
    for (_, client) in ranked.into_iter().take(n) {
        chosen[client] = true;
    }
    chosen
}

/// The stream of random bits of one client in one round for one purpose.
fn rng(seed: u64, what: &str, client: usize, round: u32) -> ChaCha20Rng {
    let mut hasher = blake3::Hasher::new_derive_key("comity simulated conduct v1");
    hasher.update(&seed.to_le_bytes());
    hasher.update(&(client as u64).to_le_bytes());
    hasher.update(&round.to_le_bytes());
    hasher.update(what.as_bytes());
    ChaCha20Rng::from_seed(*hasher.finalize().as_bytes())
}

/// Uniform in `[0, 1)`.
fn unit(rng: &mut ChaCha20Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

fn ms(seconds: f64) -> u64 {
    (1000.0 * seconds).round().clamp(0.0, MS_MAX) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slow_world() -> Conduct {
        Conduct {
            links: Some(Links {
                latency: Duration::from_millis(50),
                up_mbit_s: 8.0,
                down_mbit_s: 80.0,
                spread: 0.0,
            }),
            compute: Some(Compute { records_s: 100.0, spread: 0.0 }),
            stragglers: Some(Stragglers { share: 0.2, slowdown: 10.0 }),
            ..Conduct::default()
        }
    }

    #[test]
    fn times_follow_bytes_records_and_slowness() {
        let behaviour = Behaviour::new(&slow_world(), 10, 1).unwrap();
        let times = |client| {
            (
                behaviour.up_ms(client, 1_000_000),
                behaviour.down_ms(client, 1_000_000),
                behaviour.training_ms(client, 50),
            )
        };
        let n_fast = (0..10).filter(|client| times(*client) == (1050, 150, 500)).count();
        let n_slow = (0..10).filter(|client| times(*client) == (10_050, 1050, 5000)).count();
        assert_eq!((n_fast, n_slow), (8, 2));
        let plain = Behaviour::new(&Conduct::default(), 1, 1).unwrap();
        assert_eq!((plain.up_ms(0, 1 << 40), plain.training_ms(0, 1 << 40)), (1, 0));
    }

    /// False alarm: 6 standard deviations of a binomial, below 1e-8.
    #[test]
    fn fates_have_their_probabilities_and_depend_on_nothing_but_seed_client_and_round() {
        let conduct = Conduct {
            dropouts: Some(Dropouts { probability: 0.1 }),
            crashes: Some(Crashes { probability: 0.3, restart: Duration::from_secs(60) }),
            ..Conduct::default()
        };
        let fates = |seed| -> Vec<Fate> {
            let behaviour = Behaviour::new(&conduct, 100, seed).unwrap();
            (0..100)
                .flat_map(|c| (1..101).map(move |r| (c, r)))
                .map(|(c, r)| behaviour.fate(c, r))
                .collect()
        };
        let first = fates(1);
        assert_eq!(first, fates(1));
        assert_ne!(first, fates(2));
        let n = first.len() as f64;
        for (count, p) in [
            (first.iter().filter(|f| f.is_away).count(), 0.1),
            (first.iter().filter(|f| f.crashes_after.is_some()).count(), 0.3),
        ] {
            assert!((count as f64 - n * p).abs() < 6.0 * (n * p * (1.0 - p)).sqrt(), "{count}");
        }
    }

    #[test]
    fn what_means_nothing_is_refused() {
        let refuse = |change: &dyn Fn(&mut Conduct)| {
            let mut conduct = slow_world();
            change(&mut conduct);
            conduct.validate(10).unwrap_err().to_string()
        };
        for error in [
            refuse(&|c| c.links.as_mut().unwrap().up_mbit_s = 0.0),
            refuse(&|c| c.compute.as_mut().unwrap().records_s = f64::NAN),
            refuse(&|c| c.stragglers.as_mut().unwrap().slowdown = 0.5),
            refuse(&|c| c.dropouts = Some(Dropouts { probability: 1.1 })),
            refuse(&|c| (c.links, c.compute) = (None, None)),
        ] {
            assert!(error.contains("is not a world") || !error.is_empty(), "{error}");
        }
    }
}
