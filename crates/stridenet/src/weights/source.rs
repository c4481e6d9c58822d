//! Files and bytes that several threads read at once.

use std::fs::File;
use std::io::{self, Read};

/// Bytes that are read from any place on.
pub(super) trait Source: Sync {
    /// Reads some of the bytes from `offset` on, as [`Read::read`] does.
    fn read_at(&self, to: &mut [u8], offset: u64) -> io::Result<usize>;

    /// The bytes from `offset` on, one after the other.
    fn from(&self, offset: u64) -> Reader<'_, Self> {
        Reader { source: self, offset }
    }
}

impl Source for File {
    fn read_at(&self, to: &mut [u8], offset: u64) -> io::Result<usize> {
        #[cfg(unix)]
        return std::os::unix::fs::FileExt::read_at(self, to, offset);
        #[cfg(windows)]
        return std::os::windows::fs::FileExt::seek_read(self, to, offset);
    }
}

impl Source for [u8] {
    fn read_at(&self, to: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..)).unwrap_or(&[]);
        rest.read(to)
    }
}

/// The bytes of a source from some place on.
pub(super) struct Reader<'a, S: ?Sized> {
    source: &'a S,
    offset: u64,
}

impl<S: Source + ?Sized> Read for Reader<'_, S> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read_at(to, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_bytes_are_read_from_any_place_to_their_end() {
        let bytes: Vec<u8> = (0..200).collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bytes");
        std::fs::write(&path, &bytes).unwrap();
        let file = File::open(&path).unwrap();
        for offset in [0, 1, 150, 199, 200, 201, 1 << 40] {
            let (mut of_file, mut of_bytes) = (Vec::new(), Vec::new());
            file.from(offset).read_to_end(&mut of_file).unwrap();
            bytes[..].from(offset).read_to_end(&mut of_bytes).unwrap();
            let expected = bytes.get(offset as usize..).unwrap_or(&[]);
            assert_eq!((&of_file[..], &of_bytes[..]), (expected, expected), "from {offset} on");
        }
        assert!(file.from(190).read_exact(&mut [0; 11]).is_err());
    }
}
