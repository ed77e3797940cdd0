#!/usr/bin/env python3
"""Plans the same loads with moekit and with the policies inside the vLLM and SGLang wheels.

Every planner plans in turn, round after round, on one thread; only the algorithm is timed. See
README.md for how to install the peers and what the columns mean.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path

import moekit
import planners
from measures import ROUNDING, agreement, measure
from moekit import Refused
from planners import Instance, Moekit, Shape

import numpy as np

# The planners that run DeepSeek's algorithm, whose plans should be the same.
DEEPSEEK = ("moekit-eplb", "vllm", "sglang-deepseek")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--moekit", type=Path, default="target/release/moekit", help="the binary, a release build")
    add("--strategies", default="eplb,adaptive", help="of moekit; those that are not linked are left out")
    add("--shapes", default="288/32,320/64,384/128,288/32/4/8", help="SLOTS/RANKS or SLOTS/RANKS/NODES/GROUPS")
    add("--profiles", default="lognormal:0.8,lognormal:1.2,zipf:1.2,powerlaw:1.2", help="of `moekit generate`")
    add("--seeds", default="1", help="of `moekit generate`")
    add("--experts", type=int, default=256)
    add("--layers", type=int, default=58)
    add("--tokens", type=int, default=1_000_000, help="routed tokens per layer")
    add("--load", type=Path, action="append", help="an .npy file to plan instead of generated loads; repeatable")
    add("--runs", type=int, default=7, help="timed rounds")
    add("--json", action="store_true", help="one JSON document in place of the table")
    options = parser.parse_args()
    if options.runs < 1:
        parser.error("--runs must be at least 1")
    return options


def load_files(options, folder):
    """Name and file of every load."""
    if options.load:
        return [(file.stem, file) for file in options.load]
    files = []
    for profile in options.profiles.split(","):
        for seed in options.seeds.split(","):
            file = folder / f"{profile.replace(':', '-')}-{seed}.npy"
            load = profile, options.experts, options.layers, options.tokens, seed
            moekit.generate(options.moekit, file, *load)
            files.append((f"{profile} seed {seed}", file))
    return files


def time_all(instance, everyone, runs):
    """Plans and seconds of each planner, by name; those that refuse, with the reason."""
    plans, seconds, refused = {}, {}, {}
    for planner in everyone:  # not timed: the peers load what they need on the first call
        try:
            plans[planner.name] = planner.plan(instance)
            seconds[planner.name] = []
        except (Refused, AssertionError, RuntimeError, ValueError, IndexError) as error:
            refused[planner.name] = str(error) or type(error).__name__
    running = [planner for planner in everyone if planner.name in plans]
    for run in range(runs):
        turn = run % max(len(running), 1)  # nobody always runs behind the same neighbour
        for planner in running[turn:] + running[:turn]:
            plan = planner.plan(instance)
            seconds[planner.name].append((plan.seconds, plan.cpu_seconds, plan.cold_seconds))
            if (plan.slots != plans[planner.name].slots).any():
                raise SystemExit(f"{planner.name} planned {instance.name} in two ways")
    return plans, seconds, refused


def check_moekit(name, plan, balance):
    """moekit's own report must say what was counted here."""
    reported = [layer["balancedness"] for layer in plan.report["layers"]]
    if not np.allclose(reported, balance, rtol=ROUNDING, atol=0):
        raise SystemExit(f"{name} reports another balance than its slots have")


def untied(instance, file):
    """The same load with every two experts of a layer apart, so that no sort has a tie to break."""
    total = instance.total.numpy()
    np.save(file, total * total.shape[1] + np.arange(total.shape[1]))
    return Instance.read(instance.name, file, instance.shape)


def compare_plans(instance, everyone, plans):
    """Agreement of each two planners that run DeepSeek's algorithm."""
    alike = [planner for planner in everyone if planner.name in DEEPSEEK and planner.name in plans]
    found = []
    for i, left in enumerate(alike):
        for right in alike[i + 1 :]:
            names = {"planners": [left.name, right.name]}
            found.append(names | agreement(instance, plans[left.name], plans[right.name]))
    return found


def times(name, seconds, ours):
    """Medians, and per strategy of moekit how many times as long: by both clocks, round by round."""
    wall, cpu, cold = zip(*seconds[name])
    over = {
        clock: {o: statistics.median(t / own[i] for t, own in zip(theirs, seconds[o])) for o in ours}
        for i, (clock, theirs) in enumerate((("wall_over", wall), ("cpu_over", cpu)))
    }
    if None not in cold:
        over["cold_seconds_median"] = statistics.median(cold)
    return {
        "seconds_median": statistics.median(wall),
        "cpu_seconds_median": statistics.median(cpu),
        "seconds": wall,
        "cpu_seconds": cpu,
    } | over


def entries_of(instance, plans, seconds):
    """The figures of each planner."""
    ours = [name for name, plan in plans.items() if plan.report]
    measured = {name: measure(instance, plan) for name, plan in plans.items()}
    balances = {name: m.pop("balance") for name, m in measured.items()}
    bound = None
    if ours:
        bound = np.array([layer["balancedness_bound"] for layer in plans[ours[0]].report["layers"]])
    entries = []
    for name, balance in balances.items():
        if name in ours:
            check_moekit(name, plans[name], balance)
        entry = {"planner": name, **times(name, seconds, ours), **measured[name]}
        entry |= {"balance_mean": float(balance.mean()), "balance_min": float(balance.min())}
        if bound is not None:
            entry["balance_over_bound_min"] = float((balance / bound).min())
        if "vllm" in balances:
            below = balance < balances["vllm"] * (1 - ROUNDING)
            entry["layers_below_vllm"] = int(below.sum())
        entries.append(entry)
    return entries


def run_instance(instance, everyone, options, folder):
    plans, seconds, refused = time_all(instance, everyone, options.runs)
    apart = untied(instance, folder / "untied.npy")
    alike = [planner for planner in everyone if planner.name in DEEPSEEK and planner.name in plans]
    apart_plans = {planner.name: planner.plan(apart) for planner in alike}
    return {
        "load": instance.name,
        "shape": str(instance.shape),
        "layers": len(instance.total),
        "planners": entries_of(instance, plans, seconds),
        "refused": refused,
        "agreement": compare_plans(instance, everyone, plans),
        "agreement_without_ties": compare_plans(apart, everyone, apart_plans),
    }


def table(result):
    """The lines of one instance."""
    ours = next((list(entry["cpu_over"]) for entry in result["planners"]), [])
    ratios = "".join(f"{'/' + name.removeprefix('moekit-'):>11}" for name in ours)
    lines = [
        f"\n{result['load']}, {result['layers']} layers, {result['shape']}",
        f"{'planner':<20}{'ms':>10}{'cpu ms':>10}{'cold ms':>10}{ratios}{'mean':>9}{'min':>8}{'all':>8}"
        f"{'of bound':>10}{'<vllm':>7}{'dup':>6}{'off home':>10}",
    ]
    for e in result["planners"]:
        over = "".join(f"{e['cpu_over'][name]:>11.2f}" for name in ours)
        bound = f"{e['balance_over_bound_min']:.4f}" if "balance_over_bound_min" in e else "-"
        cold = f"{e['cold_seconds_median'] * 1e3:.3f}" if "cold_seconds_median" in e else "-"
        off = f"{e['off_home']:.4f}" if "off_home" in e else "-"
        lines.append(
            f"{e['planner']:<20}{e['seconds_median'] * 1e3:>10.3f}{e['cpu_seconds_median'] * 1e3:>10.3f}"
            f"{cold:>10}{over}{e['balance_mean']:>9.4f}{e['balance_min']:>8.4f}{e['aggregate']:>8.4f}{bound:>10}"
            f"{e.get('layers_below_vllm', '-'):>7}{e['duplicates']:>6}{off:>10}"
        )
    lines += [f"{name:<20}refused: {reason}" for name, reason in result["refused"].items()]
    for title, key in (("", "agreement"), (", ties taken out", "agreement_without_ties")):
        lines += [agreement_line(a, title, result["layers"]) for a in result[key]]
    return "\n".join(lines)


def agreement_line(a, title, layers):
    text = f"{' = '.join(a['planners'])}{title}: {a['same_ranks']} of {layers} layers on the same ranks"
    text += f", {a['same_slots']} slot by slot"
    text += "".join(f"; {cause}: {len(a[cause])}" for cause in ("ties", "rounding", "other") if a[cause])
    return text + (f" (layers {a['other']})" if a["other"] else "")


def main():
    options = arguments()
    linked = planners.linked_strategies(options.moekit)
    asked = options.strategies.split(",")
    missing = {f"moekit-{name}": "not linked" for name in asked if name not in linked}
    found, unimportable = planners.installed_peers()
    missing |= unimportable
    everyone = [Moekit(options.moekit, name) for name in asked if name in linked] + found
    shapes = [Shape.parse(text) for text in options.shapes.split(",")]
    environment = planners.versions() | {"cpu": platform.processor() or platform.machine()}
    environment |= {"load_average": os.getloadavg()[0], "runs": options.runs}
    if not options.json:
        print(" ".join(f"{key} {value}" for key, value in environment.items()))
        for name, reason in missing.items():
            print(f"without {name}: {reason}")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name, file in load_files(options, Path(folder)):
            for shape in shapes:
                instance = Instance.read(name, file, shape)
                results.append(run_instance(instance, everyone, options, Path(folder)))
                if not options.json:
                    print(table(results[-1]), flush=True)
    if options.json:
        json.dump({"environment": environment, "missing": missing, "results": results}, sys.stdout)
        print()


if __name__ == "__main__":
    main()
