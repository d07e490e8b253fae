//! Apache httpd, with mod_proxy_http.

use crate::{case::ProxyCase, server::LAYERED};
use e2e::{ProxyConfig, ProxyKind};
use std::time::Duration;

pub(crate) const APACHE: ProxyCase = ProxyCase {
    kind: ProxyKind::Apache,
    accept: "text/event-stream",
    timeout: Duration::from_secs(2),
    forwards_disconnects: false,
    delays_heads: false,
    buffers: false,
};

proxy_tests!(APACHE);

#[tokio::test(flavor = "multi_thread")]
async fn apache_ignores_no_transform() {
    let types = "AddOutputFilterByType DEFLATE";
    let config = ProxyConfig::new(ProxyKind::Apache).replace(types, &format!("{types} text/event-stream"));
    for path in LAYERED {
        assert_eq!(APACHE.content_encoding(&config, path).await.as_deref(), Some("gzip"), "{path}");
    }
}
