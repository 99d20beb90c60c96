"""Times a training step of `unif2ace` beside a trainer in PyTorch on the same weights and batches, both taking turns on two threads.

    cargo build --release -p unif2ace-bench
    python3 -m venv venv && venv/bin/pip install -r benches/rival/requirements.txt
    venv/bin/python benches/train.py --work FOLDER [--rounds 5] [--recompute] [--json FILE] [--quick]

First the losses, gradients and weights of three steps in float32 are compared; if they differ, nothing is timed. See benches/README.md.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from compare import BENCH, HAS_BF16, ROOT, Process, machine, median, say

# Largest relative differences of the first steps in float32: of a loss, of the norm of all gradients and of all weights, of one tensor's
# gradient in the first step (relative to the norm of all gradients where the tensor's own is smaller than a thousandth of it).
TOLERANCE = {"loss": 1e-4, "gradient norm": 1e-3, "parameter norm": 1e-5, "gradient of a tensor": 1e-3}
STEPS_COMPARED = 3
# PyTorch's bf16 is no rival on CPUs without instructions for it, see compare.py.
PRECISIONS = ("f32", "bf16") if HAS_BF16 else ("f32",)
PHASES = ("forward", "backward", "optimizer")

# Cases by name: recipe and options of `unif2ace-bench train-case`.
CASES = {
    "mini": ("recipes/mini/unified.toml", {}),
    "768 wide": ("benches/wide.toml", {"num-patches": 256}),
}
QUICK = {
    "mini": {"batch-size": 4, "mmu-batch-size": 2},
    "768 wide": {"batch-size": 1, "mmu-batch-size": 1, "num-vq-tokens": 64, "num-hidden-layers": 2},
}
CURVE_ROWS, CURVE_TOKENS = (1, 2, 4, 8, 16), (64, 256)


def make_case(work: Path, name: str, recipe: str, options: dict) -> Path:
    folder = work / name.replace(" ", "-")
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    subprocess.run([BENCH, "train-case", recipe, folder.resolve(), *words], check=True, cwd=ROOT)
    return folder


def ours(case: Path, precision: str, *options: str) -> Process:
    return Process([BENCH, "train-worker", case, "--precision", precision, *options])


def theirs(case: Path, precision: str, *options: str) -> Process:
    return Process([sys.executable, ROOT / "benches/rival/train.py", case, "--precision", precision, *options])


def ways(case: Path, precision: str, *options: str) -> list[str]:
    """The faster way of the rival to compute each part, as options, so that the slower ones leave no trace in its memory."""
    process = theirs(case, precision, *options)
    process.stop()
    return [word for part, way in process.ready["ways"].items() for word in (f"--{part}", way)]


def difference(ours: float, theirs: float, least: float = 0.0) -> float:
    return abs(ours - theirs) / max(abs(theirs), least, 1e-30)


def parity(name: str, pair: dict[str, Process]) -> dict:
    """Compares the first steps; ends the program where they differ."""
    found = {what: 0.0 for what in TOLERANCE}
    losses, worst = [], ""
    for step in range(STEPS_COMPARED):
        a, b = (process.ask("step", norms=step == 0) for process in pair.values())
        losses.append({"ours": a["loss"], "theirs": b["loss"], "difference": difference(a["loss"], b["loss"])})
        found["loss"] = max(found["loss"], losses[-1]["difference"])
        found["gradient norm"] = max(found["gradient norm"], difference(a["gradient_norm"], b["gradient_norm"]))
        say(f"{name}, step {step + 1}: loss {a['loss']:.6f} and {b['loss']:.6f}, gradient norm {a['gradient_norm']:.6f} and {b['gradient_norm']:.6f}")
        if step == 0:
            if set(a["norms"]) != set(b["norms"]):
                sys.exit(f"error: {name}: other tensors have gradients: {sorted(set(a['norms']) ^ set(b['norms']))}")
            least = 1e-3 * b["gradient_norm"]
            each = {path: difference(a["norms"][path], b["norms"][path], least) for path in a["norms"]}
            worst = max(each, key=each.get)
            found["gradient of a tensor"] = each[worst]
        norms = [process.ask("parameters")["norm"] for process in pair.values()]
        found["parameter norm"] = max(found["parameter norm"], difference(*norms))
    say(f"{name}: largest relative differences {', '.join(f'{what} {value:.1e}' for what, value in found.items())} ({worst})")
    wrong = [f"{what} {found[what]:.1e}, allowed {allowed:.0e}" for what, allowed in TOLERANCE.items() if not found[what] <= allowed]
    if wrong:
        sys.exit(f"error: {name}: both sides must compute the same before they are timed: {'; '.join(wrong)}")
    return {"losses": losses, "largest differences": found, "tensor": worst}


def take_turns(what: str, pair: dict[str, Process], rounds: int, warm: int) -> dict:
    """A B A B; medians by side. The first `warm` steps of each pay page faults and first allocations."""
    for process in pair.values():
        for _ in range(warm):
            process.ask("step")
    replies = {side: [] for side in pair}
    for index in range(rounds):
        for side, process in pair.items():
            replies[side].append(process.ask("step"))
        say(f"{what}: round {index + 1} of {rounds}, " + ", ".join(f"{side} {all[-1]['seconds']:.3f} s" for side, all in replies.items()))
    result = {"num_tokens": statistics.mean(reply["num_tokens"] for reply in replies["ours"])}
    for side, all in replies.items():
        # A round's batch is the same for both; a median over several batches of one size.
        seconds = {phase: median(reply[f"{phase}_seconds"] for reply in all) for phase in PHASES}
        total = median(reply["seconds"] for reply in all)
        tokens = median(reply["num_tokens"] / reply["seconds"] for reply in all)
        result[side] = {"seconds": total, "tokens_per_second": tokens, "peak_memory": pair[side].ask("memory")["peak"]} | seconds
        result[side]["losses"] = [reply["loss"] for reply in all]
    # Of each round: what disturbs the machine for longer than a round disturbs both sides.
    result["ratio"] = median(b["seconds"] / a["seconds"] for a, b in zip(replies["ours"], replies["theirs"]))
    return result


def stop(pair: dict[str, Process]) -> None:
    for process in pair.values():
        process.stop()


def row(case: Path, name: str, precision: str, rounds: int, options: list[str]) -> dict:
    chosen = ways(case, precision, *options)
    pair = {"ours": ours(case, precision, *options), "theirs": theirs(case, precision, *options, *chosen)}
    result = {"ways": chosen}
    if precision == "f32":
        result["parity"] = parity(name, pair)
    result |= take_turns(name, pair, rounds, 1 if precision == "f32" else 2)
    stop(pair)
    return result


def curve(work: Path, rows: tuple, tokens: tuple, rounds: int) -> list[dict]:
    """Tokens a second of the small model against rows a step (with half as many rows of understanding) and image tokens."""
    points = []
    for num_vq_tokens in tokens:
        for batch in rows:
            options = {"batch-size": batch, "mmu-batch-size": (batch + 1) // 2, "num-vq-tokens": num_vq_tokens}
            case = make_case(work, f"curve {num_vq_tokens} {batch}", CASES["mini"][0], options)
            for precision in PRECISIONS:
                pair = {"ours": ours(case, precision), "theirs": theirs(case, precision)}
                point = {"image_tokens": num_vq_tokens, "rows": [batch, options["mmu-batch-size"]], "precision": precision}
                points.append(point | take_turns(f"{num_vq_tokens} image tokens, {batch} rows, {precision}", pair, rounds, 2))
                stop(pair)
    return points


def profile(case: Path, precision: str, file: Path) -> None:
    """A trace of one of our steps after two that warm up."""
    process = ours(case, precision, "--profile", file)
    for _ in range(3):
        process.ask("step")
    process.stop()


def table(result: dict) -> str:
    lines = ["| step | ours | PyTorch | PyTorch / ours | ours, tokens a second | PyTorch, tokens a second | memory ours | memory PyTorch |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for name, row in result["rows"].items():
        a, b = row["ours"], row["theirs"]
        memory = " | ".join(f"{side['peak_memory'] / 1e9:.2f} GB" for side in (a, b))
        lines.append(
            f"| {name} | {a['seconds']:.3f} s | {b['seconds']:.3f} s | {row['ratio']:.2f}x | {a['tokens_per_second']:.0f} "
            f"| {b['tokens_per_second']:.0f} | {memory} |"
        )
    lines += ["", "| where the time goes, seconds | " + " | ".join(f"ours, {phase}" for phase in PHASES) + " | " + " | ".join(f"PyTorch, {phase}" for phase in PHASES) + " |"]
    lines.append("|---|" + "---|" * 2 * len(PHASES))
    for name, row in result["rows"].items():
        lines.append(f"| {name} | " + " | ".join(f"{row[side][phase]:.3f}" for side in ("ours", "theirs") for phase in PHASES) + " |")
    if result["curve"]:
        lines += ["", "| mini, image tokens | rows | precision | ours, tokens a second | PyTorch | PyTorch / ours |", "|---|---|---|---|---|---|"]
    for point in result["curve"]:
        rows = " + ".join(map(str, point["rows"]))
        speeds = " | ".join(f"{point[side]['tokens_per_second']:.0f}" for side in ("ours", "theirs"))
        lines.append(f"| {point['image_tokens']} | {rows} | {point['precision']} | {speeds} | {point['ratio']:.2f}x |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for weights, batches and traces, about 1 GB")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each side that medians are taken of")
    parser.add_argument("--recompute", action="store_true", help="also with recomputation of the blocks in the backward pass, on both sides")
    parser.add_argument("--no-curve", action="store_true", help="leave out tokens a second against rows and image tokens")
    parser.add_argument("--quick", action="store_true", help="small sizes and two rounds, to see that everything works; the times mean nothing")
    parser.add_argument("--json", type=Path, default=Path("train-results.json"))
    args = parser.parse_args()
    rounds = 2 if args.quick else args.rounds
    work = args.work.resolve()
    result = {"machine": machine(), "rounds": rounds, "quick": args.quick, "rows": {}, "curve": []}
    for name, (recipe, options) in CASES.items():
        case = make_case(work, name, recipe, options | (QUICK[name] if args.quick else {}))
        for switch in [[], ["--recompute"]] if args.recompute else [[]]:
            for precision in PRECISIONS:
                title = f"{name}, {precision}" + (", recomputed" if switch else "")
                result["rows"][title] = row(case, title, precision, rounds, switch)
        for precision in PRECISIONS:
            profile(case, precision, work / f"{case.name}-{precision}.trace.json")
    if not args.no_curve:
        rows, tokens = ((1, 2), (64,)) if args.quick else (CURVE_ROWS, CURVE_TOKENS)
        result["curve"] = curve(work, rows, tokens, rounds)
    args.json.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
