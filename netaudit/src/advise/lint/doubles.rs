//! NA025: documents that are one object, of which the API server keeps one.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Code, Manifests, What,
    world::{Out, World},
};
use crate::cluster::{Kind, Object, ObjectKey};

pub(super) fn check(world: &World<'_>, out: &mut Out) {
    for (key, items) in doubles(world.manifests) {
        let message = format!(
            "{} documents are {key}, and the one that is applied last replaces the others: keep one, or check what belongs together \
             by itself",
            items.len()
        );
        for item in items.into_iter().skip(1) {
            match world.options.is_partial {
                true => out.note(Code::DefinedTwice, item, "metadata.name", message.clone()),
                false => out.find(Code::DefinedTwice, item, "metadata.name", message.clone()),
            }
        }
    }
}

/// The objects that are there more than once, by their positions among the items.
pub fn doubled(manifests: &Manifests) -> BTreeSet<usize> {
    doubles(manifests).into_values().flatten().collect()
}

fn doubles(manifests: &Manifests) -> BTreeMap<ObjectKey, Vec<usize>> {
    let mut by_key: BTreeMap<ObjectKey, Vec<usize>> = BTreeMap::new();
    for (item, it) in manifests.items.iter().enumerate() {
        let What::Object(object) = &it.what else { continue };
        let matters = |kind: Kind| kind.is_policy() || matches!(kind, Kind::Namespace | Kind::Service);
        if !matches!(object, Object::Broken(_))
            && let Some(key) = object.key().filter(|it| matters(it.kind))
        {
            by_key.entry(key).or_default().push(item);
        }
    }
    by_key.retain(|_, items| items.len() > 1);
    by_key
}
