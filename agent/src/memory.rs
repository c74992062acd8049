//! Keeps the agent small after it has read something large.
//!
//! Reading a file of 10,000 services takes many times the room that is needed afterwards. The
//! allocator of glibc keeps freed memory, and an arena of it for each thread; both must be asked
//! otherwise. Other C libraries give back by themselves.

/// Lets all threads share their free memory.
pub fn keep_small() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `mallopt` has no preconditions; it only sets a limit for arenas made later.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
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
