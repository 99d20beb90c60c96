"""Losses of UniF2ace in PyTorch: what `train.py` times. The parameters are those of `model.py`; the passes are written for training.

B rows, L positions, D width, R tokens or labelled places, E experts, K chosen experts, F inner width of an expert.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from model import HIDDEN, Config, SequenceGroup, SequenceMoe, TokenExperts, Unif2ace, rotate
from torch import Tensor
from torch.utils.checkpoint import checkpoint

TIME_MARGIN = 1e-5


@dataclass
class Rows:
    """A batch of one task, ready before the clock starts."""

    ids_BL: Tensor
    positions_BL: Tensor
    mask_B1LL: Tensor
    image_start: int
    places_R: Tensor
    targets_R: Tensor
    # Weight of each place's cross-entropy in the loss.
    weights_R: Tensor
    features: dict


def d3diff_weights(image_of_row_R: Tensor, times_B: Tensor, num_tokens: int, loss: dict) -> Tensor:
    """`1 / masked places of the image + alpha m'/m`, mean over the images, for the cosine schedule `m = sin(pi t / 2)`."""
    assert loss["schedule"] == "cosine", "the rival knows the cosine schedule only"
    angle = times_B.double().clamp(TIME_MARGIN, 1 - TIME_MARGIN) * (math.pi / 2)
    mask_B = 1 / torch.bincount(image_of_row_R, minlength=len(times_B)).double()
    score_B = math.pi / 2 * angle.cos() / angle.sin() / (num_tokens if loss["unit"] == "token" else 1)
    parts = {"only-mask": mask_B, "only-score": score_B, "d3diff": mask_B + loss["alpha"] * score_B}
    return (parts[loss["objective"]] / len(times_B))[image_of_row_R].float()


def read_rows(tensors: dict, config: Config, loss: dict, dtype: torch.dtype) -> dict[str, Rows]:
    """The tasks of one batch of the case."""
    tasks = {}
    for task in ("t2i", "mmu"):
        part = {name.removeprefix(f"{task}."): tensor for name, tensor in tensors.items() if name.startswith(f"{task}.")}
        if not part:
            continue
        ids, targets = part["ids"], part["targets"]
        if task == "t2i":
            positions = torch.arange(ids.shape[1])[None] + part["first_position"]
            start, features = int(part["image_start"]), {"noise_level": part["noise_level"]}
            weights = d3diff_weights(part["image_of_row"], part["times"], config.num_vq_tokens, loss)
        else:
            positions, start = part["positions"], 2
            features = {name: part[name] for name in ("clip", "face") if name in part}
            weights = torch.full(targets.shape, 1 / len(targets))
        mask = torch.where(part["mask"], 0.0, HIDDEN)[:, None].to(dtype)
        tasks[task] = Rows(ids, positions, mask, start, part["places"], targets, weights, features)
    return tasks


def sorted_experts(experts: TokenExperts, x_RD: Tensor, gates_RK: Tensor, index_RK: Tensor) -> Tensor:
    """Each expert sees its own rows, which lie together."""
    num = experts.fc1_weight.shape[0]
    flat = index_RK.flatten()
    order = flat.argsort(stable=True)
    rows, counts = order // experts.chosen, torch.bincount(flat, minlength=num).tolist()
    # Parts of one tensor, whose gradients are gathered at once; `weight[expert]` would make a whole zero tensor for each expert.
    weights = zip(experts.fc1_weight.unbind(), experts.fc1_bias.unbind(), experts.fc2_weight.unbind(), experts.fc2_bias.unbind())
    outs = []
    for part, (w1, b1, w2, b2) in zip(x_RD.index_select(0, rows).split(counts), weights):
        outs.append(F.linear(F.gelu(F.linear(part, w1, b1), approximate="tanh"), w2, b2))
    out = torch.cat(outs) * gates_RK.flatten()[order, None].to(outs[0].dtype)
    return torch.zeros_like(x_RD, dtype=out.dtype).index_add(0, rows, out)


def dense_experts(experts: TokenExperts, x_RD: Tensor, gates_RK: Tensor, index_RK: Tensor) -> Tensor:
    """Every expert on all rows in two large products, with gate 0 where it was not chosen: more sums, no rows moved."""
    num, inner, width = experts.fc1_weight.shape
    gates_RE = gates_RK.new_zeros(len(x_RD), num).scatter(1, index_RK, gates_RK)
    h = F.gelu(F.linear(x_RD, experts.fc1_weight.flatten(0, 1), experts.fc1_bias.flatten()), approximate="tanh")
    h = h.view(-1, num, inner) * gates_RE[..., None].to(h.dtype)
    return F.linear(h.flatten(1), experts.fc2_weight.transpose(0, 1).reshape(width, -1)) + F.linear(gates_RE, experts.fc2_bias.t())


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Written out: for short rows in bfloat16 about twice as fast on the CPU as SDPA, forward and backward together."""
    scores = torch.add(mask, q @ k.transpose(-1, -2), alpha=q.shape[-1] ** -0.5)
    return scores.softmax(-1) @ v


EXPERTS = {"sorted": sorted_experts, "dense": dense_experts}
ATTENTION = {"sdpa": sdpa, "products": products}


def token_moe(experts: TokenExperts, x_RD: Tensor, real_R1: Tensor, way) -> tuple[Tensor, Tensor]:
    """Output and balance loss. The router runs in float32, and pads don't count in the balance loss."""
    with torch.autocast("cpu", enabled=False):
        probs_RE = F.linear(x_RD.float(), experts.router.weight).softmax(-1)
        gates_RK, index_RK = probs_RE.topk(experts.chosen, -1)
        with torch.no_grad():
            used_RE = torch.zeros_like(probs_RE).scatter_(1, index_RK, real_R1.expand_as(index_RK))
            f_E = used_RE.sum(0) * (probs_RE.shape[1] / experts.chosen)
        balance = ((probs_RE * real_R1).sum(0) * f_E).sum()
    # Under autocast the rows are rounded before they are moved.
    if torch.is_autocast_enabled("cpu"):
        x_RD = x_RD.to(torch.get_autocast_dtype("cpu"))
    return way(experts, x_RD, gates_RK, index_RK), balance


def sequence_group(group: SequenceGroup, x_BND: Tensor, third: Tensor | None, fourth: Tensor | None, zero: bool) -> Tensor:
    """As `SequenceGroup.forward`, with the weights of the image gathered first: one product of the image and one a feature."""
    with torch.autocast("cpu", enabled=False):
        probs = F.linear(x_BND.float().mean(1), group.router.weight, group.router.bias).softmax(-1)
        kept, index = probs.topk(group.chosen, -1)
        gates_B4 = torch.zeros_like(probs).scatter(-1, index, kept / kept.sum(-1, keepdim=True))
        mix_22 = group.mix.softmax(-1)
    keep_B, mixed = gates_B4[:, 0] + gates_B4[:, 1], []
    for row, feature in enumerate([third, fourth]):
        gate_B = gates_B4[:, 2 + row]
        if row == 0 and zero:
            continue
        keep_B = keep_B + (gate_B if feature is None else gate_B * mix_22[row, 0])
        if feature is not None:
            mixed.append(feature * (gate_B * mix_22[row, 1])[:, None, None])
    return sum(mixed, x_BND * keep_B[:, None, None])


def sequence_moe(module: SequenceMoe, x_BLD: Tensor, start: int, num: int, task: str, features: dict) -> Tensor:
    before, image, after = x_BLD.split([start, num, x_BLD.shape[1] - start - num], 1)
    normed = module.norm(image)
    if task == "t2i":
        mixed = sequence_group(module.t2i, normed, None, features.get("noise"), zero=True)
    else:
        mixed = sequence_group(module.mmu, normed, features.get("clip"), features.get("face"), zero=False)
    return torch.cat((before, image + module.scale * mixed, after), 1)


class Losses:
    """The losses of a step; `recompute` keeps the input of each block only, `ways` names how experts and attention are computed."""

    def __init__(self, model: Unif2ace, recipe: dict, ways: dict[str, str], recompute: bool):
        unified = recipe["unified"]
        self.model, self.config, self.recompute = model, model.config, recompute
        self.experts, self.attention = EXPERTS[ways["experts"]], ATTENTION[ways["attention"]]
        self.coeffs = {"t2i": unified["t2i_coeff"], "mmu": unified["mmu_coeff"]}
        self.balance_coeffs = dict(zip(("t2i", "mmu"), unified["balance_coeffs"]))

    def block(self, layer, x: Tensor, rotary, mask: Tensor, real_R1: Tensor, task: str, start: int, features: dict):
        h = layer.input_layernorm(x)
        attended = self.attend(layer.self_attn, h, rotary, mask)
        y, balance = attended + layer.mlp(h) + x, x.new_zeros(())
        if hasattr(layer, "moe"):
            routed, balance = token_moe(getattr(layer.moe, task), h.flatten(0, 1), real_R1, self.experts)
            y = y + routed.view_as(y)
        if hasattr(layer, "sequence"):
            y = sequence_moe(layer.sequence, y, start, self.config.num_vq_tokens, task, features)
        return y, balance

    def attend(self, attention, h: Tensor, rotary, mask: Tensor) -> Tensor:
        """Queries and keys are rotated in the type of the products."""
        v = attention.split(attention.v_proj(h))
        cos, sin = (table.to(v.dtype) for table in rotary)
        q = rotate(attention.q_layernorm(attention.split(attention.q_proj(h))).to(v.dtype), cos, sin)
        k = rotate(attention.k_layernorm(attention.split(attention.k_proj(h))).to(v.dtype), cos, sin)
        with torch.autocast("cpu", enabled=False):
            mixed = self.attention(q, k, v, mask)
        return attention.dense(mixed.transpose(1, 2).flatten(-2))

    def resample(self, features: dict) -> dict:
        if not hasattr(self.model, "resamplers"):
            return {}
        resamplers = self.model.resamplers
        makers = {"noise_level": ("noise", resamplers.of_noise), "clip": ("clip", resamplers.clip), "face": ("face", resamplers.of_face)}
        return {makers[name][0]: makers[name][1](feature) for name, feature in features.items()}

    def hidden(self, rows: Rows, task: str, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.resample(rows.features)
        rotary = [table[:, None] for table in self.model.rotary(rows.positions_BL)]
        real_R1 = (rows.ids_BL != self.config.special["pad"]).flatten()[:, None].float()
        real_R1 = real_R1 / real_R1.sum()
        balances = []
        for layer in self.model.showo.model.layers:
            arguments = (layer, x, rotary, rows.mask_B1LL, real_R1, task, rows.image_start, features)
            # Nothing random happens in a block.
            x, balance = (
                checkpoint(self.block, *arguments, use_reentrant=False, preserve_rng_state=False) if self.recompute else self.block(*arguments)
            )
            balances.append(balance)
        return self.model.showo.model.final_layernorm(x), torch.stack(balances).sum()

    def __call__(self, tasks: dict[str, Rows]) -> tuple[Tensor, dict]:
        """Loss of a step and its parts."""
        config, showo = self.config, self.model.showo
        # One look-up and one split of the head for both tasks: each of their gradients is a tensor of the whole vocabulary.
        ids = [rows.ids_BL.flatten() for rows in tasks.values()]
        embedded = showo.model.embed_tokens(torch.cat(ids)).split([len(part) for part in ids])
        sizes = [config.llm_vocab_size, config.image_offset - config.llm_vocab_size, config.codebook_size]
        sizes.append(config.vocab_size - sum(sizes))
        heads = list(zip(showo.lm_head.weight.split(sizes), showo.lm_head.bias.split(sizes)))
        total, parts = 0.0, {}
        for (task, rows), x in zip(tasks.items(), embedded):
            x, balance = self.hidden(rows, task, x.view(*rows.ids_BL.shape, -1))
            logits = F.linear(x.flatten(0, 1).index_select(0, rows.places_R), *heads[2 if task == "t2i" else 0])
            with torch.autocast("cpu", enabled=False):
                losses_R = F.cross_entropy(logits.float(), rows.targets_R, reduction="none")
                loss = (losses_R * rows.weights_R).sum()
                total = total + self.coeffs[task] * loss + self.balance_coeffs[task] * balance
            parts |= {f"{task} loss": loss, f"balance_{task}": balance}
        return total, parts
