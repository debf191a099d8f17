use super::{
    selftest::{Result, Trial},
    *,
};

fn hook(program: &str, absent: Option<&str>) -> Hook {
    Hook {
        program: program.to_owned(),
        hook: hook_of(program),
        attached: absent.is_none(),
        absent: absent.map(str::to_owned),
        runs: 0,
        nanoseconds: None,
    }
}

fn all_hooks() -> Vec<Hook> {
    let names: std::collections::BTreeSet<&str> =
        SENSORS.iter().flat_map(|it| it.programs).copied().collect();
    names.into_iter().map(|it| hook(it, None)).collect()
}

fn all_trials() -> Vec<(Trial, Result)> {
    Trial::ALL.map(|it| (it, Result::Works)).into()
}

/// The states of the sensors that a trial is for.
fn states(trial: Trial, hooks: &[Hook], trials: &[(Trial, Result)]) -> Vec<State> {
    let of_trial = SENSORS.iter().filter(|it| it.shown_by.contains(&trial));
    of_trial.map(|it| judge(*it, hooks, trials).state).collect()
}

#[test]
fn every_sensor_names_programs_that_have_a_hook_and_every_trial_shows_one() {
    for sensor in SENSORS {
        assert!(sensor.shown_by.is_empty() || !sensor.programs.is_empty(), "{}", sensor.what);
        assert!(sensor.programs.iter().all(|it| hook_of(it) != "?"), "{}", sensor.what);
    }
    let is_used = |trial: &Trial| SENSORS.iter().any(|it| it.shown_by.contains(trial));
    assert!(Trial::ALL.iter().all(is_used), "a trial that shows nothing");
}

#[test]
fn what_is_attached_and_seen_works() {
    for sensor in SENSORS {
        let state = judge(*sensor, &all_hooks(), &all_trials()).state;
        match (sensor.programs.is_empty(), sensor.shown_by.is_empty()) {
            (true, _) => assert_eq!(state, State::Unobservable, "{}", sensor.what),
            (false, false) => assert_eq!(state, State::Works, "{}", sensor.what),
            (false, true) => assert!(matches!(state, State::Untried(_)), "{}: {state:?}", sensor.what),
        }
    }
}

#[test]
fn a_hook_that_is_missing_breaks_what_needs_it_and_nothing_else() {
    let mut hooks = all_hooks();
    hooks.retain(|it| it.program != "on_sent");
    hooks.push(hook("on_sent", Some("too old")));
    let connected = states(Trial::UdpConnected, &hooks, &all_trials());
    assert_eq!(connected, [State::Broken("no tp_btf/sock_send_length: too old".to_owned())]);
    assert!(states(Trial::Udp4, &hooks, &all_trials()).iter().all(|it| *it == State::Works));
}

#[test]
fn what_was_made_and_not_seen_is_broken_and_what_could_not_be_made_is_not() {
    let with = |trial, result: Result| -> Vec<(Trial, Result)> {
        all_trials()
            .into_iter()
            .map(|(it, was)| (it, if it == trial { result.clone() } else { was }))
            .collect()
    };
    let unseen = with(Trial::Refused, Result::Unseen("no flow".to_owned()));
    assert!(matches!(states(Trial::Refused, &all_hooks(), &unseen)[..], [State::Broken(_)]));
    let no_v6 = with(Trial::Tcp6, Result::NotMade("no IPv6".to_owned()));
    assert!(states(Trial::Tcp6, &all_hooks(), &no_v6).iter().all(|it| matches!(it, State::WorksInPart(_))));
    let old = with(Trial::OldListener, Result::NotMade("no port".to_owned()));
    assert!(matches!(states(Trial::OldListener, &all_hooks(), &old)[..], [State::Untried(_)]));
}
