//! How much is told in an interval, so that a flood of one kind of record does not push the others out of the ring.

/// How much was told in the running interval.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Rate {
    interval: u32,
    count: u32,
}

/// An interval is two to the power of this many ticks: 1.07 seconds.
const INTERVAL_SHIFT: u32 = 10;

impl Rate {
    /// One that begins now, with one told.
    #[inline(always)]
    pub fn first(now: u32) -> Self {
        Self { interval: now >> INTERVAL_SHIFT, count: 1 }
    }

    /// Counts one more, and says whether that is more than `most`.
    ///
    /// # Safety
    ///
    /// `rate` must be a value of a map. A program that comes between makes it one more or less.
    #[inline(always)]
    pub unsafe fn is_over(rate: *mut Self, now: u32, most: u32) -> bool {
        let interval = now >> INTERVAL_SHIFT;
        // SAFETY: by contract.
        unsafe {
            if (*rate).interval != interval {
                *rate = Self { interval, count: 0 };
            }
            (*rate).count += 1;
            (*rate).count > most
        }
    }
}
