"""The verdicts of `check`: the named acceptance cases, and each rule on both sides of its limit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.planning import networks
from torch import nn

import fanin
from fanin.errors import ArgumentTypeError, UnknownNameError
from fanin.report.findings import CAUSES_FIRST, CHECKS
from fanin.report.report import Report
from fanin.report.rules.units import silent_by_chance
from fanin.report.view import KURTOSIS, View
from fanin.torch.probing.measure import measure

ACTIVATIONS = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


def plain(depth: int, act: type[nn.Module], width: int = 256, inputs: int = 784) -> nn.Sequential:
    parts: list[nn.Module] = [nn.Linear(inputs, width), act()]
    for _ in range(depth - 2):
        parts += [nn.Linear(width, width), act()]
    return nn.Sequential(*parts, nn.Linear(width, 10))


def names(report: Report) -> dict[str, str]:
    return {f.name: f.severity for f in report.findings}


def first_lost(model: nn.Sequential, x: torch.Tensor, limit: float = 2**-10) -> str:
    """The first linear layer whose output differs between samples by less than the limit."""
    with torch.no_grad():
        for name, layer in model.named_children():
            x = layer(x)
            if isinstance(layer, nn.Linear) and x.double().std(0).square().mean().sqrt() < limit:
                return name
    raise AssertionError("no layer loses the signal")


class Mixer(nn.Module):
    """A branch of matrices of very different fans, as those of state space models."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(128)
        self.into, self.low = nn.Linear(128, 128), nn.Linear(128, rank)
        self.high, self.out = nn.Linear(rank, 128), nn.Linear(128, 128)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.into(self.norm(x)))
        return x + self.out(h * torch.sigmoid(self.high(self.low(h))))


@pytest.mark.parametrize("rank", [4, 8, 16])
def test_a_std_that_follows_the_fan_is_no_depth_scaling(rank: int) -> None:
    torch.manual_seed(0)
    blocks = [Mixer(rank) for _ in range(128 // rank)]  # so that the ratio is 1/sqrt(branches)
    report = fanin.check(nn.Sequential(*blocks), torch.randn(32, 128))
    assert "depth-scaling" not in names(report)


@pytest.mark.parametrize("act", [nn.ReLU6, nn.Tanhshrink, nn.Softshrink, nn.Hardtanh])
def test_flat_by_nature_is_not_the_cause(act: type[nn.Module]) -> None:
    """These are flat where the signal vanishes: at 0, or for every other value."""
    torch.manual_seed(0)
    first = fanin.check(plain(50, act), torch.randn(128, 784), "ce").findings[0]
    assert (first.severity, first.name) == ("FAIL", "vanishing-signal")


def test_a_rectifier_with_a_ceiling_is_not_saturated_at_its_own_gain() -> None:
    torch.manual_seed(0)
    model = plain(20, nn.ReLU6)
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                layer.bias.zero_()
    assert fanin.check(model, torch.randn(128, 784), "ce").verdict == "PASS"


@pytest.mark.parametrize("depth", [20, 50])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_default_init_of_a_deep_plain_network_fails_and_init_mends_it(
    name: str, depth: int
) -> None:
    torch.manual_seed(0)
    model = plain(depth, ACTIVATIONS[name])
    x = torch.randn(128, 784)
    report = fanin.check(model, x, "ce")
    first = report.findings[0]
    assert report.verdict == "FAIL"
    assert first.name == "vanishing-signal"
    assert "Vanishing" in first.cause
    # check looks at 32 of the samples: its std is known to 4 / sqrt(2 * 31 * 256) at best, and
    # inputs differ in norm; a tenth either way is what the limit may be off by.
    assert first.where in {first_lost(model, x, limit * 2**-10) for limit in (0.9, 1.0, 1.1)}
    assert f'fanin.gain("{name}"' in first.fix
    fanin.init_(model, x)
    after = fanin.check(model, x, "ce")
    assert after.verdict == "PASS" or (
        depth == 50
        and name in ("gelu", "silu")
        and names(after) == {"unstable-fixed-point": "WARN"}
    ), str(after)


@pytest.mark.parametrize("seed", range(3))
def test_the_right_gain_passes_and_a_gain_off_by_half_fails(seed: int) -> None:
    for factor, verdict in ((1.0, "PASS"), (0.5, "FAIL"), (2.0, "FAIL")):
        torch.manual_seed(seed)
        model = plain(32, nn.ReLU)
        for layer in model:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=factor * math.sqrt(2 / layer.in_features))
                nn.init.zeros_(layer.bias)
        assert fanin.check(model, torch.randn(64, 784)).verdict == verdict


def test_tied_embedding_from_a_unit_normal() -> None:
    class Tied(nn.Module):
        def __init__(self, std: float) -> None:
            super().__init__()
            self.embed, self.norm = nn.Embedding(5000, 512), nn.LayerNorm(512)
            self.mix = nn.Linear(512, 512)  # else each token would predict itself
            self.head = nn.Linear(512, 5000, bias=False)
            self.head.weight = self.embed.weight
            nn.init.normal_(self.embed.weight, std=std)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.mix(self.embed(tokens))))

    torch.manual_seed(0)
    tokens = torch.randint(5000, (16, 16))
    report = fanin.check(Tied(1.0), tokens, "ce")
    finding = report.findings[0]
    assert (finding.name, finding.severity, finding.where) == ("start-loss", "FAIL", "head")
    assert "expected 8.517 (ln 5000)" in finding.number
    assert float(finding.number.split()[1].rstrip(",")) == pytest.approx(83.9, rel=0.05)
    assert "tied embedding" in finding.cause
    assert "use 1/sqrt(fan_in) = 0.0442" in finding.cause
    after = fanin.check(Tied(512**-0.5), tokens, "ce")
    assert after.verdict == "PASS"
    assert after.measured is not None
    assert after.measured.loss is not None
    assert after.measured.loss.value == pytest.approx(math.log(5000) + 0.5, rel=0.1)


@pytest.mark.parametrize(
    ("scaled", "found"),
    [
        ((), "residual-growth"),
        (("w2",), None),
        (("w3",), "depth-scaling"),
        (("w2", "w3"), "depth-scaling"),
    ],
)
def test_depth_scaling_of_a_swiglu_stack(scaled: tuple[str, ...], found: str | None) -> None:
    from tests_gallery import SwiGLU  # the gallery's blocks, see conftest

    torch.manual_seed(0)
    report = fanin.check(SwiGLU(32).scale_(*scaled), torch.randn(16, 4, 256))
    assert names(report) == ({found: "WARN"} if found else {})
    if scaled == ("w3",):
        assert "non-residual projection" in report.findings[0].cause
    if scaled == ("w2", "w3"):
        assert "Double depth scaling" in report.findings[0].cause
    if not scaled:  # 12.1 is the reported growth
        growth = float(report.findings[0].number.split()[3])
        assert growth == pytest.approx(12.1, rel=0.05)


@pytest.mark.parametrize(
    ("scaled", "words"),
    [
        (("o", "w2"), None),
        (("o", "w3"), "non-residual projection: 0.w3 is scaled down"),
        (("o", "w2", "w3"), "Double depth scaling: 0.w3, 0.w2"),
    ],
)
def test_depth_scaling_of_the_mlps_beside_attentions(
    scaled: tuple[str, ...], words: str | None
) -> None:
    """Attentions scaled as they should be do not hide MLPs that are not: torchtitan#3334."""
    torch.manual_seed(0)
    model = nn.Sequential(*[networks.Block(64, 172) for _ in range(16)])
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            small = name.split(".")[1] in scaled
            nn.init.normal_(weight, 0.0, 0.16 / math.sqrt(32) if small else 0.16)
    x = torch.randn(16, 8, 64)
    for report in (fanin.check(model, x), fanin.audit(model, inputs=x)):
        causes = [f.cause for f in report.findings if f.name == "depth-scaling"]
        assert len(causes) == (words is not None)
        if words is not None:
            assert words in causes[0]


def test_batch_of_one_is_too_small_to_say() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    report = fanin.check(net, torch.randn(1, 8))
    assert names(report) == {"batch-too-small": "NOTE"}
    assert report.findings[0].cause == "One sample cannot show whether inputs are told apart."
    assert report.verdict == "PASS"


def test_equal_samples_and_few_samples() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    same = fanin.check(net, torch.randn(1, 8).repeat(16, 1))
    assert "variance over samples 0" in same.findings[0].number
    few = fanin.check(net, torch.randn(4, 8))
    assert "standard error of 82%" in few.findings[0].number
    assert names(fanin.check(net, torch.randn(8, 8))) == {}


def test_input_scale() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 1))
    assert names(fanin.check(net, torch.rand(32, 4) * 255))["input-scale"] == "WARN"
    assert "normalize to [-1, 1]" in fanin.check(net, torch.rand(32, 4) * 255).findings[0].fix
    assert names(fanin.check(net, torch.randn(32, 4) * 8.0)) == {}
    normed = nn.Sequential(nn.Linear(4, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 1))
    assert names(fanin.check(normed, torch.rand(32, 4) * 255)) == {}


def test_nonfinite_names_the_first_layer_and_the_source() -> None:
    class Root(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x).pow(-0.5)

    net = nn.Sequential(nn.Linear(8, 8), Root(), nn.Linear(8, 2))
    made = fanin.check(net, torch.randn(16, 8)).findings[0]
    assert (made.name, made.where, made.severity) == ("nonfinite", "1#2", "FAIL")
    given = fanin.check(net, torch.full((16, 8), math.nan)).findings[0]
    assert given.cause == "The input holds NaN or infinity."
    nn.init.constant_(net[2].weight, math.inf)
    weight = fanin.check(net, torch.randn(16, 8)).findings[0]
    assert weight.where == "2.weight"


def test_a_mask_of_minus_infinity_is_none_that_breaks() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits, self.bound = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            far = torch.ones(8, 8).triu(1).bool()
            masked = self.bound(x).masked_fill(far, -math.inf)
            return (self.logits(x) + masked).softmax(-1)

    net = nn.Sequential(nn.Linear(8, 8), Masked(), nn.Linear(8, 2))
    assert "nonfinite" not in names(fanin.check(net, torch.randn(16, 8, 8)))


def test_all_frozen_is_a_note() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).requires_grad_(False)
    assert names(fanin.check(net, torch.randn(16, 8))) == {"gradient-stops": "NOTE"}


def test_exploding_gradient_of_plain_batch_norm() -> None:
    """Batch norm without skips multiplies squared gradients by pi/(pi - 1) at each ReLU layer."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for _ in range(80):
        parts += [nn.Linear(256, 256), nn.BatchNorm1d(256), nn.ReLU()]
    report = fanin.check(nn.Sequential(*parts, nn.Linear(256, 10)), torch.randn(128, 256))
    found = names(report)
    assert "exploding-gradient" in found
    assert "vanishing-signal" not in found
    cause = next(f.cause for f in report.findings if f.name == "exploding-gradient")
    growth = float(cause.split("gradient by ")[1].split()[0])
    assert growth == pytest.approx(math.sqrt(math.pi / (math.pi - 1)), rel=0.06)


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.8, 0.99])
@pytest.mark.parametrize("samples", [2, 8, 32])
def test_units_silent_by_chance_against_simulation(correlation: float, samples: int) -> None:
    generator = torch.Generator().manual_seed(samples)
    units = 200_000
    shared = torch.randn(units, 1, generator=generator)
    own = torch.randn(units, samples, generator=generator)
    z = math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own
    share = float((z < 0).all(1).double().mean())
    expected = silent_by_chance(correlation, samples)
    error = math.sqrt(max(expected * (1 - expected), 1 / units) / units)
    assert abs(share - expected) < 4 * error


def test_the_allowance_for_chance_follows_depth_and_width() -> None:
    """4 sqrt(5 sum 1/n): the log second moment of He networks stays inside it in 200 draws."""
    logs = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        x = torch.randn(64, generator=generator)
        for _ in range(20):
            w = torch.randn(64, 64, generator=generator) * math.sqrt(2 / 64)
            x = torch.relu(w @ x)
        logs.append(math.log(float(x.square().mean())))
    variance = float(torch.tensor(logs).var())
    error = math.sqrt(2 / 199)
    assert variance < KURTOSIS * 20 / 64 * (1 + 4 * error)
    model = plain(21, nn.ReLU, width=64, inputs=64)
    view = View(measure(model, torch.randn(32, 64)))
    assert view.fluctuation == pytest.approx(4 * math.sqrt(KURTOSIS * 20 / 64))


def test_rules_can_be_silenced_by_id_name_and_place() -> None:
    torch.manual_seed(0)
    model, x = plain(20, nn.Sigmoid), torch.randn(64, 784)
    assert "vanishing-signal" not in names(fanin.check(model, x, ignore=["CHK101"]))
    assert "vanishing-signal" not in names(fanin.check(model, x, ignore=["vanishing-signal:8"]))
    assert "vanishing-signal" in names(fanin.check(model, x, ignore=["CHK101:9"]))
    with pytest.raises(UnknownNameError) as caught:
        fanin.check(model, x, ignore=["CHK999"])
    assert (
        str(caught.value) == "ignore: expected ids or names of rules such as CHK110, got 'CHK999'"
    )
    with pytest.raises(ArgumentTypeError, match=r"write \['CHK101'\]$"):
        fanin.check(model, x, ignore="CHK101")


def test_every_rule_has_a_place_in_the_ranking_and_a_page() -> None:
    from pathlib import Path

    from fanin.report.findings import AUDITS

    pages = Path(__file__).resolve().parents[2] / "docs" / "rules"
    for rule in (*CHECKS.values(), *AUDITS.values()):
        assert rule.name in CAUSES_FIRST
        text = (pages / f"{rule.id}.md").read_text(encoding="utf-8")
        assert text.startswith(f"# {rule.id} {rule.name}\n")
        assert "## Why this limit" in text


def test_a_data_parallel_wrapper_is_taken_off() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    report = fanin.check(nn.DataParallel(net), torch.randn(16, 8))
    assert report.measured is not None
    assert [row.name for row in report.measured.layers] == ["0", "1", "2"]
    assert "the module inside DataParallel was run" in report.measured.notes


def test_the_same_report_twice() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> Any:
            return self.fc(x + 0.1 * torch.randn_like(x))

    model, x = Noisy(), torch.randn(16, 8)
    assert fanin.check(model, x).to_json() == fanin.check(model, x).to_json()


class Normalized(nn.Module):
    """Between two layers an RMS norm of four units, written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.small, self.last = nn.Linear(64, 64), nn.Linear(64, 4), nn.Linear(4, 8)
        for layer in (self.first, self.small, self.last):
            nn.init.normal_(layer.weight, std=fanin.gain("silu") / layer.in_features**0.5)
            nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.small(nn.functional.silu(self.first(x)))
        return self.last(h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6))


def test_the_square_inside_a_norm_is_no_unstable_activation() -> None:
    torch.manual_seed(0)
    report = fanin.check(Normalized(), torch.randn(64, 64))
    assert "unstable-fixed-point" not in names(report), str(report)
