//! The block tables of one sequence.

use crate::index::NodeId;

/// Which blocks hold a sequence, per KV group and column.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    /// Per group; a column is -1 once it was freed behind the window (or never taken from the cache).
    pub(crate) columns: Vec<Vec<i32>>,
    /// Per group: columns below this are -1, the others are blocks.
    pub(crate) freed: Vec<usize>,
    /// Tokens whose keys and values are valid.
    pub(crate) computed: u32,
    /// Tokens that have a slot; beyond `computed` a step is writing them.
    pub(crate) reserved: u32,
    /// The indexed content of the first columns.
    pub(crate) chain: Vec<NodeId>,
    /// Extra key of the first block, and by chaining of them all.
    pub(crate) salt: Box<[u8]>,
}

impl Table {
    pub(crate) fn new(num_groups: usize, salt: &[u8]) -> Self {
        Self {
            columns: vec![Vec::new(); num_groups],
            freed: vec![0; num_groups],
            computed: 0,
            reserved: 0,
            chain: Vec::new(),
            salt: salt.into(),
        }
    }

    /// Extra key of a column.
    pub(crate) fn extra(&self, column: usize) -> &[u8] {
        if column == 0 { &self.salt } else { &[] }
    }
}
