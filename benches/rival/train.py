"""The rival trainer, doing the steps of a case on demand as `unif2ace-bench train-worker` does: one JSON request a line, one reply a line.

    python train.py CASE_FOLDER --precision f32|bf16 [--recompute] [--experts sorted|dense] [--attention sdpa|products] [--profile FILE]

float32 weights, under bf16 with autocast; `torch.optim.AdamW(fused=True)`, which is faster on the CPU than `foreach`. Routed experts and
attention are written in two ways each; where the options don't name one, both are timed at the start and the faster one is taken.
"""

import argparse
import contextlib
import ctypes
import json
import os
import resource
import sys
import time
from pathlib import Path

import torch
from model import Config, Unif2ace
from safetensors.torch import load_file
from training import ATTENTION, EXPERTS, Losses, read_rows

WAYS = {"experts": EXPERTS, "attention": ATTENTION}


def keep_freed_memory() -> None:
    """As our program asks of the C library: fresh pages cost up to 15% of a step."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-4, 0)
        mallopt(-1, 2**31 - 1)


def load(folder: Path) -> Unif2ace:
    with torch.device("meta"):
        model = Unif2ace(Config.read(folder / "config.json"))
    model.load_state_dict(load_file(folder / "model.safetensors"), assign=True)
    return model.requires_grad_().train()


def norm(tensors) -> float:
    return torch.linalg.vector_norm(torch.stack([tensor.double().norm() for tensor in tensors])).item()


class Trainer:
    def __init__(self, folder: Path, precision: str, recompute: bool, ways: dict[str, str | None]):
        case = json.loads((folder / "case.json").read_text())
        recipe, self.precision = case["recipe"], precision
        self.model, self.config = load(folder), recipe["optimizer"]
        self.dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[precision]
        files = (folder / f"batch-{index}.safetensors" for index in range(case["num_batches"]))
        self.batches = [read_rows(load_file(file), self.model.config, recipe["unified"]["loss"], self.dtype) for file in files]
        parameters = list(self.model.parameters())
        decayed = {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": self.config["weight_decay"]}
        plain = {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0}
        self.optimizer = torch.optim.AdamW(
            [decayed, plain], lr=self.config["learning_rate"], betas=tuple(self.config["betas"]), eps=self.config["eps"], fused=True
        )
        self.num_steps, self.averages = 0, None
        self.ways = {"experts": ways["experts"] or "dense", "attention": ways["attention"] or "sdpa"}
        for part in [part for part in WAYS if ways[part] is None]:
            seconds = {}
            for way in WAYS[part]:
                self.losses = Losses(self.model, recipe, self.ways | {part: way}, recompute)
                seconds[way] = min(self.time_pass() for _ in range(4))
            self.ways[part] = min(seconds, key=seconds.get)
        self.losses = Losses(self.model, recipe, self.ways, recompute)

    def autocast(self):
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def time_pass(self) -> float:
        """Seconds of a forward and backward pass that changes nothing."""
        start = time.perf_counter()
        with self.autocast():
            total, _ = self.losses(self.batches[0])
        total.backward()
        self.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - start

    def update(self) -> float:
        """Clips, updates, averages; gives the norm of the gradients."""
        limit = self.config["max_grad_norm"] or float("inf")
        found = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit, foreach=True)
        self.optimizer.step()
        decay, parameters = self.config["ema_decay"], list(self.model.parameters())
        if decay > 0:
            with torch.no_grad():
                if self.averages is None:
                    self.averages = [parameter.clone() for parameter in parameters]
                rate = 1 - min(decay, (1 + self.num_steps + 1) / (10 + self.num_steps + 1))
                torch._foreach_lerp_(self.averages, parameters, rate)
        return found.item()

    def step(self, norms: bool = False) -> dict:
        tasks = self.batches[self.num_steps % len(self.batches)]
        marks = [time.perf_counter()]
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            total, parts = self.losses(tasks)
        loss = total.item()
        marks.append(time.perf_counter())
        total.backward()
        marks.append(time.perf_counter())
        named = None
        if norms:
            named = {name: norm([p.grad]) for name, p in self.model.named_parameters() if p.grad is not None}
        start = time.perf_counter()
        gradient_norm = self.update()
        end = time.perf_counter()
        self.num_steps += 1
        forward, backward, optimizer = marks[1] - marks[0], marks[2] - marks[1], end - start
        return {
            "seconds": forward + backward + optimizer, "forward_seconds": forward, "backward_seconds": backward,
            "optimizer_seconds": optimizer, "num_tokens": sum(rows.ids_BL.numel() for rows in tasks.values()), "loss": loss,
            "parts": {name: value.item() for name, value in parts.items()}, "gradient_norm": gradient_norm, "norms": named,
        }  # fmt: skip

    def parameters(self) -> dict:
        return {"norm": norm(parameter.detach() for parameter in self.model.parameters())}

    def memory(self) -> dict:
        return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", type=Path)
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--recompute", action="store_true", help="recompute each block in the backward pass")
    for part, ways in WAYS.items():
        parser.add_argument(f"--{part}", choices=list(ways), help="how they are computed; default: what is faster here")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="write a trace of all steps")
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    start = time.perf_counter()
    trainer = Trainer(args.case, args.precision, args.recompute, {part: getattr(args, part) for part in WAYS})
    works = {"step": trainer.step, "parameters": trainer.parameters, "memory": trainer.memory}
    print(json.dumps({"ready": True, "seconds": time.perf_counter() - start, "ways": trainer.ways}), flush=True)
    profiler = torch.profiler.profile() if args.profile else contextlib.nullcontext()
    with profiler:
        for line in sys.stdin:
            request = json.loads(line)
            print(json.dumps(works[request.pop("work")](**request)), flush=True)
    if args.profile:
        profiler.export_chrome_trace(str(args.profile))


if __name__ == "__main__":
    main()
