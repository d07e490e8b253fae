//! The delay between a publication on another connection and its delivery.

use crate::{
    Bench, Log, clients,
    deliveries::quantile,
    median,
    process::Node,
    store::{Store, postgres},
};
use std::{
    hint::spin_loop,
    io::{BufRead, BufReader, Write},
    process::Stdio,
    thread::sleep,
    time::{Duration, Instant},
};
use tokio::runtime::Builder;
use tokio_postgres::NoTls;

/// The time between the call of `publish` in a transaction and its `COMMIT`.
const OPEN: Duration = Duration::from_millis(2);
/// The last part of [`OPEN`]: the publisher spins instead of sleeping, to send `COMMIT` on time.
const SPINNING: Duration = Duration::from_micros(200);

/// The process that publishes the events.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Publisher {
    Node,
    /// `psql`, with one statement for each event.
    Psql,
    /// A client of Postgres that publishes in a transaction. The delay begins with its `COMMIT`.
    Commit,
}

/// Times in nanoseconds.
struct Row {
    delay: f64,
    acknowledged: f64,
}

impl Bench {
    /// Prints the delay of a single event that another process publishes, to one client of one
    /// node.
    ///
    /// The publisher is another process: a node, `psql`, or a client of Postgres.
    pub(crate) fn commits(&mut self) -> Result<(), String> {
        let cases = [
            ("Redis, a node", Log::Redis, Publisher::Node),
            ("NATS, a node", Log::Nats, Publisher::Node),
            ("Postgres, a node", Log::Postgres, Publisher::Node),
            ("Postgres, psql", Log::Postgres, Publisher::Psql),
            ("Postgres, COMMIT", Log::Postgres, Publisher::Commit),
            ("Postgres, async, a node", Log::PostgresAsync, Publisher::Node),
            ("Postgres, async, psql", Log::PostgresAsync, Publisher::Psql),
            ("Postgres, async, COMMIT", Log::PostgresAsync, Publisher::Commit),
        ];
        println!(
            "\n{:<28} {:>8} {:>8} {:>14}  target",
            "publication to delivery", "p50, µs", "ack, µs", "ratio to Redis"
        );
        let mut rows: Vec<Vec<(Row, f64)>> = cases.iter().map(|_| Vec::new()).collect();
        for _ in 0..self.scale.times {
            let mut redis = f64::NAN;
            for (rows, (_, log, publisher)) in rows.iter_mut().zip(cases) {
                let row = self.commit(log, publisher)?;
                if log == Log::Redis {
                    redis = row.delay;
                }
                rows.push((row, redis));
            }
        }
        for (rows, (name, log, publisher)) in rows.iter().zip(cases) {
            let of = |of: fn(&(Row, f64)) -> f64| median(rows.iter().map(of).collect());
            println!(
                "{name:<28} {:>8.0} {:>8.0} {:>14.2}  {}",
                of(|(row, _)| row.delay / 1e3),
                of(|(row, _)| row.acknowledged / 1e3),
                of(|(row, redis)| row.delay / redis),
                if publisher == Publisher::Commit && log == Log::PostgresAsync { "≤ 2" } else { "" },
            );
        }
        println!("Redis writes to the disk every second. Postgres writes each commit, and `async` every 0.2 s");
        Ok(())
    }

    fn commit(&mut self, log: Log, publisher: Publisher) -> Result<Row, String> {
        let stream = self.new_stream();
        let (mut node, mut writer) = (Node::start()?, Node::start()?);
        node.call(&self.open(log, &stream, 10_000))?;
        node.call("read 0 1 1")?;
        node.call("begin 0")?;
        let (times, micros) = self.scale.alone;
        let pause = Duration::from_micros(micros);
        let acknowledged = match (self.store(log), publisher) {
            (Some(store), Publisher::Psql) => publish(store, &stream, times, pause)?,
            (Some(store), Publisher::Commit) => commit(store, &stream, times, pause)?,
            _ => {
                writer.call(&self.open(log, &stream, 10_000))?;
                writer.call(&format!("pace 0 {times} 1 {micros}"))?
            }
        };
        node.call(&format!("wait 0 {times}"))?;
        let delays = node.call("delays 0")?;
        Ok(Row { delay: quantile(&delays, 0.5), acknowledged: quantile(&acknowledged, 0.5) })
    }
}

/// Publishes events with `psql`. Returns the times until the transactions have committed.
fn publish(store: &Store, schema: &str, times: usize, pause: Duration) -> Result<Vec<u64>, String> {
    let failed = |error: std::io::Error| format!("psql: {error}");
    let mut command = postgres("psql")?;
    command.args(["--no-psqlrc", "--quiet", "--tuples-only", "-v", "ON_ERROR_STOP=1", "-d", &store.url()]);
    let mut psql = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(failed)?;
    let mut acknowledged = Vec::new();
    if let Some((mut input, output)) = psql.stdin.take().zip(psql.stdout.take()) {
        let mut output = BufReader::new(output);
        for _ in 0..times {
            sleep(pause);
            let begin = Instant::now();
            writeln!(input, "SELECT \"{schema}\".publish('ticks', NULL, '{:<128}');\n\\echo done", clients::now())
                .map_err(failed)?;
            let mut line = String::new();
            while !line.starts_with("done") {
                line.clear();
                if output.read_line(&mut line).map_err(failed)? == 0 {
                    return Err("psql has ended, with the error above".to_owned());
                }
            }
            acknowledged.push(begin.elapsed().as_nanos() as u64);
        }
    }
    psql.wait().map_err(failed)?;
    acknowledged.sort_unstable();
    Ok(acknowledged)
}

/// Publishes events in transactions. Returns the times from `COMMIT` to its response.
fn commit(store: &Store, schema: &str, times: usize, pause: Duration) -> Result<Vec<u64>, String> {
    let failed = |error: tokio_postgres::Error| format!("Postgres: {error}");
    let runtime = Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let (client, connection) = tokio_postgres::connect(&store.url(), NoTls).await.map_err(failed)?;
        tokio::spawn(connection);
        let mut acknowledged = Vec::new();
        for _ in 0..times {
            sleep(pause.saturating_sub(OPEN));
            // The event contains the time of its commit, which is not known yet.
            let at = clients::now() + OPEN.as_nanos() as u64;
            let publish = format!("BEGIN; SELECT \"{schema}\".publish('ticks', NULL, '{at:<128}')");
            client.batch_execute(&publish).await.map_err(failed)?;
            sleep(Duration::from_nanos(at.saturating_sub(clients::now())).saturating_sub(SPINNING));
            while clients::now() < at {
                spin_loop();
            }
            let begin = Instant::now();
            client.batch_execute("COMMIT").await.map_err(failed)?;
            acknowledged.push(begin.elapsed().as_nanos() as u64);
        }
        acknowledged.sort_unstable();
        Ok(acknowledged)
    })
}
