//! Requests to JetStream about the stream that holds the log: its configuration, its state, and
//! single messages.

use super::{
    link::{Link, RETRY_INTERVAL},
    message::{Nanoseconds, Stored},
};
use crate::BoxError;
use async_nats::jetstream::{
    self, ErrorCode,
    context::{PublishError, PublishErrorKind},
    message::StreamMessage,
    stream::{self, Config, RawMessage},
};
use serde_json::{Value, json};
use std::{error::Error, sync::Arc, time::Duration};
use tokio::time::sleep;

/// The time to wait before a JetStream stream that was deleted is created again with the same name.
///
/// nats-server, up to version 2.9 at least, confirms a deletion before it has removed the files. It
/// then also removes the files of a new stream with this name. The new stream stores messages but
/// does not deliver them. On a busy disk, the removal takes longer than 300 milliseconds, so the
/// wait is one second.
const DELETION: Duration = Duration::from_secs(1);

/// The JetStream error code for a requested message that does not exist.
const NO_MESSAGE: u64 = 10_037;

/// Sends requests about one JetStream stream over one connection to NATS.
#[derive(Clone)]
pub(super) struct Stream {
    pub(super) link: Link,
    pub(super) config: Arc<Config>,
}

/// The state of a JetStream stream at one moment: the range of its sequences, the number of its
/// messages, and the settings of the stream that this crate needs.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    /// The sequence of the oldest message in the JetStream stream. If the stream is empty, this is
    /// the sequence that the next message will get.
    pub(super) first: u64,
    /// The sequence of the newest message that was ever in the JetStream stream, even if the
    /// message was removed since.
    pub(super) last: u64,
    pub(super) messages: u64,
    /// The time when the newest message of the JetStream stream was stored, or `None` if the server
    /// does not return it.
    pub(super) last_time: Option<Nanoseconds>,
    /// The maximum age of messages in the JetStream stream. The server removes older messages.
    /// `None` means no limit.
    pub(super) max_age: Option<Duration>,
    /// The `duplicate_window` of the JetStream stream: the time within which the server detects
    /// that a message is sent twice.
    pub(super) duplicate_window: Duration,
    /// The number of NATS servers that store the JetStream stream (`num_replicas`).
    pub(super) replicas: u64,
}

impl State {
    /// Returns the end of the JetStream stream: the sequence of its newest message, and the time
    /// when this message was stored. If two states have the same end, they are states of the same
    /// log. Returns `None` if the server does not return the time.
    pub(super) fn end(&self) -> Option<(u64, Nanoseconds)> {
        self.last_time.map(|time| (self.last, time))
    }

    /// Returns `true` if messages were deleted between the oldest and the newest message of the
    /// JetStream stream.
    pub(super) fn has_holes(&self) -> bool {
        self.last.checked_sub(self.first).is_some_and(|span| self.messages <= span)
    }
}

impl Stream {
    pub(super) fn name(&self) -> &str {
        &self.config.name
    }

    /// Returns the state of the JetStream stream, and creates the stream if it does not exist.
    /// Returns an error if an existing stream cannot be used as a log.
    ///
    /// Set `existed` to `true` if this process has already used the stream. If the stream is then
    /// missing, it was deleted, and the server may still be removing its files. So the function
    /// waits for one second ([`DELETION`]) before it creates the stream again.
    pub(super) async fn state_or_create(&self, existed: bool) -> Result<State, BoxError> {
        let name = self.name();
        let is_name = |byte: u8| byte.is_ascii_graphic() && !b".*>/\\".contains(&byte);
        if name.is_empty() || !name.bytes().all(is_name) {
            return Err(format!("{name:?} cannot be the name of a stream; use letters, digits, - and _").into());
        }
        let mut info = self.info(&Value::Null).await;
        if existed && matches!(info, Err(RequestError::Refused { code: 404, .. })) {
            sleep(DELETION).await;
            info = self.info(&Value::Null).await;
        }
        if let Err(RequestError::Refused { code: 404, .. }) = info {
            let created = self.link.request(self.link.context.create_stream((*self.config).clone())).await;
            // Another node may have created the stream in the meantime.
            info = self.info(&Value::Null).await;
            if let (Err(_), Err(error)) = (&info, created) {
                return Err(format!("the stream {name:?} does not exist and cannot be created: {error}").into());
            }
        }
        let info = info?;
        check(name, &info["config"])?;
        state(name, &info)
    }

    /// Returns the state of the JetStream stream, and the sequences of the messages that were
    /// deleted between its oldest and its newest message, in rising order.
    pub(super) async fn state_with_holes(&self) -> Result<(State, Vec<u64>), BoxError> {
        let info = self.info(&Value::Null).await?;
        let now = state(self.name(), &info)?;
        if !now.has_holes() {
            return Ok((now, Vec::new()));
        }
        let info = self.info(&json!({ "deleted_details": true })).await?;
        let deleted = info["state"]["deleted"].as_array().into_iter().flatten().filter_map(Value::as_u64);
        let mut deleted: Vec<_> = deleted.collect();
        deleted.sort_unstable();
        Ok((state(self.name(), &info)?, deleted))
    }

    /// Returns the message with this sequence, or `None` if the JetStream stream does not have it.
    pub(super) async fn get(&self, sequence: u64) -> Result<Option<Stored>, BoxError> {
        self.message(&json!({ "seq": sequence })).await
    }

    /// Returns the message with this sequence, or `None` if the JetStream stream does not have it.
    /// Use this function for a message known to be large. Without a response, it repeats the
    /// request after half of the request timeout instead of 250 milliseconds.
    pub(super) async fn get_large(&self, sequence: u64) -> Result<Option<Stored>, BoxError> {
        self.message_with_interval(self.link.large_message_interval(), &json!({ "seq": sequence })).await
    }

    /// Returns the first message of the JetStream stream with this sequence or a greater one.
    /// Returns `None` if there is no such message.
    pub(super) async fn next(&self, sequence: u64) -> Result<Option<Stored>, BoxError> {
        self.next_of(">", sequence).await
    }

    /// Returns the first message of a NATS subject with this sequence or a greater one. `subject`
    /// can contain wildcards. Returns `None` if there is no such message.
    pub(super) async fn next_of(&self, subject: &str, sequence: u64) -> Result<Option<Stored>, BoxError> {
        self.message(&json!({ "seq": sequence, "next_by_subj": subject })).await
    }

    /// Returns the newest message of a NATS subject, or `None` if the JetStream stream has no
    /// message with this subject.
    pub(super) async fn last_of(&self, subject: &str) -> Result<Option<Stored>, BoxError> {
        self.message(&json!({ "last_by_subj": subject })).await
    }

    async fn message(&self, request: &Value) -> Result<Option<Stored>, BoxError> {
        self.message_with_interval(RETRY_INTERVAL, request).await
    }

    async fn message_with_interval(&self, interval: Duration, request: &Value) -> Result<Option<Stored>, BoxError> {
        match send(&self.link, interval, &format!("STREAM.MSG.GET.{}", self.name()), request).await {
            Ok(mut answer) => {
                let message: RawMessage = serde_json::from_value(answer["message"].take())?;
                let (subject, sequence) = (message.subject.clone().into(), message.sequence);
                let time = message.time.unix_timestamp_nanos();
                let message = StreamMessage::try_from(message).map(Stored::from);
                Ok(Some(message.unwrap_or_else(|_| Stored::unreadable(subject, sequence, time))))
            }
            Err(RequestError::Refused { error: NO_MESSAGE, .. }) => Ok(None),
            Err(failure) => Err(failure.into()),
        }
    }

    async fn info(&self, request: &Value) -> Result<Value, RequestError> {
        send(&self.link, RETRY_INTERVAL, &format!("STREAM.INFO.{}", self.name()), request).await
    }
}

/// Returns an error if a JetStream stream with this configuration cannot be used as a log.
fn check(name: &str, config: &Value) -> Result<(), BoxError> {
    let subjects: Vec<_> = config["subjects"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let wanted = format!("{name}.>");
    if !subjects.iter().any(|subject| [&*wanted, "*.>", ">"].contains(subject)) {
        return Err(format!(
            "the stream {name:?} is another one: its subjects are {subjects:?}, and not {wanted:?}; \
             give this hub a stream of another name"
        )
        .into());
    }
    let retention = &config["retention"];
    let per_subject = &config["max_msgs_per_subject"];
    let reason = if retention.as_str().is_some_and(|retention| retention != "limits") {
        format!("its retention is {retention}, not limits")
    } else if config["no_ack"] == true {
        "it does not acknowledge messages".to_owned()
    } else if per_subject.as_i64().is_some_and(|most| most > 0) {
        format!("max_msgs_per_subject is {per_subject}, which removes messages from the middle; set it to -1")
    } else if config["mirror"].is_object() {
        "it mirrors another stream, so nothing can be published to it".to_owned()
    } else if config["sealed"] == true {
        "it is sealed, so nothing can be published to it".to_owned()
    } else if config["subject_transform"].is_object() {
        "subject_transform changes the subjects, which are the topics".to_owned()
    } else {
        return Ok(());
    };
    Err(format!("the stream {name:?} cannot be a log: {reason}").into())
}

fn state(name: &str, info: &Value) -> Result<State, BoxError> {
    let state = &info["state"];
    let (Some(first), Some(last)) = (state["first_seq"].as_u64(), state["last_seq"].as_u64()) else {
        return Err(format!("the server does not say where the stream {name:?} begins and ends").into());
    };
    let max_age = info["config"]["max_age"].as_u64().filter(|age| *age > 0).map(Duration::from_nanos);
    let duplicate_window = Duration::from_nanos(info["config"]["duplicate_window"].as_u64().unwrap_or(0));
    let messages = state["messages"].as_u64().unwrap_or(0);
    let last_time = serde_json::from_value::<stream::State>(state.clone()).ok();
    let last_time = last_time.map(|state| state.last_timestamp.unix_timestamp_nanos());
    let replicas = info["config"]["num_replicas"].as_u64().unwrap_or(1);
    Ok(State { first: first.max(1), last, messages, last_time, max_age, duplicate_window, replicas })
}

/// The reason why a request to JetStream failed: the server refused the request, or there was no
/// valid response.
enum RequestError {
    Refused { code: u64, error: u64, description: String },
    Other(BoxError),
}

impl From<RequestError> for BoxError {
    fn from(failure: RequestError) -> Self {
        match failure {
            RequestError::Refused { code, description, .. } => format!("{description} ({code})").into(),
            RequestError::Other(error) => error,
        }
    }
}

/// Sends a read-only request to the JetStream API, and returns the response. `subject` is the
/// subject of the request without the prefix `$JS.API`. Sends the request again after each
/// `interval` without a response, until the request timeout of the backend has passed.
async fn send(link: &Link, interval: Duration, subject: &str, request: &Value) -> Result<Value, RequestError> {
    let attempt = || link.context.request::<_, _, Value>(subject.to_owned(), request);
    let answer = link.request_repeatedly(interval, attempt).await.map_err(RequestError::Other)?;
    let Some(error) = answer.get("error") else { return Ok(answer) };
    Err(RequestError::Refused {
        code: error["code"].as_u64().unwrap_or(0),
        error: error["err_code"].as_u64().unwrap_or(0),
        description: error["description"].as_str().unwrap_or("refused by the server").to_owned(),
    })
}

/// Returns `true` if the NATS server has refused a message because the message expects another last
/// sequence of the stream or of the subject. Servers from 2.12 on have a second error code for this
/// case, which they use while they store another message of the same subject.
pub(super) fn is_refusal(error: &PublishError) -> bool {
    let code = || Some(error.source()?.downcast_ref::<jetstream::Error>()?.error_code());
    error.kind() == PublishErrorKind::WrongLastSequence
        || code() == Some(ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_found_at_the_ends_of_the_range() {
        for (first, last, messages, has_holes) in [
            (1, 0, 0, false),
            (8, 7, 0, false),
            (1, 1, 1, false),
            (1, 3, 2, true),
            (u64::MAX, u64::MAX, 1, false),
            (u64::MAX - 1, u64::MAX, 1, true),
            (1, u64::MAX, u64::MAX, false),
        ] {
            let state = State { first, last, messages, ..State::default() };
            assert_eq!(state.has_holes(), has_holes, "{state:?}");
        }
    }

    #[test]
    fn both_error_codes_of_wrong_last_sequence_are_refusals() {
        let error = |kind, code| {
            let error = format!(r#"{{"code":400,"err_code":{code},"description":"wrong last sequence"}}"#);
            PublishError::with_source(kind, serde_json::from_str::<jetstream::Error>(&error).unwrap())
        };
        assert!(is_refusal(&error(PublishErrorKind::WrongLastSequence, 10071)));
        assert!(is_refusal(&error(PublishErrorKind::Other, 10164)));
        assert!(!is_refusal(&error(PublishErrorKind::Other, 10077)));
        assert!(!is_refusal(&PublishError::new(PublishErrorKind::TimedOut)));
    }
}
