#!/usr/bin/env python3
"""moekit's fused experts and those of others on the same shapes, side by side.

Every implementation runs in a process of its own and holds its weights in its own layout. In each
round all of them run the same two routings, one after the other, each after a read of as many bytes
as the experts with tokens have: the first wakes the threads, the second is the sample. See README.md.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

HERE = pathlib.Path(__file__).parent
PEERS = ["vllm-vec", "vllm-fused", "zentorch", "torch-grouped", "torch-loop", "candle"]
SHAPES = {
    "qwen3-30b-a3b": (2048, 768, 128, 8),
    "gpt-oss-20b": (2880, 2880, 32, 4),
    "mixtral-8x7b": (4096, 14336, 8, 2),
}
# How long no process may have run before the next one does.
PAUSE = 0.01
# When that is given up.
PATIENCE = 2.0


class Sample(NamedTuple):
    """Milliseconds of a layer, of the read before it, and of the layer that woke the threads."""

    ms: float
    read: float
    batch: int
    first: float


class Process:
    """A program that answers each line with a line of JSON."""

    def __init__(self, name, command, args):
        self.name = name
        env = os.environ | {"OMP_NUM_THREADS": str(args.threads), "RAYON_NUM_THREADS": str(args.threads)}
        if args.bind:
            env |= {"OMP_PROC_BIND": "true", "OMP_PLACES": "threads"}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env)

    def send(self, line):
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass

    def receive(self):
        # Libraries greet on stdout; an answer is an object or a list.
        for line in self.process.stdout:
            if line[:1] in "{[":
                return json.loads(line)
        lines = self.process.stderr.read().strip().splitlines()
        raise RuntimeError(lines[-1] if lines else "it ended without a word")

    def ask(self, line):
        self.send(line)
        return self.receive()

    def cpu_time(self):
        """Nanoseconds that its threads have run; always 0 where the system does not tell."""
        tasks = pathlib.Path(f"/proc/{self.process.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def numbers(text):
    return [int(n) for n in text.split(",")]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moekit", default="target/release/moekit", help="the command")
    parser.add_argument("--candle", default="benches/peers/candle/target/release/moekit-peer-candle")
    parser.add_argument("--peers", default=",".join(PEERS), help="which of " + ", ".join(PEERS))
    parser.add_argument("--shape", default="qwen3-30b-a3b", help=f"{', '.join(SHAPES)} or H,I,E,k")
    parser.add_argument("--dtype", default="bf16", help="f32, bf16, fp8-block, int8-dynamic, mxfp4")
    parser.add_argument("--tokens", type=numbers, default=[1, 16, 128, 512])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--bind", action="store_true", help="each thread, those of OpenMP too, keeps to a CPU")
    parser.add_argument("--wait", action="store_true", help="once all are loaded, wait for a line on stdin")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def start(args):
    """The processes that are ready, and why others are not."""
    act = "f32" if args.dtype == "f32" else "bf16"
    tokens = ",".join(map(str, args.tokens))
    command = [args.moekit, "bench", "--driven", "--shape", args.shape, "--dtype", args.dtype]
    command += ["--act", act, "--tokens", tokens, "--threads", str(args.threads)]
    moekit = Process("moekit", command + ["--pin"] * args.bind, args)
    batches = moekit.ask("batches")
    hidden, inter, experts, _ = SHAPES.get(args.shape) or numbers(args.shape)
    config = {
        "threads": args.threads,
        "dtype": args.dtype,
        "act": act,
        "hidden_size": hidden,
        "intermediate_size": inter,
        "num_experts": experts,
        "batches": batches,
    }
    ready, refused = [moekit], {}
    for name in args.peers.split(","):
        worker = [sys.executable, str(HERE / "kernels_worker.py"), name]
        try:
            peer = Process(name, [args.candle] if name == "candle" else worker, args)
            peer.ask(json.dumps(config))
            ready.append(peer)
        except (RuntimeError, OSError) as reason:
            refused[name] = str(reason)
    return ready, refused, batches


def least_shared(batch, of_batch, batches):
    """The routing that shares the fewest experts with a batch: what it leaves in caches helps least."""
    experts = {i: set(batches[i]["local_ids"]) for i in of_batch}
    return min((i for i in of_batch if i != batch), key=lambda i: len(experts[i] & experts[batch]))


def all_asleep(processes):
    """Waits until no thread runs: those of a finished layer spin for some milliseconds before they
    sleep, and the next layer would have to do without a core."""
    before, end = None, time.monotonic() + PATIENCE
    while (now := [process.cpu_time() for process in processes]) != before:
        if time.monotonic() > end:
            raise RuntimeError(f"threads have been running for {PATIENCE} s after a layer")
        before = now
        time.sleep(PAUSE)


def measure(processes, batches, of_batch, rounds):
    """`[round]` of what each process took, of the read before, and of its first layer."""
    moekit = processes[0]
    samples = {p.name: [] for p in processes}
    for process in processes:
        process.ask(f"layers {of_batch[0]}")
    for n in range(rounds):
        batch = of_batch[n % len(of_batch)]
        before = least_shared(batch, of_batch, batches)
        first = n % len(processes)
        for process in processes[first:] + processes[:first]:
            all_asleep(processes)
            read = moekit.ask(f"read {batches[batch]['weight_bytes']}")["ms"]
            all_asleep(processes)
            woken, ms = process.ask(f"layers {before} {batch}")["ms"]
            samples[process.name].append(Sample(ms, read, batch, woken))
    return samples


def summary(name, tokens, samples, own, batches):
    def median(of):
        return statistics.median(map(of, samples))

    def over(of):
        return statistics.median(of(theirs) / of(ours) for theirs, ours in zip(samples, own))

    return {
        "name": name,
        "tokens": tokens,
        "median_ms": median(lambda s: s.ms),
        "gflops": median(lambda s: batches[s.batch]["operations"] / s.ms / 1e6),
        "weight_gbs": median(lambda s: batches[s.batch]["weight_bytes"] / s.ms / 1e6),
        "paired_read_gbs": median(lambda s: batches[s.batch]["weight_bytes"] / s.read / 1e6),
        "fraction_of_read": median(lambda s: s.read / s.ms),
        "over_moekit": over(lambda s: s.ms),
        "first_ms": median(lambda s: s.first),
        "first_over_moekit": over(lambda s: s.first),
    }


def main():
    args = arguments()
    processes, refused, batches = start(args)
    if args.wait:
        print("loaded", file=sys.stderr, flush=True)
        sys.stdin.readline()
    results = []
    for tokens in args.tokens:
        of_batch = [i for i, batch in enumerate(batches) if batch["tokens"] == tokens]
        samples = measure(processes, batches, of_batch, args.rounds)
        for name, own in samples.items():
            results.append(summary(name, tokens, own, samples["moekit"], batches))
    for process in processes:
        process.close()
    if args.json:
        report = {"shape": args.shape, "dtype": args.dtype, "threads": args.threads, "bind": args.bind}
        print(json.dumps(report | {"rounds": args.rounds, "results": results, "left_out": refused}, indent=1))
        return
    threads = f"{args.threads} {'bound ' * args.bind}threads"
    print(f"{args.shape} {args.dtype}, {threads}, {args.rounds} rounds")
    columns = ["tokens", "name", "ms", "GB/s", "read", "of read", "GFLOP/s", "/moekit", "first", "/moekit"]
    print("{:>6} {:<14} {:>9} {:>6} {:>6} {:>8} {:>8} {:>8} {:>9} {:>8}".format(*columns))
    for r in results:
        print(
            f"{r['tokens']:>6} {r['name']:<14} {r['median_ms']:>9.3f} {r['weight_gbs']:>6.1f}"
            f" {r['paired_read_gbs']:>6.1f} {r['fraction_of_read']:>8.3f} {r['gflops']:>8.1f}"
            f" {r['over_moekit']:>8.2f} {r['first_ms']:>9.3f} {r['first_over_moekit']:>8.2f}"
        )
    for name, reason in refused.items():
        print(f"left out: {name}: {reason}")


main()
