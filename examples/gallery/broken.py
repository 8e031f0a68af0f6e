"""Models broken as users reported it, each with the cause that `check` must name first."""

from __future__ import annotations

import torch
from blocks import (
    GPT,
    Sine,
    SwiGLU,
    each_weight_,
    mlp,
)
from entries import broken
from torch import nn

import fanin
from fanin.report.report import Report


@broken(
    "pytorch/pytorch#10243",
    "A sigmoid network of depth 20 with torch's default layers stays at ln 10.",
    "vanishing-signal",
    "8",
)
def default_init_under_sigmoid() -> Report:
    return fanin.check(mlp(256, 20, nn.Sigmoid), torch.randn(256, 784), "ce")


@broken(
    "pytorch/pytorch#1667",
    "A plain ReLU network of depth 50 with torch's default layers does not learn.",
    "vanishing-signal",
    "1",
)
def default_init_under_relu() -> Report:
    return fanin.check(mlp(128, 50, nn.ReLU), torch.randn(128, 784), "ce")


@broken(
    "",
    "N(0, 0.02²), the constant of transformers, in a plain deep network.",
    "vanishing-signal",
    "",
)
def std_of_transformers_in_a_plain_network() -> Report:
    model = each_weight_(mlp(256, 30, nn.Tanh), lambda w: nn.init.normal_(w, std=0.02))
    return fanin.check(model, torch.randn(128, 784), "ce")


@broken(
    "EleutherAI/gpt-neox#1087",
    "A std of 1/width where 1/sqrt(width) was meant.",
    "vanishing-signal",
    "",
)
def width_for_root_of_width() -> Report:
    model = each_weight_(mlp(256, 8, nn.ReLU), lambda w: nn.init.normal_(w, std=2 / w.shape[1]))
    return fanin.check(model, torch.randn(128, 784), "ce")


@broken(
    "Modalities/modalities#161",
    "A variance is passed as a std: 2 for sqrt(2).",
    "exploding-signal",
    "",
)
def variance_for_std() -> Report:
    model = each_weight_(
        mlp(256, 50, nn.ReLU), lambda w: nn.init.normal_(w, std=2 / w.shape[1] ** 0.5)
    )
    return fanin.check(model, torch.randn(128, 784), "ce")


@broken(
    "",
    "`nn.init.normal_(w)` without a std draws from N(0, 1).",
    "exploding-signal",
    "",
)
def forgotten_std() -> Report:
    model = each_weight_(mlp(256, 8, nn.ReLU), nn.init.normal_)
    return fanin.check(model, torch.randn(128, 784), "ce")


@broken(
    "",
    "The rule that linearises at 0 gives GELU twice the variance that keeps it.",
    "exploding-signal",
    "",
)
def linearised_gain_for_gelu() -> Report:
    model = each_weight_(
        mlp(256, 50, nn.GELU), lambda w: nn.init.normal_(w, std=2 / w.shape[1] ** 0.5)
    )
    return fanin.check(model, torch.randn(128, 784), "ce")


@broken(
    "",
    "SiLU with the gain that keeps its second moment: right, and unstable.",
    "unstable-fixed-point",
    "1",
)
def unstable_gain_for_silu() -> Report:
    model = each_weight_(
        mlp(128, 50, nn.SiLU), lambda w: nn.init.normal_(w, std=1.67653 / w.shape[1] ** 0.5)
    )
    return fanin.check(model, torch.randn(128, 784))


@broken(
    "",
    "Softplus with the gain that keeps its second moment: the mean takes it all.",
    "vanishing-signal",
    "",
)
def softplus_and_its_mean() -> Report:
    model = each_weight_(
        mlp(256, 30, nn.Softplus), lambda w: nn.init.normal_(w, std=1.0419 / w.shape[1] ** 0.5)
    )
    return fanin.check(model, torch.randn(128, 784), "ce")


@broken(
    "",
    "Biases of 30 in every layer: what inputs share outgrows what differs between them.",
    "collapsed-inputs",
    "",
)
def biases_outweigh_the_signal() -> Report:
    model = each_weight_(mlp(256, 24, nn.ReLU), nn.init.xavier_normal_)
    for module in model:
        if isinstance(module, nn.Linear):
            nn.init.constant_(module.bias, 30.0)
    return fanin.check(model, torch.randn(128, 784))


@broken(
    "",
    "tanh with weights of std 1: every unit works on its flat tails.",
    "saturated-units",
    "1",
)
def saturated_tanh() -> Report:
    model = each_weight_(mlp(256, 6, nn.Tanh), nn.init.normal_)
    return fanin.check(model, torch.randn(128, 784), "ce")


@broken(
    "nodchip/Stockfish#201",
    "A bias of -10 in front of a ReLU.",
    "dead-units",
    "5",
)
def dead_relu() -> Report:
    model = each_weight_(
        mlp(256, 6, nn.ReLU), lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu")
    )
    nn.init.constant_(model[4].bias, -10.0)
    return fanin.check(model, torch.randn(128, 784), "ce")


@broken(
    "pytorch/pytorch#3121",
    "`nn.Embedding` draws from N(0, 1); tied to the head, the loss is 84 where 8.5 is expected.",
    "start-loss",
    "head",
)
def tied_embedding() -> Report:
    return fanin.check(Tied(5000, 512), torch.randint(5000, (8, 16)), "ce")


class Tied(nn.Module):
    """Embedding, norm, tied head."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.embed(tokens)))


@broken(
    "huggingface/transformers#26441",
    "A head without its 1/sqrt(width): loss 110 where 11 is right.",
    "start-loss",
    "lm_head",
)
def large_head() -> Report:
    model = GPT(2, 128, 4, 2000, 32)
    model.lm_head.weight = nn.Parameter(torch.randn(2000, 128))
    return fanin.check(model, torch.randint(2000, (8, 16)), "ce")


@broken(
    "vsitzmann/siren#19",
    "A sine network that reads pixel values and coordinates in 0..255.",
    "input-scale",
    "0",
)
def siren_on_raw_coordinates() -> Report:
    model = nn.Sequential(
        Sine(2, 256, first=True), *(Sine(256, 256) for _ in range(3)), nn.Linear(256, 1)
    )
    return fanin.check(model, torch.rand(128, 2) * 255, "mse")


@broken(
    "lululxvi/deepxde#31",
    "A tanh network reads coordinates in metres: the loss at step 0 is huge.",
    "input-scale",
    "0",
)
def unscaled_coordinates() -> Report:
    model = each_weight_(mlp(64, 4, nn.Tanh, 2, 1), nn.init.xavier_normal_)
    return fanin.check(model, torch.rand(128, 2) * 5000, "mse")


@broken(
    "Guitaricet/relora#18",
    "Both factors of a LoRA adapter at zero.",
    "zero-pair",
    "blocks.0.a",
)
def lora_with_two_zeros() -> Report:
    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Adapter(32, 4) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                x = torch.relu(block(x))
            return x

    return fanin.check(Adapted(), torch.randn(32, 32))


class Adapter(nn.Module):
    """A frozen layer and a low-rank path beside it."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.base = nn.Linear(width, width).requires_grad_(False)
        self.a, self.b = nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)
        nn.init.zeros_(self.a.weight)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.b(self.a(x))


@broken(
    "",
    "Constant weights: all units of a layer stay the same.",
    "equal-units",
    "0.weight",
)
def constant_weights() -> Report:
    model = each_weight_(mlp(64, 4, nn.ReLU), lambda w: nn.init.constant_(w, 0.01))
    return fanin.check(model, torch.randn(64, 784), "ce")


@broken(
    "",
    "A feature is detached on its way to the head: most of the model gets no gradient.",
    "gradient-stops",
    "body.2",
)
def detached_features() -> Report:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64))
            self.head = nn.Linear(64, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x).detach())

    return fanin.check(Detached(), torch.randn(64, 32), "ce")


@broken(
    "pytorch/pytorch#39629",
    "Half of the modules are built and never called.",
    "never-called",
    "spare",
)
def forgotten_modules() -> Report:
    class Forgetful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.Linear(32, 5)
            self.spare = nn.Linear(32, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    return fanin.check(Forgetful(), torch.randn(64, 32), "ce")


@broken(
    "pytorch/torchtitan#3334",
    "The depth factor is put on w2 and on w3.",
    "depth-scaling",
    "blocks.0.w3",
)
def doubled_depth_scaling() -> Report:
    return fanin.check(SwiGLU(16).scale_("w2", "w3"), torch.randn(16, 4, 256))


@broken(
    "karpathy/llama2.c#579",
    "The depth factor is put on w3 instead of w2.",
    "depth-scaling",
    "blocks.0.w3",
)
def misplaced_depth_scaling() -> Report:
    return fanin.check(SwiGLU(16).scale_("w3"), torch.randn(16, 4, 256))


@broken(
    "Modalities/modalities#165",
    "The depth factor is missing: the residual stream grows twelvefold in 32 blocks.",
    "residual-growth",
    "blocks.0.w2",
)
def missing_depth_scaling() -> Report:
    return fanin.check(SwiGLU(32), torch.randn(16, 4, 256))


@broken(
    "huggingface/transformers#10830",
    "Half precision overflows in a layer of large weights.",
    "nonfinite",
    "2",
)
def overflow_in_half_precision() -> Report:
    model = each_weight_(mlp(64, 5, nn.ReLU, 64), lambda w: nn.init.normal_(w, std=30.0)).half()
    return fanin.check(model, torch.randn(32, 64).half())


@broken(
    "mosaicml/llm-foundry#1745",
    "An RMSNorm on meta that no `_init_weights` knows: memory of `torch.empty`, then NaN.",
    "nonfinite",
    "norm.weight",
)
def norm_from_empty_memory() -> Report:
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((32,), float("nan")))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True)) * self.weight

    model = nn.Sequential()
    model.add_module("fc", nn.Linear(32, 32))
    model.add_module("norm", Norm())
    return fanin.check(model, torch.randn(32, 32))
