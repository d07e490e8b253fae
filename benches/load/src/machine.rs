//! Cores, clocks and memory of processes, from the kernel.

use nix::{
    sched::{CpuSet, sched_setaffinity},
    time::{clock_getcpuclockid, clock_gettime},
    unistd::Pid,
};
use std::{fs, io, time::Duration};

/// Pins this process to one core.
pub fn pin(core: usize) -> io::Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &cores)?)
}

/// Returns the CPU time of all threads of a process, in user space and in the kernel.
///
/// On loopback, that includes the way of the bytes through the kernel to the receiver's socket.
pub fn cpu_time(process: u32) -> io::Result<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(process.cast_signed()))?;
    Ok(clock_gettime(clock)?.into())
}

/// Returns how long the threads of a process were ready while their cores ran something else.
pub fn waiting_time(process: u32) -> io::Result<Duration> {
    let mut nanos = 0;
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        let statistics = fs::read_to_string(thread?.path().join("schedstat"))?;
        let waited = statistics.split_whitespace().nth(1).and_then(|nanos| nanos.parse::<u64>().ok());
        nanos += waited.unwrap_or_default();
    }
    Ok(Duration::from_nanos(nanos))
}

/// Returns the resident memory of a process, in bytes.
pub fn resident(process: u32) -> io::Result<u64> {
    Ok(kibibytes(&format!("/proc/{process}/status"), "VmRSS:")? * 1024)
}

/// Memory of the kernel that connections need, of the whole machine, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct KernelMemory {
    /// Sockets and other objects.
    pub slab: u64,
    /// Bytes in the buffers of TCP sockets.
    pub buffers: u64,
}

impl KernelMemory {
    pub fn now() -> io::Result<Self> {
        let slab = kibibytes("/proc/meminfo", "SUnreclaim:")? * 1024;
        let sockets = fs::read_to_string("/proc/net/sockstat")?;
        let pages =
            sockets.lines().find_map(|line| line.strip_prefix("TCP:")?.split_once("mem ")?.1.parse::<u64>().ok());
        Ok(Self { slab, buffers: pages.unwrap_or_default() * 4096 })
    }
}

/// Returns the load average of the last minute.
pub fn load_average() -> io::Result<f64> {
    let load = fs::read_to_string("/proc/loadavg")?;
    Ok(load.split_whitespace().next().and_then(|load| load.parse().ok()).unwrap_or_default())
}

fn kibibytes(file: &str, field: &str) -> io::Result<u64> {
    let text = fs::read_to_string(file)?;
    let value = text.lines().find_map(|line| line.strip_prefix(field)?.split_whitespace().next()?.parse().ok());
    value.ok_or_else(|| io::Error::other(format!("{file} has no {field}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the CPU time in the units of `/proc/PID/stat`, which are hundredths of a second.
    fn ticks() -> u64 {
        let status = fs::read_to_string("/proc/self/stat").unwrap();
        let (_, fields) = status.rsplit_once(')').unwrap();
        let fields: Vec<_> = fields.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    #[test]
    fn cpu_clock_agrees_with_the_accounting_of_the_kernel() {
        let own = std::process::id();
        let (begin, before) = (cpu_time(own).unwrap(), ticks());
        while cpu_time(own).unwrap() - begin < Duration::from_millis(300) {}
        let after = ticks() - before;
        // Other tests of this process run at the same time.
        let clock = (cpu_time(own).unwrap() - begin).as_millis() as u64 / 10;
        assert!(after.abs_diff(clock) <= 4, "{after} ticks, {clock} by the clock");
    }

    #[test]
    fn memory_and_waiting_time_are_readable() {
        let own = std::process::id();
        assert!(resident(own).unwrap() > 100_000);
        waiting_time(own).unwrap();
        assert!(KernelMemory::now().unwrap().slab > 0);
        load_average().unwrap();
    }
}
