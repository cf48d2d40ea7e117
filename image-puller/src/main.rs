//! `nacre-puller` is the fetcher, `nacre-puller index` the indexer. Each starts with its edges at agreed descriptors,
//! confines itself, and serves until its peer is gone.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nacre_protocols::names::Sha256;
use nacre_protocols::{agent_puller, fetcher_indexer};
use nacre_puller::confine::{self, ConfineError};
use nacre_puller::fetcher::{self, FetcherError};
use nacre_puller::index_client::IndexClient;
use nacre_puller::indexer::{self, IndexerError};
use nacre_puller::pull::Context;
use nacre_puller::registry::retry::RetryPolicy;
use nacre_puller::registry::transport::Timeouts;
use nacre_puller::store::{Options, Store, StoreError};

const RESOLV_CONF: &str = "/etc/resolver/resolv.conf";

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("usage: nacre-puller [boot=NAME] [quota=BYTES] [images=HEX,…] [STORE] | nacre-puller index")]
    Usage,
    #[error("descriptor {0} is not there")]
    Descriptor(i32),
    #[error("cannot take over the inherited descriptors: {0}")]
    TakeOver(io::Error),
    #[error(transparent)]
    Confine(#[from] ConfineError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Fetcher(#[from] FetcherError),
    #[error(transparent)]
    Indexer(#[from] IndexerError),
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.as_slice() {
        [word] if word == "index" => index(),
        words => parse(words).and_then(|(store, options, images)| fetch(&store, &options, images)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nacre-puller: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The images that may be pulled, if not all may.
type Images = Option<Vec<Sha256>>;

/// Init's own words.
fn parse(words: &[String]) -> Result<(PathBuf, Options, Images), Error> {
    let mut store = PathBuf::from(agent_puller::STORE_MOUNT);
    let (mut options, mut images) = (Options::default(), None);
    for word in words {
        match word.split_once('=') {
            Some(("boot", name)) if !name.is_empty() => options.boot = Some(name.to_owned()),
            Some(("quota", bytes)) => options.quota = Some(bytes.parse().map_err(|_| Error::Usage)?),
            Some(("images", list)) => {
                let digests = list.split(',').filter(|hex| !hex.is_empty()).map(Sha256::parse);
                images = Some(digests.collect::<Option<Vec<_>>>().ok_or(Error::Usage)?);
            }
            None if word.starts_with('/') => store = PathBuf::from(word),
            _ => return Err(Error::Usage),
        }
    }
    Ok((store, options, images))
}

fn fetch(store: &Path, options: &Options, images: Images) -> Result<(), Error> {
    let [agent, to_indexer] = inherited([agent_puller::FETCHER_FD, agent_puller::INDEXER_FD])?;
    let Some(ports) = fetcher::opening(&agent)? else { return Ok(()) };
    confine::fetcher(store, &ports)?;
    let context = Context {
        store: Store::open(store, options)?,
        indexer: IndexClient::new(to_indexer),
        timeouts: Timeouts::default(),
        retry: RetryPolicy::default(),
        resolv_conf: RESOLV_CONF.into(),
        images,
    };
    Ok(fetcher::serve(agent, context)?)
}

fn index() -> Result<(), Error> {
    let [to_fetcher] = inherited([fetcher_indexer::FETCHER_FD])?;
    confine::indexer()?;
    Ok(indexer::serve(to_fetcher)?)
}

/// These, and no other that may have been inherited.
fn inherited<const N: usize>(numbers: [i32; N]) -> Result<[OwnedFd; N], Error> {
    let taken = nacre_sys::exec::take_over(&numbers).map_err(Error::TakeOver)?;
    let there: Result<Vec<_>, _> =
        taken.into_iter().zip(numbers).map(|(fd, number)| fd.ok_or(Error::Descriptor(number))).collect();
    there?.try_into().map_err(|_| Error::Usage)
}
