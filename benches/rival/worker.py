"""The rivals, doing the work of a case on demand as `unif2ace-bench worker` does: one JSON request a line, one JSON reply a line. A request
names the rival, reference or strong; both share the weights.

    python worker.py float32|bfloat16 MODEL_FOLDER CASE_FOLDER
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import reference
import strong
import torch
import vq
from model import Config, Unif2ace
from safetensors import safe_open
from safetensors.torch import load_file
from sampling import Sampler, TextDraws


RIVALS = {"reference": reference, "strong": strong}


def load(folder: Path, dtype: torch.dtype) -> Unif2ace:
    with torch.device("meta"):
        model = Unif2ace(Config.read(folder / "config.json"))
    with safe_open(folder / "model.safetensors", "pt") as file:
        state = {name: file.get_tensor(name).to(dtype) for name in file.keys()}
    model.load_state_dict(state, assign=True)
    return model.eval()


def load_vq(folder: Path, channels_last: bool) -> vq.Vq:
    model = vq.Vq(vq.Config.read(folder / "config.json"))
    model.load_state_dict(load_file(folder / "vq.safetensors"))
    return (model.to(memory_format=torch.channels_last) if channels_last else model).eval()


def pixels(side: int) -> torch.Tensor:
    """The pattern of our own worker, `[1, 3, side, side]`."""
    values = (torch.arange(side * side * 3) * 7919 % 2003).float() / 1001.5 - 1.0
    return values.view(1, side, side, 3).permute(0, 3, 1, 2)


class Worker:
    def __init__(self, model: Unif2ace, tokenizers: dict[str, vq.Vq], case: dict, draws: dict):
        self.model, self.tokenizers, self.case, self.draws = model, tokenizers, case, draws

    def generate(self, rival: str, num_inference_steps: int | None = None) -> dict:
        case, config = self.case, self.model.config
        marks = [time.perf_counter()]

        def draws(step, _shape):
            return self.draws["code"][step][None], self.draws["confidence"][step][None]

        class Timed(Sampler):
            def step(self, logits):
                super().step(logits)
                marks.append(time.perf_counter())

        steps = num_inference_steps or case["num_inference_steps"]
        sampler = Timed(torch.full((1, config.num_vq_tokens), -1), steps, 1.0, "cosine", draws)
        ids = [torch.tensor([case[name]]) for name in ("prompt_ids", "empty_ids")]
        codes = RIVALS[rival].generate(self.model, *ids, case["guidance_scale"], sampler)
        start = time.perf_counter()
        side = int(config.num_vq_tokens**0.5)
        self.tokenizers[rival].decode(codes, side, side)
        end = time.perf_counter()
        step_seconds = [after - before for before, after in zip(marks, marks[1:])]
        return {"seconds": end - marks[0], "step_seconds": step_seconds, "decode_seconds": end - start, "codes": codes[0].tolist()}

    def answer(self, rival: str, max_new_tokens: int | None = None) -> dict:
        marks = [time.perf_counter()]
        self.tokenizers[rival].encode(pixels(256))
        marks.append(time.perf_counter())

        class Timed(TextDraws):
            def pick(self, logits, step):
                # Only text can be said, as with us.
                token = super().pick(logits[:text], step)
                marks.append(time.perf_counter())
                return token

        text = self.model.config.llm_vocab_size
        ids = torch.tensor(self.case["question_ids"])
        tokens = RIVALS[rival].answer(self.model, ids, max_new_tokens or self.case["max_new_tokens"], {}, None, Timed())
        seconds = [after - before for before, after in zip(marks, marks[1:])]
        return {"seconds": marks[-1] - marks[0], "encode_seconds": seconds[0], "token_seconds": seconds[1:], "tokens": tokens}

    def vq_work(self, rival: str, side: int) -> dict:
        start = time.perf_counter()
        tokenizer = self.tokenizers[rival]
        codes = tokenizer.encode(pixels(side))
        middle = time.perf_counter()
        picture = tokenizer.decode(codes, side // 16, side // 16)
        end = time.perf_counter()
        mean = picture.double().mean().item()
        return {"encode_seconds": middle - start, "decode_seconds": end - middle, "codes": codes[0].tolist(), "mean": mean}

    def memory(self, rival: str) -> dict:
        return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("dtype", choices=["float32", "bfloat16"])
    parser.add_argument("model", type=Path)
    parser.add_argument("case", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(2)
    start = time.perf_counter()
    model = load(args.model, getattr(torch, args.dtype))
    case = json.loads((args.case / "case.json").read_text())
    tokenizers = {name: load_vq(args.model, name == "strong") for name in RIVALS}
    worker = Worker(model, tokenizers, case, load_file(args.case / "draws.safetensors"))
    works = {"generate": worker.generate, "answer": worker.answer, "vq": worker.vq_work, "memory": worker.memory}
    print(json.dumps({"ready": True, "seconds": time.perf_counter() - start}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        with torch.inference_mode():
            print(json.dumps(works[request.pop("work")](**request)), flush=True)


if __name__ == "__main__":
    main()
