//! Manifests as people wrote them: where each field stands, and edits that leave everything else as it is.
//!
//! ```text
//! text ──Marks::of──▶ places ──edit──▶ Edits ──apply──▶ text
//! ```
//!
//! An edit is not believed: whoever applies it reads the new text with the program's one reader of manifests and compares what it says.

pub mod edit;
pub mod marks;

/// A path in an object that is itself at `prefix` of its document.
pub fn join(prefix: &str, path: &str) -> String {
    match (prefix, path) {
        ("", path) => path.to_owned(),
        (prefix, "") => prefix.to_owned(),
        (prefix, path) => format!("{prefix}.{path}"),
    }
}
