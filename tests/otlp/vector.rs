//! Vector's configuration: its program, run by Vector's own VRL, makes of every flow what OTLP tells of it.

use std::process::Output;

use super::*;

/// What becomes of lines.
fn remapped(python: &Path, program: &str, lines: &[String]) -> Result<Vec<Value>> {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/otlp/remap.py");
    let mut child = Command::new(python)
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let asked = json!({"program": program, "lines": lines}).to_string();
    child.stdin.take().context("stdin")?.write_all(asked.as_bytes())?;
    let Output { status, stdout, stderr } = child.wait_with_output()?;
    ensure!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    stdout
        .split(|byte| *byte == b'\n')
        .filter(|it| !it.is_empty())
        .map(|it| Ok(serde_json::from_slice(it)?))
        .collect()
}

/// The configuration that we ship.
fn configuration() -> Result<Value> {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/ship/vector.yaml");
    Ok(serde_saphyr::from_str(&fs::read_to_string(file)?)?)
}

#[test]
fn vectors_program_makes_of_each_flow_what_otlp_tells() -> Result<()> {
    let Some(python) = python_or_skip("Vector's program", "vrl_python") else { return Ok(()) };
    let configuration = configuration()?;
    let program = configuration["transforms"]["netaudit"]["source"].as_str().context("a program")?;
    let world = World::new(vec![deny_egress()]);
    let (world, flows) = weighed(world);
    let line = |flow: &Flow| -> Result<String> {
        let mut line = Vec::new();
        flow_line(&telling(&world, flow), &mut line);
        Ok(String::from_utf8(line)?)
    };
    let mut lines = flows.iter().map(line).collect::<Result<Vec<String>>>()?;
    // What is no flow, or only a part of one.
    let torn = &lines[0][..lines[0].len() / 2];
    let no_time = lines[0].replacen("\"time\"", "\"another\"", 1);
    let no_flows = ["", "not JSON", "5", "null", "[]", "{}", torn, &no_time].map(str::to_owned);
    lines.extend(no_flows.clone());

    let events = remapped(&python, program, &lines)?;
    assert_eq!(events.len(), lines.len());
    let (told, dropped) = events.split_at(flows.len());
    for ((event, flow), line) in told.iter().zip(&flows).zip(&lines) {
        let ours = record_of(&telling(&world, flow));
        let mut event = event.clone();
        let event = event.as_object_mut().context("an object")?;
        let time: jiff::Timestamp =
            event.remove("timestamp").context("a time")?.as_str().context("a text")?.parse()?;
        assert_eq!(u64::try_from(time.as_nanosecond())?, ours.time_unix_nano, "{line}");
        let severity = event.remove("severity").context("a severity")?;
        assert_eq!(severity.as_str(), Some(&*ours.severity_text.to_lowercase()), "{line}");
        let mut rest: Value = serde_json::from_str(line)?;
        rest.as_object_mut().context("an object")?.remove("time");
        assert_eq!(Value::Object(event.clone()), rest);
    }
    for (event, line) in dropped.iter().zip(no_flows) {
        assert!(event["dropped"].is_string(), "{line:?}: {event}");
    }
    // A program that is wrong is one that this test sees.
    assert!(remapped(&python, ". = parse_json(.message)", &lines).is_err(), "an error is not handled");
    Ok(())
}

/// What Vector's documentation asks for, as long as nobody here can run it.
#[test]
fn vectors_configuration_loses_nothing_that_it_need_not() -> Result<()> {
    let configuration = configuration()?;
    let (source, sink) = (&configuration["sources"]["netaudit_file"], &configuration["sinks"]["out"]);
    assert_eq!(source["include"], json!(["${FLOW_LOG}", "${FLOW_LOG}.1"]), "also what has been moved away");
    assert_eq!((&source["read_from"], &source["max_line_bytes"]), (&json!("beginning"), &json!(1 << 20)));
    assert_eq!(configuration["transforms"]["netaudit"]["drop_on_error"], true);
    assert_eq!(configuration["transforms"]["netaudit"]["inputs"], json!(["netaudit_file"]));
    assert_eq!(sink["inputs"], json!(["netaudit"]));
    assert_eq!(sink["acknowledgements"]["enabled"], true);
    // The least that it takes.
    assert_eq!((&sink["buffer"]["type"], &sink["buffer"]["max_size"]), (&json!("disk"), &json!(268_435_488)));
    Ok(())
}
