//! The bpf(2) calls that weir makes itself: what it needs is exact control over links and batches.

#![expect(unsafe_code, reason = "system calls")]

use std::{
    ffi::CString,
    io,
    mem::{size_of, zeroed},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    ptr::NonNull,
};

const BPF_MAP_LOOKUP_ELEM: i32 = 1;
const BPF_MAP_UPDATE_ELEM: i32 = 2;
const BPF_MAP_DELETE_ELEM: i32 = 3;
const BPF_MAP_GET_NEXT_KEY: i32 = 4;
const BPF_OBJ_PIN: i32 = 6;
const BPF_OBJ_GET: i32 = 7;
const BPF_OBJ_GET_INFO_BY_FD: i32 = 15;
const BPF_MAP_LOOKUP_BATCH: i32 = 24;
const BPF_LINK_CREATE: i32 = 28;
const BPF_LINK_UPDATE: i32 = 29;

/// `BPF_F_BEFORE`: ahead of every other program on the hook.
const BPF_F_BEFORE: u32 = 1 << 3;

/// Attach types (`enum bpf_attach_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum AttachType {
    Connect4 = 10,
    Connect6 = 11,
    Sendmsg4 = 14,
    Sendmsg6 = 15,
    Recvmsg4 = 19,
    Recvmsg6 = 20,
    Getpeername4 = 29,
    Getpeername6 = 30,
    SkLookup = 36,
    TcxIngress = 46,
    TcxEgress = 47,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Element {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    elem_flags: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct LinkCreate {
    program: u32,
    target: u32,
    kind: u32,
    flags: u32,
    relative: u32,
    pad: u32,
    expected_revision: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct LinkUpdate {
    link: u32,
    program: u32,
    flags: u32,
    old: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    fd: u32,
    len: u32,
    info: u64,
}

/// What the kernel says of a link on an interface.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkInfo {
    pub(crate) kind: u32,
    pub(crate) id: u32,
    pub(crate) program: u32,
    pad: u32,
    /// Interface index, for TCX; 0 when the interface is gone.
    pub(crate) ifindex: u32,
    pub(crate) attach_type: u32,
    rest: [u64; 16],
}

fn bpf<T>(command: i32, attr: &mut T) -> io::Result<i64> {
    // SAFETY: `attr` is a prefix of `union bpf_attr` as the command expects it, and the size says
    // how much of it there is.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<T>()) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

fn pointer<T>(value: *const T) -> u64 {
    value as usize as u64
}

fn fd(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}

/// Reads one element into `value`; `false` when there is none.
pub(crate) fn lookup<K, V>(map: BorrowedFd<'_>, key: &K, value: *mut V) -> io::Result<bool> {
    let mut attr =
        Element { map: fd(map), pad: 0, key: pointer(key), value: pointer(value), flags: 0 };
    match bpf(BPF_MAP_LOOKUP_ELEM, &mut attr) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes one element.
pub(crate) fn update<K, V>(map: BorrowedFd<'_>, key: &K, value: *const V) -> io::Result<()> {
    let mut attr =
        Element { map: fd(map), pad: 0, key: pointer(key), value: pointer(value), flags: 0 };
    bpf(BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// Deletes one element; `false` when there was none.
pub(crate) fn delete<K>(map: BorrowedFd<'_>, key: &K) -> io::Result<bool> {
    let mut attr = Element { map: fd(map), pad: 0, key: pointer(key), value: 0, flags: 0 };
    match bpf(BPF_MAP_DELETE_ELEM, &mut attr) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The key after `key`, or the first one.
pub(crate) fn next_key<K>(map: BorrowedFd<'_>, key: Option<&K>, next: *mut K) -> io::Result<bool> {
    let key = key.map_or(0, |key| pointer(key));
    let mut attr = Element { map: fd(map), pad: 0, key, value: pointer(next), flags: 0 };
    match bpf(BPF_MAP_GET_NEXT_KEY, &mut attr) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads up to `count` elements, beginning at `cursor`, which it moves. Answers how many it read and
/// whether that was the end.
pub(crate) fn lookup_batch<K, V>(
    map: BorrowedFd<'_>,
    cursor: &mut Option<u64>,
    keys: *mut K,
    values: *mut V,
    count: usize,
) -> io::Result<(usize, bool)> {
    // The kernel keeps a position in 4 bytes for hash maps, and a key for arrays, also 4.
    let mut next = 0u64;
    let mut attr = Batch {
        in_batch: cursor.as_ref().map_or(0, |cursor| pointer(cursor)),
        out_batch: pointer(&raw mut next),
        keys: pointer(keys),
        values: pointer(values),
        count: count as u32,
        map: fd(map),
        elem_flags: 0,
        flags: 0,
    };
    let end = match bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) {
        Ok(_) => false,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
        Err(error) => return Err(error),
    };
    *cursor = Some(next);
    Ok((attr.count as usize, end))
}

/// Attaches a program, ahead of others where the hook has an order.
pub(crate) fn link_create(
    program: BorrowedFd<'_>,
    target: u32,
    kind: AttachType,
) -> io::Result<OwnedFd> {
    let first = matches!(kind, AttachType::TcxIngress | AttachType::TcxEgress);
    let mut attr = LinkCreate {
        program: fd(program),
        target,
        kind: kind as u32,
        flags: if first { BPF_F_BEFORE } else { 0 },
        relative: 0,
        pad: 0,
        expected_revision: 0,
    };
    let link = bpf(BPF_LINK_CREATE, &mut attr)?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(link as i32) })
}

/// Replaces the program of a link, atomically for packets in flight.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdate { link: fd(link), program: fd(program), flags: 0, old: 0 };
    bpf(BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// Asks the kernel about a link.
pub(crate) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    // SAFETY: plain numbers.
    let mut info: LinkInfo = unsafe { zeroed() };
    let len = size_of::<LinkInfo>() as u32;
    let mut attr = Info { fd: fd(link), len, info: pointer(&raw mut info) };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info)
}

/// Pins an object.
pub(crate) fn pin(object: impl AsFd, path: &Path) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = Object { path: pointer(name.as_ptr()), fd: fd(object.as_fd()), flags: 0 };
    bpf(BPF_OBJ_PIN, &mut attr).map(drop)
}

/// Opens a pinned object.
pub(crate) fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = Object { path: pointer(name.as_ptr()), fd: 0, flags: 0 };
    let object = bpf(BPF_OBJ_GET, &mut attr)?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(object as i32) })
}

/// The cookie of this thread's network namespace (`SO_NETNS_COOKIE`, Linux 5.14).
pub(crate) fn netns_cookie() -> io::Result<u64> {
    const SO_NETNS_COOKIE: i32 = 71;
    // A socket of any family has a namespace; this one needs no interface to be up.
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    let mut cookie = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the buffer is as long as `len` says.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// Moves this thread into the network namespace that a file stands for.
pub(crate) fn enter_netns(file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: setns takes numbers; it concerns this thread only.
    let answer = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether a path lies on a BPF file system.
pub(crate) fn is_bpffs(path: &Path) -> io::Result<bool> {
    filesystem(path).map(|magic| magic == libc::BPF_FS_MAGIC)
}

/// Whether a path lies on a cgroup2 file system.
pub(crate) fn is_cgroup2(path: &Path) -> io::Result<bool> {
    filesystem(path).map(|magic| magic == libc::CGROUP2_SUPER_MAGIC)
}

fn filesystem(path: &Path) -> io::Result<i64> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: plain numbers, filled by the call.
    let mut stat: libc::statfs = unsafe { zeroed() };
    // SAFETY: both pointers are valid for the call.
    if unsafe { libc::statfs(name.as_ptr(), &raw mut stat) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(stat.f_type as i64)
}

/// Bytes of a page.
pub(crate) fn page_size() -> u32 {
    // SAFETY: sysconf takes a number.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as u32 }
}

/// Maps `bytes` of an array, beginning at `offset`, which must be where a page begins.
pub(crate) fn map_shared(
    map: BorrowedFd<'_>,
    offset: usize,
    bytes: usize,
) -> io::Result<NonNull<u8>> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    // SAFETY: a new mapping; it keeps the map alive for itself.
    let start = unsafe {
        let anywhere = std::ptr::null_mut();
        libc::mmap(anywhere, bytes, access, libc::MAP_SHARED, map.as_raw_fd(), offset)
    };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mmap gave a null pointer"))
}

/// CPUs the kernel keeps per-CPU values for.
pub(crate) fn possible_cpus() -> io::Result<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = text.trim().rsplit([',', '-']).next().unwrap_or("0");
    last.parse::<usize>().map(|last| last + 1).map_err(io::Error::other)
}
