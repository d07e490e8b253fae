//! Servers of Postgres: their data, commands in SQL, and pools of connections.

use crate::{
    port::Port,
    process::{Process, installed},
    store::Store,
};
use std::{
    fs,
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::Duration,
};
use tempfile::TempDir;

/// The Debian package of the server and its programs.
const PACKAGE: &str = "postgresql";

/// Returns a command that runs a program of Postgres. The server refuses to run as root, so the
/// command then runs as the user that the package has created.
pub(crate) fn command(program: &str) -> Command {
    command_of(program, PACKAGE)
}

/// Returns a command that runs a program of a package as the user of Postgres.
fn command_of(program: &str, package: &str) -> Command {
    let mut command = Command::new(installed(&[program], package));
    if let Some((user, group)) = owner() {
        command.uid(user).gid(group);
    }
    // The user `postgres` may not enter the folder of the tests.
    command.current_dir("/");
    command
}

/// Returns the user and the group that the server runs as, if this process runs as root.
fn owner() -> Option<(u32, u32)> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().nth(1).filter(|id| *id == "0")?;
    let users = fs::read_to_string("/etc/passwd").expect("the system has users");
    let entry = users.lines().find(|line| line.starts_with("postgres:"));
    let entry = entry.unwrap_or_else(|| panic!("there is no user postgres: `apt-get install {PACKAGE}`"));
    let mut ids = entry.split(':').skip(2).map(|id| id.parse().expect("an id is a number"));
    Some((ids.next()?, ids.next()?))
}

/// Creates the data of a server in this folder: a copy of data that is created once per process.
pub(crate) fn create(folder: &Path) {
    static TEMPLATE: OnceLock<TempDir> = OnceLock::new();

    let template = TEMPLATE.get_or_init(|| {
        let folder = tempfile::tempdir().expect("the folder can be created");
        give(folder.path());
        let mut initdb = command("initdb");
        initdb.args(["--no-sync", "--encoding=UTF8", "--locale=C.UTF-8", "--auth=trust", "--username=postgres"]);
        initdb.arg("--pgdata").arg(folder.path().join("data"));
        run(&mut initdb);
        folder
    });
    give(folder);
    copy(&template.path().join("data"), &data(folder));
}

/// Returns the folder of the data in the folder of a server.
pub(crate) fn data(folder: &Path) -> PathBuf {
    folder.join("data")
}

/// Copies a folder with the owner of its files.
pub(crate) fn copy(from: &Path, to: &Path) {
    run(Command::new("cp").arg("-a").arg(from).arg(to));
}

/// Removes the segment of shared memory that a killed server has left. A system has at most 4,096
/// of them, and the next start of the server would remove it.
pub(crate) fn remove_shared_memory(folder: &Path) {
    const LINE: usize = 6;

    let lock = fs::read_to_string(data(folder).join("postmaster.pid")).unwrap_or_default();
    // The line contains the key and the id of the segment.
    let Some(id) = lock.lines().nth(LINE).and_then(|line| line.split_whitespace().nth(1)) else { return };
    let _already_removed = Command::new("ipcrm").args(["-m", id]).stderr(Stdio::null()).status();
}

/// A pool of connections in transaction mode: PgBouncer, killed on drop.
#[derive(Debug)]
pub struct Pool {
    port: Port,
    _process: Process,
    _folder: TempDir,
}

impl Pool {
    /// Starts a pool in front of a server of Postgres.
    ///
    /// # Panics
    ///
    /// If PgBouncer is not installed, or does not start.
    pub async fn start(store: &Store) -> Self {
        let port = Port::free().expect("there is a free port");
        let folder = tempfile::tempdir().expect("the folder can be created");
        give(folder.path());
        let users = folder.path().join("users");
        fs::write(&users, "\"postgres\" \"\"\n").expect("the file can be written");
        let config = folder.path().join("pgbouncer.ini");
        let settings = format!(
            "[databases]\npostgres = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {}\nunix_socket_dir =\nauth_type = trust\nauth_file = {}\npool_mode = transaction\n\
             default_pool_size = 3\n",
            store.address().port(),
            port.address().port(),
            users.display(),
        );
        fs::write(&config, settings).expect("the file can be written");
        let mut pgbouncer = command_of("pgbouncer", "pgbouncer");
        pgbouncer.arg("--quiet").arg(config).stdout(Stdio::null()).stderr(Stdio::null());
        let pool = Self { port, _process: Process::spawn(&mut pgbouncer), _folder: folder };
        crate::eventually(Duration::from_secs(20), "the pool listens", async || {
            tokio::net::TcpStream::connect(pool.port.address()).await
        })
        .await;
        pool
    }

    /// Returns the URL for clients.
    pub fn url(&self) -> String {
        format!("postgres://postgres@{}/postgres", self.port.address())
    }
}

/// Gives a file or folder to the user of the server.
pub(crate) fn give(path: &Path) {
    if let Some((user, group)) = owner() {
        chown(path, Some(user), Some(group)).expect("root can change the owner");
    }
}

/// Runs a program to its end, and returns its output.
///
/// # Panics
///
/// If the program fails.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().expect("the program is installed");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("the output is UTF-8")
}

/// Runs statements with `psql`, and returns the rows without headers.
///
/// # Panics
///
/// If a statement fails.
pub(crate) fn psql(url: &str, sql: &str) -> String {
    run(command("psql").args([
        "--no-psqlrc",
        "--tuples-only",
        "--no-align",
        "-v",
        "ON_ERROR_STOP=1",
        "-d",
        url,
        "-c",
        sql,
    ]))
    .trim()
    .to_owned()
}
