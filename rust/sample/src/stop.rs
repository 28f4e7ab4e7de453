//! Finds the first of some stop strings in a text that arrives in pieces.
//!
//! An Aho-Corasick automaton over bytes: each byte of text is looked at once, so the work is linear however the text
//! is cut. The match that **ends first** wins; among those that end together the longest, so that the least text is
//! released, and among equal strings the lowest index. The result does not depend on the pieces.
//!
//! Source: Aho and Corasick, "Efficient string matching", CACM 18(6), 1975.

use crate::error::SampleError;
use std::collections::VecDeque;

/// Most stop strings of one request.
pub const MAX_STOPS: usize = 1024;
/// Most bytes of all stop strings of one request together.
pub const MAX_STOP_BYTES: usize = 64 * 1024;

/// What became of one piece of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    /// Text that no stop string can claim any more, in order and never repeated.
    pub released: String,
    /// The index of the stop string that was found; `released` then ends right before it.
    pub matched: Option<usize>,
}

/// A node of the automaton: one prefix of some stop string.
#[derive(Debug, Clone, Default)]
struct Node {
    /// (byte, node), sorted by byte.
    next: Vec<(u8, u32)>,
    /// The node of the longest proper suffix.
    fail: u32,
    /// Length of the prefix in bytes.
    depth: usize,
    /// The longest stop string that is a suffix of this prefix: (index, length in bytes).
    stop: Option<(usize, usize)>,
}

/// Matches stop strings against one growing text.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    nodes: Vec<Node>,
    state: u32,
    /// `held[start..]` may still turn out to be part of a stop string: exactly the prefix that `state` stands for.
    held: String,
    start: usize,
    matched: Option<usize>,
}

impl StopMatcher {
    /// Prepare to look for `stops`; an empty list releases everything at once.
    ///
    /// # Errors
    /// [`SampleError::EmptyStop`], and [`SampleError::StopTooLarge`] above [`MAX_STOPS`] or [`MAX_STOP_BYTES`].
    pub fn new(stops: &[String]) -> Result<Self, SampleError> {
        let num_bytes = stops.iter().map(String::len).sum();
        if stops.len() > MAX_STOPS || num_bytes > MAX_STOP_BYTES {
            let (max_stops, max_bytes) = (MAX_STOPS, MAX_STOP_BYTES);
            return Err(SampleError::StopTooLarge {
                num_stops: stops.len(),
                num_bytes,
                max_stops,
                max_bytes,
            });
        }
        if let Some(index) = stops.iter().position(String::is_empty) {
            return Err(SampleError::EmptyStop { index });
        }
        let mut nodes = trie(stops);
        link(&mut nodes);
        Ok(Self { nodes, state: 0, held: String::new(), start: 0, matched: None })
    }

    /// Feed the next piece of text.
    ///
    /// At most the longest stop string less one character is held back. Once a stop string was found the matcher is
    /// done: further text is discarded and the same index is returned.
    pub fn push(&mut self, text: &str) -> Push {
        if self.matched.is_some() {
            return Push { released: String::new(), matched: self.matched };
        }
        let already = self.held.len();
        self.held.push_str(text);
        for (offset, &byte) in text.as_bytes().iter().enumerate() {
            self.state = self.step(self.state, byte);
            if let Some((index, length)) = self.nodes[self.state as usize].stop {
                // Stop strings are whole characters, so the match begins and ends on a boundary of the text.
                let released = self.held[self.start..already + offset + 1 - length].to_owned();
                self.matched = Some(index);
                (self.held, self.start) = (String::new(), 0);
                return Push { released, matched: self.matched };
            }
        }
        let keep = self.held.len() - self.nodes[self.state as usize].depth;
        let released = self.held[self.start..keep].to_owned();
        self.start = keep;
        // Moved to the front only when more was released than is held, so that the moves stay linear.
        if self.start > self.held.len() / 2 {
            self.held.drain(..self.start);
            self.start = 0;
        }
        Push { released, matched: None }
    }

    /// The text still held back, when the sequence ended for another reason. Empty after a match.
    pub fn flush(&mut self) -> String {
        let tail = self.held.split_off(self.start);
        (self.state, self.held, self.start) = (0, String::new(), 0);
        tail
    }

    fn step(&self, mut state: u32, byte: u8) -> u32 {
        loop {
            let node = &self.nodes[state as usize];
            match child(node, byte) {
                Some(next) => return next,
                None if state == 0 => return 0,
                None => state = node.fail,
            }
        }
    }
}

fn child(node: &Node, byte: u8) -> Option<u32> {
    let at = node.next.binary_search_by_key(&byte, |&(label, _)| label).ok()?;
    Some(node.next[at].1)
}

/// The trie of the stop strings; node 0 is the empty prefix.
fn trie(stops: &[String]) -> Vec<Node> {
    let mut nodes = vec![Node::default()];
    for (index, stop) in stops.iter().enumerate() {
        let mut at = 0usize;
        for &byte in stop.as_bytes() {
            at = match nodes[at].next.binary_search_by_key(&byte, |&(label, _)| label) {
                Ok(place) => nodes[at].next[place].1 as usize,
                Err(place) => {
                    let new = nodes.len();
                    let depth = nodes[at].depth + 1;
                    nodes[at].next.insert(place, (byte, new as u32));
                    nodes.push(Node { depth, ..Node::default() });
                    new
                }
            };
        }
        nodes[at].stop.get_or_insert((index, stop.len()));
    }
    nodes
}

/// Set the failure links, breadth first, and hand shorter matches down to the nodes that end in them.
fn link(nodes: &mut [Node]) {
    let mut queue: VecDeque<usize> = nodes[0].next.iter().map(|&(_, node)| node as usize).collect();
    while let Some(at) = queue.pop_front() {
        for (byte, next) in nodes[at].next.clone() {
            let mut fail = nodes[at].fail as usize;
            let target = loop {
                match child(&nodes[fail], byte) {
                    Some(found) => break found,
                    None if fail == 0 => break 0,
                    None => fail = nodes[fail].fail as usize,
                }
            };
            let next = next as usize;
            nodes[next].fail = target;
            nodes[next].stop = nodes[next].stop.or(nodes[target as usize].stop);
            queue.push_back(next);
        }
    }
}
