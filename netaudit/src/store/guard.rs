//! Decoding of what may be damaged, or made to do harm.
//!
//! Libraries that decode promise errors. Where one panics all the same, that is a fault of one file: whoever reads a thousand
//! of them, or writes a store, goes on.

use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::Context as _;
use arrow::{array::RecordBatch, error::ArrowError};

/// What decoding gives, or the error that it is, where it gave up instead.
///
/// # Errors
///
/// It fails, or panics: then the panic's own words are on stderr.
pub fn guarded<T>(decode: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    // Whatever is half done in it is never looked at again.
    catch_unwind(AssertUnwindSafe(decode)).unwrap_or_else(|_| {
        Err(anyhow::anyhow!("it is damaged, and what decodes it gave up at something that it never expected"))
    })
}

/// The next batch of a file; `None` after the last one.
///
/// # Errors
///
/// It is damaged.
pub fn next_batch(
    batches: &mut impl Iterator<Item = Result<RecordBatch, ArrowError>>,
) -> anyhow::Result<Option<RecordBatch>> {
    guarded(|| batches.next().transpose().context("a damaged row group"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decoder_that_gives_up_is_an_error_of_its_file() {
        let error = guarded(|| -> anyhow::Result<()> { panic!("of a decoder, on purpose") }).unwrap_err();
        assert!(error.to_string().contains("it is damaged"), "{error}");
        let error = guarded(|| -> anyhow::Result<()> { anyhow::bail!("plainly") }).unwrap_err();
        assert_eq!(error.to_string(), "plainly");
        assert_eq!(guarded(|| Ok(7)).unwrap(), 7);
    }
}
