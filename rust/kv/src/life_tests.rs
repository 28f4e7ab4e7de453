//! Random lives of many sequences, checked against a model that knows what every slot must hold.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use crate::index::Node;
use crate::{GroupConfig, KvConfig, KvError, KvManager};

/// Planted bugs, to show that the checks find them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Faults {
    pub(crate) skip_share: bool,
    pub(crate) window_early: bool,
    trust_hash: bool,
    publish_early: bool,
}

#[derive(Clone, Debug)]
enum Op {
    /// Start a sequence: the first tokens of one of two streams, then its own.
    Open {
        shared: usize,
        tail: Vec<i32>,
        stream: i32,
        salt: u8,
    },
    /// Reserve some tokens, write them, commit some of them; the rest is drawn anew.
    Step {
        pick: usize,
        tokens: Vec<i32>,
        keep: usize,
    },
    /// Reserve without ever committing: a step that was given up.
    Abandon {
        pick: usize,
        num_tokens: u32,
    },
    Fork {
        pick: usize,
        num_children: u64,
    },
    Release {
        pick: usize,
    },
    Reset,
}

fn op() -> impl Strategy<Value = Op> {
    let tokens = |n| prop::collection::vec(0..3i32, 0..n);
    prop_oneof![
        4 => (0..12usize, tokens(4), 0..2i32, 0..2u8)
            .prop_map(|(shared, tail, stream, salt)| Op::Open { shared, tail, stream, salt }),
        8 => (any::<usize>(), prop::collection::vec(0..3i32, 1..7), 0..8usize)
            .prop_map(|(pick, tokens, keep)| Op::Step { pick, tokens, keep }),
        1 => (any::<usize>(), 1..6u32).prop_map(|(pick, num_tokens)| Op::Abandon { pick, num_tokens }),
        2 => (any::<usize>(), 1..4u64).prop_map(|(pick, num_children)| Op::Fork { pick, num_children }),
        2 => any::<usize>().prop_map(|pick| Op::Release { pick }),
        1 => Just(Op::Reset),
    ]
}

#[derive(Clone, Debug)]
struct Life {
    config: KvConfig,
    ops: Vec<Op>,
    /// Bits of the prefix hash that are kept.
    hash_bits: u32,
}

fn life() -> impl Strategy<Value = Life> {
    let group = (prop::option::of(1..9u32), 4..24u32);
    let groups = prop::collection::vec(group, 1..4);
    let bits = prop_oneof![3 => Just(128u32), 1 => Just(3u32)];
    (groups, 1..5u32, 0..3u32, any::<u64>(), bits, prop::collection::vec(op(), 1..80)).prop_map(
        |(groups, block_size, longest_draft, hash_key, hash_bits, ops)| {
            let groups =
                groups.into_iter().map(|(window, num_blocks)| GroupConfig { window, num_blocks }).collect();
            let config =
                KvConfig { groups, block_size, longest_draft, enable_prefix_caching: true, hash_key };
            Life { config, ops, hash_bits }
        },
    )
}

/// What the model says a slot holds: a hash of everything up to and including the token.
fn value(salt: u8, tokens: &[i32]) -> u64 {
    tokens.iter().fold(u64::from(salt) + 1, |hash, &token| {
        (hash ^ token as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23)
    })
}

#[derive(Clone)]
struct Model {
    tokens: Vec<i32>,
    salt: u8,
    computed: usize,
}

struct World {
    kv: KvManager,
    block_size: usize,
    memory: Vec<Vec<u64>>,
    sequences: BTreeMap<u64, Model>,
    next_id: u64,
    publish_early: bool,
    any_fault: bool,
}

impl World {
    fn pick(&self, pick: usize) -> Option<u64> {
        self.sequences.keys().nth(pick % self.sequences.len().max(1)).copied()
    }

    fn apply(&mut self, op: &Op) -> Result<(), KvError> {
        match op {
            Op::Open { shared, tail, stream, salt } => {
                let mut tokens: Vec<i32> =
                    (0..*shared as i32).map(|i| (i * i + stream * (i / 5)) % 3).collect();
                tokens.extend(tail);
                tokens.push(0);
                let longest = self.longest_hit(&tokens, *salt);
                let hit = self.kv.open(self.next_id, &tokens, u32::MAX, &[*salt])? as usize;
                assert!(self.any_fault || hit == longest, "hit {hit}, longest {longest}");
                self.sequences.insert(self.next_id, Model { tokens, salt: *salt, computed: hit });
                self.next_id += 1;
            }
            Op::Step { pick, tokens, keep } => {
                let Some(id) = self.pick(*pick) else { return Ok(()) };
                self.step(id, tokens, *keep)?;
            }
            Op::Abandon { pick, num_tokens } => {
                let Some(id) = self.pick(*pick) else { return Ok(()) };
                let upto = self.sequences[&id].computed as u32 + num_tokens;
                // The copies are lost, so the sequence must be given up too.
                if self.reserve(id, upto)?.is_some() {
                    self.kv.check()?;
                    self.kv.release(id)?;
                    self.sequences.remove(&id);
                }
            }
            Op::Fork { pick, num_children } => {
                let Some(id) = self.pick(*pick) else { return Ok(()) };
                let children: Vec<u64> = (self.next_id..self.next_id + num_children).collect();
                self.kv.fork(id, &children)?;
                self.next_id += num_children;
                let parent = self.sequences[&id].clone();
                self.sequences.extend(children.into_iter().map(|child| (child, parent.clone())));
            }
            Op::Release { pick } => {
                let Some(id) = self.pick(*pick) else { return Ok(()) };
                assert!(self.kv.release(id)?);
                assert!(!self.kv.release(id)?, "the second release is a no-op");
                self.sequences.remove(&id);
            }
            Op::Reset => {
                self.kv.reset_prefix_cache()?;
                assert!((0..self.kv.num_groups()).all(|group| self.kv.gauges(group).unwrap().cached == 0));
            }
        }
        Ok(())
    }

    /// The longest hit by its definition, from the contents of the index alone.
    fn longest_hit(&self, tokens: &[i32], salt: u8) -> usize {
        let nodes = &self.kv.index.nodes;
        let content = |node: &Node| {
            let (mut tokens, mut root) = (vec![node.token_ids.to_vec()], node.extra.to_vec());
            let mut parent = node.parent;
            while let Some(id) = parent {
                let node = nodes.get(&id)?;
                (parent, root) = (node.parent, node.extra.to_vec());
                tokens.push(node.token_ids.to_vec());
            }
            tokens.reverse();
            Some((tokens.concat(), root))
        };
        let contents: Vec<_> = nodes.values().filter_map(|node| Some((content(node)?, node))).collect();
        let has = |len: usize, group: usize| {
            let wanted = (tokens[..len].to_vec(), vec![salt]);
            contents.iter().any(|(content, node)| *content == wanted && node.blocks[group].is_some())
        };
        let usable = |hit: &usize| {
            self.kv.config.groups.iter().enumerate().all(|(group, config)| {
                let seen = config.window.map_or(0, |window| (hit + 1).saturating_sub(window as usize));
                (seen..*hit).all(|position| has((position / self.block_size + 1) * self.block_size, group))
            })
        };
        let chained = |hit: &usize| {
            (1..=hit / self.block_size)
                .all(|blocks| (0..self.memory.len()).any(|g| has(blocks * self.block_size, g)))
        };
        (0..tokens.len()).step_by(self.block_size).rfind(|hit| chained(hit) && usable(hit)).unwrap()
    }

    /// Reserve; `None` when the pool is full, which must change nothing and must be true.
    fn reserve(&mut self, id: u64, upto: u32) -> Result<Option<Vec<crate::BlockCopy>>, KvError> {
        match self.kv.reserve(id, upto) {
            Ok(copies) => Ok(Some(copies)),
            Err(KvError::NoBlocks { group, needed, available }) => {
                let gauges = self.kv.gauges(group).unwrap();
                assert!(needed > available && available == gauges.free + gauges.cached);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn step(&mut self, id: u64, tokens: &[i32], keep: usize) -> Result<(), KvError> {
        let model = self.sequences.get_mut(&id).unwrap();
        let from = model.computed;
        model.tokens.extend(tokens);
        let upto = (from + tokens.len()).min(model.tokens.len());
        let model = model.clone();
        let Some(copies) = self.reserve(id, upto as u32)? else { return Ok(()) };
        if self.publish_early {
            self.kv.publish(id, &model.tokens, upto as u32)?;
        }
        self.kv.check()?;
        let size = self.block_size;
        for copy in copies {
            let (src, dst) = (copy.src as usize * size, copy.dst as usize * size);
            self.memory[copy.group].copy_within(src..src + size, dst);
        }
        for position in from..upto {
            for group in 0..self.memory.len() {
                let block = self.kv.table(id, group).unwrap()[position / size];
                assert!(block >= 0, "no slot for position {position}");
                self.memory[group][block as usize * size + position % size] =
                    value(model.salt, &model.tokens[..=position]);
            }
        }
        let computed = (from + keep).min(upto);
        self.kv.commit(id, &model.tokens, computed as u32)?;
        let stored = self.sequences.get_mut(&id).unwrap();
        stored.computed = computed;
        if computed < upto {
            stored.tokens.truncate(computed);
        }
        stored.tokens.push(tokens[0]);
        Ok(())
    }

    /// Every sequence reads its own tokens, at every position that its next token sees.
    fn read_back(&self) -> Result<(), String> {
        for (id, model) in &self.sequences {
            for (group, memory) in self.memory.iter().enumerate() {
                let window = self.kv.config.groups[group].window.unwrap_or(u32::MAX) as usize;
                for position in (model.computed + 1).saturating_sub(window)..model.computed {
                    let block = self.kv.table(*id, group).unwrap()[position / self.block_size];
                    let slot = block as usize * self.block_size + position % self.block_size;
                    let expected = value(model.salt, &model.tokens[..=position]);
                    if block < 0 || memory[slot] != expected {
                        return Err(format!("sequence {id} misreads position {position} of group {group}"));
                    }
                }
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), KvError> {
        self.kv.check()?;
        self.sequences.iter().try_for_each(|(id, model)| self.kv.check_tokens(*id, &model.tokens))
    }
}

/// Live it; `invariants` off leaves the reading back alone to find what is wrong.
fn run(life: &Life, faults: Faults, invariants: bool) -> Result<(), String> {
    let mut kv = KvManager::new(life.config.clone()).unwrap();
    kv.faults = faults;
    kv.index.trust_hash = faults.trust_hash;
    kv.index.hasher.mask = u128::MAX >> (128 - life.hash_bits);
    let block_size = life.config.block_size as usize;
    let slots = |group: &GroupConfig| vec![u64::MAX; group.num_blocks as usize * block_size];
    let memory = life.config.groups.iter().map(slots).collect();
    let publish_early = faults.publish_early;
    let any_fault = faults != Faults::default();
    let mut world =
        World { kv, block_size, memory, sequences: BTreeMap::new(), next_id: 0, publish_early, any_fault };
    for op in &life.ops {
        world.apply(op).or_else(|error| match error {
            KvError::Broken { .. } if !invariants => Ok(()),
            error => Err(error.to_string()),
        })?;
        if invariants {
            world.check().map_err(|error| error.to_string())?;
        }
        world.read_back()?;
    }
    for id in world.sequences.keys() {
        world.kv.release(*id).map_err(|error| error.to_string())?;
    }
    for group in 0..world.kv.num_groups() {
        let gauges = world.kv.gauges(group).unwrap();
        if gauges.free + gauges.cached != gauges.total {
            return Err(format!("idle, but {gauges:?}"));
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn random_lives_keep_every_invariant(life in life()) {
        prop_assert_eq!(run(&life, Faults::default(), true), Ok(()));
    }
}

/// How many of 300 fixed lives fail under `faults`.
fn failures(faults: Faults, invariants: bool) -> usize {
    let mut runner = TestRunner::deterministic();
    let failed =
        |life: &Life| std::panic::catch_unwind(|| run(life, faults, invariants)).is_ok_and(|r| r.is_err());
    (0..300).filter(|_| failed(&life().new_tree(&mut runner).unwrap().current())).count()
}

#[test]
fn planted_bugs_are_found() {
    assert_eq!(failures(Faults::default(), true), 0);
    let planted = [
        ("skip_share", Faults { skip_share: true, ..Faults::default() }),
        ("window_early", Faults { window_early: true, ..Faults::default() }),
        ("trust_hash", Faults { trust_hash: true, ..Faults::default() }),
        ("publish_early", Faults { publish_early: true, ..Faults::default() }),
    ];
    for (name, faults) in planted {
        for invariants in [true, false] {
            let found = failures(faults, invariants);
            assert!(found > 0, "{name} was not found (invariants {invariants})");
        }
    }
}
