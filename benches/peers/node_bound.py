#!/usr/bin/env python3
"""How much load has to leave its home node: a linear program over replicas, beside the closed form.

A lower bound for every plan of a layer that reaches a balance. See README.md for the environment.
"""

import argparse
import itertools
import tempfile
from pathlib import Path

import highspy
import moekit
import numpy as np


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--moekit", type=Path, default="target/release/moekit", help="the binary")
    add("--profiles", default="zipf:0.8,zipf:1.0", help="of `moekit generate`")
    add("--nodes", default="4,8")
    add("--layers", type=int, default=16)
    add("--seed", type=int, default=11)
    add("--balance", type=float, default=0.98, help="mean over largest rank load of the plans")
    parser.set_defaults(experts=256, slots=288, ranks=32, groups=8)
    return parser.parse_args()


def load(options, profile):
    """The load of each expert, [L, E]."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "load.npy"
        moekit.generate(options.moekit, file, profile, options.experts, options.layers, 1_000_000, options.seed)
        return np.load(file)[0].astype(np.float64)


def assignments(groups, each):
    """All ways to give every node equally many groups, nodes alike."""
    if not groups:
        yield []
        return
    for others in itertools.combinations(groups[1:], each - 1):
        node = (groups[0], *others)
        for rest in assignments([g for g in groups if g not in node], each):
            yield [node, *rest]


def spill(weights, nodes, options):
    """The closed form: the part of the load above what nodes carry at the balance."""
    capacity = weights.sum() / len(nodes) / options.balance
    groups = weights.reshape(options.groups, -1).sum(1)
    return sum(max(0.0, groups[list(node)].sum() - capacity) for node in nodes) / weights.sum()


def program(weights, nodes, options):
    """Costs, rows and expert of each choice: `home` replicas at home and `away` elsewhere.

    Rows (coefficients, upper bound): load and slots of each node by what is at home there, large
    replicas, of which no rank holds two, on each node, and slots and large replicas in all. What
    comes from elsewhere may be cut at will, so that no plan leaves less than the minimum.
    """
    on_node = options.ranks // len(nodes)
    limit = weights.sum() / options.ranks / options.balance
    shape = range(options.experts), range(on_node + 1), range(options.ranks - on_node + 1)
    expert, home, away = (axis.ravel() for axis in np.meshgrid(*shape, indexing="ij"))
    count = home + away
    share = weights[expert] / np.maximum(count, 1)
    possible = (count > 0) & (count <= 1 + options.slots - options.experts) & (share <= limit)
    expert, home, away, count, share = (values[possible] for values in (expert, home, away, count, share))
    group = expert // (options.experts // options.groups)
    large = share > limit / 2
    rows = [(count, options.slots), (count * large, options.ranks)]
    for node in nodes:
        here = home * np.isin(group, node)
        slots, capacity = options.slots // len(nodes), float(on_node)
        rows += [(here * share / limit, capacity), (here, slots), (here * large, on_node)]
    return share * away / weights.sum(), rows, expert


def minimum(costs, rows, expert):
    """The relaxation: every expert makes one choice, or parts of several."""
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("threads", 1)
    starts = np.append(np.unique(expert, return_index=True)[1], len(expert))  # choices are sorted by expert
    chosen = [np.arange(*ends) for ends in itertools.pairwise(starts)]
    index = [np.flatnonzero(row) for row, _ in rows] + chosen
    value = [row[at] for (row, _), at in zip(rows, index)] + [np.ones(len(choices)) for choices in chosen]
    program = highspy.HighsLp()
    program.num_col_, program.num_row_ = len(costs), len(index)
    program.col_cost_, program.col_lower_, program.col_upper_ = costs, np.zeros(len(costs)), np.ones(len(costs))
    program.row_lower_ = np.array([-highspy.kHighsInf] * len(rows) + [1.0] * len(chosen))
    program.row_upper_ = np.array([most for _, most in rows] + [1.0] * len(chosen), dtype=np.float64)
    program.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    program.a_matrix_.start_ = np.cumsum([0] + [len(at) for at in index])
    program.a_matrix_.index_ = np.concatenate(index)
    program.a_matrix_.value_ = np.concatenate(value).astype(np.float64)
    solver.passModel(program)
    solver.run()
    optimal = solver.getModelStatus() == highspy.HighsModelStatus.kOptimal
    return solver.getInfo().objective_function_value if optimal else np.inf


def bounds(weights, num_nodes, options):
    """The closed form and the linear program under the best homes of the groups."""
    homes = assignments(list(range(options.groups)), options.groups // num_nodes)
    candidates = sorted((spill(weights, nodes, options), nodes) for nodes in homes)
    least = np.inf
    for closed, nodes in candidates:
        if closed >= least:  # the program is never below the closed form
            break
        least = min(least, minimum(*program(weights, nodes, options)))
    return candidates[0][0], least


def main():
    options = arguments()
    for profile in options.profiles.split(","):
        layers = load(options, profile)
        for nodes in (int(nodes) for nodes in options.nodes.split(",")):
            found = 100 * np.array([bounds(weights, nodes, options) for weights in layers])
            closed, program = found.mean(0)
            print(
                f"{profile} on {nodes} nodes at balance {options.balance}: closed form {closed:.2f} %, "
                f"linear program {program:.2f} %, {(found[:, 1] - found[:, 0]).max():.2f} points more at most"
            )


if __name__ == "__main__":
    main()
