use super::{SelectContext, SelectReplica, for_each_id};
use crate::RoutingError;

/// Knuth's multiplicative hash constant, 2^32 divided by the golden ratio.
const GOLDEN: u32 = 2_654_435_769;

/// vLLM's choice: `(row * 2654435769 mod 2^32) % replicas`, the same replica for all ids of a row
/// and in all layers. Row 0 always takes the first replica, so batches of one token do not spread;
/// prefer another selector unless the choices must equal vLLM's.
#[derive(Clone, Copy, Debug, Default)]
pub struct RowHash;

impl SelectReplica for RowHash {
    fn select(
        &self,
        context: &SelectContext<'_>,
        topk_ids: &[i64],
        physical: &mut [i64],
    ) -> Result<(), RoutingError> {
        let top_k = context.top_k.max(1);
        for_each_id(context, topk_ids, physical, |position, _, replicas| {
            // The engine multiplies in 32 bits.
            let row = (position / top_k) as u32;
            replicas[row.wrapping_mul(GOLDEN) as usize % replicas.len()]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Placement, Rank, RoutingTable, Topology};

    /// Replica indices as vLLM's kernel gives them for rows 0, 1, ...
    #[test]
    fn equals_vllm() {
        let recorded: [(usize, &[i64]); 3] = [
            (3, &[0, 0, 2, 2, 1, 0, 0, 2, 2, 1, 0, 0, 2, 1, 1]),
            (5, &[0, 4, 2, 1, 4, 2, 1, 4, 3, 1, 4, 3]),
            (6, &[0, 3, 2, 5, 4, 3, 0, 5, 2, 1]),
        ];
        for (count, expected) in recorded {
            let placement = Placement::from_ranks(1, &[vec![0; count]]).unwrap();
            let table = RoutingTable::new(placement, Topology::new(1).unwrap(), 0, 0).unwrap();
            let mut physical = vec![0; expected.len()];
            let context = SelectContext::new(&table, Rank::new(0), 1);
            RowHash
                .select(&context, &vec![0; expected.len()], &mut physical)
                .unwrap();
            assert_eq!(physical, expected);
        }
    }

    #[test]
    fn powers_of_two_go_by_row() {
        let placement = Placement::from_ranks(2, &[[0, 1], [0, 1], [0, 1], [0, 1]]).unwrap();
        let table = RoutingTable::new(placement, Topology::new(4).unwrap(), 0, 0).unwrap();
        let ids: Vec<i64> = [0, 1].repeat(9);
        let mut physical = vec![0; ids.len()];
        let context = SelectContext::new(&table, Rank::new(2), 2);
        RowHash.select(&context, &ids, &mut physical).unwrap();
        let expected: Vec<i64> = (0..9)
            .flat_map(|row| [row % 4 * 2, row % 4 * 2 + 1])
            .collect();
        assert_eq!(physical, expected);
    }
}
