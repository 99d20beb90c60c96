"""Every kernel beside PyTorch, in one run: times the work of crates/bench/benches/kernels.rs in PyTorch before and after `cargo bench`, and
prints one table of medians in milliseconds, ours at each instruction level.

    python benches/kernels.py [--cargo "cargo bench -p unif2ace-bench --bench kernels"] [--json FILE]
"""

import argparse
import json
import shlex
import statistics
import subprocess
import time
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
LEVELS = ["amx", "avx512", "avx2", "portable"]


def values(*shape: int) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return ((torch.arange(count) * 7919 % 2003).float() / 1001.5 - 1.0).view(shape)


def experts(x, index, gates, w1, b1, w2, b2):
    """The chosen experts' matrices on their rows only."""
    out = torch.zeros_like(x)
    for expert in range(w1.shape[0]):
        row, choice = torch.where(index == expert)
        inner = F.gelu(F.linear(x[row], w1[expert], b1[expert]), approximate="tanh")
        out.index_add_(0, row, gates[row, choice, None] * F.linear(inner, w2[expert], b2[expert]))
    return out


def works() -> dict:
    """The work of each row as a function without arguments."""
    found = {}
    a, w = values(516, 2048), values(2048, 2048)
    for name, dtype in [("f32", torch.float32), ("bf16", torch.bfloat16)]:
        found[f"linear 516x2048x2048 {name}"] = lambda a=a.to(dtype), w=w.to(dtype): F.linear(a, w)
    row, weight = a[:1].bfloat16(), w.bfloat16()
    found["linear 1x2048x2048 bf16"] = lambda: F.linear(row, weight)
    for queries, keys in [(258, 290), (1, 330)]:
        for name, dtype in [("f32", torch.float32), ("bf16", torch.bfloat16)]:
            q, k, v = (values(2, length, 32, 64).transpose(1, 2).to(dtype) for length in (queries, keys, keys))
            mask = torch.zeros(1, 1, queries, keys, dtype=dtype)
            found[f"attention 2x{queries}x{keys} {name}"] = lambda q=q, k=k, v=v, mask=mask: (
                F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(2, -1, 2048)
            )
    scale = values(2048)
    found["layer_norm 516x2048 f32"] = lambda: F.layer_norm(a, (2048,), scale, scale, 1e-5)
    inner = values(516, 8192)
    found["gelu 516x8192 f32"] = lambda: F.gelu(inner, approximate="tanh")
    logits, targets = values(256, 8192), torch.full((256,), 17)
    found["cross_entropy 256x8192 f32"] = lambda: F.cross_entropy(logits, targets, reduction="none")
    parameter = values(4 << 20).requires_grad_()
    parameter.grad = values(4 << 20)
    optimizer = torch.optim.AdamW([parameter], lr=1e-4, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    found["adamw 4194304 f32"] = optimizer.step
    picture = values(1, 64, 64, 256).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    filters, channel = values(256, 256, 3, 3).contiguous(memory_format=torch.channels_last), values(256)
    found["conv3x3 64x64x256 f32"] = lambda: F.conv2d(picture, filters, channel, padding=1)
    found["group_norm+silu 64x64x256 f32"] = lambda: F.silu(F.group_norm(picture, 32, channel, channel, 1e-6))
    index = (torch.arange(516)[:, None] + 2 * torch.arange(4)) % 8
    for name, dtype in [("f32", torch.float32), ("bf16", torch.bfloat16)]:
        parts = [
            x.to(dtype)
            for x in (a, values(8, 256, 2048), values(8, 256), values(8, 2048, 256), values(8, 2048), torch.full((516, 4), 0.25))
        ]
        x, w1, b1, w2, b2, gates = parts
        found[f"experts 516 of 8, top 4 {name}"] = lambda x=x, w1=w1, b1=b1, w2=w2, b2=b2, gates=gates: experts(
            x, index, gates, w1, b1, w2, b2
        )
    return found


def median_ms(work) -> float:
    """Median of at least ten calls over about a second, after a warm-up."""
    for _ in range(3):
        work()
    times, end = [], time.perf_counter() + 1.0
    while time.perf_counter() < end or len(times) < 10:
        begun = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(times)


def ours(name: str, level: str) -> float | None:
    # criterion writes medians in nanoseconds into folders of cleaned names.
    folder = name
    for letter in '?"/\\*<>:|^':
        folder = folder.replace(letter, "_")
    path = ROOT / "target/criterion" / folder / level / "new/estimates.json"
    return json.loads(path.read_text())["median"]["point_estimate"] / 1e6 if path.is_file() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cargo", default="cargo bench -p unif2ace-bench --bench kernels")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    with torch.inference_mode(False), torch.no_grad():
        before = {name: median_ms(work) for name, work in works().items()}
        subprocess.run(shlex.split(arguments.cargo), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        after = {name: median_ms(work) for name, work in works().items()}
    torchs = {name: statistics.mean([before[name], after[name]]) for name in before}
    names = list(torchs) + [name for name in ("linear 516x2048x2048 int8", "experts 516 of 8, top 4 int8") if name not in torchs]
    rows = {name: {"torch": torchs.get(name), **{level: ours(name, level) for level in LEVELS}} for name in names}
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    # A ratio for the best level that this CPU has.
    levels = [level for level in LEVELS if any(row[level] for row in rows.values())]
    best = levels[0]
    titles = ["kernel", "torch, ms", f"torch / ours {best}", *(f"ours {level}, ms" for level in levels)]
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    for name, row in rows.items():
        ratio = f"{row['torch'] / row[best]:.2f}" if row["torch"] and row[best] else "–"
        torch_ms, *ours_ms = (f"{row[key]:.3f}" if row[key] else "–" for key in ("torch", *levels))
        print(f"| {' | '.join([name, torch_ms, ratio, *ours_ms])} |")


if __name__ == "__main__":
    main()
