//! The strategies, as a plan names them, and what each asks of the rest of a plan.

use serde::{Deserialize, Serialize};

use super::cohort::{CohortPlan, LatePolicy, STALENESS_MAX, WeightRule};
use super::training::Optimizer;
use super::{Plan, check, positive};
use crate::strategy::KRUM_UPDATES_MAX;
use crate::{PlanError, Start};

const KEY: &str = "aggregation.strategy";

/// The server's step, by name; each is one file of `federation::strategy`.
///
/// Where a strategy remembers something (momentum, say), that travels in the model's blob, behind the
/// parameters: see [`Plan::manifest`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Strategy {
    /// Federated averaging (McMahan et al. 2017).
    Fedavg,
    /// Federated averaging with momentum at the server (FedAvgM, Hsu et al. 2019).
    Fedavgm {
        /// What is kept of the last step, in `[0, 1)`.
        #[serde(default = "momentum")]
        momentum: f64,
    },
    /// Adagrad at the server (FedAdagrad, Reddi et al. 2021).
    Fedadagrad {
        /// Decay of the first moment, in `[0, 1)`; the paper uses 0.
        #[serde(default)]
        beta1: f64,
        /// Degree of adaptivity, positive.
        #[serde(default = "tau")]
        tau: f64,
    },
    /// Adam at the server (FedAdam, Reddi et al. 2021).
    Fedadam {
        /// Decay of the first moment, in `[0, 1)`.
        #[serde(default = "beta1")]
        beta1: f64,
        /// Decay of the second moment, in `[0, 1)`.
        #[serde(default = "beta2")]
        beta2: f64,
        /// Degree of adaptivity, positive.
        #[serde(default = "tau")]
        tau: f64,
    },
    /// Yogi at the server (FedYogi, Reddi et al. 2021).
    Fedyogi {
        /// Decay of the first moment, in `[0, 1)`.
        #[serde(default = "beta1")]
        beta1: f64,
        /// Decay of the second moment, in `[0, 1)`.
        #[serde(default = "beta2")]
        beta2: f64,
        /// Degree of adaptivity, positive.
        #[serde(default = "tau")]
        tau: f64,
    },
    /// Averaging of local steps that are pulled towards the round's model (FedProx, Li et al. 2020).
    Fedprox {
        /// Weight of the proximal term, positive.
        mu: f64,
    },
    /// Averaging of local steps that are corrected by control variates (SCAFFOLD, Karimireddy et al. 2020,
    /// option II).
    Scaffold,
    /// Averaging of updates that count by step, not by client (FedNova, Wang et al. 2020): clients of more
    /// steps do not pull the model to their own optimum.
    Fednova {
        /// Weight of a proximal term as in FedProx; 0: none.
        #[serde(default)]
        mu: f64,
    },
    /// Asynchronous buffered averaging (FedBuff, Nguyen et al. 2022): a round closes with the first
    /// `buffer` updates, whichever round's model they started from, and whoever is still training goes on.
    /// An update that is t rounds old counts with its weight over √(1 + t).  A client gets the next model
    /// when there is one, never the same one twice.
    Fedbuff {
        /// How many updates close a round.
        buffer: u32,
        /// How many rounds old an update may be.
        staleness_max: u32,
    },
    /// The coordinate-wise median (Yin et al. 2018).
    Median,
    /// The coordinate-wise mean without the extremes (Yin et al. 2018).
    TrimmedMean {
        /// How many values are left out on each side.
        trim: u32,
    },
    /// The one update nearest to its neighbours (Blanchard et al. 2017).
    Krum {
        /// How many clients may be wrong.
        byzantine: u32,
    },
    /// The mean of the updates nearest to their neighbours (Blanchard et al. 2017).
    MultiKrum {
        /// How many clients may be wrong.
        byzantine: u32,
        /// How many updates count.
        keep: u32,
    },
    /// The weighted mean of updates whose norms are capped (Sun et al. 2019).
    NormCappedMean {
        /// Largest L2 norm with which an update counts.
        norm_max_l2: f64,
    },
}

fn momentum() -> f64 {
    0.9
}
fn beta1() -> f64 {
    0.9
}
fn beta2() -> f64 {
    0.99
}
fn tau() -> f64 {
    1e-3
}

impl Strategy {
    /// Whether all that it needs to know of the updates is their sum, each weighted by what its client
    /// declares.
    #[must_use]
    pub fn is_of_the_sum(&self) -> bool {
        self.is_weighted() && !matches!(self, Self::Fednova { .. } | Self::NormCappedMean { .. })
    }

    /// Whether contributions count by their weights, not by their votes.
    #[must_use]
    pub fn is_weighted(&self) -> bool {
        !matches!(
            self,
            Self::Median | Self::TrimmedMean { .. } | Self::Krum { .. } | Self::MultiKrum { .. }
        )
    }

    /// What the server remembers from round to round, one value a shared parameter each: names and starts.
    pub(crate) fn server_state(&self) -> Vec<(&'static str, Start)> {
        match self {
            Self::Fedavgm { .. } => vec![("momentum", Start::Zeros)],
            // Algorithm 2 wants v of at least tau squared at the start.
            Self::Fedadagrad { tau, .. }
            | Self::Fedadam { tau, .. }
            | Self::Fedyogi { tau, .. } => vec![
                ("momentum", Start::Zeros),
                ("second_moment", Start::Filled { value: (tau * tau) as f32 }),
            ],
            Self::Scaffold => vec![("control", Start::Zeros)],
            _ => Vec::new(),
        }
    }

    /// Weight of the term that pulls local steps towards the round's model; 0 where there is none.
    #[must_use]
    pub fn proximal_mu(&self) -> f64 {
        match self {
            Self::Fedprox { mu } | Self::Fednova { mu } => *mu,
            _ => 0.0,
        }
    }

    /// Whether a client takes exactly the steps that follow from what it declares, whatever it really has.
    #[must_use]
    pub fn counts_declared_steps(&self) -> bool {
        matches!(self, Self::Fednova { .. })
    }

    /// Checks its own numbers, and that it goes with the cohort.
    pub(super) fn validate(&self, cohort: &CohortPlan) -> Result<(), PlanError> {
        let min_clients = u64::from(cohort.min_clients);
        check(
            self.is_weighted() || cohort.weights == WeightRule::Uniform,
            "cohort.weights",
            "this strategy gives every client one vote, which a declared size must not multiply; use \
             weights = \"uniform\"",
        )?;
        let fraction = |value: f64| (0.0..1.0).contains(&value);
        let enough = |byzantine: u32| {
            check(
                min_clients >= 2 * u64::from(byzantine) + 3,
                KEY,
                "Krum takes at least 2 * byzantine + 3 updates; raise cohort.min_clients or lower \
                 byzantine",
            )?;
            check(
                cohort.clients.len() <= KRUM_UPDATES_MAX,
                KEY,
                "Krum compares every pair of updates; name at most 1000 clients",
            )
        };
        match *self {
            Self::Fedavg | Self::Median => Ok(()),
            Self::Fedavgm { momentum } => check(fraction(momentum), KEY, "momentum lies in [0, 1)"),
            Self::Fedadagrad { beta1, tau } => check(
                fraction(beta1) && positive(tau),
                KEY,
                "beta1 lies in [0, 1), and tau is positive",
            ),
            Self::Fedadam { beta1, beta2, tau } | Self::Fedyogi { beta1, beta2, tau } => check(
                fraction(beta1) && fraction(beta2) && positive(tau),
                KEY,
                "beta1 and beta2 lie in [0, 1), and tau is positive",
            ),
            Self::Fedprox { mu } => {
                check(positive(mu), KEY, "mu must be a positive number; without it, use \"fedavg\"")
            }
            Self::Fednova { mu } => {
                check(mu == 0.0 || positive(mu), KEY, "mu must be a positive number, or left out")
            }
            Self::Scaffold => check(
                cohort.late == LatePolicy::Reject,
                "cohort.late",
                "a late update's control variate is of an older round; with scaffold leave cohort.late out",
            ),
            Self::Fedbuff { buffer, staleness_max } => {
                check(
                    buffer >= cohort.min_clients && buffer as usize <= cohort.clients.len(),
                    KEY,
                    "buffer is cohort.min_clients to the number of named clients",
                )?;
                check(staleness_max <= STALENESS_MAX, KEY, "staleness_max is at most 100")?;
                check(
                    cohort.late == LatePolicy::Reject && cohort.sample.is_none(),
                    KEY,
                    "fedbuff takes late updates and closes its rounds by itself; leave out cohort.late and \
                     cohort.sample",
                )
            }
            Self::TrimmedMean { trim } => check(
                2 * u64::from(trim) < min_clients,
                KEY,
                "2 * trim must be less than cohort.min_clients, or nothing is left to average",
            ),
            Self::Krum { byzantine } => enough(byzantine),
            Self::MultiKrum { byzantine, keep } => {
                enough(byzantine)?;
                check(
                    (1..=min_clients - u64::from(byzantine) - 2).contains(&u64::from(keep)),
                    KEY,
                    "keep 1 to cohort.min_clients - byzantine - 2 updates",
                )
            }
            Self::NormCappedMean { norm_max_l2 } => {
                check(positive(norm_max_l2), KEY, "norm_max_l2 must be a positive number")
            }
        }
    }

    /// Whether the server's step is a function of the mean update alone, so that it can follow on a mean that
    /// was made private.
    fn is_of_the_mean(&self) -> bool {
        matches!(
            self,
            Self::Fedavg
                | Self::Fedavgm { .. }
                | Self::Fedadagrad { .. }
                | Self::Fedadam { .. }
                | Self::Fedyogi { .. }
                | Self::Fedprox { .. }
        )
    }
}

impl Plan {
    /// Checks that the strategy goes with what clients do and with what protects them.
    pub(super) fn validate_strategy(&self) -> Result<(), PlanError> {
        let (strategy, training) = (self.aggregation.strategy, &self.training);
        check(
            !self.draws_in_secret() || strategy.is_of_the_mean(),
            KEY,
            "where institutions are protected their mean is what is accounted for; use \"fedavg\", or fedavgm, \
             fedadagrad, fedadam, fedyogi or fedprox",
        )?;
        if matches!(strategy, Strategy::Scaffold | Strategy::Fednova { .. }) {
            check(
                training.ema_decay.is_none(),
                "training.ema_decay",
                "scaffold and fednova reckon with the last of a client's steps, not with an average of them; \
                 leave it out",
            )?;
        }
        let is_sgd = |with_momentum: bool| match training.optimizer {
            Optimizer::Sgd { momentum, .. } => with_momentum || momentum == 0.0,
            Optimizer::Adam { .. } => false,
        };
        match strategy {
            Strategy::Scaffold => {
                check(
                    training.local_steps.is_some(),
                    "training.local_steps",
                    "scaffold divides by the number of local steps, which must be public and the same at every \
                     client; say local_steps in place of local_epochs",
                )?;
                check(
                    is_sgd(false),
                    "training.optimizer",
                    "scaffold corrects plain gradient steps; use type = \"sgd\" without momentum",
                )
            }
            Strategy::Fednova { mu } => {
                let (Optimizer::Sgd { learning_rate, .. } | Optimizer::Adam { learning_rate, .. }) =
                    training.optimizer;
                check(
                    mu * learning_rate < 1.0,
                    KEY,
                    "mu times the local learning rate must be less than 1, or steps go back on themselves",
                )?;
                check(
                    is_sgd(true),
                    "training.optimizer",
                    "fednova knows how far clients went by sgd, with or without momentum; use type = \"sgd\"",
                )
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::SAMPLE;

    fn with(strategy: &str) -> String {
        SAMPLE.replace("\"fedavg\"", strategy)
    }

    #[test]
    fn every_strategy_reads_and_comes_back_through_json() {
        for strategy in [
            "{ fedavgm = {} }",
            "{ fedavgm = { momentum = 0.5 } }",
            "{ fedadagrad = {} }",
            "{ fedadam = { tau = 0.01 } }",
            "{ fedyogi = { beta1 = 0.0 } }",
            "{ fedprox = { mu = 0.1 } }",
            "{ fednova = {} }",
            "{ fednova = { mu = 0.1 } }",
        ] {
            let plan = Plan::from_toml(&with(strategy)).unwrap();
            assert_eq!(Plan::from_json(&plan.to_json()).unwrap(), plan, "{strategy}");
        }
        let scaffold = with("\"scaffold\"").replace("local_epochs = 1", "local_steps = 3");
        let plan = Plan::from_toml(&scaffold).unwrap();
        assert_eq!(Plan::from_json(&plan.to_json()).unwrap(), plan);
    }

    #[test]
    fn what_a_strategy_does_not_go_with_is_refused_with_what_to_write() {
        let steps = ("local_epochs = 1", "local_steps = 3");
        for (strategy, changes, expected) in [
            ("{ fedavgm = { momentum = 1.0 } }", vec![], "momentum lies in [0, 1)"),
            ("{ fedadam = { tau = 0.0 } }", vec![], "tau is positive"),
            ("{ fedadam = { beta2 = 1.0 } }", vec![], "beta1 and beta2"),
            ("{ fedadagrad = { tau = -1.0 } }", vec![], "tau is positive"),
            ("{ fedyogi = { beta1 = -0.1 } }", vec![], "beta1 and beta2"),
            ("{ fedprox = { mu = 0.0 } }", vec![], "use \"fedavg\""),
            ("{ fedprox = {} }", vec![], "mu"),
            ("{ fednova = { mu = 10.0 } }", vec![], "less than 1"),
            ("\"scaffold\"", vec![], "local_steps in place of local_epochs"),
            (
                "\"scaffold\"",
                vec![steps, ("learning_rate = 0.1", "learning_rate = 0.1, momentum = 0.9")],
                "without momentum",
            ),
            (
                "\"scaffold\"",
                vec![
                    steps,
                    ("min_clients = 2", "min_clients = 2\nlate = { carry = { rounds_max = 1 } }"),
                ],
                "leave cohort.late out",
            ),
            (
                "\"scaffold\"",
                vec![steps, ("microbatch = 8", "microbatch = 8\nema_decay = 0.9")],
                "training.ema_decay",
            ),
            (
                "\"scaffold\"",
                vec![steps, ("bits = 22", "bits = 22\ncountry_weight_max = 0.9")],
                "which a cap would undo",
            ),
            ("{ fednova = {} }", vec![("type = \"sgd\"", "type = \"adam\"")], "use type = \"sgd\""),
        ] {
            let text = changes.iter().fold(with(strategy), |text, (from, to)| {
                assert!(text.contains(from), "{from}");
                text.replacen(from, to, 1)
            });
            let error = Plan::from_toml(&text).unwrap_err().to_string();
            assert!(error.contains(expected), "{strategy} {changes:?}: {error}");
        }
    }

    #[test]
    fn a_rounds_model_has_the_model_first_and_then_what_the_server_remembers() {
        let plan = Plan::from_toml(&with("{ fedadam = { tau = 0.1 } }")).unwrap();
        let (all, model) = (plan.manifest().unwrap(), plan.model_manifest().unwrap());
        let n = model.n_parameters();
        assert_eq!((n, all.n_parameters(), all.n_trainable()), (15, 45, 15));
        assert_eq!(plan.server_step().unwrap().n_values(), 45);
        let names: Vec<&str> = all.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(
            names[2..],
            [
                "server.momentum.layers.0.weight",
                "server.momentum.layers.0.bias",
                "server.second_moment.layers.0.weight",
                "server.second_moment.layers.0.bias"
            ]
        );
        let start = all.initial_parameters(plan.seed);
        assert_eq!(start.values()[..n], *model.initial_parameters(plan.seed).values());
        assert!(start.values()[n..2 * n].iter().all(|value| *value == 0.0));
        assert!(start.values()[2 * n..].iter().all(|value| *value == (0.1 * 0.1) as f32));
        assert_eq!(*plan.model_of(&start).unwrap(), model.initial_parameters(plan.seed));
        // Nobody sends more for it.
        let plain = Plan::from_toml(SAMPLE).unwrap();
        assert_eq!(plan.bytes_out_round(), plain.bytes_out_round());
        assert_eq!(plan.client_state_len(), Ok(0));
    }

    #[test]
    fn local_layers_lie_between_the_shared_and_the_frozen_and_do_not_leave() {
        let layers = "[[model.layers]]\ntype = \"frozen\"\nlayers = [{ type = \"linear\", out = 6 }]\n\
                      [[model.layers]]\ntype = \"local\"\nlayers = [{ type = \"linear\", out = 5 }]\n\
                      [[model.layers]]\ntype = \"linear\"\nout = 3\n";
        let one = "[[model.layers]]\ntype = \"linear\"\nout = 3\n";
        assert!(SAMPLE.contains(one));
        let text = SAMPLE.replace(one, layers);
        let plan = Plan::from_toml(&text).unwrap();
        let manifest = plan.model_manifest().unwrap();
        let names: Vec<&str> = manifest.tensors.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names[..2], ["layers.2.weight", "layers.2.bias"]);
        assert_eq!(names[2..4], ["layers.1.layers.0.weight", "layers.1.layers.0.bias"]);
        assert_eq!((manifest.n_shared(), manifest.n_local()), (5 * 3 + 3, 6 * 5 + 5));
        assert_eq!((manifest.n_trainable(), plan.client_state_len().unwrap()), (18 + 35, 35));
        assert_eq!(plan.bytes_out_round().unwrap(), 4 * 18);
        // All that is trained is clipped and noised, also what stays.
        let request = plan.privacy_request(&plan.cohort.clients[0]).unwrap().unwrap();
        assert_eq!(request.n_parameters, 18 + 35);
        let scaffold = text
            .replace("\"fedavg\"", "\"scaffold\"")
            .replace("local_epochs = 1", "local_steps = 2");
        let scaffold = Plan::from_toml(&scaffold).unwrap();
        assert_eq!(scaffold.client_state_len().unwrap(), 35 + 18);
        assert_eq!(Plan::from_json(&plan.to_json()).unwrap(), plan);
        let nothing = SAMPLE.replace(
            one,
            "[[model.layers]]\ntype = \"local\"\nlayers = [{ type = \"linear\", out = 3 }]\n",
        );
        let error = Plan::from_toml(&nothing).unwrap_err().to_string();
        assert!(error.contains("nothing to federate"), "{error}");
    }
}
