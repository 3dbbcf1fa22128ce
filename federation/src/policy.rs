//! What a client's institution allows.  The plan proposes, the institution disposes.

use comity_privacy::{Budget, PrivacyUnit};

use crate::{ClientId, Plan, PrivacyTerms};

/// The institution's own limits, from the client's configuration; no plan can pass them.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Budget of the data set over all runs; `None` if no run with DP is allowed.
    pub budget: Option<Budget>,
    /// Whether runs without differential privacy may train on these data.
    pub without_dp_allowed: bool,
    /// The number of records that the institution has made public.
    pub records_declared: u64,
    /// The number of persons that the institution has made public, if it has.
    pub persons_declared: Option<u64>,
}

/// Why a client declines a plan; it travels to the operator.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PolicyRefusal {
    /// The plan does not name the client.
    #[error("the plan does not name {0}; add it under cohort.clients")]
    NotNamed(ClientId),
    /// The plan says another number of records.
    #[error(
        "the plan declares {planned} records for {client}, the institution {declared}; correct cohort.clients"
    )]
    Records {
        /// Who.
        client: ClientId,
        /// In the plan.
        planned: u64,
        /// In the institution's configuration.
        declared: u64,
    },
    /// The plan protects persons and says another number of them.
    #[error(
        "the plan declares {planned} persons for {client}, the institution {}; correct \
         cohort.clients, or data.persons at the institution",
        declared.map_or("none".to_owned(), |n| n.to_string())
    )]
    Persons {
        /// Who.
        client: ClientId,
        /// In the plan.
        planned: u64,
        /// In the institution's configuration.
        declared: Option<u64>,
    },
    /// The plan trains without differential privacy.
    #[error("the plan trains without differential privacy, which this institution does not allow")]
    WithoutDp,
    /// The plan asks for changes without noise, to which the coordinator would add it.
    #[error(
        "the plan protects whole institutions by noise that the coordinator adds: the coordinator \
         would see this institution's change in clear. Such plans are for simulations; use \
         privacy.mode = \"dp_sgd\""
    )]
    NoiseElsewhere,
    /// No budget for private runs.
    #[error("this institution has set no privacy budget for this data set")]
    NoBudget,
    /// The plan asks for more than the institution's budget.
    #[error(
        "the plan asks for epsilon {epsilon} at delta {delta}, the institution allows {epsilon_max} \
         at {delta_max} for this data set"
    )]
    Budget {
        /// Of the plan.
        epsilon: f64,
        /// Of the plan.
        delta: f64,
        /// Of the institution.
        epsilon_max: f64,
        /// Of the institution.
        delta_max: f64,
    },
}

impl Policy {
    /// Whether `client` may take part in `plan`.  What earlier runs have spent is the ledger's
    /// concern, round by round.
    ///
    /// # Errors
    /// [`PolicyRefusal`] says what the institution does not allow.
    pub fn review(&self, plan: &Plan, client: &ClientId) -> Result<(), PolicyRefusal> {
        let named = plan.client(client).ok_or_else(|| PolicyRefusal::NotNamed(client.clone()))?;
        if named.records != self.records_declared {
            return Err(PolicyRefusal::Records {
                client: client.clone(),
                planned: named.records,
                declared: self.records_declared,
            });
        }
        if let Some(PrivacyUnit::Person { .. }) = plan.unit()
            && self.persons_declared != Some(plan.units_declared(named))
        {
            return Err(PolicyRefusal::Persons {
                client: client.clone(),
                planned: plan.units_declared(named),
                declared: self.persons_declared,
            });
        }
        match (&plan.privacy, &self.budget) {
            (PrivacyTerms::None, _) if self.without_dp_allowed => Ok(()),
            (PrivacyTerms::None, _) => Err(PolicyRefusal::WithoutDp),
            (PrivacyTerms::DpFedavg { .. }, _) => Err(PolicyRefusal::NoiseElsewhere),
            (PrivacyTerms::DpSgd { .. }, None) => Err(PolicyRefusal::NoBudget),
            (PrivacyTerms::DpSgd { epsilon, delta, .. }, Some(budget)) => {
                if *epsilon > budget.epsilon.get() || *delta > budget.delta.get() {
                    return Err(PolicyRefusal::Budget {
                        epsilon: *epsilon,
                        delta: *delta,
                        epsilon_max: budget.epsilon.get(),
                        delta_max: budget.delta.get(),
                    });
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::sample;

    #[test]
    fn a_plan_past_the_policy_is_declined_by_name() {
        let plan = sample();
        let client: ClientId = "KR/a".parse().unwrap();
        let mut policy = Policy {
            budget: Some(Budget::new(8.0, 1e-5).unwrap()),
            without_dp_allowed: false,
            records_declared: 1000,
            persons_declared: None,
        };
        assert_eq!(policy.review(&plan, &client), Ok(()));
        let mut elsewhere = plan.clone();
        elsewhere.privacy = PrivacyTerms::DpFedavg {
            epsilon: 0.1,
            delta: 1e-5,
            clip_norm_l2: 1.0,
            cohort_expected: 2,
        };
        assert_eq!(policy.review(&elsewhere, &client), Err(PolicyRefusal::NoiseElsewhere));
        policy.records_declared = 900;
        assert!(matches!(policy.review(&plan, &client), Err(PolicyRefusal::Records { .. })));
        policy.records_declared = 1000;
        let mut persons = plan.clone();
        persons.cohort.clients[0].persons = Some(300);
        if let PrivacyTerms::DpSgd { unit, .. } = &mut persons.privacy {
            *unit = PrivacyUnit::Person { records_max: 4 };
        }
        for declared in [None, Some(299)] {
            policy.persons_declared = declared;
            let error = policy.review(&persons, &client).unwrap_err();
            assert!(matches!(error, PolicyRefusal::Persons { .. }), "{error}");
        }
        policy.persons_declared = Some(300);
        assert_eq!(policy.review(&persons, &client), Ok(()));
        policy.budget = Some(Budget::new(7.9, 1e-5).unwrap());
        assert!(matches!(policy.review(&plan, &client), Err(PolicyRefusal::Budget { .. })));
        policy.budget = None;
        assert_eq!(policy.review(&plan, &client), Err(PolicyRefusal::NoBudget));
        let other: ClientId = "KR/z".parse().unwrap();
        assert_eq!(policy.review(&plan, &other), Err(PolicyRefusal::NotNamed(other)));
        let open = Plan { privacy: PrivacyTerms::None, ..plan };
        assert_eq!(policy.review(&open, &client), Err(PolicyRefusal::WithoutDp));
    }
}
