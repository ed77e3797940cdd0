use std::collections::BTreeMap;

use moekit_routing::{LocalExpert, LogicalExpert, Placement, Rank};
use serde::Serialize;

/// Where a rank keeps one expert of the layer during a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Buffer {
    /// A slot of the rank.
    Slot(LocalExpert),
    /// A staging buffer of the rank, numbered from 0.
    Staging(usize),
}

/// What lies between two ranks, nearest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Link {
    /// The ranks sit on one node.
    SameNode,
    /// The ranks sit on different nodes.
    CrossNode,
}

/// One expert on its way from a rank to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Transfer {
    /// The expert.
    pub expert: LogicalExpert,
    /// The rank that sends.
    pub from: Rank,
    /// Where the sender reads it: a slot of the placement in force.
    pub slot: LocalExpert,
    /// The rank that receives.
    pub to: Rank,
    /// Where the receiver writes it: never a slot of the placement in force.
    pub into: Buffer,
    /// What lies between the two.
    pub link: Link,
}

/// An expert that no living rank holds: it must be read from the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CheckpointRead {
    /// The expert.
    pub expert: LogicalExpert,
    /// The rank that reads it.
    pub rank: Rank,
    /// Where the rank writes it: never a slot of the placement in force.
    pub into: Buffer,
}

/// A copy inside a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LocalMove {
    /// The expert that is copied.
    pub expert: LogicalExpert,
    /// Where it is read.
    pub from: Buffer,
    /// What it overwrites.
    pub to: Buffer,
}

/// What a rank copies at the commit of a stage, one copy after the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RankCommit {
    /// The rank.
    pub rank: Rank,
    /// Its copies, in order.
    pub moves: Vec<LocalMove>,
}

/// A part of a layer's migration that ends with one commit.
///
/// Run the reads and the rounds while tokens flow: they write only to buffers that the placement in
/// force does not use. When all have arrived on all ranks, between two forward passes and on every
/// rank: run the copies of the commit, then swap the table for one of [`placement`](Self::placement).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MigrationStage {
    /// Experts that must be read from the checkpoint, by rank and expert.
    pub reads: Vec<CheckpointRead>,
    /// The rounds. In each, a rank sends to at most one rank and receives from at most one.
    pub rounds: Vec<Vec<Transfer>>,
    /// The copies of the commit, for every rank that has any, ascending.
    pub commits: Vec<RankCommit>,
    /// Staging buffers that each rank of the group needs, `[R]`.
    pub staging: Vec<usize>,
    /// Slots of [`placement`](Self::placement) that keep the expert that they held.
    pub unchanged: usize,
    /// Slots of [`placement`](Self::placement) that get a copy from another buffer of their rank:
    /// of an expert that the rank held, or of one that it receives for another slot too.
    pub copied: usize,
    /// The placement in force after the commit, over the ranks of the topology.
    pub placement: Placement,
}

impl MigrationStage {
    /// All transfers, round by round.
    pub fn transfers(&self) -> impl Iterator<Item = &Transfer> {
        self.rounds.iter().flatten()
    }

    /// The largest number of staging buffers that a rank needs.
    pub fn peak_staging(&self) -> usize {
        self.staging.iter().copied().max().unwrap_or(0)
    }
}

/// The migration of one layer: stages that commit one after the other.
///
/// No stage if the layer stays as it is; one, if the staging buffers hold all that a rank receives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LayerMigration {
    /// Bytes of one expert of this layer, if the planner was told.
    pub expert_bytes: Option<u64>,
    /// The stages, in order.
    pub stages: Vec<MigrationStage>,
}

impl LayerMigration {
    /// The numbers of the whole layer.
    pub fn summary(&self) -> MigrationSummary {
        let mut sum = MigrationSummary {
            link_bytes: Some(0),
            read_bytes: Some(0),
            ..MigrationSummary::default()
        };
        self.add_to(&mut sum);
        sum
    }

    /// Who sends how much to whom.
    pub fn traffic(&self) -> Traffic {
        Traffic::of(std::slice::from_ref(self))
    }

    fn bytes(&self, experts: usize) -> Option<u64> {
        if experts == 0 {
            return Some(0);
        }
        Some(self.expert_bytes?.saturating_mul(experts as u64))
    }

    fn add_to(&self, sum: &mut MigrationSummary) {
        sum.stages += self.stages.len();
        let (mut sent, mut read) = (0, 0);
        for stage in &self.stages {
            let same_node = stage
                .transfers()
                .filter(|t| t.link == Link::SameNode)
                .count();
            let transfers = stage.transfers().count();
            sent += transfers;
            read += stage.reads.len();
            sum.rounds += stage.rounds.len();
            sum.copied += stage.copied;
            sum.same_node += same_node;
            sum.cross_node += transfers - same_node;
            sum.peak_staging = sum.peak_staging.max(stage.peak_staging());
        }
        sum.checkpoint_reads += read;
        sum.link_bytes = add(sum.link_bytes, self.bytes(sent));
        sum.read_bytes = add(sum.read_bytes, self.bytes(read));
    }
}

/// The migration of every layer of a model. Layers are independent: each commits by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ModelMigration {
    /// The layers, in order.
    pub layers: Vec<LayerMigration>,
}

impl ModelMigration {
    /// The numbers of all layers together.
    pub fn summary(&self) -> MigrationSummary {
        let mut sum = MigrationSummary {
            link_bytes: Some(0),
            read_bytes: Some(0),
            ..MigrationSummary::default()
        };
        for layer in &self.layers {
            layer.add_to(&mut sum);
        }
        sum
    }

    /// Who sends how much to whom, over all layers.
    pub fn traffic(&self) -> Traffic {
        Traffic::of(&self.layers)
    }

    /// Whether every layer stays as it is.
    pub fn is_empty(&self) -> bool {
        self.layers.iter().all(|layer| layer.stages.is_empty())
    }
}

/// A migration in numbers. Over several layers and stages they add up, the peak is the largest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MigrationSummary {
    /// Stages, each with one commit.
    pub stages: usize,
    /// Rounds, if stages and layers follow one after the other.
    pub rounds: usize,
    /// Slots that get a copy from their own rank.
    pub copied: usize,
    /// Experts received from a rank of the same node.
    pub same_node: usize,
    /// Experts received from a rank of another node.
    pub cross_node: usize,
    /// Experts that must be read from the checkpoint.
    pub checkpoint_reads: usize,
    /// The largest number of staging buffers that a rank needs at a time.
    pub peak_staging: usize,
    /// Bytes sent between ranks, if the bytes of an expert are known.
    pub link_bytes: Option<u64>,
    /// Bytes read from the checkpoint, if the bytes of an expert are known.
    pub read_bytes: Option<u64>,
}

/// Who sends how much to whom.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Traffic {
    /// Every pair of ranks with traffic, by sender and receiver.
    pub links: Vec<LinkTraffic>,
    /// Every rank with traffic, ascending.
    pub ranks: Vec<RankTraffic>,
}

/// What one rank sends to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LinkTraffic {
    /// The rank that sends.
    pub from: Rank,
    /// The rank that receives.
    pub to: Rank,
    /// What lies between the two.
    pub link: Link,
    /// Experts sent.
    pub experts: usize,
    /// Bytes sent, if the bytes of an expert are known.
    pub bytes: Option<u64>,
}

/// What one rank sends, receives and reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RankTraffic {
    /// The rank.
    pub rank: Rank,
    /// Experts sent.
    pub sent: usize,
    /// Experts received from other ranks.
    pub received: usize,
    /// Experts read from the checkpoint.
    pub read: usize,
    /// Bytes sent, if the bytes of an expert are known.
    pub sent_bytes: Option<u64>,
    /// Bytes received from other ranks, if the bytes of an expert are known.
    pub received_bytes: Option<u64>,
    /// Bytes read from the checkpoint, if the bytes of an expert are known.
    pub read_bytes: Option<u64>,
}

impl RankTraffic {
    fn none(rank: Rank) -> Self {
        Self {
            rank,
            sent: 0,
            received: 0,
            read: 0,
            sent_bytes: Some(0),
            received_bytes: Some(0),
            read_bytes: Some(0),
        }
    }
}

impl Traffic {
    fn of(layers: &[LayerMigration]) -> Self {
        let mut links: BTreeMap<(Rank, Rank), LinkTraffic> = BTreeMap::new();
        let mut ranks: BTreeMap<Rank, RankTraffic> = BTreeMap::new();
        for layer in layers {
            let one = layer.bytes(1);
            for t in layer.stages.iter().flat_map(MigrationStage::transfers) {
                let link = links.entry((t.from, t.to)).or_insert(LinkTraffic {
                    from: t.from,
                    to: t.to,
                    link: t.link,
                    experts: 0,
                    bytes: Some(0),
                });
                link.experts += 1;
                link.bytes = add(link.bytes, one);
                let sender = ranks.entry(t.from).or_insert(RankTraffic::none(t.from));
                sender.sent += 1;
                sender.sent_bytes = add(sender.sent_bytes, one);
                let receiver = ranks.entry(t.to).or_insert(RankTraffic::none(t.to));
                receiver.received += 1;
                receiver.received_bytes = add(receiver.received_bytes, one);
            }
            for read in layer.stages.iter().flat_map(|stage| &stage.reads) {
                let reader = ranks
                    .entry(read.rank)
                    .or_insert(RankTraffic::none(read.rank));
                reader.read += 1;
                reader.read_bytes = add(reader.read_bytes, one);
            }
        }
        Self {
            links: links.into_values().collect(),
            ranks: ranks.into_values().collect(),
        }
    }
}

/// A sum is known only if both parts are.
fn add(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    Some(a?.saturating_add(b?))
}
