//! Flow stores as people name them: directories, and buckets by URL.

use std::{
    io::{self, IsTerminal as _},
    path::PathBuf,
    sync::LazyLock,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use crate::store::{
    bucket::{Access, Bucket, SCHEME},
    flows::ask::Store,
    history::parts::{Parts, Progress, Span},
};

/// How the object store of s3:// is reached. Credentials are found in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, …), by a
/// ServiceAccount's token, or from the instance.
#[derive(clap::Args)]
pub(super) struct Reach {
    /// URL of the object store of s3://, where it is not AWS [default: $AWS_ENDPOINT_URL, else that of the region]
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// The bucket's region [default: $AWS_REGION, else us-east-1]
    #[arg(long, value_name = "NAME")]
    region: Option<String>,
    /// The bucket is part of the host's name and not of the path
    #[arg(long)]
    virtual_hosted: bool,
}

/// Opens a bucket.
pub(super) fn bucket(name: &str, reach: &Reach) -> anyhow::Result<Bucket> {
    let access = Access {
        endpoint: reach.endpoint.clone(),
        region: reach.region.clone(),
        virtual_hosted: reach.virtual_hosted,
    };
    Bucket::open(name, &access).with_context(|| format!("cannot open {name}"))
}

/// Opens what is named.
pub(super) fn open(names: &[String], reach: &Reach) -> anyhow::Result<Vec<Store>> {
    let store = |name: &String| match name.starts_with(SCHEME) {
        true => bucket(name, reach).map(Store::Bucket),
        false => Ok(Store::Directory(PathBuf::from(name))),
    };
    names.iter().map(store).collect()
}

/// Finds the history of a span. Where reading it takes long, a terminal shows how far that is.
pub(super) fn history(stores: &[Store], span: Span<'_>) -> anyhow::Result<Parts> {
    LazyLock::force(&BEGUN);
    let progress: Option<Progress> = io::stderr().is_terminal().then_some(show);
    Ok(Parts::find(stores, span)?.telling(progress))
}

static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);

fn show(done: usize, all: usize) {
    if BEGUN.elapsed() >= Duration::from_secs(1) {
        // Each node's is read by itself: the last line of each goes away.
        eprint!("\r\x1b[K");
        if done < all {
            eprint!("{done} of {all} files of the history ");
        }
    }
}
