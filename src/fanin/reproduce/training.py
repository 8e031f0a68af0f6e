"""Train a stack of plain networks by stochastic gradient descent, and choose a learning rate."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
import torch.nn.functional as F

from fanin.reproduce.claim import Tick
from fanin.reproduce.images import Images

if TYPE_CHECKING:
    from jaxtyping import Float, Int64
    from torch import Tensor

    Vectors = Float[Tensor, "image pixel"]
    Labels = Int64[Tensor, " image"]
    Chosen = Int64[Tensor, "network image"]
    PerNetwork = Float[Tensor, " network"]
    Inputs = Float[Tensor, "network image pixel"]
    Outputs = Float[Tensor, "network image output"]

_EVERY = 10  # of the training images, each tenth chooses the learning rate and is not trained on


class Networks(Protocol):
    """Networks of one shape, one after another in the first axis of every array."""

    @property
    def parameters(self) -> list[Tensor]:
        """What is trained."""

    def __len__(self) -> int: ...

    def __call__(self, x: Inputs, /) -> Outputs:
        """Each network on its own images."""


@dataclass(frozen=True)
class Recipe:
    """Plain training: no augmentation, no weight decay, a rate that is held, then falls to 0.

    Args:
        epochs: passes over the training images.
        batch: images in a step.
        momentum: of the running sum of gradients.
        clip: largest norm of a network's gradient, or None for no bound.
        held: share of the steps at the full rate; it then falls linearly.
        optimiser: `sgd`, or `adam` with 0.999 for squares and 1e-8 beside their root.
    """

    epochs: int
    batch: int = 64
    momentum: float = 0.9
    clip: float | None = None
    held: float = 0.5
    optimiser: Literal["sgd", "adam"] = "sgd"


@dataclass(frozen=True)
class Flat:
    """Images as vectors, standardised with the mean and deviation of all training pixels."""

    train: Vectors
    train_labels: Labels
    choice: Vectors
    choice_labels: Labels
    test: Vectors
    test_labels: Labels

    @classmethod
    def of(cls, images: Images, limit: int | None = None) -> Flat:
        """The vectors; `limit` bounds the training images, a quarter of it the test images."""
        train, labels = images.train[:limit], images.train_labels[:limit]
        quarter = None if limit is None else limit // 4
        mean, deviation = float(train.mean()), float(train.std()) or 1.0

        def vectors(pixels: Any) -> Tensor:
            return (torch.from_numpy(pixels.reshape(len(pixels), -1)).float() - mean) / deviation

        choice = torch.arange(len(train)) % _EVERY == _EVERY - 1
        x, y = vectors(train), torch.from_numpy(labels)
        return cls(
            x[~choice],
            y[~choice],
            x[choice],
            y[choice],
            vectors(images.test[:quarter]),
            torch.from_numpy(images.test_labels[:quarter]),
        )


@dataclass(frozen=True)
class Trained:
    """What training one network gave.

    Args:
        accuracy: share of test images named right, after each epoch.
        choice: the same of the images that choose the rate, at the end.
        loss: mean training loss of each epoch; None where it is not finite.
        ended: epochs that were trained, where nothing was left to train; what the others would
            have given is known, and stands in the lists.
    """

    accuracy: list[float]
    choice: float
    loss: list[float | None]
    ended: int | None = None


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One arm, one thread: arms run side by side, and results do not depend on the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    # Signals that have died out are denormal numbers, on which processors are very slow.
    flushed = bool(torch.tensor(1e-310, dtype=torch.float64) * 1 == 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed)
        torch.set_num_threads(before)


def train(
    stack: Networks,
    rates: Sequence[float],
    seeds: Sequence[int],
    data: Flat,
    recipe: Recipe,
    tick: Tick,
) -> list[Trained]:
    """Train every network of a stack, in place; no network sees another.

    Args:
        stack: the networks.
        rates: learning rate of each.
        seeds: of each one's order of images.
        data: what to train and to test on.
        recipe: how.
        tick: told the finished share.

    Returns:
        One result a network.
    """
    parameters = [p.requires_grad_() for p in stack.parameters]
    rule = (_Adam if recipe.optimiser == "adam" else _Momentum)(parameters, recipe.momentum)
    rate = torch.tensor(rates)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    per_epoch = len(data.train) // recipe.batch
    steps, step = recipe.epochs * per_epoch, 0
    accuracies, losses = [], []
    for _ in range(recipe.epochs):
        orders = torch.stack([torch.randperm(len(data.train), generator=g) for g in generators])
        total = torch.zeros(len(stack))
        for chosen in orders[:, : per_epoch * recipe.batch].split(recipe.batch, dim=1):
            share = step / steps
            fall = min(1.0, (1 - share) / (1 - recipe.held)) if recipe.held < 1 else 1.0
            total += _step(stack, rule, rate * fall, data, chosen, recipe)
            step += 1
            tick(step / steps)
        accuracies.append(_accuracy(stack, data.test, data.test_labels))
        losses.append(total / per_epoch)
        if _lost(stack):
            tick(1.0)
            break
    ended, rest = len(losses), recipe.epochs - len(losses)
    accuracies += accuracies[-1:] * rest
    losses += [torch.full((len(stack),), torch.nan)] * rest
    choice = _accuracy(stack, data.choice, data.choice_labels)
    return [
        Trained(
            [round(a[k].item(), 4) for a in accuracies],
            round(choice[k].item(), 4),
            [round(x[k].item(), 5) if x[k].isfinite() else None for x in losses],
            ended if rest else None,
        )
        for k in range(len(stack))
    ]


def _lost(stack: Networks) -> bool:
    """Whether no parameter is a number: none will be again, and what is computed is the same."""
    return all(bool(p.isnan().all()) for p in stack.parameters)


class _Momentum:
    """Stochastic gradient descent with a running sum of gradients."""

    def __init__(self, parameters: list[Tensor], momentum: float) -> None:
        self.parameters, self.momentum = parameters, momentum
        self.sums = [torch.zeros_like(p) for p in parameters]

    def update(self, gradients: Sequence[Tensor], rate: PerNetwork) -> None:
        """One step of every network."""
        for parameter, running, gradient in zip(self.parameters, self.sums, gradients, strict=True):
            running.mul_(self.momentum).add_(gradient)
            parameter.addcmul_(running, _along(rate, parameter), value=-1.0)


class _Adam:
    """Adam (Kingma and Ba 2015), one clock for all networks."""

    def __init__(self, parameters: list[Tensor], momentum: float) -> None:
        self.parameters, self.momentum, self.steps = parameters, momentum, 0
        self.means = [torch.zeros_like(p) for p in parameters]
        self.squares = [torch.zeros_like(p) for p in parameters]

    def update(self, gradients: Sequence[Tensor], rate: PerNetwork) -> None:
        """One step of every network."""
        self.steps += 1
        first, second = 1 - self.momentum**self.steps, 1 - 0.999**self.steps
        for parameter, mean, square, gradient in zip(
            self.parameters, self.means, self.squares, gradients, strict=True
        ):
            mean.lerp_(gradient, 1 - self.momentum)
            square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            root = (square / second).sqrt_().add_(1e-8)
            parameter.addcdiv_(mean * _along(rate / first, mean), root, value=-1.0)


def _along(rate: PerNetwork, parameter: Tensor) -> Tensor:
    """One number a network, spread over the other axes of a parameter."""
    return rate.view(-1, *[1] * (parameter.dim() - 1))


def _step(
    stack: Networks,
    rule: _Momentum | _Adam,
    rate: PerNetwork,
    data: Flat,
    chosen: Chosen,
    recipe: Recipe,
) -> PerNetwork:
    """One step of every network; returns their losses."""
    logits = stack(data.train[chosen])
    each = F.cross_entropy(
        logits.flatten(0, 1), data.train_labels[chosen].flatten(), reduction="none"
    )
    loss = each.view(len(stack), -1).mean(1)
    gradients = torch.autograd.grad(loss.sum(), rule.parameters)
    with torch.no_grad():
        if recipe.clip is not None:
            norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients])
            scale = (recipe.clip / norms.norm(dim=0)).clamp(max=1.0)
            gradients = tuple(g.mul_(_along(scale, g)) for g in gradients)
        rule.update(gradients, rate)
    return loss.detach()


def _accuracy(stack: Networks, x: Vectors, labels: Labels) -> PerNetwork:
    """Share of images named right by each network."""
    right = torch.zeros(len(stack))
    with torch.no_grad():
        for part, names in zip(x.split(500), labels.split(500), strict=True):
            right += (stack(part.expand(len(stack), -1, -1)).argmax(-1) == names).sum(1)
    return right / len(labels)


def best_rate(
    build: Callable[[Sequence[int]], Networks],
    rates: Sequence[float],
    seeds: Sequence[int],
    data: Flat,
    recipe: Recipe,
    tick: Tick,
    first: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train one arm with a learning rate that is chosen without the test images.

    The first seed is trained with every rate; the best on the held-out tenth of the training
    images, of equals the largest, trains the other seeds.

    Args:
        build: from seeds to a stack of networks, one a seed.
        rates: to choose from.
        seeds: of the networks and of their order of images.
        data: what to train and to test on.
        recipe: how.
        tick: told the finished share.
        first: what this function gave for the first seed alone, if it did already.

    Returns:
        JSON values: `rate`, `tried` (rate and held-out accuracy), `final` (test accuracy of each
        seed), `curves` (of each seed, after each epoch); `ended`, where a run was, by its seed:
        the epoch after which its parameters were not numbers.
    """
    rest = list(seeds[1:])
    share = 0.0 if first else len(rates) / (len(rates) + len(rest))
    if first is None:
        first = _choose(build, rates, seeds[0], data, recipe, lambda done: tick(done * share))
    if not rest:
        return dict(first)
    rate = first["rate"]
    more = train(
        build(rest),
        [rate] * len(rest),
        rest,
        data,
        recipe,
        lambda done: tick(share + done * (1 - share)),
    )
    return {"rate": rate, "tried": first["tried"], **_joined(first, _values(more))}


def _choose(
    build: Callable[[Sequence[int]], Networks],
    rates: Sequence[float],
    seed: int,
    data: Flat,
    recipe: Recipe,
    tick: Tick,
) -> dict[str, Any]:
    """One seed with every rate: the best rate, and what it gave."""
    rates, same = sorted(rates, reverse=True), [seed] * len(rates)
    tried = train(build(same), rates, same, data, recipe, tick)
    best = max(range(len(rates)), key=lambda i: tried[i].choice)
    return {
        "rate": rates[best],
        "tried": [[rate, run.choice] for rate, run in zip(rates, tried, strict=True)],
        **_values([tried[best]]),
    }


def _values(runs: Sequence[Trained]) -> dict[str, Any]:
    """What the seeds gave, as JSON values."""
    ended = {"ended": [run.ended for run in runs]} if any(run.ended for run in runs) else {}
    return {
        "final": [run.accuracy[-1] for run in runs],
        "curves": [run.accuracy for run in runs],
        **ended,
    }


def _joined(first: Mapping[str, Any], rest: Mapping[str, Any]) -> dict[str, Any]:
    """The lists of both, one after the other."""
    lists = {name: [*first[name], *rest[name]] for name in ("final", "curves")}
    if "ended" in first or "ended" in rest:
        both = [x.get("ended", [None] * len(x["final"])) for x in (first, rest)]
        lists["ended"] = [*both[0], *both[1]]
    return lists
