//! The connection to Redis that all requests of this process share, except those of the follower,
//! the task that waits for new entries.

use super::{
    RedisBackend,
    connection::{COMMANDS, Connection, RequestError, is_connection_error, is_redirect},
};
use redis::{Cmd, FromRedisValue, RedisError, ScriptInvocation};
use std::time::{Duration, Instant};

/// The connection to Redis that all requests of this process share, except requests that wait for
/// new entries.
#[derive(Default)]
pub(super) struct Commands {
    connection: Option<Connection>,
    /// The number that identifies the current shared connection to Redis, so that the failure of an
    /// earlier connection does not close it. It is the count of shared connections opened so far.
    number: u64,
    /// The time and the error of the last failed attempt to connect to Redis. A caller that has
    /// waited for this attempt returns the same error.
    last_failure: Option<(Instant, RequestError)>,
}

/// A Redis command that can be sent several times, for example again on another connection.
pub(super) enum Command<'a> {
    Plain(Cmd),
    Script(ScriptInvocation<'a>),
}

impl Command<'_> {
    async fn run<T: FromRedisValue>(&self, connection: &mut Connection) -> Result<T, RedisError> {
        match self {
            Self::Plain(command) => command.query_async(&mut connection.commands).await,
            Self::Script(script) => script.invoke_async(&mut connection.commands).await,
        }
    }
}

impl RedisBackend {
    /// Runs a command on the connection to Redis that all requests of this process share. Opens the
    /// connection if there is none.
    pub(super) async fn run<T: FromRedisValue>(&self, command: &Command<'_>) -> Result<T, RequestError> {
        self.run_on(self.shared_connection().await?, command).await
    }

    /// Runs a command on the connection that [`shared_connection`](Self::shared_connection) has
    /// returned. If the server refuses the command because another server has to run it, connects
    /// to the other server and runs the command there. If that server refuses the command, too,
    /// returns the error.
    pub(super) async fn run_on<T: FromRedisValue>(
        &self,
        (mut connection, mut number): (Connection, u64),
        command: &Command<'_>,
    ) -> Result<T, RequestError> {
        let mut is_new = false;
        loop {
            let error = match command.run(&mut connection).await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            self.server.follow_redirect(&error);
            if is_connection_error(&error) {
                self.disconnect(Some(number)).await;
            }
            // The server has refused the command without running it, so the command can be sent
            // again. Another server may accept the command: the new master, or the cluster node
            // that has the key.
            if is_new || !is_redirect(&error) {
                return Err(self.error(error));
            }
            is_new = true;
            (connection, number) = self.shared_connection().await?;
        }
    }

    /// Returns the connection to Redis that all requests of this process share, and the number that
    /// identifies this connection. Opens the connection if there is none. Concurrent callers share
    /// one connection attempt, and its error.
    pub(super) async fn shared_connection(&self) -> Result<(Connection, u64), RequestError> {
        let begin = Instant::now();
        let mut commands = self.commands.lock().await;
        if let Some(connection) = &commands.connection {
            return Ok((connection.clone(), commands.number));
        }
        // The attempt of another caller failed while this caller waited for the lock. This caller
        // returns the same error and does not try again.
        if let Some((at, failed)) = &commands.last_failure {
            if *at >= begin {
                return Err(failed.clone());
            }
        }
        match self.server.connect(COMMANDS, self.timeout, Duration::ZERO).await {
            Ok(connection) => {
                commands.connection = Some(connection.clone());
                commands.number += 1;
                Ok((connection, commands.number))
            }
            Err(failed) => {
                commands.last_failure = Some((Instant::now(), failed.clone()));
                Err(failed)
            }
        }
    }

    /// Drops the shared connection to Redis, so that the next request opens a new connection. If
    /// `number` is given, drops the connection only if it has this number: another caller may
    /// already have replaced the connection that failed.
    pub(super) async fn disconnect(&self, number: Option<u64>) {
        let mut commands = self.commands.lock().await;
        if number.is_none_or(|number| number == commands.number) {
            commands.connection = None;
        }
    }
}
