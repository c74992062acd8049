//! Keeps the agent small after it has read something large.
//!
//! Reading a file of 10,000 services takes many times the room that is needed afterwards. The
//! allocator of glibc keeps freed memory, and an arena of it for each thread; both must be asked
//! otherwise. Other C libraries give back by themselves.

/// What is larger than this goes back to the system as soon as it is free. 128 KiB is what glibc
/// begins with, but it raises it up to 32 MiB when it sees such a thing freed, which is just what
/// reading a large file looks like.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 256 << 10;

/// Lets all threads share their free memory, and gives back what is large at once.
pub fn keep_small() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `mallopt` has no preconditions; it only sets limits for what is allocated later.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE);
    }
}

/// Gives free memory back to the system. Takes milliseconds: not for the way of a change.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `malloc_trim` may be called at any time and from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
