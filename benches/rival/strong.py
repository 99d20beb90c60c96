"""Rival two: what a good engineer writes in PyTorch in a day. Prompts are read once, each denoising step computes the image rows only and
logits over the codes only, answers are decoded with a preallocated cache of keys and values."""

import torch
import torch.nn.functional as F
from model import HIDDEN, Unif2ace
from sampling import Sampler, TextDraws, guide
from torch import Tensor


class Cache:
    """Keys and values of all blocks, `[blocks, B, H, S, head_dim]`, with room for `room` positions."""

    def __init__(self, model: Unif2ace, batch: int, room: int):
        config = model.config
        shape = (config.num_hidden_layers, batch, config.num_attention_heads, room, config.head_dim)
        dtype = model.showo.lm_head.weight.dtype
        self.keys, self.values, self.length = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype), 0


def one_row(experts, x_1D: Tensor) -> Tensor:
    """Routed experts for a single row: the chosen experts' matrices as they lie in memory, without sorting or gathering."""
    gates, index = experts.route(x_1D)
    y_1D = torch.zeros_like(x_1D)
    for gate, expert in zip(gates[0], index[0].tolist()):
        inner = F.gelu(F.linear(x_1D, experts.fc1_weight[expert], experts.fc1_bias[expert]), approximate="tanh")
        y_1D += gate * F.linear(inner, experts.fc2_weight[expert], experts.fc2_bias[expert])
    return y_1D


def passed(model: Unif2ace, ids_BL: Tensor, positions: Tensor, task: str, cache: Cache, mask, image=None, features=None, keep=True) -> Tensor:
    """Hidden states of new positions behind those in the cache; `keep` appends them to it."""
    backbone = model.showo.model
    x = backbone.embed_tokens(ids_BL)
    rotary = model.rotary(positions)
    start, end = cache.length, cache.length + ids_BL.shape[1]
    for index, layer in enumerate(backbone.layers):
        h = layer.input_layernorm(x)
        q, k, v = layer.self_attn.project(h, rotary)
        cache.keys[index, :, :, start:end], cache.values[index, :, :, start:end] = k, v
        attended = layer.self_attn.mix(q, cache.keys[index, :, :, :end], cache.values[index, :, :, :end], mask)
        if ids_BL.numel() == 1 and hasattr(layer, "moe"):
            x = attended + layer.mlp(h) + x + one_row(getattr(layer.moe, task), h[:, 0])[:, None]
        else:
            x = layer.after_attention(x, h, attended, task, image, features or {})
    if keep:
        cache.length = end
    return backbone.final_layernorm(x)


def causal(new: int, old: int, dtype: torch.dtype) -> Tensor:
    visible = torch.ones(new, old + new).tril(old).bool()
    return torch.where(visible, 0.0, HIDDEN).to(dtype)[None, None]


@torch.inference_mode()
def generate(model: Unif2ace, cond_BL: Tensor, uncond_BL: Tensor | None, scale: float, sampler: Sampler) -> Tensor:
    """Codes `[B, N]`."""
    config, dtype = model.config, model.showo.lm_head.weight.dtype
    num, prompt = config.num_vq_tokens, config.max_seq_length + 1
    guided = scale > 0 and uncond_BL is not None
    heads = torch.cat((cond_BL, uncond_BL))[:, :prompt] if guided else cond_BL[:, :prompt]
    lengths = (heads != config.special["pad"]).sum(1)
    longest = int(lengths.max())
    cache = Cache(model, heads.shape[0], longest + num + 2)
    for row, length in enumerate(lengths.tolist()):
        one = Cache(model, 1, length)
        passed(model, heads[row : row + 1, prompt - length :], torch.arange(prompt - length, prompt), "t2i", one, causal(length, 0, dtype))
        cache.keys[:, row, :, longest - length : longest] = one.keys[:, 0]
        cache.values[:, row, :, longest - length : longest] = one.values[:, 0]
    cache.length = longest
    places = torch.arange(longest + num + 2)
    mask = torch.where(places[None, :] < (longest - lengths)[:, None], HIDDEN, 0.0).to(dtype)[:, None, None, :].expand(-1, 1, num + 2, -1)
    codes = slice(config.image_offset, config.image_offset + config.codebook_size)
    head = model.showo.lm_head
    soi, eoi = (torch.full((heads.shape[0], 1), config.special[name]) for name in ("soi", "eoi"))
    while not sampler.done():
        image = torch.where(sampler.grid < 0, config.mask_id, sampler.grid + config.image_offset)
        level = sampler.masked_part()
        if guided:
            image, level = torch.cat((image, image)), torch.cat((level, level))
        ids = torch.cat((soi, image, eoi), 1)
        positions = torch.arange(prompt, prompt + num + 2)
        x = passed(model, ids, positions, "t2i", cache, mask, (1, num), model.noise_feature(level), keep=False)
        logits = F.linear(x[:, 1 : num + 1], head.weight[codes], head.bias[codes]).float()
        parts = logits.chunk(2) if guided else (logits, None)
        sampler.step(guide(*parts, scale))
    return sampler.codes


@torch.inference_mode()
def answer(model: Unif2ace, ids_L: Tensor, max_new_tokens: int, features: dict, eot: int | None, draws: TextDraws = TextDraws()) -> list[int]:
    """New tokens behind `[mmu] [soi] image [eoi] text`: the row is read once, then one position a token."""
    config, dtype = model.config, model.showo.lm_head.weight.dtype
    length, head = ids_L.numel(), model.showo.lm_head
    end = int((ids_L == config.special["eoi"]).nonzero()[0])
    mask = causal(length, 0, dtype).clone()
    mask[..., : end + 1] = 0.0
    cache = Cache(model, 1, length + max_new_tokens)
    x = passed(model, ids_L[None], torch.arange(length), "mmu", cache, mask, (2, config.num_vq_tokens), features)
    tokens = []
    for step in range(max_new_tokens):
        logits = head(x[0, -1]).float()
        token = draws.pick(logits, step)
        tokens.append(token)
        if token == eot or step + 1 == max_new_tokens:
            break
        x = passed(model, torch.tensor([[token]]), torch.tensor([cache.length]), "mmu", cache, None)
    return tokens
