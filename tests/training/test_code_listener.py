from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tristep.backbone.model import Backbone
from tristep.codec.code_listener import NO_CODE, CodeListener
from tristep.codec.codec import Codec
from tristep.codec.ear import PhoneReader
from tristep.codec.voice import Voice
from tristep.config import TokenizerConfig, load_backbone_config, load_codec_config
from tristep.phones import PHONES
from tristep.training.code_listener import MOST_CODES, Heard, Sounder, agreement, learn, read_codes, stretch


def heard_of(codes: torch.Tensor) -> Heard:
    """Hear the phone of each code's cell, except where the code before it is the same: there nothing is heard."""
    same = torch.cat([torch.tensor([False]), codes[1:] == codes[:-1]])
    phones = torch.where(same, 0, 1 + codes % 5).repeat_interleave(2)
    return Heard(codes, torch.nn.functional.one_hot(phones, len(PHONES)).float())


def test_what_is_heard_of_codes_and_their_neighbours_is_learnt() -> None:
    generator = torch.Generator().manual_seed(0)
    heard = [heard_of(torch.randint(27, (60,), generator=generator) // 9 * 9) for _ in range(12)]
    torch.manual_seed(0)
    listener = CodeListener(TokenizerConfig(stride=2, levels=(3, 3, 3), num_phone_dims=2))
    before = agreement(listener.eval(), heard[:2])
    learn(listener, heard[2:], num_steps=25)
    assert agreement(listener, heard[:2]) > max(0.9, before)


def test_a_stretch_hides_its_end_and_asks_for_nothing_there() -> None:
    heard, rng = heard_of(torch.arange(150)), np.random.default_rng(0)
    drawn = [stretch(heard, rng) for _ in range(40)]
    for codes, probs, known in drawn:
        num = int((codes != NO_CODE).sum())
        assert (codes[num:] == NO_CODE).all()
        assert not known[2 * num :].any()
        assert (probs.sum(dim=-1)[: 2 * num] == 1).all()
    assert len({int((codes != NO_CODE).sum()) for codes, _, _ in drawn}) > 10
    assert any((codes != NO_CODE).sum() == MOST_CODES for codes, _, _ in drawn)


def test_codes_are_sounded_in_a_voice_and_heard() -> None:
    torch.manual_seed(0)
    backbone = Backbone(load_backbone_config("toy"))
    codec = Codec(load_codec_config("codec-toy"), backbone.encode_audio)
    voice = Voice("a", torch.randn(192), torch.randn(80, 50), torch.zeros(5, dtype=torch.long), "", 200.0, -20.0, "CC0")
    heard = Sounder(codec, PhoneReader(codec.config.tokenizer.encoder_dim)).hear([1, 2, 3, 4], voice, seed=0)
    assert heard.probs.shape == (4 * codec.config.tokenizer.stride, len(PHONES))
    torch.testing.assert_close(heard.probs.sum(dim=-1), torch.ones(len(heard.probs)))


def test_only_training_utterances_are_read(tmp_path: Path) -> None:
    rows = [{"codes": [1, 2]}, {"codes": [3], "split": "dev"}, {"codes": []}]
    (tmp_path / "utterances.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_codes([tmp_path / "utterances.jsonl"], None, seed=0) == [[1, 2]]
    (tmp_path / "none.jsonl").write_text(json.dumps(rows[1]))
    with pytest.raises(ValueError, match="hold no codes of split 'train'"):
        read_codes([tmp_path / "none.jsonl"], None, seed=0)
