//! Two accounts of the same traffic: what a driver did and what netaudit said, and the comparison of both.

pub mod batchivo;
pub mod compare;
pub mod ledger;
pub mod record;
