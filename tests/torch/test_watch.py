"""Watching a model that trains: the same training, and measurements of the steps that were due."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fanin.torch
from fanin.errors import ArgumentError
from fanin.torch.probing.measurement import Measurement


def train(net: nn.Module, steps: int, between: object = None) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        x = torch.randn(16, 8, generator=generator)
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1))


def test_training_is_bit_identical_with_and_without() -> None:
    plain, watched = small(), small()
    torch.manual_seed(1)
    train(plain, 12)
    torch.manual_seed(1)
    with fanin.torch.Watch(watched, every=3):
        train(watched, 12)
    for a, b in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a, b)


def test_due_steps_are_measured_with_their_gradients() -> None:
    net, seen = small(), []

    def then(step: int, measured: Measurement) -> None:
        seen.append((step, measured))

    with fanin.torch.Watch(net, every=4, then=then) as watch:
        train(net, 9)
    assert [step for step, _ in seen] == [0, 4, 8]
    assert watch.measured == seen
    for _, measured in seen:
        assert [r.operation for r in measured.layers] == ["linear", "relu", "linear"]
        assert all(r.gradient for r in measured.layers)
        assert all(w.gradient for w in measured.weights.values())


def test_evaluation_is_not_a_step() -> None:
    net = small()
    with fanin.torch.Watch(net, every=1) as watch:
        net.eval()(torch.randn(4, 8))
        with torch.no_grad():
            net.train()(torch.randn(4, 8))
    assert watch.measured == []


def test_no_hook_stays_behind_also_when_a_step_raises() -> None:
    net = small()
    with pytest.raises(RuntimeError), fanin.torch.Watch(net, every=1):
        net(torch.randn(4, 9))
    for module in net.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    for parameter in net.parameters():
        assert not parameter._post_accumulate_grad_hooks
    assert torch.overrides._get_current_function_mode() is None


def test_a_compiled_model_says_what_it_cannot_see() -> None:
    net = torch.compile(small(), backend="eager")
    with fanin.torch.Watch(net, every=1) as watch:
        train(net, 2)
    (_, measured), _ = watch.measured
    assert measured.layers == ()
    assert measured.notes[-1] == (
        "compiled: hooks inactive, so only weights and gradients are measured"
    )
    assert all(w.gradient for w in measured.weights.values())


def test_only_the_latest_are_kept() -> None:
    net = small()
    with fanin.torch.Watch(net, every=1, keep=2) as watch:
        train(net, 5)
    assert [step for step, _ in watch.measured] == [3, 4]


@pytest.mark.parametrize("name", ["every", "keep"])
def test_bad_intervals(name: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        fanin.torch.Watch(small(), **{name: 0})
    assert str(caught.value) == f"Watch({name}): expected at least 1, got 0"
