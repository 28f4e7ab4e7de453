//! The blocks of one KV group: free list, reference counts, and the order in which cached blocks go.

use std::collections::BTreeMap;

use crate::error::KvError;
use crate::index::NodeId;

/// How many blocks of a pool are where; free + cached + used == total.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolGauges {
    /// All blocks.
    pub total: u32,
    /// Blocks in the free list.
    pub free: u32,
    /// Blocks that no sequence names but whose content can be shared.
    pub cached: u32,
    /// Blocks that at least one sequence names.
    pub used: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Block {
    ref_count: u32,
    /// The indexed content it holds.
    node: Option<NodeId>,
    /// Its place in `lru` while cached.
    tick: u64,
}

/// The blocks of one KV group.
#[derive(Debug)]
pub(crate) struct Pool {
    group: usize,
    blocks: Vec<Block>,
    free: Vec<u32>,
    /// Cached blocks by the time they lost their last owner.
    lru: BTreeMap<u64, u32>,
    tick: u64,
}

impl Pool {
    pub(crate) fn new(group: usize, num_blocks: u32) -> Self {
        let blocks = vec![Block::default(); num_blocks as usize];
        Self { group, blocks, free: (0..num_blocks).rev().collect(), lru: BTreeMap::new(), tick: 0 }
    }

    pub(crate) fn gauges(&self) -> PoolGauges {
        let (total, free, cached) = (self.blocks.len() as u32, self.free.len() as u32, self.lru.len() as u32);
        PoolGauges { total, free, cached, used: total - free - cached }
    }

    /// Blocks that an allocation can have: free ones and, by eviction, cached ones.
    pub(crate) fn available(&self) -> u32 {
        (self.free.len() + self.lru.len()) as u32
    }

    fn block(&self, id: i64) -> Result<&Block, KvError> {
        let foreign = KvError::ForeignBlock { group: self.group, block: id, total: self.blocks.len() as u32 };
        usize::try_from(id).ok().and_then(|index| self.blocks.get(index)).ok_or(foreign)
    }

    fn block_mut(&mut self, id: u32) -> Result<&mut Block, KvError> {
        self.block(id.into())?;
        Ok(&mut self.blocks[id as usize])
    }

    pub(crate) fn ref_count(&self, id: i32) -> Result<u32, KvError> {
        Ok(self.block(id.into())?.ref_count)
    }

    pub(crate) fn node(&self, id: i32) -> Result<Option<NodeId>, KvError> {
        Ok(self.block(id.into())?.node)
    }

    /// Take a free block as its only owner; `None` when the free list is empty.
    pub(crate) fn take(&mut self) -> Option<u32> {
        let id = self.free.pop()?;
        self.blocks[id as usize].ref_count = 1;
        Some(id)
    }

    /// The cached block that nobody has used for longest, and its node.
    pub(crate) fn oldest_cached(&self) -> Option<(u32, NodeId)> {
        let id = *self.lru.values().next()?;
        Some((id, self.blocks[id as usize].node?))
    }

    pub(crate) fn cached(&self) -> Vec<(u32, NodeId)> {
        self.lru.values().filter_map(|&id| Some((id, self.blocks[id as usize].node?))).collect()
    }

    /// Become one more owner of a used or cached block.
    pub(crate) fn share(&mut self, id: u32) -> Result<(), KvError> {
        let block = self.block_mut(id)?;
        block.ref_count += 1;
        let (first, tick) = (block.ref_count == 1, block.tick);
        if first && self.lru.remove(&tick).is_none() {
            let detail = format!("free block {id} of KV group {} was shared", self.group);
            return Err(KvError::Broken { invariant: "B2", detail });
        }
        Ok(())
    }

    /// Give up one ownership. The last one sends the block to the cached or to the free blocks.
    pub(crate) fn release(&mut self, id: i32) -> Result<(), KvError> {
        if self.block(id.into())?.ref_count == 0 {
            return Err(KvError::DoubleFree { group: self.group, block: id.into() });
        }
        let id = id as u32;
        let tick = self.tick;
        let block = self.block_mut(id)?;
        block.ref_count -= 1;
        if block.ref_count > 0 {
            return Ok(());
        }
        if block.node.is_some() {
            block.tick = tick;
            self.tick += 1;
            self.lru.insert(tick, id);
        } else {
            self.free.push(id);
        }
        Ok(())
    }

    /// Record that a used block holds the content of `node`.
    pub(crate) fn register(&mut self, id: i32, node: NodeId) -> Result<(), KvError> {
        self.block(id.into())?;
        self.blocks[id as usize].node = Some(node);
        Ok(())
    }

    /// Record that a block's content is indexed no more. A cached block becomes free.
    pub(crate) fn unregister(&mut self, id: u32) -> Result<(), KvError> {
        let block = self.block_mut(id)?;
        let (cached, tick) = (block.ref_count == 0 && block.node.is_some(), block.tick);
        block.node = None;
        if cached {
            self.lru.remove(&tick);
            self.free.push(id);
        }
        Ok(())
    }

    /// Verify B1 to B3 given how many tables name each block.
    pub(crate) fn check(&self, owners: &[u32]) -> Result<(), KvError> {
        let broken = |invariant, what: &str, id: usize| {
            let block = &self.blocks[id];
            let detail =
                format!("{what}: block {id} of KV group {}: {block:?}, owners {}", self.group, owners[id]);
            Err(KvError::Broken { invariant, detail })
        };
        let mut lists = vec![0u32; self.blocks.len()];
        for &id in self.free.iter().chain(self.lru.values()) {
            lists[id as usize] += 1;
        }
        for (id, block) in self.blocks.iter().enumerate() {
            if block.ref_count != owners[id] {
                return broken("B3", "reference count", id);
            }
            if lists[id] != u32::from(block.ref_count == 0) {
                return broken("B2", "lists that hold it", id);
            }
        }
        if let Some(&id) = self.free.iter().find(|&&id| self.blocks[id as usize].node.is_some()) {
            return broken("B2", "free but indexed", id as usize);
        }
        if let Some((_, &id)) = self.lru.iter().find(|&(tick, &id)| {
            self.blocks[id as usize].tick != *tick || self.blocks[id as usize].node.is_none()
        }) {
            return broken("B2", "cached but not indexed", id as usize);
        }
        let used = self.blocks.iter().filter(|block| block.ref_count > 0).count() as u32;
        if used != self.gauges().used {
            let detail = format!("KV group {}: {used} used blocks, {:?}", self.group, self.gauges());
            return Err(KvError::Broken { invariant: "B1", detail });
        }
        Ok(())
    }

    /// Number of blocks, for the counting of owners.
    pub(crate) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that say they hold indexed content.
    pub(crate) fn registered(&self) -> impl Iterator<Item = (u32, NodeId)> + '_ {
        self.blocks.iter().enumerate().filter_map(|(id, block)| Some((id as u32, block.node?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn double_and_foreign_frees_are_errors() {
        let mut pool = Pool::new(3, 2);
        let id = pool.take().unwrap() as i32;
        pool.release(id).unwrap();
        assert_eq!(pool.release(id), Err(KvError::DoubleFree { group: 3, block: 0 }));
        for foreign in [-1, 2, i32::MAX] {
            let expected = KvError::ForeignBlock { group: 3, block: foreign.into(), total: 2 };
            assert_eq!(pool.release(foreign), Err(expected));
        }
        pool.check(&[0, 0]).unwrap();
    }

    #[test]
    fn cached_blocks_go_oldest_first_and_come_back_when_shared() {
        let mut pool = Pool::new(0, 3);
        for node in 0..3 {
            let id = pool.take().unwrap() as i32;
            pool.register(id, node).unwrap();
        }
        for id in [1, 0, 2] {
            pool.release(id).unwrap();
        }
        assert_eq!(pool.oldest_cached(), Some((1, 1)));
        pool.share(1).unwrap();
        assert_eq!(pool.oldest_cached(), Some((0, 0)));
        pool.unregister(0).unwrap();
        assert_eq!(pool.gauges(), PoolGauges { total: 3, free: 1, cached: 1, used: 1 });
        pool.check(&[0, 1, 0]).unwrap();
        assert!(matches!(pool.share(0), Err(KvError::Broken { .. })));
    }
}
