"""A small GPT on the letters of a book, with layer norms and without."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from benchmarks.trainability.cells import Cell
from benchmarks.trainability.starts import start
from torch import Tensor, nn

TEXT = Path(__file__).parent / "text" / "alice.txt"
CONTEXT = 64
_EVERY = 100  # steps from one look at the held-out text to the next
_HEADS = 4


class Block(nn.Module):
    """Causal attention and a feed-forward layer, each added to what it reads.

    Args:
        width: of the stream.
        norms: whether each branch normalises what it reads.
    """

    def __init__(self, width: int, norms: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width) if norms else nn.Identity()
        self.norm2 = nn.LayerNorm(width) if norms else nn.Identity()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, _HEADS, d // _HEADS).unbind(2)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """Predicts the next letter.

    Args:
        letters: how many there are.
        width: of the stream.
        depth: blocks.
        norms: in every block and before the head.
    """

    def __init__(self, letters: int, width: int, depth: int, norms: bool) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(letters, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(Block(width, norms) for _ in range(depth))
        self.norm = nn.LayerNorm(width) if norms else nn.Identity()
        self.head = nn.Linear(width, letters)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


@dataclass(frozen=True)
class Text:
    """Letters as numbers: nine tenths to train on, the last tenth held out."""

    train: Tensor
    held: Tensor
    letters: int

    def lines(self, count: int, generator: torch.Generator) -> Tensor:
        """Pieces of the training text, each one letter longer than the context."""
        at = torch.randint(len(self.train) - CONTEXT, (count,), generator=generator)
        return self.train[at[:, None] + torch.arange(CONTEXT + 1)]


@functools.cache
def text() -> Text:
    """The book."""
    letters = TEXT.read_bytes().decode("ascii").replace("\r\n", "\n")
    table = {letter: i for i, letter in enumerate(sorted(set(letters)))}
    ids = torch.tensor([table[letter] for letter in letters])
    cut = len(ids) * 9 // 10
    return Text(ids[:cut], ids[cut:], len(table))


def model(cell: Cell, seed: int) -> GPT:
    """One network, started."""
    how = start(cell.start)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = GPT(text().letters, cell.width, cell.depth, cell.family == "gpt")
    if how.write is not None:
        lines = text().lines(cell.batch, torch.Generator().manual_seed(0))
        how.write(made, lines[:, :-1], cell.activation, seed)
    return made


def measure(cell: Cell) -> dict[str, Any]:
    """Train the networks of a cell on text: the rate is chosen by the first seed's held-out loss.

    Returns:
        `rate`, `tried`, and of each seed `final` and `curves`: the loss on held-out text.
    """
    first = cell.seeds[0]
    tried = {rate: train(model(cell, first), rate, first, cell) for rate in cell.rates}
    best = min(tried, key=lambda rate: tried[rate][-1])
    curves = [tried[best]]
    curves += [train(model(cell, seed), best, seed, cell) for seed in cell.seeds[1:]]
    return {
        "rate": best,
        "tried": [[rate, _finite(curve[-1])] for rate, curve in tried.items()],
        "final": [_finite(curve[-1]) for curve in curves],
        "curves": [[_finite(x) for x in curve] for curve in curves],
    }


def train(made: GPT, rate: float, seed: int, cell: Cell) -> list[float]:
    """Adam, 100 steps of warm-up, a rate that falls to 0 over the second half.

    Returns:
        Loss on the held-out text, every 100 steps; infinite where it is not a number.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(made.parameters(), lr=rate)
    curve = []
    for step in range(cell.epochs):
        share = min(1.0, (step + 1) / 100, 2 * (1 - step / cell.epochs))
        optimizer.param_groups[0]["lr"] = rate * share
        lines = text().lines(cell.batch, generator)
        loss = F.cross_entropy(made(lines[:, :-1]).flatten(0, 1), lines[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        if cell.clip is not None:
            nn.utils.clip_grad_norm_(made.parameters(), cell.clip)
        optimizer.step()
        if (step + 1) % _EVERY == 0 or step + 1 == cell.epochs:
            curve.append(held_out(made))
    return curve


def held_out(made: GPT) -> float:
    """Mean loss of a letter of the held-out text."""
    count = (len(text().held) - 1) // CONTEXT
    x, y = (text().held[i : i + count * CONTEXT].view(count, CONTEXT) for i in (0, 1))
    with torch.no_grad():
        loss = F.cross_entropy(made(x).flatten(0, 1), y.flatten()).item()
    return loss if math.isfinite(loss) else math.inf


def _finite(x: float) -> float | None:
    return round(x, 4) if math.isfinite(x) else None
