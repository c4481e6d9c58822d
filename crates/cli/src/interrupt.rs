//! Ctrl-C: the first one asks the command to end in order, the second one ends it at once.

use std::sync::atomic::{AtomicBool, Ordering};

/// Whether Ctrl-C was pressed, or SIGTERM or SIGHUP arrived. Signals belong to the process, and so does this.
static PRESSED: AtomicBool = AtomicBool::new(false);

/// Ctrl-C.
#[derive(Debug)]
pub(crate) struct Interrupt;

impl Interrupt {
    /// Listens for Ctrl-C from now on.
    ///
    /// # Errors
    /// When the system does not allow it.
    pub(crate) fn listen() -> anyhow::Result<()> {
        ctrlc::set_handler(|| {
            if PRESSED.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
        })?;
        Ok(())
    }

    /// Whether it was pressed.
    pub(crate) fn pressed() -> bool {
        PRESSED.load(Ordering::SeqCst)
    }
}
