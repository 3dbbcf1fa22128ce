//! Several runs beside one another: those that differ by nothing but their seeds are one group, with means
//! and intervals over the seeds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Serialize;

use super::chart::{LineChart, Quantity, Series};
use super::folder::{plan_leaves, world_leaves};
use super::html::{THEME_BUTTON, escape, page, table, tiles};
use super::{Interval, RunFolder};
use crate::RoundScore;

/// Longest value in a group's name.
const N_CHARS_MAX: usize = 28;
/// Most groups that are drawn; the table has all.
const N_GROUPS_DRAWN_MAX: usize = 21;

/// Groups of runs.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// In the order in which their first runs were given.
    pub groups: Vec<Group>,
    /// What did not end as planned, and is in no group: the folder, and why.
    pub left_out: Vec<(PathBuf, String)>,
}

/// Runs that differ by nothing but their seeds.
#[derive(Clone, Debug, Serialize)]
pub struct Group {
    /// The settings in which it differs from the other groups, or the plan's name.
    pub name: String,
    /// The same by their dotted keys, as TOML; keys of the world begin with `world.`.
    pub settings: BTreeMap<String, String>,
    /// One a run.
    pub runs: Vec<RunOfGroup>,
    /// Of the last model on the public test set.
    pub accuracy: Option<Interval>,
    /// Of the best round's model.
    pub best_accuracy: Option<Interval>,
    /// Of the last model, in nats.
    pub loss: Option<Interval>,
    /// The largest ε; `None` without DP.
    pub epsilon: Option<Interval>,
    /// Of all updates.
    pub bytes: Option<Interval>,
    /// Wall-clock time of all rounds.
    pub seconds: Option<Interval>,
    /// Simulated time.
    pub clock_s: Option<Interval>,
    /// What the lowest tenth of the clients is at or below; `None` where clients keep no records for it.
    pub lowest_tenth: Option<Interval>,
    #[serde(skip)]
    rounds: Vec<Vec<RoundScore>>,
}

/// A run in a group.
#[derive(Clone, Debug, Serialize)]
pub struct RunOfGroup {
    /// Its folder.
    pub dir: PathBuf,
    /// The plan's seed.
    pub seed: u64,
    /// The world's seed.
    pub world_seed: u64,
    /// Of the last model.
    pub accuracy: f64,
}

/// Settings by their dotted keys.
type Settings = BTreeMap<String, String>;

impl Comparison {
    /// Of `folders`.
    #[must_use]
    pub fn of(folders: &[RunFolder]) -> Self {
        let mut groups: Vec<(Settings, Vec<&RunFolder>)> = Vec::new();
        let mut left_out = Vec::new();
        for folder in folders {
            let reason = folder
                .unfinished()
                .or_else(|| folder.rounds.is_empty().then(|| "it has no round".to_owned()));
            if let Some(reason) = reason {
                left_out.push((folder.dir.clone(), reason));
                continue;
            }
            let settings = settings(folder);
            match groups.iter_mut().find(|(known, _)| *known == settings) {
                Some((_, runs)) => runs.push(folder),
                None => groups.push((settings, vec![folder])),
            }
        }
        let differing = differing(&groups);
        let groups = groups
            .into_iter()
            .map(|(settings, runs)| group(&settings, &differing, &runs))
            .collect();
        Self { groups, left_out }
    }

    /// Column heads and rows of the table: a row a group.
    #[must_use]
    pub fn table(&self) -> (Vec<String>, Vec<Vec<String>>) {
        let has = |of: fn(&Group) -> Option<Interval>| self.groups.iter().any(|g| of(g).is_some());
        let (has_epsilon, has_tenth) = (has(|g| g.epsilon), has(|g| g.lowest_tenth));
        let mut header = vec!["run", "seeds", "accuracy", "best", "loss"];
        if has_tenth {
            header.push("lowest tenth");
        }
        if has_epsilon {
            header.push("largest ε");
        }
        header.extend(["sent", "seconds", "clock"]);
        let rows = self.groups.iter().map(|group| {
            let mut row = vec![
                group.name.clone(),
                group.runs.len().to_string(),
                with_interval(group.accuracy, Quantity::Share),
                with_interval(group.best_accuracy, Quantity::Share),
                with_interval(group.loss, Quantity::Number),
            ];
            if has_tenth {
                row.push(with_interval(group.lowest_tenth, Quantity::Share));
            }
            if has_epsilon {
                row.push(with_interval(group.epsilon, Quantity::Number));
            }
            row.extend([
                with_interval(group.bytes, Quantity::Bytes),
                with_interval(group.seconds, Quantity::Seconds),
                with_interval(group.clock_s, Quantity::Seconds),
            ]);
            row
        });
        (header.into_iter().map(str::to_owned).collect(), rows.collect())
    }

    /// As a page of its own: `title` above the table and the curves.
    #[must_use]
    pub fn html(&self, title: &str) -> String {
        let n_runs: usize = self.groups.iter().map(|group| group.runs.len()).sum();
        let mut body = format!(
            "<header><div><h1>{}</h1><p class=\"soft\">Means over runs that differ by their seeds \
             only, ± half the 95 % confidence interval by Student's t.</p></div>{THEME_BUTTON}</header>\n",
            escape(title)
        );
        let mut headline =
            vec![("Runs", n_runs.to_string(), format!("in {} groups", self.groups.len()))];
        let best = self
            .groups
            .iter()
            .filter_map(|group| Some((group, group.accuracy?)))
            .filter(|(_, accuracy)| accuracy.mean.is_finite())
            .max_by(|(_, a), (_, b)| a.mean.total_cmp(&b.mean));
        if let Some((group, accuracy)) = best {
            let value = with_interval(Some(accuracy), Quantity::Share);
            headline.push(("Highest mean accuracy", value, group.name.clone()));
        }
        body += &tiles(&headline);
        let (header, rows) = self.table();
        body += "<h2>Last round</h2>\n";
        body += &table(&header, &rows, 1);
        body += "<h2>By round</h2>\n";
        if self.groups.len() > N_GROUPS_DRAWN_MAX {
            body += &format!("<p class=\"soft\">The first {N_GROUPS_DRAWN_MAX} groups.</p>\n");
        }
        body += &format!("<div class=\"charts\">\n{}</div>\n", self.charts());
        body += "<h2>Runs</h2>\n";
        let runs: Vec<Vec<String>> = self.groups.iter().flat_map(runs_of).collect();
        let header = ["run", "folder", "seed", "world's seed", "accuracy"].map(str::to_owned);
        body += &table(&header, &runs, 2);
        if !self.left_out.is_empty() {
            body += "<h2>Left out</h2>\n";
            let rows: Vec<Vec<String>> = self
                .left_out
                .iter()
                .map(|(dir, reason)| vec![dir.display().to_string(), reason.clone()])
                .collect();
            body += &table(&["folder", "why"].map(str::to_owned), &rows, 2);
        }
        page(&format!("{title} · Comity"), &body)
    }

    fn charts(&self) -> String {
        let chart = |title, note, y, from_zero, empty, of: &dyn Fn(&[RoundScore], usize) -> f64| {
            let series = self.groups.iter().take(N_GROUPS_DRAWN_MAX).filter_map(|g| curve(g, of));
            LineChart {
                title,
                note,
                x_label: "round",
                y,
                from_zero,
                series: series.collect(),
                empty,
            }
            .html()
        };
        let none = "No run was finished.";
        let sent = |rounds: &[RoundScore], at: usize| -> f64 {
            rounds[..=at].iter().flat_map(|score| score.bytes.values()).sum::<u64>() as f64
        };
        [
            chart("Accuracy", "on the public test set", Quantity::Share, false, none, &|r, i| {
                r[i].accuracy
            }),
            chart(
                "Loss",
                "on the public test set, in nats",
                Quantity::Number,
                false,
                none,
                &|r, i| r[i].loss,
            ),
            chart(
                "Lowest tenth of clients",
                "accuracy on their own records",
                Quantity::Share,
                false,
                "The clients keep no records of their own for testing.",
                &|r, i| r[i].fairness.map_or(f64::NAN, |fairness| fairness.tenth),
            ),
            chart(
                "Privacy spent",
                "the largest ε so far",
                Quantity::Number,
                true,
                "No plan has differential privacy.",
                &|r, i| largest_epsilon(&r[i]).unwrap_or(f64::NAN),
            ),
            chart("Sent by clients", "bytes so far", Quantity::Bytes, true, none, &sent),
            chart("Wall-clock time", "of each round", Quantity::Seconds, true, none, &|r, i| {
                r[i].seconds
            }),
        ]
        .concat()
    }
}

/// All settings of a run but its seeds.
fn settings(folder: &RunFolder) -> Settings {
    let mut settings = plan_leaves(&folder.plan, &folder.world);
    settings.remove("seed");
    for (key, value) in world_leaves(&folder.world) {
        if key != "seed" {
            settings.insert(format!("world.{key}"), value);
        }
    }
    // Words, and no part of what is computed.
    settings.remove("purpose");
    settings
}

/// The keys in which the groups differ.
fn differing(groups: &[(Settings, Vec<&RunFolder>)]) -> BTreeSet<String> {
    let keys: BTreeSet<&String> = groups.iter().flat_map(|(settings, _)| settings.keys()).collect();
    keys.into_iter()
        .filter(|key| {
            let mut values = groups.iter().map(|(settings, _)| settings.get(*key));
            let first = values.next();
            values.any(|value| Some(value) != first)
        })
        .cloned()
        .collect()
}

fn group(settings: &Settings, differing: &BTreeSet<String>, runs: &[&RunFolder]) -> Group {
    let settings: Settings = differing
        .iter()
        .filter_map(|key| Some((key.clone(), settings.get(key)?.clone())))
        .collect();
    let interval = |of: &dyn Fn(&[RoundScore]) -> Option<f64>| {
        let values: Vec<f64> = runs.iter().filter_map(|run| of(&run.rounds)).collect();
        Interval::of(&values)
    };
    let last = |of: fn(&RoundScore) -> f64| interval(&|rounds| rounds.last().map(of));
    Group {
        name: name(&settings, differing, &runs[0].plan.name),
        runs: runs
            .iter()
            .map(|run| RunOfGroup {
                dir: run.dir.clone(),
                seed: run.plan.seed,
                world_seed: run.world.seed,
                accuracy: run.rounds.last().map_or(f64::NAN, |score| score.accuracy),
            })
            .collect(),
        accuracy: last(|score| score.accuracy),
        best_accuracy: interval(&|rounds| {
            rounds.iter().map(|score| score.accuracy).max_by(f64::total_cmp)
        }),
        loss: last(|score| score.loss),
        epsilon: interval(&|rounds| rounds.last().and_then(largest_epsilon)),
        bytes: interval(&|rounds| {
            Some(rounds.iter().flat_map(|score| score.bytes.values()).sum::<u64>() as f64)
        }),
        seconds: interval(&|rounds| Some(rounds.iter().map(|score| score.seconds).sum())),
        clock_s: last(|score| score.clock_s),
        lowest_tenth: interval(&|rounds| Some(rounds.last()?.fairness?.tenth)),
        rounds: runs.iter().map(|run| run.rounds.clone()).collect(),
        settings,
    }
}

/// What tells a group from the others, by the last parts of the keys where these suffice.
fn name(settings: &Settings, differing: &BTreeSet<String>, plan: &str) -> String {
    if settings.is_empty() {
        return plan.to_owned();
    }
    let short = |key: &str| key.rsplit('.').next().unwrap_or(key).to_owned();
    let shorts: Vec<String> = differing.iter().map(|key| short(key)).collect();
    let named = settings.iter().map(|(key, value)| {
        let is_unique = shorts.iter().filter(|other| **other == short(key)).count() == 1;
        let key = if is_unique { short(key) } else { key.clone() };
        let value = value.trim_matches('"');
        let mut shown: String = value.chars().take(N_CHARS_MAX).collect();
        if shown.len() < value.len() {
            shown.push('…');
        }
        format!("{key}={shown}")
    });
    named.collect::<Vec<_>>().join(", ")
}

fn largest_epsilon(score: &RoundScore) -> Option<f64> {
    score.epsilon.values().copied().flatten().max_by(f64::total_cmp)
}

/// Means by round, with their intervals as a band; `None` where no run has a value.
fn curve(group: &Group, of: &dyn Fn(&[RoundScore], usize) -> f64) -> Option<Series> {
    let mut by_round: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
    for rounds in &group.rounds {
        for (index, score) in rounds.iter().enumerate() {
            let value = of(rounds, index);
            if value.is_finite() {
                by_round.entry(score.round).or_default().push(value);
            }
        }
    }
    let (mut points, mut band) = (Vec::new(), Vec::new());
    for (round, values) in &by_round {
        let interval = Interval::of(values)?;
        let half = interval.half_width.unwrap_or(0.0);
        points.push((f64::from(*round), interval.mean));
        band.push((interval.mean - half, interval.mean + half));
    }
    (!points.is_empty()).then(|| Series { name: group.name.clone(), points, band })
}

fn runs_of(group: &Group) -> impl Iterator<Item = Vec<String>> {
    group.runs.iter().map(|run| {
        vec![
            group.name.clone(),
            run.dir.display().to_string(),
            run.seed.to_string(),
            run.world_seed.to_string(),
            Quantity::Share.text(run.accuracy),
        ]
    })
}

/// `interval` for people.
fn with_interval(interval: Option<Interval>, quantity: Quantity) -> String {
    let Some(Interval { mean, half_width, .. }) = interval else { return "–".to_owned() };
    match (half_width, quantity) {
        (None, _) => quantity.text(mean),
        (Some(0.0), Quantity::Bytes | Quantity::Seconds) => quantity.text(mean),
        (Some(half), Quantity::Share) => format!("{:.2} ± {:.2} %", 100.0 * mean, 100.0 * half),
        (Some(half), _) => format!("{} ± {}", quantity.text(mean), quantity.text(half)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::samples;

    fn run(learning_rate: f64, seed: u64, accuracy: f64) -> RunFolder {
        let mut plan = samples::plan();
        plan.seed = seed;
        plan.training.optimizer =
            comity_federation::Optimizer::Sgd { learning_rate, momentum: 0.0 };
        let mut world = samples::world();
        world.seed = seed;
        let mut rounds = samples::rounds(3);
        rounds[2].accuracy = accuracy;
        RunFolder {
            dir: PathBuf::from(format!("{learning_rate}-{seed}")),
            plan,
            world,
            environment: samples::environment(),
            partition: None,
            rounds,
            accuracies: Vec::new(),
            summary: Some(serde_json::json!({ "status": "finished" })),
        }
    }

    #[test]
    fn runs_that_differ_by_seeds_are_one_group() {
        let mut runs =
            vec![run(0.5, 1, 0.8), run(0.25, 1, 0.5), run(0.5, 2, 0.9), run(0.5, 3, 1.0)];
        let mut broken = run(0.5, 4, 0.1);
        broken.summary = None;
        runs.push(broken);
        let comparison = Comparison::of(&runs);
        let names: Vec<&str> = comparison.groups.iter().map(|g| g.name.as_str()).collect();
        assert_eq!(names, ["learning_rate=0.5", "learning_rate=0.25"]);
        let accuracy = comparison.groups[0].accuracy.unwrap();
        assert!((accuracy.mean - 0.9).abs() < 1e-12 && accuracy.n == 3);
        // 4.3027 * 0.1 / sqrt(3)
        assert!((accuracy.half_width.unwrap() - 0.248_416).abs() < 1e-5, "{accuracy:?}");
        assert_eq!(comparison.groups[1].accuracy.unwrap().half_width, None);
        assert_eq!(comparison.left_out, [(PathBuf::from("0.5-4"), "interrupted".to_owned())]);
        let (header, rows) = comparison.table();
        assert_eq!(rows.len(), 2);
        assert!(rows.iter().all(|row| row.len() == header.len()));
        assert_eq!(rows[0][2], "90.00 ± 24.84 %");
        let html = comparison.html("a <b> c");
        assert!(html.contains("a &lt;b&gt; c") && html.contains("learning_rate=0.25"));
        assert!(html.contains("interrupted") && html.contains("class=\"a c0\""), "a band is drawn");
    }

    #[test]
    fn keys_with_one_last_part_are_told_apart() {
        let settings: Settings = [("a.seed", "1"), ("b.seed", "2"), ("c.rate", "\"x\"")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        let differing = settings.keys().cloned().collect();
        assert_eq!(name(&settings, &differing, "p"), "a.seed=1, b.seed=2, rate=x");
        assert_eq!(name(&Settings::new(), &BTreeSet::new(), "p"), "p");
    }

    #[test]
    fn nothing_finished_is_a_page_too() {
        let mut only = run(0.5, 1, 0.5);
        only.summary = None;
        let html = Comparison::of(&[only]).html("t");
        assert!(html.contains("No run was finished.") && html.contains("interrupted"));
    }
}
