//! A layer around a handler whose response is ready.

use futures_util::FutureExt;
use http::{Request, Response};
use std::{
    convert::Infallible,
    future::{Ready, ready},
    task::{Context, Poll},
};
use tower::{Layer, Service, ServiceExt};

/// A handler that responds to one request.
#[derive(Debug)]
pub struct Handler<B>(Option<Response<B>>);

impl<B> Service<Request<()>> for Handler<B> {
    type Response = Response<B>;
    type Error = Infallible;
    type Future = Ready<Result<Response<B>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        ready(Ok(self.0.take().expect("one request")))
    }
}

/// Returns what a layer makes of a request and the response of its handler.
pub fn respond<L, B, C>(layer: &L, request: Request<()>, response: Response<B>) -> Response<C>
where
    L: Layer<Handler<B>, Service: Service<Request<()>, Response = Response<C>, Error = Infallible>>,
{
    let Ok(response) = layer.layer(Handler(Some(response))).oneshot(request).now_or_never().expect("no waiting");
    response
}

/// Returns what a layer makes of the response of its handler, for a `GET` of `/`.
pub fn through<L, B, C>(layer: &L, response: Response<B>) -> Response<C>
where
    L: Layer<Handler<B>, Service: Service<Request<()>, Response = Response<C>, Error = Infallible>>,
{
    respond(layer, Request::new(()), response)
}
