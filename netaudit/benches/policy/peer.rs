//! The other side: a program that drives kube-network-policies' engine, which `cargo xtask bench policy` builds.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, BufWriter, Write as _},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use serde_json::json;

use crate::world::{Flow, World};

/// The program, with a cluster loaded.
pub struct Peer {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// Whether each flow may pass, as it says.
    pub verdicts: Vec<bool>,
}

impl Peer {
    /// Starts the program on this cluster and these flows, which it reads from files in `directory`.
    pub fn start(program: &Path, directory: &Path, world: World, flows: &[Flow]) -> Self {
        let (objects, list) = (directory.join("objects.jsonl"), directory.join("flows.json"));
        let mut file = BufWriter::new(File::create(&objects).expect("a file in the target directory"));
        for object in world.objects() {
            writeln!(file, "{object}").expect("room in the target directory");
        }
        file.flush().expect("room in the target directory");
        let flows: Vec<_> = flows
            .iter()
            .map(|flow| {
                json!({"source": flow.source, "destination": flow.destination,
            "protocol": flow.protocol.as_str(), "port": flow.port})
            })
            .collect();
        std::fs::write(&list, json!(flows).to_string()).expect("room in the target directory");
        let mut child = Command::new(program)
            .args([&objects, &list])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the peer's program starts");
        let (orders, answers) = child.stdin.take().zip(child.stdout.take()).expect("both are piped");
        let mut answers = BufReader::new(answers);
        let verdicts = answer(&mut answers);
        Self { child, orders, answers, verdicts }
    }

    /// Nanoseconds of one flow, from one turn of all.
    pub fn round(&mut self) -> f64 {
        self.orders.write_all(b"\n").expect("the peer runs");
        answer(&mut self.answers)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Not all that it has is worth the wait of an orderly end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn answer<T: serde::de::DeserializeOwned>(from: &mut BufReader<ChildStdout>) -> T {
    let mut line = String::new();
    from.read_line(&mut line).expect("the peer runs");
    serde_json::from_str(&line).expect("the peer answers; what went wrong stands above")
}
