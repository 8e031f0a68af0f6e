"""An interrupt while a model is written: all of it is, then the interrupt goes on."""

from __future__ import annotations

import signal
import threading

import pytest
import torch
from tests.planning import networks as net
from torch import nn
from torch.nn.utils import parametrizations

import fanin
from fanin.torch import apply as room

X = fanin.spec((4, 20))


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


def test_a_second_interrupt_does_not_wait_and_says_what_it_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = net.mlp(3, nn.GELU())
    parametrizations.weight_norm(model[4])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    handler = signal.getsignal(signal.SIGINT)
    interrupting(monkeypatch, (2, 3))
    with pytest.raises(KeyboardInterrupt) as caught:
        fanin.init_(model, X, seed=1)
    assert caught.value.__notes__ == [
        "fanin was writing: some tensors have new values, others the old ones"
    ]
    after = model.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {"0.weight", "0.bias"}  # and what stands behind a parametrization is put back
    assert signal.getsignal(signal.SIGINT) is handler


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
