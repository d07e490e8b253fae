//! Hubs whose log is in Redis or NATS.

mod checker;
mod contract;
mod faults;
mod nats;
mod redis;
