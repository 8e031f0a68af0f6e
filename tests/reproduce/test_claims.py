"""The five claims of the repository: their constants, and tiny runs of each from end to end."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from fanin.reproduce import experiments, figures
from fanin.reproduce.claim import Claim, Conclusion
from fanin.reproduce.images import Images, load
from fanin.reproduce.training import one_thread

ROOT = Path(__file__).resolve().parents[2] / "experiments"
CLAIMS = {claim.number: claim for claim in experiments.claims(ROOT)}
TINY: dict[int, dict[str, Any]] = {
    1: {"width": 60, "inputs": 4, "networks": 3, "depth": 10},
    2: {"width": 50, "inputs": 4, "networks": 8, "depth": 6},
    3: {"width": 8, "images": 300, "seeds": 2, "depths": [2, 10, 20], "epochs": [1, 1, 1]},
    4: {"images": 64, "shrink": 3, "steps": 4, "window": 2},
    5: {
        "width": 8,
        "images": 300,
        "activations": ["relu", "sigmoid"],
        "depths": [5, 50],
        "epochs": [1, 1],
        "rates": [[0.01], [0.01, 0.03]],
    },
}


@pytest.fixture(scope="module")
def mnist() -> Images:
    return load()


def results(number: int, images: Images, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """What the arms of a tiny run give, as a rerun would read it from disk."""
    claim = CLAIMS[number]
    config = {**claim.config, **TINY[number], **changes}
    with one_thread():
        found = {
            arm.name: claim.experiment.measure(arm.config, images, lambda share: None)
            for arm in claim.experiment.arms(config, seed)
        }
    return dict(json.loads(json.dumps(found, allow_nan=False)))


def concluded(number: int, images: Images, **changes: Any) -> Conclusion:
    config = {**CLAIMS[number].config, **TINY[number], **changes}
    found = results(number, images, **changes)
    return CLAIMS[number].experiment.conclude(config, found)


@pytest.mark.parametrize("number", TINY)
def test_a_tiny_run_ends_in_verdicts_values_and_figures(number: int, mnist: Images) -> None:
    conclusion = concluded(number, mnist)
    assert conclusion.lines
    for line in conclusion.lines:
        assert line.verdict in ("PASS", "FAIL", "REPORT")
        assert line.statement
        assert line.expected
        assert line.found
    assert json.loads(json.dumps(conclusion.values, allow_nan=False))
    for table in conclusion.tables:
        assert table.rows
        assert all(len(row) == len(table.columns) for row in table.rows)
    for picture in conclusion.pictures:
        assert picture.draw(figures.LIGHT).axes


@pytest.mark.parametrize("number", [1, 3, 4])
def test_the_seed_decides_the_result(number: int, mnist: Images) -> None:
    few = {3: {"depths": [2], "epochs": [1]}, 4: {"arms": ["centred"]}}.get(number, {})
    assert results(number, mnist, **few) == results(number, mnist, **few)
    assert results(number, mnist, **few) != results(number, mnist, seed=50, **few)


@pytest.mark.parametrize("mode", experiments.MODES)
def test_every_claim_has_both_modes_and_a_readme(mode: str) -> None:
    claims = experiments.claims(ROOT, mode)
    assert [claim.number for claim in claims] == [1, 2, 3, 4, 5]
    for claim in claims:
        arms = claim.experiment.arms(claim.config, 0)
        assert len({arm.name for arm in arms}) == len(arms)
        assert all(arm.cost > 0 for arm in arms)
        readme = (ROOT / claim.folder / "README.md").read_text()
        assert f"fanin reproduce --only {claim.number}" in readme
        for heading in ("## Claim", "## Command", "## Verdict"):
            assert heading in readme


def test_the_demo_is_sized_for_two_cores() -> None:
    seconds = sum(arm.cost for c in CLAIMS.values() for arm in c.experiment.arms(c.config, 0))
    assert 100 < seconds < 720


def test_claim_1_covers_at_least_fifteen_activations() -> None:
    assert len(CLAIMS[1].experiment.COVERED) >= 15  # type: ignore[attr-defined]


# q after 1, 10 and 50 layers of the paper's rule, from 1, to the digits of another derivation.
PREDICTED = {
    "tanh": (0.394, 0.0522, None),
    "sigmoid": (3.755, 4.535, 4.535),
    "softplus": (2.49, 68.2, 1.2e7),
    "elu": (0.645, 0.0594, 0.0027),
    "gelu": (1.70, 727.0, 8.0e14),
    "silu": (1.42, 326.0, 3.6e14),
    "mish": (None, 17.5, 8.8e6),
}


@pytest.mark.parametrize("name", PREDICTED)
def test_claim_1_predicts_the_published_course(name: str) -> None:
    found = CLAIMS[1].experiment.predicted(name, 50)  # type: ignore[attr-defined]
    for value, layer in zip(PREDICTED[name], (1, 10, 50), strict=True):
        if value is not None:
            assert found[layer - 1] == pytest.approx(value, rel=0.05 if layer == 50 else 0.005)


@pytest.mark.parametrize("number", [3, 4])
def test_the_released_code_as_keras_drew_it(number: int) -> None:
    """Keras's VarianceScaling(3.6), normal, cut at two sigmas without correction."""
    module: Any = CLAIMS[number].experiment
    assert pytest.approx(stats.truncnorm(-2, 2).var(), rel=1e-12) == module.CUT
    assert pytest.approx(2.785468692779724, rel=1e-12) == module.SCRIPT
    layer = nn.Linear(1000, 1000)
    generator = torch.Generator().manual_seed(0)
    if number == 3:
        module.write("script", layer, "hidden", generator)
    else:
        module.write_script(layer, "hidden", generator)
    weights = layer.weight.detach().double().numpy().ravel() * math.sqrt(1000)
    error = math.sqrt(2 / weights.size)
    assert abs(weights.var() / module.SCRIPT - 1) < 4 * error
    # The bound is where Keras had it: two of the sigmas before the cut.
    assert 0.98 < np.abs(weights).max() / (2 * math.sqrt(3.6)) <= 1 + 1e-6


def test_claim_3_draws_what_it_says() -> None:
    module: Any = CLAIMS[3].experiment
    expected = {
        "xavier": 1.0,
        "script": 2.7855,
        "kumar": 12.8,
        "second_moment": 3.4086,
        "centred": 23.0526,
    }
    for arm, variance in expected.items():
        layer = nn.Linear(500, 500)
        nn.init.zeros_(layer.bias)
        module.write(arm, layer, "hidden", torch.Generator().manual_seed(1))
        found = 500 * float(layer.weight.detach().double().var())
        assert abs(found / variance - 1) < 4 * math.sqrt(2 / 250_000)
        shift = -0.5 * layer.weight.sum(1) if arm == "centred" else torch.zeros(500)
        torch.testing.assert_close(layer.bias, shift, rtol=0, atol=1e-4)
        last = nn.Linear(500, 500)
        module.write(arm, last, "last", torch.Generator().manual_seed(1))
        assert abs(500 * float(last.weight.detach().double().var()) - 1) < 4 * math.sqrt(
            2 / 250_000
        )


def test_claim_4_is_the_network_of_the_public_script() -> None:
    module: Any = CLAIMS[4].experiment
    model = module.initialised("glorot", (3, 32, 32), 0)
    assert sum(p.numel() for p in model.parameters()) == 501_258
    convolutions = [layer for layer in model if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [32] * 3 + [64] * 3 + [128] * 3
    for layer in convolutions:
        fan_sum = 9 * (layer.in_channels + layer.out_channels)
        found = float(layer.weight.detach().double().var()) * fan_sum / 2
        assert abs(found / 0.7737413035499232 - 1) < 5 * math.sqrt(2 / layer.weight.numel())
    dense = model[-1]
    assert float(dense.weight.detach().abs().max()) <= math.sqrt(6 / (2048 + 10))


def test_claim_4_needs_top_5_to_hold_top_1(mnist: Images) -> None:
    for run in results(4, mnist).values():
        assert run["steps"] == 4
        assert all(
            0 <= one <= five <= 1 for one, five in zip(run["top1"], run["top5"], strict=True)
        )


def verdicts(number: int, found: dict[str, Any], **changes: Any) -> list[str]:
    config = {**CLAIMS[number].config, **TINY[number], **changes}
    return [line.verdict for line in CLAIMS[number].experiment.conclude(config, found).lines]


def run3(final: float) -> dict[str, Any]:
    return {"rate": 0.1, "tried": [], "final": [final] * 2, "curves": [], "loss": []}


def test_claim_3_fails_when_the_numbers_disagree() -> None:
    depths = [5, 10, 20]
    accuracy = {"xavier": 0.1, "script": 0.1, "kumar": 0.5, "second_moment": 0.1, "centred": 0.9}

    def made(**changes: float) -> dict[str, Any]:
        now = {**accuracy, **changes}
        runs = {f"{arm}, depth {d}": run3(now[arm]) for arm in accuracy for d in depths}
        runs["kumar, depth 20"] = run3(min(now["kumar"], 0.1))
        return runs

    said = {"depths": depths}
    assert verdicts(3, made(), **said) == ["PASS", "PASS", "REPORT"]
    assert verdicts(3, made(kumar=0.1), **said) == ["FAIL", "PASS", "REPORT"]
    assert verdicts(3, made(centred=0.85), **said) == ["PASS", "FAIL", "REPORT"]
    assert verdicts(3, made(script=0.25), **said) == ["PASS", "FAIL", "REPORT"]


def test_claim_5_fails_when_one_activation_does_not_train() -> None:
    def made(worst: float) -> dict[str, Any]:
        return {
            f"{f}, depth 50, {arm}": run3(0.3 if arm == "second_moment" else score)
            for f, score in (("relu", 0.9), ("sigmoid", worst))
            for arm in ("second_moment", "shaped")
        }

    assert verdicts(5, made(0.81), depths=[50]) == ["PASS", "PASS"]
    assert verdicts(5, made(0.80), depths=[50]) == ["FAIL", "PASS"]
    assert verdicts(5, made(0.25), depths=[50]) == ["FAIL", "FAIL"]


def test_claim_2_fails_when_the_factor_is_wrong(mnist: Images) -> None:
    found = results(2, mnist)
    swapped = {
        name.replace("xavier", "x").replace("kumar", "xavier").replace("x,", "kumar,"): run
        for name, run in found.items()
    }
    assert verdicts(2, found)[:1] == ["PASS"]
    assert "FAIL" in verdicts(2, swapped)


def test_claims_are_loaded_by_path_and_never_imported() -> None:
    assert isinstance(CLAIMS[1], Claim)
    source = Path(experiments.__file__).parent.parent
    guilty = [
        str(path)
        for path in source.rglob("*.py")
        if "import experiments" in path.read_text() and path.parent.name not in ("reproduce", "cli")
    ]
    assert not guilty
