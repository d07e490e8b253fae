//! A process and all that descend from it: ending a driver alone would leave its browser behind.

use crate::process::installed;
use std::{
    collections::BTreeSet,
    fs,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

const TO_END: Duration = Duration::from_secs(5);

/// A process as it is in `/proc`.
struct Entry {
    id: u32,
    parent: u32,
    state: char,
}

/// Kills a process and all that descend from it, and returns when they are gone.
///
/// Without `/proc`, on another system than Linux, it does nothing.
pub(crate) fn kill(root: u32) {
    let mut family = BTreeSet::new();
    loop {
        let more: Vec<_> = descendants(root).difference(&family).copied().collect();
        if more.is_empty() {
            break;
        }
        // One that is stopped has no more children while the others are looked for.
        signal("STOP", &more);
        family.extend(more);
    }
    let family: Vec<_> = family.into_iter().collect();
    signal("KILL", &family);
    let begin = Instant::now();
    while processes().iter().any(|process| family.contains(&process.id) && !matches!(process.state, 'Z' | 'X'))
        && begin.elapsed() < TO_END
    {
        thread::sleep(Duration::from_millis(5));
    }
}

/// The process itself is one of them, unless it has ended.
fn descendants(root: u32) -> BTreeSet<u32> {
    let processes = processes();
    let is_root = |process: &&Entry| process.id == root && process.state != 'Z';
    let mut family: BTreeSet<u32> = processes.iter().filter(is_root).map(|process| process.id).collect();
    loop {
        let before = family.len();
        let children = processes.iter().filter(|process| family.contains(&process.parent)).map(|process| process.id);
        let children: Vec<_> = children.collect();
        family.extend(children);
        if family.len() == before {
            return family;
        }
    }
}

fn processes() -> Vec<Entry> {
    let Ok(folders) = fs::read_dir("/proc") else { return Vec::new() };
    let entry = |id: u32| {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        // Before it is the name of the program, in parentheses, which can hold anything.
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_whitespace();
        Some(Entry { id, state: fields.next()?.chars().next()?, parent: fields.next()?.parse().ok()? })
    };
    folders.flatten().filter_map(|folder| entry(folder.file_name().to_str()?.parse().ok()?)).collect()
}

/// Some of them may have ended by themselves: that is no error.
fn signal(name: &str, processes: &[u32]) {
    if processes.is_empty() {
        return;
    }
    let ids = processes.iter().map(u32::to_string);
    let sent = Command::new(installed(&["kill"], "procps")).args(["-s", name]).args(ids).stderr(Stdio::null()).status();
    sent.expect("it is installed");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_children_of_children_end_with_a_process() {
        let mut command = Command::new(installed(&["sh"], "dash"));
        let mut root =
            command.args(["-c", "sleep 1000 & sh -c 'sleep 1000 & wait' & wait"]).spawn().expect("it is there");
        let begin = Instant::now();
        let family = loop {
            let family = descendants(root.id());
            if family.len() == 4 {
                break family;
            }
            assert!(begin.elapsed() < TO_END, "{family:?}");
        };

        kill(root.id());
        let left = processes().into_iter().filter(|process| family.contains(&process.id) && process.state != 'Z');
        assert_eq!(left.map(|process| process.id).collect::<Vec<_>>(), [0_u32; 0]);
        root.wait().expect("it is a child of this process");
    }
}
