//! The example plugins, tested and run as their authors would.

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
