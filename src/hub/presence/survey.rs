//! A question of the local node to all other nodes about a topic: does the topic exist on them, and
//! how many subscriptions does it have there? Questions and answers are records in the log. A topic
//! that is on no node also exists if the log has records of it: `search.rs` looks for them.

use super::{Presences, message::Message};
use crate::{
    hub::{core::Core, error::Error, registry::check_reserved},
    random,
};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::time::{Instant, timeout_at};

/// The time, 1 s, that the local node waits for the answers of other nodes to a question about a
/// topic, such as: how many subscriptions does it have?
const PATIENCE: Duration = Duration::from_secs(1);

/// The maximum number of nodes whose answers to one question about a topic are counted. The answers
/// of further nodes are ignored.
const MAX_ANSWERS: usize = 10_000;

/// The answers of other nodes to a question about a topic: the number of subscriptions to the topic
/// on each node that has answered.
#[derive(Default)]
pub(super) struct Survey(HashMap<u64, usize>);

impl Survey {
    /// Stores the answer of the node `node` to a question of the local node about a topic: the
    /// topic has `subscribers` subscriptions there. After 10,000 nodes have answered, the answers
    /// of further nodes are ignored.
    pub(super) fn note(&mut self, node: u64, subscribers: usize) {
        if self.0.len() < MAX_ANSWERS || self.0.contains_key(&node) {
            self.0.insert(node, subscribers);
        }
    }
}

/// A guard for a question to the other nodes about a topic. It lives while the local node waits for
/// the answers. Dropping the guard removes the question and its answers, so they are removed even
/// if the future that waits for the answers is dropped.
struct Asked<'a> {
    presence: &'a Presences,
    id: u64,
}

impl<'a> Asked<'a> {
    fn new(presence: &'a Presences) -> Self {
        let id = random::bits();
        presence.state().surveys.insert(id, Survey::default());
        Self { presence, id }
    }

    fn answers(&self) -> HashMap<u64, usize> {
        self.presence.state().surveys.get(&self.id).map(|survey| survey.0.clone()).unwrap_or_default()
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.presence.state().surveys.remove(&self.id);
    }
}

/// Asks all other nodes whether they have a topic. Returns the number of subscriptions on each node
/// that has the topic and has answered within one second. If `is_first_enough` is set, returns
/// after the first answer.
///
/// Without a backend, there are no other nodes, and the result is empty. Returns an error if the
/// backend does not accept the question, or if the hub is shut down.
async fn ask(core: &Arc<Core>, topic: &Arc<str>, is_first_enough: bool) -> Result<HashMap<u64, usize>, Error> {
    let Some(backend) = &core.backend else { return Ok(HashMap::new()) };
    let presence = &core.presence;
    let answers = backend.unless_stopped(async {
        let asked = Asked::new(presence);
        let question = Message::Question { node: presence.node, id: asked.id, topic: topic.clone() };
        backend.append_records(vec![question.record()]).await?;
        let answered = presence.until(|state| {
            let survey = state.surveys.get(&asked.id);
            is_first_enough && survey.is_some_and(|survey| !survey.0.is_empty())
        });
        let _elapsed = timeout_at(Instant::now() + PATIENCE, answered).await;
        Ok(asked.answers())
    });
    answers.await.unwrap_or_else(|| Err(Error::shut_down()))
}

/// Returns `true` if a topic exists on the local node, in the log of the backend, or on another
/// node that answers within one second. The other nodes are asked last, because the question is a
/// record in the log.
pub(in crate::hub) async fn exists_anywhere(core: &Arc<Core>, topic: &Arc<str>) -> Result<bool, Error> {
    if core.is_in_log(topic).await? {
        return Ok(true);
    }
    if check_reserved(topic).is_err() {
        return Ok(false);
    }
    Ok(!ask(core, topic, true).await?.is_empty())
}

/// Returns the number of subscriptions to a topic on the local node and on all other nodes that
/// answer within one second.
pub(in crate::hub) async fn subscribers_anywhere(core: &Arc<Core>, topic: &Arc<str>) -> Result<usize, Error> {
    let others = ask(core, topic, false).await?;
    Ok(others.into_values().fold(core.subscribers(topic), usize::saturating_add))
}
