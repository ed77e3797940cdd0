"""What a plan is worth, counted from its slots alone: the same code for every planner."""

import numpy as np

# Float sums of a few terms in another order or width agree to this.
ROUNDING = 1e-6


def replica_loads(load, slots):
    """The load of each slot `[P]` if an expert's load is split equally over its replicas."""
    counts = np.bincount(slots, minlength=len(load))
    if len(counts) > len(load) or (counts == 0).any():
        raise ValueError("a plan must hold every expert, and no other")
    return (load / counts)[slots]


def measure(instance, plan):
    """Balance per layer `[L]` and over all layers, duplicates and, with nodes, tokens off home.

    Balance is the mean over the largest load of a rank, as one layer waits for its slowest rank;
    of all layers, the sum of the means over the sum of the maxima.
    """
    shape = instance.shape
    load = instance.total.numpy().astype(np.float64)
    if plan.slots.shape != (len(load), shape.slots):
        raise ValueError(f"a plan of shape {plan.slots.shape} for {len(load)} layers of {shape.slots} slots")
    split = np.stack([replica_loads(l, s) for l, s in zip(load, plan.slots)])
    ranks = split.reshape(len(load), shape.ranks, -1).sum(2)
    mean, largest = ranks.mean(1), ranks.max(1)
    experts = np.sort(plan.slots.reshape(len(load), shape.ranks, -1), axis=2)
    measured = {
        "balance": np.where(largest > 0, mean / np.maximum(largest, 1e-300), 1.0),
        "aggregate": float(mean.sum() / largest.sum()) if largest.sum() > 0 else 1.0,
        "duplicates": int((experts[:, :, 1:] == experts[:, :, :-1]).sum()),
    }
    if shape.nodes > 1:
        measured["off_home"] = off_home(shape, plan.slots, split)
    return measured


def off_home(shape, slots, split):
    """The share of tokens served outside of the node that serves most of their expert group."""
    experts = slots.max() + 1
    group = slots // (experts // shape.groups)
    node = np.broadcast_to(np.arange(shape.slots) // (shape.slots // shape.nodes), slots.shape)
    layer = np.broadcast_to(np.arange(len(slots))[:, None], slots.shape)
    served = np.zeros((len(slots), shape.groups, shape.nodes))
    np.add.at(served, (layer, group, node), split)
    total = served.sum()
    return float(1 - served.max(2).sum() / total) if total > 0 else 0.0


def agreement(instance, left, right):
    """In how many layers two plans by the same algorithm agree, and why the others do not."""
    load = instance.total.numpy()
    causes = {"same_slots": 0, "same_ranks": 0, "ties": [], "rounding": [], "other": []}
    for layer, (a, b) in enumerate(zip(left.slots, right.slots)):
        if (a == b).all():
            causes["same_slots"] += 1
        cause = difference(load[layer].astype(np.float32), a, b, instance.shape)
        if cause == "same_ranks":
            causes["same_ranks"] += 1
        else:
            causes[cause].append(layer)
    return causes


def difference(load, a, b, shape):
    """Why two greedy packings of one layer differ.

    - `same_ranks`: they do not: every rank holds the same experts, each as often;
    - `ties`: replicas of the same load (float32) are exchanged, every rank carries the same loads;
    - `rounding`: every replica of both plans is on the lightest rank to float32, so that the width
      of a sum decided between ranks that weigh alike;
    - `other`: none of these.
    """
    counts = np.bincount(a, minlength=len(load))
    if (counts != np.bincount(b, minlength=len(load))).any():
        return "other"
    per_replica = load / counts.astype(np.float32)
    a, b = a.reshape(shape.ranks, -1), b.reshape(shape.ranks, -1)
    if (np.sort(a, axis=1) == np.sort(b, axis=1)).all():
        return "same_ranks"
    a, b = per_replica[a], per_replica[b]
    if (np.sort(a, axis=1) == np.sort(b, axis=1)).all():
        return "ties"
    nodes = [node for plan in (a, b) for node in np.split(plan, shape.nodes)]
    return "rounding" if all(is_greedy(node) for node in nodes) else "other"


def is_greedy(loads):
    """Whether longest-first packing filled these ranks of one node, `[ranks, slots]`, in slot order.

    Takes the heaviest replica that comes next on any rank, on the lightest rank if several are as
    heavy, and asks whether its rank was the lightest that had room; of empty ranks, the first.
    """
    ranks, room = loads.shape
    weight, filled = np.zeros(ranks), np.zeros(ranks, dtype=np.int64)
    for _ in range(loads.size):
        open_ranks = np.flatnonzero(filled < room)
        upcoming = loads[open_ranks, filled[open_ranks]]
        heaviest = open_ranks[upcoming == upcoming.max()]
        rank = heaviest[np.argmin(weight[heaviest])]
        lightest = open_ranks[np.argmin(weight[open_ranks])]
        if weight[rank] > weight[lightest] * (1 + ROUNDING) or (weight[rank] == 0 and rank != lightest):
            return False
        weight[rank] += loads[rank, filled[rank]]
        filled[rank] += 1
    return True
