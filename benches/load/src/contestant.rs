//! The servers that are compared.

use clap::ValueEnum;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Contestant {
    /// axum's `Sse` on `axum::serve`: all others are compared to it
    Axum,
    /// tower-sse on `tower_sse::serve`
    Serve,
    /// tower-sse on `axum::serve`
    AxumServe,
    /// The layer of tower-sse over axum's `Sse`
    Layer,
    /// actix-web with a body of shared bytes
    Actix,
    /// hyper with a body of shared bytes
    Hyper,
    /// epoll without a framework, which is the floor
    Epoll,
}

impl Contestant {
    pub const ALL: &'static [Self] =
        &[Self::Axum, Self::Serve, Self::AxumServe, Self::Layer, Self::Actix, Self::Hyper, Self::Epoll];

    /// Returns the name on the command line.
    pub fn key(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// Returns the heading of its column.
    pub fn name(self) -> &'static str {
        match self {
            Self::Axum => "axum `Sse`",
            Self::Serve => "tower-sse, `serve`",
            Self::AxumServe => "tower-sse, `axum::serve`",
            Self::Layer => "layer over axum `Sse`",
            Self::Actix => "actix-web",
            Self::Hyper => "hyper, shared bytes",
            Self::Epoll => "bare epoll",
        }
    }

    /// Returns whether the hub of tower-sse publishes, which has replay and `linger`.
    pub fn has_hub(self) -> bool {
        matches!(self, Self::Serve | Self::AxumServe)
    }
}
