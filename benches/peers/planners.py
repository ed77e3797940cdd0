"""The planners that are compared: policies of the vLLM and SGLang wheels, and moekit's strategies.

A planner has a `name` and `plan(instance) -> Plan`. Its seconds are those of the algorithm alone:
the load lies in memory in the form that the planner takes before the clocks start.
"""

import importlib
import importlib.metadata
import importlib.util
import json
import os
import statistics
import sys
import time
import types
from dataclasses import dataclass
from pathlib import Path

# One thread for everybody; these are read when the libraries load and when the binary starts.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ[_name] = "1"

import moekit  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


@dataclass(frozen=True)
class Shape:
    """Slots on ranks; with expert groups and nodes, hierarchical where a planner can."""

    slots: int
    ranks: int
    nodes: int = 1
    groups: int = 1

    @classmethod
    def parse(cls, text):
        parts = [int(part) for part in text.split("/")]
        if len(parts) not in (2, 4) or min(parts) < 1:
            raise ValueError(f"shape {text!r}: SLOTS/RANKS or SLOTS/RANKS/NODES/GROUPS, each at least 1")
        shape = cls(*parts)
        if shape.slots % shape.ranks or shape.ranks % shape.nodes or shape.groups % shape.nodes:
            raise ValueError(f"shape {text!r}: the slots must be a multiple of the ranks, ranks and groups of the nodes")
        return shape

    def __str__(self):
        text = f"{self.slots}/{self.ranks}"
        return f"{text} {self.nodes} nodes" if self.nodes > 1 else text


@dataclass(frozen=True)
class Instance:
    """A load to plan for, in the file that moekit reads and as the tensors that the peers take."""

    name: str
    file: Path
    steps: torch.Tensor  # [S, L, E] int64
    total: torch.Tensor  # [L, E] int64, summed over the steps
    shape: Shape

    @classmethod
    def read(cls, name, file, shape):
        counts = np.load(file)
        if counts.ndim == 2:
            counts = counts[None]
        if counts.ndim != 3:
            raise ValueError(f"{file}: shape {counts.shape}, expected [layers, experts] or [steps, layers, experts]")
        steps = torch.from_numpy(np.ascontiguousarray(counts).astype(np.int64))
        return cls(name, file, steps, steps.sum(0), shape)


@dataclass(frozen=True)
class Plan:
    """What a planner decided, and how long it took."""

    seconds: float  # by the wall clock
    cpu_seconds: float  # of the thread; for moekit the wall clock's, which is never less
    slots: np.ndarray  # [L, P] int64: the logical expert in each slot, slots numbered rank by rank
    cold_seconds: float | None = None  # of moekit: the first call of a new process, by the wall clock
    report: dict | None = None  # what moekit says of it, without the placement


def policy_module(package, name):
    """Imports one module of an installed wheel without running the `__init__` of its parents.

    The parents load the whole engine, which needs a GPU stack. They are registered as packages
    that have a path and nothing in them; the module itself, and all that it imports, is the wheel's.
    """
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(f"{package} is not installed, see README.md", name=package)
    parts = name.split(".")
    for depth in range(1, len(parts)):
        parent = types.ModuleType(".".join(parts[:depth]))
        parent.__path__ = [os.path.join(base, *parts[1:depth]) for base in spec.submodule_search_locations]
        sys.modules[parent.__name__] = parent
    return importlib.import_module(name)


class Clock:
    """Both clocks from here to `stop`."""

    def __init__(self):
        self.start = time.perf_counter(), time.thread_time()

    def stop(self):
        return time.perf_counter() - self.start[0], time.thread_time() - self.start[1]


class Vllm:
    """vLLM's policy `default`: hierarchical if nodes divide the expert groups, else global."""

    name = "vllm"

    def __init__(self):
        module = policy_module("vllm", "vllm.distributed.eplb.policy.default")
        self.policy = module.DefaultEplbPolicy

    def plan(self, instance):
        shape = instance.shape
        clock = Clock()
        slots = self.policy.rebalance_experts(
            instance.total, shape.slots, shape.groups, shape.nodes, shape.ranks
        )
        return Plan(*clock.stop(), slots.numpy())


class Sglang:
    """One of SGLang's algorithms, in its hierarchical form if there are nodes."""

    def __init__(self, algorithm):
        self.name = f"sglang-{algorithm}"
        self.algorithm = algorithm
        self.module = policy_module("sglang", "sglang.srt.eplb.eplb_algorithms")

    def plan(self, instance):
        shape = instance.shape
        suffix = "_hierarchical" if shape.nodes > 1 else ""
        algorithm = self.module.EplbAlgorithm[self.algorithm + suffix]
        clock = Clock()
        slots, _, _ = self.module.rebalance_experts(
            instance.steps,
            shape.slots,
            shape.slots // shape.ranks,
            shape.groups,
            shape.nodes,
            algorithm,
        )
        return Plan(*clock.stop(), slots.numpy().astype(np.int64))


class Moekit:
    """A strategy of the binary, in processes of its own; a process reports the time of each call."""

    # Calls after the first of a process, of which the median counts: the peers have made their first call too.
    CALLS = 8

    def __init__(self, binary, strategy):
        self.name = f"moekit-{strategy}"
        self.binary = binary
        self.strategy = strategy

    def plan(self, instance):
        shape = instance.shape
        redundant = shape.slots - instance.total.shape[1]
        options = ["--load", instance.file, "--json", "--ranks", shape.ranks, "--redundant", redundant]
        if shape.nodes > 1:
            options += ["--nodes", shape.nodes, "--groups", shape.groups]
        report = json.loads(moekit.run([self.binary, "plan", "--strategy", self.strategy, *options]))
        layers = report.pop("placement")["layers"]
        slots = np.array([layer["physical_to_logical"] for layer in layers], dtype=np.int64)
        calls = ",".join([self.strategy] * (1 + self.CALLS))
        compared = json.loads(moekit.run([self.binary, "compare", "--strategies", calls, *options]))
        seconds = statistics.median(call["plan_seconds"] for call in compared["strategies"][1:])
        return Plan(seconds, seconds, slots, report["plan_seconds"], report)


def linked_strategies(binary):
    """The names of the strategies that the binary links."""
    lines = moekit.run([binary, "strategies", "list"]).splitlines()
    return [line.split()[0] for line in lines if line.strip()]


def installed_peers():
    """Every peer that can be imported, and why the others cannot: name to reason."""
    found, missing = [], {}
    makers = {
        "vllm": Vllm,
        "sglang-deepseek": lambda: Sglang("deepseek"),
        "sglang-deepseek_vec": lambda: Sglang("deepseek_vec"),
    }
    for name, make in makers.items():
        try:
            found.append(make())
        except ImportError as error:
            missing[name] = str(error)
    return found, missing


def versions():
    """What ran: of Python, of the libraries that the peers compute with, and of the wheels."""
    named = {"python": sys.version.split()[0], "numpy": np.__version__, "torch": torch.__version__}
    for package in ("vllm", "sglang"):
        try:
            named[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            named[package] = None
    return named
