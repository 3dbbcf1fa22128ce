//! Charts as SVG text: lines with bands, histograms, and the map of a partition.
//!
//! Colours come from the page's style sheet, so that one drawing serves light, dark and paper.
//! Every mark says its value when the pointer rests on it, without a line of script.

use std::fmt::Write as _;

use super::html::escape;

/// Most points that a line is drawn through; more would only make the file larger.
const N_POINTS_MAX: usize = 240;
/// Colours in the style sheet; further series repeat them with dashes.
pub(super) const N_COLOURS: usize = 7;
const WIDTH: f64 = 470.0;
const HEIGHT: f64 = 250.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 10.0;
const TOP: f64 = 22.0;
const BOTTOM: f64 = 36.0;

/// What an axis counts, and with it the unit in which it is written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Quantity {
    /// A part of one, as per cent.
    Share,
    Bytes,
    Seconds,
    /// A bare number.
    Number,
    /// A bare number that is whole.
    Count,
}

impl Quantity {
    /// The factor to the unit that suits values up to `largest`, and the unit.
    fn unit(self, largest: f64) -> (f64, &'static str) {
        // From which value on, how large, and its name.
        let units: &[(f64, f64, &'static str)] = match self {
            Self::Share => &[(0.0, 0.01, "%")],
            Self::Number | Self::Count => &[(0.0, 1.0, "")],
            Self::Bytes => &[
                (0.0, 1.0, "B"),
                (1e3, 1e3, "kB"),
                (1e6, 1e6, "MB"),
                (1e9, 1e9, "GB"),
                (1e12, 1e12, "TB"),
            ],
            Self::Seconds => {
                &[(0.0, 1e-3, "ms"), (1.0, 1.0, "s"), (120.0, 60.0, "min"), (7200.0, 3600.0, "h")]
            }
        };
        let fitting = units.iter().rev().find(|(from, ..)| largest >= *from);
        let (_, size, unit) = fitting.unwrap_or(&units[0]);
        (size.recip(), unit)
    }

    /// `value` for people, in the unit that suits it.
    pub(super) fn text(self, value: f64) -> String {
        let (factor, unit) = self.unit(value.abs());
        let number = match self {
            Self::Count => format!("{value:.0}"),
            Self::Share => format!("{:.2}", value * factor),
            _ => significant(value * factor),
        };
        if unit.is_empty() { number } else { format!("{number} {unit}") }
    }
}

/// Four digits that matter.
fn significant(value: f64) -> String {
    if !value.is_finite() || value == 0.0 {
        return format!("{value}");
    }
    let magnitude = value.abs().log10().floor();
    if !(-4.0..7.0).contains(&magnitude) {
        return format!("{value:.3e}");
    }
    let decimals = (3.0 - magnitude).max(0.0) as usize;
    let text = format!("{value:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Series {
    /// As the legend has it.
    pub(super) name: String,
    /// Where it goes; what is not finite is a gap.
    pub(super) points: Vec<(f64, f64)>,
    /// From where to where it may lie, a pair a point; or empty.
    pub(super) band: Vec<(f64, f64)>,
}

impl Series {
    /// A line without a band.
    pub(super) fn line(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.into(), points, band: Vec::new() }
    }
}

/// Lines over rounds.
#[derive(Clone, Debug)]
pub(super) struct LineChart<'a> {
    pub(super) title: &'a str,
    /// What is shown, in a sentence.
    pub(super) note: &'a str,
    pub(super) x_label: &'a str,
    pub(super) y: Quantity,
    /// Whether the axis begins at zero whatever the values.
    pub(super) from_zero: bool,
    pub(super) series: Vec<Series>,
    /// What is said where there is nothing to draw.
    pub(super) empty: &'a str,
}

/// The frame of a chart: from data to the drawing.
struct Frame {
    x: (f64, f64),
    y: (f64, f64),
}

impl Frame {
    fn x(&self, x: f64) -> f64 {
        LEFT + (x - self.x.0) / (self.x.1 - self.x.0) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, y: f64) -> f64 {
        HEIGHT - BOTTOM - (y - self.y.0) / (self.y.1 - self.y.0) * (HEIGHT - TOP - BOTTOM)
    }
}

impl LineChart<'_> {
    /// The chart as a figure with caption and legend.
    pub(super) fn html(&self) -> String {
        let series: Vec<Series> = self.series.iter().map(thinned).collect();
        let finite = || {
            series.iter().flat_map(|s| {
                let ends = s.band.iter().flat_map(|(low, high)| [*low, *high]);
                s.points.iter().map(|(_, y)| *y).chain(ends).filter(|y| y.is_finite())
            })
        };
        let (low, high) =
            (finite().fold(f64::INFINITY, f64::min), finite().fold(f64::NEG_INFINITY, f64::max));
        if low > high {
            return empty_figure(self.title, self.note, self.empty);
        }
        let (factor, unit) = self.y.unit(high.abs().max(low.abs()));
        let low = if self.from_zero { low.min(0.0) } else { low };
        let y_ticks = ticks(low * factor, high * factor, 5, self.y == Quantity::Count);
        let xs = || series.iter().flat_map(|s| s.points.iter().map(|(x, _)| *x));
        let (first, last) =
            (xs().fold(f64::INFINITY, f64::min), xs().fold(f64::NEG_INFINITY, f64::max));
        let frame = Frame {
            x: if first < last { (first, last) } else { (first - 1.0, last + 1.0) },
            y: (y_ticks[0] / factor, y_ticks[y_ticks.len() - 1] / factor),
        };
        let mut svg = open_svg(WIDTH, HEIGHT, self.title);
        y_axis(&mut svg, &frame, &y_ticks, factor, unit);
        for tick in ticks(frame.x.0, frame.x.1, 7, true) {
            if (frame.x.0..=frame.x.1).contains(&tick) {
                let x = frame.x(tick);
                let _ = write!(
                    svg,
                    "<text class=\"t m\" x=\"{x:.1}\" y=\"{:.1}\">{tick}</text>",
                    HEIGHT - BOTTOM + 15.0
                );
            }
        }
        x_label(&mut svg, self.x_label);
        for (index, one) in series.iter().enumerate() {
            draw_band(&mut svg, &frame, one, index);
        }
        for (index, one) in series.iter().enumerate() {
            draw_line(&mut svg, &frame, one, index);
        }
        self.draw_hovers(&mut svg, &frame, &series);
        svg += "</svg>";
        figure(self.title, self.note, &(legend(&series) + &svg))
    }

    /// A column a round that says the values of all lines there.
    fn draw_hovers(&self, svg: &mut String, frame: &Frame, series: &[Series]) {
        let mut xs: Vec<f64> = series.iter().flat_map(|s| s.points.iter().map(|p| p.0)).collect();
        xs.sort_by(f64::total_cmp);
        xs.dedup();
        let stride = xs.len().div_ceil(N_POINTS_MAX).max(1);
        let xs: Vec<f64> = xs.into_iter().step_by(stride).collect();
        for (index, x) in xs.iter().enumerate() {
            let before = index.checked_sub(1).map_or(LEFT, |i| frame.x((xs[i] + x) / 2.0));
            let after = xs.get(index + 1).map_or(WIDTH - RIGHT, |next| frame.x((next + x) / 2.0));
            let mut title = format!("{} {x}", self.x_label);
            for one in series {
                let is_here = |(at, y): &(f64, f64)| at == x && !y.is_nan();
                let Some(at) = one.points.iter().position(is_here) else { continue };
                let _ = write!(title, "\n{}: {}", one.name, self.y.text(one.points[at].1));
                if let Some((low, high)) = one.band.get(at).filter(|(low, high)| low < high) {
                    let _ = write!(title, " ({} to {})", self.y.text(*low), self.y.text(*high));
                }
            }
            let _ = write!(
                svg,
                "<rect class=\"h\" x=\"{before:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{}\"><title>{}</title></rect>",
                after - before,
                HEIGHT - TOP - BOTTOM,
                escape(&title)
            );
        }
    }
}

/// How often values lie where.
#[derive(Clone, Debug)]
pub(super) struct Histogram<'a> {
    pub(super) title: &'a str,
    pub(super) note: &'a str,
    pub(super) x_label: &'a str,
    pub(super) x: Quantity,
    /// Where the values can lie; `None`: from the lowest to the highest.
    pub(super) range: Option<(f64, f64)>,
    pub(super) values: &'a [f64],
    pub(super) empty: &'a str,
}

impl Histogram<'_> {
    /// The chart as a figure with caption.
    pub(super) fn html(&self) -> String {
        let values: Vec<f64> = self.values.iter().copied().filter(|v| v.is_finite()).collect();
        if values.is_empty() {
            return empty_figure(self.title, self.note, self.empty);
        }
        let lowest = values.iter().copied().fold(f64::INFINITY, f64::min);
        let highest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let (low, high) = self.range.unwrap_or((lowest, highest));
        let (factor, unit) = self.x.unit(high.abs().max(low.abs()));
        let x_ticks = ticks(low * factor, high * factor, 6, self.x == Quantity::Count);
        let x = (x_ticks[0] / factor, x_ticks[x_ticks.len() - 1] / factor);
        let n_bins = if values.len() < 12 { 10 } else { 20 };
        let width = (x.1 - x.0) / f64::from(n_bins);
        let mut counts = vec![0usize; n_bins as usize];
        for value in &values {
            let bin = ((value - x.0) / width).floor().max(0.0) as usize;
            counts[bin.min(n_bins as usize - 1)] += 1;
        }
        let largest = counts.iter().copied().max().unwrap_or(0);
        let y_ticks = ticks(0.0, largest as f64, 4, true);
        let frame = Frame { x, y: (0.0, y_ticks[y_ticks.len() - 1]) };
        let mut svg = open_svg(WIDTH, HEIGHT, self.title);
        y_axis(&mut svg, &frame, &y_ticks, 1.0, "clients");
        for tick in &x_ticks {
            let label = tick_text(*tick, x_ticks[1] - x_ticks[0]);
            let _ = write!(
                svg,
                "<text class=\"t m\" x=\"{:.1}\" y=\"{:.1}\">{label}</text>",
                frame.x(tick / factor),
                HEIGHT - BOTTOM + 15.0
            );
        }
        let label = if unit.is_empty() {
            self.x_label.to_owned()
        } else {
            format!("{}, {unit}", self.x_label)
        };
        x_label(&mut svg, &label);
        for (bin, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let from = x.0 + width * bin as f64;
            let (left, right) = (frame.x(from), frame.x(from + width));
            let top = frame.y(*count as f64);
            let _ = write!(
                svg,
                "<rect class=\"b c0\" x=\"{:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\"><title>{}</title></rect>",
                left + 0.75,
                right - left - 1.5,
                frame.y(0.0) - top,
                escape(&format!(
                    "{count} of {} clients: {} to {}",
                    values.len(),
                    self.x.text(from),
                    self.x.text(from + width)
                ))
            );
        }
        svg += "</svg>";
        figure(self.title, self.note, &svg)
    }
}

/// A row of a [`LabelMap`].
#[derive(Clone, Debug)]
pub(super) struct LabelRow {
    pub(super) name: String,
    pub(super) by_label: Vec<usize>,
}

/// Which labels each client has, and how many rows.
///
/// `n_columns` columns of labels, each a shade by its share of the client's rows, and a bar.
pub(super) fn label_map(title: &str, note: &str, rows: &[LabelRow], n_classes: usize) -> String {
    /// Most columns; more labels share one.
    const N_COLUMNS_MAX: usize = 60;
    let per_column = n_classes.div_ceil(N_COLUMNS_MAX).max(1);
    let n_columns = n_classes.div_ceil(per_column).max(1);
    let (left, bars, height) = (118.0, 150.0, if rows.len() > 24 { 11.0 } else { 17.0 });
    let width = 760.0;
    let cell = (width - left - bars - 20.0) / n_columns as f64;
    let top = 22.0;
    let whole = top + height * rows.len() as f64 + 6.0;
    let n_rows = |row: &LabelRow| row.by_label.iter().sum::<usize>();
    let largest = rows.iter().map(n_rows).max().unwrap_or(0).max(1);
    let mut svg = open_svg(width, whole, title);
    let every = n_columns.div_ceil(20).max(1);
    for column in (0..n_columns).step_by(every) {
        let _ = write!(
            svg,
            "<text class=\"t m\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            left + cell * (column as f64 + 0.5),
            top - 6.0,
            column * per_column
        );
    }
    let _ = write!(
        svg,
        "<text class=\"t e\" x=\"{:.1}\" y=\"{:.1}\">label</text><text class=\"t\" x=\"{:.1}\" y=\"{:.1}\">rows</text>",
        left - 8.0,
        top - 6.0,
        width - bars,
        top - 6.0
    );
    for (index, row) in rows.iter().enumerate() {
        let y = top + height * index as f64;
        let n = n_rows(row);
        let _ = write!(
            svg,
            "<text class=\"t e\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            left - 8.0,
            y + height / 2.0 + 3.5,
            escape(&shortened(&row.name, 18))
        );
        for (column, labels) in row.by_label.chunks(per_column).enumerate() {
            let count: usize = labels.iter().sum();
            if count == 0 {
                continue;
            }
            let share = count as f64 / n as f64;
            let named = match per_column {
                1 => format!("label {column}"),
                _ => format!("labels {} on", column * per_column),
            };
            let _ = write!(
                svg,
                "<rect class=\"b c0\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill-opacity=\"{:.2}\"><title>{}</title></rect>",
                left + cell * column as f64 + 0.5,
                y + 0.5,
                cell - 1.0,
                height - 1.0,
                // A label that is there at all can be seen.
                0.06 + 0.94 * share.sqrt(),
                escape(&format!("{}: {count} rows of {named}, {:.1} %", row.name, 100.0 * share))
            );
        }
        let bar = (bars - 52.0) * n as f64 / largest as f64;
        let _ = write!(
            svg,
            "<rect class=\"b c6\" x=\"{:.1}\" y=\"{:.1}\" width=\"{bar:.1}\" height=\"{:.1}\"/><text class=\"t\" x=\"{:.1}\" y=\"{:.1}\">{n}</text>",
            width - bars,
            y + 2.0,
            height - 4.0,
            width - bars + bar + 4.0,
            y + height / 2.0 + 3.5
        );
    }
    svg += "</svg>";
    figure(title, note, &svg)
}

/// A figure around `inner`, which is HTML already.
pub(super) fn figure(title: &str, note: &str, inner: &str) -> String {
    format!(
        "<figure><figcaption><b>{}</b> <span>{}</span></figcaption>{inner}</figure>\n",
        escape(title),
        escape(note)
    )
}

/// A figure that says why it is empty.
pub(super) fn empty_figure(title: &str, note: &str, reason: &str) -> String {
    figure(title, note, &format!("<p class=\"none\">{}</p>", escape(reason)))
}

/// The names of `series` with their colours; nothing for a single line, whose name is the title.
pub(super) fn legend(series: &[Series]) -> String {
    if series.len() < 2 && series.iter().all(|one| one.band.is_empty()) {
        return String::new();
    }
    let keys: String = series
        .iter()
        .enumerate()
        .map(|(index, one)| {
            format!("<span class=\"{}\"><i></i>{}</span>", class(index), escape(&one.name))
        })
        .collect();
    format!("<div class=\"legend\">{keys}</div>")
}

fn class(index: usize) -> String {
    let dashes = ["", " d1", " d2", " d3"][(index / N_COLOURS).min(3)];
    format!("c{}{dashes}", index % N_COLOURS)
}

fn open_svg(width: f64, height: f64, title: &str) -> String {
    format!("<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{}\">", escape(title))
}

fn y_axis(svg: &mut String, frame: &Frame, ticks: &[f64], factor: f64, unit: &str) {
    let step = ticks.get(1).map_or(1.0, |second| second - ticks[0]);
    for (index, tick) in ticks.iter().enumerate() {
        let y = frame.y(tick / factor);
        let class = if index == 0 { "g z" } else { "g" };
        let _ = write!(
            svg,
            "<path class=\"{class}\" d=\"M{LEFT} {y:.1}H{}\"/><text class=\"t e\" x=\"{}\" y=\"{:.1}\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            y + 4.0,
            tick_text(*tick, step)
        );
    }
    if !unit.is_empty() {
        let _ = write!(svg, "<text class=\"t e\" x=\"{}\" y=\"11\">{unit}</text>", LEFT - 6.0);
    }
}

fn x_label(svg: &mut String, label: &str) {
    let _ = write!(
        svg,
        "<text class=\"t e\" x=\"{}\" y=\"{}\">{}</text>",
        WIDTH - RIGHT,
        HEIGHT - 5.0,
        escape(label)
    );
}

fn draw_line(svg: &mut String, frame: &Frame, series: &Series, index: usize) {
    let mut path = String::new();
    let mut is_open = false;
    for (x, y) in &series.points {
        if y.is_finite() {
            let command = if is_open { 'L' } else { 'M' };
            let _ = write!(path, "{command}{:.1} {:.1}", frame.x(*x), frame.y(*y));
        }
        is_open = y.is_finite();
    }
    let class = class(index);
    let _ = write!(svg, "<path class=\"l {class}\" d=\"{path}\"/>");
    if series.points.len() <= 25 {
        for (x, y) in series.points.iter().filter(|(_, y)| y.is_finite()) {
            let _ = write!(
                svg,
                "<circle class=\"p {class}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.6\"/>",
                frame.x(*x),
                frame.y(*y)
            );
        }
    }
}

fn draw_band(svg: &mut String, frame: &Frame, series: &Series, index: usize) {
    let ends: Vec<(f64, f64, f64)> = series
        .points
        .iter()
        .zip(&series.band)
        .map(|((x, _), (low, high))| (*x, *low, *high))
        .filter(|(_, low, high)| low.is_finite() && high.is_finite())
        .collect();
    if ends.is_empty() {
        return;
    }
    let mut path = String::new();
    let upper = ends.iter().map(|(x, _, high)| (x, high));
    let lower = ends.iter().rev().map(|(x, low, _)| (x, low));
    for (position, (x, y)) in upper.chain(lower).enumerate() {
        let command = if position == 0 { 'M' } else { 'L' };
        let _ = write!(path, "{command}{:.1} {:.1}", frame.x(*x), frame.y(*y));
    }
    let _ = write!(svg, "<path class=\"a {}\" d=\"{path}Z\"/>", class(index));
}

/// `series` through at most [`N_POINTS_MAX`] points, the first and the last among them.
fn thinned(series: &Series) -> Series {
    let n = series.points.len();
    if n <= N_POINTS_MAX {
        return series.clone();
    }
    let kept: Vec<usize> = (0..N_POINTS_MAX).map(|i| i * (n - 1) / (N_POINTS_MAX - 1)).collect();
    Series {
        name: series.name.clone(),
        points: kept.iter().map(|i| series.points[*i]).collect(),
        band: kept.iter().filter_map(|i| series.band.get(*i).copied()).collect(),
    }
}

/// Round numbers from at or below `low` to at or above `high`, about `n` of them and at least two.
fn ticks(low: f64, high: f64, n: u32, whole: bool) -> Vec<f64> {
    let span = if high > low { high - low } else { low.abs().max(1.0) };
    let rough = span / f64::from(n);
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|digit| digit * power)
        .find(|step| *step >= rough * 0.999)
        .unwrap_or(10.0 * power);
    let step = if whole { step.max(1.0).round() } else { step };
    let first = (low / step + 1e-9).floor();
    let last = (high / step - 1e-9).ceil().max(first + 1.0);
    let count = (last - first) as usize;
    (0..=count).map(|i| (first + i as f64) * step).collect()
}

/// A tick with as many decimals as its step needs.
fn tick_text(tick: f64, step: f64) -> String {
    let decimals = (-step.log10()).ceil().clamp(0.0, 9.0) as usize;
    let text = format!("{tick:.decimals$}");
    // No minus before a zero.
    if text.trim_matches(['-', '0', '.']).is_empty() {
        text.trim_start_matches('-').to_owned()
    } else {
        text
    }
}

fn shortened(text: &str, n_max: usize) -> String {
    if text.chars().count() <= n_max {
        return text.to_owned();
    }
    text.chars().take(n_max - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(series: Vec<Series>) -> String {
        LineChart {
            title: "Accuracy",
            note: "of <all>",
            x_label: "round",
            y: Quantity::Share,
            from_zero: false,
            series,
            empty: "no round yet",
        }
        .html()
    }

    #[test]
    fn ticks_are_round_and_hold_all_values() {
        for (low, high, whole, expected) in [
            (0.0, 97.0, false, vec![0.0, 20.0, 40.0, 60.0, 80.0, 100.0]),
            (1.0, 10.0, true, vec![0.0, 2.0, 4.0, 6.0, 8.0, 10.0]),
            (3.0, 3.0, true, vec![3.0, 4.0]),
            (0.0, 1.0, true, vec![0.0, 1.0]),
        ] {
            assert_eq!(ticks(low, high, 5, whole), expected, "{low} to {high}");
        }
        for (low, high) in [(-3e-7, 2e-7), (0.0312, 0.0319), (1e9, 3e9), (-5.0, -1.0)] {
            let ticks = ticks(low, high, 5, false);
            let slack = 1e-9 * (high - low);
            assert!(ticks[0] <= low + slack && *ticks.last().unwrap() >= high - slack, "{ticks:?}");
            assert!(ticks.len() >= 2 && ticks.len() <= 9, "{ticks:?}");
        }
        assert_eq!(tick_text(0.30000000000000004, 0.1), "0.3");
        assert_eq!(tick_text(-0.0, 0.5), "0.0");
    }

    #[test]
    fn values_are_written_in_the_unit_that_suits_them() {
        for (quantity, value, expected) in [
            (Quantity::Share, 0.81234, "81.23 %"),
            (Quantity::Bytes, 1234.0, "1.234 kB"),
            (Quantity::Bytes, 12.0, "12 B"),
            (Quantity::Seconds, 0.0123, "12.3 ms"),
            (Quantity::Seconds, 90.0, "90 s"),
            (Quantity::Seconds, 7200.0, "2 h"),
            (Quantity::Number, 2.345_67, "2.346"),
            (Quantity::Number, f64::INFINITY, "inf"),
            (Quantity::Count, 1234.0, "1234"),
        ] {
            assert_eq!(quantity.text(value), expected);
        }
    }

    #[test]
    fn a_value_that_is_not_finite_is_a_gap() {
        let points = vec![(1.0, 0.5), (2.0, f64::NAN), (3.0, 0.6), (4.0, 0.7)];
        let html = chart(vec![Series::line("a", points)]);
        assert!(html.contains("of &lt;all&gt;"));
        let line = html.split("<path class=\"l c0\" d=\"").nth(1).unwrap();
        let line = &line[..line.find('"').unwrap()];
        assert_eq!((line.matches('M').count(), line.matches('L').count()), (2, 1), "{line}");
        assert!(!line.contains("NaN"));
        let none = chart(vec![Series::line("a", vec![(1.0, f64::NAN)])]);
        assert!(none.contains("no round yet") && !none.contains("<svg"));
        assert!(chart(Vec::new()).contains("no round yet"));
        assert!(chart(vec![Series::line("a", vec![(1.0, 0.5)])]).contains("<circle"));
    }

    #[test]
    fn a_drawing_does_not_grow_with_the_rounds() {
        let long = |n: u32| {
            let points: Vec<_> =
                (1..=n).map(|i| (f64::from(i), f64::from(i % 97) / 97.0)).collect();
            let band = points.iter().map(|(_, y)| (y - 0.1, y + 0.1)).collect();
            chart(vec![Series { name: "a".to_owned(), points, band }])
        };
        let (short, long) = (long(1000), long(100_000));
        assert!(long.len() < short.len() * 11 / 10, "{} and {}", short.len(), long.len());
        assert!(long.contains(">100000<"), "the last round is on the axis");
    }

    #[test]
    fn every_value_lies_in_one_bin() {
        let values = [0.0, 0.5, 1.0, 0.999, f64::NAN];
        let html = Histogram {
            title: "t",
            note: "",
            x_label: "accuracy",
            x: Quantity::Share,
            range: Some((0.0, 1.0)),
            values: &values,
            empty: "none",
        }
        .html();
        let counts: Vec<usize> = html
            .split("<title>")
            .skip(1)
            .map(|title| title.split(' ').next().unwrap().parse().unwrap())
            .collect();
        assert_eq!(counts, [1, 1, 2], "{html}");
    }
}
