//! Connections to Postgres: URLs, and requests with a time limit.

use super::{error::RequestError, hosts, notifications::Notifications, schema::Schema};
use crate::BoxError;
#[cfg(feature = "postgres-tls")]
use crate::hub::backend::tls::{Files, Tls};
use std::{
    future::poll_fn,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::AbortHandle,
    time::timeout,
};
use tokio_postgres::{
    AsyncMessage, Client, Config, NoTls, Row,
    config::{SslMode, TargetSessionAttrs},
    types::{ToSql, Type},
};

/// The beginning of the error message after a failed attempt to connect to Postgres.
const UNUSABLE: &str = "Postgres cannot be used";

/// The hosts of a Postgres server, and the settings for connections to this server.
#[derive(Clone)]
pub(super) struct Server {
    /// The settings for connections to each host in the URL of the Postgres server.
    hosts: Vec<Config>,
    #[cfg(feature = "postgres-tls")]
    tls: Option<Arc<Tls>>,
}

impl Server {
    pub(super) fn parse(url: &str) -> Result<Self, BoxError> {
        let is_url = ["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme));
        if !is_url {
            return Err("this is no URL of Postgres: it does not begin with postgres:// or postgresql://".into());
        }
        // Certificates are always verified, so these modes are the same.
        let url = url.replace("sslmode=verify-full", "sslmode=require").replace("sslmode=verify-ca", "sslmode=require");
        // The error names the part of the URL that is invalid, without its value.
        let mut config: Config =
            url.parse().map_err(|error| RequestError::new("this is no URL of Postgres", &error))?;
        let is_tls = config.get_ssl_mode() == SslMode::Require;
        if is_tls && !cfg!(feature = "postgres-tls") {
            return Err("sslmode=require takes TLS: enable the feature `postgres-tls` of tower-sse".into());
        }
        if !is_tls {
            config.ssl_mode(SslMode::Disable);
        }
        // A replica does not accept records, and may lack the newest records of the log.
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        config.keepalives_idle(Duration::from_secs(10)).keepalives_interval(Duration::from_secs(5));
        Ok(Self {
            hosts: hosts::split(&config)?,
            #[cfg(feature = "postgres-tls")]
            tls: is_tls.then(Arc::default),
        })
    }

    /// Sets the PEM files for TLS: root certificates, client certificate and private key. Has no
    /// effect if connections to the server do not use TLS.
    #[cfg(feature = "postgres-tls")]
    pub(super) fn set_tls_files(&mut self, files: &Files) {
        if let Some(tls) = &mut self.tls {
            *tls = Arc::new(Tls::new(files.clone()));
        }
    }

    /// Connects to the first host that accepts writes. `name` is the application name of the
    /// connection, unless the URL sets another name. Creates or updates the Postgres schema of the
    /// log if the database does not have its current version.
    ///
    /// `time` is the time limit for each address of each host.
    pub(super) async fn connect(
        &self,
        name: &str,
        schema: &Schema,
        time: Duration,
    ) -> Result<Connection, RequestError> {
        let mut failures = Vec::new();
        for host in hosts::in_order(&self.hosts) {
            let mut begin = Instant::now();
            let addresses = match timeout(time, hosts::resolve(host)).await {
                Ok(Ok(addresses)) => addresses,
                Ok(Err(error)) => {
                    failures.push(format!("{}: {error}", hosts::name(host)));
                    continue;
                }
                Err(_) => {
                    failures.push(format!("{}: no address was found within {time:?}", hosts::name(host)));
                    continue;
                }
            };
            for address in addresses {
                // The first address shares its time limit with the resolution of the name.
                let left = time.saturating_sub(begin.elapsed());
                match timeout(left, self.connect_to(&address, name, schema)).await {
                    Ok(Ok(connection)) => return connection,
                    Ok(Err(failure)) => failures.push(failure.to_string()),
                    Err(_) => failures.push(format!("{}: it has not answered within {time:?}", hosts::name(&address))),
                }
                begin = Instant::now();
            }
        }
        Err(RequestError::broken(format!("{UNUSABLE}: {}", failures.join("; "))))
    }

    /// Connects to one address of a host, and creates or updates the Postgres schema of the log.
    /// The outer error means that the address cannot be used; another address may be usable. The
    /// inner error means that the connection works, but the schema cannot be used or created. Other
    /// addresses are then not tried.
    async fn connect_to(
        &self,
        address: &Config,
        name: &str,
        schema: &Schema,
    ) -> Result<Result<Connection, RequestError>, RequestError> {
        let host = hosts::name(address);
        let connection = self.open(address, name).await.map_err(|source| RequestError::new(&host, &source))?;
        let what = format!("{UNUSABLE}: {host}");
        let prepared = schema.prepare(&connection.client).await;
        Ok(prepared.map(|()| connection).map_err(|error| match error.downcast::<tokio_postgres::Error>() {
            Ok(source) => RequestError::new(&what, &source),
            Err(other) => RequestError::broken(format!("{what}: {other}")),
        }))
    }

    async fn open(&self, address: &Config, name: &str) -> Result<Connection, tokio_postgres::Error> {
        let mut config = address.clone();
        if config.get_application_name().is_none() {
            config.application_name(name);
        }
        #[cfg(feature = "postgres-tls")]
        if let Some(tls) = &self.tls {
            let (client, connection) = config.connect(super::tls::MakeTls(Arc::clone(tls))).await?;
            return Ok(Connection::new(client, connection));
        }
        let (client, connection) = config.connect(NoTls).await?;
        Ok(Connection::new(client, connection))
    }
}

/// A connection to Postgres. Dropping this value closes the connection immediately, even if
/// responses are outstanding.
pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) notifications: Arc<Notifications>,
    driver: AbortHandle,
}

impl Connection {
    fn new<S, T>(client: Client, mut connection: tokio_postgres::Connection<S, T>) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let notifications = Arc::<Notifications>::default();
        let received = Arc::clone(&notifications);
        let driver = tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
                if let AsyncMessage::Notification(notification) = message {
                    received.push(notification.payload());
                }
            }
            received.end();
        });
        Self { client, notifications, driver: driver.abort_handle() }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.notifications.has_ended() || self.client.is_closed()
    }

    /// Sends a query as an unnamed statement, which needs no state of the Postgres session. So it
    /// also works in a connection pool in transaction mode. Returns an error if there is no
    /// response within `time`.
    pub(super) async fn query(
        &self,
        what: &str,
        sql: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
        time: Duration,
    ) -> Result<Vec<Row>, RequestError> {
        match timeout(time, self.client.query_typed(sql, parameters)).await {
            Ok(rows) => rows.map_err(|source| RequestError::new(what, &source)),
            Err(_) => Err(RequestError::broken(format!("{what}: Postgres has not answered within {time:?}"))),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_urls_are_errors_without_the_password() {
        for url in
            ["", "http://me:secret@host", "postgres://", "postgres://me:secret@host:port/db", "postgres:me:secret@host"]
        {
            let error = Server::parse(url).err().unwrap_or_else(|| panic!("{url:?} is valid")).to_string();
            assert!(!error.contains("secret"), "{error}");
        }
        for url in ["postgres://host", "postgresql://me:secret@host:1/db?connect_timeout=3", "postgres:///db?host=/run"]
        {
            assert!(Server::parse(url).is_ok(), "{url}");
        }
    }

    #[test]
    fn sslmode_decides_whether_tls_is_used() {
        for mode in ["", "?sslmode=disable", "?sslmode=prefer"] {
            let server = Server::parse(&format!("postgres://host{mode}")).unwrap();
            assert_eq!(server.hosts[0].get_ssl_mode(), SslMode::Disable);
        }
        for mode in ["require", "verify-ca", "verify-full"] {
            let server = Server::parse(&format!("postgres://host?sslmode={mode}"));
            #[cfg(feature = "postgres-tls")]
            assert!(server.unwrap().tls.is_some(), "{mode}");
            #[cfg(not(feature = "postgres-tls"))]
            assert!(server.err().unwrap().to_string().contains("`postgres-tls`"), "{mode}");
        }
    }
}
