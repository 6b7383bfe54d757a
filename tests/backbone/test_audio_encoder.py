from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tristep.backbone.audio_encoder import Adapted, AudioEncoder, build_adaptor
from tristep.backbone.model import Backbone
from tristep.config import AdaptorConfig, EncoderConfig, load_backbone_config

TABLE = torch.randn(64, 24, generator=torch.Generator().manual_seed(9))


def encoder(pool: int, tail_frames: int) -> AudioEncoder:
    torch.manual_seed(0)
    config = EncoderConfig.model_validate(
        {"num_mels": 8, "dim": 16, "num_layers": 2, "num_heads": 2, "max_frames": 60}
        | {"pool": pool, "tail_frames": tail_frames}
    )
    return AudioEncoder(config)


def heard(model: AudioEncoder, kind: str, mel: Tensor, num_mel_frames: Tensor) -> Adapted:
    torch.manual_seed(1)
    stride = 2 if model.config.pool == 2 else 4
    config = AdaptorConfig.model_validate(
        {
            "kind": kind,
            "stride": stride,
            "hidden_dim": 16,
            "num_layers": 1,
            "num_heads": 2,
            "num_ctc_tokens": 64,
        }
    )
    adaptor = build_adaptor(config, 16, 24)
    with torch.no_grad():
        return adaptor(*model(mel, num_mel_frames), TABLE)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(12, 100), min_size=2, max_size=4), st.integers(0, 1000))
@pytest.mark.parametrize(("pool", "tail", "kind"), [(1, 0, "linear"), (1, 0, "ctc"), (2, 2, "conv"), (2, 0, "conv")])
def test_a_sound_is_heard_in_a_padded_batch_as_it_is_alone(
    pool: int, tail: int, kind: str, lengths: list[int], seed: int
) -> None:
    model = encoder(pool, tail)
    mel = torch.randn(len(lengths), 8, max(lengths), generator=torch.Generator().manual_seed(seed))
    batch = heard(model, kind, mel, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        alone = heard(model, kind, mel[row : row + 1, :, :length], torch.tensor([length]))
        num = int(batch.num_embeddings[row])
        assert num == int(alone.num_embeddings[0])
        torch.testing.assert_close(
            batch.audio_embeddings[row, :num], alone.audio_embeddings[0, :num], atol=1e-5, rtol=1e-5
        )


def test_what_lies_beyond_a_sound_does_not_matter() -> None:
    model = encoder(1, 0)
    mel = torch.randn(1, 8, 60)
    changed = mel.clone()
    changed[..., 41:] = 1e3
    with torch.no_grad():
        first, num = model(mel, torch.tensor([41]))
        second, _ = model(changed, torch.tensor([41]))
    assert torch.equal(first[:, : num[0]], second[:, : num[0]])


def test_twelve_and_a_half_embeddings_a_second_reach_the_decoder() -> None:
    backbone = Backbone(load_backbone_config("toy"))
    frames, num_frames = backbone.encode_audio(torch.randn(1, 80, 1000), torch.tensor([1000]))
    adapted = backbone.adapt(frames, num_frames)
    assert adapted.num_embeddings.tolist() == [125]
    assert adapted.flat().shape == (125, 64)
    assert adapted.ctc_logits is not None
    assert adapted.ctc_logits.shape == (1, 125, 257)


def test_sound_longer_than_the_position_table_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at most 1 s at once, got 1\.3 s: cut the sound"):
        encoder(1, 0)(torch.randn(1, 8, 130), torch.tensor([130]))


def test_audio_slots_are_filled_in_reading_order() -> None:
    backbone = Backbone(load_backbone_config("toy"))
    slot = backbone.vocab.control("audio_slot")
    tokens = torch.tensor([[5, slot, slot, 6], [slot, 7, 8, slot]])
    embeddings = torch.arange(4.0)[:, None].expand(4, 64)
    hidden = backbone.embed(tokens, embeddings)
    assert hidden[0, 1:3, 0].tolist() == [0.0, 1.0]
    assert hidden[1, [0, 3], 0].tolist() == [2.0, 3.0]
    assert torch.equal(hidden[0, 3], backbone.embedding.weight[6])


def test_a_wrong_number_of_audio_embeddings_is_refused() -> None:
    backbone = Backbone(load_backbone_config("toy"))
    slot = backbone.vocab.control("audio_slot")
    with pytest.raises(ValueError, match="the tokens have 2 audio slots, got 1 audio embeddings"):
        backbone.embed(torch.tensor([[slot, slot]]), torch.zeros(1, 64))
