//! The figures of all rounds as text.

use crate::{
    contestant::Contestant,
    machine,
    measure::Figures,
    row::{Load, Row},
};
use std::{fmt::Write, io};

/// All rounds of a row.
#[derive(Debug)]
pub struct Measured<'a> {
    pub row: &'a Row,
    pub columns: Vec<(Contestant, Vec<io::Result<Figures>>)>,
}

/// A median, and the smallest and the largest value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub min: f64,
    pub median: f64,
    pub max: f64,
}

impl Spread {
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = |index: usize| values[index / 2];
        Some(Self { min, median: (middle(values.len() - 1) + middle(values.len())) / 2.0, max })
    }
}

impl Measured<'_> {
    /// Returns the figures of a contestant, or `None` if a measurement was refused.
    fn rounds(&self, contestant: Contestant) -> Option<Vec<Figures>> {
        let (_, rounds) = self.columns.iter().find(|(other, _)| *other == contestant)?;
        rounds.iter().map(|figures| figures.as_ref().ok().copied()).collect()
    }

    /// Returns the spread of a figure.
    pub fn spread(&self, contestant: Contestant, figure: impl Fn(&Figures) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.rounds(contestant)?.iter().map(figure).collect::<Option<_>>()?)
    }

    /// Returns the CPU time per event relative to axum in the same round.
    pub fn ratio(&self, contestant: Contestant) -> Option<Spread> {
        let rounds = self.rounds(contestant)?.into_iter().zip(self.rounds(Contestant::Axum)?);
        Spread::of(rounds.map(|(figures, axum)| figures.cpu / axum.cpu).collect())
    }

    pub fn errors(&self) -> impl Iterator<Item = String> {
        self.columns.iter().flat_map(|(contestant, rounds)| {
            rounds.iter().filter_map(|figures| {
                Some(format!("{}, {}: {}", self.row.title, contestant.name(), figures.as_ref().err()?))
            })
        })
    }

    /// Returns the main figure of a contestant.
    fn cell(&self, contestant: Contestant) -> Option<String> {
        let figure = |figure: fn(&Figures) -> Option<f64>| self.spread(contestant, figure);
        Some(match self.row.load {
            Load::Saturation => {
                let Spread { median, .. } = figure(|it| Some(1000.0 / it.cpu))?;
                format!("{median:.1} M/s")
            }
            Load::Idle => {
                let memory = figure(|it| Some(it.memory))?.median / 1024.0;
                format!("{:.2} %, {memory:.1} KiB", figure(|it| Some(100.0 * it.server_share))?.median)
            }
            Load::Reconnect { .. } => {
                let Spread { median, .. } = figure(|it| Some(it.latency?.p99 / 1000.0))?;
                format!("{median:.0} ms, {:.0} µs", self.row_cpu(contestant)?)
            }
            _ => {
                let Spread { min, median, max } = self.ratio(contestant)?;
                if min == max { format!("{median:.2}") } else { format!("{median:.2} ({min:.2}–{max:.2})") }
            }
        })
    }

    /// Returns the CPU time of the server per client, in microseconds.
    fn row_cpu(&self, contestant: Contestant) -> Option<f64> {
        let Load::Reconnect { missed } = self.row.load else { return None };
        Some(self.spread(contestant, |it| Some(it.cpu))?.median * missed as f64 / 1000.0)
    }

    fn latency(&self, contestant: Contestant) -> Option<String> {
        let p50 = self.spread(contestant, |it| Some(it.latency?.p50 / 1000.0))?.median;
        Some(format!("{p50:.2} / {:.2}", self.spread(contestant, |it| Some(it.latency?.p99 / 1000.0))?.median))
    }
}

/// Returns the figures of one row as lines, one for each contestant.
pub fn lines(measured: &Measured<'_>) -> String {
    let mut text = format!("{}\n", measured.row.title);
    for &(contestant, _) in &measured.columns {
        let cell = measured.cell(contestant).unwrap_or_else(|| "refused".to_owned());
        let _ = write!(text, "  {:26} {cell:20}", contestant.name());
        let median =
            |figure: fn(&Figures) -> f64| measured.spread(contestant, |it| Some(figure(it))).map(|it| it.median);
        let figures = [
            (median(|it| it.cpu), "ns", 1.0),
            (median(|it| it.rate), "k/s", 0.001),
            (median(|it| it.per_chunk), "per chunk", 1.0),
            (median(|it| it.server_share), "% server", 100.0),
            (median(|it| it.server_waited), "% waiting", 100.0),
            (median(|it| it.client_share), "% client", 100.0),
            (median(|it| it.client_waited), "% waiting", 100.0),
        ];
        for (value, unit, factor) in figures {
            if let Some(value) = value.filter(|value| value.is_finite()) {
                let _ = write!(text, "  {:.1} {unit}", value * factor);
            }
        }
        if let Some(latency) = measured.latency(contestant) {
            let _ = write!(text, "  {latency} ms");
        }
        text.push('\n');
    }
    for error in measured.errors() {
        let _ = writeln!(text, "  refused: {error}");
    }
    text
}

/// Returns the tables of `docs/benchmarks.md`.
pub fn markdown(contestants: &[Contestant], rows: &[Measured<'_>]) -> io::Result<String> {
    let mut text = String::new();
    let is_special = |row: &Measured<'_>| row.row.is_long();
    let (special, usual): (Vec<_>, Vec<_>) = rows.iter().partition(|row| is_special(row));
    let mut table = |title: &str,
                     rows: &[&Measured<'_>],
                     cell: &dyn Fn(&Measured<'_>, Contestant) -> Option<String>| {
        if rows.is_empty() {
            return;
        }
        let names: Vec<_> = contestants.iter().map(|contestant| contestant.name()).collect();
        let _ = writeln!(text, "| {title} | {} |\n|---|{}", names.join(" | "), "---|".repeat(names.len()));
        for row in rows {
            let cells = contestants.iter().map(|&contestant| cell(row, contestant).unwrap_or_else(|| "–".to_owned()));
            let _ = writeln!(text, "| {} | {} |", row.row.title, cells.collect::<Vec<_>>().join(" | "));
        }
        text.push('\n');
    };
    table("CPU time per delivered event, relative to axum", &usual, &|row, contestant| row.cell(contestant));
    let with_latency: Vec<_> = usual.iter().copied().filter(|row| row.latency(Contestant::Axum).is_some()).collect();
    table("latency, p50 / p99, ms", &with_latency, &|row, contestant| row.latency(contestant));
    table("", &special, &|row, contestant| row.cell(contestant));
    let errors: Vec<_> = rows.iter().flat_map(Measured::errors).collect();
    for error in errors {
        let _ = writeln!(text, "refused: {error}");
    }
    let _ = writeln!(text, "load average of the machine: {:.1}", machine::load_average()?);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_an_even_number_is_between_two_values() {
        let spread = Spread::of(vec![4.0, 1.0, 2.0, 3.0]).unwrap();
        assert_eq!(spread, Spread { min: 1.0, median: 2.5, max: 4.0 });
        assert_eq!(Spread::of(vec![7.0, 1.0, 2.0]).unwrap().median, 2.0);
        assert_eq!(Spread::of(Vec::new()), None);
    }
}
