"""Tensors broken as users reported it: what `audit` must name first, without running the model."""

from __future__ import annotations

import math

import torch
from blocks import GPT, mlp
from broken import Tied
from entries import broken
from torch import nn

import fanin
from fanin.report.report import Report


@broken(
    "NVIDIA/Megatron-LM#6799",
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
    "huggingface/transformers#48932",
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
    "huggingface/transformers#47458",
    "The residual rule compares a short name with full names and never runs.",
    "rule-never-matched",
    "c_proj.weight",
)
def rule_that_matches_nothing() -> Report:
    model = GPT(12, 32, 4, 100, 16)
    return fanin.audit(model, rules={"c_proj.weight": 0.02 / math.sqrt(24)})


@broken(
    "pytorch/pytorch#72253",
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
    "keras-team/keras-hub#352",
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
    "DLR-RM/stable-baselines3#1541",
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
    "pytorch/pytorch#180968",
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
    "pytorch/pytorch#30079",
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
    "pytorch/pytorch#24315",
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
    "",
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
    "huggingface/pytorch-image-models#1286",
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
    "fastai/fastai#2090",
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
    "deepspeedai/DeepSpeed#2650",
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
