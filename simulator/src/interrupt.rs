//! Ctrl-C: the first one lets a simulation stop where it can go on later, the second one ends the process.

use std::process;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

/// What a shell expects of a process that ended by SIGINT.
const EXIT_INTERRUPTED: i32 = 130;

static IS_INTERRUPTED: AtomicBool = AtomicBool::new(false);
static LISTENS: Once = Once::new();

/// Whether somebody asked to stop; from the first call on the process listens.
pub(crate) fn is_interrupted() -> bool {
    LISTENS.call_once(|| {
        // Without a handler Ctrl-C ends the process at once, which loses no more than a round.
        let _ = ctrlc::set_handler(|| {
            #[expect(
                clippy::disallowed_methods,
                reason = "asked twice; files are replaced as a whole"
            )]
            if IS_INTERRUPTED.swap(true, Ordering::Relaxed) {
                process::exit(EXIT_INTERRUPTED);
            }
        });
    });
    IS_INTERRUPTED.load(Ordering::Relaxed)
}
