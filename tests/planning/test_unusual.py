"""Models that run in unusual ways get a plan in which every parameter has a row, or an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

import fanin
from fanin.errors import TraceError
from fanin.planning.plan import Plan

X = fanin.spec((8, 16))


class Two(nn.Module):
    """Two linear layers and a forward written in the test."""

    def __init__(self, forward: Callable[[Two, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 32), nn.Linear(32, 4)
        self.written = forward

    def forward(self, x: Tensor) -> Any:
        return self.written(self, x)


def autocast(model: Two, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return model.b(torch.tanh(model.a(x)))


def cast_before(model: Two, x: Tensor) -> Tensor:
    half = {n: p.bfloat16() for n, p in model.named_parameters()}
    h = torch.tanh(F.linear(x.bfloat16(), half["a.weight"], half["a.bias"]))
    return F.linear(h, half["b.weight"], half["b.bias"])


def slope(model: Two, x: Tensor) -> Tensor:
    return model.b(torch.func.jvp(lambda t: torch.tanh(model.a(t)), (x,), (torch.ones_like(x),))[1])


def energy(model: Two, x: Tensor) -> Tensor:
    return torch.func.grad(lambda t: model.b(torch.tanh(model.a(t))).sum())(x)


def force(model: Two, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(model.b(torch.tanh(model.a(x))).sum(), x, create_graph=True)[0]


def branch(model: Two, x: Tensor) -> Tensor:
    return model.b(torch.cond(x.sum() > 0, torch.tanh, torch.sin, (model.a(x),)))


def flexible(model: Two, x: Tensor) -> Tensor:
    h = model.a(x).view(2, 2, 2, 32)
    return model.b(flex_attention(h, h, h).reshape(8, 32))


def gate(model: Two, x: Tensor) -> Tensor:
    h = model.a(x)
    return model.b((h > 0.5).float() + h)


def planned(model: nn.Module, inputs: Any = X) -> Plan:
    """The plan, after checking that it leaves nothing out."""
    plan = fanin.plan(model, inputs)
    assert {r.path for r in plan.rows} == {n for n, _ in model.named_parameters()}
    assert all(r.reason for r in plan.rows)
    return plan


@pytest.mark.parametrize(
    "forward", [autocast, cast_before, slope, energy, force, branch, flexible, gate]
)
def test_every_parameter_is_drawn(forward: Callable[[Two, Tensor], Any]) -> None:
    model = Two(forward)
    plan = planned(model)
    assert not plan.left_alone
    assert plan["a.weight"].std == pytest.approx(1 / 4, rel=0.02)  # reads N(0, 1)
    assert not [note for note in plan.notes if "taken as" in note]


def recorded(model: nn.Module) -> Any:
    return torch.jit.trace(model, torch.randn(8, 16))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("form", [torch.jit.script, recorded, torch.fx.symbolic_trace])
def test_a_model_in_another_form_is_planned_and_written(form: Callable[[nn.Module], Any]) -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))
    other = form(model)
    assert planned(other) == planned(model)
    fanin.init_(other, X, seed=3)
    fanin.init_(model, X, seed=3)
    assert all(
        torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True)
    )


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_a_nested_tensor_is_an_error_that_says_what_to_do(layout: torch.layout) -> None:
    def forward(model: Two, x: Tensor) -> Tensor:
        parts = torch.nested.as_nested_tensor([x[:3], x[3:]], layout=layout)
        return torch.nested.to_padded_tensor(model.a(parts), 0.0)

    with pytest.raises(TraceError, match="got a nested tensor; plan with the padded form"):
        fanin.plan(Two(forward), X)


class Rwkv(nn.Module):
    """The recurrence of RWKV, with its running maximum, step by step."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.decay = nn.Parameter(torch.linspace(-2, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        keys, values, decay = self.key(x), self.value(x), -torch.exp(self.decay)
        top = torch.full_like(keys[:, 0], -1e38)
        above, below = torch.zeros_like(top), torch.zeros_like(top)
        made = []
        for t in range(x.shape[1]):
            k, v = keys[:, t], values[:, t]
            higher = torch.maximum(top + decay, k)
            old, new = torch.exp(top + decay - higher), torch.exp(k - higher)
            above, below, top = old * above + new * v, old * below + new, higher
            made.append(above / below)
        return torch.stack(made, 1)


def test_a_running_maximum_is_planned_step_by_step() -> None:
    plan = planned(nn.Sequential(Rwkv(16), nn.Linear(16, 4)), fanin.spec((4, 24, 16)))
    assert [note for note in plan.notes if "taken as" in note] == []
    # an average of values of variance 1 over those seen so far
    assert 1 / 24 < (1 / 16) / plan["1.weight"].std ** 2 <= 1


@pytest.mark.parametrize("number", [0, 1, 2 + 1j])
def test_a_complex_weight_of_one_number(number: complex) -> None:
    class Spectrum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((9,), number, dtype=torch.complex64))

        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.irfft(torch.fft.rfft(x) * self.weight, n=16)

    assert len(planned(Spectrum()).left_alone) == 1
