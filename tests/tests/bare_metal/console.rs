//! virtio-console and virtio-rng.

use skiff_tests::machine::{Machine, Transport};

use crate::on_both;

on_both!(console_output_goes_where_it_is_sent, the_console_takes_input, randomness_comes);

fn console_output_goes_where_it_is_sent(transport: Transport) {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let console = format!("file={}", log.display());
    Machine::guest("console").transport(transport).console(console).run().passed(&["console"]);
    let wanted: String = (0..20).map(|line| format!("console line {line}\n")).collect();
    assert_eq!(std::fs::read_to_string(&log).unwrap(), wanted);
}

fn the_console_takes_input(transport: Transport) {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let machine = Machine::guest("console-echo").transport(transport);
    let machine = machine.console("stdio").serial(format!("file={}", log.display()));
    let ended = machine.answer("say something", "one two\n").run();
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    assert_eq!(ended.said("echo"), "ONE TWO");
    assert!(std::fs::read_to_string(&log).unwrap().contains("ok console-echo\n"), "{ended:#?}");
}

fn randomness_comes(transport: Transport) {
    Machine::guest("rng").transport(transport).run().passed(&["rng"]);
}
