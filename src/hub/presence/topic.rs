//! The methods of a topic for its members: names, for example of users, that are present in it
//! through a subscription.

use super::{Membership, PresenceStream};
use crate::hub::{Error, Subscription, Topic};
use std::sync::Arc;

impl Topic {
    /// Makes `member` present in this topic as long as the returned subscription lives. The
    /// returned subscription is `subscription` itself.
    ///
    /// A member can have any number of subscriptions, for example one for each tab, on any nodes.
    /// It joins with the first one. It leaves when it has had no subscription for the [grace
    /// time](crate::hub::Builder::presence_grace). So a client that reconnects in time neither
    /// leaves nor joins.
    ///
    /// `subscription` may be a subscription to other topics. To be present in several topics with
    /// one subscription, call `join` for each of them.
    ///
    /// With a backend, a join is one record of about 100 bytes in the log, however many members the
    /// topic has. A second subscription of the member on the same node writes no record. While the
    /// backend is down, the records of joins and leaves wait.
    ///
    /// `member` is the name of the member: any text of up to 256 bytes. The name of the topic may
    /// have up to 1,024 bytes. Both limits also hold without a backend. Use the name or the id of a
    /// user who has logged in: a client that chooses its name freely can be present as another
    /// user.
    ///
    /// # Errors
    ///
    /// - [`MemberTooLong`](crate::hub::ErrorKind::MemberTooLong) if the name has more than 256
    ///   bytes.
    /// - [`TopicTooLong`](crate::hub::ErrorKind::TopicTooLong) if the name of this topic has more
    ///   than 1,024 bytes.
    /// - [`ReservedTopic`](crate::hub::ErrorKind::ReservedTopic) if the hub uses the topic itself.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_sse::{LastEventId, hub::{Error, Hub, Subscription}};
    ///
    /// async fn enter(hub: &Hub, room: &str, user: &str, last: LastEventId) -> Result<Subscription,
    /// Error> { let room = hub.topic(room); room.join(user, room.subscribe(last).await?) }
    /// ```
    pub fn join(&self, member: impl AsRef<str>, mut subscription: Subscription) -> Result<Subscription, Error> {
        let membership = Membership::new(&self.core, &self.name, member.as_ref())?;
        subscription.memberships.get_or_insert_default().add(membership);
        Ok(subscription)
    }

    /// Returns the names of the [members](Self::join) of the topic on all nodes, sorted and without
    /// duplicates.
    ///
    /// The result includes each join and leave of a member on the local node before the call. It
    /// also includes each join and leave that was in the log before the call. With a backend, each
    /// call asks the backend for the end of the log. Concurrent calls share this request.
    ///
    /// A node does not know all members if the log has evicted records of joins and leaves before
    /// the node has read these records. This can happen when the node starts, or after it was cut
    /// off from the backend. The node then asks the other nodes, and this method waits for their
    /// answers: usually milliseconds. If there is no other node, the method waits for the
    /// [lease](crate::hub::Builder::presence_lease) of the local node, the time after which a
    /// silent node counts as dead. If another node with members has died, the method waits for the
    /// lease and the [grace time](crate::hub::Builder::presence_grace), after which the members of
    /// the dead node leave.
    ///
    /// # Errors
    ///
    /// - [`Backend`](crate::hub::ErrorKind::Backend) if the backend does not respond, or if the
    ///   members are not known after the lease, the grace time and five seconds.
    /// - [`Shutdown`](crate::hub::ErrorKind::Shutdown) if the hub is shut down, before the call or while
    ///   it waits.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect. Without a backend, it completes on its first poll.
    ///
    /// # Examples
    ///
    /// A page gets the members first, and then the events of the topic: messages, and the
    /// [changes](crate::hub::Builder::presence_events) of the members.
    ///
    /// ```
    /// use tokio_stream::StreamExt;
    /// use tower_sse::{Event, LastEventId, SseStream, hub::{Error, Hub}};
    ///
    /// # async fn enter(hub: &Hub, last: LastEventId) -> Result<http::StatusCode, Error> {
    /// let room = hub.topic("rooms/7");
    /// let events = room.join("Anna", room.subscribe(last).await?)?;
    /// let members = Event::json(&room.members().await?)?.event("members");
    /// let page = SseStream::new(tokio_stream::once(Ok(members.into())).chain(events));
    /// # Ok(page.into_http_response().status())
    /// # }
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// # assert_eq!(enter(&Hub::new(), LastEventId::default()).await.unwrap(), 200);
    /// # }
    /// ```
    ///
    /// Use [`begin_with`](crate::hub::Subscription::begin_with) instead of `chain` only in a topic
    /// without messages. After a gap, its events replace all retained events, so the client would
    /// not get the retained messages.
    pub async fn members(&self) -> Result<Vec<Arc<str>>, Error> {
        super::members(&self.core, &self.name).await
    }

    /// Returns a stream of the [members](Self::join) of the topic on all nodes. Members are names,
    /// such as users, that are present through a subscription. The stream yields each present
    /// member as [`Joined`](crate::hub::Presence::Joined) first, and then each later join and leave.
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio_stream::StreamExt;
    /// use tower_sse::hub::{Hub, Presence, Start};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_sse::hub::Error> {
    /// let lobby = Hub::new().topic("lobby");
    /// let _page = lobby.join("Anna", lobby.subscribe(Start::Latest).await?)?;
    /// let mut changes = lobby.presence();
    /// assert_eq!(changes.next().await, Some(Presence::joined("Anna")));
    /// # Ok(()) }
    /// ```
    pub fn presence(&self) -> PresenceStream {
        PresenceStream::new(&self.core, &self.name)
    }
}
