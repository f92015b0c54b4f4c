//! Block throughput from ring 3.
#![no_std]
#![no_main]
extern crate alloc;
rt::guest_main!(run);
fn run() {
    rt::println!("done");
}
