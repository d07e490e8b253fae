//! Events of Datastar: an [`Event`] has the same bytes as the `datastar` crate and as the test
//! cases of Datastar's SDKs (`sdk/test/get-cases` in its repository).
//!
//! The browser client of Datastar 1 is not in the npm registry, so no test runs it.

use datastar::{
    DatastarEvent,
    consts::{ElementPatchMode, EventType},
    prelude::{ExecuteScript, PatchElements, PatchSignals},
};
use std::time::Duration;
use tower_sse::{Event, EventId, FieldError};

/// The reconnect delay that Datastar uses by itself.
const DEFAULT_RETRY: Duration = Duration::from_secs(1);

/// Converts an event of Datastar. The setters write their fields from the last to the first.
fn event(datastar: DatastarEvent) -> Result<Event, FieldError> {
    let mut event = Event::new(datastar.data.join("\n"));
    if datastar.retry != DEFAULT_RETRY {
        event = event.retry(datastar.retry);
    }
    if let Some(id) = datastar.id {
        event = event.id(EventId::new(id)?);
    }
    Ok(match datastar.event {
        EventType::PatchElements => event.event("datastar-patch-elements"),
        EventType::PatchSignals => event.event("datastar-patch-signals"),
    })
}

#[test]
fn event_has_the_bytes_of_the_sdk() {
    let retry = Duration::from_secs(2);
    let cases: [(DatastarEvent, &str); 8] = [
        (
            PatchElements::new("<div>Merge</div>").into(),
            "event: datastar-patch-elements\ndata: elements <div>Merge</div>\n\n",
        ),
        (
            PatchElements::new("<div>Merge</div>")
                .id("event1")
                .retry(retry)
                .selector("div")
                .mode(ElementPatchMode::Append)
                .use_view_transition(true)
                .into(),
            "event: datastar-patch-elements\nid: event1\nretry: 2000\ndata: selector div\ndata: mode append\n\
             data: useViewTransition true\ndata: elements <div>Merge</div>\n\n",
        ),
        (
            PatchElements::new("<div>\n  <span>Merge</span>\n</div>").into(),
            "event: datastar-patch-elements\ndata: elements <div>\ndata: elements   <span>Merge</span>\n\
             data: elements </div>\n\n",
        ),
        (
            PatchElements::new_remove("#target").into(),
            "event: datastar-patch-elements\ndata: selector #target\ndata: mode remove\n\n",
        ),
        (
            PatchSignals::new(r#"{"one":1,"two":2}"#).id("event1").retry(retry).only_if_missing(true).into(),
            "event: datastar-patch-signals\nid: event1\nretry: 2000\ndata: onlyIfMissing true\n\
             data: signals {\"one\":1,\"two\":2}\n\n",
        ),
        (
            PatchSignals::new("{\n\"one\": \"first signal\",\n\"two\":  \n\"second signal\"}").into(),
            "event: datastar-patch-signals\ndata: signals {\ndata: signals \"one\": \"first signal\",\n\
             data: signals \"two\":  \ndata: signals \"second signal\"}\n\n",
        ),
        (
            ExecuteScript::new("console.log('hello');")
                .id("event1")
                .retry(retry)
                .attributes(["type=\"text/javascript\"", "blocking=\"false\""])
                .auto_remove(false)
                .into(),
            "event: datastar-patch-elements\nid: event1\nretry: 2000\ndata: selector body\ndata: mode append\n\
             data: elements <script type=\"text/javascript\" blocking=\"false\">console.log('hello');</script>\n\n",
        ),
        (
            ExecuteScript::new("if (true) {\n  console.log('hello');\n}").into(),
            "event: datastar-patch-elements\ndata: selector body\ndata: mode append\n\
             data: elements <script data-effect=\"el.remove()\">if (true) {\n\
             data: elements   console.log('hello');\ndata: elements }</script>\n\n",
        ),
    ];
    for (datastar, golden) in cases {
        let of_crate = datastar.to_string();
        assert_eq!(event(datastar).expect("its fields are valid").encode(), golden);
        assert_eq!(of_crate, golden);
    }
}

#[test]
fn id_with_a_line_end_is_rejected() {
    let injecting = PatchSignals::new("{}").id("1\ndata: injected");
    assert!(event(injecting.into()).is_err());
}
