"""The audio encoder against transformers' Whisper, with the same random weights."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import WhisperConfig, WhisperForConditionalGeneration

from tristep.backbone.audio_encoder import AudioEncoder
from tristep.backbone.foreign import load_encoder
from tristep.config import EncoderConfig

CONFIG = EncoderConfig(num_mels=80, dim=16, num_layers=2, num_heads=2, max_frames=1500)
OPENAI = (
    (r"model\.encoder\.layers\.", "encoder.blocks."),
    (r"self_attn_layer_norm", "attn_ln"),
    (r"self_attn\.q_proj", "attn.query"),
    (r"self_attn\.k_proj", "attn.key"),
    (r"self_attn\.v_proj", "attn.value"),
    (r"self_attn\.out_proj", "attn.out"),
    (r"fc1", "mlp.0"),
    (r"fc2", "mlp.2"),
    (r"final_layer_norm", "mlp_ln"),
    (r"model\.encoder\.layer_norm", "encoder.ln_post"),
    (r"model\.encoder\.embed_positions\.weight", "encoder.positional_embedding"),
    (r"model\.encoder\.", "encoder."),
)


@pytest.fixture(scope="module")
def whisper() -> WhisperForConditionalGeneration:
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=64, num_mel_bins=80, d_model=16, encoder_layers=2, decoder_layers=1, encoder_ffn_dim=64,
        encoder_attention_heads=2, decoder_attention_heads=2, decoder_ffn_dim=16, max_source_positions=1500,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


def assert_equal(encoder: AudioEncoder, whisper: WhisperForConditionalGeneration) -> None:
    mel = torch.randn(2, 80, 3000, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = whisper.model.encoder(mel).last_hidden_state
        frames, num_frames = encoder(mel, torch.tensor([3000, 3000]))
    assert num_frames.tolist() == [1500, 1500]
    torch.testing.assert_close(frames, expected, atol=1e-4, rtol=1e-4)


def test_thirty_seconds_come_out_as_from_whisper_with_hugging_face_names(
    whisper: WhisperForConditionalGeneration, tmp_path: Path
) -> None:
    whisper.save_pretrained(tmp_path)
    encoder = AudioEncoder(CONFIG)
    load_encoder(encoder, tmp_path)
    assert_equal(encoder, whisper)


def openai_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state.items():
        for theirs, ours in OPENAI:
            name = re.sub(theirs, ours, name)
        renamed[name] = tensor.clone()
    return renamed


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_openai_names_load_as_hugging_face_names_do(
    suffix: str, whisper: WhisperForConditionalGeneration, tmp_path: Path
) -> None:
    state = openai_names({k: v for k, v in whisper.state_dict().items() if k.startswith("model.")})
    path = tmp_path / f"tiny.{suffix}"
    if suffix == "pt":
        torch.save({"dims": {"n_mels": 80}, "model_state_dict": state}, path)
    else:
        save_file(state, path)
    encoder = AudioEncoder(CONFIG)
    load_encoder(encoder, path)
    assert_equal(encoder, whisper)


def test_an_encoder_of_another_width_is_refused_by_shape(
    whisper: WhisperForConditionalGeneration, tmp_path: Path
) -> None:
    whisper.save_pretrained(tmp_path)
    encoder = AudioEncoder(CONFIG.model_copy(update={"dim": 32}))
    with pytest.raises(ValueError, match=r"of shape .* the config expects"):
        load_encoder(encoder, tmp_path)


def test_an_encoder_with_fewer_layers_than_the_config_is_refused(
    whisper: WhisperForConditionalGeneration, tmp_path: Path
) -> None:
    whisper.save_pretrained(tmp_path)
    encoder = AudioEncoder(CONFIG.model_copy(update={"num_layers": 3}))
    with pytest.raises(ValueError, match=r"lacks 15 tensors, first blocks\.2"):
        load_encoder(encoder, tmp_path)
