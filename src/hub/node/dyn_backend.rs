//! Type erasure: a backend of any type as a trait object.

use crate::{
    BoxError,
    hub::backend::{Appended, Backend, Bounds, IdFormat, Page, Position, Record},
};
use std::{pin::Pin, sync::Arc, time::Duration};

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send + 'a>>;

/// A [`Backend`] of any type as a trait object.
pub(in crate::hub) trait DynBackend: Send + Sync {
    fn id_format(&self) -> IdFormat;
    fn configured_max_age(&self) -> Option<Duration>;
    fn inherit_max_age(&mut self, age: Duration);
    fn open(&self) -> BoxFuture<'_, ()>;
    fn bounds(&self) -> BoxFuture<'_, Bounds>;
    fn append(&self, records: Vec<Record>) -> BoxFuture<'_, Appended>;
    fn append_if_unchanged(&self, records: Vec<Record>, epoch: u64, since: Position)
    -> BoxFuture<'_, Option<Appended>>;
    fn read<'a>(&'a self, topics: &'a [Arc<str>], after: Position) -> BoxFuture<'a, Page>;
    fn follow(&self, after: Position) -> BoxFuture<'_, Page>;
}

impl<B: Backend> DynBackend for B {
    fn id_format(&self) -> IdFormat {
        B::ID_FORMAT
    }

    fn configured_max_age(&self) -> Option<Duration> {
        Backend::configured_max_age(self)
    }

    fn inherit_max_age(&mut self, age: Duration) {
        Backend::inherit_max_age(self, age);
    }

    fn open(&self) -> BoxFuture<'_, ()> {
        Box::pin(Backend::open(self))
    }

    fn bounds(&self) -> BoxFuture<'_, Bounds> {
        Box::pin(Backend::bounds(self))
    }

    fn append(&self, records: Vec<Record>) -> BoxFuture<'_, Appended> {
        Box::pin(Backend::append(self, records))
    }

    fn append_if_unchanged(
        &self,
        records: Vec<Record>,
        epoch: u64,
        since: Position,
    ) -> BoxFuture<'_, Option<Appended>> {
        Box::pin(Backend::append_if_unchanged(self, records, epoch, since))
    }

    fn read<'a>(&'a self, topics: &'a [Arc<str>], after: Position) -> BoxFuture<'a, Page> {
        Box::pin(Backend::read(self, topics, after))
    }

    fn follow(&self, after: Position) -> BoxFuture<'_, Page> {
        Box::pin(Backend::follow(self, after))
    }
}
