"""The findings of `audit`, each on a model that has the fault and one that has not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests_gallery import GPT, SwiGLU
from torch import nn

import fanin
from fanin.errors import ArgumentTypeError, DataError
from fanin.report.audit_view import AuditView
from fanin.report.findings import AUDITS
from fanin.report.report import Report
from fanin.torch.provenance.inventory import inventory


def found(report: Report) -> dict[str, str]:
    return {f.name: f.severity for f in report.findings if f.severity != "NOTE"}


def test_a_recorded_model_that_is_as_asked_has_no_finding() -> None:
    with fanin.recording():
        model = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Flatten(), nn.Linear(16, 4)
        )
        nn.init.kaiming_normal_(model[0].weight, nonlinearity="relu")
    report = fanin.audit(model)
    assert report.verdict == "PASS"
    assert report.notes == ()
    first = report.tensors[0]
    assert (first.name, first.looks, first.fan_in) == ("0.weight", "normal", 27)
    assert first.source.startswith("kaiming_normal_ (")
    assert first.asked_std == pytest.approx(math.sqrt(2 / 27))


def test_a_rule_that_matched_nothing_and_the_glob_that_does() -> None:
    model = GPT(12, 64, 4, 100, 16)
    std = 0.02 / math.sqrt(24)
    wrong = fanin.audit(model, rules={"c_proj.weight": std})
    assert found(wrong) == {"rule-never-matched": "FAIL"}
    assert wrong.findings[0].number == (
        "rule matched 0 of 24 tensors; did you mean `*.c_proj.weight`?"
    )
    right = fanin.audit(model, rules={"*.c_proj.weight": std})
    assert found(right) == {}
    stds = [t.std for t in right.tensors if t.name.endswith("c_proj.weight")]
    assert len(stds) == 24
    assert sum(stds) / 24 == pytest.approx(0.00408, rel=0.02)
    other = fanin.audit(model, rules={"*.c_proj.weight": 0.02})
    assert found(other) == {"std-not-as-asked": "WARN"}


def test_a_plan_as_what_was_meant() -> None:
    model, x = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)), torch.randn(16, 64)
    plan = fanin.init_(model, x)
    assert found(fanin.audit(model, plan=plan)) == {}
    with torch.no_grad():
        model[0].weight.mul_(1.2)
    assert found(fanin.audit(model, plan=plan)) == {"std-not-as-asked": "WARN"}


@pytest.mark.parametrize(("factor", "expected"), [(1.0, {}), (1.05, {"std-not-as-asked": "WARN"})])
def test_std_not_as_asked_by_a_write_that_torch_does_not_see(
    factor: float, expected: dict[str, str]
) -> None:
    torch.manual_seed(0)
    with fanin.recording():
        model = nn.Sequential(nn.Linear(256, 256))
        nn.init.normal_(model[0].weight, std=0.1)
    values = model[0].weight.detach().numpy()
    values *= factor
    assert found(fanin.audit(model)) == expected


def test_duplicates_within_and_between_tensors() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    finding = fanin.audit(encoder).findings[0]
    assert (finding.name, finding.severity) == ("duplicate-values", "WARN")
    assert "layers.0.self_attn.in_proj_weight, layers.1.self_attn.in_proj_weight" in finding.number
    rows = nn.Sequential(nn.Linear(4, 8))
    with torch.no_grad():
        rows[0].weight.copy_(torch.randn(1, 4).expand(8, 4))
    assert found(fanin.audit(rows)) == {"duplicate-values": "FAIL"}
    plain = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.LayerNorm(4))
    assert found(fanin.audit(plain)) == {}  # ones and zeros agree on purpose


def test_a_table_is_no_duplicate() -> None:
    """The log of 1..n in each row and each layer, as state space models start."""
    rows = torch.arange(1.0, 17.0).log().expand(32, 16)
    model = nn.ParameterList([nn.Parameter(rows.clone()) for _ in range(3)])
    assert found(fanin.audit(model)) == {}
    shuffled = rows[:, torch.randperm(16, generator=torch.Generator().manual_seed(0))]
    drawn = nn.ParameterList([nn.Parameter(shuffled.clone()) for _ in range(3)])
    assert "duplicate-values" in found(fanin.audit(drawn))


def test_a_frozen_copy_is_no_duplicate() -> None:
    import copy

    online = nn.Linear(8, 8)
    both = nn.ModuleDict({"online": online, "target": copy.deepcopy(online).requires_grad_(False)})
    assert found(fanin.audit(both)) == {}


@pytest.mark.parametrize(("same", "expected"), [(True, ["FAIL"]), (False, [])])
def test_equal_shards_on_different_ranks(same: bool, expected: list[str]) -> None:
    held = inventory(nn.Linear(8, 8))
    shards = {(0,): "aa", (1,): "aa" if same else "bb"}
    view = AuditView(held, ranks={"weight": shards})
    findings = list(AUDITS["AUD204"].look(view))
    assert [f.severity for f in findings] == expected


def test_memory_that_nothing_wrote_after_meta() -> None:
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.norm = nn.Linear(8, 8), nn.RMSNorm(8)
            self.attention = nn.MultiheadAttention(8, 2)
            self.register_buffer("inv_freq", 1 / 10 ** torch.arange(4), persistent=False)

    with fanin.recording():
        with torch.device("meta"):
            model = Part()
        on_meta = fanin.audit(model)
        model.to_empty(device="cpu")
        with torch.no_grad():  # what the allocator may have left there
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.numpy()[...] = 7.7
        model.fc.reset_parameters()
    assert found(on_meta) == {"buffer-lost-on-meta": "FAIL", "never-initialized": "FAIL"}
    report = fanin.audit(model)
    assert found(report) == {"buffer-lost-on-meta": "FAIL", "never-initialized": "FAIL"}
    unset = next(f for f in report.findings if f.name == "never-initialized")
    assert "5 tensors: norm.weight, attention.in_proj_weight" in unset.number
    assert report.findings[0].where == "inv_freq"


def test_partly_written_memory_and_strange_values() -> None:
    with fanin.recording():
        model = nn.Module()
        model.w = nn.Parameter(torch.empty(4, 4))
        with torch.no_grad():
            model.w[:2].normal_()
            model.w.numpy()[2:] = 0.1
    assert "8 of 16 elements were written" in fanin.audit(model).findings[0].cause
    strange = nn.Linear(4, 4)
    nn.init.constant_(strange.weight[0], 3.5e30)
    assert found(fanin.audit(strange)) == {"never-initialized": "WARN"}


def test_general_over_special_is_a_loss_and_special_over_general_is_not() -> None:
    def build(special_last: bool) -> nn.Module:
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))

        def general() -> None:
            for layer in model:
                nn.init.normal_(layer.weight, std=0.02)

        def special() -> None:
            nn.init.normal_(model[1].weight, std=0.004)

        for step in (general, special) if special_last else (special, general):
            step()
        return model

    with fanin.recording():
        lost, refined = build(special_last=False), build(special_last=True)
    report = fanin.audit(lost)
    assert found(report) == {"overwritten-by": "WARN"}
    assert "N(0, 0.004²)" in report.findings[0].cause
    assert found(fanin.audit(refined)) == {}


@pytest.mark.parametrize(
    ("build", "call", "ratio"),
    [
        (lambda: nn.ConvTranspose2d(128, 16, 4, 2, 1), {}, math.sqrt(512 / 256)),
        (lambda: nn.Conv2d(64, 64, 3, groups=64), {"mode": "fan_out"}, 1 / 8),
        (lambda: nn.Conv2d(16, 16, 3), {}, None),
        (lambda: nn.Linear(16, 48), {"mode": "fan_out"}, None),
    ],
)
def test_fans_as_the_layer_sums_them(build: Any, call: dict[str, str], ratio: float | None) -> None:
    with fanin.recording():
        layer = build()
        nn.init.kaiming_normal_(layer.weight, **call)
    report = fanin.audit(layer)
    if ratio is None:
        assert found(report) == {}
    else:
        assert found(report) == {"fan-not-as-meant": "WARN"}
        assert f"std {ratio:.3g} times what was meant" in report.findings[0].number


@pytest.mark.parametrize(
    ("bounds", "expected"), [((-0.04, 0.04), {"truncation-changes-std": "WARN"}), ((-2.0, 2.0), {})]
)
def test_truncation(bounds: tuple[float, float], expected: dict[str, str]) -> None:
    with fanin.recording():
        layer = nn.Linear(128, 128)
        nn.init.trunc_normal_(layer.weight, std=0.02, a=bounds[0], b=bounds[1])
    report = fanin.audit(layer)
    assert found(report) == expected
    if expected:
        assert report.findings[0].number.startswith("0.880 of what was asked")


@pytest.mark.parametrize(
    ("scaled", "words", "severity"),
    [
        ((), "No depth scaling", "NOTE"),
        (("w2",), None, None),
        (("w3",), "non-residual projection", "WARN"),
        (("w2", "w3"), "Double depth scaling", "WARN"),
    ],
)
def test_depth_scaling_by_names_and_shapes(
    scaled: tuple[str, ...], words: str | None, severity: str | None
) -> None:
    findings = fanin.audit(SwiGLU(16).scale_(*scaled)).findings
    if words is None:
        assert findings == ()
    else:
        assert (findings[0].name, findings[0].severity) == ("depth-scaling", severity)
        assert words in findings[0].cause


def test_depth_scaling_measured_where_inputs_are_given() -> None:
    torch.manual_seed(0)
    report = fanin.audit(SwiGLU(32), inputs=torch.randn(8, 4, 256))
    assert found(report) == {"depth-scaling": "WARN"}
    assert "residual stream grows" in report.findings[0].cause


def test_zero_pairs_by_name_and_by_measurement() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lora_A, self.lora_B = nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)
            nn.init.zeros_(self.lora_B.weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.lora_B(self.lora_A(x))

    model = Named()
    assert found(fanin.audit(model)) == {}
    nn.init.zeros_(model.lora_A.weight)
    assert found(fanin.audit(model)) == {"all-zero-pair": "FAIL"}
    assert found(fanin.audit(model, inputs=torch.randn(8, 8))) == {"all-zero-pair": "FAIL"}


def test_a_checkpoint_of_transformers_where_only_new_tensors_count(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=2,
        n_embd=32,
        n_head=2,
        vocab_size=64,
        n_positions=16,
        pad_token_id=0,
        num_labels=3,
        bos_token_id=0,
        eos_token_id=0,
    )
    with fanin.recording():
        base = transformers.GPT2Model(config)
    built = fanin.audit(base)
    assert found(built) == {}
    wte = next(t for t in built.tensors if t.name == "wte.weight")
    assert wte.asked == "N(0, 0.02²)"
    assert "normal_" in wte.source
    with torch.no_grad():
        base.h[1].mlp.c_fc.weight.copy_(
            base.h[0].mlp.c_fc.weight
        )  # trained weights may be anything
    base.save_pretrained(tmp_path)
    with fanin.recording():
        model = transformers.GPT2ForSequenceClassification.from_pretrained(tmp_path)
    report = fanin.audit(model)
    assert found(report) == {}
    assert [t.name for t in report.tensors if t.new] == ["score.weight"]
    assert next(t for t in report.tensors if t.new).asked == "N(0, 0.02²)"
    assert report.notes[0].startswith(
        "28 tensors come from a checkpoint and were not judged; 1 are new"
    )


def test_checkpoints_from_files(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    weights = {"a.weight": torch.randn(8, 4), "b.weight": torch.full((2, 2), math.nan)}
    safetensors.save_file(weights, tmp_path / "x.safetensors")
    torch.save({"state_dict": weights, "step": 3}, tmp_path / "x.pt")
    for name in ("x.safetensors", "x.pt"):
        report = fanin.audit(tmp_path / name)
        assert [t.name for t in report.tensors] == ["a.weight", "b.weight"]
        assert found(report) == {"nonfinite": "FAIL"}


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (print, ("executed",))


def test_files_that_would_run_code_or_are_broken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"w": torch.ones(2), "evil": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "broken.safetensors").write_bytes(b"not a checkpoint")
    cases = {
        "evil.pt": "audit(evil.pt): expected a file of tensors, got one that would run code when "
        "it is read; save model.state_dict(), or a .safetensors file",
        "none.pt": "audit(none.pt): expected a file, got nothing at this path",
    }
    for name, message in cases.items():
        with pytest.raises(DataError) as caught:
            fanin.audit(tmp_path / name)
        assert str(caught.value) == message
    with pytest.raises(
        DataError, match=r"^audit\(broken.safetensors\): expected a readable checkpoint"
    ):
        fanin.audit(tmp_path / "broken.safetensors")
    assert capsys.readouterr().out == ""
    with pytest.raises(ArgumentTypeError) as wrong:
        fanin.audit(3)  # type: ignore[arg-type]
    assert str(wrong.value) == "audit(model): expected a torch.nn.Module or a path, got int"


def test_silencing_a_rule_for_some_tensors() -> None:
    with fanin.recording():
        model = nn.ModuleDict(
            {"a": nn.Conv2d(8, 8, 3, groups=8), "b": nn.Conv2d(8, 8, 3, groups=8)}
        )
        for layer in model.values():
            nn.init.kaiming_normal_(layer.weight, mode="fan_out")
    assert fanin.audit(model).findings[0].where == "a.weight"
    assert fanin.audit(model, ignore=["AUD209:a.*"]).findings[0].where == "b.weight"
    assert fanin.audit(model, ignore=["fan-not-as-meant"]).findings == ()


def test_explain_says_why_sqrt_5() -> None:
    torch.manual_seed(0)
    said = str(fanin.explain(nn.Linear(8, 16).weight))
    assert (
        "U(±0.3536), std 0.2041 = 1/sqrt(3*fan_in), torch default, a=sqrt(5) cancels to gain "
        "1/sqrt(3)" in said
    )
    with fanin.recording():
        layer = nn.Conv2d(8, 16, 3)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    recorded = fanin.explain(layer)
    assert recorded.lines[0] == "N(0, 0.1667²), std 0.1667 = 1.414/sqrt(fan_in)"
    assert recorded.fan_in == 72
    assert any(
        line.startswith("written by torch.nn.init.kaiming_normal_") for line in recorded.lines
    )
    trained = nn.Linear(8, 16)
    nn.init.normal_(trained.weight, std=1.0)
    assert fanin.explain(trained).asked is None
    assert "of no law that is known" in fanin.explain(trained).lines[0]


def test_explain_says_what_a_plan_would_write_and_refuses_what_it_cannot() -> None:
    model, x = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)), torch.randn(16, 64)
    plan = fanin.plan(model, x)
    said = fanin.explain(model, "0.weight", plan=plan)
    assert said.lines[-1].startswith("the plan: ")
    with pytest.raises(ValueError, match=r"^explain\(Sequential\): expected one of 0.weight, "):
        fanin.explain(model, "9.weight")
    with pytest.raises(ArgumentTypeError) as caught:
        fanin.explain("weight")  # type: ignore[arg-type]
    assert str(caught.value) == "explain(target): expected a parameter or a module, got str"
