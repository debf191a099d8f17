//! The driver: runs real clients in pods, on the node and on the internet, and keeps the ledger.

use std::{
    process::Output,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};

use super::world::World;
use crate::{
    account::ledger::{Entry, Expected},
    lab::{Launch, Place},
};

/// How long one attempt may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Drives attempts, one after another, and writes down what each must look like.
pub struct Driver<'w> {
    pub world: &'w World,
    pub tools: &'w crate::tools::Tools,
    pub ledger: Vec<Entry>,
}

impl Driver<'_> {
    /// Runs `launch` in `place`; `shows` must appear in its output (where it is not empty), whatever its exit status.
    pub fn attempt(
        &mut self,
        what: &str,
        place: &Place,
        launch: &Launch,
        shows: &str,
        flows: &[Expected],
    ) -> Result<()> {
        let from = SystemTime::now();
        let output = launch.run(place, LIMIT).with_context(|| what.to_owned())?;
        let until = SystemTime::now();
        ensure!(
            text(&output).contains(shows),
            "{what}: expected {shows:?} in its output ({}):\n{}",
            output.status,
            text(&output)
        );
        self.ledger.extend(flows.iter().flat_map(|flow| flow.entries(what, from, until)));
        Ok(())
    }

    /// An HTTP or HTTPS request by curl, which must end with this status.
    pub fn curl(&mut self, place: &Place, url: &str, status: u16, flows: &[Expected]) -> Result<()> {
        self.curl_with(place, &[], url, &format!("status={status}"), flows)
    }

    /// A request that gets a TCP connection to something that is no HTTP server.
    pub fn curl_connects(&mut self, place: &Place, url: &str, flows: &[Expected]) -> Result<()> {
        self.curl_with(place, &[], url, "connects=1", flows)
    }

    /// A request to a port where nobody listens.
    pub fn curl_refused(&mut self, place: &Place, url: &str, flows: &[Expected]) -> Result<()> {
        self.curl_with(place, &[], url, "exit=7", flows)
    }

    /// A request with more arguments for curl.
    pub fn curl_with(
        &mut self,
        place: &Place,
        arguments: &[&str],
        url: &str,
        shows: &str,
        flows: &[Expected],
    ) -> Result<()> {
        let format = "connects=%{num_connects} status=%{http_code} exit=%{exitcode}";
        let mut all = vec!["-sk", "-o", "/dev/null", "-m", "5", "-w", format];
        all.extend(arguments);
        all.push(url);
        self.attempt(&format!("curl {url}"), place, &Launch::new("curl", all), shows, flows)
    }

    /// A TCP connection and nothing else, as a TCP probe makes it. `target` is `address/port`.
    pub fn tcp_probe(&mut self, place: &Place, target: &str, flows: &[Expected]) -> Result<()> {
        let script = format!("exec 3<>/dev/tcp/{target} && echo open");
        self.attempt(
            &format!("TCP probe {target}"),
            place,
            &Launch::new("bash", ["-c", &script]),
            "open",
            flows,
        )
    }

    /// One datagram through a connected socket. `target` is `address/port`.
    pub fn datagram(&mut self, place: &Place, target: &str, flows: &[Expected]) -> Result<()> {
        let script = format!("echo jobs:1:c > /dev/udp/{target} && echo sent");
        self.attempt(
            &format!("datagram {target}"),
            place,
            &Launch::new("bash", ["-c", &script]),
            "sent",
            flows,
        )
    }

    /// One datagram through a socket that is not connected.
    pub fn unconnected_datagram(
        &mut self,
        place: &Place,
        ip: &str,
        port: u16,
        flows: &[Expected],
    ) -> Result<()> {
        let script = "import socket, sys\n\
                      s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
                      s.sendto(b'x', (sys.argv[1], int(sys.argv[2])))\n\
                      print('sent')\n";
        let port = port.to_string();
        let launch = Launch::new("/usr/bin/python3", ["-c", script, ip, &port]);
        self.attempt(&format!("unconnected datagram {ip}/{port}"), place, &launch, "sent", flows)
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}
