//! The table: all rows and contestants, interleaved, and the medians of several rounds.

use crate::{
    contestant::Contestant,
    machine,
    measure::{Figures, Settings, measure},
    row::{ROWS, Row},
    server::Fault,
};
use clap::Args;
use std::io;

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
    /// The length of each measurement
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    #[arg(long, default_value_t = 1)]
    client_core: usize,
    /// The client waits in `epoll_wait`, and the server's writes wake it
    #[arg(long)]
    blocking_client: bool,
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
        fault: options.fault,
    };
    machine::pin(options.client_core)?;

    for row in rows {
        let mut rounds = Vec::new();
        for _ in 0..options.rounds {
            let round: Vec<_> = contestants.iter().map(|&contestant| measure(row, contestant, &settings)).collect();
            rounds.push(round);
        }
        print(row, &contestants, &rounds);
    }
    Ok(())
}

fn unknown(key: &str) -> io::Error {
    let keys: Vec<_> = ROWS.iter().map(|row| row.key).collect();
    io::Error::other(format!("there is no row {key}; the rows are {}", keys.join(", ")))
}

fn print(row: &Row, contestants: &[Contestant], rounds: &[Vec<io::Result<Figures>>]) {
    println!("{}", row.title);
    for (index, contestant) in contestants.iter().enumerate() {
        for round in rounds {
            match (&round[index], &round[0]) {
                (Ok(figures), Ok(base)) => {
                    println!("  {:26} {:.2} {figures:?}", contestant.name(), figures.cpu / base.cpu);
                }
                (Ok(figures), Err(_)) => println!("  {:26} {figures:?}", contestant.name()),
                (Err(error), _) => println!("  {:26} refused: {error}", contestant.name()),
            }
        }
    }
}
