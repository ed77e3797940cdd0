//! The example plugins, tested and run as their authors would.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::process::{Command, Output};

use moekit_placement::{ModelPlacement, PlacementFile};
use moekit_tests::Nested;

fn run(command: &mut Command) -> (Output, String, String) {
    let output = command.output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, stdout, stderr)
}

#[test]
fn a_strategy_conforms_and_plans_by_name() {
    let plugin = Nested::new("plugins/strategy-snake", env!("CARGO_TARGET_TMPDIR")).unwrap();

    let (output, stdout, stderr) = run(&mut plugin.cargo("test"));
    assert!(output.status.success(), "{stdout}{stderr}");
    for module in ["hottest", "in_turn"] {
        let line = format!("test {module}::covers_all_experts ... ok");
        assert!(stdout.contains(&line), "{stdout}");
    }

    let (output, stdout, stderr) = run(plugin.cargo("run").args(["--", "plan.toml"]));
    assert!(output.status.success(), "{stderr}");
    let file: PlacementFile = serde_json::from_str(&stdout).unwrap();
    let plan = ModelPlacement::try_from(file).unwrap();
    assert_eq!((plan.num_layers(), plan.num_logical_experts()), (2, 12));
    assert_eq!(plan.layers()[0].rank_offsets(), [0, 4, 8, 12, 16]);
    let first: Vec<_> = plan.layers()[0].physical_to_logical()[..4].to_vec();
    // The heaviest expert opens rank 0, which then waits for the snake to come back.
    assert_eq!(
        first.iter().map(|e| e.index()).collect::<Vec<_>>(),
        [10, 1, 3, 7]
    );
}

#[test]
fn a_misspelled_strategy_gets_the_plugins_name() {
    let plugin = Nested::new("plugins/strategy-snake", env!("CARGO_TARGET_TMPDIR")).unwrap();
    let config = std::fs::read_to_string(plugin.dir().join("plan.toml")).unwrap();
    let misspelled = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("misspelled.toml");
    std::fs::write(&misspelled, config.replace("snake", "snek")).unwrap();

    let (output, stdout, stderr) = run(plugin.cargo("run").arg("--").arg(&misspelled));
    assert!(!output.status.success() && stdout.is_empty(), "{stdout}");
    assert!(
        stderr.contains("did you mean `snake`?; linked are: snake."),
        "{stderr}"
    );
}

#[test]
fn a_backend_conforms_and_is_chosen_by_the_checkpoint() {
    let plugin = Nested::new("plugins/quant-int8-rows", env!("CARGO_TARGET_TMPDIR")).unwrap();

    let (output, stdout, stderr) = run(&mut plugin.cargo("test"));
    assert!(output.status.success(), "{stdout}{stderr}");
    for module in ["symmetric", "with_zero_points"] {
        let line = format!("test {module}::fills_every_slot ... ok");
        assert!(stdout.contains(&line), "{stdout}");
    }

    let (output, stdout, stderr) = run(plugin.cargo("run").args(["--", "config.json"]));
    assert!(output.status.success(), "{stderr}");
    // Half a step of the largest scale, (1 + 1) / 255.
    assert_eq!(stdout, "int8_rows: 4 experts read back within 0.0039\n");
}

/// What a backend has in its manifest is all that it can name.
#[test]
fn a_backend_cannot_reach_placement_or_layer() {
    let reach = Nested::new("ui/reach", env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (output, _, stderr) = run(reach.cargo("build").args(["--bin", "routing"]));
    assert!(output.status.success(), "{stderr}");
    for (program, message) in [
        (
            "placement",
            "use of unresolved module or unlinked crate `moekit_placement`",
        ),
        (
            "layer",
            "use of unresolved module or unlinked crate `moekit_fused_moe`",
        ),
        (
            "strategy",
            "no method named `strategy` found for reference `&dyn ExpertRouting`",
        ),
    ] {
        let (output, _, stderr) = run(reach.cargo("build").args(["--bin", program]));
        assert!(
            !output.status.success() && stderr.contains(message),
            "{stderr}"
        );
    }
}
