"""Models broken as users reported it, each with the cause that the first finding must name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from blocks import (
    GPT,
    Sine,
    SwiGLU,
    each_weight_,
    mlp,
)
from torch import nn

import fanin
from fanin.report.report import Report


@dataclass(frozen=True)
class Broken:
    """One entry: what was reported where, and which rule must come first.

    Args:
        name: of the entry.
        thread: where a user met it; empty for the classical cases.
        story: what was done, and what happened, in a sentence.
        rule: name of the rule that finds the cause.
        where: how the path of the first bad layer or tensor begins.
        run: builds the model and returns the report.
    """

    name: str
    thread: str
    story: str
    rule: str
    where: str
    run: Callable[[], Report]


BROKEN: list[Broken] = []


def broken(
    thread: str, story: str, rule: str, where: str = ""
) -> Callable[[Callable[[], Report]], Callable[[], Report]]:
    """Register an entry."""

    def add(run: Callable[[], Report]) -> Callable[[], Report]:
        BROKEN.append(Broken(run.__name__.replace("_", " "), thread, story, rule, where, run))
        return run

    return add


@broken(
    "pytorch-lightning#21589",
    "A sigmoid network of depth 20 with torch's default layers stays at ln 10.",
    "vanishing-signal",
    "8",
)
def default_init_under_sigmoid() -> Report:
    return fanin.check(mlp(256, 20, nn.Sigmoid), torch.randn(256, 784), "ce")


@broken(
    "nnue-pytorch#55",
    "A plain ReLU network of depth 50 with torch's default layers does not learn.",
    "vanishing-signal",
    "1",
)
def default_init_under_relu() -> Report:
    return fanin.check(mlp(128, 50, nn.ReLU), torch.randn(128, 784), "ce")


@broken(
    "transformers#13327",
    "N(0, 0.02²), the constant of transformers, in a plain deep network.",
    "vanishing-signal",
    "",
)
def std_of_transformers_in_a_plain_network() -> Report:
    model = each_weight_(mlp(256, 30, nn.Tanh), lambda w: nn.init.normal_(w, std=0.02))
    return fanin.check(model, torch.randn(128, 784), "ce")


@broken(
    "gpt-neox#1087",
    "A std of 1/width where 1/sqrt(width) was meant.",
    "vanishing-signal",
    "",
)
def width_for_root_of_width() -> Report:
    model = each_weight_(mlp(256, 8, nn.ReLU), lambda w: nn.init.normal_(w, std=2 / w.shape[1]))
    return fanin.check(model, torch.randn(128, 784), "ce")


@broken(
    "modalities#161",
    "A scale of a variance is used as one of a std: 2 for sqrt(2).",
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
    "pytorch#54030",
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
    "pytorch#24991",
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
    "",
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
    "pytorch#3121",
    "A head tied to an embedding from N(0, 1): loss 84 where 8.5 is expected.",
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
    "transformers#26441",
    "A head without its 1/sqrt(width): loss 110 where 11 is right.",
    "start-loss",
    "lm_head",
)
def large_head() -> Report:
    model = GPT(2, 128, 4, 2000, 32)
    model.lm_head.weight = nn.Parameter(torch.randn(2000, 128))
    return fanin.check(model, torch.randint(2000, (8, 16)), "ce")


@broken(
    "siren#19",
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
    "deepxde#305",
    "A tanh network for a physical field, in metres: the loss at step 0 is huge.",
    "input-scale",
    "0",
)
def unscaled_coordinates() -> Report:
    model = each_weight_(mlp(64, 4, nn.Tanh, 2, 1), nn.init.xavier_normal_)
    return fanin.check(model, torch.rand(128, 2) * 5000, "mse")


@broken(
    "peft#1060",
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
    "",
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
    "torchtitan#3334",
    "The depth factor is put on w2 and on w3.",
    "depth-scaling",
    "blocks.0.w3",
)
def doubled_depth_scaling() -> Report:
    return fanin.check(SwiGLU(16).scale_("w2", "w3"), torch.randn(16, 4, 256))


@broken(
    "llama2.c#579",
    "The depth factor is put on w3 instead of w2.",
    "depth-scaling",
    "blocks.0.w3",
)
def misplaced_depth_scaling() -> Report:
    return fanin.check(SwiGLU(16).scale_("w3"), torch.randn(16, 4, 256))


@broken(
    "modalities#165",
    "Branches of full size: the residual stream grows twelvefold in 32 blocks.",
    "residual-growth",
    "blocks.0.w2",
)
def missing_depth_scaling() -> Report:
    return fanin.check(SwiGLU(32), torch.randn(16, 4, 256))


@broken(
    "",
    "Half precision overflows in a layer of large weights.",
    "nonfinite",
    "2",
)
def overflow_in_half_precision() -> Report:
    model = each_weight_(mlp(64, 5, nn.ReLU, 64), lambda w: nn.init.normal_(w, std=30.0)).half()
    return fanin.check(model, torch.randn(32, 64).half())


@broken(
    "Megatron-LM#6799",
    "An RMSNorm from `torch.empty` that nothing initialised: NaN.",
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


# --- found without running the model --------------------------------------------------------------


@broken(
    "llm-foundry#1745",
    "`to_empty` and `reset_parameters` for whoever has it: the attention's "
    "packed projection has none.",
    "never-initialized",
    "attention.in_proj_weight",
)
def attention_left_from_meta() -> Report:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(16, 16)
            self.attention = nn.MultiheadAttention(16, 2)

    with fanin.recording():
        with torch.device("meta"):
            model = Small()
        model.to_empty(device="cpu")
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    return fanin.audit(model)


@broken(
    "transformers#48932",
    "A rotary table that no checkpoint holds is lost on the meta device.",
    "buffer-lost-on-meta",
    "rope.inv_freq",
)
def rotary_table_lost() -> Report:
    class Rope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            table = 1 / 10000 ** (torch.arange(0, 16, 2) / 16)
            self.register_buffer("inv_freq", table, persistent=False)

    with fanin.recording():
        with torch.device("meta"):
            model = nn.Sequential()
            model.add_module("rope", Rope())
            model.add_module("fc", nn.Linear(16, 16))
        model.to_empty(device="cpu")
        model.fc.reset_parameters()
    return fanin.audit(model)


@broken(
    "transformers#47458",
    "The residual rule compares a short name with full names and never runs.",
    "rule-never-matched",
    "c_proj.weight",
)
def rule_that_matches_nothing() -> Report:
    model = GPT(12, 32, 4, 100, 16)
    return fanin.audit(model, rules={"c_proj.weight": 0.02 / math.sqrt(24)})


@broken(
    "pytorch#72253",
    "`nn.TransformerEncoder` clones one layer: all start equal.",
    "duplicate-values",
    "layers.0",
)
def cloned_layers() -> Report:
    return fanin.audit(
        nn.TransformerEncoder(
            nn.TransformerEncoderLayer(32, 2, 64, batch_first=True), 3, enable_nested_tensor=False
        )
    )


@broken(
    "keras-hub#352",
    "One seed is used again for each layer: the layers are equal.",
    "duplicate-values",
    "0.weight",
)
def seed_used_again() -> Report:
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    for layer in (model[0], model[2]):
        nn.init.normal_(layer.weight, std=0.2, generator=torch.Generator().manual_seed(0))
    return fanin.audit(model)


@broken(
    "stable-baselines3#1541",
    "A general orthogonal init runs after the model's own.",
    "overwritten-by",
    "0.weight",
)
def custom_init_overwritten() -> Report:
    with fanin.recording():
        model = mlp(64, 4, nn.Tanh)
        nn.init.uniform_(model[0].weight, -1e-3, 1e-3)
        for module in model:
            if isinstance(module, nn.Linear):
                nn.init.orthogonal_(module.weight)
    return fanin.audit(model)


@broken(
    "pytorch#180968",
    "An initializer writes to a weight that weight norm computes.",
    "init-after-parametrization",
    "0.parametrizations",
)
def init_after_weight_norm() -> Report:
    with fanin.recording():
        model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(32, 32)))
        nn.init.orthogonal_(model[0].weight)
    return fanin.audit(model)


@broken(
    "pytorch#30079",
    "Kaiming on a transposed convolution counts output channels and no stride.",
    "fan-not-as-meant",
    "0.weight",
)
def transposed_convolution() -> Report:
    with fanin.recording():
        model = nn.Sequential(nn.ConvTranspose2d(128, 16, 4, 2, 1))
        nn.init.kaiming_normal_(model[0].weight, nonlinearity="relu")
    return fanin.audit(model)


@broken(
    "pytorch#24315",
    "fan_out of a depthwise convolution counts every group.",
    "fan-not-as-meant",
    "0.weight",
)
def depthwise_fan_out() -> Report:
    with fanin.recording():
        model = nn.Sequential(nn.Conv2d(64, 64, 3, groups=64))
        nn.init.kaiming_normal_(model[0].weight, mode="fan_out")
    return fanin.audit(model)


@broken(
    "Megatron-Bridge#5843",
    "Stacked experts read as one convolution: std 23 times too small.",
    "fan-not-as-meant",
    "experts",
)
def stacked_experts() -> Report:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.Parameter(torch.empty(8, 64, 128))
            nn.init.kaiming_normal_(self.experts, nonlinearity="linear")

    with fanin.recording():
        model = Experts()
    return fanin.audit(model)


@broken(
    "timm#1286",
    "Truncation at two sigma leaves 0.88 of the std.",
    "truncation-changes-std",
    "0.weight",
)
def truncated_normal() -> Report:
    with fanin.recording():
        model = nn.Sequential(nn.Linear(128, 128))
        nn.init.trunc_normal_(model[0].weight, std=0.05, a=-0.1, b=0.1)
    return fanin.audit(model)


@broken(
    "fastai#2090",
    "Two rules write one tied tensor: the last one wins.",
    "tied-conflict",
    "embed",
)
def tied_weights_written_twice() -> Report:
    with fanin.recording():
        model = Tied(100, 64)
        nn.init.normal_(model.embed.weight, std=1.0)
        nn.init.xavier_uniform_(model.head.weight)
    return fanin.audit(model)


@broken(
    "deepspeed#2650",
    "Initializing a ZeRO-3 placeholder of size 0 is a silent no-op.",
    "size-zero-placeholder",
    "0.weight",
)
def zero3_placeholder() -> Report:
    model = nn.Sequential(nn.Linear(8, 8))
    model[0].weight = nn.Parameter(torch.empty(0))
    model[0].weight.ds_shape = torch.Size((8, 8))
    nn.init.zeros_(model[0].weight)
    return fanin.audit(model)
