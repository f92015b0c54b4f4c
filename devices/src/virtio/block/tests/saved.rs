//! A disk whose guest is restored, on a file that may be another by then.

use super::*;
use crate::virtio::state::{BlockState, DeviceState};

fn block(len: usize) -> (NamedTempFile, Block) {
    let file = file(len);
    let disk = Disk::open(&options(&file)).unwrap();
    (file, Block::new("disk0".to_owned(), Arc::new(disk), BlockOptions::default()))
}

fn saved(block: &Block) -> BlockState {
    match block.save() {
        DeviceState::Block(state) => state,
        other => panic!("{other:?}"),
    }
}

fn refused(block: &mut Block, state: BlockState, field: &str) {
    let error = block.restore(&DeviceState::Block(state)).unwrap_err();
    assert_eq!((error.device.as_str(), error.field.as_str()), ("disk0", field), "{error}");
}

#[test]
fn a_disk_that_lost_what_its_guest_knows_is_refused() {
    let state = saved(&block(SIZE).1);
    assert_eq!(state.size, SIZE as u64);
    refused(&mut block(SIZE - 512).1, state, "size");
}

#[test]
fn a_disk_that_grew_meanwhile_is_news_to_its_guest() {
    let state = saved(&block(SIZE).1);
    let (_file, mut larger) = block(2 * SIZE);
    larger.restore(&DeviceState::Block(state)).unwrap();
    let now = saved(&larger);
    assert_eq!((now.size, now.resized), (2 * SIZE as u64, true));
    let (_file, mut again) = block(2 * SIZE);
    again.restore(&DeviceState::Block(now.clone())).unwrap();
    assert_eq!(saved(&again), now, "until it is told");
}

#[test]
fn blocks_stay_as_large_as_the_guest_was_told() {
    let (_file, mut block) = block(SIZE);
    let state = BlockState { physical_block: 16384, logical_block: 1024, ..saved(&block) };
    block.restore(&DeviceState::Block(state.clone())).unwrap();
    assert_eq!(saved(&block), state);
    let mut field = [0; 4];
    block.read_config(20, &mut field);
    assert_eq!(u32::from_le_bytes(field), 1024);
    block.read_config(24, &mut field);
    assert_eq!(field, [4, 0, 16, 0]);
    for (logical, physical) in [(256, 4096), (0, 0), (1000, 4096), (4096, 512), (512, 3), (1 << 17, 1 << 17)]
    {
        let state = BlockState { logical_block: logical, physical_block: physical, ..state.clone() };
        refused(&mut block, state, "logical-block");
    }
}
