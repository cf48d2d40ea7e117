//! The puller: fetches an image, checks every byte against its digest, and lays its layers into the store.
//!
//! Two processes of one binary. The *fetcher* ([`fetcher`]) has the network and the store and reads no archive;
//! the *indexer* ([`indexer`]) reads archives and has nothing but the descriptors it is handed.

pub mod config;
pub mod confine;
pub mod fetcher;
pub mod index_client;
pub mod indexer;
pub mod layer;
pub mod manifest;
pub mod policy;
pub mod pull;
pub mod registry;
pub mod store;

pub use nacre_reference::{self as reference, digest};
