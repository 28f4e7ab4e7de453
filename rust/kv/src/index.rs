//! The prefix index: full blocks by the chained hash of what they hold.
//!
//! A [`Node`] stands for one full block of content after one particular chain of parents, and names the block that
//! holds it in each KV group. The hash only finds a candidate. A hit counts after the node's tokens, extra keys and
//! parent node were compared; node ids are never reused, so equal parents mean equal chains.

use std::collections::HashMap;

use crate::hash::Hasher;

/// Identity of a node; never reused.
pub(crate) type NodeId = u64;

/// The content of one full block, and where it lies.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) hash: u128,
    pub(crate) parent: Option<NodeId>,
    pub(crate) token_ids: Box<[i32]>,
    pub(crate) extra: Box<[u8]>,
    /// Per KV group; `None` where that group's block is gone.
    pub(crate) blocks: Vec<Option<u32>>,
}

/// What a lookup found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// The node of exactly this content.
    Hit(NodeId),
    /// Nothing; content with this hash may be inserted.
    Vacant(u128),
    /// The parent is gone, or other content has the same hash: this content cannot be indexed now.
    Unavailable,
}

/// All nodes.
#[derive(Debug)]
pub(crate) struct PrefixIndex {
    pub(crate) hasher: Hasher,
    pub(crate) nodes: HashMap<NodeId, Node>,
    by_hash: HashMap<u128, NodeId>,
    next: NodeId,
    /// Planted bug: trust the hash.
    #[cfg(test)]
    pub(crate) trust_hash: bool,
}

impl PrefixIndex {
    pub(crate) fn new(key: u64) -> Self {
        Self {
            hasher: Hasher::new(key),
            nodes: HashMap::new(),
            by_hash: HashMap::new(),
            next: 0,
            #[cfg(test)]
            trust_hash: false,
        }
    }

    /// Find the node of `token_ids` (one full block) and `extra` after `parent` (`None`: the first block).
    pub(crate) fn find(&self, parent: Option<NodeId>, token_ids: &[i32], extra: &[u8]) -> Lookup {
        let parent_hash = match parent.map(|id| self.nodes.get(&id)) {
            None => 0,
            Some(Some(node)) => node.hash,
            Some(None) => return Lookup::Unavailable,
        };
        let hash = self.hasher.block(parent_hash, token_ids, extra);
        let Some(&id) = self.by_hash.get(&hash) else { return Lookup::Vacant(hash) };
        let same = self.nodes.get(&id).is_some_and(|node| {
            node.parent == parent && *node.token_ids == *token_ids && *node.extra == *extra
        });
        #[cfg(test)]
        let same = same || self.trust_hash;
        if same { Lookup::Hit(id) } else { Lookup::Unavailable }
    }

    /// Insert content whose lookup said `Vacant(hash)`.
    pub(crate) fn insert(
        &mut self,
        hash: u128,
        parent: Option<NodeId>,
        token_ids: &[i32],
        extra: &[u8],
        num_groups: usize,
    ) -> NodeId {
        let id = self.next;
        self.next += 1;
        let blocks = vec![None; num_groups];
        self.by_hash.insert(hash, id);
        self.nodes
            .insert(id, Node { hash, parent, token_ids: token_ids.into(), extra: extra.into(), blocks });
        id
    }

    /// Forget a node. Returns it, so that the caller can let go of its blocks.
    pub(crate) fn remove(&mut self, id: NodeId) -> Option<Node> {
        let node = self.nodes.remove(&id)?;
        self.by_hash.remove(&node.hash);
        Some(node)
    }

    /// Whether the hash map and the nodes name each other, one to one.
    pub(crate) fn is_consistent(&self) -> bool {
        self.by_hash.len() == self.nodes.len()
            && self.nodes.iter().all(|(id, node)| self.by_hash.get(&node.hash) == Some(id))
    }
}
