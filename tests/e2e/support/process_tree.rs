//! Killing a process and its descendants. Killing only a WebDriver server would leave its browser
//! behind.

use crate::process::installed;
use std::{
    collections::BTreeSet,
    fs,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// A process in `/proc`.
struct Entry {
    id: u32,
    parent: u32,
    state: char,
}

/// Kills a process and all its descendants, and waits until they are gone.
///
/// Does nothing on systems without `/proc`.
pub(crate) fn kill(root: u32) {
    let mut tree = BTreeSet::new();
    loop {
        let more: Vec<_> = ids(root).difference(&tree).copied().collect();
        if more.is_empty() {
            break;
        }
        // A stopped process starts no children while the loop looks for the others.
        signal("STOP", &more);
        tree.extend(more);
    }
    let tree: Vec<_> = tree.into_iter().collect();
    signal("KILL", &tree);
    let begin = Instant::now();
    while processes().iter().any(|process| tree.contains(&process.id) && !matches!(process.state, 'Z' | 'X'))
        && begin.elapsed() < KILL_TIMEOUT
    {
        thread::sleep(Duration::from_millis(5));
    }
}

/// Sends SIGSTOP or SIGCONT to a process and all its descendants. After SIGSTOP, waits until all have
/// stopped.
pub(crate) fn signal_all(root: u32, name: &str) {
    let begin = Instant::now();
    loop {
        let tree = ids(root);
        signal(name, &tree.iter().copied().collect::<Vec<_>>());
        // A process may have started a child before it stopped.
        let is_running = |process: &Entry| tree.contains(&process.id) && !matches!(process.state, 'T' | 'Z' | 'X');
        if name != "STOP" || (ids(root) == tree && !processes().iter().any(is_running)) {
            return;
        }
        assert!(begin.elapsed() < KILL_TIMEOUT, "the processes do not stop");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Returns the ids of a process and its descendants. Leaves out a root that has ended.
pub(crate) fn ids(root: u32) -> BTreeSet<u32> {
    let processes = processes();
    let is_root = |process: &&Entry| process.id == root && process.state != 'Z';
    let mut tree: BTreeSet<u32> = processes.iter().filter(is_root).map(|process| process.id).collect();
    loop {
        let before = tree.len();
        let children = processes.iter().filter(|process| tree.contains(&process.parent)).map(|process| process.id);
        let children: Vec<_> = children.collect();
        tree.extend(children);
        if tree.len() == before {
            return tree;
        }
    }
}

fn processes() -> Vec<Entry> {
    let Ok(folders) = fs::read_dir("/proc") else { return Vec::new() };
    let entry = |id: u32| {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        // The name of the program comes first, in parentheses. It can contain any character.
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_whitespace();
        Some(Entry { id, state: fields.next()?.chars().next()?, parent: fields.next()?.parse().ok()? })
    };
    folders.flatten().filter_map(|folder| entry(folder.file_name().to_str()?.parse().ok()?)).collect()
}

/// Sends a signal to these processes. Ignores processes that have ended.
fn signal(name: &str, processes: &[u32]) {
    if processes.is_empty() {
        return;
    }
    let ids = processes.iter().map(u32::to_string);
    let sent = Command::new(installed(&["kill"], "procps")).args(["-s", name]).args(ids).stderr(Stdio::null()).status();
    sent.expect("kill is installed");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kill_ends_children_of_children() {
        let mut command = Command::new(installed(&["sh"], "dash"));
        let mut root =
            command.args(["-c", "sleep 1000 & sh -c 'sleep 1000 & wait' & wait"]).spawn().expect("sh is installed");
        let begin = Instant::now();
        let tree = loop {
            let tree = ids(root.id());
            if tree.len() == 4 {
                break tree;
            }
            assert!(begin.elapsed() < KILL_TIMEOUT, "{tree:?}");
        };

        kill(root.id());
        let left = processes().into_iter().filter(|process| tree.contains(&process.id) && process.state != 'Z');
        assert_eq!(left.map(|process| process.id).collect::<Vec<_>>(), [0_u32; 0]);
        root.wait().expect("it is a child of this process");
    }
}
