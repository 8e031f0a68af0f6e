"""Measure the arms of all claims side by side, keep each one as it is finished, stop when told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import torch

import fanin
from fanin import draw
from fanin.reproduce.claim import Arm, Claim, Stopped
from fanin.reproduce.images import Images
from fanin.reproduce.store import Store
from fanin.reproduce.training import one_thread

Watch = Callable[["Work"], None]
Results = dict[int, dict[str, dict[str, Any]]]
"""By number of the claim and name of the arm."""


@dataclass
class Work:
    """The arms of all claims and how far they are.

    Args:
        arms: of each claim, by its number.
        results: what is finished.
        shares: finished share of each arm under way, by claim and name.
        reused: how many results came from disk.
    """

    arms: dict[int, list[Arm]]
    results: Results
    shares: dict[tuple[int, str], float] = field(default_factory=dict)
    reused: int = 0

    def done(self, number: int) -> float:
        """Finished share of a claim, by cost."""
        arms, results = self.arms[number], self.results[number]
        spent = sum(
            arm.cost * (1.0 if arm.name in results else self.shares.get((number, arm.name), 0.0))
            for arm in arms
        )
        return spent / sum(arm.cost for arm in arms)

    def finished(self, number: int) -> bool:
        """Whether all arms of a claim have a result."""
        return len(self.results[number]) == len(self.arms[number])

    @property
    def count(self) -> tuple[int, int]:
        """Arms with a result, and all arms."""
        return sum(map(len, self.results.values())), sum(map(len, self.arms.values()))


class Interrupted(Exception):  # noqa: N818  (the user's wish, not an error)
    """Ctrl-C: what is finished is kept.

    Args:
        work: how far it came.
    """

    def __init__(self, work: Work) -> None:
        super().__init__("interrupted")
        self.work = work


def measure(
    claims: Sequence[Claim],
    images: Images | None,
    store: Store,
    *,
    seed: int,
    fresh: bool,
    workers: int,
    watch: Watch,
) -> Work:
    """Bring all arms of some claims to their results.

    Args:
        claims: whose arms.
        images: for the claims that need them.
        store: where finished arms are kept, and taken from unless `fresh`.
        seed: of everything that is drawn.
        fresh: measure again what is on disk.
        workers: arms side by side, one core each.
        watch: called often with the state, in the calling thread.

    Returns:
        The finished work.

    Raises:
        Interrupted: Ctrl-C; finished arms are in the store.
    """
    digest = images.digest() if images is not None else None
    arms = {claim.number: claim.experiment.arms(claim.config, seed) for claim in claims}
    work = Work(arms, {number: {} for number in arms})
    jobs: list[tuple[Claim, Arm, dict[str, Any]]] = []
    for claim in claims:
        for arm in arms[claim.number]:
            facts = _facts(claim, arm, digest if claim.experiment.NEEDS_IMAGES else None)
            kept = None if fresh else store.get(facts)
            if kept is None:
                jobs.append((claim, arm, facts))
            else:
                work.results[claim.number][arm.name] = kept
                work.reused += 1
    # The longest first, so that no core waits for a long one at the end.
    jobs.sort(key=lambda job: -job[1].cost)
    _run(jobs, images, store, work, workers, watch)
    return work


def _facts(claim: Claim, arm: Arm, images: str | None) -> dict[str, Any]:
    """Everything that a result depends on."""
    return {
        "claim": claim.folder,
        "arm": arm.name,
        "config": dict(arm.config),
        "images": images,
        "code": claim.code,
        "fanin": fanin.__version__,
        "torch": torch.__version__,
        "stream": draw.STREAM_VERSION,
    }


def _run(
    jobs: Sequence[tuple[Claim, Arm, Mapping[str, Any]]],
    images: Images | None,
    store: Store,
    work: Work,
    workers: int,
    watch: Watch,
) -> None:
    stop = threading.Event()

    def do(claim: Claim, arm: Arm, facts: Mapping[str, Any]) -> None:
        place = (claim.number, arm.name)

        def tick(share: float) -> None:
            work.shares[place] = share
            if stop.is_set():
                raise Stopped

        with one_thread():
            tick(0.0)
            result = claim.experiment.measure(arm.config, images, tick)
        store.put(facts, result)
        # As a rerun would read it: the same numbers whether measured now or taken from disk.
        work.results[claim.number][arm.name] = store.get(facts) or result

    pool = ThreadPoolExecutor(workers)
    try:
        pending: set[Future[None]] = {pool.submit(do, *job) for job in jobs}
        watch(work)
        while pending:
            finished, pending = wait(pending, timeout=0.2, return_when=FIRST_EXCEPTION)
            watch(work)
            for future in finished:
                future.result()
    except KeyboardInterrupt:
        stop.set()
        pool.shutdown(cancel_futures=True)
        raise Interrupted(work) from None
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
