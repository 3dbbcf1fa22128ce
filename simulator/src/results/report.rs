//! `report.html`: one run to look at.

use std::collections::BTreeMap;

use comity_federation::{Country, Plan};

use super::chart::{Histogram, LabelRow, LineChart, Quantity, Series, label_map};
use super::html::{THEME_BUTTON, details, escape, page, table, tiles};
use super::{ClientLabels, RunFolder};
use crate::{Fairness, RoundScore};

/// Most countries with a line of their own; of more, the largest or the sum is drawn.
const N_COUNTRIES_MAX: usize = 7;
/// Most rounds in the table.
const N_ROWS_MAX: usize = 120;
/// Most clients in the map of labels; of more, as many, evenly spaced by how many rows they have.
const N_CLIENTS_IN_MAP_MAX: usize = 40;
/// Most lines of a plan or a world.
const N_LINES_MAX: usize = 400;

/// The report of what `folder` holds.
pub(super) fn html(folder: &RunFolder) -> String {
    let plan = &folder.plan;
    let mut body = format!(
        "<header><div><h1>{}</h1><p>{}</p><p class=\"soft\">{}</p></div>{THEME_BUTTON}</header>\n",
        escape(&plan.name),
        escape(&plan.purpose),
        escape(&standing(folder))
    );
    if let Some(reason) = folder.unfinished() {
        body += &format!("<p class=\"warn\">This run is not finished: {}.</p>\n", escape(&reason));
    }
    if plan.unit().is_some() && !folder.environment.noise.starts_with("exact") {
        body += "<p class=\"warn\">The noise was seeded, so that the run can be repeated: \
                 whoever knows the seed can take it away. This model is not private.</p>\n";
    }
    body += &tiles(&headline(folder));
    body += "<h2>By round</h2>\n<div class=\"charts\">\n";
    for chart in charts(folder) {
        body += &chart;
    }
    body += "</div>\n<h2>Clients</h2>\n<div class=\"charts\">\n";
    body += &fairness_chart(&folder.rounds);
    body += &accuracies_chart(folder);
    body += "</div>\n";
    body += &partition(folder);
    body += "<h2>Rounds</h2>\n";
    body += &rounds_table(folder);
    body += "<h2>What was run</h2>\n";
    body += &details("Plan, with every setting of the command line", &shown(&toml_of(plan)));
    body += &details("World", &shown(&toml_of(&folder.world)));
    body += &environment(folder);
    page(&format!("{} · Comity", plan.name), &body)
}

fn toml_of(value: &impl serde::Serialize) -> String {
    toml::to_string(value).expect("plans and worlds are read from TOML")
}

/// `text`, cut where it is long.
fn shown(text: &str) -> String {
    let n_lines = text.lines().count();
    if n_lines <= N_LINES_MAX {
        return text.to_owned();
    }
    let lines: Vec<&str> = text.lines().take(N_LINES_MAX).collect();
    format!("{}\n… {} more lines in the file", lines.join("\n"), n_lines - N_LINES_MAX)
}

fn standing(folder: &RunFolder) -> String {
    let (plan, environment) = (&folder.plan, &folder.environment);
    let n_clients = plan.cohort.clients.len();
    let n_countries = super::rounds::countries(plan).len();
    format!(
        "{n_clients} clients in {n_countries} {}, {}; simulated by Comity {} on {}",
        if n_countries == 1 { "country" } else { "countries" },
        strategy_name(plan),
        environment.comity,
        environment.started.replace('T', " ").trim_end_matches('Z'),
    ) + " UTC"
}

/// The strategy as the plan calls it, without its settings.
fn strategy_name(plan: &Plan) -> String {
    match serde_json::to_value(plan.aggregation.strategy) {
        Ok(serde_json::Value::String(name)) => name,
        Ok(serde_json::Value::Object(one)) => one.keys().next().cloned().unwrap_or_default(),
        _ => String::new(),
    }
}

fn headline(folder: &RunFolder) -> Vec<(&'static str, String, String)> {
    let rounds = &folder.rounds;
    let Some(last) = rounds.last() else {
        return vec![("Rounds", "0".to_owned(), format!("of {}", folder.plan.rounds))];
    };
    let best = rounds
        .iter()
        .filter(|score| score.accuracy.is_finite())
        .max_by(|a, b| a.accuracy.total_cmp(&b.accuracy).then(b.round.cmp(&a.round)));
    let mut tiles = vec![
        (
            "Accuracy",
            Quantity::Share.text(last.accuracy),
            best.map_or_else(String::new, |best| {
                format!("best {} in round {}", Quantity::Share.text(best.accuracy), best.round)
            }),
        ),
        ("Loss", Quantity::Number.text(last.loss), "mean cross-entropy, nats".to_owned()),
    ];
    let largest = last.epsilon.values().copied().flatten().max_by(f64::total_cmp);
    tiles.push(match (largest, folder.plan.budget(), folder.plan.unit()) {
        (Some(epsilon), Ok(Some(budget)), Some(unit)) => (
            "Largest ε",
            // Rounded up, so that it is never understated.
            format!("{:.3}", (epsilon * 1000.0 - 1e-9).ceil() / 1000.0),
            format!("of {}, δ = {:e}, for each {unit}", budget.epsilon.get(), budget.delta.get()),
        ),
        _ => ("Privacy", "none".to_owned(), "no differential privacy".to_owned()),
    });
    let sent: u64 = rounds.iter().flat_map(|score| score.bytes.values()).sum();
    let seconds: f64 = rounds.iter().map(|score| score.seconds).sum();
    tiles.extend([
        (
            "Sent by clients",
            Quantity::Bytes.text(sent as f64),
            format!("{} a round", Quantity::Bytes.text(sent as f64 / rounds.len() as f64)),
        ),
        (
            "Wall-clock time",
            Quantity::Seconds.text(seconds),
            format!("{} a round", Quantity::Seconds.text(seconds / rounds.len() as f64)),
        ),
        (
            "Rounds",
            rounds.len().to_string(),
            format!(
                "of {}; {} simulated",
                folder.plan.rounds,
                Quantity::Seconds.text(last.clock_s)
            ),
        ),
    ]);
    if let Some(fairness) = last.fairness {
        tiles.push((
            "Lowest tenth of clients",
            Quantity::Share.text(fairness.tenth),
            format!("mean {}", Quantity::Share.text(fairness.mean)),
        ));
    }
    tiles
}

fn points(rounds: &[RoundScore], y: impl Fn(&RoundScore) -> f64) -> Vec<(f64, f64)> {
    rounds.iter().map(|score| (f64::from(score.round), y(score))).collect()
}

fn charts(folder: &RunFolder) -> Vec<String> {
    let rounds = &folder.rounds;
    let empty = "No round was finished.";
    let line = |title, note, y, from_zero, of: fn(&RoundScore) -> f64| {
        let series = vec![Series::line(title, points(rounds, of))];
        LineChart { title, note, x_label: "round", y, from_zero, series, empty }.html()
    };
    let countries = super::rounds::countries(&folder.plan);
    let has_backdoor = rounds.iter().any(|score| score.backdoor.is_some());
    let backdoor = has_backdoor.then(|| {
        line(
            "Backdoor",
            "how much of the public test set with the attackers' trigger gets the attackers' label",
            Quantity::Share,
            true,
            |score| score.backdoor.unwrap_or(f64::NAN),
        )
    });
    let mut charts = vec![
        line(
            "Accuracy",
            "of each round's model on the public test set",
            Quantity::Share,
            false,
            |score| score.accuracy,
        ),
        line(
            "Loss",
            "mean cross-entropy on the public test set, in nats",
            Quantity::Number,
            false,
            |s| s.loss,
        ),
        LineChart {
            title: "Privacy spent",
            note: "the largest ε so far among a country's clients",
            x_label: "round",
            y: Quantity::Number,
            from_zero: true,
            series: epsilon_series(rounds, &countries),
            empty: if folder.plan.unit().is_none() {
                "The plan trains without differential privacy."
            } else {
                empty
            },
        }
        .html(),
        LineChart {
            title: "Sent by clients",
            note: "bytes of all updates so far",
            x_label: "round",
            y: Quantity::Bytes,
            from_zero: true,
            series: bytes_series(rounds, &countries),
            empty,
        }
        .html(),
        line("Wall-clock time", "of each round, with its scoring", Quantity::Seconds, true, |s| {
            s.seconds
        }),
        line(
            "Simulated clock",
            "when each round closed in the simulated world",
            Quantity::Seconds,
            true,
            |score| score.clock_s,
        ),
        LineChart {
            title: "Contributions",
            note: "how many of those who were asked contributed",
            x_label: "round",
            y: Quantity::Count,
            from_zero: true,
            series: if rounds.is_empty() {
                Vec::new()
            } else {
                vec![
                    Series::line("contributed", points(rounds, |s| f64::from(s.n_contributions))),
                    Series::line("missing", points(rounds, |s| f64::from(s.n_missing))),
                ]
            },
            empty,
        }
        .html(),
    ];
    charts.extend(backdoor);
    charts
}

fn epsilon_series(rounds: &[RoundScore], countries: &[Country]) -> Vec<Series> {
    let has_any = |country: &Country| {
        rounds.iter().any(|score| score.epsilon.get(country).copied().flatten().is_some())
    };
    let shown: Vec<Country> = countries.iter().copied().filter(has_any).collect();
    if shown.len() > N_COUNTRIES_MAX {
        let largest = |score: &RoundScore| {
            score.epsilon.values().copied().flatten().max_by(f64::total_cmp).unwrap_or(f64::NAN)
        };
        return vec![Series::line("largest of all countries", points(rounds, largest))];
    }
    let of = |country: &Country| {
        let y =
            |score: &RoundScore| score.epsilon.get(country).copied().flatten().unwrap_or(f64::NAN);
        Series::line(country.to_string(), points(rounds, y))
    };
    shown.iter().map(of).collect()
}

fn bytes_series(rounds: &[RoundScore], countries: &[Country]) -> Vec<Series> {
    if rounds.is_empty() {
        return Vec::new();
    }
    let cumulative = |of: &dyn Fn(&BTreeMap<Country, u64>) -> u64| {
        let mut total = 0;
        rounds
            .iter()
            .map(|score| {
                total += of(&score.bytes);
                (f64::from(score.round), total as f64)
            })
            .collect()
    };
    let all = Series::line("all countries", cumulative(&|bytes| bytes.values().sum()));
    if countries.len() == 1 || countries.len() > N_COUNTRIES_MAX {
        return vec![all];
    }
    countries
        .iter()
        .map(|country| {
            let of = |bytes: &BTreeMap<Country, u64>| bytes.get(country).copied().unwrap_or(0);
            Series::line(country.to_string(), cumulative(&of))
        })
        .collect()
}

/// Why nothing is known of how clients differ.
const NO_CLIENT_TESTS: &str = "The clients keep no records of their own for testing.";

fn fairness_chart(rounds: &[RoundScore]) -> String {
    let of = |value: fn(&Fairness) -> f64| {
        points(rounds, |score| score.fairness.as_ref().map_or(f64::NAN, value))
    };
    let pairs = |low: fn(&Fairness) -> f64, high: fn(&Fairness) -> f64| {
        of(low).into_iter().zip(of(high)).map(|((_, low), (_, high))| (low, high)).collect()
    };
    let is_there = rounds.iter().any(|score| score.fairness.is_some());
    let series = vec![
        Series {
            name: "mean, with lowest and highest".to_owned(),
            points: of(|f| f.mean),
            band: pairs(|f| f.min, |f| f.max),
        },
        Series::line("lowest tenth", of(|f| f.tenth)),
    ];
    LineChart {
        title: "Accuracy across clients",
        note: "of each round's model on what each client keeps for testing",
        x_label: "round",
        y: Quantity::Share,
        from_zero: false,
        series: if is_there { series } else { Vec::new() },
        empty: NO_CLIENT_TESTS,
    }
    .html()
}

fn accuracies_chart(folder: &RunFolder) -> String {
    let values: Vec<f64> = folder.accuracies.iter().map(|(_, accuracy)| *accuracy).collect();
    Histogram {
        title: "Clients after the last round",
        note: "how many clients reach which accuracy on their own records",
        x_label: "accuracy",
        x: Quantity::Share,
        range: Some((0.0, 1.0)),
        values: &values,
        empty: NO_CLIENT_TESTS,
    }
    .html()
}

/// The picture of the partition: which labels each client has; of many clients a selection, and how
/// all of them differ.
fn partition(folder: &RunFolder) -> String {
    let Some(table) = &folder.partition else { return String::new() };
    let n_clients = table.clients.len();
    let mut rows: Vec<&ClientLabels> = table.clients.iter().collect();
    let mut html = "<h2>How the training rows lie over the clients</h2>\n".to_owned();
    let note = if n_clients <= N_CLIENTS_IN_MAP_MAX {
        "the darker, the larger the label's share of a client's rows".to_owned()
    } else {
        rows.sort_by(|a, b| b.n_rows().cmp(&a.n_rows()).then_with(|| a.client.cmp(&b.client)));
        let last = N_CLIENTS_IN_MAP_MAX - 1;
        rows = (0..=last).map(|i| rows[i * (n_clients - 1) / last]).collect();
        format!(
            "{N_CLIENTS_IN_MAP_MAX} of {n_clients} clients, from the one with most rows to the one \
             with fewest; the darker, the larger the label's share of a client's rows"
        )
    };
    let rows: Vec<LabelRow> = rows
        .iter()
        .map(|row| LabelRow { name: row.client.to_string(), by_label: row.by_label.clone() })
        .collect();
    html += &label_map("Labels by client", &note, &rows, table.n_classes);
    if n_clients > N_CLIENTS_IN_MAP_MAX {
        let n_rows: Vec<f64> = table.clients.iter().map(|c| c.n_rows() as f64).collect();
        let largest: Vec<f64> = table
            .clients
            .iter()
            .filter(|client| client.n_rows() > 0)
            .map(|c| c.by_label.iter().copied().max().unwrap_or(0) as f64 / c.n_rows() as f64)
            .collect();
        html += "<div class=\"charts after\">\n";
        html += &Histogram {
            title: "Rows",
            note: "how many rows a client has",
            x_label: "rows",
            x: Quantity::Count,
            range: None,
            values: &n_rows,
            empty: "No client has rows.",
        }
        .html();
        html += &Histogram {
            title: "Largest label",
            note: "which part of a client's rows has its most frequent label",
            x_label: "share of the rows",
            x: Quantity::Share,
            range: Some((0.0, 1.0)),
            values: &largest,
            empty: "No client has rows.",
        }
        .html();
        html += "</div>\n";
    }
    html
}

fn rounds_table(folder: &RunFolder) -> String {
    let rounds = &folder.rounds;
    if rounds.is_empty() {
        return "<p class=\"soft\">No round was finished.</p>\n".to_owned();
    }
    let has_epsilon = rounds.iter().any(|s| s.epsilon.values().any(Option::is_some));
    let has_fairness = rounds.iter().any(|s| s.fairness.is_some());
    let mut header = vec!["round", "accuracy", "loss"];
    if has_epsilon {
        header.push("largest ε");
    }
    if has_fairness {
        header.extend(["lowest tenth", "lowest"]);
    }
    header.extend(["contributed", "missing", "sent", "seconds", "clock", "model"]);
    let stride = rounds.len().div_ceil(N_ROWS_MAX);
    let last = rounds.len() - 1;
    let rows: Vec<Vec<String>> = rounds
        .iter()
        .enumerate()
        .filter(|(index, _)| index % stride == 0 || *index == last)
        .map(|(_, score)| {
            let mut row = vec![
                score.round.to_string(),
                Quantity::Share.text(score.accuracy),
                format!("{:.4}", score.loss),
            ];
            if has_epsilon {
                let largest = score.epsilon.values().copied().flatten().max_by(f64::total_cmp);
                row.push(largest.map_or_else(
                    || "–".to_owned(),
                    |epsilon| format!("{:.3}", (epsilon * 1000.0 - 1e-9).ceil() / 1000.0),
                ));
            }
            if has_fairness {
                let of = |value: fn(&Fairness) -> f64| {
                    score.fairness.as_ref().map_or_else(
                        || "–".to_owned(),
                        |fairness| Quantity::Share.text(value(fairness)),
                    )
                };
                row.extend([of(|f| f.tenth), of(|f| f.min)]);
            }
            row.extend([
                score.n_contributions.to_string(),
                score.n_missing.to_string(),
                Quantity::Bytes.text(score.bytes.values().sum::<u64>() as f64),
                format!("{:.2}", score.seconds),
                Quantity::Seconds.text(score.clock_s),
                score.model.short(),
            ]);
            row
        })
        .collect();
    let mut html = table(&header.into_iter().map(str::to_owned).collect::<Vec<_>>(), &rows, 0);
    if stride > 1 {
        html += &format!(
            "<p class=\"soft\">One round in {stride}; all of them are in rounds.csv.</p>\n"
        );
    }
    html
}

fn environment(folder: &RunFolder) -> String {
    let environment = &folder.environment;
    let unknown = || "unknown".to_owned();
    let model = folder.rounds.last().map_or_else(unknown, |score| score.model.to_string());
    let rows: Vec<Vec<String>> = [
        ("Comity", environment.comity.clone()),
        ("plan", folder.plan.digest().to_string()),
        ("last model", model),
        (
            "seeds",
            format!("{} of the world, {} of the plan", environment.seed, environment.plan_seed),
        ),
        ("noise", environment.noise.clone()),
        ("device", environment.device.clone()),
        ("threads", format!("{} of {} cores", environment.n_threads, environment.n_cores)),
        ("processor", environment.cpu.clone().unwrap_or_else(unknown)),
        (
            "system",
            format!(
                "{}, kernel {}",
                environment.platform,
                environment.kernel.clone().unwrap_or_else(unknown)
            ),
        ),
        ("began", environment.started.clone()),
    ]
    .map(|(name, value)| vec![name.to_owned(), value])
    .to_vec();
    let exact = if environment.noise.starts_with("exact") { " --exact-noise" } else { "" };
    let device = match environment.device.as_str() {
        "cpu" => String::new(),
        device => format!(" --device {device}"),
    };
    let command = format!("comity-sim run plan.toml --world world.toml --out again{exact}{device}");
    let header = ["", ""].map(str::to_owned);
    format!(
        "<h2>On what, and how to repeat it</h2>\n{}<p style=\"margin-top:14px\">In this folder:</p>\
         <pre>{}</pre>\n",
        table(&header, &rows, 2),
        escape(&command)
    )
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::results::samples;

    fn folder(n_rounds: u32) -> RunFolder {
        RunFolder {
            dir: PathBuf::from("d"),
            plan: samples::plan(),
            world: samples::world(),
            environment: samples::environment(),
            partition: Some(samples::partition()),
            rounds: samples::rounds(n_rounds),
            accuracies: Vec::new(),
            summary: None,
        }
    }

    #[test]
    fn a_report_says_what_happened_and_asks_nobody() {
        let mut folder = folder(3);
        let clients = samples::clients(3).into_iter();
        folder.accuracies = clients.map(|c| (c.client, c.accuracy.unwrap())).collect();
        folder.summary = Some(serde_json::json!({ "status": "finished" }));
        let html = html(&folder);
        for expected in [
            "A &lt;test&gt; of three clients.",
            "3 clients in 2 countries, fedavg",
            "73.33 %",
            "Privacy spent",
            "KR/c: 120 rows of label 2",
            "strategy = &quot;fedavg&quot;",
            "--world world.toml",
        ] {
            assert!(html.contains(expected), "{expected} is missing");
        }
        for forbidden in ["<test>", "http:", "https:", "NaN", "not finished", "src="] {
            assert!(!html.contains(forbidden), "{forbidden}");
        }
    }

    #[test]
    fn what_is_not_there_is_said() {
        let mut folder = folder(0);
        folder.partition = None;
        folder.summary =
            Some(serde_json::json!({ "status": "aborted", "reason": "too few <clients>" }));
        let html = html(&folder);
        for expected in [
            "No round was finished.",
            "not finished: aborted: too few &lt;clients&gt;",
            "without differential privacy",
            NO_CLIENT_TESTS,
        ] {
            assert!(html.contains(expected), "{expected} is missing");
        }
        assert!(!html.contains("<svg"), "there is nothing to draw");
    }

    /// Ten thousand clients and rounds are a report of some hundred kilobytes.
    #[test]
    fn a_large_run_is_a_small_report() {
        let mut folder = folder(10_000);
        let client = |i: usize| ClientLabels {
            client: format!("KR/c{i}").parse().unwrap(),
            by_label: (0..10).map(|label| (i * 7 + label * 13) % 50).collect(),
        };
        let table = folder.partition.as_mut().unwrap();
        (table.n_classes, table.clients) = (10, (0..10_000).map(client).collect());
        folder.accuracies = table
            .clients
            .iter()
            .enumerate()
            .map(|(i, row)| (row.client.clone(), (i % 100) as f64 / 100.0))
            .collect();
        let html = html(&folder);
        assert!(html.len() < 600_000, "{} bytes", html.len());
        assert!(html.contains("40 of 10000 clients") && html.contains("One round in 84"));
    }
}
