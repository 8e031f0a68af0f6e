"""The callback in a real Trainer of transformers: it checks, logs, and changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
from fanin.integrations.transformers import InitCheckCallback  # noqa: E402


def model() -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=2,
        n_embd=32,
        n_head=2,
        vocab_size=64,
        n_positions=16,
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.GPT2LMHeadModel(config)


def train(net: Any, path: Path, *callbacks: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(64, (16,), generator=generator) for _ in range(32)]
    data = [{"input_ids": row, "labels": row} for row in rows]
    arguments = transformers.TrainingArguments(
        output_dir=str(path),
        max_steps=5,
        per_device_train_batch_size=8,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
    )
    transformers.Trainer(
        model=net, args=arguments, train_dataset=data, callbacks=list(callbacks)
    ).train()


def test_training_is_the_same_with_the_callback(tmp_path: Path) -> None:
    plain, checked = model(), model()
    callback = InitCheckCallback(every=2)
    train(plain, tmp_path)
    train(checked, tmp_path, callback)
    for a, b in zip(plain.parameters(), checked.parameters(), strict=True):
        assert torch.equal(a, b)
    assert callback.report is not None
    assert callback.report.ok
    assert callback.report.measured is not None
    assert callback.report.measured.loss is not None
    assert callback.report.measured.loss.meaning == "ln 64"
    assert callback.audit is not None
    assert callback.audit.ok
    assert [step for step, _ in callback.history] == [0, 2, 4]
