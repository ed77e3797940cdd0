use super::{SelectContext, SelectReplica, for_each_id};
use crate::{PhysicalExpert, RoutingError};

/// A replica on the token's own rank if there is one, else on its node, else any; in turn among
/// equally near ones. Saves traffic where load is even; it does not look at load.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalFirst;

impl SelectReplica for LocalFirst {
    fn select(
        &self,
        context: &SelectContext<'_>,
        topk_ids: &[i64],
        physical: &mut [i64],
    ) -> Result<(), RoutingError> {
        let table = context.table;
        let node = table.topology().node_of(context.rank);
        let distance = |slot: PhysicalExpert| match table.owner(slot) {
            None => 0,
            Some(owner) if owner == context.rank => 0,
            Some(owner) if table.topology().node_of(owner) == node => 1,
            Some(_) => 2,
        };
        let experts = table.num_logical_experts() + table.num_shared_experts();
        let mut next = vec![context.rank.index(); experts];
        for_each_id(context, topk_ids, physical, |_, expert, replicas| {
            let nearest = replicas.iter().map(|&s| distance(s)).min().unwrap_or(0);
            let near = || replicas.iter().copied().filter(|&s| distance(s) == nearest);
            let turn = &mut next[expert.index()];
            let chosen = near().nth(*turn % near().count().max(1));
            *turn += 1;
            chosen.unwrap_or(replicas[0])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Placement, Rank, RoutingTable, Topology};

    #[test]
    fn rank_then_node_then_any() {
        let ranks = [vec![0, 1], vec![0], vec![2, 0], vec![0]];
        let placement = Placement::from_ranks(3, &ranks).unwrap();
        let topology = Topology::new(4).unwrap().with_nodes(2).unwrap();
        let table = RoutingTable::new(placement, topology, 0, 0).unwrap();
        let select = |rank, id| {
            let mut physical = [0];
            let context = SelectContext::new(&table, Rank::new(rank), 1);
            LocalFirst.select(&context, &[id], &mut physical).unwrap();
            physical[0]
        };
        assert_eq!(select(2, 0), 4, "the own rank");
        assert_eq!(select(1, 1), 1, "the own node");
        assert_eq!(select(0, 2), 3, "the only one, elsewhere");
        let alone = Placement::from_ranks(2, &[vec![1], vec![1], vec![0], vec![0]]).unwrap();
        let topology = Topology::new(4).unwrap().with_nodes(2).unwrap();
        let table = RoutingTable::new(alone, topology, 0, 0).unwrap();
        let mut physical = [0; 4];
        let context = SelectContext::new(&table, Rank::new(0), 1);
        LocalFirst.select(&context, &[0; 4], &mut physical).unwrap();
        assert_eq!(physical, [2, 3, 2, 3], "in turn among equally near ones");
    }
}
