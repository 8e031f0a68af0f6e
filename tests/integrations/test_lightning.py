"""The callback in a real Lightning Trainer: checks, changes nothing, stops if it is told to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fanin.errors import ArgumentError, UnhealthyError

lightning = pytest.importorskip("lightning.pytorch")
from fanin.integrations.lightning import InitCheck  # noqa: E402


class Classifier(lightning.LightningModule):  # type: ignore[misc, name-defined]
    """A small or a hopeless network."""

    def __init__(self, deep: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [p for _ in range(24 if deep else 1) for p in (nn.Linear(16, 16), nn.Sigmoid())]
        self.net = nn.Sequential(*layers, nn.Linear(16, 4))

    def forward(self, x: torch.Tensor) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, index: int) -> Any:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(model: Any, path: Path, *callbacks: Any, steps: int = 7) -> None:
    torch.manual_seed(1)
    data = torch.utils.data.TensorDataset(torch.randn(112, 16), torch.randint(4, (112,)))
    trainer = lightning.Trainer(
        max_steps=steps,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=path,
    )
    trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=16, shuffle=True))


def test_training_is_the_same_with_the_callback(tmp_path: Path) -> None:
    plain, checked = Classifier(), Classifier()
    callback = InitCheck(loss="ce", every=3)
    fit(plain, tmp_path)
    fit(checked, tmp_path, callback)
    for a, b in zip(plain.parameters(), checked.parameters(), strict=True):
        assert torch.equal(a, b)
    assert callback.report is not None
    assert callback.report.verdict == "PASS"
    assert [step for step, _ in callback.history] == [0, 3, 6]
    measured = callback.history[1][1].measured
    assert measured is not None
    assert [r.kind for r in measured.layers] == ["linear", "activation", "linear"]
    assert all(w.gradient for w in measured.weights.values())


def test_it_stops_a_hopeless_run_where_it_is_told_to(tmp_path: Path) -> None:
    with pytest.raises(
        UnhealthyError, match=r"^fanin.check: CHK101 vanishing-signal at net.\d+: Van"
    ):
        fit(Classifier(deep=True), tmp_path, InitCheck(loss="ce", on_fail="raise"))
    logged = InitCheck(loss="ce")
    fit(Classifier(deep=True), tmp_path, logged, steps=1)
    assert logged.report is not None
    assert logged.report.verdict == "FAIL"


def test_bad_argument() -> None:
    with pytest.raises(ArgumentError) as caught:
        InitCheck(on_fail="explode")
    assert str(caught.value) == "InitCheck(on_fail): expected log or raise, got 'explode'"
