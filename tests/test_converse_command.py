from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from engine.toy_dialogue import speech
from server.toys import SAID, write_toy
from terminal.portaudio import PortAudio
from typer.testing import CliRunner, Result

from tristep.audio import SPEAK_HZ, read_audio
from tristep.backbone.checkpoints import save_backbone
from tristep.backbone.model import Backbone
from tristep.cli import app, read_persona
from tristep.config import load_backbone_config
from tristep.vocab import byte_tokenizer

DATA = Path(__file__).parent / "data"
CLIP, OTHER_CLIP = str(DATA / "kathleen_a0249.opus"), str(DATA / "kathleen_b0442.opus")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained toy on disk, which can't speak."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights") / "toy"
    save_backbone(Backbone(load_backbone_config("toy")), byte_tokenizer(), folder)
    return str(folder)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["converse", *arguments])


def test_a_turn_is_two_lines_and_its_latency_goes_to_stderr(weights: str) -> None:
    result = run(CLIP, "--persona", "A sailor.", "--model", weights)
    assert result.exit_code == 0
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == ["user", "answer"]
    assert result.stderr.startswith("first words after ")


def test_several_turns_are_json_lines_and_the_seed_settles_them(weights: str) -> None:
    first, again = (run(CLIP, OTHER_CLIP, "--json", "--seed", "4", "--model", weights) for _ in range(2))
    lines = [json.loads(line) for line in first.stdout.splitlines()]
    assert [line["path"] for line in lines] == [CLIP, OTHER_CLIP]
    assert all(line["first_text_s"] > 0 and line["first_audio_s"] is None for line in lines)
    assert [json.loads(line)["text"] for line in again.stdout.splitlines()] == [line["text"] for line in lines]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([str(DATA / "nowhere.wav")], "nowhere.wav"),
        ([CLIP, "--voice", "anna"], "give --out"),
        ([CLIP, "--out", "a.wav"], "codec"),
        ([CLIP, "--half-duplex"], "give no FILE"),
        (["--json"], "give a FILE"),
    ],
)
def test_a_mistake_is_one_sentence(weights: str, arguments: list[str], part: str) -> None:
    result = run(*arguments, "--model", weights)
    assert result.exit_code == 2
    assert part in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_persona_is_a_text_or_a_file_of_one(tmp_path: Path) -> None:
    (tmp_path / "captain.txt").write_text("A captain.\n", encoding="utf-8")
    assert read_persona(str(tmp_path / "captain.txt")) == "A captain."
    assert read_persona("A captain.") == "A captain."
    assert read_persona("x" * 5000) == "x" * 5000
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match="or the persona itself"):
        read_persona(str(tmp_path / "bad.txt"))


# By microphone and loudspeaker


def test_a_talk_goes_from_the_microphone_to_the_loudspeaker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_toy(tmp_path)
    portaudio = PortAudio(torch.cat([torch.zeros(7200), speech(900)]))
    monkeypatch.setitem(sys.modules, "sounddevice", portaudio)  # type: ignore[arg-type]
    result = run("--model", str(tmp_path), "--out", str(tmp_path / "talk.wav"))
    assert result.exit_code == 0, result.output
    user, answer = result.stdout.splitlines()
    assert user == f"user: {SAID}"
    assert answer.startswith("answer: ")  # all of it, or less where a busy machine left the loudspeaker waiting
    assert answer.endswith(" s)")
    devices, summary = result.stderr.splitlines()
    assert devices == "The microphone is a microphone, the loudspeaker a loudspeaker. Ctrl-C ends."
    assert summary.startswith("1 turn, first sound ")
    recorded, played = read_audio(tmp_path / "talk.wav", SPEAK_HZ).numpy(), np.concatenate(portaudio.played)
    num_sounding = np.count_nonzero(played)
    assert len(recorded) - num_sounding > 0.9 * SPEAK_HZ  # the user's turn
    assert (recorded[-num_sounding:] ** 2).sum() == pytest.approx((played**2).sum(), rel=0.02)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    result = run()
    assert (result.exit_code, result.stderr) == (
        2, "tristep: sounddevice is not installed: run pip install 'tristep[mic]'\n",
    )  # fmt: skip


def test_without_portaudio_it_is_said_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    result = run()
    assert result.exit_code == 2
    assert "(PortAudio library not found): install PortAudio (apt install libportaudio2" in result.stderr
    assert result.stderr.count("\n") == 1
