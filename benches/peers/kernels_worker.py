"""One implementation of the fused experts, timed on demand: `kernels_worker.py PEER`.

The first line on stdin is a configuration, the next ones are `layers N...`, batches one right after
the other; each is answered by one line of JSON. `kernels.py` starts it.
"""

import glob
import importlib.util
import json
import os
import sys
import time

import torch
import torch.nn.functional as F

# vLLM's `CPUQuantMethod`.
UNQUANT, INT8_W8A8, FP8_W8A16, MXFP4 = 0, 1, 2, 4

# The largest relative error against the same weights in f32: of bf16 arithmetic, and of
# activations that are quantized besides.
TOLERANCE = {"f32": 1e-3, "int8-dynamic": 5e-2}
BF16_TOLERANCE = 2e-2

# Experts that are drawn; the others are copies of them, in memory of their own.
DRAWN = 4

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


def load_vllm():
    """Loads the operators of the wheel, without the engine around them."""
    root = importlib.util.find_spec("vllm").submodule_search_locations[0]
    has = torch.cpu._is_avx512_supported()
    name = "_C" if has and torch.cpu._is_avx512_bf16_supported() else "_C_AVX512" if has else "_C_AVX2"
    torch.ops.load_library(glob.glob(os.path.join(root, name + ".*so"))[0])
    return torch.ops._C


class Weights:
    """Random weights of a format, `[experts, out, in]`, as a checkpoint has them."""

    def __init__(self, dtype, experts, rows, cols):
        self.dtype, self.scale = dtype, None
        drawn, size = min(experts, DRAWN), cols**-0.5

        def all_experts(drawn):
            return drawn.repeat(-(-experts // DRAWN), 1, *[1] * (drawn.dim() - 2))[:experts].contiguous()

        if dtype in ("f32", "bf16"):
            kind = torch.float32 if dtype == "f32" else torch.bfloat16
            codes = torch.empty(drawn, rows, cols, dtype=kind).uniform_(-1.7 * size, 1.7 * size)
        elif dtype == "int8-dynamic":
            codes = torch.randint(-127, 128, (drawn, rows, cols), dtype=torch.int8)
            self.scale = all_experts(torch.empty(drawn, rows).uniform_(0.5, 1.5) * size / 74)
        elif dtype == "fp8-block":
            # Exponents below that of 2, so that no code is NaN.
            codes = torch.randint(0, 256, (drawn, rows, cols), dtype=torch.uint8) & 0xBF
            blocks = (drawn, -(-rows // 128), -(-cols // 128))
            self.scale = all_experts(torch.empty(blocks).uniform_(0.5, 1.5) * size)
        elif dtype == "mxfp4":
            codes = torch.randint(0, 256, (drawn, rows, cols // 2), dtype=torch.uint8)
            self.scale = all_experts(torch.randint(119, 122, (drawn, rows, cols // 32), dtype=torch.uint8))
        else:
            raise NotImplementedError(dtype)
        codes = all_experts(codes)
        self.codes = codes.view(torch.float8_e4m3fn) if dtype == "fp8-block" else codes

    def wide(self, expert):
        """The weights of one expert in f32."""
        codes = self.codes[expert]
        if self.dtype == "int8-dynamic":
            return codes.float() * self.scale[expert][:, None]
        if self.dtype == "fp8-block":
            scale = self.scale[expert].repeat_interleave(128, 0).repeat_interleave(128, 1)
            return codes.float() * scale[: codes.shape[0], : codes.shape[1]]
        if self.dtype == "mxfp4":
            values = torch.stack([E2M1[(codes & 15).long()], E2M1[(codes >> 4).long()]], -1)
            scale = torch.exp2(self.scale[expert].float() - 127).repeat_interleave(32, 1)
            return values.flatten(1) * scale
        return codes.float()


class Peer:
    """Weights, and `run(x, ids, weights)` over them."""

    dtypes = ()
    per_slot_ids = torch.int32

    def __init__(self, dtype, w13, w2):
        self.dtype = dtype
        self.prepare(w13, w2)

    def prepare(self, w13, w2):
        self.w13, self.w2 = w13.codes, w2.codes


class VllmVec(Peer):
    """`cpu_fused_moe` of vLLM's CPU wheel: what it runs without AMX."""

    dtypes = ("f32", "bf16")

    def prepare(self, w13, w2):
        self.ops = load_vllm()
        self.w13, self.w2 = self.pack(w13.codes), self.pack(w2.codes)

    def pack(self, codes):
        packed = torch.empty_like(codes)
        self.ops.prepack_moe_weight(codes, packed, "vec")
        return packed

    def run(self, x, ids, weights):
        out = torch.empty_like(x)
        self.ops.cpu_fused_moe(out, x, self.w13, self.w2, None, None, weights, ids, False, "silu", "vec")
        return out


class VllmFused(Peer):
    """`fused_experts_cpu` of vLLM's CPU wheel."""

    dtypes = ("bf16", "fp8-block", "int8-dynamic", "mxfp4")
    method = {"bf16": UNQUANT, "fp8-block": FP8_W8A16, "int8-dynamic": INT8_W8A8, "mxfp4": MXFP4}

    def prepare(self, w13, w2):
        self.ops = load_vllm()
        pack = self.ops.convert_weight_packed
        self.w13, self.w2 = pack(w13.codes), pack(w2.codes)
        scale = self.ops.convert_scale_packed if self.dtype == "mxfp4" else lambda scale: scale
        scales = [w.scale if w.scale is None else scale(w.scale) for w in (w13, w2)]
        block = [128, 128] if self.dtype == "fp8-block" else None
        self.rest = [*scales, None, None, None, block, None, None, None, None, True]

    def run(self, x, ids, weights):
        out = torch.empty_like(x)
        method = self.method[self.dtype]
        self.ops.fused_experts_cpu(out, x, self.w13, self.w2, weights, ids, method, *self.rest)
        return out


class Zentorch(Peer):
    """`zentorch_fused_moe` (ZenDNN), which vLLM takes where it is installed."""

    dtypes = ("f32", "bf16", "int8-dynamic")

    def prepare(self, w13, w2):
        import zentorch  # noqa: F401

        super().prepare(w13, w2)
        self.scales = [] if w13.scale is None else [w13.scale, w2.scale]

    def run(self, x, ids, weights):
        out = torch.empty_like(x)
        torch.ops.zentorch.zentorch_fused_moe(
            out, x, self.w13, self.w2, None, None, weights, ids, False, "silu", *self.scales
        )
        return out


class TorchLoop(Peer):
    """The loop over experts of Hugging Face's models."""

    dtypes = ("f32", "bf16")

    def run(self, x, ids, weights):
        out = torch.zeros_like(x)
        for expert in ids.unique().tolist():
            rows, slots = (ids == expert).nonzero(as_tuple=True)
            gate, up = F.linear(x[rows], self.w13[expert]).chunk(2, -1)
            y = F.linear(F.silu(gate) * up, self.w2[expert])
            out.index_add_(0, rows, y * weights[rows, slots, None].to(x.dtype))
        return out


class TorchGrouped(Peer):
    """PyTorch's grouped matrix product over tokens sorted by expert."""

    dtypes = ("f32", "bf16")

    def prepare(self, w13, w2):
        self.num_experts = w13.codes.shape[0]
        self.w13, self.w2 = w13.codes.transpose(1, 2), w2.codes.transpose(1, 2)

    def run(self, x, ids, weights):
        order = ids.flatten().argsort()
        rows = order // ids.shape[1]
        counts = ids.flatten().bincount(minlength=self.num_experts)
        ends = counts.cumsum(0).to(torch.int32)
        gate, up = torch._grouped_mm(x[rows], self.w13, offs=ends).chunk(2, -1)
        y = torch._grouped_mm(F.silu(gate) * up, self.w2, offs=ends)
        y = y * weights.flatten()[order, None].to(x.dtype)
        return torch.zeros_like(x).index_add_(0, rows, y)


PEERS = {
    "vllm-vec": VllmVec,
    "vllm-fused": VllmFused,
    "zentorch": Zentorch,
    "torch-grouped": TorchGrouped,
    "torch-loop": TorchLoop,
}


def reference(x, ids, weights, w13, w2):
    """The same in f32, expert by expert."""
    out = torch.zeros(x.shape)
    for expert in ids.unique().tolist():
        rows, slots = (ids == expert).nonzero(as_tuple=True)
        gate, up = F.linear(x[rows].float(), w13.wide(expert)).chunk(2, -1)
        y = F.linear(F.silu(gate) * up, w2.wide(expert))
        out.index_add_(0, rows, y * weights[rows, slots, None])
    return out


def error(got, want):
    return ((got.float() - want).norm() / want.norm()).item()


def main():
    kind = PEERS[sys.argv[1]]
    config = json.loads(sys.stdin.readline())
    torch.manual_seed(0)
    torch.set_num_threads(config["threads"])
    dtype, hidden = config["dtype"], config["hidden_size"]
    if dtype not in kind.dtypes:
        raise NotImplementedError(f"no {dtype} weights")
    experts, inter = config["num_experts"], config["intermediate_size"]
    w13 = Weights(dtype, experts, 2 * inter, hidden)
    w2 = Weights(dtype, experts, hidden, inter)
    kept = torch.float32 if config["act"] == "f32" else torch.bfloat16
    batches = []
    for batch in config["batches"]:
        shape = (batch["tokens"], batch["top_k"])
        batches.append(
            (
                torch.randn(batch["tokens"], hidden).to(kept),
                torch.tensor(batch["local_ids"], dtype=torch.int32).view(shape),
                torch.tensor(batch["weights"], dtype=torch.float32).view(shape),
            )
        )
    first = batches[0]
    want = reference(*first, w13, w2)
    peer = kind(dtype, w13, w2)
    del w13, w2
    with torch.inference_mode():
        wrong = error(peer.run(*first), want)
        if not wrong < TOLERANCE.get(dtype, BF16_TOLERANCE):
            raise ArithmeticError(f"relative error {wrong:.2e} against f32")
        print(json.dumps({"error": wrong}), flush=True)
        for line in sys.stdin:
            times = []
            for number in line.split()[1:]:
                start = time.perf_counter()
                peer.run(*batches[int(number)])
                times.append((time.perf_counter() - start) * 1e3)
            print(json.dumps({"ms": times}), flush=True)


main()
