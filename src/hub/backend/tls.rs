//! TLS of Redis and Postgres with `rustls`, which is also the TLS library of the NATS client.

use rustls_native_certs::load_native_certs;
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
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

/// The TLS settings for connections to one server.
#[derive(Default)]
pub(super) struct Tls {
    pub(super) files: Files,
    /// The root certificates of the operating system, loaded by the first connection that needs
    /// them.
    system_roots: OnceLock<Arc<RootCertStore>>,
}

/// The PEM files for connections with TLS. They are read for each connection, because they may be
/// renewed at any time.
#[derive(Clone, Default)]
pub(super) struct Files {
    /// The file with the trusted root certificates. `None` means the root certificates of the
    /// operating system.
    pub(super) roots: Option<PathBuf>,
    /// The files with the client's certificate chain and its private key. `None` means that the
    /// client sends no certificate.
    pub(super) own: Option<(PathBuf, PathBuf)>,
}

impl Tls {
    pub(super) fn new(files: Files) -> Self {
        Self { files, system_roots: OnceLock::new() }
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
        let roots = match &self.files.roots {
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for root in certificates(path)? {
                    roots.add(root).map_err(|error| at(path, &error))?;
                }
                Arc::new(roots)
            }
            None => self.system_roots()?,
        };
        // The crypto provider is set explicitly, because the process may have no default provider.
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| invalid(&error))?
            .with_root_certificates(roots);
        let config = match &self.files.own {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let secret = read(key, PrivateKeyDer::from_pem_slice)?;
                builder.with_client_auth_cert(certificates(chain)?, secret).map_err(|error| at(key, &error))?
            }
        };
        Ok(Arc::new(config))
    }

    fn system_roots(&self) -> io::Result<Arc<RootCertStore>> {
        if let Some(roots) = self.system_roots.get() {
            return Ok(Arc::clone(roots));
        }
        let mut roots = RootCertStore::empty();
        // Certificates that do not parse are ignored.
        roots.add_parsable_certificates(load_native_certs()?);
        Ok(Arc::clone(self.system_roots.get_or_init(|| Arc::new(roots))))
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
