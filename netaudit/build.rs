//! Embeds the eBPF programs where they have been built, so that the agent is one file.
//!
//! Without them everything else still builds; loading then says how to get them.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

fn main() {
    println!("cargo::rerun-if-env-changed=NETAUDIT_BPF_OBJECT");
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));

    let object = match env::var_os("NETAUDIT_BPF_OBJECT") {
        Some(path) => PathBuf::from(path),
        None => manifest.join("../target/bpf/netaudit.bpf.o"),
    };
    let expression = match object.canonicalize() {
        Ok(path) => {
            println!("cargo::rerun-if-changed={}", path.display());
            format!("Some(aya::include_bytes_aligned!({path:?}))")
        }
        Err(_) => {
            // A missing file would make cargo run this for every build; its directory changes when the file comes.
            let directory = object.parent().unwrap_or(Path::new("."));
            if fs::create_dir_all(directory).is_ok() {
                println!("cargo::rerun-if-changed={}", directory.display());
            }
            "None".to_owned()
        }
    };
    let source = format!(
        "/// The eBPF programs, if they were built before this crate.\n\
         static OBJECT: Option<&[u8]> = {expression};\n"
    );
    fs::write(out.join("object.rs"), source).expect("OUT_DIR is writable");
}
