"""Which seed a call draws with: an integer, one taken from a generator, or that of a plan."""

from __future__ import annotations

import torch

from fanin.draw.philox import stream
from fanin.errors import ArgumentError, ArgumentTypeError
from fanin.planning.plan import Plan


def seed_from(generator: torch.Generator | None) -> int:
    """One 63-bit seed from a generator, or from torch's default one."""
    device = generator.device if generator is not None else "cpu"
    seed = torch.randint(2**63 - 1, (), generator=generator, device=device)
    return int(seed.item())


def seed_of(
    where: str,
    seed: int | None,
    generator: torch.Generator | None,
    plan: object = None,
) -> int:
    """The seed of a call.

    Args:
        where: the call, for errors.
        seed: what was given; None or 0 count as not given beside a generator.
        generator: what was given; one integer is taken from it.
        plan: if it is a `Plan` that records a seed, that counts where nothing is given.

    Raises:
        ArgumentError: both are given, or the seed is out of range.
        ArgumentTypeError: the seed is no integer, or the generator is none of torch's.

    Example:
        >>> seed_of("init_", 3, None), seed_of("init_", None, None)
        (3, 0)
    """
    if generator is not None:
        if not isinstance(generator, torch.Generator):
            raise ArgumentTypeError(
                f"{where}(generator)", expected="a torch.Generator", got=type(generator).__name__
            )
        if seed:
            raise ArgumentError(
                f"{where}(seed, generator)",
                expected="one of the two",
                got=f"seed={seed} and a generator",
            )
        return seed_from(generator)
    if seed is None:
        seed = plan.seed if isinstance(plan, Plan) else None
    seed = 0 if seed is None else seed
    stream(seed, "")  # refuses what is no seed, before anything is planned or written
    return int(seed)
