//! Copies that must look simultaneous, one after the other.

use std::collections::{BTreeMap, BTreeSet};

use moekit_routing::LogicalExpert;

use super::plan::{Buffer, LocalMove};

/// Where the commit saves a slot that a cycle of copies would lose. All that arrived in staging
/// buffers has left them by then.
pub(super) const SPARE: Buffer = Buffer::Staging(0);

/// Orders copies that read all their sources before any of them is overwritten.
///
/// A copy is due when nobody is left to read what it overwrites. When only cycles are left, one slot
/// of a cycle is saved in [`SPARE`]. A cycle of which a copy went elsewhere needs none: its reader
/// takes it from there. See Rideau, Serpette and Leroy, "Tilting at windmills with Coq: formal
/// verification of a compilation algorithm for parallel moves", J. Automated Reasoning 40 (2008).
/// O(n log n) for n copies.
///
/// # Arguments
///
/// - `sources` - where what shall be in a buffer is now. No source is its own destination, no
///   destination is a staging buffer.
///
/// # Returns
///
/// The copies, and whether they use [`SPARE`] for a cycle.
pub(super) fn in_sequence(
    mut sources: BTreeMap<Buffer, (Buffer, LogicalExpert)>,
) -> (Vec<LocalMove>, bool) {
    let mut readers: BTreeMap<Buffer, BTreeSet<Buffer>> = BTreeMap::new();
    for (&to, &(from, _)) in &sources {
        readers.entry(from).or_default().insert(to);
    }
    let mut due: BTreeSet<Buffer> = sources
        .keys()
        .filter(|to| !readers.contains_key(to))
        .copied()
        .collect();
    let mut moves = Vec::with_capacity(sources.len());
    let mut spare_used = false;
    while let Some((&first, _)) = sources.first_key_value() {
        let Some(to) = due.pop_first() else {
            let saved = relocate(first, SPARE, &mut readers, &mut sources);
            moves.extend(saved.map(|expert| LocalMove {
                expert,
                from: first,
                to: SPARE,
            }));
            spare_used = true;
            due.insert(first);
            continue;
        };
        let Some((from, expert)) = sources.remove(&to) else {
            continue;
        };
        moves.push(LocalMove { expert, from, to });
        if let Some(others) = readers.get_mut(&from) {
            others.remove(&to);
        }
        if sources.contains_key(&from) {
            // `from` is overwritten later; whoever else needs it finds it in `to`, for good.
            relocate(from, to, &mut readers, &mut sources);
            due.insert(from);
        }
    }
    (moves, spare_used)
}

/// All readers of `from` read `to` instead; the expert that they read, if there is any.
fn relocate(
    from: Buffer,
    to: Buffer,
    readers: &mut BTreeMap<Buffer, BTreeSet<Buffer>>,
    sources: &mut BTreeMap<Buffer, (Buffer, LogicalExpert)>,
) -> Option<LogicalExpert> {
    let moved = readers.remove(&from)?;
    let mut read = None;
    for reader in &moved {
        if let Some(source) = sources.get_mut(reader) {
            source.0 = to;
            read = Some(source.1);
        }
    }
    readers.entry(to).or_default().extend(moved);
    read
}

#[cfg(test)]
mod tests {
    use moekit_routing::LocalExpert;
    use proptest::prelude::*;

    use super::*;

    fn slot(i: usize) -> Buffer {
        Buffer::Slot(LocalExpert::new(i))
    }

    /// `sources[i]` is the slot whose content slot `i` shall have.
    fn check(sources: &[usize]) -> (usize, bool) {
        let wanted = sources
            .iter()
            .enumerate()
            .filter(|(i, s)| i != *s)
            .map(|(i, &s)| (slot(i), (slot(s), LogicalExpert::new(s))))
            .collect();
        let (moves, spare) = in_sequence(wanted);
        let mut memory: BTreeMap<Buffer, usize> =
            (0..sources.len()).map(|i| (slot(i), i)).collect();
        for m in &moves {
            let read = memory[&m.from];
            assert_eq!(read, m.expert.index(), "{moves:?}");
            memory.insert(m.to, read);
        }
        for (i, source) in sources.iter().enumerate() {
            assert_eq!(memory[&slot(i)], *source, "slot {i} after {moves:?}");
        }
        (moves.len(), spare)
    }

    #[test]
    fn chains_need_an_order_and_cycles_a_spare_buffer() {
        assert_eq!(check(&[1, 2, 3, 3]), (3, false));
        assert_eq!(check(&[3, 0, 1, 2]), (5, true));
        assert_eq!(check(&[1, 0, 3, 2]), (6, true));
        assert_eq!(check(&[0, 1]), (0, false));
        // The copy of slot 0 in slot 2 breaks the cycle.
        assert_eq!(check(&[1, 0, 0]), (3, false));
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_was_there(
            sources in (1_usize..12).prop_flat_map(|n| prop::collection::vec(0..n, n))
        ) {
            let changed = sources.iter().enumerate().filter(|(i, s)| i != *s).count();
            let (moves, _) = check(&sources);
            // At most one more for every two slots: a cycle has at least two.
            prop_assert!(moves >= changed && moves <= changed + changed / 2);
        }
    }
}
