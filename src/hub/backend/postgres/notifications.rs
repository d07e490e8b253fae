//! Postgres notifications (`NOTIFY`), which contain the newest records of the log.

use super::page::{self, Known};
use crate::hub::backend::{Page, Position, Record};
use base64::{Engine, engine::general_purpose::STANDARD};
use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};
use tokio::sync::Notify;

/// The maximum number of notifications that wait for the follower, the task that reads new records.
/// Each of them has at most 8 KB. If there are more, the follower reads the log instead.
const MAX_WAITING: usize = 128;

/// The Postgres notifications that a connection has received, until the follower, the task that
/// reads new records, takes them.
#[derive(Default)]
pub(super) struct Notifications {
    /// Wakes the follower, which waits in [`next`](Self::next). A wake-up while the follower does
    /// not wait ends its next wait immediately.
    notify: Notify,
    has_ended: AtomicBool,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    notifications: VecDeque<Notification>,
    /// Set if the log may have new records that are not in `notifications`. The follower then reads
    /// the log.
    must_read: bool,
}

impl Queue {
    fn require_read(&mut self) {
        self.must_read = true;
        // The log also has the records of these notifications.
        self.notifications.clear();
    }
}

/// The content of a Postgres notification: consecutive new records of the log. The log has no other
/// records between them.
pub(super) struct Notification {
    evicted_through: Position,
    /// The position of the record before the first record of this notification.
    previous: Position,
    records: Vec<(Position, Record)>,
    /// The number of records in the notification, including records that this crate cannot decode.
    pub(super) count: usize,
    /// The newest record in the notification, and the epoch of the log, which identifies one
    /// lifetime of the log.
    pub(super) newest: Known,
}

impl Notifications {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a Postgres notification with this payload. If the payload contains no records, or too
    /// many notifications wait, the follower (the task that reads new records) has to read the log
    /// instead.
    pub(super) fn push(&self, payload: &str) {
        let mut queue = self.lock();
        match Notification::parse(payload) {
            Some(_) if queue.must_read => {}
            Some(notification) if queue.notifications.len() < MAX_WAITING => {
                queue.notifications.push_back(notification);
            }
            _ => queue.require_read(),
        }
        drop(queue);
        self.notify.notify_one();
    }

    /// Notes that the Postgres connection has ended, and wakes the follower, the task that reads
    /// new records. The follower then needs another connection.
    pub(super) fn end(&self) {
        self.has_ended.store(true, Relaxed);
        self.lock().require_read();
        self.notify.notify_one();
    }

    pub(super) fn has_ended(&self) -> bool {
        self.has_ended.load(Relaxed)
    }

    /// Waits for a Postgres notification, or for the end of the connection. Returns immediately if
    /// either has happened since the previous call.
    pub(super) async fn next(&self) {
        self.notify.notified().await;
    }

    /// Returns `true` if the log may have new records that the waiting Postgres notifications do
    /// not contain. The follower, the task that reads new records, then has to read the log.
    pub(super) fn must_read(&self) -> bool {
        self.lock().must_read
    }

    /// Forgets all waiting Postgres notifications. The caller then reads the log, which has their
    /// records.
    pub(super) fn clear(&self) {
        *self.lock() = Queue::default();
    }

    /// Takes the first waiting Postgres notification of records after the position `after`. The
    /// caller has read the log with this epoch up to this position. Forgets the notifications of
    /// earlier records.
    ///
    /// Returns `None` if there is no such notification. Also returns `None` if the next
    /// notification is of another epoch, or if other records are between `after` and its records.
    /// In these cases, the caller [must read](Self::must_read) the log.
    pub(super) fn take(&self, after: Position, epoch: u64) -> Option<Notification> {
        let mut queue = self.lock();
        while let Some(mut first) = queue.notifications.pop_front() {
            if first.newest.epoch as u64 != epoch || first.previous > after {
                queue.require_read();
            } else if first.through() > after {
                first.records.retain(|(position, _)| *position > after);
                return Some(first);
            }
        }
        None
    }
}

impl Notification {
    /// Parses the payload of the SQL function `notify_of`. Its first line has the epoch of the log,
    /// its eviction watermark, and the position of the record before the first of the records. Each
    /// further line is a record: its position, kind, time in microseconds, topic and event. Returns
    /// `None` for any other payload.
    fn parse(payload: &str) -> Option<Self> {
        let mut lines = payload.lines();
        let mut head = lines.next()?.split(' ').map(str::parse);
        let mut number = || head.next()?.ok();
        let (epoch, evicted_through, previous) = (number()?, number()?, number()?);
        let (mut records, mut count, mut newest) = (Vec::new(), 0, None);
        for line in lines {
            let mut fields = line.split(' ');
            let position = fields.next()?.parse().ok()?;
            let kind = fields.next()?;
            let micros = Duration::from_micros(fields.next()?.parse().ok()?);
            let mut bytes = || STANDARD.decode(fields.next()?).ok();
            let (topic, event) = (bytes()?, bytes()?);
            if let &[kind] = kind.as_bytes() {
                let record = page::record(kind as i8, &topic, event);
                records.extend(record.map(|record| (page::from_sql(position), record)));
            }
            count += 1;
            newest = Some(Known { epoch, position, stored_at: SystemTime::UNIX_EPOCH.checked_add(micros)? });
        }
        Some(Self {
            evicted_through: page::from_sql(evicted_through),
            previous: page::from_sql(previous),
            records,
            count,
            newest: newest?,
        })
    }

    pub(super) fn through(&self) -> Position {
        page::from_sql(self.newest.position)
    }

    pub(super) fn into_page(self) -> Page {
        Page {
            epoch: self.newest.epoch as u64,
            evicted_through: self.evicted_through,
            through: self.through(),
            records: self.records,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::backend::RecordKind;

    const EPOCH: u64 = 7;

    /// Returns the payload of a Postgres notification that contains a record at each of these
    /// positions. The topic of each record is `t`, and its event is its position.
    fn payload(previous: u64, positions: &[u64]) -> String {
        let mut payload = format!("{EPOCH} 0 {previous}");
        for position in positions {
            let event = STANDARD.encode(position.to_string());
            payload.push_str(&format!("\n{position} e 1700000000000001 dA== {event}"));
        }
        payload
    }

    /// Takes the next Postgres notification of records after the position `after`. Returns the
    /// positions of its records, and the end of the page that it becomes.
    fn take(notifications: &Notifications, after: u64) -> Option<(Vec<u64>, u64)> {
        let page = notifications.take(Position::new(after), EPOCH)?.into_page();
        Some((page.records.iter().map(|(position, _)| position.get()).collect(), page.through.get()))
    }

    #[test]
    fn payload_becomes_a_page() {
        let payload = "7 2 4\n5 s 1700000000000001 dA== eA==\n6 ? 0 dA== eA==\n8 f 1700000000000003 dMOk ";
        let notification = Notification::parse(payload).unwrap();
        assert_eq!(notification.count, 3);
        let stored_at = SystemTime::UNIX_EPOCH + Duration::from_micros(1_700_000_000_000_003);
        assert_eq!(notification.newest, Known { epoch: 7, position: 8, stored_at });
        let page = notification.into_page();
        assert_eq!((page.epoch, page.evicted_through.get(), page.through.get()), (7, 2, 8));
        let record = |topic: &str, kind, event: &'static str| Record { topic: topic.into(), kind, event: event.into() };
        let state = record("t", RecordKind::State, "x");
        let finish = record("tä", RecordKind::Finish, "");
        assert_eq!(page.records, [(Position::new(5), state), (Position::new(8), finish)]);
    }

    #[test]
    fn other_payloads_require_a_read() {
        let payloads = [
            "",
            "x",
            "7 0 4",
            "7 0\n5 e 0 dA== eA==",
            "7 0 4\n5",
            "7 0 4\n5 e 0 dA==",
            "7 0 4\n5 e 0 dA eA==",
            "7 0 4\n5 e -1 dA== eA==",
            "7 0 4\n99999999999999999999 e 0 dA== eA==",
        ];
        for payload in payloads {
            let notifications = Notifications::default();
            notifications.push(payload);
            assert!(notifications.must_read(), "{payload:?}");
            assert_eq!(take(&notifications, 4), None, "{payload:?}");
        }
    }

    #[test]
    fn records_are_taken_in_order_and_once() {
        let notifications = Notifications::default();
        // Skipped positions are those of transactions that were rolled back.
        for payload in [payload(0, &[1]), payload(1, &[2, 5]), payload(5, &[6]), payload(6, &[9])] {
            notifications.push(&payload);
        }
        // A read has returned the records up to position 2.
        assert_eq!(take(&notifications, 2), Some((vec![5], 5)));
        assert_eq!(take(&notifications, 5), Some((vec![6], 6)));
        assert_eq!(take(&notifications, 6), Some((vec![9], 9)));
        assert_eq!(take(&notifications, 9), None);
        assert!(!notifications.must_read());
    }

    #[test]
    fn records_that_do_not_follow_require_a_read() {
        for (after, payload) in [(3, payload(4, &[5])), (4, payload(4, &[5]).replacen('7', "8", 1))] {
            let notifications = Notifications::default();
            notifications.push(&payload);
            assert_eq!(take(&notifications, after), None);
            assert!(notifications.must_read(), "{payload}");
        }
    }

    #[test]
    fn read_replaces_all_earlier_notifications() {
        let notifications = Notifications::default();
        notifications.push(&payload(0, &[1]));
        notifications.push("");
        assert_eq!(take(&notifications, 0), None);
        notifications.clear();
        // Received during the read.
        notifications.push(&payload(1, &[2]));
        assert_eq!(take(&notifications, 1), Some((vec![2], 2)));
    }

    #[test]
    fn too_many_notifications_require_a_read() {
        let notifications = Notifications::default();
        let count = MAX_WAITING as u64 + 1;
        for n in 0..count {
            assert!(!notifications.must_read());
            notifications.push(&payload(n, &[n + 1]));
        }
        assert!(notifications.must_read());
        assert_eq!(notifications.lock().notifications.len(), 0);
    }
}
