//! This node's identity and address, and the addresses of the other nodes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use types::NodeId;

use crate::identity::Identity;
use crate::lifecycle::Lifecycle;

/// The maximum number of learned addresses that are kept. A few joining nodes at a time need them.
const MAX_LEARNED: usize = 256;

/// Maps node ids to addresses, and knows this node's own.
pub(crate) struct Peers {
    identity: Arc<Identity>,
    /// The address under which other nodes reach this node.
    address: String,
    /// The option `peers` as given: empty means only this node.
    configured: Vec<String>,
    lifecycle: Arc<Lifecycle>,
    /// The addresses that nodes named in their last hello.
    learned: Mutex<BTreeMap<NodeId, String>>,
    /// True once a member of a group has called this node by its id.
    invited: AtomicBool,
}

impl Peers {
    /// Creates the address book of a node that other nodes reach at `address`.
    pub(crate) fn new(
        identity: Arc<Identity>,
        address: String,
        configured: Vec<String>,
        lifecycle: Arc<Lifecycle>,
    ) -> Self {
        Self {
            identity,
            address,
            configured,
            lifecycle,
            learned: Mutex::default(),
            invited: AtomicBool::new(false),
        }
    }

    /// Returns this node's identity.
    pub(crate) fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// Returns this node's id.
    pub(crate) fn node(&self) -> NodeId {
        self.identity.node()
    }

    /// Returns the address under which other nodes reach this node.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Returns the option `peers` as given.
    pub(crate) fn configured(&self) -> &[String] {
        &self.configured
    }

    /// Returns the addresses of the group's first members: the option `peers`, or else only this node.
    pub(crate) fn initial(&self) -> Vec<String> {
        if self.configured.is_empty() {
            vec![self.address.clone()]
        } else {
            self.configured.clone()
        }
    }

    /// Returns the address of a node: the one that it named in its last hello, else the one in the membership. So a node
    /// that came back at another address is found.
    pub(crate) fn address_of(&self, node: NodeId) -> Option<String> {
        if node == self.node() {
            return Some(self.address.clone());
        }
        if let Some(address) = self.lock_learned().get(&node) {
            return Some(address.clone());
        }
        self.lifecycle.with_view(|view| {
            let member = view.status.as_ref()?.membership.get(node)?;
            Some(member.address.clone())
        })
    }

    /// As [`Peers::address_of`]; returns an empty string for a node that isn't known.
    pub(crate) fn address_or_empty(&self, node: NodeId) -> String {
        self.address_of(node).unwrap_or_default()
    }

    /// Remembers the address that a node named in its hello.
    pub(crate) fn learn(&self, node: NodeId, address: String) {
        let mut learned = self.lock_learned();
        if learned.len() >= MAX_LEARNED && !learned.contains_key(&node) {
            // It hardly matters which entry is dropped: a node that is still needed sends another hello.
            learned.pop_first();
        }
        learned.insert(node, address);
    }

    /// Records that a member of a group called this node by its id: the group lets this node in.
    pub(crate) fn invite(&self) {
        self.invited.store(true, Ordering::Release);
    }

    /// Returns true if a group lets this node in.
    pub(crate) fn invited(&self) -> bool {
        self.invited.load(Ordering::Acquire)
    }

    fn lock_learned(&self) -> MutexGuard<'_, BTreeMap<NodeId, String>> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
