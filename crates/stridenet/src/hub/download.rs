//! One file from the hub: continued where it was interrupted, checked, and only then given its name.

use super::remote::{Checksum, Remote, Server, offline};
use super::{HubError, Progress};
use crate::file::FileError;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

/// How often a request that brings nothing is repeated.
const TRIES: usize = 3;
/// Bytes that are received at a time.
const PIECE: usize = 1 << 16;

/// A file to fetch.
pub(super) struct Download<'a> {
    pub(super) server: &'a Server<'a>,
    pub(super) remote: &'a Remote,
    /// Its name on the hub.
    pub(super) file: &'a str,
    /// Where it goes.
    pub(super) target: &'a Path,
}

impl Download<'_> {
    /// Fetches the file, unless it is there.
    pub(super) fn run(&self, observer: &mut dyn FnMut(Progress) -> bool) -> Result<(), HubError> {
        let Download { remote, target, file, .. } = self;
        if target.is_file() {
            return Ok(());
        }
        let part = target.with_file_name(format!(".{file}.{}.part", remote.checksum.digits()));
        let unwritable = |source| HubError::from(FileError::write(&part, source));
        let mut partial =
            OpenOptions::new().create(true).read(true).append(true).open(&part).map_err(unwritable)?;
        // Another process that fetches the same file has it until it is done.
        partial.lock().map_err(unwritable)?;
        if target.is_file() {
            return Ok(());
        }
        let mut state = Partial::resume(&mut partial, remote).map_err(unwritable)?;
        let mut failures = 0;
        loop {
            self.report(state.done, observer)?;
            if state.done == remote.size {
                break;
            }
            let before = state.done;
            if let Err(error) = self.receive(&mut state, &part, observer) {
                failures = if state.done > before { 0 } else { failures + 1 };
                if !error.is_offline() || failures == TRIES {
                    return Err(error);
                }
            }
        }
        let found = state.hasher.digits();
        if found != remote.checksum.digits() {
            // Not to be continued.
            std::fs::remove_file(&part).map_err(unwritable)?;
            let (url, expected) = (remote.url.clone(), remote.checksum.digits().to_owned());
            return Err(HubError::Checksum { url, found, expected });
        }
        partial.sync_all().map_err(unwritable)?;
        std::fs::rename(&part, target).map_err(|source| FileError::write(*target, source).into())
    }

    /// Receives bytes until the file is whole or the connection ends.
    fn receive(
        &self,
        state: &mut Partial,
        part: &Path,
        observer: &mut dyn FnMut(Progress) -> bool,
    ) -> Result<(), HubError> {
        let Remote { url, size, .. } = self.remote;
        let unwritable = |source| HubError::from(FileError::write(part, source));
        let response = self.server.bytes(url, state.done)?;
        let begins = response.headers().get("content-range").and_then(|range| range.to_str().ok());
        let begins = begins.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse().ok());
        match response.status().as_u16() {
            206 if begins == Some(state.done) => {}
            // All of it, from the beginning.
            200 => state.restart(self.remote).map_err(unwritable)?,
            _ => {
                state.restart(self.remote).map_err(unwritable)?;
                return Err(offline(url, &"the server sends another part of the file than it was asked for"));
            }
        }
        let mut body = response.into_body().into_reader();
        let mut piece = vec![0; PIECE];
        while state.done < *size {
            let count = match body.read(&mut piece) {
                Ok(0) => return Err(offline(url, &"the connection ended early")),
                Ok(count) => count,
                Err(error) => return Err(offline(url, &error)),
            };
            let wanted = usize::try_from(size - state.done).unwrap_or(usize::MAX);
            state.append(&piece[..count.min(wanted)]).map_err(unwritable)?;
            self.report(state.done, observer)?;
        }
        Ok(())
    }

    /// Tells how far it is; an observer that wants an end gets it.
    fn report(&self, done: u64, observer: &mut dyn FnMut(Progress) -> bool) -> Result<(), HubError> {
        match observer(Progress { file: self.file, done, total: self.remote.size }) {
            true => Ok(()),
            false => Err(HubError::Interrupted { path: self.target.to_path_buf() }),
        }
    }
}

/// A file of which a part is there.
struct Partial<'f> {
    file: &'f mut File,
    /// Bytes that are there.
    done: u64,
    hasher: Hasher,
}

impl<'f> Partial<'f> {
    /// Reads what is there.
    fn resume(file: &'f mut File, remote: &Remote) -> std::io::Result<Self> {
        let mut partial = Partial { file, done: 0, hasher: Hasher::new(remote) };
        if partial.file.metadata()?.len() > remote.size {
            partial.restart(remote)?;
        }
        partial.file.seek(SeekFrom::Start(0))?;
        let mut piece = vec![0; PIECE];
        loop {
            let count = partial.file.read(&mut piece)?;
            if count == 0 {
                return Ok(partial);
            }
            partial.hasher.update(&piece[..count]);
            partial.done += count as u64;
        }
    }

    /// Forgets what is there.
    fn restart(&mut self, remote: &Remote) -> std::io::Result<()> {
        self.file.set_len(0)?;
        self.done = 0;
        self.hasher = Hasher::new(remote);
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.done += bytes.len() as u64;
        Ok(())
    }
}

/// The checksum of the bytes so far, of the kind that the hub named.
enum Hasher {
    Sha256(Sha256),
    GitBlob(Sha1),
}

impl Hasher {
    fn new(remote: &Remote) -> Self {
        match remote.checksum {
            Checksum::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Checksum::GitBlob(_) => Hasher::GitBlob(Sha1::new_with_prefix(format!("blob {}\0", remote.size))),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::GitBlob(hasher) => hasher.update(bytes),
        }
    }

    fn digits(self) -> String {
        let bytes = match self {
            Hasher::Sha256(hasher) => hasher.finalize().to_vec(),
            Hasher::GitBlob(hasher) => hasher.finalize().to_vec(),
        };
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
