"""Writes the files of SGLang's expert distribution recorder that the tests read.

    python make_sglang_dump.py        # needs torch (tested with 2.13); writes next to itself

The dictionaries are those that `torch.save` receives in
`sglang/srt/eplb/expert_distribution.py`: mode `stat` and mode `per_pass`.
"""

from pathlib import Path

import torch

here = Path(__file__).parent

# SGLang saves the counts from the GPU. This gives the same bytes on a machine without one.
torch.serialization.register_package(0, lambda storage: "cuda:0", lambda storage, location: None)

steps, layers, experts = 2, 3, 4
counts = torch.arange(steps * layers * experts, dtype=torch.int32).reshape(steps, layers, experts)
torch.save(
    dict(rank=0, logical_count=counts, average_utilization_rate_over_window=0.42),
    here / "sglang_stat.pt",
)

slots = torch.tensor([[0, 1, 2, 3, 0, 1]] * layers)
torch.save(
    dict(
        records=[
            dict(
                forward_pass_id=7,
                rank=0,
                gatherer_key="primary",
                global_physical_count=torch.ones(layers, slots.shape[1], dtype=torch.int32),
            )
        ],
        last_physical_to_logical_map=slots,
    ),
    here / "sglang_per_pass.pt",
)
