//! The connection to Redis that all requests of this process share, except those of the follower,
//! the task that waits for new entries.

use super::{
    RedisBackend,
    connection::{COMMANDS, Connection, RequestError, is_connection_error, is_redirect},
};
use redis::{Cmd, FromRedisValue, RedisError, ScriptInvocation};
use std::time::Duration;

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
        mut connection: Connection,
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
                // Another caller may have replaced the connection already.
                self.commands.close_if(|current| current.is_same(&connection));
            }
            // The server has refused the command without running it, so the command can be sent
            // again. Another server may accept the command: the new master, or the cluster node
            // that has the key.
            if is_new || !is_redirect(&error) {
                return Err(self.error(error));
            }
            is_new = true;
            connection = self.shared_connection().await?;
        }
    }

    /// Returns the connection to Redis that all requests of this process share. Opens the
    /// connection if there is none. Concurrent callers share one attempt to open it.
    pub(super) async fn shared_connection(&self) -> Result<Connection, RequestError> {
        let open = || {
            let (server, timeout) = (self.server.clone(), self.timeout);
            async move { server.connect(COMMANDS, timeout, Duration::ZERO).await }
        };
        self.commands.get(open).await
    }
}
