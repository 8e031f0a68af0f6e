"""Training stacked networks: as if each were alone, and by the recipe."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fanin.reproduce import training
from fanin.reproduce.claim import Stopped
from fanin.reproduce.images import Images
from fanin.reproduce.networks import Stack, plain, write_xavier
from fanin.reproduce.training import Flat, Recipe, best_rate, one_thread, train

SIZES = [16, 12, 10]


def blobs(count: int = 200) -> Images:
    """Ten kinds of 4 x 4 images, easy to tell apart."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 200, (10, 1, 4, 4))
    labels = np.arange(count) // 10 % 10
    pixels = np.clip(kinds[labels] + rng.integers(-20, 20, (count, 1, 4, 4)), 0, 255).astype(
        np.uint8
    )
    half = count // 2
    return Images("blobs", "", pixels, labels, pixels[:half], labels[:half])


def build(seeds: list[int]) -> Stack:
    return Stack.of([plain(SIZES, write_xavier, seed) for seed in seeds], torch.tanh)


def silent(share: float) -> None:
    del share


def test_vectors_are_standardised_and_each_tenth_is_held_out() -> None:
    data = Flat.of(blobs(), limit=100)
    assert (len(data.train), len(data.choice), len(data.test)) == (90, 10, 25)
    together = torch.cat([data.train, data.choice])
    assert abs(float(together.mean())) < 1e-5
    assert abs(float(together.std(correction=0)) - 1) < 1e-5
    assert data.choice_labels.tolist() == list(range(10))


def test_training_is_that_of_torch_optim() -> None:
    data = Flat.of(blobs())
    recipe = Recipe(epochs=2, batch=30, clip=0.5)
    stack = build([3])
    (found,) = train(stack, [0.1], [7], data, recipe, silent)

    layers = plain(SIZES, write_xavier, 3)
    model = nn.Sequential(layers[0], nn.Tanh(), layers[1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    order = torch.Generator().manual_seed(7)
    steps, step = 2 * (len(data.train) // 30), 0
    for _ in range(2):
        for chosen in torch.randperm(len(data.train), generator=order).split(30)[: steps // 2]:
            # The rate is held for the first half, then falls linearly to 0. PyTorch's momentum
            # buffer does not hold the rate, so changing it is what the recipe says.
            optimizer.param_groups[0]["lr"] = 0.1 * min(1.0, 2 * (1 - step / steps))
            loss = F.cross_entropy(model(data.train[chosen]), data.train_labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            step += 1
    torch.testing.assert_close(stack.weights[0][0], layers[0].weight.T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stack.biases[1][0, 0], layers[1].bias, rtol=1e-4, atol=1e-5)
    accuracy = (model(data.test).argmax(1) == data.test_labels).float().mean()
    assert found.accuracy[-1] == round(float(accuracy), 4)


def test_adam_is_that_of_torch_optim() -> None:
    data, recipe = Flat.of(blobs()), Recipe(epochs=1, batch=30, held=1.0, optimiser="adam")
    stack = build([3, 4])
    train(stack, [0.01, 0.002], [7, 7], data, recipe, silent)
    order = torch.Generator().manual_seed(7)
    chosen = torch.randperm(len(data.train), generator=order).split(30)
    for k, rate in enumerate([0.01, 0.002]):
        layers = plain(SIZES, write_xavier, 3 + k)
        model = nn.Sequential(layers[0], nn.Tanh(), layers[1])
        optimizer = torch.optim.Adam(model.parameters(), lr=rate)
        for part in chosen:
            optimizer.zero_grad()
            F.cross_entropy(model(data.train[part]), data.train_labels[part]).backward()
            optimizer.step()
        torch.testing.assert_close(stack.weights[0][k], layers[0].weight.T, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(stack.biases[1][k, 0], layers[1].bias, rtol=1e-4, atol=1e-5)


def test_networks_of_a_stack_do_not_see_each_other() -> None:
    data, recipe = Flat.of(blobs()), Recipe(epochs=1, batch=30, clip=1.0)
    together = build([0, 1, 2])
    train(together, [0.1, 0.02, 1000.0], [5, 6, 7], data, recipe, silent)
    alone = build([1])
    train(alone, [0.02], [6], data, recipe, silent)
    for a, b in zip(together.parameters, alone.parameters, strict=True):
        torch.testing.assert_close(a[1], b[0], rtol=1e-5, atol=1e-6)


def test_easy_images_are_learned() -> None:
    found = train(build([0]), [0.1], [0], Flat.of(blobs()), Recipe(epochs=15, batch=30), silent)[0]
    assert len(found.accuracy) == len(found.loss) == 15
    assert found.accuracy[-1] > 0.95
    assert found.choice > 0.95
    assert found.loss[-1] is not None
    assert found.loss[0] is not None
    assert found.loss[-1] < 0.3 * found.loss[0]


def test_a_loss_that_is_not_finite_is_none() -> None:
    data = Flat.of(blobs())
    found = train(build([0]), [1e38], [0], data, Recipe(epochs=2, batch=30), silent)[0]
    assert found.loss[-1] is None


def test_a_run_without_a_number_left_ends_and_says_what_it_would_have_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, recipe = Flat.of(blobs()), Recipe(epochs=6, batch=30, clip=1.0)
    found = best_rate(build, [1e38], [0, 1], data, recipe, silent)
    assert found.pop("ended") == [1, 1]
    monkeypatch.setattr(training, "_lost", lambda stack: False)
    whole = best_rate(build, [1e38], [0, 1], data, recipe, silent)
    assert found == whole


def test_a_run_goes_on_while_one_network_has_numbers() -> None:
    data, recipe = Flat.of(blobs()), Recipe(epochs=2, batch=30)
    lost, well = train(build([0, 0]), [1e38, 0.1], [0, 0], data, recipe, silent)
    assert lost.ended is None
    assert well.ended is None
    assert well.loss[-1] is not None


def test_the_rate_is_chosen_by_the_first_seed_on_held_out_images() -> None:
    data, recipe = Flat.of(blobs()), Recipe(epochs=8, batch=30)
    asked: list[list[int]] = []

    def recorded(seeds: list[int]) -> Stack:
        asked.append(list(seeds))
        return build(list(seeds))

    shares: list[float] = []
    found = best_rate(recorded, [1e-6, 0.1], [4, 5, 6], data, recipe, shares.append)
    assert asked == [[4, 4], [5, 6]]
    assert found["rate"] == 0.1
    assert [rate for rate, _ in found["tried"]] == [0.1, 1e-6]
    assert found["tried"][0][1] > found["tried"][1][1]
    assert len(found["final"]) == len(found["curves"]) == 3
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


@pytest.mark.parametrize("rates", [[1e-6, 0.1], [1e38]])
def test_more_seeds_go_on_from_the_first_as_if_all_had_been_trained_at_once(
    rates: list[float],
) -> None:
    data, recipe = Flat.of(blobs()), Recipe(epochs=3, batch=30, clip=1.0)
    first = best_rate(build, rates, [4], data, recipe, silent)
    shares: list[float] = []
    asked: list[list[int]] = []

    def recorded(seeds: list[int]) -> Stack:
        asked.append(list(seeds))
        return build(list(seeds))

    found = best_rate(recorded, rates, [4, 5, 6], data, recipe, shares.append, first)
    assert asked == [[5, 6]]
    assert found == best_rate(build, rates, [4, 5, 6], data, recipe, silent)
    assert 0 < shares[0] < 0.5
    assert shares[-1] == 1.0


def test_of_equal_rates_the_largest_is_taken() -> None:
    data = Flat.of(blobs())
    found = best_rate(build, [1e-12, 1e-9], [0], data, Recipe(epochs=1, batch=30), silent)
    assert found["rate"] == 1e-9


def test_a_tick_can_stop_training() -> None:
    def stop(share: float) -> None:
        if share > 0.5:
            raise Stopped

    with pytest.raises(Stopped):
        train(build([0]), [0.1], [0], Flat.of(blobs()), Recipe(epochs=2, batch=30), stop)


def test_one_thread_puts_back_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
