//! The sentences of events and reports.

use std::fmt::Display;

use crate::{
    audit::{Finding, ViolationKey},
    model::{Direction, Protocol},
};

/// `shop/web-0 to shop/db-0 TCP/5432 (egress) passed though …`.
pub struct Sentence<'a> {
    pub source: &'a str,
    pub destination: &'a str,
    pub direction: Direction,
    pub protocol: Protocol,
    pub port: Option<u16>,
    /// What became of it: see [`fate`].
    pub fate: &'a str,
}

impl Display for Sentence<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { source, destination, direction, protocol, port, fate } = self;
        write!(f, "{source} to {destination} {protocol}")?;
        match port {
            Some(port) => write!(f, "/{port}")?,
            None => f.write_str(" on other ports")?,
        }
        write!(f, " ({direction}) {fate}")
    }
}

/// What became of it, which policy decides, and why it passed. `policy` is that of the key, perhaps cut.
pub fn fate(key: &ViolationKey, policy: &str) -> String {
    match (key.finding, key.cause) {
        (Finding::Unenforced, Some(cause)) => {
            format!("passed though {policy} denies it; cause: {}", cause.as_str())
        }
        (Finding::Unenforced, None) => format!("passed though {policy} denies it; nothing explains why"),
        (Finding::Blocked, _) => format!("was stopped, as {policy} wants it"),
        (Finding::DeniedRefused, _) => format!("came as far as a closed port though {policy} denies it"),
        (Finding::Attempted, _) => {
            format!("was tried though {policy} denies it; nothing tells what became of it")
        }
        (Finding::SuspectedBlock, _) => "is allowed, but something seems to have stopped it".to_owned(),
    }
}

/// The finding as the reason of an event.
pub const fn reason(finding: Finding) -> &'static str {
    match finding {
        Finding::Unenforced => "Unenforced",
        Finding::Blocked => "Blocked",
        Finding::DeniedRefused => "DeniedRefused",
        Finding::Attempted => "Attempted",
        Finding::SuspectedBlock => "SuspectedBlock",
    }
}

/// At most `most` bytes of `text`, and `…` as the last of them where that is not all.
pub fn cut(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(most.saturating_sub('…'.len_utf8()));
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cutting_splits_no_character() {
        assert_eq!(cut("shop", 4), "shop");
        assert_eq!(cut("shops", 4), "s…");
        assert_eq!(cut("ééééé", 8), "éé…");
        assert!((3..20).all(|most| cut("ééééééééééé", most).len() <= most));
    }

    #[test]
    fn reasons_are_the_findings_in_camel_case() {
        for finding in Finding::ALL {
            let words = finding.as_str().split('-');
            let camel: String = words.map(|word| word[..1].to_uppercase() + &word[1..]).collect();
            assert_eq!(reason(finding), camel);
        }
    }
}
