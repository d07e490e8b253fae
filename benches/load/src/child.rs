//! The process of a server.

use crate::{contestant::Contestant, machine, server::Schedule};
use std::{
    io::{self, BufRead, BufReader, Write},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::Duration,
};

/// A running server, which is killed when this value is dropped.
#[derive(Debug)]
pub struct Server {
    process: Child,
    pub address: SocketAddr,
}

impl Server {
    /// Starts this program as a server, and waits until it listens.
    pub fn start(contestant: Contestant, core: usize, options: &[String]) -> io::Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .args(["server", "--contestant", &contestant.key(), "--core", &core.to_string()])
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut address = String::new();
        if let Some(output) = process.stdout.take() {
            BufReader::new(output).read_line(&mut address)?;
        }
        match address.trim().parse() {
            Ok(address) => Ok(Self { process, address }),
            Err(_) => {
                let status = process.wait()?;
                Err(io::Error::other(format!("the server {} ended: {status}", contestant.key())))
            }
        }
    }

    pub fn publish(&mut self, schedule: &Schedule) -> io::Result<()> {
        self.command("publish", schedule)
    }

    pub fn send_tokens(&mut self, schedule: &Schedule) -> io::Result<()> {
        self.command("tokens", schedule)
    }

    fn command(&mut self, name: &str, schedule: &Schedule) -> io::Result<()> {
        let Schedule { count, rate, burst } = schedule;
        self.line(&format!("{name} {count} {rate} {burst}"))
    }

    pub fn line(&mut self, line: &str) -> io::Result<()> {
        let input = self.process.stdin.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        writeln!(input, "{line}")
    }

    pub fn cpu_time(&self) -> io::Result<Duration> {
        machine::cpu_time(self.process.id())
    }

    pub fn waiting_time(&self) -> io::Result<Duration> {
        machine::waiting_time(self.process.id())
    }

    pub fn resident(&self) -> io::Result<u64> {
        machine::resident(self.process.id())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
