"""Image models, and a generator."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from tests.zoo import Entry
from torch import Tensor, nn
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

import fanin


def resnet(small: bool, *, layers: tuple[int, ...], kind: str) -> nn.Module:
    """A residual network with batch norm."""
    widths = (64, 128, 256, 512) if kind == "basic" else (256, 512, 1024, 2048)
    config = ResNetConfig(
        embedding_size=16 if small else 64,
        hidden_sizes=[16, 32] if small else list(widths),
        depths=[1, 1] if small else list(layers),
        layer_type=kind,
        num_labels=10 if small else 1000,
    )
    return ResNetForImageClassification(config)


class PreActivationBlock(nn.Module):
    """x + conv(relu(conv(relu(x)))), without normalisation."""

    def __init__(self, inside: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, out, 3, stride, 1)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1)
        same = stride == 1 and inside == out
        self.skip = nn.Identity() if same else nn.Conv2d(inside, out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.conv2(F.relu(self.conv1(F.relu(x))))


def preactivation(small: bool) -> nn.Module:
    """A pre-activation residual network without norm."""
    widths, blocks = ((8, 16), 1) if small else ((64, 128, 256), 5)
    steps: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, 1, 1)]
    before = widths[0]
    for stage, width in enumerate(widths):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            steps.append(PreActivationBlock(before, width, stride))
            before = width
    return nn.Sequential(
        *steps, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10)
    )


class DenseLayer(nn.Module):
    """Batch norm, ReLU, bottleneck and growth; its input is kept beside its output."""

    def __init__(self, inside: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = (
            nn.BatchNorm2d(inside),
            nn.Conv2d(inside, 4 * growth, 1, bias=False),
        )
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
        return torch.cat([x, new], 1)


def densenet(small: bool) -> nn.Module:
    """DenseNet with three dense blocks."""
    growth, blocks = (4, (2, 2)) if small else (32, (6, 12, 24, 16))
    width = 2 * growth
    steps: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1, bias=False)]
    for place, layers in enumerate(blocks):
        for _ in range(layers):
            steps.append(DenseLayer(width, growth))
            width += growth
        if place < len(blocks) - 1:
            steps += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width // 2, 1, bias=False)]
            steps.append(nn.AvgPool2d(2))
            width //= 2
    head = [nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*steps, *head, nn.Linear(width, 10))


class InceptionBlock(nn.Module):
    """Four branches of unequal width, concatenated."""

    def __init__(self, inside: int, out: int) -> None:
        super().__init__()
        a, b, c = out // 2, out // 4, out // 8
        self.one = nn.Conv2d(inside, a, 1)
        self.three = nn.Sequential(
            nn.Conv2d(inside, b, 1), nn.ReLU(), nn.Conv2d(b, b, 3, padding=1)
        )
        self.five = nn.Sequential(nn.Conv2d(inside, c, 1), nn.ReLU(), nn.Conv2d(c, c, 5, padding=2))
        self.pool = nn.Conv2d(inside, out - a - b - c, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pool(F.max_pool2d(x, 3, 1, 1))
        return F.relu(torch.cat([self.one(x), self.three(x), self.five(x), pooled], 1))


def inception(small: bool) -> nn.Module:
    """Inception-style branches without norm."""
    widths = [8, 16, 32] if small else [64, 192, 256, 480, 512]
    blocks: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        blocks += [InceptionBlock(before, after), nn.MaxPool2d(2)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.4), nn.Linear(widths[-1], 10)]
    return nn.Sequential(nn.Conv2d(3, widths[0], 3, padding=1), nn.ReLU(), *blocks, *head)


class UNet(nn.Module):
    """Down by pooling, up by transposed convolutions, with skips by concatenation."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(widths))
        self.first = self.twice(3, widths[0])
        self.down = nn.ModuleList(self.twice(a, b) for a, b in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in reversed(pairs))
        self.join = nn.ModuleList(self.twice(2 * a, a) for a, _ in reversed(pairs))
        self.last = nn.Conv2d(widths[0], 2, 1)

    @staticmethod
    def twice(inside: int, out: int) -> nn.Sequential:
        """Two convolutions with ReLU."""
        first, second = nn.Conv2d(inside, out, 3, padding=1), nn.Conv2d(out, out, 3, padding=1)
        return nn.Sequential(first, nn.ReLU(inplace=True), second, nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        kept = [self.first(x)]
        for step in self.down:
            kept.append(step(F.max_pool2d(kept[-1], 2)))
        x = kept.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([kept.pop(), up(x)], 1))
        return self.last(x)


def generator(small: bool) -> nn.Module:
    """The generator of DCGAN: transposed convolutions with batch norm."""
    z, f = (16, 8) if small else (100, 64)
    widths = [z, 8 * f, 4 * f, 2 * f, f]
    steps: list[nn.Module] = []
    for place, (before, after) in enumerate(itertools.pairwise(widths)):
        stride, padding = (1, 0) if place == 0 else (2, 1)
        layer = nn.ConvTranspose2d(before, after, 4, stride, padding, bias=False)
        steps += [layer, nn.BatchNorm2d(after), nn.ReLU(True)]
    return nn.Sequential(*steps, nn.ConvTranspose2d(f, 3, 4, 2, 1, bias=False), nn.Tanh())


def vit(small: bool) -> nn.Module:
    """A vision transformer, ViT-S/16."""
    config = ViTConfig(
        hidden_size=32 if small else 384,
        num_hidden_layers=2 if small else 12,
        num_attention_heads=4 if small else 6,
        intermediate_size=64 if small else 1536,
        image_size=32 if small else 224,
        patch_size=16,
        num_labels=10 if small else 1000,
    )
    return ViTForImageClassification(config)


def convnext(small: bool) -> nn.Module:
    """ConvNeXt: depthwise convolutions, layer norm, LayerScale."""
    config = ConvNextConfig(
        hidden_sizes=[16, 32] if small else [96, 192, 384, 768],
        depths=[1, 1] if small else [3, 3, 9, 3],
        num_stages=2 if small else 4,
        num_labels=10 if small else 1000,
    )
    return ConvNextForImageClassification(config)


class MixerBlock(nn.Module):
    """Mixes tokens, then channels."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = self.perceptron(tokens, width // 2)
        self.channels = self.perceptron(width, 4 * width)

    @staticmethod
    def perceptron(width: int, hidden: int) -> nn.Sequential:
        """Two layers with GELU."""
        return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    """MLP-Mixer."""

    def __init__(self, image: int, patch: int, width: int, depth: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        tokens = (image // patch) ** 2
        self.blocks = nn.Sequential(*(MixerBlock(tokens, width) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(1))


def swin(small: bool) -> nn.Module:
    """Swin: attention in windows that roll."""
    config = SwinConfig(
        image_size=32 if small else 224,
        patch_size=4,
        embed_dim=16 if small else 96,
        depths=[2, 2] if small else [2, 2, 6, 2],
        num_heads=[2, 4] if small else [3, 6, 12, 24],
        window_size=4 if small else 7,
        num_labels=10 if small else 1000,
    )
    return SwinForImageClassification(config)


class SqueezeExcitation(nn.Module):
    """A residual block whose channels are gated by their own means."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.squeeze, self.excite = nn.Conv2d(width, width // 4, 1), nn.Conv2d(width // 4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        gate = self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True))))
        return F.relu(x + y * torch.sigmoid(gate))


def squeeze_excitation(small: bool) -> nn.Module:
    """A stack of squeeze-and-excitation blocks."""
    width, depth = (16, 2) if small else (128, 8)
    blocks = (SqueezeExcitation(width) for _ in range(depth))
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), *blocks, *head)


def _images(small: int, full: int) -> object:
    """Inputs of these sizes."""
    return lambda is_small: fanin.spec((2, 3, small, small) if is_small else (4, 3, full, full))


ENTRIES = (
    Entry(
        "ResNet-18",
        lambda small: resnet(small, layers=(2, 2, 2, 2), kind="basic"),
        _images(32, 224),
    ),
    Entry(
        "ResNet-50",
        lambda small: resnet(small, layers=(3, 4, 6, 3), kind="bottleneck"),
        _images(32, 224),
    ),
    Entry("pre-activation ResNet without norm", preactivation, _images(8, 32)),
    Entry("DenseNet", densenet, _images(16, 32)),
    Entry("Inception-style", inception, _images(16, 32)),
    Entry(
        "U-Net",
        lambda small: UNet((4, 8) if small else (64, 128, 256, 512)),
        _images(16, 64),
    ),
    Entry(
        "DCGAN generator",
        generator,
        lambda small: fanin.spec((4, 16, 1, 1) if small else (16, 100, 1, 1)),
    ),
    Entry("ViT-S", vit, _images(32, 224)),
    Entry("ConvNeXt", convnext, _images(32, 224)),
    Entry(
        "MLP-Mixer",
        lambda small: Mixer(16, 4, 16, 2) if small else Mixer(224, 16, 512, 8),
        _images(16, 224),
    ),
    Entry("Swin", swin, _images(32, 224)),
    Entry("squeeze-and-excitation", squeeze_excitation, _images(8, 32)),
)
