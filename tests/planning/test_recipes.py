"""Each recipe against the numbers that its authors published, or that their code draws with."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.planning import coordinates
from tests.planning import networks as net
from tests.torch.test_shard import launch
from torch import Tensor, nn

import fanin
from fanin import draw
from fanin.errors import ArgumentTypeError, NotCoveredError, PlanError, UnknownNameError
from fanin.planning import recipes
from fanin.planning.plan import Plan, Stack
from fanin.planning.recipes import GPT2, MuP

transformers = pytest.importorskip("transformers")
TOKENS = fanin.spec((1, 8), "int64", high=50)


def meta(build: object, *args: object) -> nn.Module:
    with torch.device("meta"):
        return build(*args)  # type: ignore[operator]


def test_every_recipe_has_a_name_a_citation_and_a_docstring() -> None:
    assert recipes.names() == (
        *("gpt2", "llama", "t5", "vit", "resnet", "deepnorm", "fixup", "t_fixup", "rezero"),
        *("siren", "mup", "lora", "ppo", "lstm"),
    )
    for name in recipes.names():
        kind = recipes._RECIPES[name]
        assert any(ch.isdigit() for ch in kind.citation), name
        assert kind.__doc__
    assert recipes.get("gpt2").name == "gpt2"
    assert GPT2(std=0.1).name == "gpt2(std=0.1)"
    with pytest.raises(UnknownNameError, match="expected one of gpt2, llama"):
        recipes.get("gtp2")


def test_gpt2_small() -> None:
    """std 0.02; residual projections 0.02/sqrt(24) = 0.00408248290463863."""
    config = transformers.GPT2Config(n_layer=12, n_embd=24, n_head=2, vocab_size=50)
    plan = fanin.plan(meta(transformers.GPT2LMHeadModel, config), {"input_ids": TOKENS}, "gpt2")
    ends = [r for r in plan if r.path.endswith("c_proj.weight")]
    assert len(ends) == 24
    assert all(r.std == pytest.approx(0.00408248290463863, rel=1e-14) for r in ends)
    for path in ("wte.weight", "wpe.weight", "h.3.attn.c_attn.weight", "h.3.mlp.c_fc.weight"):
        assert plan[f"transformer.{path}"].std == 0.02
    assert plan["transformer.h.0.mlp.c_fc.bias"].values == draw.Constant(0.0)
    assert plan["transformer.ln_f.weight"].values == draw.Constant(1.0)


def test_llama() -> None:
    """0.02/sqrt(2(l+1)) on the two ends of block l, gate and up at 0.02, head cut at 3 sigma."""
    config = transformers.LlamaConfig(
        num_hidden_layers=3,
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=4,
        vocab_size=50,
    )
    plan = fanin.plan(meta(transformers.LlamaForCausalLM, config), {"input_ids": TOKENS}, "llama")
    for layer in range(3):
        path = f"model.layers.{layer}"
        for end in ("self_attn.o_proj", "mlp.down_proj"):
            assert plan[f"{path}.{end}.weight"].std == pytest.approx(0.02 / (2 * layer + 2) ** 0.5)
        for inner in ("self_attn.q_proj", "mlp.gate_proj", "mlp.up_proj"):
            assert plan[f"{path}.{inner}.weight"].std == 0.02
    assert plan["model.embed_tokens.weight"].std == 1.0
    assert plan["lm_head.weight"].values == draw.TruncatedNormal(0.0, 32**-0.5, 3.0)


def test_only_the_residual_output_of_swiglu_carries_the_depth() -> None:
    """Acceptance: 32 blocks of width 256 at weight std 0.08; w2 alone is scaled, not w3."""
    torch.manual_seed(0)
    model, x = nn.Sequential(*[net.Block(256, 684) for _ in range(32)]), torch.randn(2, 16, 256)
    plan = fanin.init_(model, x, GPT2(std=0.08))
    assert {plan[f"{i}.{n}.weight"].std for i in range(32) for n in ("o", "w2")} == {0.01}
    assert {
        plan[f"{i}.{n}.weight"].std for i in range(32) for n in ("q", "k", "v", "w1", "w3")
    } == {0.08}
    with torch.no_grad():
        growth = model(x).pow(2).mean().sqrt() / x.pow(2).mean().sqrt()
    assert growth < 2


def test_t5() -> None:
    sizes = {"num_layers": 2, "d_model": 32, "d_ff": 96, "d_kv": 16, "num_heads": 4}
    model = meta(
        transformers.T5ForConditionalGeneration, transformers.T5Config(vocab_size=50, **sizes)
    )
    plan = fanin.plan(model, {"input_ids": TOKENS, "decoder_input_ids": TOKENS}, "t5")
    attention = "decoder.block.1.layer.1.EncDecAttention"
    assert plan["shared.weight"].std == 1.0
    assert plan[f"{attention}.q.weight"].std == pytest.approx((32 * 16) ** -0.5)
    assert plan[f"{attention}.k.weight"].std == pytest.approx(32**-0.5)
    assert plan[f"{attention}.v.weight"].std == pytest.approx(32**-0.5)
    assert plan[f"{attention}.o.weight"].std == pytest.approx((4 * 16) ** -0.5)
    dense = "encoder.block.0.layer.1.DenseReluDense"
    assert plan[f"{dense}.wi.weight"].std == pytest.approx(32**-0.5)
    assert plan[f"{dense}.wo.weight"].std == pytest.approx(96**-0.5)
    table = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    assert plan[table].std == pytest.approx(32**-0.5)


def test_vit() -> None:
    config = transformers.ViTConfig(
        num_hidden_layers=2, hidden_size=32, intermediate_size=64, num_attention_heads=4,
        image_size=16, patch_size=4,
    )  # fmt: skip
    model, x = meta(transformers.ViTForImageClassification, config), fanin.spec((1, 3, 16, 16))
    plan = fanin.plan(model, x, "vit")
    stds = {r.std for r in plan if r.values is not None and r.std}
    assert stds == {0.02}
    assert plan["vit.embeddings.position_embeddings"].std == 0.02
    assert fanin.plan(model, x, {"recipe": "vit", "zero_head": True})["classifier.weight"].std == 0


def test_resnet() -> None:
    """3x3 convolutions of 64, 128, 256, 512 channels: He et al.'s stds, whatever the stride."""
    published = {64: 0.0589255651, 128: 0.0416666667, 256: 0.0294627825, 512: 0.0208333333}
    for channels, std in published.items():
        with torch.device("meta"):
            model = net.Residual(channels // 2, channels, norm=True, stride=2)
        plan = fanin.plan(model, fanin.spec((1, channels // 2, 8, 8)), "resnet")
        found = [plan[path].std for path in ("c1.weight", "c2.weight")]
        assert [round(value, 10) for value in found if value is not None] == [std, std]
    model, x = net.resnet(2, norm=True), fanin.spec((2, 3, 8, 8))
    plan = fanin.plan(model, x, {"recipe": "resnet", "zero_last_norm": True})
    assert plan["1.n2.weight"].mean == 0.0
    assert plan["1.n1.weight"].mean == 1.0
    assert plan["5.weight"].std == pytest.approx(1 / math.sqrt(3 * 32))


class Post(nn.Module):
    """A post-norm layer as DeepNorm has it, with plain skips; norms can be left out."""

    def __init__(self, norm: bool = True, width: int = 16) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, width))
        self.n1, self.n2 = (nn.LayerNorm(width) if norm else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.n1(x + self.attention(x, x, x, need_weights=False)[0])
        return self.n2(x + self.mlp(x))


def test_deepnorm_of_twelve_layers() -> None:
    """beta = (8 * 12)^(-1/4) = 0.3194715521 on values, outputs and MLPs; Xavier on the rest."""
    model, x = nn.Sequential(*[Post() for _ in range(12)]), fanin.spec((2, 5, 16))
    plan = fanin.plan(model, x, "deepnorm")
    beta, square = 0.3194715521, math.sqrt(2 / 32)
    packed = plan["0.attention.in_proj_weight"].values
    assert isinstance(packed, Stack)
    assert [d.std for _, d in packed.blocks] == pytest.approx([square, square, beta * square])
    assert plan["11.attention.out_proj.weight"].std == pytest.approx(beta * square)
    assert plan["3.mlp.0.weight"].std == pytest.approx(beta * math.sqrt(2 / 48))
    assert plan["3.mlp.2.weight"].std == pytest.approx(beta * math.sqrt(2 / 48))


def encoder_decoder(layers: int, norm_first: bool) -> nn.Module:
    return nn.Transformer(
        16, 2, layers, layers, 32, dropout=0.0, batch_first=True, norm_first=norm_first
    )


def test_deepnorm_and_t_fixup_of_an_encoder_and_a_decoder() -> None:
    """Six layers each: T-Fixup 0.4280918798 and 0.3688939732; DeepNorm by its two formulas."""
    model, x = (
        encoder_decoder(6, norm_first=False),
        (fanin.spec((2, 5, 16)), fanin.spec((2, 4, 16))),
    )
    square = math.sqrt(2 / 32)
    for recipe, encoder, decoder in (
        ("t_fixup", 0.4280918798, 0.3688939732),
        ("deepnorm", 0.87 * (6**4 * 6) ** (-1 / 16), (12 * 6) ** -0.25),
    ):
        plan = fanin.plan(model, x, recipe)
        first, second = "encoder.layers.2.self_attn", "decoder.layers.2.multihead_attn"
        assert plan[f"{first}.out_proj.weight"].std == pytest.approx(encoder * square, rel=1e-9)
        assert plan[f"{second}.out_proj.weight"].std == pytest.approx(decoder * square, rel=1e-9)
        for path, beta in ((first, encoder), (second, decoder)):
            packed = plan[f"{path}.in_proj_weight"].values
            assert isinstance(packed, Stack)
            assert [d.std / square for _, d in packed.blocks] == pytest.approx([1, 1, beta])


@pytest.mark.parametrize(
    ("blocks", "inside", "factor"), [(54, 2, 0.1360827635), (16, 3, 0.5)], ids=["110", "50"]
)
def test_fixup(blocks: int, inside: int, factor: float) -> None:
    """ResNet-110: 54 branches of 2 layers; ResNet-50: 16 of 3."""

    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(inside))

        def forward(self, x: Tensor) -> Tensor:
            y = x
            for layer in self.layers[:-1]:
                y = torch.relu(layer(y))
            return torch.relu(x + self.layers[-1](y))

    steps = [
        nn.Conv2d(3, 4, 3),
        *[Branch() for _ in range(blocks)],
        nn.Flatten(),
        nn.Linear(144, 9),
    ]
    plan = fanin.plan(nn.Sequential(*steps), fanin.spec((1, 3, 8, 8)), "fixup")
    he = math.sqrt(2 / (4 * 9))
    assert plan["0.weight"].std == pytest.approx(he)
    for i in range(inside - 1):
        assert plan[f"{blocks}.layers.{i}.weight"].std == pytest.approx(factor * he, rel=1e-9)
    assert plan[f"1.layers.{inside - 1}.weight"].values == draw.Constant(0.0)
    assert plan[f"{blocks + 2}.weight"].values == draw.Constant(0.0)


def test_rezero() -> None:
    model = nn.Sequential(*[net.Scaled(torch.ones(())) for _ in range(3)])
    plan = fanin.init_(model, fanin.spec((2, 16)), "rezero")
    assert [plan[f"{i}.scale"].values for i in range(3)] == [draw.Constant(0.0)] * 3
    assert all(block.scale.item() == 0 for block in model)
    assert plan["0.mlp.0.weight"].std == pytest.approx(math.sqrt(2 / 80))
    x = torch.randn(2, 16)
    torch.testing.assert_close(model(x), x)


def test_siren() -> None:
    """U(+-1/n) first, U(+-sqrt(6/n)/30) after; pre-activations of unit std, gradients alike."""
    torch.manual_seed(0)
    model, x = net.Siren(), torch.rand(4096, 2) * 2 - 1
    plan = fanin.init_(model, x, "siren", seed=1)
    assert plan["hidden.0.weight"].values == draw.Uniform(-0.5, 0.5)
    bound = math.sqrt(6 / 256) / 30
    assert plan["hidden.2.weight"].values == draw.Uniform(-bound, bound)
    pre: list[Tensor] = []
    for layer in model.hidden:
        layer.register_forward_hook(lambda _m, _x, y: (y.retain_grad(), pre.append(y))[0])
    model(x).sum().backward()
    stds = [30 * p.std().item() for p in pre[1:]]
    assert stds == pytest.approx([1.0] * 3, abs=0.1)
    gradients = [p.grad.pow(2).mean().sqrt().item() for p in pre if p.grad is not None]
    assert max(gradients) < 3 * min(gradients)
    found = {f.name: f for f in fanin.check(model, 255 * torch.rand(64, 2)).findings}
    assert found["input-scale"].severity == "WARN"
    assert "normalize to [-1, 1]" in found["input-scale"].fix


def test_ppo() -> None:
    """Hidden singular values are the gain of tanh, the policy's head 0.01, the value's 1."""
    model = net.Policy()
    fanin.init_(model, fanin.spec((4, 8)), "ppo")
    for layer, gain in (
        (model.actor[0], 1.59253742),
        (model.actor[2], 1.59253742),
        (model.critic[2], 1.59253742),
        (model.actor[4], 0.01),
        (model.critic[4], 1.0),
    ):
        values = torch.linalg.svdvals(layer.weight)
        assert values.tolist() == pytest.approx([gain] * len(values), rel=1e-5)
        assert not layer.bias.any()


def test_lstm() -> None:
    model = nn.LSTM(24, 16)
    fanin.init_(model, fanin.spec((5, 2, 24)), "lstm")
    bound = math.sqrt(6 / 40)
    assert model.weight_ih_l0.abs().max() <= bound
    assert model.weight_ih_l0.abs().max() > 0.97 * bound
    for gate in model.weight_hh_l0.chunk(4):
        torch.testing.assert_close(gate @ gate.T, torch.eye(16), atol=1e-5, rtol=0)
    assert model.bias_ih_l0.tolist() == [0.0] * 16 + [1.0] * 16 + [0.0] * 32
    assert not model.bias_hh_l0.any()


def test_lora() -> None:
    class Adapter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = nn.Linear(16, 16)
            self.lora_A = nn.ModuleDict({"default": nn.Linear(16, 4, bias=False)})
            self.lora_B = nn.ModuleDict({"default": nn.Linear(4, 16, bias=False)})

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + self.lora_B["default"](self.lora_A["default"](x))

    model = Adapter()
    base = model.base.weight.clone()
    plan = fanin.init_(model, fanin.spec((2, 16)), "lora")
    assert plan["lora_A.default.weight"].values == draw.Uniform(-0.25, 0.25)
    assert not model.lora_B["default"].weight.any()
    assert torch.equal(model.base.weight, base)


class Wide(nn.Module):
    """An embedding, hidden layers and a head of some width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(50, width)
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)
        self.head = nn.Linear(width, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.b(torch.relu(self.a(self.table(x))))))


def mup(width: int, base: int, optimizer: str) -> Plan:
    rule = MuP(base=meta(Wide, base), optimizer=optimizer)  # type: ignore[arg-type]
    return fanin.plan(meta(Wide, width), TOKENS, rule)


def test_mup_variances_and_rates() -> None:
    """Table 3 of the paper: variances and rates of input, hidden and output weights."""
    adam, sgd = mup(256, 64, "adam"), mup(256, 64, "sgd")
    for plan in (adam, sgd):
        assert plan["table.weight"].std == 1.0
        assert plan["a.weight"].std == pytest.approx(256**-0.5)
        assert plan["head.weight"].std == pytest.approx(256**-0.5 / 2)  # 1/256 / ratio 4
    rates = {
        "table.weight": 1,
        "a.weight": 1 / 4,
        "a.bias": 1,
        "head.weight": 1 / 4,
        "head.bias": 1,
    }
    assert {p: adam.lr_multipliers[p] for p in rates} == rates
    rates = {"table.weight": 4, "a.weight": 1, "a.bias": 4, "head.weight": 1 / 4, "head.bias": 1}
    assert {p: sgd.lr_multipliers[p] for p in rates} == rates
    at_base = mup(64, 64, "adam")
    assert set(at_base.lr_multipliers.values()) == {1.0}
    assert at_base["head.weight"].std == pytest.approx(64**-0.5)


def test_mup_passes_the_coordinate_check_and_the_standard_rule_does_not() -> None:
    """Acceptance: widths 128 to 2048, four Adam steps; slopes below 0.05, and above 0.3."""
    flat = coordinates.slopes("mup", coordinates.WIDTHS)
    steep = coordinates.slopes("second_moment", coordinates.FEW_WIDTHS)
    assert max(abs(slope) for layer in flat for slope in layer) < 0.05, flat
    assert max(slope for layer in steep for slope in layer) > 0.3, steep


def test_mup_passes_it_after_fully_shard_too(tmp_path: Path) -> None:
    launch(2, Path(coordinates.__file__), str(tmp_path / "slopes.json"))
    sharded = json.loads((tmp_path / "slopes.json").read_text())
    assert max(abs(slope) for layer in sharded for slope in layer) < 0.05, sharded
    alone = coordinates.slopes("mup", coordinates.FEW_WIDTHS)
    np.testing.assert_allclose(sharded, alone, atol=1e-4)


def test_what_mup_refuses() -> None:
    with pytest.raises(NotCoveredError, match="untie it"):
        fanin.plan(net.Tied(), TOKENS, MuP(base=net.Tied()))
    with pytest.raises(PlanError, match=r"mup\(base\): mix.weight"):
        fanin.plan(net.Tied(), TOKENS, {"mix*": MuP(base={"other": (2, 2)})})
    with pytest.raises(ArgumentTypeError, match="build the same model narrower"):
        fanin.plan(net.Tied(), TOKENS, "mup")
