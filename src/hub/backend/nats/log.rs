//! The stream, as the server tells of it.

use super::{link::Link, message::position};
use crate::{BoxError, random};
use async_nats::jetstream::stream::Config;
use serde_json::Value;
use std::time::Duration;
use tokio::time::sleep;

/// What is known of a stream.
#[derive(Clone, Debug)]
pub(super) struct Log {
    /// What tells it from any other, and from itself before it lost its end.
    pub(super) epoch: u64,
    /// How often it has lost its end.
    pub(super) generation: u64,
    /// The number of the oldest message, or of the next if it holds none.
    pub(super) first: u64,
    /// The number of the newest message there ever was.
    pub(super) last: u64,
    id: String,
    /// As the server tells it, with what this client does not know of.
    config: Value,
}

/// In the description of a stream, and then what tells it from others, a dot, and how often it has lost its end.
///
/// When it was made does not tell it for good: up to 2.11 at least, a server that was restarted writes another time when the
/// stream is edited.
const MARK: &str = "; log ";

/// How long it takes a server to delete a stream, and longer: up to 2.9 at least, it says that it is gone, and removes with its
/// files those of one that is made again meanwhile, which then hands out nothing.
const DELETED: Duration = Duration::from_millis(300);

/// The description of a stream that is made now.
fn description() -> String {
    format!("The log of a hub of tower-sse{MARK}{:016x}.0", random::bits())
}

impl Log {
    /// The stream of this configuration, which is made if it is not there; not at once if it was there before.
    pub(super) async fn get_or_create(link: &Link, config: &Config, was_there: bool) -> Result<Self, BoxError> {
        let name = &config.name;
        let is_name = |byte: u8| byte.is_ascii_graphic() && !b".*>/\\".contains(&byte);
        if name.is_empty() || !name.bytes().all(is_name) {
            return Err(format!("{name:?} cannot be the name of a stream; take letters, digits, - and _").into());
        }
        let mut found = ask(link, &format!("STREAM.INFO.{name}"), &Value::Null).await;
        if was_there && matches!(found, Err(Failure::Refused { code: 404, .. })) {
            sleep(DELETED).await;
            found = ask(link, &format!("STREAM.INFO.{name}"), &Value::Null).await;
        }
        let info = match found {
            Err(Failure::Refused { code: 404, .. }) => {
                let config = Config { description: Some(description()), ..config.clone() };
                let made = link.answer(link.context.create_stream(config)).await;
                // Somebody else may have made it meanwhile.
                match (ask(link, &format!("STREAM.INFO.{name}"), &Value::Null).await, made) {
                    (Err(_), Err(error)) => {
                        return Err(format!("the stream {name:?} is not there and cannot be made: {error}").into());
                    }
                    (found, _) => found?,
                }
            }
            found => found?,
        };
        Self::read(name, info)
    }

    fn read(name: &str, info: Value) -> Result<Self, BoxError> {
        let config = info["config"].clone();
        let subjects: Vec<_> = config["subjects"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let wanted = format!("{name}.>");
        if !subjects.iter().any(|subject| [&*wanted, "*.>", ">"].contains(subject)) {
            return Err(format!(
                "the stream {name:?} is another one: its subjects are {subjects:?}, and not {wanted:?}; \
                 give this hub a stream of another name"
            )
            .into());
        }
        if config["retention"].as_str().is_some_and(|retention| retention != "limits") {
            let retention = &config["retention"];
            return Err(format!("the stream {name:?} cannot be a log: its retention is {retention}, not limits").into());
        }
        if config["no_ack"] == true {
            return Err(format!("the stream {name:?} cannot be a log: it does not acknowledge what it stores").into());
        }
        let (state, created) = (&info["state"], info["created"].as_str());
        let (Some(first), Some(last), Some(created)) =
            (state["first_seq"].as_u64(), state["last_seq"].as_u64(), created)
        else {
            return Err(format!("the server does not say where the stream {name:?} begins and ends").into());
        };
        let (id, generation) = mark(&config).unwrap_or((created, 0));
        let epoch = hash(id.bytes().chain(generation.to_be_bytes()));
        Ok(Self { epoch, generation, first: first.max(1), last, id: id.to_owned(), config })
    }

    /// Everything up to here is no longer held.
    pub(super) fn lost(&self) -> u64 {
        position(self.first - 1)
    }

    /// The newest position there ever was.
    pub(super) fn newest(&self) -> u64 {
        position(self.last)
    }

    /// Makes it another log for everybody, as it has lost what it had acknowledged, and gives the same numbers once more.
    /// Returns its generation.
    pub(super) async fn begin_anew(mut self, link: &Link) -> Result<u64, BoxError> {
        let description = self.config["description"].as_str().unwrap_or_default();
        let own = description.rsplit_once(MARK).map_or(description, |(own, _)| own);
        let generation = self.generation.saturating_add(1);
        self.config["description"] = format!("{own}{MARK}{}.{generation}", self.id).into();
        // Whoever does the same at the same time writes the same.
        let name = self.config["name"].as_str().unwrap_or_default();
        ask(link, &format!("STREAM.UPDATE.{name}"), &self.config).await?;
        Ok(generation)
    }
}

/// What the description says: which stream it is, and of which generation.
fn mark(config: &Value) -> Option<(&str, u64)> {
    let (_, mark) = config["description"].as_str()?.rsplit_once(MARK)?;
    let (id, generation) = mark.rsplit_once('.')?;
    Some((id, generation.parse().ok()?))
}

/// The same for the same bytes on every machine: FNV-1a.
fn hash(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Why a request to JetStream was in vain.
enum Failure {
    Refused { code: u64, description: String },
    Other(BoxError),
}

impl From<Failure> for BoxError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused { code, description } => format!("{description} ({code})").into(),
            Failure::Other(error) => error,
        }
    }
}

async fn ask(link: &Link, subject: &str, question: &Value) -> Result<Value, Failure> {
    let answer = link.answer(link.context.request::<_, _, Value>(subject.to_owned(), question)).await;
    let answer = answer.map_err(Failure::Other)?;
    let Some(error) = answer.get("error") else { return Ok(answer) };
    let description = error["description"].as_str().unwrap_or("refused by the server").to_owned();
    Err(Failure::Refused { code: error["code"].as_u64().unwrap_or(0), description })
}
