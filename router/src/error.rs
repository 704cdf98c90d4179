//! What can be wrong with a key or a map, and what to do about it.

use crate::{Epoch, Excerpt, KeyRange, KeyType, PartitionId, ShardId, Token};

/// Why something is not a routing key. Never answered by a broadcast to all shards.
///
/// `Copy` and free of heap memory: a bad key costs a producer callback no allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The record has no key (Kafka's null key).
    #[error("the record has no key; produce it with the user's id as the key")]
    Missing,
    /// The key is there but has no bytes.
    #[error("the key is empty; produce the record with the user's id as the key")]
    Empty,
    /// The key's bytes are not UTF-8.
    #[error(
        "the key is not UTF-8 after byte {valid_bytes}; produce {expected} keys as text, not as raw bytes"
    )]
    NotUtf8 {
        /// What the key should have been.
        expected: KeyType,
        /// How many bytes at its start are sound.
        valid_bytes: usize,
    },
    /// The text holds a NUL, which Postgres's `text` cannot store.
    #[error("the key {key} holds a NUL at byte {at}, which Postgres text cannot store; remove it")]
    NulByte {
        /// The key's beginning.
        key: Excerpt,
        /// Where the NUL is, counted in bytes from 0.
        at: usize,
    },
    /// The text is not a hyphenated uuid of 36 characters.
    #[error(
        "the key {key} is not a uuid; write it hyphenated, like 550e8400-e29b-41d4-a716-446655440000"
    )]
    NotUuid {
        /// The key's beginning.
        key: Excerpt,
    },
    /// The text is not an integer at all.
    #[error("the key {key} is not an integer; write it in decimal digits, like 42 or -7")]
    NotInteger {
        /// The key's beginning.
        key: Excerpt,
    },
    /// The text is an integer, but not as Postgres would print it, so that as text it would be
    /// another key: `+5`, `007`, `-0`.
    #[error(
        "the key {key} is not a canonical integer; write it without plus sign or leading zeros"
    )]
    NotCanonicalInteger {
        /// The key's beginning.
        key: Excerpt,
    },
    /// The integer does not fit into 64 bits.
    #[error("the key {key} does not fit into int8; use a text or uuid key for longer numbers")]
    IntegerOverflow {
        /// The key's beginning.
        key: Excerpt,
    },
    /// Not the name of a key type.
    #[error("{name} is not a key type; use uuid, int8 or text")]
    UnknownKeyType {
        /// What stood there.
        name: Excerpt,
    },
    /// A column of this type cannot be routed by.
    #[error(
        "a column of type {column_type} cannot be routed by; distribute by uuid, int8, int4, int2, text or varchar"
    )]
    UnsupportedColumnType {
        /// The column's type as Postgres names it.
        column_type: Excerpt,
    },
    /// `char(n)` pads with blanks and hashes without them.
    #[error(
        "a char(n) column cannot be routed by, because Postgres ignores its trailing blanks and a hash of the bytes does not; distribute by text"
    )]
    PaddedColumn,
    /// A nondeterministic collation makes different bytes equal.
    #[error(
        "a column with a nondeterministic collation cannot be routed by, because keys of different bytes are equal there; use a deterministic collation such as \"C\""
    )]
    NondeterministicCollation,
}

/// Why a map is not a map, or why two of them do not fit together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// A map with 0 partitions.
    #[error("a slot map needs at least one partition; take the topic's partition count")]
    NoPartitions,
    /// More partitions than slots.
    #[error("{asked} partitions are more than the 4096 slots; use at most 4096")]
    TooManyPartitions {
        /// The count that was asked for.
        asked: u64,
    },
    /// A map with 0 shards.
    #[error("a map needs at least one shard")]
    NoShards,
    /// More shards than the kind of map can hold.
    #[error("{asked} shards are more than this map can hold; use at most {max}")]
    TooManyShards {
        /// The count that was asked for.
        asked: u64,
        /// The most there can be: 4096 in a slot map, 64000 in Citus.
        max: u64,
    },
    /// One shard named twice where each must be named once.
    #[error("shard {shard} is named twice; name each shard once")]
    DuplicateShard {
        /// The shard.
        shard: ShardId,
    },
    /// A slot's number above 4095.
    #[error("slot {number} does not exist; slots are 0 to 4095")]
    SlotOutOfRange {
        /// The number.
        number: u16,
    },
    /// A table that does not have one entry for each slot.
    #[error("the {table} table covers {got} slots; it must cover each of the 4096 once")]
    TableLength {
        /// `partition` or `shard`.
        table: &'static str,
        /// How many slots it covers.
        got: usize,
    },
    /// A run of slots in a written map that does not start where the one before ended.
    #[error(
        "the {table} table has a run that starts at slot {found} where slot {expected} was due; list the runs in order, without gap or overlap"
    )]
    BrokenRun {
        /// `partition` or `shard`.
        table: &'static str,
        /// The slot that should have come next.
        expected: usize,
        /// The slot that came.
        found: usize,
    },
    /// A partition number below 0 or not below the partition count.
    #[error("partition {partition} is not one of 0 to {max}; correct the partition table", max = partition_count.saturating_sub(1))]
    UnknownPartition {
        /// The number.
        partition: PartitionId,
        /// How many partitions the map has.
        partition_count: u32,
    },
    /// A partition that no slot leads to, though a higher one exists.
    #[error(
        "no slot leads to partition {partition}, though the map has {partition_count}; give it a slot or number the partitions without holes"
    )]
    UnusedPartition {
        /// The partition.
        partition: PartitionId,
        /// How many partitions the map has.
        partition_count: u32,
    },
    /// A range whose first token comes after its last.
    #[error("the range {first}..={last} is reversed; its first token must not be after its last")]
    RangeReversed {
        /// The first token.
        first: Token,
        /// The last token.
        last: Token,
    },
    /// Tokens that no shard owns.
    #[error(
        "no shard owns the tokens {range}; read the metadata again, and check that the table is hash-distributed"
    )]
    Gap {
        /// The tokens without an owner.
        range: KeyRange,
    },
    /// Two ranges that share tokens.
    #[error("the ranges of shards {first} and {second} overlap; each token must have one owner")]
    Overlap {
        /// The shard whose range starts first.
        first: ShardId,
        /// The other shard.
        second: ShardId,
    },
    /// A range that names a node that is not in the list of nodes.
    #[error(
        "shard {shard} is on node number {node}, but the map has {nodes} nodes, counted from 0"
    )]
    UnknownNode {
        /// The shard.
        shard: ShardId,
        /// The index that it names.
        node: usize,
        /// How many nodes there are.
        nodes: usize,
    },
    /// A shard that lives on two nodes at once.
    #[error(
        "shard {shard} has placements on nodes {first} and {second}; routing needs exactly one (citus.shard_replication_factor = 1)"
    )]
    SeveralPlacements {
        /// The shard.
        shard: ShardId,
        /// One node's index.
        first: usize,
        /// Another node's index.
        second: usize,
    },
    /// A map without a node to send to.
    #[error("a shard map needs at least one node")]
    NoNodes,
    /// A shard that the map does not have.
    #[error("the map has no shard {shard}; reload the map, or name one of its shards")]
    UnknownShard {
        /// The shard.
        shard: ShardId,
    },
    /// A split point that does not cut the range in two.
    #[error(
        "splitting {range} after token {point} leaves an empty piece; split points go up, inside the range and before its last token"
    )]
    SplitPoint {
        /// The point.
        point: Token,
        /// The range to be split.
        range: KeyRange,
    },
    /// A split that names a number of children other than it has pieces.
    #[error("{points} split points make {} pieces, but {children} shards are named for them", points + 1)]
    SplitChildren {
        /// How many split points there are.
        points: usize,
        /// How many children are named.
        children: usize,
    },
    /// Not the name or id of a hash.
    #[error(
        "{name} is not a hash of this router; use postgres or murmur3 (ids pg-lookup3-1, murmur3-x86-32-seed0-1)"
    )]
    UnknownHash {
        /// What stood there.
        name: Excerpt,
    },
    /// A map, a record or a database that was addressed with another hash.
    #[error(
        "this map hashes with {ours}, the other side with {theirs}: their slots mean different keys; set the same hash on both"
    )]
    OtherHash {
        /// This map's hash id.
        ours: &'static str,
        /// The other side's.
        theirs: Excerpt,
    },
    /// An epoch that lies behind the one in use.
    #[error(
        "epoch {theirs} is older than epoch {ours} in use; an epoch never goes back, reload the map"
    )]
    OlderEpoch {
        /// The epoch in use.
        ours: Epoch,
        /// The older one.
        theirs: Epoch,
    },
    /// Two different maps with one epoch.
    #[error("two different maps carry epoch {epoch}; whoever changed one must raise its epoch")]
    SameEpochOtherMap {
        /// The epoch.
        epoch: Epoch,
    },
    /// The epoch counter is at its end.
    #[error("epoch {epoch} has no successor")]
    EpochExhausted {
        /// The epoch.
        epoch: Epoch,
    },
    /// A key or a table whose key type is not the map's.
    #[error(
        "the map routes {ours} keys, this is {theirs}: equal keys of different types hash differently; use one type everywhere"
    )]
    OtherKeyType {
        /// The map's key type.
        ours: KeyType,
        /// The other one.
        theirs: KeyType,
    },
}
