//! One test per rule of the manager.

use crate::{BlockCopy, GroupConfig, KvConfig, KvError, KvManager, PoolGauges};

fn manager(groups: &[(Option<u32>, u32)], block_size: u32, longest_draft: u32) -> KvManager {
    let groups = groups.iter().map(|&(window, num_blocks)| GroupConfig { window, num_blocks }).collect();
    let config = KvConfig { groups, block_size, longest_draft, enable_prefix_caching: true, hash_key: 7 };
    KvManager::new(config).unwrap()
}

/// Open, compute all of `tokens` in one step, and return the length of the hit.
fn compute(kv: &mut KvManager, id: u64, tokens: &[i32]) -> u32 {
    let hit = kv.open(id, tokens, u32::MAX, b"").unwrap();
    kv.reserve(id, tokens.len() as u32).unwrap();
    kv.commit(id, tokens, tokens.len() as u32).unwrap();
    kv.check().unwrap();
    kv.check_tokens(id, tokens).unwrap();
    hit
}

fn count(from: i32, n: i32) -> Vec<i32> {
    (from..from + n).collect()
}

#[test]
fn settings_out_of_range_are_refused() {
    let field = |groups: Vec<(Option<u32>, u32)>, block_size| {
        let groups =
            groups.into_iter().map(|(window, num_blocks)| GroupConfig { window, num_blocks }).collect();
        let config =
            KvConfig { groups, block_size, longest_draft: 0, enable_prefix_caching: true, hash_key: 0 };
        match KvManager::new(config) {
            Err(KvError::Config { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(field(vec![], 16), "groups");
    assert_eq!(field(vec![(None, 4)], 0), "block_size");
    assert_eq!(field(vec![(None, 0)], 16), "num_blocks");
    assert_eq!(field(vec![(None, 1 << 28)], 16), "num_blocks");
    assert_eq!(field(vec![(Some(0), 4)], 16), "window");
}

#[test]
fn blocks_come_lazily_and_all_or_nothing() {
    let mut kv = manager(&[(None, 8), (Some(4), 3)], 4, 0);
    kv.open(1, &count(0, 20), u32::MAX, b"").unwrap();
    kv.reserve(1, 5).unwrap();
    assert_eq!(kv.table(1, 0).unwrap().len(), 2);
    let error = kv.reserve(1, 13).unwrap_err();
    assert_eq!(error, KvError::NoBlocks { group: 1, needed: 2, available: 1 });
    assert_eq!(kv.gauges(0), Some(PoolGauges { total: 8, free: 6, cached: 0, used: 2 }));
    kv.reserve(1, 3).unwrap();
    assert_eq!(kv.table(1, 0).unwrap().len(), 1);
    kv.check().unwrap();
    assert_eq!(kv.commit(1, &count(0, 20), 4), Err(KvError::Range { id: 1, got: 4, low: 0, high: 3 }));
    kv.commit(1, &count(0, 20), 3).unwrap();
    assert_eq!(kv.reserve(1, 2), Err(KvError::Range { id: 1, got: 2, low: 3, high: u32::MAX }));
    assert_eq!(kv.reserve(9, 2), Err(KvError::UnknownSequence { id: 9 }));
}

#[test]
fn a_block_is_freed_behind_the_window_exactly_when_no_query_can_see_it() {
    for longest_draft in [0, 1, 5] {
        let mut kv = manager(&[(None, 20), (Some(5), 20)], 4, longest_draft);
        let tokens = count(0, 64);
        kv.open(1, &tokens, u32::MAX, b"").unwrap();
        for computed in 1..=64 {
            kv.reserve(1, computed).unwrap();
            kv.commit(1, &tokens, computed).unwrap();
            kv.check().unwrap();
            let first_seen = (computed + 1).saturating_sub(5 + longest_draft);
            let freed = kv.table(1, 1).unwrap().iter().filter(|&&block| block < 0).count() as u32;
            assert_eq!(freed, first_seen / 4, "computed {computed}");
        }
        assert!(kv.table(1, 0).unwrap().iter().all(|&block| block >= 0));
    }
}

#[test]
fn a_hit_is_a_multiple_of_the_block_size_and_leaves_a_token() {
    let mut kv = manager(&[(None, 40)], 4, 0);
    assert_eq!(compute(&mut kv, 1, &count(0, 16)), 0);
    assert_eq!(compute(&mut kv, 2, &count(0, 16)), 12);
    assert_eq!(compute(&mut kv, 3, &count(0, 17)), 16);
    assert_eq!(compute(&mut kv, 4, &count(0, 7)), 4);
    assert_eq!(compute(&mut kv, 5, &count(1, 16)), 0);
    assert_eq!(kv.open(6, &count(0, 17), 11, b"").unwrap(), 8);
    assert_eq!(kv.open(7, &[], u32::MAX, b"").unwrap(), 0);
    assert_eq!(kv.open(7, &[], u32::MAX, b""), Err(KvError::SequenceExists { id: 7 }));
}

#[test]
fn a_hit_needs_only_what_the_window_still_sees() {
    let mut kv = manager(&[(None, 20), (Some(5), 6)], 4, 0);
    let tokens = count(0, 33);
    kv.open(1, &tokens, u32::MAX, b"").unwrap();
    for computed in (4..=32).step_by(4) {
        kv.reserve(1, computed).unwrap();
        kv.commit(1, &tokens, computed).unwrap();
    }
    kv.release(1).unwrap();
    // The window pool kept the last 6 of 8 blocks; a hit of 32 tokens needs one of them.
    assert_eq!(kv.open(2, &tokens, u32::MAX, b"").unwrap(), 32);
    assert_eq!(kv.table(2, 1).unwrap()[..7], [-1; 7]);
    // At 8 tokens the window needs block 1, which is gone, and so on down to nothing.
    assert_eq!(kv.open(3, &tokens[..9], u32::MAX, b"").unwrap(), 0);
    assert_eq!(kv.open(4, &tokens[..13], u32::MAX, b"").unwrap(), 12);
    kv.check().unwrap();
}

#[test]
fn salts_do_not_share() {
    let mut kv = manager(&[(None, 20)], 2, 0);
    for (id, salt, hit) in [(1, b"a", 0), (2, b"b", 0), (3, b"a", 8)] {
        assert_eq!(kv.open(id, &count(0, 9), u32::MAX, salt).unwrap(), hit);
        kv.reserve(id, 9).unwrap();
        kv.commit(id, &count(0, 9), 9).unwrap();
    }
    kv.check().unwrap();
}

#[test]
fn a_hash_collision_is_no_hit_and_leaves_nothing_behind() {
    let mut kv = manager(&[(Some(2), 20)], 2, 0);
    kv.index.hasher.mask = 0;
    compute(&mut kv, 1, &count(0, 3));
    // Other content of the same hash is neither shared nor indexed.
    let other = count(50, 9);
    assert_eq!(kv.open(2, &other, u32::MAX, b"").unwrap(), 0);
    kv.reserve(2, 6).unwrap();
    kv.commit(2, &other, 6).unwrap();
    assert_eq!((kv.index.nodes.len(), kv.gauges(0).unwrap().used), (1, 2));
    // Once the hash is vacant again, its first block is behind the window and must not be indexed.
    kv.release(1).unwrap();
    assert_eq!(kv.reset_prefix_cache().unwrap(), 1);
    kv.reserve(2, 8).unwrap();
    kv.commit(2, &other, 8).unwrap();
    kv.check().unwrap();
    assert_eq!(kv.index.nodes.len(), 0);
}

#[test]
fn equal_content_computed_twice_ends_in_one_block() {
    let mut kv = manager(&[(None, 20), (Some(6), 20)], 4, 0);
    let tokens = count(0, 10);
    for id in [1, 2] {
        kv.open(id, &tokens, u32::MAX, b"").unwrap();
        kv.reserve(id, 10).unwrap();
    }
    assert_eq!(kv.gauges(0).unwrap().used, 6);
    for id in [1, 2] {
        kv.commit(id, &tokens, 10).unwrap();
    }
    kv.check().unwrap();
    assert_eq!(kv.gauges(0).unwrap().used, 4);
    assert_eq!(kv.table(1, 0).unwrap()[..2], kv.table(2, 0).unwrap()[..2]);
}

#[test]
fn a_fork_copies_the_partial_block_once_per_branch_and_group() {
    let mut kv = manager(&[(None, 20), (Some(4), 20)], 4, 0);
    compute(&mut kv, 1, &count(0, 6));
    kv.fork(1, &[2, 3]).unwrap();
    kv.check().unwrap();
    assert_eq!(kv.gauges(0).unwrap().used, 2);
    let partial: Vec<i32> = (0..2).map(|group| kv.table(1, group).unwrap()[1]).collect();
    for id in [2, 1] {
        let copies = kv.reserve(id, 7).unwrap();
        let dst = |group| kv.table(id, group).unwrap()[1];
        let expected = [0, 1].map(|group| BlockCopy { group, src: partial[group], dst: dst(group) });
        assert_eq!(copies, expected);
        assert_eq!(kv.fork(id, &[8]), Err(KvError::WritesPending { id }));
        kv.commit(id, &count(0, 7), 7).unwrap();
        assert_eq!(kv.reserve(id, 8).unwrap(), []);
        kv.check().unwrap();
    }
    // The last owner writes in place.
    assert_eq!(kv.reserve(3, 7).unwrap(), []);
    assert_eq!(kv.fork(7, &[8]), Err(KvError::UnknownSequence { id: 7 }));
    kv.commit(3, &count(0, 7), 7).unwrap();
    assert_eq!(kv.fork(3, &[8, 8]), Err(KvError::SequenceExists { id: 8 }));
    assert_eq!(kv.fork(3, &[1]), Err(KvError::SequenceExists { id: 1 }));
    kv.check().unwrap();
}

#[test]
fn eviction_takes_the_oldest_chain_from_its_end() {
    let mut kv = manager(&[(None, 8), (Some(3), 8)], 2, 0);
    compute(&mut kv, 1, &count(0, 8));
    compute(&mut kv, 2, &count(50, 8));
    kv.release(1).unwrap();
    kv.release(2).unwrap();
    assert_eq!(kv.gauges(0), Some(PoolGauges { total: 8, free: 0, cached: 8, used: 0 }));
    compute(&mut kv, 3, &count(90, 3));
    kv.release(3).unwrap();
    assert_eq!(kv.open(4, &count(0, 9), u32::MAX, b"").unwrap(), 4);
    assert_eq!(kv.open(5, &count(50, 9), u32::MAX, b"").unwrap(), 8);
    kv.check().unwrap();
}

#[test]
fn a_reset_forgets_what_nobody_uses() {
    let mut kv = manager(&[(None, 12), (Some(3), 12)], 2, 0);
    compute(&mut kv, 1, &count(0, 8));
    compute(&mut kv, 2, &count(50, 8));
    kv.release(1).unwrap();
    assert_eq!(kv.reset_prefix_cache().unwrap(), 4 + 4 + 3);
    kv.check().unwrap();
    assert_eq!(kv.open(3, &count(0, 9), u32::MAX, b"").unwrap(), 0);
    // Sequence 2 still holds its blocks, the window group's last one among them.
    assert_eq!(kv.open(4, &count(50, 9), u32::MAX, b"").unwrap(), 8);
}

#[test]
fn without_prefix_caching_every_block_is_freed() {
    let groups = vec![GroupConfig { window: None, num_blocks: 8 }];
    let config =
        KvConfig { groups, block_size: 2, longest_draft: 0, enable_prefix_caching: false, hash_key: 7 };
    let mut kv = KvManager::new(config).unwrap();
    assert_eq!(compute(&mut kv, 1, &count(0, 8)), 0);
    assert_eq!(compute(&mut kv, 2, &count(0, 8)), 0);
    kv.release(1).unwrap();
    kv.release(2).unwrap();
    assert_eq!(kv.gauges(0), Some(PoolGauges { total: 8, free: 8, cached: 0, used: 0 }));
}

#[test]
fn peak_blocks_is_the_tight_bound() {
    for (window, block_size, draft, chunk) in
        [(1, 1, 0, 1), (5, 4, 0, 1), (8, 4, 0, 3), (17, 16, 2, 7), (3, 5, 1, 9)]
    {
        let mut kv = manager(&[(Some(window), 100)], block_size, draft);
        let mut most = 0;
        for start in 1..=block_size {
            let id = u64::from(start);
            let tokens = vec![start as i32; 100];
            kv.open(id, &tokens, 0, b"").unwrap();
            let mut computed = 0;
            while computed + chunk < 100 {
                let upto = if computed == 0 { start } else { computed + chunk };
                kv.reserve(id, upto).unwrap();
                if computed > 0 {
                    most = most.max(kv.held_blocks(id, 0));
                }
                kv.commit(id, &tokens, upto).unwrap();
                computed = upto;
            }
            kv.release(id).unwrap();
        }
        assert_eq!(most, kv.peak_blocks(0, 100, chunk), "window {window}, block_size {block_size}");
    }
}
