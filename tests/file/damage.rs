//! Full disks, files that can only be read, and damaged files.

use super::{
    child::Child,
    folder::{Folder, SOON, all, all_with_gaps, append, closed, eventually, fill, open},
};
use futures_util::future::join_all;
use std::{
    env,
    fs::{self, File, Permissions},
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::Path,
    process::Command,
    time::{Duration, Instant},
};
use tokio::time::sleep;
use tower_sse::hub::backend::{Backend, FileBackend, Position};

/// Creates a log of several megabytes, and closes it.
async fn create_large_log(folder: &Folder) {
    fill(&open(folder), (0..30_000).map(|n| format!("{n} {}", "x".repeat(200)))).await;
    closed(folder).await;
}

#[tokio::test]
async fn full_disk_fails_publishing_and_not_reading() {
    let folder = Folder::new();
    // A file of at most 8 MiB stands for a disk. Its limit can be raised later.
    let mut command = Command::new("sh");
    command.args(["-c", r#"trap "" XFSZ; ulimit -S -f 16384; exec "$0" "$@""#]);
    command.arg(env::current_exe().unwrap());
    let mut child = Child::start_as(command, "fill", &folder.log());
    let error = child.line().expect("an error");
    assert!(error.contains("cannot write to the log") && error.contains("File too large"), "{error}");
    let line = child.line().expect("what was read");
    let [appended, read, gaps, is_complete] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
    let (appended, read): (usize, usize) = (appended.parse().unwrap(), read.parse().unwrap());
    assert!(appended > 100, "{line}");
    // The append that has failed may be in the log.
    assert!((appended..=appended + 1).contains(&read) && gaps == "0" && is_complete == "true", "{line}");
    let raise =
        Command::new("prlimit").args(["--fsize=unlimited:unlimited", "--pid"]).arg(child.id().to_string()).status();
    assert!(raise.expect("util-linux is installed").success());
    let line = child.line().expect("what was read");
    assert!(line.ends_with(" the end"), "publishing continues when there is space: {line}");
}

#[tokio::test]
async fn file_without_write_permission_can_be_read() {
    let folder = Folder::new();
    let log = open(&folder);
    fill(&log, (0..1000).map(|n| n.to_string())).await;
    // The files of a process that was killed: the database was not closed.
    let killed = Folder::new();
    fs::copy(folder.log(), killed.log()).unwrap();
    fs::copy(folder.mark(), killed.mark()).unwrap();
    drop(log);
    closed(&folder).await;
    for folder in [folder, killed] {
        for path in [folder.log(), folder.mark()] {
            fs::set_permissions(path, Permissions::from_mode(0o444)).unwrap();
        }
        let before = fs::read(folder.log()).unwrap();
        let mut child = Child::start_as(unprivileged(&folder), "read", &folder.log());
        assert_eq!(child.line().as_deref(), Some("1000 0"));
        let error = child.line().expect("an error");
        assert!(error.contains("cannot write to the log") && error.contains("it can only be read"), "{error}");
        assert!(fs::read(folder.log()).unwrap() == before, "the file has not changed");
    }
}

/// The mark is that of another file, so the process begins an epoch, which it cannot store. After
/// each attempt to write, it opens the file again.
#[tokio::test]
async fn log_without_write_permission_keeps_its_epoch_until_replaced() {
    let (one, other, folder) = (Folder::new(), Folder::new(), Folder::new());
    for original in [&one, &other] {
        fill(&open(original), (0..100).map(|n| n.to_string())).await;
        closed(original).await;
    }
    fs::copy(one.log(), folder.log()).unwrap();
    fs::copy(one.mark(), folder.mark()).unwrap();
    let set_mode = |mode| {
        for path in [folder.log(), folder.mark()] {
            fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        }
    };
    set_mode(0o444);
    let mut child = Child::start_as(unprivileged(&folder), "epochs", &folder.log());
    let files = format!("/proc/{}/fd", child.id());
    let has_open = |path: &Path| {
        fs::read_dir(&files).unwrap().any(|file| fs::read_link(file.unwrap().path()).is_ok_and(|file| file == path))
    };
    // Puts a copy in the place of the log, and waits until the process has opened it. The link of
    // the descriptor of the replaced file ends in " (deleted)".
    let replace = async |copied: &Path| {
        fs::copy(copied, folder.path("copy")).unwrap();
        fs::set_permissions(folder.path("copy"), Permissions::from_mode(0o444)).unwrap();
        fs::rename(folder.path("copy"), folder.log()).unwrap();
        eventually(async || has_open(&folder.log())).await;
    };
    let mut next = || {
        let line = child.line().expect("an epoch");
        let (is_appended, epoch) = line.split_once(' ').expect("two words");
        (is_appended == "true", epoch.to_owned())
    };
    let (_, epoch) = next();
    replace(&one.log()).await;
    replace(&other.log()).await;
    let begin = Instant::now();
    let replaced = loop {
        let (_, after) = next();
        if after != epoch {
            break after;
        }
        assert!(begin.elapsed() < SOON, "the other log has the epoch of the first");
    };
    replace(&other.log()).await;
    set_mode(0o666);
    let begin = Instant::now();
    loop {
        let (is_appended, after) = next();
        assert_eq!(after, replaced, "the file has not changed");
        if is_appended {
            break;
        }
        assert!(begin.elapsed() < SOON, "the file is not opened again");
    }
}

#[tokio::test]
async fn log_whose_mark_cannot_be_written_can_be_read() {
    let folder = Folder::new();
    fill(&open(&folder), (0..100).map(|n| n.to_string())).await;
    closed(&folder).await;
    fs::set_permissions(folder.log(), Permissions::from_mode(0o666)).unwrap();
    fs::set_permissions(folder.mark(), Permissions::from_mode(0o444)).unwrap();
    let mut child = Child::start_as(unprivileged(&folder), "read", &folder.log());
    assert_eq!(child.line().as_deref(), Some("100 0"));
    let error = child.line().expect("an error");
    assert!(error.contains("cannot write to the log") && error.contains("events.log.mark"), "{error}");
    // The log can be written as soon as the permission is granted.
    fs::set_permissions(folder.mark(), Permissions::from_mode(0o666)).unwrap();
    let begin = Instant::now();
    while child.line().as_deref() != Some("appended") {
        assert!(begin.elapsed() < SOON, "the mark is not opened again");
    }
}

#[tokio::test]
async fn moved_file_is_not_created_again() {
    let folder = Folder::new();
    let log = open(&folder);
    let before = fill(&log, (0..30_000).map(|n| format!("{n} {}", "x".repeat(200)))).await;
    drop(log);
    closed(&folder).await;
    // The database has no page in its memory.
    let log = open(&folder);
    log.open().await.unwrap();
    fs::rename(folder.log(), folder.path("moved")).unwrap();
    assert_eq!(append(&log, "1").await, before.next(), "the open file is still the log");
    // Missing data is an I/O error. The database then has to open its file again.
    let len = fs::metadata(folder.path("moved")).unwrap().len();
    File::options().write(true).open(folder.path("moved")).unwrap().set_len(len / 2 / 4096 * 4096).unwrap();
    let begin = Instant::now();
    let mut error = String::new();
    while !error.contains("No such file") {
        assert!(begin.elapsed() < SOON, "the log does not open the file again: {error}");
        for n in 0..30 {
            let page = log.read(&["topic".into()], Position::new(n * 1000)).await;
            error = page.err().map_or(error, |error| error.to_string());
        }
        sleep(Duration::from_millis(50)).await;
    }
    let error = log.append(vec![super::record("2")]).await.expect_err("there is no file").to_string();
    assert!(error.contains("No such file"), "{error}");
    assert!(error.contains("events.log"), "{error}");
    assert!(!folder.log().exists(), "an empty log in its place would hide the records");
}

#[tokio::test]
async fn file_that_was_damaged_is_opened_again() {
    let folder = Folder::new();
    create_large_log(&folder).await;
    // The database has no page in its memory.
    let log = open(&folder);
    log.open().await.unwrap();
    let whole = fs::read(folder.log()).unwrap();
    // An I/O error makes the log open its file again, and that fails because of the damage.
    let mut damaged = whole[..whole.len() / 2].to_vec();
    damaged[..9].copy_from_slice(b"not redb!");
    fs::write(folder.log(), damaged).unwrap();
    let begin = Instant::now();
    let mut error = String::new();
    while !error.contains("cannot open the log") {
        assert!(begin.elapsed() < SOON, "the log does not open the file again: {error}");
        for n in 0..30 {
            let page = log.read(&["topic".into()], Position::new(n * 1000)).await;
            error = page.err().map_or(error, |error| error.to_string());
        }
        sleep(Duration::from_millis(50)).await;
    }
    fs::write(folder.log(), whole).unwrap();
    let begin = Instant::now();
    while let Err(error) = log.append(vec![super::record("next")]).await {
        assert!(begin.elapsed() < SOON, "the log does not open the file again: {error}");
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(all(&log).await.len(), 30_001);
}

/// Returns a command that runs this executable as a user who may not write to every file.
fn unprivileged(folder: &Folder) -> Command {
    // Any user can read this folder.
    let copy = folder.path("child");
    // `fs::copy` would open the copy for writing in this process. A child that another test forks
    // meanwhile would inherit the descriptor, and the system does not run a file that is open for
    // writing.
    let copied = Command::new("cp").arg(env::current_exe().unwrap()).arg(&copy).status();
    assert!(copied.expect("`cp` runs").success(), "the executable can be copied");
    let mut command = Command::new(copy);
    // Root may write to any file, and only root can become another user.
    if fs::metadata("/proc/self").expect("Linux").uid() == 0 {
        command.uid(65534).gid(65534);
    }
    command
}

#[tokio::test]
async fn damaged_record_is_reported_and_others_are_read() {
    let folder = Folder::new();
    fill(&open(&folder), (0..3000).map(|n| format!("record-{n:04}"))).await;
    closed(&folder).await;
    let at = find(&folder.log(), b"record-1234");
    change(&folder.log(), at, b'X');

    let log = open(&folder);
    let (records, gaps) = all_with_gaps(&log).await;
    assert_eq!(gaps, [(Position::new(1235), Position::new(1235))], "only the damaged record is missing");
    assert_eq!(records.len(), 2999);
    assert_eq!(append(&log, "next").await, Position::new(3001));
    // A reader of history gets the same gap.
    let page = log.read(&["topic".into()], Position::new(1234)).await.unwrap();
    assert_eq!((page.evicted_through, page.records[0].0), (Position::new(1235), Position::new(1236)));
    let page = log.read(&["topic".into()], Position::new(1000)).await.unwrap();
    assert_eq!((page.through, page.records.len()), (Position::new(1234), 234), "the page ends before it");
    let bounds = log.bounds().await.unwrap();
    let unsure = log.append_if_unchanged(Vec::new(), bounds.epoch, Position::new(1234)).await.unwrap();
    assert_eq!(unsure, None, "the damaged record may have been of the topic");
}

#[tokio::test]
async fn damaged_last_record_is_a_gap() {
    for size in [0, 3000] {
        let folder = Folder::new();
        fill(&open(&folder), (0..100).map(|n| format!("record-{n:04} {}", "x".repeat(size)))).await;
        closed(&folder).await;
        let at = find(&folder.log(), b"record-0099");
        change(&folder.log(), at, b'X');

        let log = open(&folder);
        assert_eq!(append(&log, "next").await, Position::new(101));
        let (records, gaps) = all_with_gaps(&log).await;
        assert_eq!((records.len(), gaps), (100, vec![(Position::new(100), Position::new(100))]), "{size}");
    }
}

#[tokio::test]
async fn log_whose_records_are_all_damaged_opens() {
    let folder = Folder::new();
    fill(&open(&folder), (0..3).map(|n| format!("record-{n:04}"))).await;
    closed(&folder).await;
    for n in 0..3 {
        let at = find(&folder.log(), format!("record-{n:04}").as_bytes());
        change(&folder.log(), at, b'X');
    }

    let log = open(&folder);
    assert_eq!(append(&log, "next").await, Position::new(4));
    let page = log.follow(Position::START).await.unwrap();
    assert_eq!((page.evicted_through, page.through), (Position::new(3), Position::new(4)));
    assert_eq!(all_with_gaps(&log).await.0, [(Position::new(4), "next".to_owned())]);
}

#[tokio::test]
async fn damaged_page_is_reported_and_others_are_read() {
    let folder = Folder::new();
    fill(&open(&folder), (0..3000).map(|n| format!("record-{n:04}"))).await;
    closed(&folder).await;
    // The first byte of a page of the database is its type.
    let at = find(&folder.log(), b"record-1234") / 4096 * 4096;
    change(&folder.log(), at, 0xFF);

    let log = open(&folder);
    let (records, gaps) = all_with_gaps(&log).await;
    let [(first, last)] = gaps[..] else { panic!("one gap: {gaps:?}") };
    assert!(first <= Position::new(1235) && last >= Position::new(1235), "{gaps:?}");
    let missing = last.get() - first.get() + 1;
    assert!(missing < 100, "one page of records is missing: {missing}");
    assert_eq!(records.len() as u64, 3000 - missing);
    assert!(records.iter().all(|(position, data)| *data == format!("record-{:04}", position.get() - 1)));
    assert_eq!(append(&log, "next").await, Position::new(3001), "publishing does not need this page");
}

#[tokio::test]
async fn comparison_that_needs_a_damaged_page_fails_alone() {
    let folder = Folder::new();
    fill(&open(&folder), (0..3000).map(|n| format!("record-{n:04}"))).await;
    closed(&folder).await;
    let at = find(&folder.log(), b"record-1234") / 4096 * 4096;
    change(&folder.log(), at, 0xFF);

    let log = open(&folder);
    let epoch = log.bounds().await.unwrap().epoch;
    for since in [1000, 3000] {
        let since = Position::new(since);
        let is_damaged_after = since < Position::new(1234);
        // The appends wait at the same time, so they share a commit.
        let appends = (0..50).map(|n| log.append(vec![super::record(&n.to_string())]));
        let mut other = super::record("compared");
        other.topic = "other".into();
        let compared = log.append_if_unchanged(vec![other], epoch, since);
        let (compared, appended) = tokio::join!(compared, join_all(appends));
        assert_eq!(compared.expect("it is no error").is_none(), is_damaged_after, "after {since}");
        assert!(appended.iter().all(Result::is_ok), "{appended:?}");
    }
    assert_eq!(log.bounds().await.unwrap().last, Position::new(3101));
}

#[tokio::test]
async fn every_changed_byte_is_a_gap_or_an_error() {
    let folder = Folder::new();
    let log = open(&folder);
    fill(&log, (0..300).map(|n| format!("record-{n:04}"))).await;
    let before = log.bounds().await.unwrap().epoch;
    drop(log);
    closed(&folder).await;
    let (file, mark) = (fs::read(folder.log()).unwrap(), fs::read(folder.mark()).unwrap());
    let marked = fs::metadata(folder.mark()).unwrap().modified().unwrap();
    let mut outcomes = [0; 4];
    // A step that is no divisor of the size of a page meets all parts of pages.
    for at in (0..file.len()).step_by(601) {
        fs::write(folder.log(), &file).unwrap();
        fs::write(folder.mark(), &mark).unwrap();
        File::options().write(true).open(folder.mark()).unwrap().set_modified(marked).unwrap();
        change(&folder.log(), at, !file[at]);
        let log = open(&folder);
        match log.bounds().await {
            Ok(bounds) if bounds.epoch == before => {}
            // Clients get a gap.
            Ok(_) => {
                outcomes[1] += 1;
                drop(log);
                closed(&folder).await;
                continue;
            }
            Err(error) => {
                assert!(error.to_string().contains("cannot open the log"), "{error}");
                outcomes[0] += 1;
                continue;
            }
        }
        let read = read_all(&log).await;
        match read {
            Err(_) => outcomes[2] += 1,
            Ok((records, missing)) => {
                assert!(records.is_sorted_by(|one, other| one.0 < other.0), "byte {at}");
                assert!(
                    records.iter().all(|(position, data)| *data == format!("record-{:04}", position.get() - 1)),
                    "byte {at}"
                );
                assert_eq!(records.len() as u64 + missing, 300, "byte {at}");
                outcomes[3] += 1;
            }
        }
        // It succeeds or fails, but does not panic.
        let _may_fail = log.append(vec![super::record("next")]).await;
        drop(log);
        closed(&folder).await;
    }
    println!("error, other epoch, not read, read: {outcomes:?}");
    assert!(outcomes[3] > 80, "most bytes of a small log are unused");
}

type Records = Vec<(Position, String)>;

/// Reads all records. Returns the number of missing ones, too.
async fn read_all(log: &FileBackend) -> Result<(Records, u64), tower_sse::BoxError> {
    let bounds = log.bounds().await?;
    let (mut after, mut missing) = (Position::START, 0);
    let mut records = Vec::new();
    while after < bounds.last {
        let page = log.follow(after).await?;
        missing += page.evicted_through.get().saturating_sub(after.get());
        assert!(page.through > after);
        after = page.through;
        for (position, record) in page.records {
            let event = String::from_utf8_lossy(&record.event).into_owned();
            records.push((position, event.trim_start_matches("data: ").trim_end().to_owned()));
        }
    }
    Ok((records, missing))
}

#[tokio::test]
async fn file_that_is_no_log_is_an_error() {
    let folder = Folder::new();
    for contents in [&b"a text"[..], &[7; 100_000]] {
        fs::write(folder.log(), contents).unwrap();
        let error = open(&folder).bounds().await.expect_err("it is no log").to_string();
        assert!(error.contains("cannot open the log") && error.contains("events.log"), "{error}");
        assert_eq!(fs::read(folder.log()).unwrap(), contents, "the file has not changed");
    }
    let error = FileBackend::new(folder.path("no/folder")).bounds().await.expect_err("there is no folder").to_string();
    assert!(error.contains("cannot open") && error.contains("no/folder"), "{error}");
    let error = FileBackend::new(folder.path(".")).bounds().await.expect_err("it is a folder").to_string();
    assert!(error.contains("cannot open"), "{error}");
}

#[tokio::test]
async fn truncated_file_is_an_error() {
    let folder = Folder::new();
    create_large_log(&folder).await;
    let log = open(&folder);
    log.bounds().await.unwrap();
    let len = fs::metadata(folder.log()).unwrap().len();
    let truncate = || File::options().write(true).open(folder.log()).unwrap().set_len(len / 2 / 4096 * 4096).unwrap();
    // The file is truncated while the log is open.
    truncate();
    let mut errors = 0;
    for n in 0..30 {
        errors += usize::from(log.read(&["topic".into()], Position::new(n * 1000)).await.is_err());
    }
    assert!(errors > 0, "the second half of the file is missing");
    let error = log.append(vec![super::record("next")]).await.expect_err("the file is damaged").to_string();
    assert!(error.contains("the log") && error.contains("events.log"), "{error}");
    drop(log);
    closed(&folder).await;
    let error = open(&folder).bounds().await.expect_err("the file is damaged").to_string();
    assert!(error.contains("cannot open the log"), "{error}");
}

#[tokio::test]
async fn interrupted_creation_is_repeated() {
    let folder = Folder::new();
    // The database is created with a size, and begins with its name when it is complete.
    fs::write(folder.log(), vec![0; 1 << 20]).unwrap();
    append(&open(&folder), "1").await;
    closed(&folder).await;
    assert_eq!(all(&open(&folder)).await.len(), 1);
}

/// Returns the only offset of these bytes in a file.
fn find(path: &Path, bytes: &[u8]) -> usize {
    let file = fs::read(path).unwrap();
    let mut found = file.windows(bytes.len()).enumerate().filter(|(_, window)| *window == bytes).map(|(at, _)| at);
    let at = found.next().expect("the bytes are in the file");
    assert_eq!(found.next(), None, "they are in the file once");
    at
}

fn change(path: &Path, at: usize, byte: u8) {
    use std::os::unix::fs::FileExt;
    File::options().write(true).open(path).unwrap().write_all_at(&[byte], at as u64).unwrap();
}
