//! The cost of building and encoding an event.
//!
//! axum's `Event` makes its bytes public only through a body, so it is measured twice. Building
//! and dropping the event is less work than `encode`. A frame of `Sse` is more work, because a
//! boxed body is polled.

use axum::response::{IntoResponse, Sse, sse};
use bytes::Bytes;
use criterion::{BenchmarkId, Criterion};
use futures_util::{FutureExt, stream};
use http_body_util::BodyExt;
use std::{convert::Infallible, hint::black_box};
use support::ratios::{self, Ratios};
use tower_sse::Event;

fn compare(
    criterion: &mut Criterion,
    name: &str,
    ours: impl Fn() -> Bytes,
    theirs: impl Fn() -> sse::Event + Clone + Send + 'static,
) {
    let mut group = criterion.benchmark_group("encode");
    group.bench_function(BenchmarkId::new("tower-sse", name), |bencher| bencher.iter(&ours));
    group.bench_function(BenchmarkId::new("axum, built only", name), |bencher| bencher.iter(&theirs));
    let mut body = Sse::new(stream::repeat_with(move || Ok::<_, Infallible>(theirs()))).into_response().into_body();
    group.bench_function(BenchmarkId::new("axum, a frame", name), |bencher| {
        bencher.iter(|| body.frame().now_or_never().unwrap().unwrap().unwrap().into_data().unwrap());
    });
    group.finish();
}

#[derive(Clone, serde::Serialize)]
struct Row {
    id: u32,
    name: &'static str,
    price: f64,
}

fn main() {
    let mut criterion = ratios::criterion();

    let token = "hello world!";
    compare(
        &mut criterion,
        "12 B token",
        || Event::new(black_box(token)).encode(),
        move || sse::Event::default().data(black_box(token)),
    );

    let data: &str = "x".repeat(100).leak();
    compare(
        &mut criterion,
        "id, event, 100 B",
        || Event::new(black_box(data)).event("update").id(black_box(1_234_567_u64)).encode(),
        move || {
            let mut number = itoa::Buffer::new();
            sse::Event::default().id(number.format(black_box(1_234_567_u64))).event("update").data(black_box(data))
        },
    );

    let rows: Vec<_> = (0..102).map(|id| Row { id, name: "a name", price: 12.5 }).collect();
    let rows: &[Row] = rows.leak();
    assert!((3900..4300).contains(&serde_json::to_string(rows).unwrap().len()));
    compare(
        &mut criterion,
        "4 KiB of JSON",
        || Event::json(black_box(rows)).unwrap().encode(),
        move || sse::Event::default().json_data(black_box(rows)).unwrap(),
    );

    let text: &str = "x".repeat(4096).leak();
    compare(
        &mut criterion,
        "4 KiB on one line",
        || Event::new(black_box(text)).encode(),
        move || sse::Event::default().data(black_box(text)),
    );

    let lines: &str = format!("{}\n", "x".repeat(40)).repeat(100)[..4096].to_owned().leak();
    compare(
        &mut criterion,
        "4 KiB on 100 lines",
        || Event::new(black_box(lines)).encode(),
        move || sse::Event::default().data(black_box(lines)),
    );

    criterion.final_summary();
    let ratios = Ratios::head();
    for (name, target) in [
        ("12 B token", "≤ 0.35"),
        ("id, event, 100 B", "≤ 0.30"),
        ("4 KiB of JSON", ""),
        ("4 KiB on one line", ""),
        ("4 KiB on 100 lines", "≤ 0.60"),
    ] {
        for axum in ["axum, built only", "axum, a frame"] {
            let (ours, theirs) = (format!("encode/tower-sse/{name}"), format!("encode/{axum}/{name}"));
            ratios.ratio(&format!("{name}, against {axum}"), &ours, &theirs, 1, target);
        }
    }
}
