"""`check` leaves everything as it was: bits, gradients, random states, modes, hooks."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fanin
from fanin.report.check import check
from fanin.torch.probing.untouched import same_bits, untouched


class Meddling(nn.Module):
    """Does in `forward` all that a model should not, and raises if it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.spectral = nn.utils.spectral_norm(nn.Linear(8, 8))
        self.drop = nn.Dropout(0.5)
        self.register_buffer("steps", torch.zeros(1))
        self.register_buffer("cache", torch.zeros(1), persistent=False)
        self.raises = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.fc.weight.mul_(0.5)
            self.fc.bias.data = self.fc.bias.data + 1
            self.steps += 1
        self.cache = torch.randn(3)
        h = self.spectral(self.norm(self.drop(self.fc(x)))) + random.random() + np.random.rand()
        self.eval()
        self.register_forward_hook(lambda *_: None)
        if self.raises:
            raise RuntimeError("as told")
        return F.dropout(h, 0.3)


def snapshot(model: nn.Module) -> dict[str, Any]:
    state: dict[str, Any] = {"rng": torch.get_rng_state(), "python": random.getstate()}
    # The position in the block of words too: most draws move nothing else.
    state["numpy"] = [
        part.tobytes() if isinstance(part, np.ndarray) else part
        for part in np.random.get_state(legacy=True)
    ]
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        state[name] = (id(tensor), tensor.detach().clone(), tensor.data_ptr())
        grad = tensor.grad
        state[f"{name}.grad"] = None if grad is None else (id(grad), grad.clone())
    for name, module in model.named_modules():
        state[f"{name}:mode"] = module.training
        state[f"{name}:hooks"] = [
            list(vars(module)[table])
            for table in vars(module)
            if "hooks" in table and isinstance(vars(module)[table], dict)
        ]
        state[f"{name}:attributes"] = sorted(vars(module))
    return state


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return same_bits(a, b)
    if isinstance(a, np.ndarray):
        return bool((a == b).all())
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [key for key in before if not same(before[key], after.get(key))] + [
        key for key in after if key not in before
    ]


def models() -> dict[str, Callable[[], tuple[nn.Module, Any]]]:
    def conv() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(288, 4),
        )

    return {
        "meddling": lambda: (Meddling(), torch.randn(16, 8)),
        "conv": lambda: (conv(), torch.randn(8, 3, 8, 8)),
        "conv in eval mode": lambda: (conv().eval(), torch.randn(8, 3, 8, 8)),
        "half frozen": lambda: (
            nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 2)),
            torch.randn(8, 4),
        ),
        "lstm": lambda: (nn.LSTM(4, 8, 2, batch_first=True, dropout=0.2), torch.randn(8, 5, 4)),
        "closed pair": lambda: (closed(), torch.randn(8, 4)),
        "bfloat16": lambda: (conv().bfloat16(), torch.randn(8, 3, 8, 8).bfloat16()),
    }


def closed() -> nn.Module:
    """Its gates are opened for a moment to see what follows."""
    net = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False), nn.Linear(4, 1))
    nn.init.zeros_(net[0].weight)
    nn.init.zeros_(net[1].weight)
    return net


@pytest.mark.parametrize("gradients", [False, True], ids=["no gradients", "gradients"])
@pytest.mark.parametrize("name", models())
def test_check_leaves_everything_bit_identical(name: str, gradients: bool) -> None:
    model, inputs = models()[name]()
    if gradients:
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
    before = snapshot(model)
    check(model, inputs)
    assert changed(before, snapshot(model)) == []


def test_also_when_the_model_raises() -> None:
    model = Meddling()
    model.raises = True
    x = torch.randn(16, 8)
    before = snapshot(model)
    with pytest.raises(RuntimeError, match=r"got RuntimeError: as told"):
        check(model, x)
    assert changed(before, snapshot(model)) == []


def test_also_when_the_loss_raises() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    x = torch.randn(8, 4)
    before = snapshot(model)
    with pytest.raises(ZeroDivisionError):
        check(model, x, lambda y: 1 / 0)
    assert changed(before, snapshot(model)) == []


def test_optimizers_that_step_in_the_backward_pass_do_not_step() -> None:
    model = nn.Linear(4, 4)
    steps: list[int] = []
    model.weight.register_post_accumulate_grad_hook(lambda p: steps.append(1))
    x = torch.randn(8, 4)
    before = snapshot(model)
    check(model, x)
    assert steps == []
    assert changed(before, snapshot(model)) == []


def test_the_snapshot_of_these_tests_sees_each_change() -> None:
    """A test of the test: without `untouched` the same model shows up in every part."""
    model = Meddling()
    before = snapshot(model)
    model(torch.randn(16, 8))
    seen = changed(before, snapshot(model))
    for key in (
        "rng",
        "python",
        "numpy",
        "fc.weight",
        "fc.bias",
        "steps",
        "cache",
        ":mode",
        ":hooks",
        "norm.running_mean",
        "spectral.weight_u",
    ):
        assert key in seen


def test_nan_is_the_same_bits_and_negative_zero_is_not_zero() -> None:
    nan = torch.tensor([float("nan")])
    assert same_bits(nan, nan.clone())
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))


def test_tensors_that_the_body_replaces_come_back() -> None:
    model = nn.Linear(2, 2)
    weight = model.weight
    with untouched(model):
        model.weight = nn.Parameter(torch.zeros(2, 2))
        del model.bias
    assert model.weight is weight
    assert model.bias is not None


def test_no_seed_is_left_for_devices_that_are_used_later() -> None:
    """CUDA keeps the last seed of all its devices for when they are first used."""
    waiting = torch.cuda._lazy_seed_tracker
    before = waiting.manual_seed_all_cb
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 2))
    check(model, torch.randn(8, 4), "ce")
    fanin.init_(model, torch.randn(8, 4))
    with torch.device("meta"):
        deferred = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    fanin.materialize_(deferred)
    assert waiting.manual_seed_all_cb is before
    torch.manual_seed(torch.initial_seed())
    assert waiting.manual_seed_all_cb is not before or torch.cuda.is_initialized()
