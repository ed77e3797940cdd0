#!/usr/bin/env python3
"""How balanced a plan can be at most: linear programs over all ways to fill a rank, beside the bound.

A lower bound of the largest rank load that counts which replicas go together on a rank, for plans with no
expert twice on one. Numbers of replicas are whole (branch and price); only fillings are taken in fractions.
See README.md for the environment.
"""

import argparse
import json
import tempfile
from pathlib import Path

import highspy
import moekit
import numpy as np

GRID = 20_000  # parts of the limit; replicas are rounded down to them, so that no filling is missed
SAND = 0.02  # replicas below this part of a mean rank take a slot, and their load goes anywhere
COLUMNS = 12  # fillings that are added at once
SURE = 1e-5  # what is missing above this is no rounding error


def shape(text):
    """Experts, slots and ranks."""
    parts = tuple(int(part) for part in text.split("/"))
    if len(parts) != 3 or min(parts) < 1 or parts[1] % parts[2]:
        raise argparse.ArgumentTypeError(f"{text!r} is not EXPERTS/SLOTS/RANKS with the slots a multiple of the ranks")
    return parts


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--moekit", type=Path, default="target/release/moekit", help="the binary")
    add("--profile", default="powerlaw:1.2", help="of `moekit generate`")
    add("--shape", type=shape, default="256/288/32", help="EXPERTS/SLOTS/RANKS")
    add("--layers", type=int, default=58)
    add("--tokens", type=int, default=1_000_000)
    add("--seed", type=int, default=1)
    add("--below", type=float, default=0.999, help="look at layers whose part of the bound is smaller")
    add("--precision", type=float, default=0.001, help="of the new bound, as a part of it")
    add("--rounds", type=int, default=1000, help="of a linear program, after which it says nothing")
    add("--branches", type=int, default=400, help="over numbers of replicas, after which a limit is not ruled out")
    return parser.parse_args()


def plan(options):
    """The load of each expert [L, E], and what the plan of each layer comes to."""
    experts, slots, ranks = options.shape
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "load.npy"
        load = options.profile, experts, options.layers, options.tokens, options.seed
        moekit.generate(options.moekit, file, *load)
        request = ["--load", file, "--ranks", ranks, "--slots", slots, "--strategies", "adaptive"]
        report = json.loads(moekit.run([options.moekit, "compare", *request, "--json"]))
        return np.load(file)[0].astype(np.float64), report["strategies"][0]["layers"]


class Undecided(Exception):
    """Neither is shown that a limit can be kept, nor that it can't."""


class Layer:
    """What a layer's plans are made of, and the fillings of a rank that are known."""

    def __init__(self, weights, slots, ranks):
        self.weights, self.slots, self.ranks = weights, slots, ranks
        self.sand = SAND * weights.sum() / ranks
        self.heavy = [int(expert) for expert in np.flatnonzero(weights > self.sand)]
        self.spare = slots - (len(weights) - len(self.heavy))  # slots for heavy experts
        self.most = min(ranks, slots - len(weights) + 1)  # replicas of an expert
        self.fillings = set()  # of (expert, count)

    def replicas(self, limit, within):
        """All (expert, count) with the load of a replica in parts of the limit, rounded down."""
        found = {}
        for expert in self.heavy:
            load = self.weights[expert]
            low, high = within.get(expert, (1, self.most))
            fewest = max(low, int(np.ceil(load / limit * (1 - 1e-12))))
            for count in range(fewest, high + 1):
                is_sand = load / count < self.sand
                found[expert, count] = 0 if is_sand else int(GRID * load / count / limit)
                if is_sand:
                    break
        return found

    def is_impossible(self, limit, options):
        """Whether no plan stays below the limit: no counts are left for which fractions of fillings hold all experts."""
        open_branches, looked_at = [{}], 0
        while open_branches:
            if looked_at == options.branches:
                raise Undecided
            looked_at += 1
            within = open_branches.pop()
            counts = self.relaxation(limit, within, options.rounds)
            if counts is None:
                continue
            expert, split = self.most_divided(counts)
            if split is None:
                return False
            low, high = within.get(expert, (1, self.most))
            split = min(max(split, low), high - 1)
            open_branches += [{**within, expert: (low, split)}, {**within, expert: (split + 1, high)}]
        return True

    def most_divided(self, counts):
        """The expert whose number of replicas is least whole, and where to divide; no number if all are whole."""
        spread = {}
        for expert, parts in counts.items():
            mean = sum(count * part for count, part in parts.items())
            away = sum(abs(count - mean) * part for count, part in parts.items())
            spread[expert] = away * np.sqrt(self.weights[expert]), int(mean)
        expert = max(spread, key=lambda expert: spread[expert][0])
        return expert, spread[expert][1] if len(counts[expert]) > 1 else None

    def relaxation(self, limit, within, rounds):
        """How much of each expert has how many replicas, `{expert: {count: part}}`; `None` if nothing is below the limit."""
        replicas = self.replicas(limit, within)
        program = Program(self, replicas)
        fits = [f for f in self.fillings if all(r in replicas for r in f) and sum(replicas[r] for r in f) <= GRID]
        program.add([*fits, *((replica,) for replica in replicas if replicas[replica] <= GRID)])
        for _ in range(rounds):
            missing, worth, price = program.solve()
            if missing < SURE:
                return program.counts()
            best, fillings = fill(replicas, worth, self.slots // self.ranks)
            # No plan misses less than this: so many ranks gain at most so much each.
            if missing - self.ranks * max(0.0, best - price) > SURE:
                return None
            new = [filling for value, filling in fillings if value > price + 1e-9]
            if not new:
                return None
            self.fillings.update(new)
            program.add(new)
        raise Undecided


class Program:
    """Fillings of ranks that cover the replicas of all experts; the least number of experts that are missing."""

    def __init__(self, layer, replicas):
        self.solver = highspy.Highs()
        self.solver.setOptionValue("output_flag", False)
        self.solver.setOptionValue("threads", 1)
        self.replicas = list(replicas)
        experts = {expert: row for row, expert in enumerate(layer.heavy)}
        self.num_experts = len(experts)
        self.row = {replica: len(experts) + row for row, replica in enumerate(self.replicas)}
        self.ranks_row = len(experts) + len(replicas)
        infinity = highspy.kHighsInf
        # Each expert has a count or is missing; each replica of that count is in a filling.
        for low in [1.0] * len(experts) + [0.0] * len(replicas):
            self.solver.addRow(low, infinity, 0, [], [])
        for high in layer.ranks, layer.spare:
            self.solver.addRow(-infinity, float(high), 0, [], [])
        for row in experts.values():
            self.solver.addCol(1.0, 0.0, infinity, 1, [row], [1.0])
        for expert, count in self.replicas:
            rows = [experts[expert], self.row[expert, count], self.ranks_row + 1]
            self.solver.addCol(0.0, 0.0, infinity, 3, rows, [1.0, -float(count), float(count)])

    def add(self, fillings):
        for filling in fillings:
            rows = [*(self.row[replica] for replica in filling), self.ranks_row]
            self.solver.addCol(0.0, 0.0, highspy.kHighsInf, len(rows), rows, [1.0] * len(rows))

    def solve(self):
        """What is missing, what each replica is worth, and what a filling has to be worth to be of use."""
        self.solver.run()
        dual = self.solver.getSolution().row_dual
        worth = {replica: dual[row] for replica, row in self.row.items()}
        return self.solver.getInfo().objective_function_value, worth, -dual[self.ranks_row]


    def counts(self):
        """The parts of each expert with each number of replicas."""
        values = self.solver.getSolution().col_value[self.num_experts :]
        counts = {}
        for (expert, count), value in zip(self.replicas, values):
            if value > 1e-7:
                counts.setdefault(expert, {})[count] = value
        return counts


def fill(replicas, worth, slots):
    """The most that a filling is worth, one replica of an expert at most, and some fillings worth much."""
    by_expert = {}
    for (expert, count), size in replicas.items():
        if worth[expert, count] > 1e-9 and size <= GRID:
            by_expert.setdefault(expert, []).append((count, size, worth[expert, count]))
    slots = min(slots, len(by_expert))
    best = np.zeros((slots + 1, GRID + 1))  # by replicas and size
    choices = []
    for options in by_expert.values():
        after, chosen = best.copy(), np.full(best.shape, -1, dtype=np.int16)
        for option, (_, size, value) in enumerate(options):
            with_it = best[:-1, : GRID + 1 - size] + value
            better = with_it > after[1:, size:] + 1e-12
            after[1:, size:][better] = with_it[better]
            chosen[1:, size:][better] = option
        best = after
        choices.append(chosen)
    # The best of every number of replicas and part of the sizes, without repetition.
    ends = np.linspace(GRID // 2, GRID, COLUMNS, dtype=int)
    found = {}
    for used in range(1, slots + 1):
        for size in ends:
            at, filling = (used, size), []
            for (expert, options), chosen in reversed(list(zip(by_expert.items(), choices))):
                option = chosen[at]
                if option >= 0:
                    count, taken, _ = options[option]
                    filling.append((expert, count))
                    at = (at[0] - 1, at[1] - taken)
            found[tuple(sorted(filling))] = float(best[used, size])
    many = sorted(((value, filling) for filling, value in found.items()), reverse=True)
    return float(best.max()), many[:COLUMNS]


def largest_load(layer, low, high, options):
    """A lower bound of the largest rank load, between one that is known and that of a plan."""
    step = 1 + options.precision
    if high <= low * step:
        return low
    limits = [high / step]
    while limits[-1] > low * step:
        limits.append(limits[-1] / step)
    limits.reverse()
    first, last = 0, len(limits)
    middle = last - 1  # most often nothing is better than the plan, or the bound is tight
    while first < last:
        try:
            is_impossible = layer.is_impossible(limits[middle], options)
        except Undecided:
            is_impossible = False
        first, last = (middle + 1, last) if is_impossible else (first, middle)
        middle = (first + last) // 2
    return limits[first - 1] if first else low


def main():
    options = arguments()
    _, slots, ranks = options.shape
    loads, layers = plan(options)
    parts, tighter = [], []
    for index, (weights, layer) in enumerate(zip(loads, layers)):
        high, low = layer["max_load"], layer["mean_load"] / layer["balancedness_bound"]
        parts.append(low / high)
        tighter.append(parts[-1])
        if parts[-1] < options.below:
            bound = largest_load(Layer(weights, slots, ranks), low, high, options)
            tighter[-1] = bound / high
            print(f"  layer {index}: {parts[-1]:.4f} of the bound, {tighter[-1]:.4f} of that of the fillings", flush=True)
    print(
        f"{options.profile}, {'/'.join(map(str, options.shape))}, seed {options.seed}: of the bound {np.mean(parts):.4f}, at least "
        f"{min(parts):.4f}; of that of the fillings {np.mean(tighter):.4f}, at least {min(tighter):.4f}"
    )


if __name__ == "__main__":
    main()
