//! The certificate of a model as one page to read and to print: no script, nothing from elsewhere, every text escaped.

use std::fmt::{self, Write as _};

use comity_certs::date_of;
use comity_federation::{CertificateFile, ModelCertificate, PrivacyTerms, RunStatus};

const STYLE: &str = include_str!("certificate.css");
/// Tensors that are listed one by one.
const TENSORS_SHOWN: usize = 40;

/// A text as HTML shows it, whatever it holds.
struct Text<T>(T);

impl<T: fmt::Display> fmt::Display for Text<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.to_string().chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                // Marks that turn the direction of a text could make it read as another.
                '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => f.write_char('\u{fffd}')?,
                c if c.is_control() => f.write_char(' ')?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// The page.
pub(super) fn page(file: &CertificateFile) -> String {
    let mut html = String::new();
    write(&mut html, file).expect("a String takes any text");
    html
}

fn write(html: &mut String, file: &CertificateFile) -> fmt::Result {
    let paper = &file.certificate;
    write!(
        html,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>Certificate of model {}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n",
        paper.model.short()
    )?;
    head(html, paper)?;
    privacy(html, paper)?;
    rounds(html, paper)?;
    evaluation(html, paper)?;
    model(html, paper)?;
    proof(html, file)?;
    html.push_str("</main>\n</body>\n</html>\n");
    Ok(())
}

fn head(html: &mut String, paper: &ModelCertificate) -> fmt::Result {
    let status = match paper.status {
        RunStatus::Finished => "All rounds of the run are done.",
        RunStatus::Aborted => "The run was ended early; this is the last model that it reached.",
        _ => "The run was not over when this was certified.",
    };
    write!(
        html,
        "<header>\n<p class=\"kind\">Certificate of a model</p>\n<h1>{}</h1>\n<p class=\"purpose\">{}</p>\n</header>\n\
         <dl class=\"facts\">\n\
         <div class=\"wide\"><dt>Model</dt><dd class=\"digest\">{}</dd></div>\n\
         <div><dt>Federation</dt><dd>{}</dd></div>\n<div><dt>Run</dt><dd>{}</dd></div>\n\
         <div><dt>Certified</dt><dd>{}</dd></div>\n<div><dt>Launched by</dt><dd>{}, {}</dd></div>\n\
         </dl>\n<p class=\"note\">{status}</p>\n",
        Text(&paper.name),
        Text(&paper.purpose),
        paper.model,
        Text(&paper.federation),
        Text(&paper.run),
        date_of(paper.certified),
        Text(&paper.launch.by),
        date_of(paper.launch.at),
    )
}

fn privacy(html: &mut String, paper: &ModelCertificate) -> fmt::Result {
    let promise = match &paper.privacy {
        PrivacyTerms::None => {
            "Trained without differential privacy: each institution allowed that for this run."
                .to_owned()
        }
        PrivacyTerms::DpSgd { unit, clip_norm_l2, .. } => format!(
            "Everything that an institution sent in the whole run is (ε, δ)-differentially private for each {} in its data, \
             by noise that the institution added itself (clipping norm {clip_norm_l2}).",
            match unit {
                comity_privacy::PrivacyUnit::Record => "record",
                comity_privacy::PrivacyUnit::Person { .. } => "person",
                _ => "institution",
            }
        ),
        PrivacyTerms::DpFedavg { .. } => {
            "The models are (ε, δ)-differentially private for each institution.".to_owned()
        }
    };
    write!(
        html,
        "<section>\n<h2>Institutions and privacy</h2>\n<p>{promise}</p>\n<table>\n<thead><tr><th>Institution</th>\
         <th class=\"n\">Records</th><th class=\"n\">Rounds counted</th><th class=\"n\">ε</th><th class=\"n\">δ</th>\
         <th class=\"n\">Noise multiplier</th></tr></thead>\n<tbody>\n"
    )?;
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "–".to_owned());
    for client in &paper.clients {
        writeln!(
            html,
            "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{}</td></tr>",
            Text(&client.client),
            client.records,
            client.n_rounds,
            // Rounded up, so that it is never understated.
            or_dash(client.epsilon.map(|e| format!("{:.4}", (e * 1e4).ceil() / 1e4))),
            or_dash(client.delta.map(|d| format!("{d:e}"))),
            or_dash(client.noise_multiplier.map(|s| format!("{s:.4}"))),
        )?;
    }
    html.push_str("</tbody>\n</table>\n");
    if let Some(statistics) = &paper.statistics {
        html.push_str("<h3>Statistics released before training, with noise</h3>\n<ul>\n");
        for estimate in statistics {
            writeln!(html, "<li>{}</li>", Text(estimate))?;
        }
        html.push_str("</ul>\n");
    }
    html.push_str("</section>\n");
    Ok(())
}

fn rounds(html: &mut String, paper: &ModelCertificate) -> fmt::Result {
    html.push_str(
        "<section>\n<h2>Rounds</h2>\n<table class=\"rounds\">\n<thead><tr><th class=\"n\">Round</th><th>Ended</th>\
         <th>Contributed (weight)</th><th>Missing</th><th class=\"n\">Signed by</th><th>Record</th></tr></thead>\n<tbody>\n",
    );
    for round in &paper.rounds {
        let contributed: Vec<String> = round
            .contributions
            .iter()
            .map(|c| {
                let age = match c.staleness {
                    0 => String::new(),
                    n => format!(", of round {}", round.round.saturating_sub(n)),
                };
                format!("{} ({}{age})", Text(&c.client), c.weight)
            })
            .collect();
        let missing: Vec<String> = round
            .missing
            .iter()
            .map(|(client, why)| format!("{}: {}", Text(client), Text(why)))
            .collect();
        writeln!(
            html,
            "<tr><td class=\"n\">{}</td><td class=\"when\">{}</td><td>{}</td><td>{}</td><td class=\"n\">{}</td>\
             <td class=\"short\" title=\"{}\">{}</td></tr>",
            round.round,
            date_of(round.closed),
            contributed.join("<br>"),
            missing.join("<br>"),
            round.n_countersignatures,
            round.record,
            round.record.short(),
        )?;
    }
    html.push_str("</tbody>\n</table>\n");
    if paper.rounds.is_empty() {
        html.push_str("<p class=\"note\">No round has ended in a model yet.</p>\n");
    }
    html.push_str("</section>\n");
    Ok(())
}

fn evaluation(html: &mut String, paper: &ModelCertificate) -> fmt::Result {
    html.push_str("<section>\n<h2>How good it is</h2>\n");
    match &paper.evaluation {
        Some(evaluation) => {
            let content = serde_json::to_string_pretty(&evaluation.content)
                .expect("what was read as JSON can be written as JSON");
            write!(
                html,
                "<p>As the operator measured it; the file's BLAKE3 is <span class=\"digest\">{}</span></p>\n<pre>{}</pre>\n",
                evaluation.blake3,
                // Lines are kept: a preformatted text has no other control characters.
                content.lines().map(|line| Text(line).to_string()).collect::<Vec<_>>().join("\n")
            )?;
        }
        None => html.push_str("<p class=\"note\">No evaluation was given.</p>\n"),
    }
    let records = |client: &comity_federation::ClientId| {
        paper.clients.iter().find(|c| c.client == *client).map(|c| c.records).filter(|n| *n > 0)
    };
    if paper.rounds.iter().any(|round| !round.correct.is_empty()) {
        html.push_str(
            "<h3>Accuracy of each round's first model on the institutions' own records, with noise</h3>\n<table>\n\
             <thead><tr><th class=\"n\">Round</th><th>Institution: accuracy</th></tr></thead>\n<tbody>\n",
        );
        for round in paper.rounds.iter().filter(|round| !round.correct.is_empty()) {
            let said: Vec<String> = round
                .correct
                .iter()
                .filter_map(|correct| {
                    let share = 100.0 * correct.n as f64 / records(&correct.client)? as f64;
                    Some(format!("{}: {share:.1} %", Text(&correct.client)))
                })
                .collect();
            writeln!(
                html,
                "<tr><td class=\"n\">{}</td><td>{}</td></tr>",
                round.round,
                said.join(" · ")
            )?;
        }
        html.push_str("</tbody>\n</table>\n");
    }
    html.push_str("</section>\n");
    Ok(())
}

fn model(html: &mut String, paper: &ModelCertificate) -> fmt::Result {
    let shape =
        |sides: &[usize]| sides.iter().map(ToString::to_string).collect::<Vec<_>>().join(" × ");
    write!(
        html,
        "<section>\n<h2>Data and model</h2>\n<dl class=\"facts\">\n\
         <div><dt>One record</dt><dd>{} values, {} classes</dd></div>\n\
         <div><dt>Parameters</dt><dd>{}, of which {} were trained</dd></div>\n</dl>\n<ol class=\"layers\">\n",
        shape(&paper.data.shape),
        paper.data.classes,
        paper.n_parameters,
        paper.n_trained,
    )?;
    for layer in &paper.layers {
        let layer = serde_json::to_string(layer).expect("a layer is plain text and numbers");
        writeln!(html, "<li><code>{}</code></li>", Text(layer))?;
    }
    html.push_str(
        "</ol>\n<table>\n<thead><tr><th>Tensor</th><th class=\"n\">Shape</th></tr></thead>\n<tbody>\n",
    );
    for tensor in paper.tensors.iter().take(TENSORS_SHOWN) {
        writeln!(
            html,
            "<tr><td><code>{}</code></td><td class=\"n\">{}</td></tr>",
            Text(&tensor.name),
            shape(&tensor.shape)
        )?;
    }
    html.push_str("</tbody>\n</table>\n");
    if let Some(rest) = paper.tensors.len().checked_sub(TENSORS_SHOWN).filter(|rest| *rest > 0) {
        writeln!(html, "<p class=\"note\">And {rest} more, in certificate.json.</p>")?;
    }
    html.push_str("</section>\n");
    Ok(())
}

fn proof(html: &mut String, file: &CertificateFile) -> fmt::Result {
    let paper = &file.certificate;
    html.push_str("<section>\n<h2>To check it</h2>\n<dl class=\"proof\">\n");
    let mut line = |name: &str, value: &dyn fmt::Display| {
        writeln!(html, "<dt>{name}</dt><dd class=\"digest\">{}</dd>", Text(value))
    };
    line("Plan (BLAKE3)", &paper.plan)?;
    if let Some(order) = &paper.launch.order {
        line("Operator's order (BLAKE3)", order)?;
    }
    for client in &paper.launch.consents {
        line("Plan signed by", client)?;
    }
    if let Some(root) = &paper.records_root {
        line("Last round's record (BLAKE3)", root)?;
    }
    if let Some(model) = &paper.file {
        line("Model's file (SHA-256)", &model.sha256)?;
    }
    for root in &paper.roots {
        line("Federation's root (SHA-256)", root)?;
    }
    write!(
        html,
        "</dl>\n<p>The coordinator of {} signed certificate.json, from which this page was made, for operator {}. \
         <code>comity-coordinator model verify certificate.json --model FILE --root root.pem --records EXPORT</code> \
         checks the signature, the model's file and the records of every round. Made by {}.</p>\n</section>\n",
        Text(&paper.federation),
        Text(&paper.certified_for),
        Text(&paper.software),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use comity_federation::Time;

    #[test]
    fn no_text_becomes_markup_or_turns_the_page_around() {
        let hostile = "<script>alert('x')</script>\" onload=\"y & \u{202e}txt\n";
        let shown = Text(hostile).to_string();
        for bad in ['<', '>', '"', '\'', '\u{202e}', '\n'] {
            assert!(!shown.contains(bad), "{bad:?} in {shown}");
        }
        assert!(shown.starts_with("&lt;script&gt;alert(&#39;x&#39;)"), "{shown}");
    }

    #[test]
    fn dates_beyond_the_calendar_are_shown_as_they_are() {
        assert_eq!(date_of(Time(0)), "1970-01-01 00:00 UTC");
        assert_eq!(date_of(Time(u64::MAX)), Time(u64::MAX).to_string());
    }
}
