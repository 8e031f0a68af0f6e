"""Transformers and a state-space model, from the configurations of `transformers`."""

from __future__ import annotations

from typing import Any

from tests.zoo import Entry
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

import fanin

_SMALL = 64  # tokens of a small vocabulary


def gpt2(small: bool) -> nn.Module:
    """GPT-2 small."""
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": _SMALL} if small else {}
    return GPT2LMHeadModel(GPT2Config(use_cache=False, **sizes))


def llama(small: bool) -> nn.Module:
    """A Llama: RMS norms and SwiGLU written by hand, rotary positions, grouped queries."""
    config = LlamaConfig(
        hidden_size=32 if small else 512,
        intermediate_size=88 if small else 1376,
        num_hidden_layers=2 if small else 12,
        num_attention_heads=4 if small else 8,
        num_key_value_heads=2 if small else 4,
        vocab_size=_SMALL if small else 32000,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def llama_70b() -> nn.Module:
    """The shape of Llama-2-70B; build it on meta."""
    config = LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=32000,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def t5(small: bool) -> nn.Module:
    """T5 small, encoder and decoder, with relative positions."""
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    sizes = {**sizes, "vocab_size": _SMALL} if small else {}
    return T5ForConditionalGeneration(T5Config(use_cache=False, **sizes))


def bert(small: bool) -> nn.Module:
    """BERT base with a classifier."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes = {**sizes, "intermediate_size": 64, "vocab_size": _SMALL} if small else {}
    return BertForSequenceClassification(BertConfig(**sizes))


def whisper(small: bool) -> nn.Module:
    """Whisper tiny: convolutions on a spectrogram, encoder, decoder with cross attention."""
    sizes: dict[str, Any] = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2}
    sizes |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_mel_bins": 8}
    sizes |= {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": _SMALL}
    sizes |= {"max_source_positions": 16, "pad_token_id": 0, "decoder_start_token_id": 1}
    return WhisperForConditionalGeneration(
        WhisperConfig(use_cache=False, **(sizes if small else {}))
    )


def mamba(small: bool) -> nn.Module:
    """Mamba, in plain operations."""
    config = MambaConfig(
        hidden_size=16 if small else 768,
        state_size=4 if small else 16,
        num_hidden_layers=2 if small else 24,
        vocab_size=_SMALL if small else 50280,
        use_cache=False,
    )
    return MambaForCausalLM(config)


def moe(small: bool) -> nn.Module:
    """A small mixture of experts with learned routing."""
    config = MixtralConfig(
        hidden_size=32 if small else 512,
        intermediate_size=64 if small else 1408,
        num_hidden_layers=2 if small else 6,
        num_attention_heads=4 if small else 8,
        num_key_value_heads=2,
        num_local_experts=4 if small else 8,
        vocab_size=_SMALL if small else 32000,
        use_cache=False,
    )
    return MixtralForCausalLM(config)


def _tokens(small: bool, high: int, length: int) -> fanin.signal.spec.Spec:
    return (
        fanin.spec((2, 8), "int64", high=_SMALL)
        if small
        else fanin.spec((2, length), "int64", high=high)
    )


def _text(high: int, length: int = 128) -> Any:
    """Inputs of token ids."""
    return lambda small: {"input_ids": _tokens(small, high, length)}


def _pairs(small: bool) -> dict[str, Any]:
    """Inputs of an encoder and a decoder."""
    return {
        "input_ids": _tokens(small, 32128, 64),
        "decoder_input_ids": _tokens(small, 32128, 32),
    }


def _speech(small: bool) -> dict[str, Any]:
    """A spectrogram, and tokens."""
    sound = fanin.spec((2, 8, 32) if small else (2, 80, 3000))
    return {"input_features": sound, "decoder_input_ids": _tokens(small, 51865, 32)}


ENTRIES = (
    Entry("GPT-2 small", gpt2, _text(50257)),
    Entry("Llama-style", llama, _text(32000)),
    Entry("T5", t5, _pairs),
    Entry("BERT", bert, _text(30522)),
    Entry("Whisper", whisper, _speech),
    Entry("Mamba-style", mamba, _text(50280, 32)),
    Entry("mixture of experts", moe, _text(32000)),
)
