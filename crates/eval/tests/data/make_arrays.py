"""Writes load files with the libraries that users write them with.

    python make_arrays.py        # needs numpy, torch and safetensors; writes next to itself

Every file holds the numbers 0, 1, 2, ..: `[2, 3]` (layers, experts) or `[2, 2, 3]`
(steps, layers, experts).
"""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

here = Path(__file__).parent

total = np.arange(6).reshape(2, 3)
trace = np.arange(12).reshape(2, 2, 3)

np.save(here / "i64.npy", total)
np.save(here / "f16.npy", total.astype(np.float16))
np.save(here / "u16_big_endian.npy", total.astype(">u2"))
np.save(here / "f32_trace_fortran.npy", np.asfortranarray(trace.astype(np.float32)))
np.save(here / "bool.npy", total.astype(bool))
np.savetxt(here / "savetxt.csv", total, fmt="%d", delimiter=",", header="layers x experts")
(here / "load_history.json").write_text(
    json.dumps({"load_history": [{"step": s, "logical_expert_load": x.tolist()} for s, x in enumerate(trace)]})
)

# vLLM's recorded load: one float32 tensor per model.
load = torch.from_numpy(total).float()
save_file({"model": load}, here / "vllm.safetensors", metadata={"version": "1"})
save_file({"target": load, "draft": load + 1}, here / "two_models.safetensors", metadata={"version": "1"})
save_file({"load": torch.from_numpy(trace).bfloat16()}, here / "bf16_trace.safetensors")
torch.save({"load": load.t().contiguous().t()}, here / "transposed.pt")
# One stored number that claims to be a billion.
torch.save({"load": torch.zeros(1).expand(1 << 20, 1 << 10)}, here / "expanded.pt")
