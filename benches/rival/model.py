"""UniF2ace's transformer in PyTorch, as a rival for benchmarks: parameters are named as in `model.safetensors`, so the same file serves both.

Written from the specification of the model; nothing of the product depends on it. Shapes: B batch, L positions, S keys, D width, H heads,
N image tokens, E experts, K chosen experts.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN = float(-(2**63))
NOISE_FREQUENCIES = 64


@dataclass
class Config:
    """The keys of config.json that the transformer needs."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    llm_vocab_size: int
    codebook_size: int
    num_vq_tokens: int
    max_seq_length: int
    rotary_dim: int
    eot: int
    rope_theta: float = 10_000.0
    layer_norm_eps: float = 1e-5
    num_new_special_tokens: int = 10
    moe: dict | None = None
    special: dict = field(init=False)

    def __post_init__(self):
        base = self.llm_vocab_size
        names = ["pad", "soi", "eoi", "sov", "eov", "t2i", "mmu", "t2v", "v2v", "lvg"]
        self.special = {name: base + index for index, name in enumerate(names)}
        self.image_offset = base + self.num_new_special_tokens
        self.mask_id = self.vocab_size - 1
        self.head_dim = self.hidden_size // self.num_attention_heads

    @staticmethod
    def read(path: Path) -> "Config":
        values = json.loads(Path(path).read_text())
        known = {name: values[name] for name in Config.__dataclass_fields__ if name in values and name != "special"}
        known.setdefault("rotary_dim", int(values.get("partial_rotary_factor", 0.5) * known["hidden_size"] / known["num_attention_heads"]))
        known.setdefault("eot", values.get("eot_token_id", 96))
        moe = known.get("moe")
        known["moe"] = moe if moe and moe.get("level", "both") != "none" else None
        return Config(**known)


def rotate(x_BHLC: Tensor, cos_LR: Tensor, sin_LR: Tensor) -> Tensor:
    """Rotary embedding of the first R dims of each head."""
    width = cos_LR.shape[-1]
    turned, rest = x_BHLC[..., :width], x_BHLC[..., width:]
    half = width // 2
    swapped = torch.cat((-turned[..., half:], turned[..., :half]), -1)
    return torch.cat((turned * cos_LR + swapped * sin_LR, rest), -1)


class Attention(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        width = config.hidden_size
        self.heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.dense = nn.Linear(width, width), nn.Linear(width, width)
        self.q_layernorm = nn.LayerNorm(self.head_dim, config.layer_norm_eps)
        self.k_layernorm = nn.LayerNorm(self.head_dim, config.layer_norm_eps)

    def split(self, x_BLD: Tensor) -> Tensor:
        return x_BLD.unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)

    def project(self, h_BLD: Tensor, rotary) -> tuple[Tensor, Tensor, Tensor]:
        q = rotate(self.q_layernorm(self.split(self.q_proj(h_BLD))), *rotary)
        k = rotate(self.k_layernorm(self.split(self.k_proj(h_BLD))), *rotary)
        return q, k, self.split(self.v_proj(h_BLD))

    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.dense(y.transpose(1, 2).flatten(-2))


class Mlp(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class TokenExperts(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        num, inner, width = config.moe["num_routed_experts"], config.moe["routed_intermediate_size"], config.hidden_size
        self.chosen = config.moe["num_experts_per_tok"]
        self.router = nn.Linear(width, num, bias=False)
        self.fc1_weight = nn.Parameter(torch.zeros(num, inner, width))
        self.fc1_bias = nn.Parameter(torch.zeros(num, inner))
        self.fc2_weight = nn.Parameter(torch.zeros(num, width, inner))
        self.fc2_bias = nn.Parameter(torch.zeros(num, width))

    def route(self, x_RD: Tensor) -> tuple[Tensor, Tensor]:
        probs = F.linear(x_RD.float(), self.router.weight.float()).softmax(-1)
        gates, index = probs.topk(self.chosen, -1)
        return gates.to(x_RD.dtype), index

    def forward(self, x_RD: Tensor) -> Tensor:
        """Sorted by expert: each expert sees its own rows only."""
        gates, index = self.route(x_RD)
        y_RD = torch.zeros_like(x_RD)
        for expert in range(self.fc1_weight.shape[0]):
            rows, slots = torch.where(index == expert)
            if rows.numel() == 0:
                continue
            inner = F.gelu(F.linear(x_RD[rows], self.fc1_weight[expert], self.fc1_bias[expert]), approximate="tanh")
            out = F.linear(inner, self.fc2_weight[expert], self.fc2_bias[expert])
            y_RD.index_add_(0, rows, out * gates[rows, slots, None])
        return y_RD


class TokenMoe(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.t2i, self.mmu = TokenExperts(config), TokenExperts(config)


class SequenceGroup(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.router = nn.Linear(config.hidden_size, 4)
        self.mix = nn.Parameter(torch.zeros(2, 2))
        self.chosen = config.moe["num_sequence_experts_per_image"]

    def forward(self, x_BND: Tensor, third: Tensor | None, fourth: Tensor | None, zero: bool) -> Tensor:
        """Experts copy, copy, then zero or a feature, then a feature; a feature that is absent makes its expert a copy."""
        probs = F.linear(x_BND.float().mean(1), self.router.weight.float(), self.router.bias.float()).softmax(-1)
        kept, index = probs.topk(self.chosen, -1)
        gates = torch.zeros_like(probs).scatter(-1, index, kept / kept.sum(-1, keepdim=True)).to(x_BND.dtype)
        gate = lambda expert: gates[:, expert, None, None]  # noqa: E731
        mix = self.mix.softmax(-1)
        y = x_BND * (gate(0) + gate(1))
        for row, feature in enumerate([third, fourth]):
            if row == 0 and zero:
                continue
            mixed = x_BND if feature is None else x_BND * mix[row, 0] + feature * mix[row, 1]
            y = y + gate(2 + row) * mixed
        return y


class SequenceMoe(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.scale = nn.Parameter(torch.zeros(1))
        self.t2i, self.mmu = SequenceGroup(config), SequenceGroup(config)

    def forward(self, x_BLD: Tensor, start: int, num: int, task: str, features: dict) -> Tensor:
        image = x_BLD[:, start : start + num]
        group = getattr(self, task)
        if task == "t2i":
            mixed = group(self.norm(image), None, features.get("noise"), zero=True)
        else:
            mixed = group(self.norm(image), features.get("clip"), features.get("face"), zero=False)
        return torch.cat((x_BLD[:, :start], image + self.scale * mixed, x_BLD[:, start + num :]), 1)


class Block(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn, self.mlp = Attention(config), Mlp(config)
        level = config.moe.get("level", "both") if config.moe else "none"
        if level in ("both", "token"):
            self.moe = TokenMoe(config)
        if level in ("both", "sequence"):
            self.sequence = SequenceMoe(config)

    def after_attention(self, x: Tensor, h: Tensor, attended: Tensor, task: str, image: tuple[int, int] | None, features: dict) -> Tensor:
        x = attended + self.mlp(h) + x
        if hasattr(self, "moe"):
            x = x + getattr(self.moe, task)(h.flatten(0, 1)).view_as(x)
        if hasattr(self, "sequence") and image is not None:
            x = self.sequence(x, *image, task, features)
        return x


class Resampler(nn.Module):
    def __init__(self, feature_dim: int, config: Config):
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.queries = nn.Parameter(torch.zeros(config.num_vq_tokens, width))
        self.norm = nn.LayerNorm(feature_dim, config.layer_norm_eps)
        self.k_proj, self.v_proj = nn.Linear(feature_dim, width), nn.Linear(feature_dim, width)
        self.dense = nn.Linear(width, width)

    def forward(self, feature_BPC: Tensor) -> Tensor:
        feature = self.norm(feature_BPC)
        split = lambda x: x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # noqa: E731
        queries = self.queries.expand(feature.shape[0], -1, -1)
        y = F.scaled_dot_product_attention(split(queries), split(self.k_proj(feature)), split(self.v_proj(feature)))
        return self.dense(y.transpose(1, 2).flatten(-2))


class Resamplers(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        moe, width = config.moe, config.hidden_size
        self.positions = moe["num_feature_tokens"]
        spread = self.positions * moe["feature_token_dim"]
        self.noise_fc1, self.noise_fc2 = nn.Linear(2 * NOISE_FREQUENCIES, width), nn.Linear(width, spread)
        self.noise = Resampler(moe["feature_token_dim"], config)
        self.clip = Resampler(moe["clip_dim"], config)
        self.face_tokens = nn.Linear(moe["face_dim"], spread)
        self.face = Resampler(moe["feature_token_dim"], config)

    def of_noise(self, level_B: Tensor) -> Tensor:
        frequencies = torch.exp(-math.log(10_000.0) * torch.arange(NOISE_FREQUENCIES) / NOISE_FREQUENCIES)
        angles = 1000.0 * level_B.float()[:, None] * frequencies
        waves = torch.cat((angles.sin(), angles.cos()), -1).to(self.noise_fc1.weight.dtype)
        return self.noise(self.noise_fc2(F.silu(self.noise_fc1(waves))).unflatten(-1, (self.positions, -1)))

    def of_face(self, face_BF: Tensor) -> Tensor:
        return self.face(self.face_tokens(face_BF).unflatten(-1, (self.positions, -1)))


class Backbone(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)


class ShowO(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.model = Backbone(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)


class Unif2ace(nn.Module):
    """Everything recomputed at every call, logits over the whole vocabulary: what the original backbone's code does."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.showo = ShowO(config)
        if config.moe and config.moe.get("level", "both") in ("both", "sequence"):
            self.resamplers = Resamplers(config)

    def rotary(self, positions_L: Tensor) -> tuple[Tensor, Tensor]:
        width = self.config.rotary_dim
        inverse = self.config.rope_theta ** (-torch.arange(0, width, 2).float() / width)
        angles = positions_L.float()[..., None] * inverse
        angles = torch.cat((angles, angles), -1)
        dtype = self.showo.lm_head.weight.dtype
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def hidden(self, ids_BL: Tensor, mask_B1LS: Tensor, task: str, image_start: int | None = None, features: dict | None = None) -> Tensor:
        backbone = self.showo.model
        x = backbone.embed_tokens(ids_BL)
        rotary = self.rotary(torch.arange(ids_BL.shape[1]))
        mask = mask_B1LS.to(x.dtype)
        image = None if image_start is None else (image_start, self.config.num_vq_tokens)
        for layer in backbone.layers:
            h = layer.input_layernorm(x)
            attended = layer.self_attn.mix(*layer.self_attn.project(h, rotary), mask)
            x = layer.after_attention(x, h, attended, task, image, features or {})
        return backbone.final_layernorm(x)

    def forward(self, *args, **kwargs) -> Tensor:
        return self.showo.lm_head(self.hidden(*args, **kwargs)).float()

    def noise_feature(self, level_B: Tensor) -> dict:
        return {"noise": self.resamplers.of_noise(level_B)} if hasattr(self, "resamplers") else {}
