"""Rival one: what the original does. Every step and every token recomputes the whole padded row, with logits over the whole vocabulary."""

import torch
from model import HIDDEN, Unif2ace
from sampling import Sampler, TextDraws, guide
from torch import Tensor


def t2i_mask(ids_BL: Tensor, config) -> Tensor:
    """Text is causal, the image sees everything but pads; additive `[B, 1, L, L]`."""
    special = config.special
    length = ids_BL.shape[1]
    starts, ends = (ids_BL == special["soi"]).cumsum(1), (ids_BL == special["eoi"]).cumsum(1)
    in_image = (starts > ends) | (ids_BL == special["soi"]) | (ids_BL == special["eoi"])
    pads = ids_BL == special["pad"]
    causal = torch.ones(length, length).tril().bool()
    open_rows = in_image[:, :, None] & ~pads[:, None, :]
    # Text behind the pads does not see them; pads stay causal among themselves.
    text_rows = ~in_image[:, :, None] & causal & (pads[:, :, None] | ~pads[:, None, :])
    return torch.where(open_rows | text_rows, 0.0, HIDDEN)[:, None]


def mmu_mask(ids_BL: Tensor, config) -> Tensor:
    """Causal, and everything up to the end of the image is open to all."""
    length = ids_BL.shape[1]
    end = int((ids_BL[0] == config.special["eoi"]).nonzero()[0])
    visible = torch.ones(length, length).tril().bool()
    visible[:, : end + 1] = True
    return torch.where(visible, 0.0, HIDDEN).expand(ids_BL.shape[0], 1, -1, -1)


@torch.inference_mode()
def generate(model: Unif2ace, cond_BL: Tensor, uncond_BL: Tensor | None, scale: float, sampler: Sampler, mask: Tensor | None = None) -> Tensor:
    """Codes `[B, N]`."""
    config = model.config
    num, start = config.num_vq_tokens, config.max_seq_length + 2
    guided = scale > 0 and uncond_BL is not None
    if mask is None:
        mask = t2i_mask(torch.cat((cond_BL, uncond_BL)) if guided else cond_BL, config)
    while not sampler.done():
        image = torch.where(sampler.grid < 0, config.mask_id, sampler.grid + config.image_offset)
        ids = torch.cat((cond_BL[:, :start], image, cond_BL[:, start + num :]), 1)
        level = sampler.masked_part()
        if guided:
            ids = torch.cat((ids, torch.cat((uncond_BL[:, : start - 1], ids[:, start - 1 :]), 1)))
            level = torch.cat((level, level))
        logits = model(ids, mask, "t2i", start, model.noise_feature(level))
        logits = logits[:, start : start + num, config.image_offset : config.image_offset + config.codebook_size]
        parts = logits.chunk(2) if guided else (logits, None)
        sampler.step(guide(*parts, scale))
    return sampler.codes


@torch.inference_mode()
def answer(model: Unif2ace, ids_L: Tensor, max_new_tokens: int, features: dict, eot: int | None, draws: TextDraws = TextDraws()) -> list[int]:
    """New tokens behind `[mmu] [soi] image [eoi] text`, one whole pass for each."""
    ids, tokens = ids_L[None], []
    for step in range(max_new_tokens):
        logits = model(ids, mmu_mask(ids, model.config), "mmu", 2, features)[0, -1]
        token = draws.pick(logits, step)
        tokens.append(token)
        if token == eot:
            break
        ids = torch.cat((ids, torch.tensor([[token]])), 1)
    return tokens
