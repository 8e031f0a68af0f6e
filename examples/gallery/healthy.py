"""Models with an initialization that their authors or long use accept: none of them may fail."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from blocks import (
    GPT,
    BasicBlock,
    Block,
    Bottleneck,
    GatedBlock,
    LSTMClassifier,
    Mixer,
    Sine,
    SwiGLU,
    UNet,
    ViT,
    each_weight_,
    mlp,
    resnet,
)
from torch import nn

Case = tuple[nn.Module, Any, str | None]


@dataclass(frozen=True)
class Healthy:
    """One entry: a name, whose initialization it is, and what builds model, inputs and loss."""

    name: str
    init: str
    build: Callable[[], Case]


HEALTHY: list[Healthy] = []


def healthy(init: str) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    """Register an entry."""

    def add(build: Callable[[], Case]) -> Callable[[], Case]:
        HEALTHY.append(Healthy(build.__name__.replace("_", " "), init, build))
        return build

    return add


def images(size: int, batch: int = 8) -> torch.Tensor:
    return torch.randn(batch, 3, size, size)


@healthy("torchvision: He, fan_out")
def resnet18() -> Case:
    return resnet(BasicBlock, (2, 2, 2, 2)), images(64), "ce"


@healthy("torchvision: He, fan_out")
def resnet50() -> Case:
    return resnet(Bottleneck, (3, 4, 6, 3), 24), images(64), "ce"


@healthy("torchvision: He, fan_out")
def vgg16_with_batch_norm() -> Case:
    parts: list[nn.Module] = []
    inputs = 3
    for outputs in (16, 16, 0, 32, 32, 0, 64, 64, 64, 0, 96, 96, 96, 0, 96, 96, 96, 0):
        if not outputs:
            parts.append(nn.MaxPool2d(2))
            continue
        parts += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
        inputs = outputs
    model = nn.Sequential(*parts, nn.Flatten(), nn.Linear(96, 128), nn.ReLU(), nn.Linear(128, 10))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    nn.init.normal_(model[-1].weight, std=0.01)
    return model, images(32), "ce"


@healthy("torch's default layers")
def densenet() -> Case:
    class Dense(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(width), nn.Conv2d(width, 12, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)

    stem = nn.Conv2d(3, 24, 3, padding=1)
    model = nn.Sequential(stem, *(Dense(24 + 12 * i) for i in range(12)))
    return (
        nn.Sequential(
            model,
            nn.BatchNorm2d(168),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(168, 10),
        ),
        images(16),
        "ce",
    )


@healthy("torch's default layers")
def unet() -> Case:
    return UNet(), images(32), "ce"


@healthy("torch's default layers")
def unet_without_norm() -> Case:
    return UNet(norm=False), images(32), "ce"


@healthy("Radford et al. 2015: N(0, 0.02²)")
def dcgan_generator() -> Case:
    sizes = (64, 64, 48, 32, 16)
    parts: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(sizes)):
        stride = (1, 0) if i == 0 else (2, 1)
        parts += [
            nn.ConvTranspose2d(a, b, 4, *stride, bias=False),
            nn.BatchNorm2d(b),
            nn.ReLU(True),
        ]
    model = nn.Sequential(*parts, nn.ConvTranspose2d(16, 3, 4, 2, 1, bias=False), nn.Tanh())
    for module in model.modules():
        if isinstance(module, nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
    return model, torch.randn(16, 64, 1, 1), None


@healthy("GPT-2: 0.02, residual projections 0.02/sqrt(2L)")
def gpt2_small() -> Case:
    return GPT(12, 768, 12, 2000, 32), torch.randint(2000, (8, 8)), "ce"


@healthy("timm: truncated N(0, 0.02²)")
def vit_small() -> Case:
    return ViT(12, 384, 6, 64), images(64), "ce"


@healthy("torch's default layers")
def mlp_mixer() -> Case:
    return Mixer(8, 128, 16, 16), images(64), "ce"


@healthy("torch's default layers")
def lstm_classifier() -> Case:
    return LSTMClassifier(), torch.randint(1000, (32, 20)), "ce"


@healthy("torch's default layers")
def gru_classifier() -> Case:
    return LSTMClassifier(nn.GRU), torch.randint(1000, (32, 20)), "ce"


@healthy("transformers: N(0, 0.02²)")
def bert() -> Case:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=500,
        hidden_size=64,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=32,
    )
    return BertForMaskedLM(config), {"input_ids": torch.randint(500, (8, 16))}, "ce"


@healthy("transformers: its own factors")
def t5() -> Case:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=500,
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=4,
        num_heads=4,
        decoder_start_token_id=0,
    )
    tokens = torch.randint(500, (8, 16))
    inputs = {"input_ids": tokens, "decoder_input_ids": tokens}
    return T5ForConditionalGeneration(config), inputs, "ce"


@healthy("transformers: N(0, 0.02²)")
def llama() -> Case:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=500,
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=8,
        num_attention_heads=4,
        max_position_embeddings=32,
    )
    tokens = torch.randint(500, (8, 16))
    return LlamaForCausalLM(config), {"input_ids": tokens, "labels": tokens}, None


@healthy("Xavier in every part")
def post_norm_transformer() -> Case:
    layers = [nn.TransformerEncoderLayer(64, 4, 256, batch_first=True) for _ in range(6)]
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    return model, torch.randn(16, 12, 64), "ce"


@healthy("Liu et al. 2022: truncated 0.02, layer scale 1e-6")
def convnext() -> Case:
    class Part(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
            self.norm = nn.LayerNorm(width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
            self.scale = nn.Parameter(1e-6 * torch.ones(width))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
            y = self.scale * self.down(F.gelu(self.up(y)))
            return x + y.permute(0, 3, 1, 2)

    model = nn.Sequential(
        nn.Conv2d(3, 48, 4, 4),
        nn.GroupNorm(1, 48),
        *(Part(48) for _ in range(6)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LayerNorm(48),
        nn.Linear(48, 10),
    )
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    return model, images(32), "ce"


@healthy("Sitzmann et al. 2020, inputs in [-1, 1]")
def siren() -> Case:
    model = nn.Sequential(
        Sine(2, 256, first=True), *(Sine(256, 256) for _ in range(3)), nn.Linear(256, 1)
    )
    return model, torch.rand(64, 2) * 2 - 1, "mse"


@healthy("He")
def relu_mlp_depth_20() -> Case:
    model = each_weight_(
        mlp(256, 20, nn.ReLU), lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu")
    )
    nn.init.xavier_normal_(model[-1].weight)
    return model, torch.randn(64, 784), "ce"


@healthy("Klambauer et al. 2017: LeCun")
def selu_mlp_depth_30() -> Case:
    model = each_weight_(
        mlp(256, 30, nn.SELU), lambda w: nn.init.kaiming_normal_(w, nonlinearity="linear")
    )
    return model, torch.randn(64, 784), "ce"


@healthy("orthogonal, edge of chaos at small scale")
def tanh_mlp_depth_30() -> Case:
    return (
        each_weight_(mlp(256, 30, nn.Tanh), lambda w: nn.init.orthogonal_(w, 1.05)),
        torch.randn(64, 784),
        "ce",
    )


@healthy("torch's default layers")
def small_mlp() -> Case:
    return mlp(128, 3, nn.ReLU), torch.randn(32, 784), "ce"


@healthy("PPO: orthogonal sqrt(2), policy head 0.01")
def ppo_policy() -> Case:
    model = each_weight_(mlp(64, 3, nn.Tanh, 12, 4), lambda w: nn.init.orthogonal_(w, math.sqrt(2)))
    nn.init.orthogonal_(model[-1].weight, 0.01)
    return model, torch.randn(64, 12), "ce"


@healthy("Peebles & Xie 2022: adaLN-zero, zero head")
def diffusion_transformer() -> Case:
    class Modulated(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.block = Block(width, 4, False)
            self.modulation = nn.Linear(width, 2 * width)
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

        def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            first, second = self.modulation(F.silu(time)).chunk(2, -1)
            x = x + first[:, None] * self.block.attn(self.block.ln_1(x))
            return x + second[:, None] * self.block.mlp(self.block.ln_2(x))

    class DiT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.time = nn.Linear(16, 64), nn.Linear(8, 64)
            self.blocks = nn.ModuleList(Modulated(64) for _ in range(6))
            self.norm, self.head = nn.LayerNorm(64), nn.Linear(64, 16)
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

        def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            x, time = self.embed(x), self.time(time)
            for block in self.blocks:
                x = block(x, time)
            return self.head(self.norm(x))

    return DiT(), (torch.randn(16, 12, 16), torch.randn(16, 8)), "mse"


@healthy("Zhang et al. 2019: Fixup, last layer of a branch at zero")
def fixup_network() -> Case:
    class Branch(nn.Module):
        def __init__(self, width: int, depth: int) -> None:
            super().__init__()
            self.one = nn.Conv2d(width, width, 3, padding=1, bias=False)
            self.two = nn.Conv2d(width, width, 3, padding=1, bias=False)
            nn.init.normal_(self.one.weight, std=math.sqrt(2 / (9 * width)) / math.sqrt(depth))
            nn.init.zeros_(self.two.weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.relu(x + self.two(F.relu(self.one(x))))

    head = nn.Linear(32, 10)
    nn.init.zeros_(head.weight)
    stem = nn.Conv2d(3, 32, 3, padding=1)
    nn.init.kaiming_normal_(stem.weight)
    return (
        nn.Sequential(
            stem,
            nn.ReLU(),
            *(Branch(32, 9) for _ in range(9)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            head,
        ),
        images(16),
        "ce",
    )


@healthy("Bachlechner et al. 2020: ReZero")
def rezero_network() -> Case:
    class Part(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.fc, self.alpha = nn.Linear(width, width), nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.alpha * F.relu(self.fc(x))

    return (
        nn.Sequential(nn.Linear(32, 128), *(Part(128) for _ in range(32)), nn.Linear(128, 10)),
        torch.randn(64, 32),
        "ce",
    )


@healthy("LoRA: A drawn, B zero")
def lora() -> Case:
    class Adapter(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.base = nn.Linear(width, width).requires_grad_(False)
            self.a, self.b = nn.Linear(width, 4, bias=False), nn.Linear(4, width, bias=False)
            nn.init.zeros_(self.b.weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.relu(self.base(x) + self.b(self.a(x)))

    return nn.Sequential(Adapter(64), Adapter(64)), torch.randn(32, 64), None


@healthy("32 SwiGLU blocks, w2 scaled for depth")
def swiglu_stack() -> Case:
    return SwiGLU(24).scale_("w2"), torch.randn(16, 4, 256), None


@healthy("torch's default layers")
def autoencoder() -> Case:
    sizes = (256, 128, 64, 16, 64, 128, 256)
    parts: list[nn.Module] = []
    for a, b in pairwise(sizes):
        parts += [nn.Linear(a, b), nn.GELU()]
    return nn.Sequential(*parts[:-1]), torch.randn(64, 256), "mse"


@healthy("torch's default layers")
def squeeze_and_excitation() -> Case:
    class Part(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
            self.down, self.up = nn.Linear(width, width // 4), nn.Linear(width // 4, width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norm(self.conv(x))
            gate = torch.sigmoid(self.up(F.relu(self.down(y.mean((2, 3))))))
            return F.relu(x + y * gate[:, :, None, None])

    return (
        nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1),
            *(Part(32) for _ in range(6)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, 10),
        ),
        images(16),
        "ce",
    )


@healthy("N(0, 0.02²), gate of the router by torch")
def mixture_of_experts() -> Case:
    class Experts(nn.Module):
        def __init__(self, width: int, count: int) -> None:
            super().__init__()
            self.router = nn.Linear(width, count)
            self.experts = nn.ModuleList(GatedBlock(width, 2 * width) for _ in range(count))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            share = self.router(x).softmax(-1)
            outputs = torch.stack([expert(x) for expert in self.experts], -1)
            return (outputs * share[..., None, :]).sum(-1)

    return (
        nn.Sequential(
            Experts(64, 4), nn.LayerNorm(64), Experts(64, 4), nn.LayerNorm(64), nn.Linear(64, 10)
        ),
        torch.randn(32, 64),
        "ce",
    )


@healthy("torch's default layers")
def fine_tuned_head() -> Case:
    body = resnet(BasicBlock, (1, 1, 1, 1), 16).requires_grad_(False)
    return nn.Sequential(body, nn.Linear(1000, 7)), images(32), "ce"
