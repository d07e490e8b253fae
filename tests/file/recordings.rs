//! Recordings of a process that is killed are finished by the next process with the log.

use super::{
    child::Child,
    folder::{Folder, SOON},
};
use futures_util::StreamExt;
use tokio::time::timeout;
use tower_sse::{
    Event,
    hub::{ErrorKind, Hub, Start},
};

#[tokio::test]
async fn kill_9_after_announcement_publishes_will_after_restart() {
    for round in 0..5 {
        let folder = Folder::new();
        let durability = if round % 2 == 0 { "disk" } else { "process" };
        let topic = format!("answers/{round}");
        let mut child = Child::start(&format!("record {topic} {durability}"), &folder.log());
        assert_eq!(child.line().as_deref(), Some("announced"));
        child.kill();

        let hub = Hub::builder().file(folder.log()).connect().await.expect("the log opens");
        let answer = hub.topic(&topic).subscribe(Start::Earliest).await.expect("it subscribes");
        let text = answer.map(|events| String::from_utf8_lossy(events.expect("an event").as_bytes()).into_owned());
        let text: String = timeout(SOON, text.collect()).await.expect("the topic is finished");
        let data: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        assert_eq!(data, ["prompt", "will"]);
        let error = hub.topic(&topic).publish(Event::new("more")).await.expect_err("it is finished");
        assert_eq!(error.kind(), ErrorKind::Finished);
    }
}
