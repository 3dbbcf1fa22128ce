//! `--set key=value`: a plan or a world with some of its keys set on the command line.
//!
//! A key is a dotted path as it stands in the plan, such as `privacy.epsilon` or
//! `model.layers.0.out`.  The plan is then read as any other, so a value of the wrong type or out
//! of range is refused in the plan's own words.

use anyhow::{anyhow, bail};
use comity_federation::{Plan, PlanError};
use comity_simulator::World;
use toml::Value;

/// Most keys that a refusal proposes.
const N_PROPOSED_MAX: usize = 3;

/// The plan of `text` with `settings`, each `key=value`, a later one over an earlier one.
///
/// A value is TOML; what is not TOML is taken as a string, so that strings need no quotes.
///
/// # Errors
/// A setting without `=`, a key that the plan cannot have (with those that look like it), and what
/// [`Plan::from_toml`] refuses.
pub(crate) fn plan_with(text: &str, settings: &[String]) -> anyhow::Result<Plan> {
    let plan = Plan::from_toml(text)?;
    if settings.is_empty() {
        return Ok(plan);
    }
    let changed = changed("plan", text, &Value::try_from(&plan)?, settings)?;
    Plan::from_toml(&changed.text).map_err(|error| {
        let explained = match &error {
            PlanError::Syntax(reason) => changed.explain(reason),
            _ => None,
        };
        changed.after(explained.unwrap_or_else(|| anyhow!(error)), settings)
    })
}

/// The world of `text` with `settings`, as [`plan_with`] does it.
///
/// # Errors
/// As [`plan_with`]'s.
pub(crate) fn world_with(text: &str, settings: &[String]) -> anyhow::Result<World> {
    let world = World::from_toml(text)?;
    if settings.is_empty() {
        return Ok(world);
    }
    let changed = changed("world", text, &Value::try_from(&world)?, settings)?;
    World::from_toml(&changed.text).map_err(|error| {
        let reason = error.to_string();
        let error = changed.explain(&reason).unwrap_or_else(|| anyhow!(error));
        changed.after(error, settings)
    })
}

/// A plan or a world after its settings.
struct Changed {
    what: &'static str,
    text: String,
    /// Keys that the file did not have.
    added: Vec<String>,
    known: Vec<String>,
}

impl Changed {
    /// Why `reason`, if it is about a key that a setting added.
    fn explain(&self, reason: &str) -> Option<anyhow::Error> {
        let is_named =
            |key: &&String| reason.contains(&format!("unknown field `{}`", last_part(key)));
        let key = self.added.iter().find(is_named)?;
        Some(unknown(self.what, key, &self.known))
    }

    fn after(&self, error: anyhow::Error, settings: &[String]) -> anyhow::Error {
        match error.to_string().contains("has no key") {
            true => error,
            false => error.context(format!("after --set {}", settings.join(" --set "))),
        }
    }
}

/// `text` with `settings`; what `value` has besides, by default, can be set too.
fn changed(
    what: &'static str,
    text: &str,
    value: &Value,
    settings: &[String],
) -> anyhow::Result<Changed> {
    let mut root: Value = toml::from_str(text)?;
    let mut known = Vec::new();
    collect_keys(&root, "", &mut known);
    collect_keys(value, "", &mut known);
    known.sort();
    known.dedup();
    let mut added = Vec::new();
    for setting in settings {
        let Some((key, value)) = setting.split_once('=') else {
            bail!("--set {setting} has no `=`; write --set key=value, such as privacy.epsilon=2");
        };
        let (key, value) = (key.trim(), parse_value(value.trim()));
        let (path, last) = key.rsplit_once('.').unwrap_or(("", key));
        let mut place = &mut root;
        for part in path.split('.').filter(|part| !part.is_empty()) {
            place = match place {
                Value::Table(table) => table.get_mut(part),
                Value::Array(items) => part.parse().ok().and_then(|i: usize| items.get_mut(i)),
                _ => None,
            }
            .ok_or_else(|| unknown(what, key, &known))?;
        }
        match place {
            Value::Table(table) => {
                if table.insert(last.to_owned(), value).is_none() {
                    added.push(key.to_owned());
                }
            }
            Value::Array(items) => {
                let item = last.parse().ok().and_then(|i: usize| items.get_mut(i));
                *item.ok_or_else(|| unknown(what, key, &known))? = value;
            }
            _ => return Err(unknown(what, key, &known)),
        }
    }
    Ok(Changed { what, text: toml::to_string(&root)?, added, known })
}

fn parse_value(text: &str) -> Value {
    let table: Result<toml::Table, _> = toml::from_str(&format!("value = {text}"));
    table
        .ok()
        .filter(|table| table.len() == 1)
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

/// Dotted paths of everything in `value`.
fn collect_keys(value: &Value, prefix: &str, keys: &mut Vec<String>) {
    let mut each = |name: &str, value: &Value| {
        let key = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
        collect_keys(value, &key, keys);
        keys.push(key);
    };
    match value {
        Value::Table(table) => table.iter().for_each(|(name, value)| each(name, value)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, value)| each(&i.to_string(), value));
        }
        _ => {}
    }
}

fn unknown(what: &str, key: &str, known: &[String]) -> anyhow::Error {
    let mut nearest: Vec<(usize, &String)> = known
        .iter()
        .map(|candidate| {
            let whole = distance(key, candidate);
            // Somebody who writes `epsilon` means `privacy.epsilon`.
            let last = distance(key, last_part(candidate)) + 1;
            (whole.min(last), candidate)
        })
        .collect();
    nearest.sort();
    let names: Vec<&str> =
        nearest.iter().take(N_PROPOSED_MAX).map(|(_, name)| name.as_str()).collect();
    anyhow!("the {what} has no key `{key}`; the nearest are {}", names.join(", "))
}

fn last_part(key: &str) -> &str {
    key.rsplit_once('.').map_or(key, |(_, last)| last)
}

/// Levenshtein's distance in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use comity_federation::{Layer, Optimizer, PrivacyTerms};

    use super::*;

    const PLAN: &str = include_str!("../../examples/fashion/plan.toml");

    fn set(settings: &[&str]) -> anyhow::Result<Plan> {
        plan_with(PLAN, &settings.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn nothing_set_is_the_plan_itself() {
        assert_eq!(set(&[]).unwrap().digest(), Plan::from_toml(PLAN).unwrap().digest());
    }

    #[test]
    fn only_what_is_set_changes_and_the_last_word_counts() {
        let plan = set(&[
            "privacy.epsilon=2",
            "training.optimizer.momentum = 0.5",
            "training.ema_decay=0.9",
            "model.layers.0.out=8",
            "cohort.clients.1.records=30000",
            "purpose=Another purpose.",
            "privacy.epsilon=3.0",
        ])
        .unwrap();
        let mut expected = Plan::from_toml(PLAN).unwrap();
        let PrivacyTerms::DpSgd { epsilon, .. } = &mut expected.privacy else { panic!() };
        *epsilon = 3.0;
        expected.training.optimizer = Optimizer::Sgd { learning_rate: 24.0, momentum: 0.5 };
        expected.training.ema_decay = Some(0.9);
        expected.model.layers[0] = Layer::Conv2d { out: 8, kernel: 8, stride: 2, padding: 2 };
        expected.cohort.clients[1].records = 30_000;
        expected.purpose = "Another purpose.".to_owned();
        assert_eq!(plan, expected);
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest() {
        for (setting, nearest) in [
            ("privacy.epsilom=2", "privacy.epsilon"),
            ("epsilon=2", "privacy.epsilon"),
            ("training.optimiser.learning_rate=1", "training.optimizer.learning_rate"),
            ("training.optimizer.momentun=0.9", "training.optimizer.momentum"),
            ("model.layers.99.out=3", "model.layers"),
            ("round=3", "rounds"),
            ("privacy.epsilon.x=3", "privacy.epsilon"),
        ] {
            let error = format!("{:#}", set(&[setting]).unwrap_err());
            assert!(error.contains("no key") && error.contains(nearest), "{setting}: {error}");
        }
    }

    #[test]
    fn what_the_plan_refuses_is_refused_in_its_words() {
        for (setting, expected) in [
            ("privacy.epsilon", "has no `=`"),
            ("privacy.epsilon=-1", "privacy"),
            ("privacy.epsilon=small", "small"),
            ("privacy.unit=family", "family"),
            ("rounds=0", "rounds"),
        ] {
            let error = format!("{:#}", set(&[setting]).unwrap_err());
            assert!(error.contains(expected), "{setting}: {error}");
        }
    }

    #[test]
    fn distances_are_levenshteins() {
        for (a, b, expected) in [("", "", 0), ("kitten", "sitting", 3), ("", "abc", 3)] {
            assert_eq!(distance(a, b), expected);
            assert_eq!(distance(b, a), expected);
        }
    }
}
