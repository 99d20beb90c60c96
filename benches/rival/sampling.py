"""The sampling rule that all rivals share: draw, keep the most confident, mask the rest."""

import math
from dataclasses import dataclass
from typing import Callable

import torch
from torch import Tensor

# (step, shape) -> exponential draws [B, N, K] and uniform draws [B, N].
Draws = Callable[[int, tuple[int, int, int]], tuple[Tensor, Tensor]]


def seeded(seed: int) -> Draws:
    """Draws of torch's own generator."""
    generator = torch.Generator().manual_seed(seed)

    def draws(_step: int, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        return torch.empty(shape).exponential_(generator=generator), torch.rand(shape[:2], generator=generator)

    return draws


def schedule_value(name: str, ratio: float) -> float:
    """Masked part after `ratio` of the steps, in float32 as the reference computes it."""
    t = torch.tensor(ratio)
    if name == "cosine":
        return float(torch.cos(t * math.pi * 0.5))
    if name.startswith("pow"):
        return float((1.0 - t ** float(name[3:])).clamp(1e-6, 1.0))
    raise ValueError(f"schedule {name}: expected cosine or powK")


class Sampler:
    """State of B grids of codes, -1 where unknown."""

    def __init__(self, grid_BN: Tensor, num_steps: int, temperature: float, schedule: str, draws: Draws):
        self.grid, self.num_steps, self.temperature = grid_BN.clone(), num_steps, temperature
        self.schedule, self.draws, self.step_index = schedule, draws, 0
        self.codes = self.grid

    def masked_part(self) -> Tensor:
        return (self.grid < 0).float().mean(1)

    def step(self, logits_BNK: Tensor) -> None:
        """Logits of all places, guided already."""
        ratio = (self.step_index + 1) / self.num_steps
        probs = logits_BNK.softmax(-1)
        exponential, uniform = self.draws(self.step_index, tuple(probs.shape))
        unknown = self.grid < 0
        self.codes = torch.where(unknown, (probs / exponential).argmax(-1), self.grid)
        wanted = torch.tensor(float(math.floor(self.grid.shape[1] * torch.tensor(schedule_value(self.schedule, ratio)))))
        count = torch.maximum(torch.tensor(1.0), torch.minimum(unknown.sum(1).float() - 1, wanted)).long()
        chosen = probs.gather(-1, self.codes[..., None])[..., 0]
        chosen = torch.where(unknown, chosen, torch.finfo(torch.float32).max)
        self.temperature *= 1.0 - ratio
        gumbel = -torch.log((-torch.log(uniform.clamp_min(1e-20))).clamp_min(1e-20))
        confidence = torch.log(chosen.clamp_min(1e-20)) + self.temperature * gumbel
        cut = confidence.sort(-1).values.gather(1, count[:, None])
        self.grid = torch.where(confidence < cut, -1, self.codes)
        self.step_index += 1

    def done(self) -> bool:
        return self.step_index == self.num_steps


def guide(conditional: Tensor, unconditional: Tensor | None, scale: float) -> Tensor:
    return conditional if unconditional is None else (1 + scale) * conditional - scale * unconditional


@dataclass
class TextDraws:
    """How text is drawn; greedy without draws."""

    top_k: int | None = None
    exponential: Tensor | None = None
    temperature: float = 1.0

    def pick(self, logits_V: Tensor, step: int) -> int:
        return pick(logits_V, self.top_k, None if self.exponential is None else self.exponential[step], self.temperature)


def pick(logits_V: Tensor, top_k: int | None = None, exponential_V: Tensor | None = None, temperature: float = 1.0) -> int:
    """Next token: the largest, or drawn among the `top_k` largest (ties stay) with given exponential draws."""
    if exponential_V is None:
        return int(logits_V.argmax())
    logits_V = logits_V / temperature
    if top_k:
        logits_V = torch.where(logits_V < logits_V.topk(top_k).values[-1], float("-inf"), logits_V)
    return int((logits_V.softmax(-1) / exponential_V).argmax())
