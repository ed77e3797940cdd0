//! Whether a live run was what it was to be.

use super::drive::{Change, What};
use super::record::Summary;
use crate::error::{CliError, Result};

/// The verdict on a run.
///
/// # Arguments
///
/// - `steps` - those that it was to have, `None` if the user has ended it.
///
/// # Errors
///
/// If outputs were wrong, all ranks were lost before the end, a rank that was to be lost was not
/// there, or the group did not come to a size that it was to have.
pub(super) fn verdict(summary: &Summary, changes: &[Change], steps: Option<u64>) -> Result<()> {
    let wrong = |message: String| Err(CliError::usage(message));
    if let (Some(wrong_outputs @ 1..), Some(compared)) =
        (summary.wrong_outputs, summary.compared_outputs)
    {
        return wrong(format!(
            "{wrong_outputs} of {compared} outputs differ from one rank's"
        ));
    }
    if let Some(steps) = steps.filter(|&steps| summary.steps < steps) {
        return wrong(format!(
            "the run ended after step {} of {steps}: all ranks were lost",
            summary.steps
        ));
    }
    let missed = changes.iter().find(|change| {
        let due = matches!(change.what, What::Lose(_)) && change.step <= summary.steps;
        due && !summary.recovered_in.contains(&change.step)
    });
    if let Some(change) = missed {
        return wrong(format!("`{change}`: there was no such rank in that step"));
    }
    // Who ends a run does not wait for what is under way.
    let unreached = steps.and_then(|_| unreached(summary, changes));
    unreached.map_or(Ok(()), |(change, ranks)| {
        wrong(format!(
            "`{change}`: no step from there on had {ranks} ranks before the run ended"
        ))
    })
}

/// The first size that the group did not come to, one after the other.
fn unreached<'a>(summary: &Summary, changes: &'a [Change]) -> Option<(&'a Change, usize)> {
    let mut steps = summary.sizes.iter();
    changes.iter().find_map(|change| match change.what {
        What::Lose(_) => None,
        What::Ranks(ranks) => {
            let reached = steps.any(|&(step, size)| step >= change.step && size == ranks);
            (!reached).then_some((change, ranks))
        }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn what_went_wrong_is_an_error() {
        let lose = Change {
            step: 3,
            what: What::Lose(1),
        };
        let summary = |wrong: usize, recovered: &[u64]| Summary {
            steps: 8,
            wrong_outputs: Some(wrong),
            compared_outputs: Some(20),
            recovered_in: BTreeSet::from_iter(recovered.iter().copied()),
            ..Summary::default()
        };
        let said = |summary, changes: &[Change], steps| {
            let verdict = verdict(&summary, changes, steps);
            verdict.map_or_else(|error| error.to_string(), |()| "fine".to_owned())
        };
        assert_eq!(said(summary(0, &[3]), &[lose], Some(8)), "fine");
        assert_eq!(
            said(summary(2, &[3]), &[lose], Some(8)),
            "2 of 20 outputs differ from one rank's"
        );
        assert_eq!(
            said(summary(0, &[]), &[], Some(9)),
            "the run ended after step 8 of 9: all ranks were lost"
        );
        assert_eq!(said(summary(0, &[]), &[], None), "fine", "the user's wish");
        assert_eq!(
            said(summary(0, &[4]), &[lose], Some(8)),
            "`--lose 3:1`: there was no such rank in that step"
        );
        let later = Change { step: 9, ..lose };
        assert_eq!(said(summary(0, &[]), &[later], None), "fine", "not reached");
    }

    #[test]
    fn sizes_are_reached_one_after_the_other() {
        let resize = |step, ranks| Change {
            step,
            what: What::Ranks(ranks),
        };
        let summary = Summary {
            steps: 6,
            sizes: vec![(1, 1), (2, 1), (3, 2), (4, 3), (5, 2), (6, 2)],
            ..Summary::default()
        };
        let said = |changes: &[Change], steps| {
            let verdict = verdict(&summary, changes, steps);
            verdict.map_or_else(|error| error.to_string(), |()| "fine".to_owned())
        };
        assert_eq!(said(&[resize(2, 3), resize(3, 2)], Some(6)), "fine");
        assert_eq!(said(&[resize(1, 1)], Some(6)), "fine", "it was there");
        assert_eq!(
            said(&[resize(2, 2), resize(5, 3)], Some(6)),
            "`--resize 5:3`: no step from there on had 3 ranks before the run ended"
        );
        assert!(said(&[resize(3, 2), resize(4, 1)], Some(6)).contains("4:1"));
        assert_eq!(said(&[resize(4, 1)], None), "fine", "the user's wish");
    }
}
