//! The bare-metal tests.

#![no_std]
#![no_main]

extern crate alloc;

use rt::println;

rt::guest_main!(run);

fn run() {
    println!("hello {}", rt::pvh::cmdline());
    println!("khz {}", rt::clock::khz());
    println!("done");
}
