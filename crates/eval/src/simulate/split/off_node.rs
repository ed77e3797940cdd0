use moekit_routing::{PhysicalExpert, RoutingTable};

/// Tokens that leave their node if the choice of a slot does not look at where they are.
///
/// # Arguments
///
/// - `loads` - tokens per slot, `[P]`.
pub fn off_node_blind(table: &RoutingTable, loads: &[f64]) -> f64 {
    let at_home = node_shares(table);
    slot_nodes(table)
        .zip(loads)
        .map(|(node, load)| load * (1.0 - at_home[node]))
        .sum()
}

/// Tokens that leave their node if every node serves its own tokens first: the least that the
/// loads of the slots allow.
///
/// # Arguments
///
/// - `counts` - tokens per logical expert, `[E]`.
/// - `loads` - tokens per slot, `[P]`.
pub fn off_node_nearest(table: &RoutingTable, counts: &[f64], loads: &[f64]) -> f64 {
    let nodes = table.topology().num_nodes();
    let mut served = vec![0.0; counts.len() * nodes];
    let experts = table.placement().physical_to_logical();
    for ((node, expert), load) in slot_nodes(table).zip(experts).zip(loads) {
        if let Some(served) = served.get_mut(expert.index() * nodes + node) {
            *served += load;
        }
    }
    let at_home = node_shares(table);
    served
        .chunks(nodes)
        .zip(counts)
        .flat_map(|(nodes, count)| {
            nodes
                .iter()
                .zip(&at_home)
                .map(move |(s, home)| s - home * count)
        })
        .map(|beyond| beyond.max(0.0))
        .sum()
}

/// The share of the ranks, and so of the tokens, that each node has.
fn node_shares(table: &RoutingTable) -> Vec<f64> {
    let topology = table.topology();
    (0..topology.num_nodes())
        .filter_map(|node| topology.ranks_of(node))
        .map(|ranks| ranks.len() as f64 / topology.num_ranks() as f64)
        .collect()
}

/// The node of each slot.
fn slot_nodes(table: &RoutingTable) -> impl Iterator<Item = usize> {
    (0..table.num_physical_experts())
        .map(PhysicalExpert::new)
        .filter_map(|slot| table.topology().node_of(table.owner(slot)?))
}
