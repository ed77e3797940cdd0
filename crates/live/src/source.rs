use std::fmt::Debug;
use std::sync::Arc;

use moekit_quant::ExpertMlp;
use moekit_routing::LogicalExpert;

use crate::error::SourceError;

/// Where the experts of a model can be read at any time: its checkpoint.
///
/// Each rank has one; it is asked for the experts of the first placement, and later for those
/// that no rank of the group holds any more. Several threads may ask at a time.
pub trait ExpertSource: Debug + Send + Sync {
    /// Reads one expert.
    ///
    /// # Arguments
    ///
    /// - `layer` - position among the layers of the [`LiveRank`](crate::LiveRank).
    ///
    /// # Errors
    ///
    /// Whatever keeps it from being read. It is asked again later.
    fn read(&self, layer: usize, expert: LogicalExpert) -> Result<Arc<ExpertMlp>, SourceError>;
}
