from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import srt
import torch
from typer.testing import CliRunner, Result

import tristep
from tristep.audio import LISTEN_HZ, read_audio
from tristep.backbone.checkpoints import save_backbone
from tristep.backbone.model import Backbone
from tristep.cli import app
from tristep.config import load_backbone_config
from tristep.vocab import byte_tokenizer

DATA = Path(__file__).parent / "data"
CLIP, OTHER_CLIP = str(DATA / "jfk.flac"), str(DATA / "kathleen_b0442.opus")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained toy on disk."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights") / "toy"
    save_backbone(Backbone(load_backbone_config("toy")), byte_tokenizer(), folder)
    return str(folder)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def assert_is_users_mistake(result: Result, part: str) -> None:
    assert result.exit_code == 2
    assert part in result.stderr
    assert "Traceback" not in result.output
    assert result.stderr.count("\n") == 1


def test_one_file_gives_one_line(weights: str) -> None:
    result = run("transcribe", CLIP, "--model", weights)
    assert result.exit_code == 0
    assert result.stdout.count("\n") == 1
    assert result.stderr == ""


def test_several_files_give_a_line_each_after_their_names(weights: str) -> None:
    result = run("transcribe", CLIP, OTHER_CLIP, "--model", weights)
    assert [line.split(": ")[0] for line in result.stdout.splitlines()] == [CLIP, OTHER_CLIP]


def test_json_lines_hold_the_whole_result(weights: str) -> None:
    result = run("transcribe", CLIP, OTHER_CLIP, "--json", "--model", weights, "--language", "en")
    first, second = map(json.loads, result.stdout.splitlines())
    assert (first["path"], second["path"]) == (CLIP, OTHER_CLIP)
    assert first["duration_s"] == 11.0
    assert {"text", "language", "segments", "confidence", "finish_reason"} <= first.keys()
    assert {"start_s", "end_s", "confidence"} <= first["segments"][0].keys()


def test_captions_are_written_into_a_folder_a_file_each(weights: str, tmp_path: Path) -> None:
    out = tmp_path / "captions"
    result = run("transcribe", CLIP, OTHER_CLIP, "--format", "srt", "--out", str(out), "--model", weights)
    assert result.stdout.splitlines() == [str(out / "jfk.srt"), str(out / "kathleen_b0442.srt")]
    assert list(srt.parse((out / "jfk.srt").read_text()))


def test_the_captions_of_one_file_go_to_stdout(weights: str) -> None:
    assert run("transcribe", CLIP, "--format", "vtt", "--model", weights).stdout.startswith("WEBVTT\n\n00:")


def test_json_holds_words_if_they_are_asked_for(weights: str) -> None:
    plain, timed = (
        json.loads(run("transcribe", CLIP, "--json", "--model", weights, *more).stdout) for more in ((), ("--words",))
    )
    assert plain["segments"][0]["words"] is None
    assert {"text", "start_s", "end_s", "confidence"} == timed["segments"][0]["words"][0].keys()


def test_hotwords_are_separated_by_commas_or_repeated(weights: str) -> None:
    arguments = ("--hotwords", "Troutina, Ann", "--hotwords", "Zoe", "--itn")
    assert "troutina" in run("transcribe", CLIP, "--model", weights, *arguments).stdout


def test_a_stream_prints_what_is_settled_from_a_file_or_from_stdin(weights: str) -> None:
    printed = run("transcribe", OTHER_CLIP, "--stream", "--model", weights)
    assert printed.exit_code == 0
    pcm = (read_audio(Path(OTHER_CLIP)) * 32767).to(torch.int16).numpy().tobytes()
    piped = CliRunner().invoke(app, ["transcribe", "-", "--stream", "--model", weights], input=pcm)
    assert (piped.exit_code, piped.stderr) == (0, "")
    assert len(piped.stdout) > 1


def test_silence_is_an_empty_line_and_no_error(weights: str, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silence.wav", [0.0] * 16_000, 16_000)
    result = run("transcribe", str(tmp_path / "silence.wav"), "--model", weights)
    assert (result.exit_code, result.stdout) == (0, "\n")


def test_a_bad_file_is_reported_and_the_others_are_transcribed(weights: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"RIFF")
    result = run("transcribe", CLIP, str(bad), OTHER_CLIP, "--model", weights)
    assert_is_users_mistake(result, "bad.wav")
    assert len(result.stdout.splitlines()) == 2


@pytest.mark.parametrize("content", [b"", b"\0", b"hello" * 99, b"fLaC" + bytes(99), b"OggS" + bytes(99)])
def test_what_is_no_sound_is_one_sentence(weights: str, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "clip.wav").write_bytes(content)
    assert_is_users_mistake(run("transcribe", str(tmp_path / "clip.wav"), "--model", weights), "clip.wav")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["transcribe", "gone.wav"], "gone.wav"),
        (["transcribe", str(DATA)], "is a folder"),
        (["transcribe", CLIP, "--language", "english"], "no language 'english'"),
        (["transcribe", CLIP, "--model", "gone"], "no weights 'gone'"),
        (["transcribe", CLIP, "--json", "--format", "srt"], "both say how to print"),
        (["transcribe", CLIP, "--words"], "--words shows in JSON only"),
        (["transcribe", CLIP, OTHER_CLIP, "--format", "vtt"], "give --out"),
        (["transcribe", CLIP, "elsewhere/jfk.mp3", "--out", "captions"], "have the same name"),
        (["transcribe", CLIP, OTHER_CLIP, "--stream"], "give one FILE"),
        (["transcribe", CLIP, "--stream", "--json"], "give one FILE"),
        (["transcribe", CLIP, "--hotwords", "?!"], "can't be spelt"),
        (["transcribe", CLIP, "--itn", "--language", "fr"], "no rules for 'fr'"),
        (["transcribe", CLIP, "--itn", "--style", "written"], "ask for 'spoken'"),
        (["train", "gone.toml", "--out", "runs"], "no file 'gone.toml'"),
        (["evaluate", "asr", "--manifest", "gone.jsonl", "--out", "report.json"], "no test set at 'gone.jsonl'"),
        (["label", str(DATA), "--out", "labels", "--recogniser", "gone"], "no weights 'gone'"),
    ],
)
def test_a_mistake_is_one_sentence(weights: str, arguments: list[str], part: str) -> None:
    model = ["--model", weights] if arguments[0] == "transcribe" and "--model" not in arguments else []
    assert_is_users_mistake(run(*arguments, *model), part)


def test_a_folder_is_labelled_by_a_recogniser_of_ones_own(weights: str, tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.flac").write_bytes(Path(CLIP).read_bytes())
    result = run("label", str(tmp_path / "clips"), "--out", str(tmp_path / "out"), "--recogniser", weights)
    assert result.exit_code == 0
    assert result.stdout.startswith("1 ")
    assert len((tmp_path / "out" / "pieces.jsonl").read_text().splitlines()) == 1
    assert (tmp_path / "out" / "summary.html").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["transcribe"],
        ["transcribe", CLIP, "--batch-size", "0"],
        ["transcribe", CLIP, "--style", "x"],
        ["sing"],
        ["train", "x.toml"],
    ],
)
def test_a_wrong_usage_is_status_2(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


@pytest.mark.parametrize(
    "verb",
    [[], ["transcribe"], ["converse"], ["detect"], ["train"], ["pack"], ["label"], ["evaluate"], ["evaluate", "asr"]],
)
def test_help_fits_a_screen_of_80_by_40(verb: list[str]) -> None:
    result = run(*verb, "--help")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80


def test_help_shows_examples() -> None:
    assert "tristep transcribe hello.wav" in run("transcribe", "--help").stdout


def test_the_version_is_the_packages() -> None:
    assert run("--version").stdout == f"tristep {tristep.__version__}\n"


def test_an_evaluation_prints_a_table_and_writes_a_report(weights: str, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    manifest = str(DATA / "manifest.jsonl")
    result = run("evaluate", "asr", "--manifest", manifest, "--split", "all", "--out", str(report), "--model", weights)
    assert result.exit_code == 0, result.output
    assert "WER" in result.stdout
    assert "whisper-normalizer" in result.stdout
    assert json.loads(report.read_text())["suites"]
    assert report.with_suffix(".html").exists()


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(tristep.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


def test_the_command_runs_as_a_process_of_its_own(weights: str) -> None:
    command = [sys.executable, "-m", "tristep", "transcribe", CLIP, "gone.wav", "--json", "--model", weights]
    result = subprocess.run(command, check=False, capture_output=True, text=True, env=environment())
    assert result.returncode == 2
    assert json.loads(result.stdout)["path"] == CLIP
    assert result.stderr.startswith("tristep: gone.wav can't be read")
    assert result.stderr.count("\n") == 1


def heed_interrupts() -> None:
    """Undo what a shell does to what it runs in the background: it ignores interrupts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
def test_an_interrupt_ends_quietly_with_status_130(weights: str, tmp_path: Path) -> None:
    clip = read_audio(CLIP).numpy()
    with soundfile.SoundFile(tmp_path / "long.wav", "w", LISTEN_HZ, 1) as file:
        for _ in range(100):
            file.write(np.concatenate([clip, np.zeros(3 * LISTEN_HZ, np.float32)]))
    command = [sys.executable, "-m", "tristep", "transcribe", CLIP, str(tmp_path / "long.wav")]
    process = subprocess.Popen(
        [*command, "--model", weights, "--batch-size", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        preexec_fn=heed_interrupts,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith(CLIP)  # it is busy with the long file now
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors == ""


def test_speaking_with_weights_that_only_listen_says_so(tmp_path: Path) -> None:
    backbone = Backbone(load_backbone_config("toy"))
    save_backbone(backbone, byte_tokenizer(), tmp_path / "toy", modes={"asr": backbone})
    result = run("speak", "Hello.", "--out", str(tmp_path / "a.wav"), "--model", str(tmp_path / "toy"))
    assert_is_users_mistake(result, "serves asr, not tts")
    assert not (tmp_path / "a.wav").exists()


def test_a_voice_is_either_named_or_cloned(tmp_path: Path) -> None:
    arguments = ("--out", str(tmp_path / "a.wav"), "--voice", "a", "--clone", "b.wav")
    assert_is_users_mistake(run("speak", "Hello.", *arguments), "give one of them")
