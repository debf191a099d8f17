//! Where `netaudit why` finds a flow: in flow logs and flow stores.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::store::flows::{
    ask::{Among, Columns, Store, scan},
    filter::Filter,
    row::Rows,
};

/// The line of the flow, and where it stands.
pub(super) fn find(id: &str, files: &[PathBuf], stores: &[Store]) -> anyhow::Result<(String, String)> {
    if !stores.is_empty()
        && let Some(line) = in_stores(id, stores)?
    {
        return Ok(("the flow store".to_owned(), line));
    }
    let mut seen = Seen::default();
    for path in files {
        let name = path.display().to_string();
        let found = if path == Path::new("-") {
            find_in(id, &name, io::stdin().lock(), &mut seen)
        } else {
            let file = File::open(path).with_context(|| format!("cannot open the flow log {name}"))?;
            find_in(id, &name, BufReader::new(file), &mut seen)
        };
        if let Some((number, line)) = found.with_context(|| format!("cannot read the flow log {name}"))? {
            return Ok((format!("{name}:{number}"), line));
        }
    }
    let names =
        |paths: &[PathBuf]| -> Vec<String> { paths.iter().map(|path| path.display().to_string()).collect() };
    if files.is_empty() {
        let names: Vec<String> = stores.iter().map(ToString::to_string).collect();
        bail!("no flow {id} in {}", names.join(", "));
    }
    let files = names(files);
    let torn = match seen.torn.as_slice() {
        [] => String::new(),
        places => format!("; torn or no JSON, though it holds the id: {}", places.join(", ")),
    };
    bail!("no flow {id} among the {} lines of {}{torn}", seen.lines, files.join(", "))
}

/// What was seen on the way.
#[derive(Default)]
struct Seen {
    lines: usize,
    /// Where lines that cannot be read hold the id as a text.
    torn: Vec<String>,
}

/// How files begin that were compressed, as rotation does it, and what reads them.
const COMPRESSED: [(&[u8], &str, &str); 2] =
    [(&[0x1f, 0x8b], "gzip", "zcat"), (&[0x28, 0xb5, 0x2f, 0xfd], "zstd", "zstdcat")];

/// Lines that hold the id anywhere are few, and only they are parsed. A line that is no JSON is somebody else's.
fn find_in(
    id: &str,
    name: &str,
    mut lines: impl BufRead,
    seen: &mut Seen,
) -> anyhow::Result<Option<(usize, String)>> {
    let start = lines.fill_buf()?;
    if let Some((_, how, tool)) = COMPRESSED.iter().find(|(magic, ..)| start.starts_with(magic)) {
        bail!("it is compressed ({how}): {tool} {name} | netaudit why {id} --flow-log -");
    }
    let quoted = format!("\"{id}\"");
    for (number, line) in (1..).zip(lines.split(b'\n')) {
        let line = line?;
        seen.lines += 1;
        let line = String::from_utf8_lossy(&line);
        if !line.contains(id) {
            continue;
        }
        match serde_json::from_str::<Value>(&line) {
            Ok(value) if value.get("flow_id").and_then(Value::as_str) == Some(id) => {
                return Ok(Some((number, line.into_owned())));
            }
            Err(_) if line.contains(&quoted) => seen.torn.push(format!("{name}:{number}")),
            _ => {}
        }
    }
    Ok(None)
}

/// A flow of a store, as the flow log has it.
fn in_stores(id: &str, stores: &[Store]) -> anyhow::Result<Option<String>> {
    let parts = id.rsplit_once('-').and_then(|(run, number)| Some((run.to_owned(), number.parse().ok()?)));
    let flow = parts.with_context(|| format!("{id:?} is no flow id: RUN-NUMBER is expected"))?;
    let filter = Filter { flow: Some(flow), ..Filter::default() };
    let mut found = None;
    let scanned = scan(stores, Among::All, &filter, Columns::All, &|_, _| {}, &mut |batch| {
        if let Some(batch) = batch.filter(|batch| batch.num_rows() > 0) {
            found = Some(serde_json::to_string(&Rows::new(&batch).line(0)?)?);
            return Ok(ControlFlow::Break(()));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    if found.is_none() {
        for (path, reason) in &scanned.unreadable {
            eprintln!("netaudit: {} cannot be read, the flow may be in it: {reason}", path.display());
        }
    }
    Ok(found)
}
