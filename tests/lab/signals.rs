//! Ctrl-C and SIGTERM: every live run is removed before the process ends.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicI32, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result};

use super::run::remove_paths;

/// Runs that live now: directory and cgroup.
static LIVE: Mutex<Vec<(PathBuf, PathBuf)>> = Mutex::new(Vec::new());
/// The end of a pipe that the handler writes to; −1 before it is installed.
static WAKE: AtomicI32 = AtomicI32::new(-1);
/// What the process exits with; 128 + the signal's number where negative.
static STATUS: AtomicI32 = AtomicI32::new(-1);
static INSTALLED: OnceLock<Result<(), String>> = OnceLock::new();

/// Makes Ctrl-C and SIGTERM end the process with `status`, for a run that waits for exactly that.
pub fn exit_status_on_interrupt(status: u8) {
    STATUS.store(i32::from(status), Ordering::Relaxed);
}

/// From now on a signal removes this run.
pub fn register(directory: &Path, cgroup: &Path) -> Result<()> {
    INSTALLED
        .get_or_init(|| install().map_err(|error| error.to_string()))
        .clone()
        .map_err(anyhow::Error::msg)
        .context("watching for signals")?;
    live().push((directory.to_owned(), cgroup.to_owned()));
    Ok(())
}

/// The run takes care of itself again.
pub fn unregister(directory: &Path) {
    live().retain(|(known, _)| known != directory);
}

fn live() -> std::sync::MutexGuard<'static, Vec<(PathBuf, PathBuf)>> {
    LIVE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn install() -> io::Result<()> {
    let mut ends = [0; 2];
    // SAFETY: the kernel writes two descriptors into an array of two.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    WAKE.store(ends[1], Ordering::Relaxed);
    let read = ends[0];
    thread::Builder::new().name("lab-signals".to_owned()).spawn(move || wait_and_remove(read))?;
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler only loads an atomic and writes to a pipe, which is allowed in a handler.
        if unsafe { libc::signal(signal, on_signal as *const () as libc::sighandler_t) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

extern "C" fn on_signal(signal: i32) {
    let byte = signal as u8;
    // SAFETY: writes one byte from the stack to the pipe's descriptor.
    unsafe { libc::write(WAKE.load(Ordering::Relaxed), std::ptr::from_ref(&byte).cast(), 1) };
}

fn wait_and_remove(pipe: i32) {
    let mut signal = 0_u8;
    // SAFETY: reads one byte into one byte; repeated where a signal interrupted the call.
    while unsafe { libc::read(pipe, std::ptr::from_mut(&mut signal).cast(), 1) } != 1 {}
    eprintln!("lab: interrupted, cleaning up");
    for (directory, cgroup) in live().drain(..) {
        if let Err(error) = remove_paths(&directory, &cgroup) {
            eprintln!("lab: {error:#}; the next run tries again");
        }
    }
    let status = match STATUS.load(Ordering::Relaxed) {
        -1 => 128 + i32::from(signal),
        status => status,
    };
    // SAFETY: ends the process at once; the main thread may be anywhere and must not run its drops beside this thread.
    unsafe { libc::_exit(status) }
}
