// The token splitter (water-filling selectors) is being written in crates/routing/src/selector/waterfill*
// by another session: not needed here. For measurements use its `WaterFill` once it compiles.
// Still to do here: budgeted re-plan from a placement in force, nodes/homes as soft cost, budgets over layers, lost rank.
