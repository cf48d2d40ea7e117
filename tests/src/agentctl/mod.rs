//! A client of the agent's own: every method by name, with messages as JSON, any number of calls at once; and a player of
//! traces. By hand: `cargo xtask agentctl`.

pub mod bench;
mod client;
mod messages;
pub mod trace;

pub use client::{Client, Pending};
pub use messages::{encode, methods, reply};
