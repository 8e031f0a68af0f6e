"""What the probe measures, against the same numbers computed by hand and by the theory."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fanin.errors import ArgumentError, ArgumentTypeError, TraceError, UninitializedError
from fanin.signal.spec import spec
from fanin.torch.probing.measure import layers, measure
from fanin.torch.probing.measurement import Measurement
from fanin.torch.probing.probe import Probe


class Functional(nn.Module):
    """Uses operations without modules, a module twice, and a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 16)
        self.mix = nn.Parameter(torch.randn(16, 16) / 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.gelu(self.fc(x))
        h = torch.tanh(self.fc(h)) + h
        return F.relu_(h @ self.mix)


def by_name(measured: Measurement) -> dict[str, int]:
    return {row.name: i for i, row in enumerate(measured.layers)}


def test_every_operation_has_a_row_in_order_of_execution() -> None:
    measured = measure(Functional(), torch.randn(32, 16))
    assert [(r.name, r.kind) for r in measured.layers] == [
        ("fc", "linear"),
        ("gelu", "activation"),
        ("fc#2", "linear"),
        ("tanh", "activation"),
        ("add", "add"),
        ("matmul", "linear"),
        ("relu", "activation"),
    ]
    assert [r.depth for r in measured.layers] == [1, 1, 2, 2, 2, 3, 3]
    assert measured.layers[4].operands == ((3,), (1,))
    assert measured.layers[5].weights == ("mix",)


def test_statistics_equal_those_computed_by_hand() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 5)).double()
    x = torch.randn(20, 8, dtype=torch.float64)
    target = torch.randint(5, (20,))
    row = measure(net, x, "ce", targets=target).layers[0]
    y = net[0](x).detach().requires_grad_()
    loss = F.cross_entropy(net[2](torch.tanh(y)).float(), target)
    (gradient,) = torch.autograd.grad(loss, y)
    y = y.detach()
    assert row.second_moment == pytest.approx(float(y.square().mean()), rel=1e-12)
    assert row.mean == pytest.approx(float(y.mean()), rel=1e-12)
    assert row.spread == pytest.approx(float(y.var(0).mean()), rel=1e-12)
    # 1 - distance is the mean product of pairs over the second moment.
    pairs = y @ y.T / 12
    mean_product = (pairs.sum() - pairs.trace()) / (20 * 19)
    assert row.correlation == pytest.approx(float(mean_product / y.square().mean()), rel=1e-9)
    assert row.gradient_sum == pytest.approx(float(gradient.square().sum()), rel=1e-6)
    assert row.gradient == pytest.approx(float(gradient.square().mean()), rel=1e-6)


def test_weight_gradients_equal_autograd() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3))
    x, target = torch.randn(16, 6), torch.randint(3, (16,))
    measured = measure(net, x, "ce", targets=target)
    F.cross_entropy(net(x), target).backward()
    for name, parameter in net.named_parameters():
        expected = float(parameter.grad.square().mean())
        assert measured.weights[name].gradient == pytest.approx(expected, rel=1e-5)
        assert measured.weights[name].second_moment == pytest.approx(
            float(parameter.detach().square().mean()), rel=1e-5
        )


def test_large_tensors_are_sampled_within_their_standard_error() -> None:
    torch.manual_seed(2)
    conv = nn.Conv2d(3, 32, 3, padding=1)
    x = torch.randn(64, 3, 48, 48)
    row = measure(nn.Sequential(conv), x).layers[0]
    exact = float(conv(x).detach().square().mean())
    # 2^15 values of 64 samples; neighbouring values correlate, at most as one patch of 27 does.
    assert row.second_moment == pytest.approx(exact, rel=4 * math.sqrt(2 / (2**15 / 27)))


def test_small_gradients_do_not_underflow() -> None:
    """float32 loses squares below 1e-45; a deep sigmoid network is far below that."""
    torch.manual_seed(3)
    deep = [p for _ in range(24) for p in (nn.Linear(32, 32), nn.Sigmoid())]
    measured = measure(nn.Sequential(*deep, nn.Linear(32, 4)), torch.randn(64, 32), "ce")
    first = measured.layers[0].gradient
    assert first is not None
    assert 0 < first < 1e-40


@pytest.mark.parametrize(
    ("activation", "bias", "dead", "saturated"),
    [
        (nn.ReLU(), 0.0, 0.0, None),
        (nn.ReLU(), -50.0, 1.0, None),
        (nn.Tanh(), 0.0, 0.0, 0.0),
        (nn.Tanh(), 50.0, 1.0, 1.0),
        (nn.Sigmoid(), -50.0, 1.0, 1.0),
        (nn.GELU(), -50.0, 1.0, None),
    ],
)
def test_dead_and_saturated_shares(
    activation: nn.Module, bias: float, dead: float, saturated: float | None
) -> None:
    torch.manual_seed(4)
    linear = nn.Linear(16, 64)
    nn.init.constant_(linear.bias, bias)
    row = measure(nn.Sequential(linear, activation), torch.randn(64, 16)).layers[1]
    assert row.dead == dead
    assert row.saturated == (saturated if saturated is None else pytest.approx(saturated, abs=0.01))


def test_dead_channels_of_a_convolution_are_units() -> None:
    torch.manual_seed(5)
    conv = nn.Conv2d(3, 8, 3)
    with torch.no_grad():
        conv.bias[:4] = -50.0
    row = measure(nn.Sequential(conv, nn.ReLU()), torch.randn(16, 3, 8, 8)).layers[1]
    assert row.dead == 0.5
    assert row.width == 8


def test_the_slope_of_the_variance_map_is_the_theory_s() -> None:
    """d log E[f^2] / d log q at q = 1: 1 for relu, 1.144 for gelu, 0.461 for tanh."""
    x = torch.randn(32, 1024, generator=torch.Generator().manual_seed(6))
    for activation, slope in ((nn.ReLU(), 1.0), (nn.GELU(), 1.1441), (nn.Tanh(), 0.4611)):
        linear = nn.Linear(1024, 1024, bias=False)
        nn.init.normal_(linear.weight, std=1 / 32)
        row = measure(nn.Sequential(linear, activation), x).layers[1]
        assert row.slope == pytest.approx(slope, abs=0.03)  # 4 standard errors of 4096 values


def test_dropout_is_off_in_all_its_forms() -> None:
    """Masks would part inputs that are alike, and hide a collapse."""

    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.drop = nn.Linear(8, 8), nn.Dropout(0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = F.dropout(self.drop(self.fc(x)), 0.5, self.training)
            q = h[:, None, :, None]
            return F.scaled_dot_product_attention(q, q, q, dropout_p=0.5).flatten(1)

    x = torch.randn(1, 8).expand(16, 8)
    measured = measure(Dropped(), x)
    assert all(row.spread == 0 for row in measured.layers)


def test_integer_inputs_and_embeddings() -> None:
    net = nn.Sequential(nn.Embedding(50, 16), nn.Flatten(), nn.Linear(64, 3))
    measured = measure(net, spec((16, 4), "int64", high=50), "ce")
    assert [r.kind for r in measured.layers] == ["embedding", "linear"]
    assert measured.inputs[0].second_moment is None
    assert measured.loss is not None
    assert measured.loss.expected == pytest.approx(math.log(3))


def test_specs_stand_for_inputs_and_are_the_same_each_time() -> None:
    net = nn.Linear(8, 4)
    first, second = (measure(net, spec((32, 8))).layers[0].second_moment for _ in range(2))
    assert first == second


@pytest.mark.parametrize("inputs", ["tuple", "dict", "nested"])
def test_forms_of_inputs_and_outputs(inputs: str) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(4, 8)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, object]:
            return {"sum": self.a(x) + self.b(y), "parts": (self.a(x), [self.b(y)])}

    class Nested(Two):
        def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, object]:  # type: ignore[override]
            return super().forward(batch["left"], batch["right"])

    x, y = torch.randn(8, 4), torch.randn(8, 4)
    given = {"tuple": (x, y), "dict": {"x": x, "y": y}, "nested": {"left": x, "right": y}}[inputs]
    measured = measure(Nested() if inputs == "nested" else Two(), given)
    assert [r.name for r in measured.layers] == ["a", "b", "add", "a#2", "b#2"]
    assert all(w.gradient for w in measured.weights.values())


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        (torch.ones(4, 7), "mat1 and mat2 shapes cannot be multiplied"),
        (torch.ones(4, 8, dtype=torch.float64), "mat1 and mat2 must have the same dtype"),
    ],
)
def test_a_model_that_does_not_run_is_one_line_that_says_where(
    inputs: torch.Tensor, reason: str
) -> None:
    model = nn.Sequential(nn.Identity(), nn.Sequential(nn.Linear(8, 4)))
    with pytest.raises(TraceError) as caught:
        measure(model, inputs)
    assert str(caught.value).startswith(
        f"check(model): 1.0: expected a forward pass that runs, got RuntimeError: {reason}"
    )
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert not model[1][0]._forward_hooks


def test_a_backward_pass_that_does_not_run_is_one_line_too() -> None:
    class InPlace(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x.exp()
            return y * 2 + y.add_(1)

    model = nn.Sequential(nn.Linear(8, 4), InPlace())
    with pytest.raises(TraceError, match=r"expected a backward pass that runs, got RuntimeError"):
        measure(model, torch.randn(4, 8))


def test_a_compiled_model_is_measured_as_the_original_and_says_so() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    measured = measure(torch.compile(net), torch.randn(8, 8))
    assert [r.name for r in measured.layers] == ["0", "1", "2"]
    assert (
        "compiled: hooks are inactive in compiled code, so the original module was run"
        in measured.notes
    )


def test_a_part_compiled_in_place_is_measured_too() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.ReLU(), nn.Linear(8, 2)))
    net[1].compile(backend="eager")
    before = net[1]._compiled_call_impl
    measured = measure(net, torch.randn(8, 8))
    assert [r.operation for r in measured.layers] == ["linear", "relu", "linear"]
    assert any(note.startswith("compiled") for note in measured.notes)
    assert net[1]._compiled_call_impl is before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_models_agree_with_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(7)
    net = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 8))
    x = torch.randn(64, 64)
    full = measure(net, x).layers
    low = measure(net.to(dtype), x.to(dtype)).layers
    assert low[0].dtype == str(dtype).removeprefix("torch.")
    for a, b in zip(full, low, strict=True):
        assert b.second_moment == pytest.approx(a.second_moment, rel=0.03)  # 3 digits of bfloat16
        assert b.gradient == pytest.approx(a.gradient, rel=0.05)


def test_autocast_around_the_call_is_kept() -> None:
    net = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    x = torch.randn(16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        measured = measure(net, x)
        assert [r.dtype for r in measured.layers] == ["bfloat16"] * 3
        net(x).sum().backward()  # the cache of casts holds nothing of the graph that is gone
    assert measured.weights["0.weight"].gradient


def test_frozen_parts_have_a_signal_and_no_gradient() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    net[0].requires_grad_(False)
    measured = measure(net, torch.randn(16, 8))
    assert measured.weights["0.weight"].gradient is None
    assert measured.weights["2.weight"].gradient
    assert measured.layers[0].gradient is None
    assert measured.layers[0].second_moment > 0


def test_modules_that_are_never_called_are_named() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    assert measure(Idle(), torch.randn(8, 4)).never_called == ("idle",)


def test_multihead_attention_and_recurrent_layers_have_rows() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True, dropout=0.1)
            self.rnn = nn.LSTM(16, 8, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.rnn(self.attention(x, x, x)[0])[0]

    measured = measure(Both(), torch.randn(8, 5, 16))
    assert [(r.name, r.kind) for r in measured.layers] == [
        ("attention:multi_head_attention_forward", "attention"),
        ("rnn", "recurrent"),
    ]
    assert measured.never_called == ()
    assert all(w.gradient is not None for w in measured.weights.values())


def test_zero_gates_open_and_closed_pairs_do_not() -> None:
    class LoRA(nn.Module):
        def __init__(self, both: bool) -> None:
            super().__init__()
            self.base = nn.Linear(8, 8).requires_grad_(False)
            self.a, self.b = nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)
            nn.init.zeros_(self.b.weight)
            if both:
                nn.init.zeros_(self.a.weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.base(x) + self.b(self.a(x))

    x = torch.randn(16, 8)
    assert measure(LoRA(both=False), x).never_trains == ()
    assert measure(LoRA(both=True), x).never_trains == ("a.weight", "b.weight")


def test_a_gate_behind_a_gate_opens_after_two_steps() -> None:
    """A zero head closes everything before it, also a zero modulation, and both open."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.head = nn.Linear(8, 8), nn.Linear(8, 2)
            for layer in (self.gate, self.head):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x + self.gate(x))

    assert measure(Gated(), torch.randn(16, 8)).never_trains == ()


def test_the_loss_of_a_model_that_returns_its_own() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=2,
        n_embd=32,
        n_head=2,
        vocab_size=101,
        n_positions=16,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = transformers.GPT2LMHeadModel(config)
    tokens = torch.randint(101, (8, 16))
    measured = measure(model, {"input_ids": tokens, "labels": tokens})
    assert measured.loss is not None
    assert measured.loss.expected == pytest.approx(math.log(101))
    assert measured.loss.value == pytest.approx(math.log(101), rel=0.05)
    assert measured.weights["transformer.wte.weight"].gradient
    without = measure(model, {"input_ids": tokens})
    assert without.loss is None
    assert "no loss was given: the gradient is that of a random cotangent" in without.notes


class Returns(nn.Module):
    """Computes its own loss: a part of the cross-entropy of its labels, and a penalty."""

    def __init__(self, penalty: float) -> None:
        super().__init__()
        self.head, self.penalty = nn.Linear(8, 4), penalty

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> SimpleNamespace:
        logits = self.head(x)
        return SimpleNamespace(logits=logits, loss=F.cross_entropy(logits, labels) + self.penalty)


@pytest.mark.parametrize(("penalty", "expected"), [(0.0, math.log(4)), (3.0, None)])
def test_only_a_cross_entropy_is_held_against_that_of_a_guess(
    penalty: float, expected: float | None
) -> None:
    inputs = {"x": torch.randn(32, 8), "labels": torch.randint(4, (32,))}
    measured = measure(Returns(penalty), inputs)
    assert measured.loss is not None
    assert measured.loss.expected == expected
    assert measured.loss.name == ("custom" if penalty else "ce")


def test_ignored_classes_are_left_out_of_the_mean() -> None:
    net, x, y = nn.Linear(8, 4), torch.randn(32, 8), torch.randint(4, (32,))
    y[::2] = -100
    measured = measure(net, x, "ce", targets=y)
    assert measured.loss is not None
    assert measured.loss.value == pytest.approx(F.cross_entropy(net(x), y).item(), rel=1e-6)


def test_targets_of_another_shape_are_one_clear_line() -> None:
    with pytest.raises(ArgumentError) as caught:
        measure(nn.Linear(8, 4), torch.randn(32, 8), "mse", targets=torch.randn(32, 3))
    assert str(caught.value) == (
        "check(targets): expected a shape that fits outputs of shape (32, 4), got (32, 3)"
    )


def test_a_slope_is_that_of_the_parameters_at_the_call() -> None:
    """The values are looked at together after the step, when PReLU may have moved."""
    net = nn.Sequential(nn.Linear(8, 64), nn.PReLU(init=0.0))
    nn.init.constant_(net[0].bias, -1.0)
    x = torch.randn(32, 8)
    trace = Probe(net, 32, [x])
    with trace:
        net(x)
    with torch.no_grad():
        net[1].weight.fill_(1.0)  # no unit would be dead
    [activation] = [row for row in layers(trace.trace) if row.kind == "activation"]
    by_hand = (net[0](x) < 0).all(0).float().mean().item()
    assert activation.dead == pytest.approx(by_hand)
    assert by_hand > 0


@pytest.mark.parametrize(
    ("loss", "expected"),
    [("ce", math.log(4)), ("bce", math.log(2)), (nn.CrossEntropyLoss(), math.log(4))],
)
def test_expected_start_loss(loss: object, expected: float) -> None:
    net = nn.Linear(8, 4)
    nn.init.zeros_(net.weight)
    nn.init.zeros_(net.bias)
    measured = measure(net, torch.randn(32, 8), loss)
    assert measured.loss is not None
    assert measured.loss.value == pytest.approx(expected, rel=1e-6)
    assert measured.loss.expected == pytest.approx(expected, rel=1e-12)


def test_prior_of_the_classes() -> None:
    net = nn.Linear(8, 2)
    measured = measure(net, torch.randn(8, 8), "ce", prior=[0.9, 0.1])
    assert measured.loss is not None
    assert measured.loss.expected == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1))
    with pytest.raises(
        ArgumentError,
        match=r"^check\(prior\): expected probabilities that sum to 1, got a sum of 1.2$",
    ):
        measure(net, torch.randn(8, 8), "ce", prior=[0.9, 0.3])


@pytest.mark.parametrize(
    ("build", "inputs", "loss", "error", "message"),
    [
        (
            lambda: "net",
            0,
            None,
            ArgumentTypeError,
            "check(model): expected a torch.nn.Module, got str",
        ),
        (
            lambda: nn.LazyLinear(4),
            torch.ones(2, 4),
            None,
            UninitializedError,
            "check(model), weight: expected a tensor in memory, got one that is a lazy parameter; "
            "run one forward pass first",
        ),
        (
            lambda: nn.Linear(4, 4, device="meta"),
            torch.ones(2, 4),
            None,
            UninitializedError,
            "check(model), weight: expected a tensor in memory, got one that is on the meta device; "  # noqa: E501
            "call fanin.materialize_(model, device) first",
        ),
        (
            lambda: nn.Linear(4, 4),
            torch.ones(2, 4),
            "hinge",
            ArgumentError,
            "check(loss): expected a function or one of ce, bce, mse, got 'hinge'",
        ),
        (
            lambda: nn.Linear(4, 4),
            torch.ones(2, 4),
            lambda y: y,
            ArgumentTypeError,
            "check(loss): expected a loss that returns a scalar, got a tensor of shape (2, 4)",
        ),
        (
            lambda: nn.Bilinear(4, 4, 2),
            {"y": torch.ones(2, 4), "z": torch.ones(1)},
            None,
            ArgumentError,
            "inputs: expected keywords of forward: input1, input2, got y, z",
        ),
        (
            lambda: nn.Linear(4, 4),
            3,
            None,
            ArgumentTypeError,
            "check(inputs): expected at least one tensor, got int",
        ),
    ],
)
def test_what_cannot_be_measured_is_one_clear_line(
    build: object, inputs: object, loss: object, error: type, message: str
) -> None:
    with pytest.raises(error) as caught:
        measure(build(), inputs, loss)  # type: ignore[operator]
    assert str(caught.value) == message


def test_a_checkpointed_activation_is_measured_as_without() -> None:
    """Torch counts what a checkpoint saves: 2 tensors here, and 3 with a look at the slope."""
    from torch.utils.checkpoint import checkpoint

    class Saved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(16, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return checkpoint(lambda t: torch.tanh(self.fc(t)), x, use_reentrant=False)

    torch.manual_seed(0)
    model, x = Saved(), torch.randn(32, 16)
    rows = measure(model, x).layers
    plain = measure(nn.Sequential(model.fc, nn.Tanh()), x).layers
    assert [r.kind for r in rows] == ["linear", "activation"]
    for found, wanted in zip(rows, plain, strict=True):
        assert found.second_moment == wanted.second_moment


def test_complex_weights_have_a_gradient() -> None:
    class Spectrum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((9,), 2 + 1j))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.fft.irfft(torch.fft.rfft(x) * self.weight, n=16)

    measured = measure(Spectrum(), torch.randn(32, 16))
    held = measured.weights["weight"]
    assert held.second_moment == pytest.approx(5)
    assert not held.equal_rows
    assert held.gradient is not None
    assert 0 < held.gradient < math.inf
