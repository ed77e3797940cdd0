use std::time::Duration;
use std::{hint, thread};

/// Between two looks at something: first at once, then others may have the core, then it is idle.
pub(crate) fn pause(rounds: u32) {
    match rounds {
        0..64 => hint::spin_loop(),
        64..2048 => thread::yield_now(),
        _ => thread::sleep(Duration::from_micros(50)),
    }
}
