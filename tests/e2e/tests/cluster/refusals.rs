//! Backends that cannot be used at all.

use crate::{nodes::with_sources, with_each_engine, world::connect};
use e2e::store::{Engine, Store};
use std::time::{Duration, Instant};
use tower_sse::hub::{
    ErrorKind,
    backend::{NatsBackend, RedisBackend},
};

with_each_engine! {
    a_wrong_password_is_an_error_that_says_so_and_does_not_tell_it,
    where_nobody_listens_or_nobody_answers_is_an_error_soon,
    what_is_no_url_is_an_error,
}

const SOON: Duration = Duration::from_secs(6);

async fn a_wrong_password_is_an_error_that_says_so_and_does_not_tell_it(engine: Engine) {
    let (more, right, wrong, says): (&[&str], _, _, _) = match engine {
        Engine::Redis => (&["--requirepass", "secret"], ":secret@", ":guessed@", "authentication failed"),
        Engine::Nats => (&["--user", "me", "--pass", "secret"], "me:secret@", "me:guessed@", "authorization violation"),
    };
    let store = Store::start(engine, more).await;
    connect(engine, &store.url_with(right)).await.expect("this is the password");
    for (user, says) in [(wrong, says), ("", if engine == Engine::Redis { "NOAUTH" } else { says })] {
        let error = connect(engine, &store.url_with(user)).await.expect_err("this is not");
        let text = with_sources(&error);
        println!("{engine:?}: {text}");
        assert_eq!(error.kind(), ErrorKind::Backend);
        assert!(text.to_lowercase().contains(&says.to_lowercase()), "{text}");
        assert!(!text.contains("guessed"), "the password is nobody's business: {text}");
    }
}

async fn where_nobody_listens_or_nobody_answers_is_an_error_soon(engine: Engine) {
    let mut store = Store::start(engine, &[]).await;
    store.signal("STOP");
    let begin = Instant::now();
    let error = connect(engine, &store.url()).await.expect_err("nobody answers");
    println!("{engine:?}: {}, after {:.1?}", with_sources(&error), begin.elapsed());
    assert_eq!(error.kind(), ErrorKind::Backend);
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());

    store.signal("CONT");
    store.kill();
    for url in [store.url(), store.url().replace("127.0.0.1", "nowhere.invalid")] {
        let begin = Instant::now();
        let error = connect(engine, &url).await.expect_err("nobody listens");
        println!("{engine:?}: {}, after {:.1?}", with_sources(&error), begin.elapsed());
        assert_eq!(error.kind(), ErrorKind::Backend);
        assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    }
}

async fn what_is_no_url_is_an_error(engine: Engine) {
    let mut errors = Vec::new();
    for url in ["", "http://127.0.0.1", "127.0.0.1:port", "nats://:port", "redis://["] {
        let error = match engine {
            Engine::Redis => RedisBackend::new(url).err(),
            Engine::Nats => NatsBackend::new(url).err(),
        };
        println!("{engine:?}: {url:?}: {error:?}");
        errors.push((url, error.is_some()));
    }
    assert!(errors.iter().all(|(_, is_error)| *is_error), "{errors:?}");
}
