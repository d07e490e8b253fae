//! The table: all rows and contestants, interleaved, and the medians of several rounds.

use crate::{
    chart,
    contestant::Contestant,
    machine,
    measure::{Figures, Settings, measure},
    report::{self, Measured},
    row::{ROWS, Row},
    server::Fault,
};
use clap::Args;
use std::{io, path::PathBuf, time::Instant};

#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The rows, by name; all rows by default
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// The contestants; all by default. axum is added, because the others are compared to it
    #[arg(long, value_enum, value_delimiter = ',')]
    contestants: Vec<Contestant>,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// The rounds of the rows that take long: saturation, idle and reconnect
    #[arg(long, default_value_t = 1)]
    long_rounds: usize,
    /// The length of each measurement
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Overrides the number of clients of each row
    #[arg(long)]
    clients: Option<usize>,
    /// Draws the table into this file
    #[arg(long)]
    svg: Option<PathBuf>,
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    #[arg(long, default_value_t = 1)]
    client_core: usize,
    /// The client waits in `epoll_wait`, and the server's writes wake it
    #[arg(long)]
    blocking_client: bool,
    /// Prints the figures of each round
    #[arg(long)]
    verbose: bool,
    /// A fault that the servers have on purpose, to test the client
    #[arg(long, value_enum, hide = true)]
    fault: Option<Fault>,
}

pub fn run(options: &Options) -> io::Result<()> {
    let rows: Vec<&Row> = match &options.rows[..] {
        [] => ROWS.iter().collect(),
        keys => keys.iter().map(|key| Row::find(key).ok_or_else(|| unknown(key))).collect::<Result<_, _>>()?,
    };
    let mut contestants = options.contestants.clone();
    if contestants.is_empty() {
        contestants.extend_from_slice(Contestant::ALL);
    } else if !contestants.contains(&Contestant::Axum) {
        contestants.insert(0, Contestant::Axum);
    }
    let settings = Settings {
        seconds: options.seconds,
        server_core: options.server_core,
        is_client_blocking: options.blocking_client,
        clients: options.clients,
        fault: options.fault,
    };
    machine::pin(options.client_core)?;

    let begin = Instant::now();
    let mut all = Vec::new();
    for row in rows {
        eprintln!("{} (after {} s)", row.title, begin.elapsed().as_secs());
        let measured = measure_row(row, &contestants, &settings, options);
        println!("{}", report::lines(&measured));
        all.push(measured);
    }
    println!("{}", report::markdown(&contestants, &all)?);
    if let Some(path) = &options.svg {
        chart::draw(path, &all)?;
    }
    match all.iter().flat_map(Measured::errors).count() {
        0 => Ok(()),
        refused => Err(io::Error::other(format!("{refused} measurements were refused"))),
    }
}

/// Measures all contestants in each round, so that a disturbance affects them alike.
fn measure_row<'a>(row: &'a Row, contestants: &[Contestant], settings: &Settings, options: &Options) -> Measured<'a> {
    let contestants: Vec<_> = contestants.iter().copied().filter(|&contestant| row.has(contestant)).collect();
    let mut columns: Vec<(Contestant, Vec<io::Result<Figures>>)> =
        contestants.iter().map(|&contestant| (contestant, Vec::new())).collect();
    for _ in 0..if row.is_long() { options.long_rounds } else { options.rounds } {
        for (contestant, rounds) in &mut columns {
            let figures = measure(row, *contestant, settings);
            if options.verbose {
                eprintln!("{:9} {:10} {figures:.3?}", row.key, contestant.key());
            }
            rounds.push(figures);
        }
    }
    Measured { row, columns }
}

fn unknown(key: &str) -> io::Error {
    let keys: Vec<_> = ROWS.iter().map(|row| row.key).collect();
    io::Error::other(format!("there is no row {key}; the rows are {}", keys.join(", ")))
}
