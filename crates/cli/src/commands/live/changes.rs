//! Changes of the group during a live run: what `--resize` and `--lose` say.

use std::collections::BTreeSet;

use super::drive::{Change, What};
use crate::error::{CliError, Result};
use crate::planning::MOST_RANKS;

/// Reads the changes, in the order of their steps.
///
/// # Arguments
///
/// - `ranks` - ranks of the first group.
/// - `steps` - steps of the run.
///
/// # Errors
///
/// If one cannot be understood, or cannot happen.
pub(super) fn parse(
    resize: Option<&str>,
    lose: Option<&str>,
    ranks: usize,
    steps: u64,
) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    for (flag, list) in [("resize", resize), ("lose", lose)] {
        for part in list.into_iter().flat_map(|list| list.split(',')) {
            let wrong = || {
                CliError::usage(format!(
                    "`--{flag}`: `{part}` is not STEP:NUMBER, e.g. 50:3"
                ))
            };
            let (step, number) = part.split_once(':').ok_or_else(wrong)?;
            let step = step.trim().parse().map_err(|_| wrong())?;
            let number = number.trim().parse().map_err(|_| wrong())?;
            let what = match flag {
                "resize" => What::Ranks(number),
                _ => What::Lose(number),
            };
            changes.push(Change { step, what });
        }
    }
    changes.sort_by_key(|change| change.step);
    check(&changes, ranks, steps)?;
    Ok(changes)
}

/// Refuses what cannot happen, whatever else does: a group may not have the wanted size yet.
fn check(changes: &[Change], ranks: usize, steps: u64) -> Result<()> {
    let mut largest = ranks;
    let mut seen = BTreeSet::new();
    for change in changes {
        let step = change.step;
        let wrong = |why: String| Err(CliError::usage(format!("`{change}`: {why}")));
        if step == 0 || step > steps {
            return wrong(format!("steps are 1 to {steps}"));
        }
        // One size, and each rank once, in every step.
        let number = match change.what {
            What::Ranks(_) => None,
            What::Lose(rank) => Some(rank),
        };
        if !seen.insert((step, number)) {
            return wrong(format!("step {step} has such a change already"));
        }
        match change.what {
            What::Ranks(number) if number == 0 || number > MOST_RANKS => {
                return wrong(format!("a group has 1 to {MOST_RANKS} ranks"));
            }
            What::Ranks(number) => largest = largest.max(number),
            What::Lose(rank) if rank >= largest => {
                return wrong(format!("there are never more than ranks 0..{largest}"));
            }
            What::Lose(_) => {
                let lost = seen.range((step, Some(0))..=(step, Some(usize::MAX)));
                if lost.count() >= largest {
                    return wrong("no rank is left".to_owned());
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_come_in_the_order_of_their_steps() {
        let changes = parse(Some("5:3, 20:1"), Some("5:0,7:2"), 1, 20).unwrap();
        let told: Vec<String> = changes.iter().map(Change::to_string).collect();
        assert_eq!(
            told,
            ["--resize 5:3", "--lose 5:0", "--lose 7:2", "--resize 20:1"]
        );
        assert!(parse(None, None, 1, 1).unwrap().is_empty());
    }

    #[test]
    fn what_cannot_happen_is_refused() {
        for (resize, lose, ranks, said) in [
            ("5", "", 2, "STEP:NUMBER"),
            ("5:0", "", 2, "1 to 1024 ranks"),
            ("2:18446744073709551615", "", 2, "1 to 1024 ranks"),
            ("99:2", "", 2, "`--resize 99:2`: steps are 1 to 6"),
            ("2:2,2:4", "", 2, "`--resize 2:4`: step 2 has such a change"),
            (
                "",
                "2:9",
                2,
                "`--lose 2:9`: there are never more than ranks 0..2",
            ),
            ("3:4", "2:2", 2, "never more than ranks 0..2"),
            ("", "0:0", 2, "steps are 1 to 6"),
            ("", "99:1", 2, "steps are 1 to 6"),
            ("", "2:1,2:1", 3, "step 2 has such a change"),
            ("", "2:0,2:1", 2, "`--lose 2:1`: no rank is left"),
        ] {
            let list = |text: &'static str| Some(text).filter(|text| !text.is_empty());
            let error = parse(list(resize), list(lose), ranks, 6).unwrap_err();
            assert!(error.to_string().contains(said), "{error}");
        }
    }
}
