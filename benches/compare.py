"""Times `unif2ace` beside its rivals in PyTorch on one model of procedural weights, all taking turns, and compares what they make.

    cargo build --release --workspace
    python3 -m venv venv && venv/bin/pip install -r benches/rival/requirements.txt
    venv/bin/python benches/compare.py --work FOLDER [--rounds 5] [--json FILE]

The folder gets the model (7.9 GB) and its packed forms (13.7 GB) the first time. 24 GB of memory are needed: every rival keeps its weights
loaded, and one works at a time. See benches/README.md for what is measured and how the limits are computed.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
BENCH, PRODUCT = (ROOT / "target/release" / name for name in ("unif2ace-bench", "unif2ace"))
THREADS = "2"
# The references recompute the same work at each step and token, so a few of them tell the rest.
REFERENCE_STEPS, REFERENCE_TOKENS = 3, 4
# With --few everybody does so many.
FEW_STEPS, FEW_TOKENS = 2, 3
# On CPUs without instructions for bf16 PyTorch's products in it take eight times as long as in f32: there all rivals are in f32.
HAS_BF16 = any(flag in open("/proc/cpuinfo").read() for flag in ("avx512_bf16", "amx_bf16"))
STRONG = "strong bf16" if HAS_BF16 else "strong f32"
RIVALS = ["reference f32", "reference bf16", STRONG] if HAS_BF16 else ["reference f32", STRONG]


class Process:
    """A worker that was started and is waiting."""

    def __init__(self, command: list):
        limits = {"RAYON_NUM_THREADS": THREADS, "OMP_NUM_THREADS": THREADS}
        start = time.perf_counter()
        self.process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | limits
        )
        self.ready = self.read()
        self.start_seconds = time.perf_counter() - start

    def read(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"error: a worker ended early: {self.process.args}")
        return json.loads(line)

    def ask(self, work: str, **request) -> dict:
        self.process.stdin.write(json.dumps({"work": work} | request) + "\n")
        self.process.stdin.flush()
        return self.read()

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def prepare(folder: Path) -> None:
    """The model and its packed forms, unless they are there."""
    plain = folder / "f32"
    if not (plain / "config.json").exists():
        subprocess.run([BENCH, "procedural", plain], check=True, cwd=ROOT)
    if not (folder / "case/case.json").exists():
        subprocess.run([BENCH, "case", plain, folder / "case"], check=True)
    for dtype in ("f32", "bf16", "int8"):
        if not (folder / f"packed-{dtype}/config.json").exists():
            subprocess.run([PRODUCT, "pack", plain, "-o", folder / f"packed-{dtype}", "--dtype", dtype], check=True)


def ours(folder: Path, dtype: str) -> Process:
    return Process([BENCH, "worker", folder / f"packed-{dtype}", folder / "case", "--dtype", dtype])


def theirs(folder: Path, dtype: str) -> Process:
    return Process([sys.executable, ROOT / "benches/rival/worker.py", dtype, folder / "f32", folder / "case"])


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Turns:
    """Workers that take turns at one kind of work; replies by worker."""

    def __init__(self, rounds: int):
        self.rounds = rounds

    def run(self, what: str, entries: dict) -> dict:
        """`entries`: name -> (process, request). Everyone warms up once with the smallest request that `warm` names, then A B A B."""
        replies = {name: [] for name in entries}
        for index in range(self.rounds):
            for name, (process, work, request) in entries.items():
                replies[name].append(process.ask(work, **request))
            say(f"{what}: round {index + 1} of {self.rounds}")
        return replies


def median(values) -> float:
    return statistics.median(values)


def whole_picture(replies: list, steps: int) -> float:
    """Seconds of `steps` steps and the decoding, from replies of fewer steps where need be."""
    if len(replies[0]["step_seconds"]) == steps:
        return median(reply["seconds"] for reply in replies)
    step = median(second for reply in replies for second in reply["step_seconds"])
    return steps * step + median(reply["decode_seconds"] for reply in replies)


def whole_answer(replies: list, tokens: int) -> float:
    if len(replies[0]["token_seconds"]) == tokens:
        return median(reply["seconds"] for reply in replies)
    token = median(second for reply in replies for second in reply["token_seconds"])
    return median(reply["encode_seconds"] for reply in replies) + tokens * token


def token_seconds(replies: list) -> float:
    """Of one token in decoding, without the first, which reads the question."""
    return median(second for reply in replies for second in reply["token_seconds"][1:])


def active_bytes(config: dict, bytes_per_weight: float) -> float:
    """Weights that one token of an answer meets: attention, dense MLP, chosen experts, the text rows of the head."""
    width, moe = config["hidden_size"], config["moe"]
    block = 4 * width**2 + 2 * width * config["intermediate_size"]
    block += moe["num_experts_per_tok"] * 2 * width * moe["routed_intermediate_size"]
    return bytes_per_weight * (config["num_hidden_layers"] * block + width * config["llm_vocab_size"])


def same(a: list, b: list) -> str:
    equal = sum(x == y for x, y in zip(a, b))
    return f"{equal} of {max(len(a), len(b))}"


def insist(what: str, found: str) -> None:
    """Ends the program where float32 gives other results: a faster wrong answer is none."""
    equal, count = found.split(" of ")
    if equal != count:
        sys.exit(f"error: {what}: {found} are equal in float32, so nothing more is timed")


def machine() -> dict:
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.processor())
    import torch

    rust = subprocess.run(["rustc", "--version"], capture_output=True, text=True).stdout.strip()
    return {"cpu": cpu, "threads": int(THREADS), "rust": rust, "torch": torch.__version__, "python": platform.python_version()}


def compare(folder: Path, rounds: int, few: bool) -> dict:
    case, config = (json.loads((folder / path).read_text()) for path in ("case/case.json", "f32/config.json"))
    steps, tokens = case["num_inference_steps"], case["max_new_tokens"]
    turns, result = Turns(rounds), {"machine": machine(), "rounds": rounds}
    # What the references are asked for, and everybody else.
    reference = {"generate": {"num_inference_steps": REFERENCE_STEPS}, "answer": {"max_new_tokens": REFERENCE_TOKENS}}
    whole = {"generate": {}, "answer": {}}
    if few:
        reference = whole = {"generate": {"num_inference_steps": FEW_STEPS}, "answer": {"max_new_tokens": FEW_TOKENS}}
        result["few"] = {"steps": FEW_STEPS, "tokens": FEW_TOKENS}

    say("equality: float32, the same random numbers")
    ours_f32, torch_f32 = ours(folder, "f32"), theirs(folder, "float32")
    pair = [ours_f32.ask("generate", **whole["generate"]), torch_f32.ask("generate", rival="reference", **whole["generate"])]
    asked = {"max_new_tokens": 12} | whole["answer"]
    texts = [ours_f32.ask("answer", **asked), torch_f32.ask("answer", rival="reference", **asked)]
    result["equal"] = {
        f"codes of a picture, {FEW_STEPS if few else steps} steps": same(pair[0]["codes"], pair[1]["codes"]),
        "tokens of an answer": same(texts[0]["tokens"], texts[1]["tokens"]),
    }
    say(str(result["equal"]))
    for what, found in result["equal"].items():
        insist(what, found)

    pixels = {}
    for side in (256,) if few else (256, 512):
        entries = {
            "ours": (ours_f32, "vq", {"side": side}),
            "reference": (torch_f32, "vq", {"rival": "reference", "side": side}),
            "strong": (torch_f32, "vq", {"rival": "strong", "side": side}),
        }
        for process, work, request in entries.values():
            process.ask(work, **request)
        replies = turns.run(f"image tokenizer, {side} px", entries)
        for part in ("encode", "decode"):
            pixels[f"{part} {side} px"] = {name: median(reply[f"{part}_seconds"] for reply in all) for name, all in replies.items()}
        pixels[f"equal codes {side} px"] = same(replies["ours"][0]["codes"], replies["reference"][0]["codes"])
        insist(f"codes of the image tokenizer, {side} px", pixels[f"equal codes {side} px"])
    result["image tokenizer, float32"] = pixels
    result["memory ours f32"] = ours_f32.ask("memory")["peak"]
    ours_f32.stop()

    torch_best = theirs(folder, "bfloat16") if HAS_BF16 else torch_f32
    processes = {"ours bf16": ours(folder, "bf16"), "ours int8": ours(folder, "int8")}

    def entries(work: str) -> dict:
        everyone = {
            "reference f32": (torch_f32, work, {"rival": "reference"} | reference[work]),
            "ours bf16": (processes["ours bf16"], work, whole[work]),
            "reference bf16": (torch_best, work, {"rival": "reference"} | reference[work]),
            "ours int8": (processes["ours int8"], work, whole[work]),
            STRONG: (torch_best, work, {"rival": "strong"} | whole[work]),
        }
        return {name: entry for name, entry in everyone.items() if name in (*processes, *RIVALS)}

    # Each pays its page faults and first allocations before it is timed.
    for process, work, request in entries("generate").values():
        process.ask(work, **request | {"num_inference_steps": 1})
    replies = turns.run("picture", entries("generate"))
    result["picture seconds"] = {name: whole_picture(all, steps) for name, all in replies.items()}
    result["step seconds"] = {name: median(s for reply in all for s in reply["step_seconds"][1:]) for name, all in replies.items()}
    result["equal"]["codes, ours bf16 and reference f32"] = same(replies["ours bf16"][0]["codes"], pair[1]["codes"])
    result["equal"][f"codes, {STRONG} and reference f32"] = same(replies[STRONG][0]["codes"], pair[1]["codes"])

    for process, work, request in entries("answer").values():
        process.ask(work, **request | {"max_new_tokens": 2})
    replies = turns.run("answer", entries("answer"))
    result["answer seconds"] = {name: whole_answer(all, tokens) for name, all in replies.items()}
    result["token seconds"] = {name: token_seconds(all) for name, all in replies.items()}

    # Before the bandwidth is measured, which takes a block of 1 GiB.
    for name in ("ours bf16", "ours int8"):
        result[f"memory {name}"] = processes[name].ask("memory")["peak"]
        result[f"bytes {name}"] = (folder / f"packed-{name.split()[1]}/packed.safetensors").stat().st_size
    bandwidth = median(processes["ours bf16"].ask("bandwidth")["bytes_per_second"] for _ in range(rounds))
    result["bandwidth"] = bandwidth
    result["part of bandwidth"] = {
        # A group of 512 values in int8 has a scale and a sum of four bytes each.
        name: active_bytes(config, size) / bandwidth / result["token seconds"][name]
        for name, size in (("ours bf16", 2), ("ours int8", 1 + 8 / 512), (STRONG, 2 if HAS_BF16 else 4))
    }
    for process in {torch_f32, torch_best, *processes.values()}:
        process.stop()

    # From the start of a process: until it can begin, until the first denoising step begins (ours reads the prompt before, the references in
    # every step), and until that step is done.
    starts = {name: [] for name in ("ours bf16", "ours int8", *RIVALS[:-1])}
    for _ in range(rounds):
        for name in starts:
            kind, dtype = name.split()
            process = ours(folder, dtype) if kind == "ours" else theirs(folder, {"f32": "float32", "bf16": "bfloat16"}[dtype])
            rival = {} if kind == "ours" else {"rival": "reference"}
            reply = process.ask("generate", num_inference_steps=1, **rival)
            begun = process.start_seconds + reply.get("prompt_seconds", 0.0)
            starts[name].append((process.start_seconds, begun, begun + reply["step_seconds"][0]))
            process.stop()
    for index, key in enumerate(("start seconds", "start to first step seconds", "start to end of first step seconds")):
        result[key] = {name: median(times[index] for times in all) for name, all in starts.items()}
    return result


def table(result: dict) -> str:
    lines = ["| work | ours | " + " | ".join(RIVALS) + " |", "|---|---" + "|---" * len(RIVALS) + "|"]
    for title, key in (("picture", "picture seconds"), ("answer", "answer seconds"), ("token", "token seconds"), ("step", "step seconds")):
        seconds = result[key]
        lines.append(f"| {title}, seconds | | " + " | ".join(f"{seconds[name]:.3f}" for name in RIVALS) + " |")
        for name in ("ours bf16", "ours int8"):
            ratios = " | ".join(f"{seconds[rival] / seconds[name]:.2f}x" for rival in RIVALS)
            lines.append(f"| {title}, {name} | {seconds[name]:.3f} s | {ratios} |")
    for key in ("start seconds", "start to first step seconds", "start to end of first step seconds"):
        seconds = result[key]
        for name in ("ours bf16", "ours int8"):
            ratios = " | ".join(f"{seconds[rival]:.2f} s, {seconds[rival] / seconds[name]:.2f}x" for rival in RIVALS[:-1])
            lines.append(f"| {key}, {name} | {seconds[name]:.2f} s | {ratios} | |")
    lines += ["", "| image tokenizer, float32 | ours | reference | strong |", "|---|---|---|---|"]
    for work, seconds in result["image tokenizer, float32"].items():
        if isinstance(seconds, dict):
            ratios = " | ".join(f"{seconds[name]:.2f} s, {seconds[name] / seconds['ours']:.2f}x" for name in ("reference", "strong"))
            lines.append(f"| {work} | {seconds['ours']:.2f} s | {ratios} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the model, about 22 GB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--few", action="store_true", help="for slow machines: few steps and tokens of everybody, multiplied; no 512 px")
    parser.add_argument("--json", type=Path, default=Path("compare.json"))
    args = parser.parse_args()
    prepare(args.work)
    result = compare(args.work, args.rounds, args.few)
    args.json.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
