//! Keyspaces of the shards: their operations in the log, reads of them, and what the server follows of their changes.
//!
//! The crate `keyspace` is the state machine of each keyspace. Here it gets its place: an operation is applied only if the group
//! serves the shard at that entry, as a write of the flat map is, and each row that it changes is named in the shard's journal. So
//! keyspaces move with their shard and need no rules of their own. Their operations have no sessions: a server proposes each once.

use bytes::{BufMut, Bytes, BytesMut};
use keyspace::{Action, Effect, Operation, Place, Store, Write};
use raft::{StoreError, Term};
use replica::{GroupKind, PairReader, StateReader};
use types::{ConfigNum, ShardId};

use crate::encoding::VERSION;
use crate::journal::{MAX_NAMED_ROW_BYTES, Rows};
use crate::{KvError, query, records};

/// The feature level from which on a group has keyspaces.
pub const KEYSPACE_LEVEL: u32 = 2;
/// The feature level from which on keyspaces have users and roles.
pub const AUTH_LEVEL: u32 = 3;
const _: () = assert!(
    KEYSPACE_LEVEL < AUTH_LEVEL && AUTH_LEVEL <= replica::FEATURE_LEVEL,
    "this version has keyspaces, and users of them"
);

/// The kind byte of an operation of a keyspace.
pub(crate) const KIND: u8 = 96;

/// An upper bound of a part's bytes beside keys and values.
const PART_OVERHEAD_BYTES: usize = 1_024;

const HEAD: [u8; 2] = [VERSION, KIND];

/// A change of a keyspace by one operation of the log, for those who follow keyspaces: watches, timers of leases, clearing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyspaceChange {
    /// The keyspace.
    pub place: Place,
    /// Its newest revision after the operation.
    pub revision: i64,
    /// The effects, in order; never none.
    pub effects: Vec<Effect>,
}

/// The changes of keyspaces since they were taken the last time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyspaceChanges {
    /// True if the whole state was replaced before the changes: the replica started, or it installed a snapshot. Who follows
    /// keyspaces reads them anew.
    pub replaced: bool,
    /// The changes, in the order of the log.
    pub changes: Vec<KeyspaceChange>,
}

/// Collects changes for a server that takes them after each batch. A machine that nobody asked to collect keeps none.
#[derive(Debug, Default)]
pub(crate) struct Collector(Option<KeyspaceChanges>);

impl Collector {
    pub(crate) fn start(&mut self) {
        self.0 = Some(KeyspaceChanges::default());
    }

    /// Notes that the state was replaced. What was collected before is part of it.
    pub(crate) fn replace(&mut self) {
        if let Some(collected) = &mut self.0 {
            collected.changes.clear();
            collected.replaced = true;
        }
    }

    pub(crate) fn take(&mut self) -> KeyspaceChanges {
        self.0.as_mut().map(std::mem::take).unwrap_or_default()
    }

    pub(crate) fn note(&mut self, outcome: &keyspace::Outcome) {
        if let (Some(collected), Some(place)) = (&mut self.0, outcome.place)
            && !outcome.effects.is_empty()
        {
            collected.changes.push(KeyspaceChange {
                place,
                revision: outcome.revision,
                effects: outcome.effects.clone(),
            });
        }
    }
}

/// Returns the most bytes of an operation of a keyspace, so that its rows can move: a part or a chunk of a hand-off must fit into an
/// entry of the log, whatever row it ends with. Escaping may double the bytes of a key in a stored row. A part has at most one such
/// row, the key of the row that it follows, and the name under which a journal has it.
pub fn max_keyspace_operation_bytes(max_entry_bytes: usize, chunk_bytes: u32) -> usize {
    let named = max_entry_bytes
        .saturating_sub(chunk_bytes as usize)
        .saturating_sub(2 * MAX_NAMED_ROW_BYTES);
    let longest = max_entry_bytes.saturating_sub(MAX_NAMED_ROW_BYTES) / 4;
    named.min(longest).saturating_sub(PART_OVERHEAD_BYTES)
}

/// Encodes an operation of a keyspace for a proposal.
pub fn encode_keyspace_operation(operation: &Operation) -> Bytes {
    let operation = operation.encode();
    let mut out = BytesMut::with_capacity(HEAD.len() + operation.len());
    out.put_slice(&HEAD);
    out.put_slice(&operation);
    out.freeze()
}

/// Returns the operation within an entry; `None` if the entry is another one.
pub(crate) fn operation_in(entry: &Bytes) -> Option<Bytes> {
    entry.starts_with(&HEAD).then(|| entry.slice(HEAD.len()..))
}

/// Returns the term and the configuration in which an expiry was decided; `None` for other operations.
pub(crate) fn decided(operation: Bytes) -> Option<(Term, ConfigNum)> {
    match Operation::decode(operation).ok()?.action {
        Action::In(_, Write::Expire { term, config, .. }) => Some((term, config)),
        _ => None,
    }
}

/// Calls `read` with a reader of the keyspaces of a shard, in a state as of one commit. Any thread can do it, as with
/// [`crate::read_page`]. It is refused unless the group serves the shard in that state.
pub fn read_keyspaces<T>(
    state: &dyn StateReader,
    shard: ShardId,
    read: impl FnOnce(&dyn PairReader) -> Result<T, StoreError>,
) -> Result<Result<T, KvError>, StoreError> {
    let genesis = query::created(state)?;
    if shard.0 >= genesis.shards {
        let shards = genesis.shards;
        return Ok(Err(KvError::NoShard { shard, shards }));
    }
    if genesis.kind != GroupKind::Standalone {
        let ownership = records::load_shard(state, &genesis, shard)?;
        if let Err(error) = ownership.check_served(shard) {
            return Ok(Err(error));
        }
    }
    read(state).map(Ok)
}

impl Store for Rows<'_, '_> {
    fn put(&mut self, key: Bytes, value: Bytes) {
        self.put_row(key, value);
    }

    fn remove(&mut self, key: Bytes) {
        self.remove_row(key);
    }
}
