"""The binary `moekit`, as the scripts call it."""

import subprocess


class Refused(Exception):
    """The binary, or a planner, does not take an instance."""


def run(command):
    """Runs the binary; its standard output."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise Refused(" ".join(done.stderr.split()))
    return done.stdout


def generate(binary, file, profile, experts, layers, tokens, seed):
    """Writes a load of one step."""
    shape = ["--experts", experts, "--layers", layers, "--steps", 1, "--tokens", tokens]
    run([binary, "generate", "--profile", profile, *shape, "--seed", seed, "--out", file])
