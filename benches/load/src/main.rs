//! tower-sse and its peers under load, over real sockets. `docs/benchmarks.md` has the figures.

mod chart;
mod child;
mod client;
mod contestant;
mod everything;
mod http2;
mod machine;
mod measure;
mod million;
mod payload;
mod report;
mod row;
mod server;
mod special;
mod table;

use clap::{Parser, Subcommand};
use std::{io, process::ExitCode};

#[derive(Parser)]
#[command(about = "Measures tower-sse and its peers over real sockets")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Prints CPU time, latency and memory of all contestants
    Table(table::Options),
    /// Opens a million HTTP/2 streams, or 18,000 HTTP/1.1 connections, to one process
    Million(million::Options),
    /// Streams events to many clients while some reconnect and some do not read
    Everything(everything::Options),
    /// Runs one server, which reads commands from its standard input
    #[command(hide = true)]
    Server(server::Options),
}

fn main() -> ExitCode {
    let result: io::Result<()> = match Arguments::parse().command {
        Command::Table(options) => table::run(&options),
        Command::Everything(options) => everything::run(&options),
        Command::Million(options) => million::run(&options),
        Command::Server(options) => server::run(options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
