//! A log that was replaced by a copy, or has lost records, has another epoch.

use super::folder::{Folder, all, append, closed, event, fill, open};
use std::{
    collections::HashSet,
    fs::{self, File},
    os::unix::fs::symlink,
    time::{Duration, SystemTime},
};
use tower_sse::{
    Event,
    hub::{
        GapReason, Hub, Start,
        backend::{Backend, Durability, FileBackend},
    },
};

/// Opens the log when it is closed, and returns its epoch.
async fn epoch(folder: &Folder) -> u64 {
    if folder.mark().exists() {
        closed(folder).await;
    }
    let epoch = open(folder).bounds().await.expect("the log opens").epoch;
    closed(folder).await;
    epoch
}

#[tokio::test]
async fn restored_backup_is_reported_as_gap() {
    let folder = Folder::new();
    let connect = async || Hub::builder().file(folder.log()).connect().await.expect("the log opens");
    let hub = connect().await;
    hub.topic("news").publish(Event::new("1")).await.unwrap();
    drop(hub);
    closed(&folder).await;
    fs::copy(folder.log(), folder.path("backup")).unwrap();

    let hub = connect().await;
    let id = hub.topic("news").publish(Event::new("2")).await.unwrap();
    drop(hub);
    closed(&folder).await;
    fs::copy(folder.path("backup"), folder.log()).unwrap();

    // The next event has the position of the lost one.
    let hub = connect().await;
    hub.topic("news").publish(Event::new("another 2")).await.unwrap();
    let mut news = hub.topic("news").subscribe(Start::After(id)).await.unwrap();
    assert_eq!(news.gap().map(|gap| gap.reason()), Some(GapReason::OtherEpoch));
    let gap = event(&mut news).await;
    assert!(String::from_utf8_lossy(gap.as_bytes()).contains("\nevent: gap\n"), "{gap:?}");
}

#[tokio::test]
async fn backup_of_the_same_records_keeps_the_epoch() {
    let folder = Folder::new();
    let log = open(&folder);
    append(&log, "1").await;
    drop(log);
    let before = epoch(&folder).await;
    closed(&folder).await;
    fs::copy(folder.log(), folder.path("backup")).unwrap();
    fs::copy(folder.path("backup"), folder.log()).unwrap();
    assert_eq!(epoch(&folder).await, before, "nothing was lost");
}

#[tokio::test]
async fn each_symbolic_link_is_the_same_log() {
    let folder = Folder::new();
    append(&open(&folder), "1").await;
    let before = epoch(&folder).await;
    for (link, target) in [("one", "events.log"), ("two", "one")] {
        closed(&folder).await;
        symlink(target, folder.path(link)).unwrap();
        let log = FileBackend::new(folder.path(link));
        assert_eq!(log.bounds().await.unwrap().epoch, before, "a release with another link to the log");
    }
}

#[tokio::test]
async fn copied_folder_begins_an_epoch() {
    let folder = Folder::new();
    fill(&open(&folder), (0..10).map(|n| n.to_string())).await;
    let before = epoch(&folder).await;
    let copy = Folder::new();
    fs::copy(folder.log(), copy.log()).unwrap();
    fs::copy(folder.mark(), copy.mark()).unwrap();
    let log = open(&copy);
    assert_ne!(log.bounds().await.unwrap().epoch, before, "the original may go on");
    assert_eq!(all(&log).await.len(), 10, "the records are still there");
    drop(log);
    assert_eq!(epoch(&folder).await, before);
}

#[tokio::test]
async fn mark_that_was_copied_back_begins_an_epoch() {
    let folder = Folder::new();
    append(&open(&folder), "1").await;
    let before = epoch(&folder).await;
    closed(&folder).await;
    // Copying into the existing files keeps their inodes, but changes them after the time in the
    // mark.
    let later = SystemTime::now() + Duration::from_secs(1);
    File::options().write(true).open(folder.mark()).unwrap().set_modified(later).unwrap();
    assert_ne!(epoch(&folder).await, before);
}

#[tokio::test]
async fn each_restore_of_a_new_backup_begins_an_epoch() {
    let folder = Folder::new();
    append(&open(&folder), "1").await;
    closed(&folder).await;
    let (backup, backup_mark) = (folder.path("backup"), folder.path("backup.mark"));
    fs::copy(folder.log(), &backup).unwrap();
    fs::copy(folder.mark(), &backup_mark).unwrap();
    let mut epochs = HashSet::from([epoch(&folder).await]);
    for _ in 0..3 {
        closed(&folder).await;
        append(&open(&folder), "2").await;
        closed(&folder).await;
        // Both files are older copies, a moment after they were copied. The inodes are the same.
        fs::copy(&backup, folder.log()).unwrap();
        fs::copy(&backup_mark, folder.mark()).unwrap();
        let later = SystemTime::now() + Duration::from_millis(100);
        File::options().write(true).open(folder.mark()).unwrap().set_modified(later).unwrap();
        assert!(epochs.insert(epoch(&folder).await), "the position of the lost event is used again");
    }
}

#[tokio::test]
async fn log_without_mark_begins_an_epoch() {
    let folder = Folder::new();
    append(&open(&folder), "1").await;
    let before = epoch(&folder).await;
    for text in [None, Some("not a mark")] {
        closed(&folder).await;
        match text {
            None => fs::remove_file(folder.mark()).unwrap(),
            Some(text) => fs::write(folder.mark(), text).unwrap(),
        }
        assert_ne!(epoch(&folder).await, before, "{text:?}");
    }
    let settled = epoch(&folder).await;
    assert_eq!(epoch(&folder).await, settled);
}

#[tokio::test]
async fn crash_of_the_machine_begins_an_epoch_with_durability_process() {
    for (durability, is_new) in [(Durability::Process, true), (Durability::Disk, false)] {
        let folder = Folder::new();
        let log = FileBackend::new(folder.log()).durability(durability);
        append(&log, "1").await;
        let before = log.bounds().await.unwrap().epoch;
        // The files of an open log, as a crash leaves them.
        let (open, mark) = (fs::read(folder.log()).unwrap(), fs::read_to_string(folder.mark()).unwrap());
        drop(log);
        assert_eq!(epoch(&folder).await, before, "a clean end needs no new epoch");
        closed(&folder).await;
        fs::write(folder.log(), open).unwrap();
        let boot = mark.lines().find_map(|line| line.strip_prefix("boot ")).unwrap();
        let other_boot = if boot.chars().all(|digit| digit == '0') { boot.to_owned() } else { "7".repeat(32) };
        fs::write(folder.mark(), mark.replace(boot, &other_boot)).unwrap();
        assert_eq!(epoch(&folder).await != before, is_new, "{durability:?}");
    }
}

#[tokio::test]
async fn crash_of_the_machine_may_destroy_the_log_with_durability_process() {
    let folder = Folder::new();
    let log = open(&folder);
    append(&log, "1").await;
    let mark = fs::read_to_string(folder.mark()).unwrap();
    drop(log);
    closed(&folder).await;
    // The name of the database is on the disk, and nothing else.
    let damaged = [&fs::read(folder.log()).unwrap()[..9], &[0; 100_000]].concat();
    fs::write(folder.log(), &damaged).unwrap();
    let error = open(&folder).bounds().await.expect_err("without a crash, this is an error").to_string();
    assert!(error.contains("cannot open the log"), "{error}");

    let boot = mark.lines().find_map(|line| line.strip_prefix("boot ")).unwrap();
    fs::write(folder.mark(), mark.replace(boot, &"7".repeat(32))).unwrap();
    assert_eq!(append(&open(&folder), "1").await.get(), 1, "the log begins empty");
    assert_eq!(fs::read(folder.path("events.log.damaged")).unwrap(), damaged);
}
