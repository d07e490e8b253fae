//! TLS of Redis and Postgres with `rustls`, which is also the TLS library of the NATS client.

use rustls_native_certs::load_native_certs;
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    },
};

/// The TLS settings of a connection.
#[derive(Default)]
pub(super) struct Tls {
    /// The PEM file of root certificates. `None` means the root certificates of the system.
    pub(super) roots: Option<PathBuf>,
    /// The PEM files of the client's certificate chain and of its key.
    pub(super) own: Option<(PathBuf, PathBuf)>,
    config: Mutex<Option<Arc<ClientConfig>>>,
}

impl Tls {
    #[cfg(feature = "postgres-tls")]
    pub(super) fn new(roots: Option<PathBuf>, own: Option<(PathBuf, PathBuf)>) -> Self {
        Self { roots, own, config: Mutex::default() }
    }

    pub(super) async fn connect<S>(&self, host: &str, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = self.config()?;
        let name = ServerName::try_from(host.to_owned()).map_err(|error| invalid(&error))?;
        TlsConnector::from(config).connect(name, stream).await
    }

    fn config(&self) -> io::Result<Arc<ClientConfig>> {
        let mut known = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = &*known {
            return Ok(Arc::clone(config));
        }
        let mut roots = RootCertStore::empty();
        match &self.roots {
            Some(path) => {
                for root in certificates(path)? {
                    roots.add(root).map_err(|error| at(path, &error))?;
                }
            }
            // System roots that do not parse are ignored.
            None => drop(roots.add_parsable_certificates(load_native_certs()?)),
        }
        // The crypto provider is set explicitly, because the process may have no default provider.
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| invalid(&error))?
            .with_root_certificates(roots);
        let config = match &self.own {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let secret = read(key, PrivateKeyDer::from_pem_slice)?;
                builder.with_client_auth_cert(certificates(chain)?, secret).map_err(|error| at(key, &error))?
            }
        };
        Ok(Arc::clone(known.insert(Arc::new(config))))
    }
}

fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let certificates = read(path, |pem| CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>())?;
    if certificates.is_empty() { Err(at(path, &"there is no certificate")) } else { Ok(certificates) }
}

fn read<T, E: ToString>(path: &Path, parse: impl FnOnce(&[u8]) -> Result<T, E>) -> io::Result<T> {
    parse(&fs::read(path).map_err(|error| at(path, &error))?).map_err(|error| at(path, &error))
}

fn at(path: &Path, error: &dyn ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{}: {}", path.display(), error.to_string()))
}

fn invalid(error: &dyn ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error.to_string())
}
