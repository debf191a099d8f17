//! Where objects come from: manifest files and the API server. Both end in the same index.

pub mod convert;
mod convert_fields;
mod convert_policy;
#[cfg(test)]
mod convert_tests;
pub mod manifests;
mod manifests_text;
