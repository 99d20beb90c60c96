"""Checks both rivals against the golden cases of the original, and against each other with experts: `python check.py [GOLDEN_FOLDER]`."""

import json
import sys
from pathlib import Path

import reference
import strong
import torch
import vq
from model import Config, Unif2ace
from safetensors.torch import load_file
from sampling import Sampler, TextDraws, seeded

GOLDEN = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2] / "tests/fixtures/golden"


def tiny(case: str) -> Unif2ace:
    folder = GOLDEN / "transformer" / case
    model = Unif2ace(Config.read(folder / "config.json"))
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    return model.eval()


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float, what: str) -> None:
    difference = (found - expected).abs().max().item()
    assert difference <= tolerance, f"{what}: largest difference {difference:.2e}, expected at most {tolerance:.0e}"
    print(f"ok  {what}: {difference:.1e}")


def transformer(case: str) -> None:
    folder = GOLDEN / "transformer" / case
    batch, outputs = load_file(folder / "batch.safetensors"), load_file(folder / "outputs.safetensors")
    with torch.inference_mode():
        close(tiny(case)(batch["input_ids"], batch["attention_mask"], "t2i"), outputs["logits"], 2e-5, f"transformer/{case} logits")


def sampler_case(folder: Path) -> None:
    case, data = json.loads((folder / "case.json").read_text()), load_file(folder / "case.safetensors")
    if not case["model"].startswith("transformer/"):
        return
    model = tiny(case["model"].split("/")[1].split()[0])
    config = model.config
    start = config.max_seq_length + 2
    image = data["input_ids"][:, start : start + config.num_vq_tokens]
    grid = torch.where(image == config.mask_id, -1, image - config.image_offset)

    def draws(step, _shape):
        return data["exp_noise"][step], data["uniform_noise"][step]

    for rival in (reference, strong):
        steps = Sampler(grid, case["timesteps"], case["start_temperature"], case["schedule"], draws)
        codes = rival.generate(model, data["input_ids"], data.get("uncond_input_ids"), case["guidance_scale"], steps)
        assert torch.equal(codes, data["final_ids"]), f"{folder.name}: codes of {rival.__name__} differ"
        print(f"ok  sampler/{folder.name}, {rival.__name__}")


def answer_case(folder: Path) -> None:
    case, data = json.loads((folder / "case.json").read_text()), load_file(folder / "case.safetensors")
    model = tiny(case["model"].split("/")[1].split()[0])
    for rival in (reference, strong):
        draws = TextDraws(case["top_k"], data["exp_noise"], case["temperature"])
        tokens = rival.answer(model, data["input_ids"].flatten(), case["max_new_tokens"], {}, case["eot_token"], draws)
        assert tokens == data["tokens"].flatten().tolist(), f"{folder.name}: tokens of {rival.__name__} differ: {tokens}"
        print(f"ok  mmu_generate/{folder.name}, {rival.__name__}")


def with_experts() -> None:
    """The two rivals agree where experts are at work, for which there are no golden cases."""
    torch.manual_seed(0)
    config = Config.read(GOLDEN / "transformer/a/config.json")
    moe = dict(level="both", num_routed_experts=5, num_experts_per_tok=2, routed_intermediate_size=12, num_sequence_experts_per_image=2)
    config.moe = moe | dict(clip_dim=8, face_dim=6, num_feature_tokens=3, feature_token_dim=10)
    model = Unif2ace(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    special, num = config.special, config.num_vq_tokens
    head = lambda text: [special["pad"]] * (config.max_seq_length - 1 - len(text)) + [special["t2i"]] + text + [config.eot]  # noqa: E731
    row = lambda text: head(text) + [special["soi"]] + [config.mask_id] * num + [special["eoi"]]  # noqa: E731
    cond, uncond = torch.tensor([row([96, 1, 2, 3]), row([96, 7])]), torch.tensor([row([96])] * 2)
    grid = torch.full((2, num), -1)
    grids = [r.generate(model, cond, uncond, 3.0, Sampler(grid, 6, 1.0, "cosine", seeded(1))) for r in (reference, strong)]
    assert torch.equal(*grids), "pictures of the rivals differ"
    text = torch.tensor([special["mmu"], special["soi"], *range(config.image_offset, config.image_offset + num), special["eoi"], 96, 5, 6])
    with torch.inference_mode():
        features = {
            "clip": model.resamplers.clip(torch.randn(1, 7, 8)),
            "face": model.resamplers.of_face(torch.randn(1, 6)),
        }
    answers = [r.answer(model, text, 12, features, None) for r in (reference, strong)]
    assert answers[0] == answers[1], f"answers of the rivals differ: {answers}"
    with torch.inference_mode():
        mask = reference.mmu_mask(text[None], config)
        seen, unseen = (model(text[None], mask, "mmu", 2, known)[0, -1] for known in (features, {}))
    assert (seen - unseen).abs().max() > 1e-3, "features have no effect: the check is blind"
    print("ok  rivals agree with experts")


def tokenizer_case(folder: Path) -> None:
    case, data = json.loads((folder / "case.json").read_text()), load_file(folder / "case.safetensors")
    sizes = case["config"]
    model = vq.Vq(vq.Config(**{name: sizes[name] for name in ("ch", "enc_mult", "enc_blocks", "dec_mult", "dec_blocks")}, z_channels=sizes["z"]))
    if (folder / "weights.safetensors").exists():
        model.load_state_dict(load_file(folder / "weights.safetensors"), strict=False)
    else:
        vq.load_procedural(model)
    height, width = (side // 2 ** (len(sizes["enc_mult"]) - 1) for side in data["pixels"].shape[2:])
    for layout in (torch.contiguous_format, torch.channels_last):
        model.to(memory_format=layout)
        with torch.inference_mode():
            close(model.encoder(model.like_weights(data["pixels"])), data["z"], 1e-4, f"magvit/{folder.name} z")
            pictures = model.decode(data["indices"], height, width)
            close(pictures, data["reconstruction"], 2e-4, f"magvit/{folder.name} reconstruction")
            sure = (data["z"].abs() > 1e-4).all(1).flatten(1)
            found = model.encode(data["pixels"])
            assert torch.equal(found[sure], data["indices"].view_as(found)[sure]), f"magvit/{folder.name}: codes differ"


if __name__ == "__main__":
    torch.set_num_threads(2)
    for folder in sorted((GOLDEN / "transformer").iterdir()):
        transformer(folder.name)
    for folder in sorted((GOLDEN / "sampler").iterdir()):
        sampler_case(folder)
    for folder in sorted((GOLDEN / "mmu_generate").iterdir()):
        answer_case(folder)
    for folder in sorted(path for path in (GOLDEN / "magvit").iterdir() if path.is_dir()):
        tokenizer_case(folder)
    with_experts()
