//! Two kinds of storage for the database `redb`, in addition to a normal file: a file whose writes
//! are not synced, and a file that is only read.

use redb::{StorageBackend, backends::FileBackend};
use std::{
    collections::{BTreeMap, btree_map::Entry},
    io,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// A database file whose writes are not synced to the disk, for a log with
/// [`Durability::Process`](super::Durability::Process).
#[derive(Debug)]
pub(super) struct Unsynced(pub(super) FileBackend);

impl StorageBackend for Unsynced {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.close()
    }
}

/// A database file that is only read. The database writes when it is opened, for instance after a
/// crash. These writes are kept in memory and do not change the file.
#[derive(Debug)]
pub(super) struct ReadOnly {
    file: FileBackend,
    len: AtomicU64,
    /// The length of the first part of the file, which the database has never truncated. The bytes
    /// after this part read as zero, unless `blocks`, the writes in memory, contain them.
    visible: AtomicU64,
    blocks: Mutex<BTreeMap<u64, Box<[u8]>>>,
}

const BLOCK: usize = 4096;

impl ReadOnly {
    pub(super) fn new(file: FileBackend) -> io::Result<Self> {
        let len = file.len()?;
        Ok(Self { file, len: AtomicU64::new(len), visible: AtomicU64::new(len), blocks: Mutex::default() })
    }

    fn blocks(&self) -> MutexGuard<'_, BTreeMap<u64, Box<[u8]>>> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads bytes of the file, without the writes that are kept in memory. Bytes after the length
    /// `visible` were cut off by the database, and read as zero.
    fn read_file(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let available = self.visible.load(Relaxed).saturating_sub(offset);
        let available = usize::try_from(available).unwrap_or(usize::MAX);
        let (inside, outside) = out.split_at_mut(available.min(out.len()));
        outside.fill(0);
        if inside.is_empty() { Ok(()) } else { self.file.read(offset, inside) }
    }
}

/// Splits a range of a file at the boundaries of its blocks. Each item contains the number of a
/// block, the offset in this block, and the indices of these bytes in the buffer for the whole
/// range.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let begin = at;
        let position = offset + begin as u64;
        let inner = (position % BLOCK as u64) as usize;
        at = len.min(begin + BLOCK - inner);
        (begin < len).then_some((position / BLOCK as u64, inner, begin..at))
    })
}

impl StorageBackend for ReadOnly {
    fn len(&self) -> io::Result<u64> {
        Ok(self.len.load(Relaxed))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if offset + out.len() as u64 > self.len.load(Relaxed) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.read_file(offset, out)?;
        let blocks = self.blocks();
        if blocks.is_empty() {
            return Ok(());
        }
        for (number, inner, range) in parts(offset, out.len()) {
            if let Some(block) = blocks.get(&number) {
                let len = range.len();
                out[range].copy_from_slice(&block[inner..inner + len]);
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.blocks().retain(|number, _| number * (BLOCK as u64) < len);
        self.visible.fetch_min(len, Relaxed);
        self.len.store(len, Relaxed);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut blocks = self.blocks();
        for (number, inner, range) in parts(offset, data.len()) {
            let block = match blocks.entry(number) {
                Entry::Occupied(block) => block.into_mut(),
                Entry::Vacant(vacant) => {
                    let mut block = vec![0; BLOCK].into_boxed_slice();
                    self.read_file(number * BLOCK as u64, &mut block)?;
                    vacant.insert(block)
                }
            };
            block[inner..inner + range.len()].copy_from_slice(&data[range]);
        }
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }
}
