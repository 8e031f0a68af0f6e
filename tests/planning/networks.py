"""Small networks that the plan's tests share: one for each thing that a plan must see."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp(
    depth: int, f: nn.Module, width: int = 64, inputs: int = 20, outputs: int = 10
) -> nn.Module:
    """`depth` layers with an activation, and a linear head."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(inputs if i == 0 else width, width), f]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def feed_forward(width: int) -> nn.Sequential:
    """A GELU perceptron four times as wide inside."""
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class RMSNorm(nn.Module):
    """A norm written by hand."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Block(nn.Module):
    """Pre-norm attention and SwiGLU, with the norm and the gate written by hand."""

    def __init__(self, width: int = 64, hidden: int = 172, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.n1, self.n2 = RMSNorm(width), RMSNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.w1, self.w3 = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.w2 = nn.Linear(hidden, width, bias=False)

    def heads_of(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.n1(x)
        q, k, v = (self.heads_of(f(h)) for f in (self.q, self.k, self.v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        h = self.n2(x)
        return x + self.w2(F.silu(self.w1(h)) * self.w3(h))


class ParallelBlock(nn.Module):
    """Attention and MLP beside each other, added one after the other."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return x + self.attention(h, h, h, need_weights=False)[0] + self.mlp(h)


class Residual(nn.Module):
    """A convolutional branch, with or without norms, and a projection where channels change."""

    def __init__(self, before: int, after: int, *, norm: bool, stride: int = 1) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(before, after, 3, stride, 1, bias=not norm)
        self.c2 = nn.Conv2d(after, after, 3, 1, 1, bias=not norm)
        self.n1 = nn.BatchNorm2d(after) if norm else nn.Identity()
        self.n2 = nn.BatchNorm2d(after) if norm else nn.Identity()
        same = before == after
        self.down = nn.Identity() if same else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.n2(self.c2(F.relu(self.n1(self.c1(x)))))
        return F.relu(y + self.down(x))


def resnet(blocks: int, *, norm: bool, width: int = 16) -> nn.Module:
    """A stem, residual blocks of which the last changes channels, and a head on the mean."""
    steps: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1)]
    steps += [Residual(width, width, norm=norm) for _ in range(blocks - 1)]
    steps += [Residual(width, 2 * width, norm=norm, stride=2)]
    return nn.Sequential(*steps, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10))


class Scaled(nn.Module):
    """A branch behind a LayerScale or ReZero scale."""

    def __init__(self, scale: Tensor, width: int = 16) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.scale = nn.Parameter(scale)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.mlp(self.norm(x))


class Modulated(nn.Module):
    """A branch whose norm and size an adaptive, zero-initialised projection sets."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.modulation = nn.Linear(width, 3 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(F.silu(c)).chunk(3, -1)
        return x + gate * self.mlp(self.norm(x) * (1 + scale) + shift)


class StateSpace(nn.Module):
    """A selective state space: a recurrence with decay rates, step sizes and a skip."""

    def __init__(self, width: int = 16, states: int = 4) -> None:
        super().__init__()
        self.states = states
        self.in_proj = nn.Linear(width, 2 * width)
        self.x_proj = nn.Linear(width, 2 + 2 * states, bias=False)
        self.dt_proj = nn.Linear(2, width)
        self.A_log = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(width, 1))
        self.D = nn.Parameter(torch.ones(width))
        self.out_proj = nn.Linear(width, width)
        with torch.no_grad():
            self.dt_proj.bias.uniform_(-4, -2)
        self.dt_proj.bias._no_reinit = True

    def forward(self, x: Tensor) -> Tensor:
        u, z = self.in_proj(x).chunk(2, -1)
        dt, b, c = self.x_proj(u).split([2, self.states, self.states], -1)
        dt = F.softplus(self.dt_proj(dt))
        decay = torch.exp(dt.unsqueeze(-1) * -torch.exp(self.A_log))
        h, ys = torch.zeros_like(decay[:, 0]), []
        for t in range(x.shape[1]):
            h = decay[:, t] * h + dt[:, t, :, None] * b[:, t, None] * u[:, t, :, None]
            ys.append((h * c[:, t, None]).sum(-1))
        return self.out_proj((torch.stack(ys, 1) + u * self.D) * F.silu(z))


class GatedRecurrence(nn.Module):
    """A GRU by hand: its sums are gated, none of them is residual."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.z, self.r, self.n = (nn.Linear(2 * width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros_like(x[:, 0])
        for t in range(x.shape[1]):
            both = torch.cat([x[:, t], h], -1)
            z, r = torch.sigmoid(self.z(both)), torch.sigmoid(self.r(both))
            n = torch.tanh(self.n(torch.cat([x[:, t], r * h], -1)))
            h = (1 - z) * n + z * h
        return h


class Experts(nn.Module):
    """A mixture of stacked experts with a softmax router."""

    def __init__(self, width: int = 16, hidden: int = 32, experts: int = 4) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts, bias=False)
        self.up = nn.Parameter(torch.randn(experts, width, hidden))
        self.down = nn.Parameter(torch.randn(experts, hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        share = torch.softmax(self.router(x), -1)
        h = F.gelu(torch.bmm(x.expand(len(self.up), -1, -1), self.up))
        return x + (torch.bmm(h, self.down).permute(1, 2, 0) * share.unsqueeze(1)).sum(-1)


class Tied(nn.Module):
    """An embedding that is also the head."""

    def __init__(self, words: int = 500, width: int = 64, residual: bool = False) -> None:
        super().__init__()
        self.embedding, self.residual = nn.Embedding(words, width), residual
        self.mix = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        rows = self.embedding(x)
        mixed = self.mix(rows)
        return self.head(self.norm(mixed + rows if self.residual else mixed))


class Siren(nn.Module):
    """sin(w0 (W x + b)) layers."""

    def __init__(self, depth: int = 4, width: int = 256, w0: float = 30.0) -> None:
        super().__init__()
        sizes = [2, *[width] * depth]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.head = nn.Linear(width, 1)
        self.w0 = w0

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            x = torch.sin(self.w0 * layer(x))
        return self.head(x)


class Policy(nn.Module):
    """Actor and critic of 64 x 64 tanh units."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = mlp(2, nn.Tanh(), 64, 8, 3)
        self.critic = mlp(2, nn.Tanh(), 64, 8, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.actor(x), self.critic(x)
