//! A blob while it streams. Interrupted, it goes on from the byte where it broke, at the same source or at the next; the
//! hash runs through, so it does not matter where the bytes come from.

use super::http::{Body, Response};
use super::retry::Fault;
use super::sources::Sources;
use super::transport::TransportError;
use super::{RegistryError, check_digest};
use crate::digest::Hasher;
use crate::manifest::Descriptor;

/// Bytes that are read at once of what has to be skipped.
const SKIP_BYTES: usize = 64 << 10;

pub struct Blob<'a> {
    sources: &'a Sources,
    what: String,
    blob: Descriptor,
    /// Where else it may be had, for layers that their registry does not have.
    urls: &'a [String],
    /// Which of the sources is asked, and behind them which of `urls`.
    at: usize,
    offset: u64,
    offset_at_opening: u64,
    /// Times it was opened again.
    resumes: u32,
    /// Of these, the last ones in a row that brought nothing, or as good as nothing.
    fruitless: u32,
    hasher: Hasher,
    body: Option<Body<'a>>,
    /// What the sources before this one said.
    earlier: Vec<RegistryError>,
}

impl<'a> Blob<'a> {
    /// Most times that a blob is opened again in all.
    pub const RESUMES_MAX: u32 = 32;

    /// Nothing is asked for before the first read.
    pub fn new(sources: &'a Sources, what: &str, blob: Descriptor, urls: &'a [String]) -> Self {
        Self {
            sources,
            what: what.to_owned(),
            blob,
            urls,
            at: sources.chosen(),
            offset: 0,
            offset_at_opening: 0,
            resumes: 0,
            fruitless: 0,
            hasher: Hasher::default(),
            body: None,
            earlier: Vec::new(),
        }
    }

    /// 0 bytes at the end, which is where the blob has its announced size and digest.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, RegistryError> {
        loop {
            if self.offset == self.blob.size {
                return self.finish().map(|()| 0);
            }
            let read = match self.body.as_mut() {
                Some(body) => body.read(buffer),
                None => {
                    self.open()?;
                    continue;
                }
            };
            match read {
                Ok(0) => {
                    let host = self.sources.host(self.at).to_owned();
                    self.lost(TransportError::Closed { host })?;
                }
                Ok(length) => {
                    self.hasher.update(buffer.get(..length).unwrap_or_default());
                    self.offset += length as u64;
                    if self.offset > self.blob.size {
                        return Err(self.wrong_size(self.offset));
                    }
                    return Ok(length);
                }
                Err(error) => self.lost(error)?,
            }
        }
    }

    fn finish(&mut self) -> Result<(), RegistryError> {
        if let Some(mut body) = self.body.take()
            && let Ok(1..) = body.read(&mut [0])
        {
            return Err(self.wrong_size(self.blob.size + 1));
        }
        check_digest(&self.what, Some(self.blob.digest), self.hasher.clone().finish()).map(|_| ())
    }

    /// Lets the next read open it again, here or at the next source, or gives up.
    fn lost(&mut self, source: TransportError) -> Result<(), RegistryError> {
        self.body = None;
        self.resumes += 1;
        let brought = self.offset > self.offset_at_opening && !matches!(source, TransportError::Slow { .. });
        self.fruitless = if brought { 0 } else { self.fruitless + 1 };
        let policy = self.sources.retry(self.at);
        let spent = self.resumes > Self::RESUMES_MAX || self.fruitless > policy.retries;
        let passing = source.is_passing();
        let error = RegistryError::Transport { what: self.what.clone(), source };
        if spent || !passing {
            return self.give_up_source(error);
        }
        match policy.wait(self.fruitless, self.sources.cancel()) {
            true => Ok(()),
            false => {
                Err(RegistryError::Transport { what: self.what.clone(), source: TransportError::Cancelled })
            }
        }
    }

    /// Moves on to the next source; an error if there is none.
    fn give_up_source(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        let next = self.at + 1;
        // A layer's own addresses are for what its registry does not have, not for what goes wrong there.
        let has_next = next < self.sources.len()
            || (next < self.sources.len() + self.urls.len()
                && (self.at >= self.sources.len() || matches!(error, RegistryError::NotFound { .. })));
        if !has_next || error.is_cancelled() {
            return Err(error.after(std::mem::take(&mut self.earlier)));
        }
        self.earlier.push(error);
        (self.at, self.fruitless, self.resumes) = (next, 0, 0);
        Ok(())
    }

    fn open(&mut self) -> Result<(), RegistryError> {
        let body = match self.open_from(self.offset > 0) {
            // A server that cannot give a part gives the whole.
            Err(RegistryError::Range { .. } | RegistryError::Status { status: 416, .. }) => {
                self.open_from(false)
            }
            result => result,
        };
        match body {
            Ok(body) => {
                self.offset_at_opening = self.offset;
                self.body = Some(body);
                Ok(())
            }
            Err(error) => self.give_up_source(error),
        }
    }

    /// No `If-Range`: what a digest names does not change, and if it did, the digest of the whole would tell.
    fn open_from(&self, by_range: bool) -> Result<Body<'a>, RegistryError> {
        let (what, offset, size) = (&self.what, self.offset, self.blob.size);
        self.sources.retry(self.at).run(self.sources.cancel(), what, || {
            let range = by_range.then(|| ("Range", format!("bytes={offset}-")));
            let fields: Vec<_> = range.into_iter().collect();
            let response = self.sources.blob(self.at, what, self.blob.digest, self.urls, &fields)?;
            position(what, size, offset, response)
        })
    }

    fn wrong_size(&self, got: u64) -> RegistryError {
        RegistryError::Size { what: self.what.clone(), expected: self.blob.size, got }
    }
}

/// Brings the body of an answer to the byte `offset`, whether the server knows ranges or not.
fn position<'a>(what: &str, size: u64, offset: u64, response: Response<'a>) -> Result<Body<'a>, Fault> {
    let Response { status, head, mut body } = response;
    let begins_at = match status {
        206 => {
            let range = head.get("content-range").and_then(content_range);
            match range {
                Some((begin, total)) if begin == offset && total.is_none_or(|total| total == size) => offset,
                _ => return Err(Fault::Final(RegistryError::Range { what: what.to_owned(), offset })),
            }
        }
        _ => 0,
    };
    if let Some(length) = body.length()
        && length != size - begins_at
    {
        let got = begins_at.saturating_add(length);
        return Err(Fault::Final(RegistryError::Size { what: what.to_owned(), expected: size, got }));
    }
    let mut to_skip = offset - begins_at;
    let mut buffer = vec![0; if to_skip > 0 { SKIP_BYTES } else { 0 }];
    while to_skip > 0 {
        let wanted = buffer.len().min(usize::try_from(to_skip).unwrap_or(usize::MAX));
        match body.read(buffer.get_mut(..wanted).unwrap_or_default()) {
            Ok(0) => {
                return Err(Fault::Final(RegistryError::Size {
                    what: what.to_owned(),
                    expected: size,
                    got: offset - to_skip,
                }));
            }
            Ok(read) => to_skip -= read as u64,
            Err(source) => return Err(Fault::transport(what, source)),
        }
    }
    Ok(body)
}

/// The first byte and the whole of `bytes 5-9/10`; the whole may be unknown (`*`).
fn content_range(field: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = field.strip_prefix("bytes ")?.split_once('/')?;
    let begin = range.split_once('-')?.0.trim().parse().ok()?;
    match total.trim() {
        "*" => Some((begin, None)),
        total => Some((begin, Some(total.parse().ok()?))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_say_where_they_begin_and_of_what() {
        for (field, range) in [
            ("bytes 5-9/10", Some((5, Some(10)))),
            ("bytes 0-9/*", Some((0, None))),
            ("bytes */10", None),
            ("bytes 5-9", None),
            ("bytes 5-9/x", None),
            ("lines 5-9/10", None),
        ] {
            assert_eq!(content_range(field), range, "{field}");
        }
    }
}
