from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from tristep.audio import read_audio
from tristep.backbone.checkpoints import save_backbone
from tristep.backbone.model import Backbone
from tristep.config import load_backbone_config
from tristep.corpus import own_words
from tristep.corpus.tones import write_corpus
from tristep.engine.engine import Engine
from tristep.modes.asr.decoding import parse
from tristep.vocab import byte_tokenizer


def test_the_text_of_a_clip_becomes_what_the_model_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    backbone = Backbone(load_backbone_config("toy"))
    with torch.no_grad():
        for parameter in backbone.decoder.parameters():
            parameter *= 2  # what it writes depends on what it hears
        backbone.embedding.grown[backbone.vocab.control("turn_end") - 256] *= 2  # and it comes to an end
    save_backbone(backbone, byte_tokenizer(), tmp_path / "toy", "fp32")
    write_corpus(tmp_path / "tones", num_clips=12, seed=0)
    manifest, out = tmp_path / "tones" / "manifest.jsonl", tmp_path / "own" / "manifest.jsonl"
    monkeypatch.setattr(sys, "argv", ["own_words", str(manifest), "--model", str(tmp_path / "toy"), "--out", str(out)])
    own_words.main()
    given = {row["id"]: row for row in map(json.loads, manifest.read_text().splitlines())}
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").split("\n") if line]
    engine = Engine.load(tmp_path / "toy")
    assert rows
    for row in rows:
        (completion,) = engine.decode([read_audio(row["audio"])], drafts="none")
        assert row["text"] == parse(completion.tokens, engine.backbone.vocab, engine.chat.tokenizer).text
        assert row["text_source"] == "toy"
        assert row["duration"] == given[row["id"]]["duration"]
