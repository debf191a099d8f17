//! Faults in words.

use std::error::Error;

/// A fault with its causes, each once: the texts of some libraries name only the outermost, those of others all.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let words = inner.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_is_named_once() {
        let error = anyhow::anyhow!("refused").context("cannot connect").context("cannot ask");
        assert_eq!(with_causes(error.as_ref()), "cannot ask: cannot connect: refused");
        let error = anyhow::anyhow!("refused").context("cannot ask: refused");
        assert_eq!(with_causes(error.as_ref()), "cannot ask: refused");
    }
}
