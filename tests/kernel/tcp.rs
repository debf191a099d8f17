//! TCP: every way that an attempt can end.

use std::{
    io,
    net::{TcpListener, TcpStream},
};

use netaudit::model::{Direction, Outcome};

use super::pods::{Stage, ready};

#[test]
fn established_and_accepted() {
    if !ready() {
        return;
    }
    let mut stage = Stage::new();
    let pod = stage.pod("a");
    pod.run(|| {
        let listener = TcpListener::bind("127.0.0.1:8080")?;
        let _client = TcpStream::connect("127.0.0.1:8080")?;
        listener.accept()?;
        Ok(())
    });
    let flows = stage.expect(&pod, 2);
    eprintln!("{flows:#?} {:?}", stage.kernel.features());
    assert_eq!(flows[0].outcome, Outcome::Established);
}
