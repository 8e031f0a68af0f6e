"""Small architectures that the gallery builds its models from, each as its authors draw it."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn


def mlp(
    width: int, depth: int, act: type[nn.Module], inputs: int = 784, outputs: int = 10
) -> nn.Sequential:
    """`depth` linear layers with an activation between them."""
    parts: list[nn.Module] = [nn.Linear(inputs, width), act()]
    for _ in range(depth - 2):
        parts += [nn.Linear(width, width), act()]
    return nn.Sequential(*parts, nn.Linear(width, outputs))


@torch.no_grad()
def each_weight_(model: nn.Module, write: Callable[[torch.Tensor], object]) -> nn.Module:
    """Write every matrix with one initializer, and zero the biases of the same layers."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            write(module.weight)
            if module.bias is not None:
                module.bias.zero_()
    return model


class BasicBlock(nn.Module):
    """He et al. 2016: two 3x3 convolutions with batch norm, and a skip."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.down = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.down = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.down(x))


class Bottleneck(nn.Module):
    """He et al. 2016: 1x1, 3x3, 1x1."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        inner = outputs // 4
        self.body = nn.Sequential(
            nn.Conv2d(inputs, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, inner, 3, stride, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.down = (
            nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
            if stride != 1 or inputs != outputs
            else nn.Identity()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.body(x) + self.down(x))


def resnet(block: type[nn.Module], counts: tuple[int, ...], width: int = 64) -> nn.Sequential:
    """A residual network with torchvision's initialization."""
    parts: list[nn.Module] = [
        nn.Conv2d(3, width, 7, 2, 3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]
    inputs = width
    for stage, count in enumerate(counts):
        outputs = width * 2**stage * (4 if block is Bottleneck else 1)
        for i in range(count):
            parts.append(block(inputs, outputs, 2 if stage and not i else 1))
            inputs = outputs
    model = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


class Attention(nn.Module):
    """Multi-head self-attention with a fused projection."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)
        self.heads, self.causal = heads, causal

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, width = x.shape
        parts = self.c_attn(x).split(width, dim=2)
        q, k, v = (p.view(n, t, self.heads, -1).transpose(1, 2) for p in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.c_proj(y.transpose(1, 2).reshape(n, t, width))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads, causal)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("act", nn.GELU())
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """GPT-2 with tied embeddings and its own initialization."""

    def __init__(self, layers: int, width: int, heads: int, vocabulary: int, length: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.h = nn.ModuleList(Block(width, heads, True) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.lm_head.weight = self.wte.weight
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                std = 0.02 / math.sqrt(2 * layers) if name.endswith("c_proj.weight") else 0.02
                nn.init.normal_(parameter, std=std)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


class ViT(nn.Module):
    """A vision transformer with timm's initialization."""

    def __init__(self, layers: int, width: int, heads: int, size: int, patch: int = 16) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, patch, patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.pos = nn.Parameter(torch.zeros(1, (size // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(Block(width, heads, False) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1000)
        nn.init.trunc_normal_(self.pos, std=0.02)
        nn.init.normal_(self.cls, std=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.pos
        return self.head(self.norm(self.blocks(x))[:, 0])


class UNet(nn.Module):
    """Ronneberger et al. 2015 with batch norm and transposed convolutions."""

    def __init__(self, width: int = 16, norm: bool = True) -> None:
        super().__init__()

        def double(i: int, o: int) -> nn.Sequential:
            parts: list[nn.Module] = []
            for a, b in ((i, o), (o, o)):
                parts += [nn.Conv2d(a, b, 3, padding=1)]
                parts += [nn.BatchNorm2d(b)] if norm else []
                parts += [nn.ReLU(inplace=True)]
            return nn.Sequential(*parts)

        sizes = [width, 2 * width, 4 * width, 8 * width]
        self.down = nn.ModuleList(double(i, o) for i, o in pairwise([3, *sizes]))
        self.up = nn.ModuleList(nn.ConvTranspose2d(o, i, 2, 2) for i, o in pairwise(sizes))
        self.join = nn.ModuleList(double(2 * i, i) for i in sizes[:-1])
        self.out = nn.Conv2d(width, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = []
        for i, stage in enumerate(self.down):
            x = stage(F.max_pool2d(x, 2) if i else x)
            kept.append(x)
        for up, join, skip in zip(
            reversed(self.up), reversed(self.join), reversed(kept[:-1]), strict=True
        ):
            x = join(torch.cat([skip, up(x)], 1))
        return self.out(x)


class Mixer(nn.Module):
    """Tolstikhin et al. 2021, with torch's default layers."""

    def __init__(self, layers: int, width: int, tokens: int, patch: int) -> None:
        super().__init__()

        def part(n: int, hidden: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(n, hidden), nn.GELU(), nn.Linear(hidden, n))

        self.patch = nn.Conv2d(3, width, patch, patch)
        self.tokens = nn.ModuleList(part(tokens, width // 2) for _ in range(layers))
        self.channels = nn.ModuleList(part(width, 4 * width) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * layers + 1))
        self.head = nn.Linear(width, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        for i, (tokens, channels) in enumerate(zip(self.tokens, self.channels, strict=True)):
            x = x + tokens(self.norms[2 * i](x).transpose(1, 2)).transpose(1, 2)
            x = x + channels(self.norms[2 * i + 1](x))
        return self.head(self.norms[-1](x).mean(1))


class LSTMClassifier(nn.Module):
    """Embedding, LSTM, last state, linear: with torch's default layers."""

    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM, layers: int = 1) -> None:
        super().__init__()
        self.embed = nn.Embedding(1000, 64)
        self.rnn = kind(64, 128, layers, batch_first=True)
        self.head = nn.Linear(128, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(self.embed(tokens))[0][:, -1])


class SwiGLU(nn.Module):
    """A pre-norm residual stack of gated layers, as in Llama's feed-forward."""

    def __init__(
        self, layers: int = 32, width: int = 256, hidden: int = 684, std: float = 0.08
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(GatedBlock(width, hidden) for _ in range(layers))
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=std)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x

    @torch.no_grad()
    def scale_(self, *names: str) -> SwiGLU:
        """Multiply the named projections by 1/sqrt(2 layers)."""
        for block in self.blocks:
            for name in names:
                getattr(block, name).weight.mul_((2 * len(self.blocks)) ** -0.5)
        return self


class GatedBlock(nn.Module):
    """x + w2(silu(w1 n) * w3 n), n = x / rms(x)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, hidden, bias=False)
        self.w3 = nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
        return x + self.w2(F.silu(self.w1(n)) * self.w3(n))


class Sine(nn.Module):
    """A sine layer of SIREN, with its initialization."""

    def __init__(self, inputs: int, outputs: int, first: bool = False, w0: float = 30.0) -> None:
        super().__init__()
        self.linear, self.w0 = nn.Linear(inputs, outputs), w0
        bound = 1 / inputs if first else math.sqrt(6 / inputs) / w0
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(self.w0 * self.linear(x))
