//! Maps as user space sees them: hash tables, per-CPU arrays, and arrays mapped into memory.

#![expect(unsafe_code, reason = "memory shared with the kernel")]

use std::{
    io,
    marker::PhantomData,
    mem::{MaybeUninit, size_of},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering, fence},
};

use crate::sys;

/// Elements read in one call.
const BATCH: usize = 4096;

/// A hash table.
pub(crate) struct Table<K, V> {
    fd: OwnedFd,
    capacity: u32,
    _kinds: PhantomData<(K, V)>,
}

/// A per-CPU array of counters.
pub(crate) struct PerCpu<V> {
    fd: OwnedFd,
    cpus: usize,
    _kind: PhantomData<V>,
}

/// An array, mapped. The kernel programs read it while it is written: whatever must not be seen
/// half written is published by [`Mapped::publish`], after everything that it leads to.
pub(crate) struct Mapped<V> {
    start: NonNull<u8>,
    len: u32,
    _fd: OwnedFd,
    _kind: PhantomData<V>,
}

// SAFETY: the memory belongs to the map, not to a thread.
unsafe impl<V: Send> Send for Mapped<V> {}

// === impl Table ===

impl<K: Copy, V: Copy> Table<K, V> {
    pub(crate) fn new(fd: OwnedFd, capacity: u32) -> Self {
        Self { fd, capacity, _kinds: PhantomData }
    }

    pub(crate) fn capacity(&self) -> u32 {
        self.capacity
    }

    pub(crate) fn set(&self, key: &K, value: &V) -> io::Result<()> {
        sys::update(self.fd.as_fd(), key, &raw const *value)
    }

    pub(crate) fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = MaybeUninit::uninit();
        let found = sys::lookup(self.fd.as_fd(), key, value.as_mut_ptr())?;
        // SAFETY: the kernel has filled it.
        Ok(found.then(|| unsafe { value.assume_init() }))
    }

    pub(crate) fn remove(&self, key: &K) -> io::Result<bool> {
        sys::delete(self.fd.as_fd(), key)
    }

    /// Shows every element to `visit`. Elements that come or go meanwhile may be missed or seen
    /// twice.
    pub(crate) fn visit(&self, mut visit: impl FnMut(&K, &V)) -> io::Result<u64> {
        let mut keys: Vec<MaybeUninit<K>> = Vec::with_capacity(BATCH);
        let mut values: Vec<MaybeUninit<V>> = Vec::with_capacity(BATCH);
        let (keys_at, values_at) = (keys.as_mut_ptr(), values.as_mut_ptr());
        let mut cursor = None;
        let mut seen = 0;
        loop {
            let (count, end) =
                sys::lookup_batch(self.fd.as_fd(), &mut cursor, keys_at, values_at, BATCH)?;
            for at in 0..count {
                // SAFETY: the kernel has filled `count` of each.
                unsafe {
                    visit(
                        (*keys_at.add(at)).assume_init_ref(),
                        (*values_at.add(at)).assume_init_ref(),
                    )
                };
            }
            seen += count as u64;
            if end || count == 0 {
                return Ok(seen);
            }
        }
    }

    /// All keys, one call each: for small tables, and kernels without batches of this kind.
    pub(crate) fn keys(&self) -> io::Result<Vec<K>> {
        let mut keys: Vec<K> = Vec::new();
        let mut next = MaybeUninit::uninit();
        while sys::next_key(self.fd.as_fd(), keys.last(), next.as_mut_ptr())? {
            // SAFETY: the kernel has filled it.
            keys.push(unsafe { next.assume_init() });
        }
        Ok(keys)
    }
}

// === impl PerCpu ===

impl<V: Copy + Default> PerCpu<V> {
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        assert!(size_of::<V>().is_multiple_of(8), "the kernel pads per-CPU values to 8 bytes");
        Ok(Self { fd, cpus: sys::possible_cpus()?, _kind: PhantomData })
    }

    /// The values of all CPUs at `index`.
    pub(crate) fn get(&self, index: u32) -> io::Result<Vec<V>> {
        let mut values = vec![V::default(); self.cpus];
        sys::lookup(self.fd.as_fd(), &index, values.as_mut_ptr())?;
        Ok(values)
    }

    /// Sets `index` to zero on all CPUs.
    pub(crate) fn clear(&self, index: u32) -> io::Result<()> {
        let values = vec![V::default(); self.cpus];
        sys::update(self.fd.as_fd(), &index, values.as_ptr())
    }
}

// === impl Mapped ===

impl<V: Copy> Mapped<V> {
    /// Bytes from one element to the next: the kernel rounds up to 8.
    const STRIDE: usize = size_of::<V>().next_multiple_of(8);

    pub(crate) fn new(fd: OwnedFd, len: u32) -> io::Result<Self> {
        let start = map(fd.as_fd(), len as usize * Self::STRIDE)?;
        Ok(Self { start, len, _fd: fd, _kind: PhantomData })
    }

    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    fn at(&self, index: u32) -> *mut V {
        assert!(index < self.len, "index {index} of an array of {}", self.len);
        // SAFETY: within the mapping, see the assertion.
        unsafe { self.start.as_ptr().add(index as usize * Self::STRIDE).cast() }
    }

    pub(crate) fn get(&self, index: u32) -> V {
        // SAFETY: in bounds and aligned to 8; the kernel only counts in other maps.
        unsafe { self.at(index).read_volatile() }
    }

    /// Writes an element that nothing leads to yet.
    pub(crate) fn set(&self, index: u32, value: V) {
        // SAFETY: as above.
        unsafe { self.at(index).write_volatile(value) };
    }

    /// Writes the 64-bit word at `offset` bytes into an element, after everything written before.
    pub(crate) fn publish(&self, index: u32, offset: usize, word: u64) {
        assert!(offset.is_multiple_of(8) && offset < Self::STRIDE);
        fence(Ordering::Release);
        // SAFETY: in bounds and aligned; the programs read whole words.
        let cell = unsafe { AtomicU64::from_ptr(self.at(index).cast::<u8>().add(offset).cast()) };
        cell.store(word, Ordering::Release);
    }
}

fn map(fd: BorrowedFd<'_>, len: usize) -> io::Result<NonNull<u8>> {
    // SAFETY: sysconf takes a number.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
    let len = len.next_multiple_of(page);
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping of a descriptor that outlives it.
    let start = unsafe {
        libc::mmap(std::ptr::null_mut(), len, access, libc::MAP_SHARED, fd.as_raw_fd(), 0)
    };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mmap gave a null pointer"))
}

impl<V> Drop for Mapped<V> {
    fn drop(&mut self) {
        let stride = size_of::<V>().next_multiple_of(8);
        // SAFETY: the mapping that `map` made; the kernel rounds the length up to pages.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len as usize * stride) };
    }
}
