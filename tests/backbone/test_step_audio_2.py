"""A whole Step-Audio 2 checkpoint in miniature: names, tokens, front end and logits.

The published modelling code is one file of a model repository and cannot be a dependency, so the reference
is put together here from report section 8.3: transformers' Qwen2-Audio layers (the encoder that it started
from) and Qwen2, run in the published order, and the adaptor in plain functions.

Sounds are compared one at a time. In a padded batch the published code hears a row a little differently from
the same row alone (its mask follows the parity of the longest row); here a row never depends on its
neighbours.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import Qwen2AudioEncoderConfig, Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder

from tristep.audio import step_audio_log_mel
from tristep.backbone.foreign import load_step_audio_2
from tristep.backbone.model import Backbone
from tristep.chat import Chat, Sound, Turn
from tristep.config import BackboneConfig, load_backbone_config
from tristep.vocab import TextTokenizer

SPECIAL = [
    "<|EOT|>",
    "<|BOT|>",
    "<|CALL_START|>",
    "<|CALL_END|>",
    "<|THINK_START|>",
    "<|THINK_END|>",
    "<|IMG_START|>",
    "<|IMG_END|>",
    "<|META_START|>",
    "<|META_END|>",
    "<im_patch>",
    "<im_start>",
    "<im_end>",
    "<dream>",
    "<dream_start>",
    "<dream_end>",
    "<|MASK_1e69f|>",
    "<|UNMASK_1e69f|>",
    "<video_start>",
    "<video_end>",
    "<patch_start>",
    "<patch_end>",
    "<patch_newline>",
    "<audio_start>",
    "<audio_end>",
    "<audio_patch>",
    "<audio_patch_pad>",
    "<|SC|>",
    "<tts_start>",
    "<tts_end>",
    "<tts_pad>",
]
"""The tokens from 151665 on, in the order of report section 8.5."""
FIRST_ADDED, FIRST_SPECIAL, NUM_CODES = 151643, 151665, 6562


def num_patches(num_mel_frames: int) -> int:
    """The published formula (report section 8.4)."""
    encoded = (num_mel_frames - 2 + 1) // 2 // 2
    return (encoded + 2 - 3) // 2 + 1


def tiny() -> BackboneConfig:
    full = load_backbone_config("step-audio-2-mini").model_dump()
    full["encoder"] |= {"dim": 16, "num_layers": 2, "num_heads": 2, "max_frames": 1500}
    full["adaptor"] |= {"hidden_dim": 24}
    full["decoder"] |= {"dim": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 48}
    return BackboneConfig.model_validate(full)


class Reference(torch.nn.Module):
    """The published order of operations on the published parameter names."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        audio = Qwen2AudioEncoderConfig(
            num_mel_bins=128, d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=64,
            max_source_positions=1500,
        )  # fmt: skip
        text = Qwen2Config(
            vocab_size=158720, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-6, tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        )  # fmt: skip
        self.encoder, self.text = Qwen2AudioEncoder(audio).eval(), Qwen2ForCausalLM(text).eval()
        self.conv = torch.nn.Conv1d(16, 16, 3, stride=2, padding=1)
        self.linear1, self.linear2 = torch.nn.Linear(16, 24), torch.nn.Linear(24, 32)
        self.requires_grad_(False)
        for parameter in self.parameters():
            parameter.normal_(std=0.2)

    def patches(self, mel: Tensor) -> Tensor:
        """One sound `(1, M, F)` -> its audio embeddings `(N, D)`."""
        T = mel.shape[-1]
        hidden = F.gelu(self.encoder.conv2(F.gelu(self.encoder.conv1(mel)))).transpose(1, 2)
        hidden = hidden + self.encoder.embed_positions.weight[: hidden.shape[1]]
        # Two frames less than there are may be attended to, seen through the convolution's stride.
        heard = (torch.arange(T) < T - 2)[(T + 1) % 2 :: 2]
        mask = torch.where(heard, 0.0, -1e10)[None, None, None]
        for layer in self.encoder.layers:
            out = layer(hidden, mask)
            hidden = out[0] if isinstance(out, tuple) else out
        hidden = self.encoder.layer_norm(F.avg_pool1d(hidden.transpose(1, 2), 2).transpose(1, 2))
        hidden = F.gelu(self.conv(hidden.transpose(1, 2))).transpose(1, 2)
        return self.linear2(F.relu(self.linear1(hidden)))[0, : num_patches(T)]

    def forward(self, tokens: Tensor, mels: list[Tensor]) -> Tensor:
        """Audio embeddings overwrite what follows each `<audio_start>`."""
        hidden = self.text.model.embed_tokens(tokens)
        for mel, (row, column) in zip(mels, (tokens == 151688).nonzero().tolist(), strict=True):
            patches = self.patches(mel)
            hidden[row, column + 1 : column + 1 + len(patches)] = patches
        return self.text(inputs_embeds=hidden).logits

    def published_names(self) -> dict[str, Tensor]:
        """All parameters under the names of report section 8.3."""
        named = {}
        for name, tensor in self.state_dict().items():
            name = name.removeprefix("text.").replace("encoder.layers.", "encoder.blocks.")
            if not name.startswith(("encoder.", "model.", "lm_head.")):
                name = f"adapter.{name}"
            if name.startswith("encoder."):
                for theirs, ours in (
                    ("self_attn_layer_norm", "attn_ln"), ("final_layer_norm", "mlp_ln"), ("out_proj", "out"),
                    ("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("self_attn", "attn"),
                    ("fc1", "mlp.0"), ("fc2", "mlp.2"), ("encoder.layer_norm", "encoder.after_norm"),
                    ("embed_positions", "positional_embedding"),
                ):  # fmt: skip
                    name = name.replace(theirs, ours)
            named[name] = tensor.contiguous()
        return named


def save_published(reference: Reference, folder: Path) -> None:
    named = reference.published_names()
    shards = {name: f"model-0000{1 + (name[:5] == 'model')}-of-00002.safetensors" for name in named}
    for shard in sorted(set(shards.values())):
        save_file({name: tensor for name, tensor in named.items() if shards[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    text = {
        "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_attention_groups": 2,
        "num_hidden_layers": 2, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "vocab_size": 158720,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({"text_config": text, "audio_encoder_config": {}}))


def save_tokenizer(folder: Path) -> None:
    """Qwen2's layout: text below 151643, its own marks, then those of `added_tokens.json`."""
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces += [f"filler {row}" for row in range(len(pieces), FIRST_ADDED)]
    tokenizer = Tokenizer(models.BPE(vocab={piece: row for row, piece in enumerate(pieces)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = [f"<|qwen_{row}|>" for row in range(FIRST_ADDED, FIRST_SPECIAL)] + SPECIAL
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in marks])
    tokenizer.save(str(folder / "tokenizer.json"))
    marks += [f"<audio_{code}>" for code in range(NUM_CODES)]
    (folder / "added_tokens.json").write_text(json.dumps({m: FIRST_ADDED + n for n, m in enumerate(marks)}))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Reference, Path]:
    folder = tmp_path_factory.mktemp("step-audio-2")
    reference = Reference()
    save_published(reference, folder)
    save_tokenizer(folder)
    return reference, folder


@pytest.fixture(scope="module")
def loaded(published: tuple[Reference, Path]) -> tuple[Backbone, TextTokenizer]:
    return load_step_audio_2(published[1], tiny(), dtype=torch.float32)


def slots_of(backbone: Backbone, mel: Tensor) -> tuple[Tensor, int]:
    """The audio embeddings of one sound, and how many count."""
    with torch.no_grad():
        adapted = backbone.adapt(*backbone.encode_audio(mel, torch.tensor([mel.shape[-1]])))
    return adapted.flat(), int(adapted.num_embeddings)


@pytest.mark.parametrize("num_mel_frames", range(40, 48))
def test_a_sound_is_heard_as_published(
    num_mel_frames: int, published: tuple[Reference, Path], loaded: tuple[Backbone, TextTokenizer]
) -> None:
    mel = torch.randn(1, 128, num_mel_frames, generator=torch.Generator().manual_seed(num_mel_frames))
    embeddings, num = slots_of(loaded[0], mel)
    assert num == num_patches(num_mel_frames)
    torch.testing.assert_close(embeddings, published[0].patches(mel), atol=1e-4, rtol=1e-4)


def test_a_conversation_with_two_sounds_has_the_published_logits(
    published: tuple[Reference, Path], loaded: tuple[Backbone, TextTokenizer]
) -> None:
    backbone, tokenizer = loaded
    generator = torch.Generator().manual_seed(5)
    mels = [torch.randn(1, 128, T, generator=generator) for T in (59, 44)]
    heard = [slots_of(backbone, mel) for mel in mels]
    chat = Chat(backbone.vocab, tokenizer)
    turn = Turn("user", (Sound(heard[0][1]), "compare", Sound(heard[1][1])))
    tokens = torch.tensor([chat.prompt([Turn("system", ("Listen.",)), turn])])
    with torch.no_grad():
        logits = backbone.logits(backbone(tokens, torch.cat([embeddings for embeddings, _ in heard])))
        expected = published[0](tokens, mels)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("duration_s", [0.3, 1.0, 7.77, 25.0])
def test_the_front_end_and_the_adaptor_agree_on_the_number_of_slots(
    duration_s: float, loaded: tuple[Backbone, TextTokenizer]
) -> None:
    waveform = torch.randn(int(16_000 * duration_s), generator=torch.Generator().manual_seed(0)) * 0.1
    mel = step_audio_log_mel(waveform)
    assert slots_of(loaded[0], mel[None])[1] == num_patches(mel.shape[-1])


def test_a_full_piece_is_25_seconds_and_313_slots() -> None:
    config = load_backbone_config("step-audio-2-mini").encoder
    mel = step_audio_log_mel(torch.zeros(int(16_000 * config.piece_s)))
    assert mel.shape == (128, 2502)
    assert num_patches(2502) == 313
    assert config.max_frames >= (2502 + 1) // 2


def test_the_published_marks_are_where_the_vocabulary_has_them(
    loaded: tuple[Backbone, TextTokenizer],
) -> None:
    backbone, tokenizer = loaded
    table = tokenizer.tokenizer
    assert table.token_to_id("<audio_patch>") == backbone.vocab.control("audio_slot") == 151690
    assert table.token_to_id("<|THINK_START|>") == backbone.vocab.control("think_start") == 151669
    assert table.token_to_id("<audio_6561>") == backbone.vocab.code_token(6561) == 158257


@pytest.mark.parametrize("typed", ["<|EOT|>", "<audio_patch>", "<audio_17>", "<tts_start>"])
def test_marks_typed_by_a_user_stay_text_though_the_file_calls_them_ordinary(
    typed: str, loaded: tuple[Backbone, TextTokenizer]
) -> None:
    backbone, tokenizer = loaded
    tokens = tokenizer.encode(f"say {typed}")
    assert all(backbone.vocab.region(token) == "text" for token in tokens)
    assert tokenizer.decode(tokens) == f"say {typed}"


def test_a_tokenizer_whose_marks_lie_elsewhere_is_refused(published: tuple[Reference, Path], tmp_path: Path) -> None:
    save_published(published[0], tmp_path)
    pieces = {piece: row for row, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    Tokenizer(models.BPE(vocab=pieces, merges=[])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"<\|EOT\|> at None, expected 151665"):
        load_step_audio_2(tmp_path, tiny())


def test_a_checkpoint_without_its_adaptor_is_refused(published: tuple[Reference, Path], tmp_path: Path) -> None:
    save_published(published[0], tmp_path)
    first = tmp_path / "model-00001-of-00002.safetensors"
    named = published[0].published_names()
    kept = {n: t for n, t in named.items() if not n.startswith(("adapter.linear2", "model."))}
    save_file(kept, first)
    with pytest.raises(ValueError, match=r"lacks 2 tensors, first adaptor\.linear2\.bias"):
        load_step_audio_2(tmp_path, tiny())
