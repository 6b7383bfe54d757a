from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from tristep.backbone.checkpoints import save_backbone
from tristep.backbone.low_rank import add_low_rank
from tristep.backbone.model import Backbone
from tristep.chat import Chat
from tristep.cli import app
from tristep.config import load_backbone_config
from tristep.engine.answers import Answer
from tristep.evaluation.conversants import FROM_SOUND, FROM_TEXT, TEXT_MODEL, load_models, ready, reply, speaking
from tristep.evaluation.realtime import Situation, UserTurn
from tristep.vocab import byte_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that serve listening and conversing, and dialogues of two turns with sound."""
    folder = tmp_path_factory.mktemp("toy")
    torch.manual_seed(0)
    toy = Backbone(load_backbone_config("toy"))
    save_backbone(toy, byte_tokenizer(), folder / "both", "fp32", {"asr": toy, "realtime": toy})
    save_backbone(toy, byte_tokenizer(), folder / "asr", "fp32", {"asr": toy})
    save_backbone(toy, byte_tokenizer(), folder / "run", "fp32")
    noise = 0.1 * np.random.default_rng(0).standard_normal(8000)
    soundfile.write(folder / "a.wav", noise, 16000)
    turns = [{"text": "Hi!", "audio": "a.wav"}, {"text": "Well?", "audio": "a.wav"}]
    rows = [{"id": name, "card": {"id": name}, "turns": turns} for name in ("a", "b")]
    (folder / "script.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_weights_are_measured_in_what_they_serve(folder: Path) -> None:
    assert set(load_models(folder / "both", is_spoken=True)[0]) == {TEXT_MODEL, FROM_TEXT, FROM_SOUND}
    assert set(load_models(folder / "both", is_spoken=False)[0]) == {TEXT_MODEL, FROM_TEXT}
    assert set(load_models(folder / "asr", is_spoken=True)[0]) == {TEXT_MODEL}
    assert set(load_models(folder / "run", is_spoken=False)[0]) == {TEXT_MODEL, FROM_TEXT}


def test_only_those_that_are_wanted_are_measured(folder: Path) -> None:
    assert set(load_models(folder / "both", is_spoken=True, only=[FROM_TEXT])[0]) == {FROM_TEXT}
    with pytest.raises(ValueError, match="there is no conversant 'realtime, text' here"):
        load_models(folder / "asr", is_spoken=False, only=[FROM_TEXT])


def test_the_text_model_of_a_run_is_what_it_was_before_it_learnt(tmp_path: Path) -> None:
    torch.manual_seed(0)
    toy = Backbone(load_backbone_config("toy"))
    before = toy.decoder.blocks[0].attention.q_proj.weight.detach().clone()
    for parameter in add_low_rank(toy.decoder, 2, ["q_proj"]):
        parameter.data.normal_()
    save_backbone(toy, byte_tokenizer(), tmp_path / "run", "fp32")
    weights = [
        ready(tmp_path / "run", None, keep_updates)[0].decoder.blocks[0].attention.q_proj.weight
        for keep_updates in (False, True)
    ]
    assert torch.equal(weights[0], before)
    assert not torch.allclose(weights[1], before)


def test_sound_is_heard_and_an_answer_alone_is_timed(folder: Path) -> None:
    models, judge = load_models(folder / "both", is_spoken=True)
    asked = Situation("a", (("user", "Hm?"), ("assistant", "Yes.")), UserTurn("Hi!", folder / "a.wav"))
    (alone,) = models[FROM_SOUND]([asked])
    assert alone.heard is not None
    assert [each.first_text_s for each in models[FROM_TEXT]([asked, asked])] == [None, None]
    assert judge("Hi!", "Yes.") < 0


def test_the_first_sound_comes_after_the_first_clause_and_not_after_the_answer() -> None:
    chat = Chat(Backbone(load_backbone_config("toy")).vocab, byte_tokenizer())
    said = "Well, that is one. And this is two."
    answer = Answer(said, times_s=tuple(float(number) for number in range(1, len(said) + 1)))
    clauses: list[str] = []

    def first_sound(text: str) -> float:
        clauses.append(text)
        return 0.5

    timed = reply(answer, chat, first_sound, hearing_s=100.0)
    assert timed.first_text_s == 101.0
    assert clauses == ["Well, that is one."]
    assert timed.first_audio_s == 100.0 + len("Well, that is one.") + 0.5
    assert reply(Answer(said), chat, first_sound).first_audio_s is None


def test_what_speaks_is_timed_to_its_first_chunk() -> None:
    asked: list[tuple[str, str | None]] = []

    class Talker:
        def stream_speech(self, text: str, voice: str | None) -> list[torch.Tensor]:
            asked.append((text, voice))
            return [torch.zeros(240)]

    assert speaking(Talker(), "ann")("Hello.") >= 0
    assert asked == [("Hello.", "ann")]


def test_the_command_writes_a_report_and_a_page(folder: Path, tmp_path: Path) -> None:
    arguments = ["evaluate", "realtime", "--dialogues", str(folder / "script.jsonl"), "--model", str(folder / "both")]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "r.json"), "--dialogue-limit", "2"])
    assert result.exit_code == 0, result.output
    assert {model["name"] for model in json.loads((tmp_path / "r.json").read_text())["models"]} == {
        TEXT_MODEL, FROM_TEXT, FROM_SOUND,
    }  # fmt: skip
    assert (tmp_path / "r.html").exists()
    assert "in character" in result.output
