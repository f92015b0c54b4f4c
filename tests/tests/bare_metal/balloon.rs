//! virtio-balloon. What the host sees of it is tested beside the vmm, where a running VM can be asked.

use skiff_tests::machine::{Machine, Transport};

use crate::on_both;

on_both!(pages_that_are_given_back_are_gone);

fn pages_that_are_given_back_are_gone(transport: Transport) {
    let ended = Machine::guest("balloon").transport(transport).run();
    ended.passed(&["balloon"]);
    assert_eq!(ended.said("balloon"), "gave 56");
    let ended = Machine::guest("balloon").transport(transport).flag("--balloon", "off").run();
    assert!(ended.stdout.contains("FAIL balloon: no balloon"), "{ended:#?}");
}
