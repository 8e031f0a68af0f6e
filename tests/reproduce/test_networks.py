"""Plain networks, and stacks of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import fanin
from fanin.errors import UnknownNameError
from fanin.reproduce.networks import (
    Stack,
    plain,
    torch_activation,
    torch_activations,
    write_xavier,
)


@pytest.mark.parametrize("name", torch_activations())
def test_torch_and_theory_mean_the_same_activation(name: str) -> None:
    x = np.linspace(-6, 6, 241)
    found = torch_activation(name)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, fanin.activation(name)(x), rtol=1e-12, atol=1e-12)


def test_an_unknown_activation_is_named() -> None:
    with pytest.raises(
        UnknownNameError, match=r"^torch_activation\(name\): expected .*, got 'rleu'$"
    ):
        torch_activation("rleu")


def test_layers_are_written_in_order_with_zero_biases() -> None:
    seen: list[tuple[int, str]] = []

    def write(layer: nn.Module, position: str, generator: torch.Generator) -> None:
        assert float(layer.get_parameter("bias").abs().max()) == 0.0
        seen.append((layer.get_parameter("weight").shape[1], position))
        write_xavier(layer, position, generator)

    plain([5, 4, 3, 2], write, seed=0)
    assert seen == [(5, "first"), (4, "hidden"), (3, "last")]


def test_the_seed_decides_all_weights() -> None:
    def weights(seed: int) -> list[torch.Tensor]:
        return [layer.weight.detach() for layer in plain([5, 4, 3], write_xavier, seed)]

    same = zip(weights(1), weights(1), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    assert not torch.equal(weights(1)[0], weights(2)[0])


def test_a_stack_computes_what_its_networks_compute() -> None:
    networks = [plain([6, 5, 4, 3], write_xavier, seed) for seed in range(3)]
    for network in networks:
        nn.init.normal_(network[1].bias)
    stack = Stack.of(networks, torch.tanh)
    x = torch.randn(3, 7, 6)
    for k, (first, second, third) in enumerate(networks):
        expected = third(torch.tanh(second(torch.tanh(first(x[k])))))
        torch.testing.assert_close(stack(x)[k], expected)
    assert len(stack) == 3
