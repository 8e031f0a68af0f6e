"""An interrupt while a model is written: all of it is, then the interrupt goes on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from tests.planning import networks as net
from torch import nn
from torch.nn.utils import parametrizations

import fanin
from fanin import draw
from fanin.errors import ArgumentError
from fanin.torch import apply as room
from fanin.torch.writing import undo

X = fanin.spec((4, 20))


@pytest.fixture(autouse=True)
def _python_handles_interrupts() -> Iterator[None]:
    """A process that a shell put in the background ignores them from the start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupting(monkeypatch: pytest.MonkeyPatch, at: tuple[int, ...]) -> None:
    """Let Ctrl-C be pressed after these tensors."""
    write, count = room.write_, iter(range(1, 100))

    def writing(*args: object, **options: object) -> object:
        found = write(*args, **options)  # type: ignore[arg-type]
        if next(count) in at:
            signal.raise_signal(signal.SIGINT)
        return found

    monkeypatch.setattr(room, "write_", writing)


def test_the_first_interrupt_waits_until_all_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, model = net.mlp(3, nn.GELU()), net.mlp(3, nn.GELU())
    fanin.init_(whole, X, seed=1)
    handler = signal.getsignal(signal.SIGINT)
    interrupting(monkeypatch, (2,))
    with pytest.raises(KeyboardInterrupt):
        fanin.init_(model, X, seed=1)
    for one, two in zip(whole.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, two)
    assert signal.getsignal(signal.SIGINT) is handler


def changed(model: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    after = model.state_dict()
    return {name for name in after if not torch.equal(after[name], before[name])}


def test_a_second_interrupt_does_not_wait_and_all_is_put_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = net.mlp(3, nn.GELU())
    parametrizations.weight_norm(model[4])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    handler = signal.getsignal(signal.SIGINT)
    interrupting(monkeypatch, (2, 3))
    with pytest.raises(KeyboardInterrupt) as caught:
        fanin.init_(model, X, seed=1)
    assert not hasattr(caught.value, "__notes__")
    assert changed(model, before) == set()
    assert signal.getsignal(signal.SIGINT) is handler


def failing(monkeypatch: pytest.MonkeyPatch, at: int) -> list[str]:
    """Let memory run out in the middle of the n-th tensor; the names that were begun."""
    write, begun = room.write_, []

    def writing(tensor: torch.Tensor, values: object, *, seed: int, name: str) -> torch.Tensor:
        begun.append(name)
        found = write(tensor, values, seed=seed, name=name)
        if len(begun) == at:
            raise MemoryError
        return found

    monkeypatch.setattr(room, "write_", writing)
    return begun


def mixed() -> nn.Module:
    """Plain weights, one behind a parametrization, and an orthogonal one: six tensors."""
    model = net.mlp(3, nn.GELU())
    parametrizations.weight_norm(model[4])
    return model


RULE = {"2.weight": draw.Orthogonal(), "*.weight": draw.Normal(std=0.1), "*": draw.Constant(0.5)}


@pytest.mark.parametrize("at", range(1, 7))
def test_an_error_anywhere_leaves_the_model_as_it_was(
    at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = mixed()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    begun = failing(monkeypatch, at)
    with pytest.raises(MemoryError) as caught:
        fanin.init_(model, X, RULE)
    assert len(begun) == at
    assert changed(model, before) == set()
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize("at", range(1, 7))
def test_of_a_large_model_what_needs_memory_goes_first_and_is_put_back(
    at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no room for old values: later errors say what they leave."""
    monkeypatch.setattr(undo, "ROOM", 0)
    model = mixed()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    begun = failing(monkeypatch, at)
    with pytest.raises(MemoryError) as caught:
        fanin.init_(model, X, RULE)
    assert begun[:2] == ["4.weight", "2.weight"][:at]
    beside = {"4.bias"}  # is put back with the parametrized weight of its layer
    assert changed(model, before) == (set(begun[1:]) - beside if at > 2 else set())
    notes = ["fanin was writing: some tensors have new values, others the old ones"]
    assert getattr(caught.value, "__notes__", []) == (notes if at > 2 else [])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (draw.Normal(std=1e5), "values that float16 holds, up to 65504, got values up to 666100"),
        (draw.Orthogonal(groups=7), "dimension 0 a multiple of 7, got shape (64, 64)"),
    ],
    ids=str,
)
def test_values_that_do_not_fit_are_found_before_anything_is_written(
    values: draw.Distribution, message: str
) -> None:
    model = net.mlp(3, nn.GELU()).half()
    made = fanin.plan(model, fanin.spec((4, 20), torch.float16), draw.Normal(std=0.1))
    rows = [replace(r, values=values) if r.path == "4.weight" else r for r in made.rows]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ArgumentError) as caught:
        fanin.apply_(model, replace(made, rows=tuple(rows)))
    assert message in str(caught.value)
    assert caught.value.__notes__ == ["apply_: 4.weight"]
    assert changed(model, before) == set()


def test_a_handler_of_the_user_is_called_once_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: seen.append(number))
    try:
        interrupting(monkeypatch, (1,))
        model = net.mlp(3, nn.GELU())
        plan = fanin.init_(model, X, seed=1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [signal.SIGINT]
    assert model[4].weight.std().item() == pytest.approx(plan["4.weight"].std, rel=0.1)


def test_other_threads_write_too() -> None:
    model = net.mlp(2, nn.GELU())
    thread = threading.Thread(target=lambda: fanin.init_(model, X))
    before = model[0].weight.clone()
    thread.start()
    thread.join()
    assert not torch.equal(model[0].weight, before)
