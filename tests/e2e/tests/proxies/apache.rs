//! Apache httpd, with mod_proxy_http.

use crate::{server::LAYERED, through::Way};
use e2e::{Model, Program};
use std::time::Duration;

pub(crate) const APACHE: Way = Way {
    program: Program::Apache,
    accept: "text/event-stream",
    timeout: Duration::from_secs(2),
    tells_of_clients_that_go: false,
    holds_heads: false,
    buffers: false,
};

holds_through!(APACHE);

#[tokio::test(flavor = "multi_thread")]
async fn it_does_not_heed_no_transform() {
    let types = "AddOutputFilterByType DEFLATE";
    let model = Model::of(Program::Apache).with(types, &format!("{types} text/event-stream"));
    for path in LAYERED {
        assert_eq!(APACHE.coding(&model, path).await.as_deref(), Some("gzip"), "{path}");
    }
}
