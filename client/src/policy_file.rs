//! `policy.toml`: what an institution allows, written by its steward, parsed once.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytesize::ByteSize;
use comity_federation::{
    Approval, Hours, ModelFamily, PinnedOperator, Policy, SecureAggregation, UnitKind,
};
use comity_privacy::Budget;
use serde::Deserialize;

/// The file as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyFile {
    operators: Vec<PinnedOperator>,
    purposes: Vec<String>,
    models: BTreeSet<ModelFamily>,
    parameters_max: u64,
    units: BTreeSet<UnitKind>,
    epsilon: Option<f64>,
    delta: Option<f64>,
    epsilon_run_max: Option<f64>,
    epsilon_year_max: Option<f64>,
    without_dp: bool,
    clients_min: u32,
    countries_min: u32,
    secure_aggregation: SecureAggregation,
    hours: Option<HoursFile>,
    bytes_out_round_max: ByteSize,
    #[serde(default = "thirty_days", with = "humantime_serde")]
    order_age_max: Duration,
    consents_countries_min: u32,
    approval: Approval,
}

fn thirty_days() -> Duration {
    Duration::from_secs(30 * 86_400)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HoursFile {
    from: String,
    to: String,
    utc_offset: String,
}

impl HoursFile {
    fn parse(&self) -> anyhow::Result<Hours> {
        let time = |text: &str| minutes(text).filter(|m| *m < 24 * 60);
        let offset = || {
            let (sign, rest) = self.utc_offset.split_at_checked(1)?;
            let size = minutes(rest)?;
            match sign {
                "+" => Some(size),
                "-" => Some(-size),
                _ => None,
            }
        };
        let hours = || {
            let from = u16::try_from(time(&self.from)?).ok()?;
            let to = u16::try_from(time(&self.to)?).ok()?;
            Hours::new(from, to, offset()?)
        };
        hours().context(
            "hours: write two different times and an offset, such as { from = \"20:00\", to = \"06:00\", \
             utc_offset = \"+07:00\" }, or leave the key out",
        )
    }
}

/// The minutes of a text such as `06:30`.
fn minutes(text: &str) -> Option<i16> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |text: &str| {
        let digits = text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse::<i16>().ok()).flatten()
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    (minutes < 60).then_some(hours * 60 + minutes)
}

/// Reads the policy at `path`, of an institution that declares so many records and persons.
pub(crate) fn read(path: &Path, records: u64, persons: Option<u64>) -> anyhow::Result<Policy> {
    let text = std::fs::read_to_string(path).with_context(|| {
        format!(
            "{} cannot be read; docs/samples/policy.toml explains every key, and client.toml says where it lies \
             (policy = \"…\")",
            path.display()
        )
    })?;
    parse(&text, records, persons).with_context(|| format!("{} is not valid", path.display()))
}

fn parse(text: &str, records: u64, persons: Option<u64>) -> anyhow::Result<Policy> {
    let file: PolicyFile = toml::from_str(text)?;
    let positive = |key: &str, value: f64| {
        ensure!(value.is_finite() && value > 0.0, "{key} has to be positive and finite");
        Ok(value)
    };
    let private = (file.epsilon, file.delta, file.epsilon_run_max, file.epsilon_year_max);
    let (budget, epsilon_run_max, epsilon_year_max) = match private {
        (Some(epsilon), Some(delta), Some(run), Some(year)) => (
            Some(Budget::new(epsilon, delta)?),
            positive("epsilon_run_max", run)?,
            positive("epsilon_year_max", year)?,
        ),
        // No run with an epsilon is allowed.
        (None, None, None, None) => (None, 0.0, 0.0),
        _ => bail!(
            "epsilon, delta, epsilon_run_max and epsilon_year_max stand together, or none of them (then no private \
             run is allowed)"
        ),
    };
    ensure!(
        !file.operators.is_empty(),
        "operators is empty: nobody could launch a run; name at least one, with its key"
    );
    ensure!(
        file.clients_min > 0 && file.countries_min > 0,
        "clients_min and countries_min are at least 1: this institution itself"
    );
    ensure!(!file.order_age_max.is_zero(), "order_age_max has to be longer than nothing");
    Ok(Policy {
        operators: file.operators,
        purposes: file.purposes,
        models: file.models,
        parameters_max: file.parameters_max,
        units: file.units,
        budget,
        epsilon_run_max,
        epsilon_year_max,
        without_dp_allowed: file.without_dp,
        clients_min: file.clients_min,
        countries_min: file.countries_min,
        secure_aggregation: file.secure_aggregation,
        hours: file.hours.as_ref().map(HoursFile::parse).transpose()?,
        bytes_out_round_max: file.bytes_out_round_max.as_u64(),
        order_age_max: file.order_age_max,
        consents_countries_min: file.consents_countries_min,
        approval: file.approval,
        records_declared: records,
        persons_declared: persons,
    })
}

/// What a steward has decided when a first policy is written.
#[derive(Clone, Debug)]
pub struct NewPolicy {
    /// Whose orders are taken.
    pub operators: Vec<PinnedOperator>,
    /// The data set's budget, (epsilon, delta); `None`: no private run.
    pub budget: Option<(f64, f64)>,
    /// Whether runs without differential privacy are allowed.
    pub without_dp: bool,
    /// Who agrees to plans.
    pub approval: Approval,
}

/// The text of a first `policy.toml`, with comments; the steward narrows it down.
#[must_use]
pub fn new_for(new: &NewPolicy) -> String {
    let mut text = String::from(
        "# What this institution allows; no plan can pass it. docs/samples/policy.toml explains every key, and\n\
         # `comity-client policy explain PLAN` what it means for a plan. Read when the node starts.\n\n\
         # Whose orders are taken. Compare each key with its operator by another way, such as the telephone.\n\
         operators = [\n",
    );
    for PinnedOperator { name, key } in &new.operators {
        let _ = writeln!(text, "    {{ name = \"{name}\", key = \"{key}\" }},");
    }
    text += "]\n\n# What plans may be for (* stands for any text), and which models they may train.\n\
             purposes = [\"*\"]\nmodels = [\"dense\", \"convolution\", \"transformer\"]\n\
             parameters_max = 100000000\n\n# Whom a private run may protect.\nunits = [\"record\", \"person\"]\n\n";
    match new.budget {
        Some((epsilon, delta)) => {
            let _ = writeln!(
                text,
                "# The most that all runs together may learn, for ever; that one run may; and all of a year.\n\
                 epsilon = {epsilon:?}\ndelta = {delta:?}\nepsilon_run_max = {epsilon:?}\n\
                 epsilon_year_max = {epsilon:?}\n"
            );
        }
        None => {
            text += "# No private run is allowed: epsilon, delta, epsilon_run_max and epsilon_year_max are not set.\n\n"
        }
    }
    let approval = match new.approval {
        Approval::Auto => "auto",
        Approval::Ask => "ask",
    };
    let _ = writeln!(
        text,
        "# Whether runs without differential privacy may train on these data.\nwithout_dp = {}\n\n\
         # How many institutions, of how many countries, a round has to count at least.\n\
         clients_min = 1\ncountries_min = 1\n\n\
         secure_aggregation = \"not_required\"\n\n\
         # Most bytes of updates that may leave in a round.\nbytes_out_round_max = \"64 MiB\"\n\n\
         # How old an order may be, and institutions of how many countries must have signed the plan.\n\
         order_age_max = \"30d\"\nconsents_countries_min = 0\n\n\
         # \"ask\": plans wait for `comity-client run approve`. \"auto\": the node agrees to what is allowed.\n\
         approval = \"{approval}\"",
        new.without_dp
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use comity_federation::KeyFingerprint;

    const SAMPLE: &str = include_str!("../../docs/samples/policy.toml");

    #[test]
    fn the_sample_parses() {
        let policy = parse(SAMPLE, 21_000, None).unwrap();
        assert_eq!(policy.operators[0].name, "operator");
        assert_eq!(policy.budget, Some(Budget::new(8.0, 1e-5).unwrap()));
        assert_eq!(policy.bytes_out_round_max, 64 << 20);
        assert_eq!(policy.hours.unwrap().to_string(), "20:00 to 06:00 (UTC+07:00)");
        assert_eq!(policy.order_age_max, thirty_days(), "the sample shows the default");
        assert_eq!((policy.approval, policy.records_declared), (Approval::Ask, 21_000));
    }

    #[test]
    fn what_may_be_left_out_is_neither_privacy_nor_identity_nor_approval() {
        let keys = SAMPLE.lines().filter_map(|line| line.split_once(" = "));
        let keys: Vec<&str> = keys.map(|(key, _)| key).filter(|key| !key.contains(' ')).collect();
        assert!(keys.len() == 18, "{keys:?}");
        for key in keys {
            let without: Vec<&str> = SAMPLE
                .lines()
                .skip_while(|line| !line.starts_with("operators"))
                .filter(|line| !line.starts_with(&format!("{key} = ")))
                .filter(|line| key != "operators" || !line.starts_with("    {") && *line != "]")
                .collect();
            let parsed = parse(&without.join("\n"), 1, None);
            let may = ["hours", "order_age_max"].contains(&key);
            assert_eq!(parsed.is_ok(), may, "{key}: {parsed:?}");
        }
    }

    #[test]
    fn a_policy_that_means_nothing_is_refused_by_its_key() {
        for (from, to, expected) in [
            ("without_dp = false", "without_dp = false\nepsilom = 3.0", "epsilom"),
            ("epsilon = 8.0\n", "", "stand together"),
            ("epsilon = 8.0", "epsilon = -8.0", "epsilon"),
            ("epsilon_run_max = 4.0", "epsilon_run_max = inf", "epsilon_run_max"),
            ("epsilon_year_max = 6.0", "epsilon_year_max = 0.0", "epsilon_year_max"),
            ("\"64 MiB\"", "\"64 miles\"", "bytes_out_round_max"),
            ("\"30d\"", "\"30 moons\"", "order_age_max"),
            ("\"30d\"", "\"0s\"", "order_age_max"),
            ("\"20:00\"", "\"24:00\"", "hours"),
            ("\"06:00\"", "\"20:00\"", "hours"),
            ("\"+07:00\"", "\"Hanoi\"", "hours"),
            ("\"+07:00\"", "\"+19:00\"", "hours"),
            ("to = \"06:00\"", "to = \"06:00\", on = \"Sunday\"", "on"),
            ("approval = \"ask\"", "approval = \"maybe\"", "maybe"),
            ("models = [", "models = [\"oracle\", ", "oracle"),
            ("clients_min = 3", "clients_min = 0", "clients_min"),
            ("9f86d081", "9f86", "64 hexadecimal"),
            ("name = \"operator\", ", "", "name"),
        ] {
            assert!(SAMPLE.contains(from), "{from}");
            let error = parse(&SAMPLE.replacen(from, to, 1), 1, None).unwrap_err();
            assert!(format!("{error:#}").contains(expected), "{to}: {error:#}");
        }
        let nobody = format!("operators = []\n{}", SAMPLE.split_once("]\n").unwrap().1);
        let error = parse(&nobody, 1, None).unwrap_err();
        assert!(error.to_string().contains("operators"), "{error}");
    }

    #[test]
    fn a_first_policy_says_what_was_decided() {
        let operators = vec![PinnedOperator { name: "alice".into(), key: KeyFingerprint([7; 32]) }];
        let new = NewPolicy {
            operators: operators.clone(),
            budget: Some((8.0, 1e-5)),
            without_dp: false,
            approval: Approval::Ask,
        };
        let policy = parse(&new_for(&new), 100, Some(10)).unwrap();
        assert_eq!(policy.operators, operators);
        assert_eq!(policy.budget, Some(Budget::new(8.0, 1e-5).unwrap()));
        assert!(!policy.without_dp_allowed && policy.approval == Approval::Ask);
        let open = NewPolicy { budget: None, without_dp: true, approval: Approval::Auto, ..new };
        let policy = parse(&new_for(&open), 100, None).unwrap();
        assert!(policy.budget.is_none() && policy.without_dp_allowed);
        assert_eq!(policy.approval, Approval::Auto);
    }
}
