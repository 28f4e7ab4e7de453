//! The invariants B1 to B6, verified from scratch.

use crate::error::KvError;
use crate::manager::KvManager;
use crate::table::Table;

fn broken(invariant: &'static str, detail: String) -> Result<(), KvError> {
    Err(KvError::Broken { invariant, detail })
}

impl KvManager {
    /// Verify every invariant of pools, tables and index:
    /// B1 free + used + cached = total; B2 each block is in exactly one of the three; B3 reference counts equal the
    /// number of tables that name a block; B4 blocks that a step writes have one owner and are not indexed; B5 the
    /// index names full blocks only, with the content it says; B6 tables cover exactly the tokens they should.
    ///
    /// # Errors
    /// [`KvError::Broken`] names the first broken one.
    pub fn check(&self) -> Result<(), KvError> {
        for (group, pool) in self.pools.iter().enumerate() {
            let mut owners = vec![0; pool.len()];
            for table in self.tables.values() {
                for &block in table.columns[group].iter().filter(|&&block| block >= 0) {
                    match owners.get_mut(block as usize) {
                        Some(count) => *count += 1,
                        None => {
                            return broken("B3", format!("a table names block {block} of KV group {group}"));
                        }
                    }
                }
            }
            pool.check(&owners)?;
        }
        for (&id, table) in &self.tables {
            self.check_coverage(id, table)?;
            self.check_writes(id, table)?;
        }
        self.check_index()
    }

    fn check_coverage(&self, id: u64, table: &Table) -> Result<(), KvError> {
        let config = &self.config;
        for (group, columns) in table.columns.iter().enumerate() {
            let freed = table.freed[group];
            let most = config.first_column(group, table.computed, 0);
            let least = config.first_column(group, table.computed, config.longest_draft).min(columns.len());
            let holes = columns.iter().enumerate().any(|(column, &block)| (block < 0) != (column < freed));
            if columns.len() != config.columns(table.reserved) || holes || freed > most || freed < least {
                return broken(
                    "B6",
                    format!(
                        "sequence {id}, KV group {group}: {columns:?}, first {freed} freed (expected {least} to {most}), \
                         {} tokens computed, {} reserved",
                        table.computed, table.reserved
                    ),
                );
            }
        }
        Ok(())
    }

    fn check_writes(&self, id: u64, table: &Table) -> Result<(), KvError> {
        let full = (table.computed / self.config.block_size) as usize;
        for (group, pool) in self.pools.iter().enumerate() {
            for &block in table.columns[group].iter().skip(full).filter(|&&block| block >= 0) {
                let shared = pool.ref_count(block)? > 1 && table.reserved > table.computed;
                if shared || pool.node(block)?.is_some() {
                    let detail = format!(
                        "sequence {id} may write block {block} of KV group {group}, shared or indexed"
                    );
                    return broken("B4", detail);
                }
            }
        }
        Ok(())
    }

    fn check_index(&self) -> Result<(), KvError> {
        let index = &self.index;
        if !index.is_consistent() {
            return broken("B5", "hashes and nodes disagree".to_owned());
        }
        let anchored = self.config.groups.iter().any(|group| group.window.is_none());
        for (id, node) in &index.nodes {
            let parent = node.parent.map(|parent| index.nodes.get(&parent));
            let orphan = matches!(parent, Some(None));
            let hash = index.hasher.block(
                parent.flatten().map_or(0, |parent| parent.hash),
                &node.token_ids,
                &node.extra,
            );
            if node.token_ids.len() != self.config.block_size as usize
                || node.blocks.iter().all(Option::is_none)
                || (anchored && orphan)
                || (!orphan && hash != node.hash)
            {
                return broken("B5", format!("node {id}: {node:?}"));
            }
            for (group, pool) in self.pools.iter().enumerate() {
                let full_group = self.config.groups[group].window.is_none();
                match node.blocks[group] {
                    None if full_group => {
                        return broken("B5", format!("node {id} lost its block in KV group {group}"));
                    }
                    Some(block) if pool.node(block as i32)? != Some(*id) => {
                        return broken("B5", format!("node {id} names block {block} of KV group {group}"));
                    }
                    _ => {}
                }
            }
        }
        for (group, pool) in self.pools.iter().enumerate() {
            let astray = |&(block, node): &(u32, u64)| {
                index.nodes.get(&node).is_none_or(|node| node.blocks[group] != Some(block))
            };
            if let Some((block, node)) = pool.registered().find(astray) {
                return broken("B5", format!("block {block} of KV group {group} says it holds node {node}"));
            }
        }
        Ok(())
    }

    /// Verify B5 for one sequence: what its indexed columns hold is what `token_ids` says.
    ///
    /// # Errors
    /// [`KvError::UnknownSequence`]; [`KvError::Broken`] when a block holds something else.
    pub fn check_tokens(&self, id: u64, token_ids: &[i32]) -> Result<(), KvError> {
        let table = self.tables.get(&id).ok_or(KvError::UnknownSequence { id })?;
        let blocks = token_ids.chunks_exact(self.config.block_size as usize);
        if table.chain.len() > blocks.len() {
            return broken("B5", format!("sequence {id} has {} indexed blocks", table.chain.len()));
        }
        for (column, (node_id, tokens)) in table.chain.iter().zip(blocks).enumerate() {
            let Some(node) = self.index.nodes.get(node_id) else { continue };
            let parent = column.checked_sub(1).map(|above| table.chain[above]);
            let elsewhere = (0..self.pools.len()).any(|group| {
                let block = table.columns[group][column];
                block >= 0 && node.blocks[group] != Some(block as u32)
            });
            if *node.token_ids != *tokens
                || *node.extra != *table.extra(column)
                || node.parent != parent
                || elsewhere
            {
                return broken("B5", format!("sequence {id}, column {column}: {node:?}"));
            }
        }
        Ok(())
    }
}
