//! Flow stores as people name them: directories, and buckets by URL.

use std::path::PathBuf;

use anyhow::Context as _;

use crate::store::{
    bucket::{Access, Bucket, SCHEME},
    flows::ask::Store,
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
