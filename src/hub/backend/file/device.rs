//! The kinds of storage for the file of the database `redb`: a file whose blocks are allocated
//! before the database writes to them, a file whose writes are not synced to the disk, and a file
//! that is never changed.

use super::locked::Device;
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

impl Device for Unsynced {
    fn file(&self) -> &FileBackend {
        &self.0
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
}

/// The maximum number of bytes that a write to an unallocated block of the file also allocates
/// after this block, by writing zeros.
const AHEAD: u64 = 1 << 20;

/// A buffer of zeros. A longer part of the file is filled with several writes of this buffer.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A database file whose blocks are allocated before the database writes to them.
///
/// A write to an unallocated block changes the metadata of the file system, and `fdatasync` then
/// also writes this metadata. To make such writes rare, each of them also writes zeros to the
/// blocks after its own: at most an eighth of the file, and at most [`AHEAD`] bytes. Later writes
/// to these blocks need no new metadata. If the file already exists when it is opened, all blocks
/// before its end at that time count as allocated.
#[derive(Debug)]
pub(super) struct Allocated {
    file: FileBackend,
    /// The end of the part of the file that may have been written so far. The rest of the file
    /// reads as zero. `None` until the database first changes the file. The first value is the
    /// length of the file just before this change. At that time, the database has locked the file,
    /// so no other process can change the length.
    unwritten: Mutex<Option<u64>>,
}

impl Allocated {
    pub(super) fn new(file: FileBackend) -> Self {
        Self { file, unwritten: Mutex::default() }
    }

    fn unwritten(&self) -> MutexGuard<'_, Option<u64>> {
        self.unwritten.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Allocates the blocks of a part of the file that was not written before: writes zeros to
    /// them.
    fn allocate(&self, mut begin: u64, end: u64) -> io::Result<()> {
        while begin < end {
            let zeros = &ZEROS[..(end - begin).min(ZEROS.len() as u64) as usize];
            self.file.write(begin, zeros)?;
            begin += zeros.len() as u64;
        }
        Ok(())
    }
}

impl Device for Allocated {
    fn file(&self) -> &FileBackend {
        &self.file
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut unwritten = self.unwritten();
        let before = unwritten.map_or_else(|| self.file.len(), Ok)?;
        self.file.set_len(len)?;
        *unwritten = Some(len.min(before));
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        // Readers write pages, too, if the cache is full. The lock prevents that zeros replace such
        // a page.
        let mut unwritten = self.unwritten();
        let before = unwritten.map_or_else(|| self.file.len(), Ok)?;
        self.file.write(offset, data)?;
        let end = offset + data.len() as u64;
        *unwritten = Some(before.max(end));
        if end > before {
            let len = self.file.len().unwrap_or(end);
            let ahead = end.saturating_add(AHEAD.min(end / 8)).min(len).max(end);
            *unwritten = Some(ahead);
            // The disk may be full, but the database does not need these blocks yet.
            let _not_needed_yet = self.allocate(end, ahead);
        }
        Ok(())
    }
}

/// A database file that can only be read. The database nevertheless writes while it is opened, for
/// instance after a crash. These writes are kept in memory, and do not change the file.
#[derive(Debug)]
pub(super) struct ReadOnly {
    file: FileBackend,
    len: AtomicU64,
    /// The length in bytes of the part of the file that the database can still read: at first the
    /// whole file. When the database truncates the file (in memory only, because the file is
    /// read-only), this length shrinks, and never grows again. Bytes of the file after this length
    /// read as zero. `blocks` contains the blocks that the database has written, also in memory
    /// only. They replace the contents of the file.
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
    /// `visible` read as zero, because the database has truncated the file to this length (in
    /// memory only).
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

impl Device for ReadOnly {
    const IS_READ_ONLY: bool = true;

    fn file(&self) -> &FileBackend {
        &self.file
    }

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
}

#[cfg(all(test, unix))]
mod tests {
    use super::{super::test_file::TestFile, *};
    use std::{fs, os::unix::fs::MetadataExt};

    fn open(name: &str) -> (TestFile, Allocated) {
        let file = TestFile::new(name);
        let device = Allocated::new(FileBackend::new(file.open(false)).unwrap());
        (file, device)
    }

    #[test]
    fn blocks_after_a_new_block_are_allocated() {
        let (file, device) = open("device-blocks");
        let allocated = || fs::metadata(&file.0).unwrap().blocks() * 512;
        device.set_len(64 << 20).unwrap();
        device.write(16 << 20, &[1; 4096]).unwrap();
        device.sync_data().unwrap();
        let after_first = allocated();
        // Some file systems allocate even more.
        assert!(after_first >= AHEAD + 4096, "{after_first}");
        for block in 1..=AHEAD / 4096 {
            device.write((16 << 20) + block * 4096, &[1; 4096]).unwrap();
        }
        device.sync_data().unwrap();
        let after_all = allocated();
        // The file system may need blocks for its own metadata.
        assert!(after_all < after_first + AHEAD / 8, "{after_first} {after_all}");

        let len = device.len().unwrap();
        device.write(len - 4096, &[1; 4096]).unwrap();
        assert_eq!(device.len().unwrap(), len, "the length does not change");
    }

    #[test]
    fn zeros_replace_no_data() {
        let (_file, device) = open("device-zeros");
        let mut random = 1_u64;
        let mut random = |limit: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % limit
        };
        let mut expected = Vec::new();
        for n in 0..3000_u32 {
            if expected.is_empty() || random(20) == 0 {
                let len = 4096 * (1 + random(100));
                device.set_len(len).unwrap();
                expected.resize(len as usize, 0);
            }
            let at = 4096 * random(expected.len() as u64 / 4096);
            let data = [n as u8 | 1; 4096];
            device.write(at, &data).unwrap();
            expected[at as usize..][..4096].copy_from_slice(&data);
            let mut found = vec![0; expected.len()];
            device.read(0, &mut found).unwrap();
            assert!(found == expected, "write {n} at {at}");
        }
    }
}
