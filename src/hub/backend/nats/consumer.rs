//! Consumers of a NATS stream, which deliver its messages to this process. They are ephemeral: the
//! server deletes a consumer five seconds ([`INACTIVE_TIMEOUT`]) after its last request.

use super::{link::Link, message::Delivered};
use crate::BoxError;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use std::{mem, time::Duration};

/// The maximum number of NATS messages in a page, the result of one read of the log.
pub(super) const PAGE_MESSAGES: usize = 1000;

/// The approximate maximum size of a page of NATS messages, in bytes. [`max_page_bytes`] adds room
/// for the largest message.
pub(super) const PAGE_BYTES: usize = 4 << 20;

/// The time without a request to a consumer after which the NATS server deletes the consumer.
const INACTIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// The interval of the heartbeats that the NATS server sends to a consumer while there are no new
/// messages. If this process receives nothing for twice this time, the read fails. The hub then
/// reads again, through a new consumer.
pub(super) const HEARTBEAT: Duration = Duration::from_millis(400);

/// Creates a NATS consumer that delivers the messages of these subjects from the sequence `from`
/// on. If `subjects` is empty, the consumer delivers the messages of all subjects.
pub(super) async fn consume(
    link: &Link,
    stream: &str,
    from: u64,
    mut subjects: Vec<String>,
) -> Result<PullConsumer, BoxError> {
    let (filter_subject, filter_subjects) = match &mut subjects[..] {
        [] => (String::new(), subjects),
        [only] => (mem::take(only), Vec::new()),
        _ => (String::new(), subjects),
    };
    let config = pull::Config {
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from },
        ack_policy: AckPolicy::None,
        inactive_threshold: INACTIVE_TIMEOUT,
        memory_storage: true,
        num_replicas: 1,
        filter_subject,
        filter_subjects,
        ..pull::Config::default()
    };
    link.request(link.context.create_consumer_on_stream(config, stream)).await
}

pub(super) fn max_page_bytes(link: &Link) -> usize {
    PAGE_BYTES + 2 * link.client.server_info().max_payload
}

/// Returns an error if the number of the NATS message, counted from the start of its consumer, is
/// not `expected`. In this case, a message was lost between the server and this process.
pub(super) fn check_sequence(delivered: &Delivered, expected: u64) -> Result<(), BoxError> {
    if delivered.number == expected { Ok(()) } else { Err("a message from the NATS server was lost".into()) }
}
