//! A log that changes a few methods of another log.

/// Implements these methods of the trait `Backend` with the same method of the field `$log`, which
/// is another log.
#[macro_export]
macro_rules! pass_on {
    ($log:tt: $($method:ident)+) => {
        $($crate::pass_on!(@$method $log);)+
    };
    (@bounds $log:tt) => {
        async fn bounds(&self) -> Result<::tower_sse::hub::backend::Bounds, ::tower_sse::BoxError> {
            self.$log.bounds().await
        }
    };
    (@append $log:tt) => {
        async fn append(
            &self,
            records: Vec<::tower_sse::hub::backend::Record>,
        ) -> Result<::tower_sse::hub::backend::Appended, ::tower_sse::BoxError> {
            self.$log.append(records).await
        }
    };
    (@append_if_unchanged $log:tt) => {
        async fn append_if_unchanged(
            &self,
            records: Vec<::tower_sse::hub::backend::Record>,
            epoch: u64,
            since: ::tower_sse::hub::backend::Position,
        ) -> Result<Option<::tower_sse::hub::backend::Appended>, ::tower_sse::BoxError> {
            self.$log.append_if_unchanged(records, epoch, since).await
        }
    };
    (@read $log:tt) => {
        async fn read(
            &self,
            topics: &[::std::sync::Arc<str>],
            after: ::tower_sse::hub::backend::Position,
        ) -> Result<::tower_sse::hub::backend::Page, ::tower_sse::BoxError> {
            self.$log.read(topics, after).await
        }
    };
    (@follow $log:tt) => {
        async fn follow(
            &self,
            after: ::tower_sse::hub::backend::Position,
        ) -> Result<::tower_sse::hub::backend::Page, ::tower_sse::BoxError> {
            self.$log.follow(after).await
        }
    };
}
