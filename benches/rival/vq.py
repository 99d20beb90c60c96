"""The image tokenizer MAGVIT-v2 in PyTorch, parameters named as in `vq.safetensors`.

Written from the specification. Shapes: B batch, C channels, H and W pixels, h and w tokens, N = h * w.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Config:
    ch: int = 128
    enc_mult: tuple = (1, 2, 2, 4, 4)
    enc_blocks: tuple = (4, 3, 4, 3, 4)
    dec_mult: tuple = (1, 1, 2, 2, 4)
    dec_blocks: tuple = (4, 4, 3, 4, 3)
    z_channels: int = 13
    in_channels: int = 3

    @staticmethod
    def read(path: Path) -> "Config":
        values = json.loads(Path(path).read_text())
        values = values.get("vq", values)
        return Config(**{name: values[name] for name in Config.__dataclass_fields__ if name in values})


def conv(num_in: int, num_out: int, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(num_in, num_out, kernel, padding=kernel // 2)


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, channels), channels, eps=1e-6)


class ResBlock(nn.Module):
    def __init__(self, num_in: int, num_out: int):
        super().__init__()
        self.norm1, self.conv1 = norm(num_in), conv(num_in, num_out)
        self.norm2, self.conv2 = norm(num_out), conv(num_out, num_out)
        if num_in != num_out:
            self.nin_shortcut = conv(num_in, num_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class AttnBlock(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (conv(channels, channels, 1) for _ in range(4))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h = self.norm(x_BCHW)
        q, k, v = (layer(h).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).unflatten(2, x_BCHW.shape[2:])
        return x_BCHW + self.proj_out(y.contiguous(memory_format=torch.channels_last) if h.is_contiguous(memory_format=torch.channels_last) else y)


class Mid(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = ResBlock(channels, channels), AttnBlock(channels), ResBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    def __init__(self, num_in: int, num_out: int, num_blocks: int):
        super().__init__()
        self.block = nn.ModuleList(ResBlock(num_in if index == 0 else num_out, num_out) for index in range(num_blocks))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


class Encoder(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.conv_in = conv(config.in_channels, config.ch)
        self.down, channels = nn.ModuleList(), config.ch
        for index, (mult, num_blocks) in enumerate(zip(config.enc_mult, config.enc_blocks)):
            level = Level(channels, config.ch * mult, num_blocks)
            channels = config.ch * mult
            if index + 1 < len(config.enc_mult):
                level.downsample = Downsample(channels)
            self.down.append(level)
        self.mid, self.norm_out = Mid(channels), norm(channels)
        self.conv_out = conv(channels, config.z_channels)
        self.quant_conv = conv(config.z_channels, config.z_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.quant_conv(self.conv_out(F.silu(self.norm_out(self.mid(x)))))


class Decoder(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        widths = [config.ch * mult for mult in config.dec_mult]
        self.post_quant_conv = conv(config.z_channels, config.z_channels, 1)
        self.conv_in, self.mid = conv(config.z_channels, widths[-1]), Mid(widths[-1])
        self.up = nn.ModuleList()
        for index, num_blocks in enumerate(config.dec_blocks):
            level = Level(widths[min(index + 1, len(widths) - 1)], widths[index], num_blocks)
            if index > 0:
                level.upsample = Upsample(widths[index])
            self.up.append(level)
        self.norm_out, self.conv_out = norm(widths[0]), conv(widths[0], config.in_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(self.post_quant_conv(x)))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Vq(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config, self.encoder, self.decoder = config, Encoder(config), Decoder(config)

    def like_weights(self, x_BCHW: Tensor) -> Tensor:
        last = self.encoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
        return x_BCHW.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)

    def powers(self) -> Tensor:
        return 2 ** torch.arange(self.config.z_channels - 1, -1, -1)

    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        """Codes `[B, N]`: the signs of the encoder's values as bits, the first channel the highest."""
        z_BChw = self.encoder(self.like_weights(pixels_BCHW))
        return ((z_BChw > 0) * self.powers()[:, None, None]).sum(1).flatten(1)

    def decode(self, indices_BN: Tensor, height: int, width: int) -> Tensor:
        bits = (indices_BN[:, None] & self.powers()[None, :, None]) != 0
        return self.decoder(self.like_weights(torch.where(bits, 1.0, -1.0).unflatten(2, (height, width))))


def procedural(name: str, shape: tuple[int, ...]) -> Tensor:
    """Weights that follow from a tensor's name (splitmix64 behind an FNV-1a hash), as in the golden cases."""
    hashed = 0xCBF29CE484222325
    for byte in name.encode():
        hashed = (hashed ^ byte) * 0x100000001B3 % 2**64
    num = int(np.prod(shape))
    with np.errstate(over="ignore"):
        z = np.uint64(hashed) + np.arange(1, num + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    if name.endswith(".bias"):
        scale, offset = 0.05, 0.0
    elif len(shape) == 1:
        scale, offset = 0.1, 1.0
    else:
        scale, offset = (3.0 / np.prod(shape[1:])) ** 0.5, 0.0
    value = offset + scale * ((z >> np.uint64(40)).astype(np.float64) / 2**23 - 1.0)
    return torch.from_numpy(value.astype(np.float32).reshape(shape))


def load_procedural(module: nn.Module) -> None:
    module.load_state_dict({name: procedural(name, tuple(value.shape)) for name, value in module.state_dict().items()})
