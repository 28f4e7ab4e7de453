//! The manager: block tables of all sequences over all pools, and every rule about who may share what.

use std::collections::HashMap;

use crate::config::KvConfig;
use crate::error::KvError;
use crate::index::{Lookup, Node, NodeId, PrefixIndex};
use crate::pool::{Pool, PoolGauges};
use crate::table::Table;

/// A block to copy, whole, before the step that follows. Copies of one step are done in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCopy {
    /// KV group.
    pub group: usize,
    /// Block to read.
    pub src: i32,
    /// Block to write.
    pub dst: i32,
}

/// Block tables, pools and the prefix index of one engine.
///
/// The life of a sequence: [`open`](Self::open) (takes what the cache has), then per step
/// [`reserve`](Self::reserve) and [`commit`](Self::commit), [`fork`](Self::fork) in between, [`release`](Self::release).
#[derive(Debug)]
pub struct KvManager {
    pub(crate) config: KvConfig,
    pub(crate) pools: Vec<Pool>,
    pub(crate) index: PrefixIndex,
    pub(crate) tables: HashMap<u64, Table>,
    #[cfg(test)]
    pub(crate) faults: crate::life_tests::Faults,
}

impl KvManager {
    /// Build empty pools.
    ///
    /// # Errors
    /// [`KvError::Config`] names a setting that is out of range.
    pub fn new(config: KvConfig) -> Result<Self, KvError> {
        config.validate()?;
        let pools =
            config.groups.iter().enumerate().map(|(i, group)| Pool::new(i, group.num_blocks)).collect();
        let index = PrefixIndex::new(config.hash_key);
        Ok(Self {
            config,
            pools,
            index,
            tables: HashMap::new(),
            #[cfg(test)]
            faults: Default::default(),
        })
    }

    /// Start the table of sequence `id` with the longest cached prefix of `token_ids`; returns its length in tokens, a
    /// multiple of the block size of at most `limit` and at most `token_ids.len() - 1`.
    ///
    /// Only sequences of equal `salt` share blocks.
    ///
    /// # Errors
    /// [`KvError::SequenceExists`].
    pub fn open(&mut self, id: u64, token_ids: &[i32], limit: u32, salt: &[u8]) -> Result<u32, KvError> {
        if self.tables.contains_key(&id) {
            return Err(KvError::SequenceExists { id });
        }
        let mut table = Table::new(self.pools.len(), salt);
        if self.config.enable_prefix_caching {
            table.chain = self.match_prefix(token_ids, limit, &table);
        }
        table.computed = table.chain.len() as u32 * self.config.block_size;
        table.reserved = table.computed;
        for (group, pool) in self.pools.iter_mut().enumerate() {
            let first = self.config.first_column(group, table.computed, 0).min(table.chain.len());
            table.freed[group] = first;
            table.columns[group] = vec![-1; first];
            for node in &table.chain[first..] {
                let block = self.index.nodes.get(node).and_then(|node| node.blocks[group]);
                let Some(block) = block else {
                    let detail = format!("matched node {node} has no block in KV group {group}");
                    return Err(KvError::Broken { invariant: "B5", detail });
                };
                #[cfg(test)]
                if !self.faults.skip_share {
                    pool.share(block)?;
                }
                #[cfg(not(test))]
                pool.share(block)?;
                table.columns[group].push(block as i32);
            }
        }
        let hit = table.computed;
        self.tables.insert(id, table);
        Ok(hit)
    }

    /// Longest chain of indexed blocks that a sequence may start from: full groups need all of it, window groups
    /// what the next token sees.
    fn match_prefix(&self, token_ids: &[i32], limit: u32, table: &Table) -> Vec<NodeId> {
        let block_size = self.config.block_size as usize;
        let limit = (limit as usize).min(token_ids.len().saturating_sub(1));
        let mut chain = Vec::new();
        let mut good = 0;
        let mut runs = vec![0; self.pools.len()];
        for (column, tokens) in token_ids[..limit].chunks_exact(block_size).enumerate() {
            let Lookup::Hit(id) = self.index.find(chain.last().copied(), tokens, table.extra(column)) else {
                break;
            };
            let Some(node) = self.index.nodes.get(&id) else { break };
            chain.push(id);
            let hit = chain.len() as u32 * self.config.block_size;
            let mut enough = true;
            for (group, run) in runs.iter_mut().enumerate() {
                *run = if node.blocks[group].is_some() { *run + 1 } else { 0 };
                enough &= *run >= chain.len().saturating_sub(self.config.first_column(group, hit, 0));
            }
            if enough {
                good = chain.len();
            }
        }
        chain.truncate(good);
        chain
    }

    /// Give sequence `id` a slot for each of its first `upto` tokens, no more and no less. The blocks the next tokens
    /// go to become its own: a shared one is replaced, and the returned copies must be done before the step.
    ///
    /// # Errors
    /// [`KvError::NoBlocks`] when a pool lacks blocks (the sequence then holds at most what it held),
    /// [`KvError::UnknownSequence`], and [`KvError::Range`] when `upto` is less than what is computed.
    pub fn reserve(&mut self, id: u64, upto: u32) -> Result<Vec<BlockCopy>, KvError> {
        let Self { config, pools, index, tables, .. } = self;
        let table = tables.get_mut(&id).ok_or(KvError::UnknownSequence { id })?;
        if upto < table.computed {
            return Err(KvError::Range { id, got: upto, low: table.computed, high: u32::MAX });
        }
        truncate(table, pools, config.columns(upto))?;
        table.reserved = upto.min(table.reserved);
        let partial = (table.computed / config.block_size) as usize;
        let mut to_copy = vec![false; pools.len()];
        for (group, pool) in pools.iter().enumerate() {
            if let Some(&block) = table.columns[group].get(partial)
                && upto > table.computed
            {
                to_copy[group] = pool.ref_count(block)? > 1 || pool.node(block)?.is_some();
            }
            let missing = config.columns(upto) - table.columns[group].len();
            let needed = missing as u32 + u32::from(to_copy[group]);
            if needed > pool.available() {
                return Err(KvError::NoBlocks { group, needed, available: pool.available() });
            }
        }
        let mut copies = Vec::new();
        for group in 0..pools.len() {
            if to_copy[group] {
                let src = table.columns[group][partial];
                let dst = acquire(group, pools, index, config)?;
                pools[group].release(src)?;
                table.columns[group][partial] = dst;
                copies.push(BlockCopy { group, src, dst });
            }
            while table.columns[group].len() < config.columns(upto) {
                table.columns[group].push(acquire(group, pools, index, config)?);
            }
        }
        table.reserved = upto;
        Ok(copies)
    }

    /// Record that the first `computed` tokens of `token_ids` are now in the cache: index the blocks that became full,
    /// give back what was reserved beyond, and free what fell behind a window.
    ///
    /// Where another sequence has indexed the same content, this one takes over the indexed block and frees its own.
    ///
    /// # Errors
    /// [`KvError::UnknownSequence`], and [`KvError::Range`] when `computed` was not reserved or goes back.
    pub fn commit(&mut self, id: u64, token_ids: &[i32], computed: u32) -> Result<(), KvError> {
        let table = self.tables.get_mut(&id).ok_or(KvError::UnknownSequence { id })?;
        let high = table.reserved.min(token_ids.len() as u32);
        if computed < table.computed || computed > high {
            return Err(KvError::Range { id, got: computed, low: table.computed, high });
        }
        table.computed = computed;
        table.reserved = computed;
        truncate(table, &mut self.pools, self.config.columns(computed))?;
        if self.config.enable_prefix_caching {
            self.publish(id, token_ids, computed)?;
        }
        self.free_behind_windows(id)
    }

    /// Index the full blocks among the first `computed` tokens.
    pub(crate) fn publish(&mut self, id: u64, token_ids: &[i32], computed: u32) -> Result<(), KvError> {
        let Self { config, pools, index, tables, .. } = self;
        let table = tables.get_mut(&id).ok_or(KvError::UnknownSequence { id })?;
        let block_size = config.block_size as usize;
        for column in table.chain.len()..computed as usize / block_size {
            let tokens = &token_ids[column * block_size..(column + 1) * block_size];
            let parent = table.chain.last().copied();
            let found = index.find(parent, tokens, table.extra(column));
            let node_id = match found {
                Lookup::Hit(id) => id,
                // Freed behind every window before it could be indexed.
                Lookup::Vacant(_) if table.columns.iter().all(|columns| columns[column] < 0) => break,
                Lookup::Vacant(hash) => index.insert(hash, parent, tokens, table.extra(column), pools.len()),
                Lookup::Unavailable => break,
            };
            let Some(node) = index.nodes.get_mut(&node_id) else { break };
            for (group, pool) in pools.iter_mut().enumerate() {
                let own = table.columns[group][column];
                match node.blocks[group] {
                    _ if own < 0 => {}
                    None => {
                        pool.register(own, node_id)?;
                        node.blocks[group] = Some(own as u32);
                    }
                    Some(block) if block as i32 != own => {
                        pool.share(block)?;
                        pool.release(own)?;
                        table.columns[group][column] = block as i32;
                    }
                    Some(_) => {}
                }
            }
            table.chain.push(node_id);
        }
        Ok(())
    }

    fn free_behind_windows(&mut self, id: u64) -> Result<(), KvError> {
        let Self { config, pools, tables, .. } = self;
        let table = tables.get_mut(&id).ok_or(KvError::UnknownSequence { id })?;
        for (group, pool) in pools.iter_mut().enumerate() {
            let first = config.first_column(group, table.computed, config.longest_draft);
            #[cfg(test)]
            let first =
                first + usize::from(self.faults.window_early && config.groups[group].window.is_some());
            let first = first.min(table.columns[group].len());
            for column in table.freed[group]..first {
                pool.release(std::mem::replace(&mut table.columns[group][column], -1))?;
            }
            table.freed[group] = table.freed[group].max(first);
        }
        Ok(())
    }

    /// Start a table for each of `children` that shares every block of sequence `id`. The last, partial block is
    /// copied when one of the owners writes to it.
    ///
    /// # Errors
    /// [`KvError::UnknownSequence`], [`KvError::SequenceExists`], and [`KvError::WritesPending`] between reserve and
    /// commit. Nothing changes then.
    pub fn fork(&mut self, id: u64, children: &[u64]) -> Result<(), KvError> {
        let table = self.tables.get(&id).ok_or(KvError::UnknownSequence { id })?.clone();
        if table.reserved != table.computed {
            return Err(KvError::WritesPending { id });
        }
        for (i, child) in children.iter().enumerate() {
            if self.tables.contains_key(child) || children[..i].contains(child) {
                return Err(KvError::SequenceExists { id: *child });
            }
        }
        for child in children {
            for (group, pool) in self.pools.iter_mut().enumerate() {
                for &block in &table.columns[group][table.freed[group]..] {
                    #[cfg(test)]
                    if self.faults.skip_share {
                        continue;
                    }
                    pool.share(block as u32)?;
                }
            }
            self.tables.insert(*child, table.clone());
        }
        Ok(())
    }

    /// End a sequence and give up its blocks; false when there is none of that id. Indexed blocks stay cached.
    ///
    /// # Errors
    /// [`KvError::DoubleFree`] or [`KvError::ForeignBlock`] after a bug.
    pub fn release(&mut self, id: u64) -> Result<bool, KvError> {
        let Some(mut table) = self.tables.remove(&id) else { return Ok(false) };
        truncate(&mut table, &mut self.pools, 0)?;
        Ok(true)
    }

    /// Forget all cached blocks; returns how many there were.
    ///
    /// # Errors
    /// [`KvError::ForeignBlock`] after a bug.
    pub fn reset_prefix_cache(&mut self) -> Result<u32, KvError> {
        let before: u32 = self.pools.iter().map(|pool| pool.gauges().free).sum();
        for group in 0..self.pools.len() {
            for (block, node) in self.pools[group].cached() {
                evict(group, block, node, &mut self.pools, &mut self.index, &self.config)?;
            }
        }
        Ok(self.pools.iter().map(|pool| pool.gauges().free).sum::<u32>() - before)
    }

    /// The columns of a sequence in a group: block ids, -1 where freed behind the window.
    pub fn table(&self, id: u64, group: usize) -> Option<&[i32]> {
        Some(self.tables.get(&id)?.columns.get(group)?)
    }

    /// Tokens of a sequence whose keys and values are valid.
    pub fn computed(&self, id: u64) -> Option<u32> {
        Some(self.tables.get(&id)?.computed)
    }

    /// Number of KV groups.
    pub fn num_groups(&self) -> usize {
        self.pools.len()
    }

    /// Where the blocks of a group are.
    pub fn gauges(&self, group: usize) -> Option<PoolGauges> {
        Some(self.pools.get(group)?.gauges())
    }

    /// Most blocks of a group that a sequence of at most `num_tokens` tokens names at a time, when at most `chunk`
    /// are computed per step.
    pub fn peak_blocks(&self, group: usize, num_tokens: u32, chunk: u32) -> u32 {
        self.config.peak_blocks(group, num_tokens, chunk)
    }

    /// Blocks of a group that a sequence names now.
    pub fn held_blocks(&self, id: u64, group: usize) -> u32 {
        let held = |table: &Table| (table.columns[group].len() - table.freed[group]) as u32;
        self.tables.get(&id).map_or(0, held)
    }
}

/// Release the columns from `num_columns` on, the last one first, so that a chain is evicted from its end.
fn truncate(table: &mut Table, pools: &mut [Pool], num_columns: usize) -> Result<(), KvError> {
    for (group, pool) in pools.iter_mut().enumerate() {
        let columns = &mut table.columns[group];
        while columns.len() > num_columns {
            match columns.pop() {
                Some(block) if block >= 0 => pool.release(block)?,
                _ => {}
            }
        }
        table.freed[group] = table.freed[group].min(num_columns);
    }
    Ok(())
}

/// Take a free block, evicting the oldest cached one when there is none.
fn acquire(
    group: usize,
    pools: &mut [Pool],
    index: &mut PrefixIndex,
    config: &KvConfig,
) -> Result<i32, KvError> {
    if pools[group].gauges().free == 0
        && let Some((block, node)) = pools[group].oldest_cached()
    {
        evict(group, block, node, pools, index, config)?;
    }
    let none = KvError::NoBlocks { group, needed: 1, available: 0 };
    pools[group].take().map(|block| block as i32).ok_or(none)
}

/// Turn a cached block into a free one. Content that a full group lost can never be hit again, so its node goes, and
/// with it what the other groups keep of it; a window group's block goes alone.
fn evict(
    group: usize,
    block: u32,
    node: NodeId,
    pools: &mut [Pool],
    index: &mut PrefixIndex,
    config: &KvConfig,
) -> Result<(), KvError> {
    let blocks = |node: Node| node.blocks.into_iter().enumerate();
    if config.groups[group].window.is_none() {
        for (group, block) in index.remove(node).into_iter().flat_map(blocks) {
            if let Some(block) = block {
                pools[group].unregister(block)?;
            }
        }
        return Ok(());
    }
    pools[group].unregister(block)?;
    let empty = index.nodes.get_mut(&node).is_some_and(|node| {
        node.blocks[group] = None;
        node.blocks.iter().all(Option::is_none)
    });
    if empty {
        index.remove(node);
    }
    Ok(())
}
