//! Maps as user space sees them: hash tables, per-CPU arrays, and arrays mapped into memory.

#![expect(unsafe_code, reason = "memory shared with the kernel")]

use std::{
    cell::OnceCell,
    io,
    marker::PhantomData,
    mem::{MaybeUninit, size_of},
    ops::ControlFlow,
    os::fd::{AsFd, OwnedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering, fence},
};

use crate::{
    error::{Error, Tried as _},
    sys,
};

/// Elements read in one call.
const BATCH: usize = 4096;
/// Values of all CPUs read in one call, in bytes.
const PER_CPU_BATCH: usize = 256 << 10;

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

/// An array, mapped where it is used. The kernel programs read it while it is written: whatever
/// must not be seen half written is published by [`Mapped::publish`], after everything that it
/// leads to.
///
/// The kernel maps all pages of a mapping at once, and they count as memory of the agent. So the
/// array is cut into windows, each of which is mapped when it is first looked into.
pub(crate) struct Mapped<V> {
    name: &'static str,
    windows: Vec<OnceCell<Window>>,
    /// Elements of a window: as many as a page has bytes, so that each begins with a page.
    per_window: u32,
    len: u32,
    fd: OwnedFd,
    _kind: PhantomData<V>,
}

/// A part of an array, mapped.
struct Window {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory belongs to the map, not to a thread.
unsafe impl Send for Window {}

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

    /// The same table, by a descriptor of its own.
    pub(crate) fn duplicate(&self) -> io::Result<Self> {
        Ok(Self::new(self.fd.try_clone()?, self.capacity))
    }

    /// Shows every element to `visit`. Elements that come or go meanwhile may be missed or seen
    /// twice.
    pub(crate) fn visit(&self, mut visit: impl FnMut(&K, &V)) -> io::Result<u64> {
        self.walk(|key, value| {
            visit(key, value);
            ControlFlow::Continue(())
        })
    }

    /// The same until `visit` has seen enough; answers how many it has seen.
    pub(crate) fn walk(&self, mut visit: impl FnMut(&K, &V) -> ControlFlow<()>) -> io::Result<u64> {
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
                let (key, value) = unsafe {
                    ((*keys_at.add(at)).assume_init_ref(), (*values_at.add(at)).assume_init_ref())
                };
                seen += 1;
                if visit(key, value).is_break() {
                    return Ok(seen);
                }
            }
            if end || count == 0 {
                return Ok(seen);
            }
        }
    }

    /// Whether nothing is in it.
    pub(crate) fn is_empty(&self) -> io::Result<bool> {
        let mut first = MaybeUninit::<K>::uninit();
        Ok(!sys::next_key(self.fd.as_fd(), None, first.as_mut_ptr())?)
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

    /// Shows the values of all CPUs at every index below `end` to `visit`.
    pub(crate) fn visit(&self, end: u32, mut visit: impl FnMut(u32, &[V])) -> io::Result<()> {
        let batch = (PER_CPU_BATCH / (self.cpus * size_of::<V>())).max(1);
        let mut keys = vec![0_u32; batch];
        let mut values = vec![V::default(); batch * self.cpus];
        let (mut cursor, mut next) = (None, 0);
        while next < end {
            let wanted = batch.min((end - next) as usize);
            let (keys_at, values_at) = (keys.as_mut_ptr(), values.as_mut_ptr());
            let (count, last) =
                sys::lookup_batch(self.fd.as_fd(), &mut cursor, keys_at, values_at, wanted)?;
            let found = keys.iter().zip(values.chunks_exact(self.cpus));
            found.take(count).for_each(|(index, values)| visit(*index, values));
            next += count as u32;
            if last || count == 0 {
                break;
            }
        }
        Ok(())
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

    pub(crate) fn new(fd: OwnedFd, len: u32, name: &'static str) -> Self {
        let per_window = sys::page_size();
        let windows = (0..len.div_ceil(per_window)).map(|_| OnceCell::new()).collect();
        Self { name, windows, per_window, len, fd, _kind: PhantomData }
    }

    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    pub(crate) fn get(&self, index: u32) -> Result<V, Error> {
        let at = self.at(index)?;
        // SAFETY: in bounds and aligned to 8; the kernel only counts in other maps.
        Ok(unsafe { at.read_volatile() })
    }

    /// Writes an element that nothing leads to yet.
    pub(crate) fn set(&self, index: u32, value: V) -> Result<(), Error> {
        let at = self.at(index)?;
        // SAFETY: as above.
        unsafe { at.write_volatile(value) };
        Ok(())
    }

    /// Writes the 64-bit word at `offset` bytes into an element, after everything written before.
    pub(crate) fn publish(&self, index: u32, offset: usize, word: u64) -> Result<(), Error> {
        assert!(offset.is_multiple_of(8) && offset < Self::STRIDE);
        let at = self.at(index)?;
        fence(Ordering::Release);
        // SAFETY: in bounds and aligned; the programs read whole words.
        let cell = unsafe { AtomicU64::from_ptr(at.cast::<u8>().add(offset).cast()) };
        cell.store(word, Ordering::Release);
        Ok(())
    }

    /// Shows every element to `visit`. What was not looked into before is mapped only meanwhile.
    pub(crate) fn visit(&self, mut visit: impl FnMut(u32, V)) -> Result<(), Error> {
        for (number, window) in (0..).zip(&self.windows) {
            let first: u32 = number * self.per_window;
            let passing;
            let window = match window.get() {
                Some(window) => window,
                None => {
                    passing = self.map(number)?;
                    &passing
                }
            };
            for index in first..self.len.min(first + self.per_window) {
                // SAFETY: in bounds and aligned to 8.
                visit(index, unsafe { Self::within(window, index - first).read_volatile() });
            }
        }
        Ok(())
    }

    fn at(&self, index: u32) -> Result<*mut V, Error> {
        assert!(index < self.len, "index {index} of an array of {}", self.len);
        let number = index / self.per_window;
        let cell = &self.windows[number as usize];
        let window = match cell.get() {
            Some(window) => window,
            None => {
                let new = self.map(number)?;
                cell.get_or_init(|| new)
            }
        };
        Ok(Self::within(window, index % self.per_window))
    }

    fn within(window: &Window, position: u32) -> *mut V {
        // SAFETY: callers stay within the window.
        unsafe { window.start.as_ptr().add(position as usize * Self::STRIDE).cast() }
    }

    fn map(&self, number: u32) -> Result<Window, Error> {
        let first = number * self.per_window;
        let elements = self.per_window.min(self.len - first);
        let bytes = elements as usize * Self::STRIDE;
        sys::map_shared(self.fd.as_fd(), first as usize * Self::STRIDE, bytes)
            .map(|start| Window { start, bytes })
            .tried(|| format!("map the array {} into memory", self.name))
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the mapping that `map` made; the kernel rounds the length up to pages.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::FromRawFd as _;

    use super::*;

    const ARRAY: u32 = 2;
    const PERCPU_ARRAY: u32 = 6;
    const MMAPABLE: u32 = 1 << 10;
    const LEN: u32 = 10_000;

    /// A map of its own, which goes when the last descriptor of it does.
    fn map(kind: u32, value: usize, flags: u32) -> OwnedFd {
        const BPF_MAP_CREATE: i32 = 0;
        let attr = [kind, 4, value as u32, LEN, flags];
        // SAFETY: the beginning of `union bpf_attr` as the command expects it.
        let fd = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_MAP_CREATE, attr.as_ptr(), size_of_val(&attr))
        };
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: the kernel has just given us this descriptor.
        unsafe { OwnedFd::from_raw_fd(fd as i32) }
    }

    /// Its elements do not divide a page.
    type Odd = [u64; 10];

    fn array(fd: &OwnedFd) -> Mapped<Odd> {
        Mapped::new(fd.try_clone().unwrap(), LEN, "TEST")
    }

    #[test]
    fn an_array_is_the_same_through_every_window() {
        let fd = map(ARRAY, size_of::<Odd>(), MMAPABLE);
        let written = array(&fd);
        let places = [0, 1, 4095, 4096, 8191, 8192, LEN - 1];
        for at in places {
            written.set(at, [u64::from(at) + 1; 10]).unwrap();
            written.publish(at, 72, 7).unwrap();
        }
        for array in [&written, &array(&fd)] {
            let mut found = Vec::new();
            array
                .visit(|at, value| {
                    if value[0] != 0 {
                        assert_eq!((value[8], value[9]), (u64::from(at) + 1, 7));
                        found.push(at);
                    }
                })
                .unwrap();
            assert_eq!(found, places);
            assert_eq!(array.get(4096).unwrap()[0], 4097);
        }
    }

    #[test]
    fn only_what_is_looked_into_stays_mapped() {
        let fd = map(ARRAY, size_of::<Odd>(), MMAPABLE);
        let array = array(&fd);
        array.visit(|_, _| {}).unwrap();
        assert!(array.windows.iter().all(|window| window.get().is_none()));
        array.get(0).unwrap();
        assert_eq!(array.windows.iter().filter(|window| window.get().is_some()).count(), 1);
    }

    #[test]
    fn counters_of_all_cpus_are_read_in_batches_as_one_by_one() {
        let fd = map(PERCPU_ARRAY, 8, 0);
        let counters = PerCpu::<u64>::new(fd.try_clone().unwrap()).unwrap();
        for at in 0..LEN {
            let values: Vec<u64> =
                (0..counters.cpus as u64).map(|cpu| cpu + 3 * u64::from(at)).collect();
            sys::update(fd.as_fd(), &at, values.as_ptr()).unwrap();
        }
        for end in [0, 1, LEN - 1, LEN] {
            let mut seen = 0;
            counters
                .visit(end, |at, values| {
                    assert_eq!(at, seen);
                    seen += 1;
                    if at % 997 == 0 {
                        assert_eq!(values, counters.get(at).unwrap());
                    }
                })
                .unwrap();
            assert_eq!(seen, end);
        }
    }
}
