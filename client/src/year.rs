//! What a year's runs cost together.

use std::collections::BTreeMap;
use std::time::Duration;

use comity_federation::Time;
use comity_privacy::{Ledger, Mechanism};

/// What counts as a year.
const YEAR: Duration = Duration::from_secs(365 * 86_400);

/// ε of the runs that were opened in the last 365 days, and of one with `schedule`, together, at the budget's
/// δ. `opened` says when each run was; one of which it does not, or that is still open, counts. `run`, if it is
/// known, is left out.
pub(crate) fn epsilon(
    ledger: &Ledger,
    opened: &BTreeMap<String, Time>,
    now: Time,
    run: Option<&str>,
    schedule: &[Mechanism],
) -> f64 {
    let closed: BTreeMap<&str, bool> = ledger.runs().map(|run| (run.name, run.closed)).collect();
    let counts = |name: &str| {
        let is_old = opened.get(name).is_some_and(|at| at.after(YEAR) < now);
        let is_over = closed.get(name).copied().unwrap_or(false);
        Some(name) != run && !(is_old && is_over)
    };
    ledger.forecast_among(counts, schedule).epsilon
}

#[cfg(test)]
mod tests {
    use super::*;
    use comity_privacy::{Budget, Charge, Limit, ReservationKey};

    #[test]
    fn a_year_forgets_what_was_opened_before_and_is_over() {
        let limit = Limit { budget: Some(Budget::new(8.0, 1e-5).unwrap()), exempt_allowed: false };
        let (mut ledger, mut store) = (Ledger::new(limit), Vec::new());
        let mechanisms = vec![Mechanism::Zcdp { rho: 0.05 }];
        for (id, run) in ["old", "new"].into_iter().enumerate() {
            let charge = Charge::single(mechanisms.clone(), [1; 32], Some([id as u8; 32]));
            let key = ReservationKey { run: run.to_owned(), round: 1 };
            let _paid = ledger.reserve(&mut store, key, charge).unwrap();
        }
        let now = Time(0).after(YEAR * 2);
        let opened: BTreeMap<String, Time> =
            [("old".to_owned(), Time(0)), ("new".to_owned(), now)].into();
        let year = |ledger: &Ledger, run| epsilon(ledger, &opened, now, run, &mechanisms);
        let all = year(&ledger, None);
        assert_eq!(all, ledger.forecast(&mechanisms).epsilon, "what is open counts");
        ledger.close("old");
        let of_two = year(&ledger, None);
        assert!(of_two < all);
        let of_one = year(&ledger, Some("new"));
        assert!(of_one < of_two);
        let nothing_known = epsilon(&ledger, &BTreeMap::new(), now, None, &mechanisms);
        assert_eq!(nothing_known, all, "a run of which no date is known counts");
    }
}
