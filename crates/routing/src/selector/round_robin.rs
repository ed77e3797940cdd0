use super::{SelectContext, SelectReplica, for_each_id};
use crate::RoutingError;

/// Each expert's replicas in turn, so that within a batch their counts differ by at most one.
/// The first replica to take differs from rank to rank, so that many small batches spread too.
#[derive(Clone, Copy, Debug, Default)]
pub struct RoundRobin;

impl SelectReplica for RoundRobin {
    fn select(
        &self,
        context: &SelectContext<'_>,
        topk_ids: &[i64],
        physical: &mut [i64],
    ) -> Result<(), RoutingError> {
        let experts = context.table.num_logical_experts() + context.table.num_shared_experts();
        let mut next = vec![context.rank.index(); experts];
        for_each_id(context, topk_ids, physical, |_, expert, replicas| {
            let turn = &mut next[expert.index()];
            let replica = replicas[*turn % replicas.len()];
            *turn += 1;
            replica
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Placement, Rank, RoutingTable, Topology};

    #[test]
    fn counts_differ_by_at_most_one_and_ranks_start_apart() {
        let placement = Placement::from_ranks(1, &[[0], [0], [0]]).unwrap();
        let table = RoutingTable::new(placement, Topology::new(3).unwrap(), 0, 0).unwrap();
        let mut physical = vec![0; 7];
        let context = SelectContext::new(&table, Rank::new(2), 1);
        RoundRobin.select(&context, &[0; 7], &mut physical).unwrap();
        assert_eq!(physical, [2, 0, 1, 2, 0, 1, 2]);
    }
}
