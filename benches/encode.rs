use axum::response::sse::Event as AxEvent;
use criterion::{Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use tower_sse::Event;
fn b(c: &mut Criterion) {
    let token = black_box("hello world!".to_string());
    let d100 = "x".repeat(100);
    let k4 = "x".repeat(4096);
    let nl: String = (0..4096).map(|i| if i % 40 == 39 { '\n' } else { 'x' }).collect();
    let waker = futures_util::task::noop_waker();
    let t2 = token.clone();
    let d2 = d100.clone();
    let nl2 = nl.clone();
    use axum::response::IntoResponse as _;
    use http_body::Body as _;
    let mut g = c.benchmark_group("axum-body");
    let mut body = axum::response::Sse::new(futures_util::stream::repeat_with(move || {
        Ok::<_, std::convert::Infallible>(AxEvent::default().data(black_box(&t2)))
    }))
    .into_response()
    .into_body();
    g.bench_function("token", |b| {
        b.iter(|| {
            let mut cx = std::task::Context::from_waker(&waker);
            std::pin::Pin::new(&mut body).poll_frame(&mut cx)
        })
    });
    let mut body = axum::response::Sse::new(futures_util::stream::repeat_with(move || {
        Ok::<_, std::convert::Infallible>(
            AxEvent::default()
                .data(black_box(&d2))
                .event("update")
                .id(itoa::Buffer::new().format(black_box(1234567u64))),
        )
    }))
    .into_response()
    .into_body();
    g.bench_function("full", |b| {
        b.iter(|| {
            let mut cx = std::task::Context::from_waker(&waker);
            std::pin::Pin::new(&mut body).poll_frame(&mut cx)
        })
    });
    let mut body = axum::response::Sse::new(futures_util::stream::repeat_with(move || {
        Ok::<_, std::convert::Infallible>(AxEvent::default().data(black_box(&nl2)))
    }))
    .into_response()
    .into_body();
    g.bench_function("4knl", |b| {
        b.iter(|| {
            let mut cx = std::task::Context::from_waker(&waker);
            std::pin::Pin::new(&mut body).poll_frame(&mut cx)
        })
    });
    g.finish();
    let mut g = c.benchmark_group("token");
    g.bench_function("ours", |b| b.iter(|| Event::new(black_box(&token)).encode()));
    g.bench_function("ours-build", |b| b.iter(|| Event::new(black_box(&token))));
    g.bench_function("axum-build", |b| b.iter(|| AxEvent::default().data(black_box(&token))));
    g.finish();
    let mut g = c.benchmark_group("full");
    g.bench_function("ours", |b| {
        b.iter(|| Event::new(black_box(&d100)).event("update").id(black_box(1234567u64)).encode())
    });
    g.bench_function("ours-build", |b| {
        b.iter(|| Event::new(black_box(&d100)).event("update").id(black_box(1234567u64)))
    });
    g.bench_function("axum-build", |b| {
        b.iter(|| {
            AxEvent::default()
                .data(black_box(&d100))
                .event("update")
                .id(itoa::Buffer::new().format(black_box(1234567u64)))
        })
    });
    g.finish();
    let mut g = c.benchmark_group("4k");
    g.bench_function("ours", |b| b.iter(|| Event::new(black_box(&k4)).encode()));
    g.bench_function("axum-build", |b| b.iter(|| AxEvent::default().data(black_box(&k4))));
    g.finish();
    let mut g = c.benchmark_group("4knl");
    g.bench_function("ours", |b| b.iter(|| Event::new(black_box(&nl)).encode()));
    g.bench_function("axum-build", |b| b.iter(|| AxEvent::default().data(black_box(&nl))));
    g.finish();
}
criterion_group!(benches, b);
criterion_main!(benches);
