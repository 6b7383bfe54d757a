"""The mark of synthetic speech: it is found where it is, and nowhere else, and can hardly be heard."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from typer.testing import CliRunner

from tristep.audio import SPEAK_HZ, read_audio, write_audio
from tristep.cli import app
from tristep.mark import FOUND, Marker, distinctness, is_marked, marked
from tristep.server.encoding import Delivery, Encoder

DATA = Path(__file__).parent / "data"
CLIPS = sorted(path.name for path in DATA.glob("*.*") if path.suffix in (".opus", ".flac"))


@cache
def clip(name: str) -> Tensor:
    return read_audio(DATA / name, SPEAK_HZ)


@pytest.mark.parametrize("name", CLIPS)
def test_a_marked_recording_is_known_and_the_recording_is_not(name: str) -> None:
    assert is_marked(marked(clip(name)))
    assert distinctness(clip(name)) < FOUND - 1


@pytest.mark.parametrize("name", CLIPS)
def test_the_mark_is_far_below_the_sound(name: str) -> None:
    waveform = clip(name)
    echoes = marked(waveform) - waveform
    assert 10 * torch.log10(echoes.square().mean() / waveform.square().mean()) < -26


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 2 * SPEAK_HZ), max_size=8))
def test_chunks_are_marked_as_the_whole(cuts: list[int]) -> None:
    waveform, marker = clip(CLIPS[0])[: 2 * SPEAK_HZ], Marker()
    chunks = [marker.push(chunk) for chunk in waveform.tensor_split(sorted(cuts))]
    torch.testing.assert_close(torch.cat(chunks), marked(waveform), atol=1e-5, rtol=0)


@pytest.mark.parametrize("format", ["mp3", "aac", "opus", "flac"])
def test_a_copy_in_another_format_keeps_it(format: str) -> None:
    encoder = Encoder(Delivery(format), SPEAK_HZ)
    data = encoder.push(marked(clip("jfk.flac")).numpy()) + encoder.finish()
    assert is_marked(read_audio(data, SPEAK_HZ))


def test_it_is_found_in_a_part_that_is_louder_and_noisy() -> None:
    part = 2 * marked(clip("jfk.flac"))[12_345 : 12_345 + 6 * SPEAK_HZ]
    assert is_marked(part + 0.001 * torch.randn(len(part), generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("waveform", [torch.zeros(3 * SPEAK_HZ), torch.ones(100)])
def test_what_says_nothing_is_refused(waveform: Tensor) -> None:
    with pytest.raises(ValueError, match="or is silent"):
        distinctness(waveform)


def test_the_command_says_which_files_are_marked(tmp_path: Path) -> None:
    write_audio(tmp_path / "spoken.mp3", marked(clip("jfk.flac")), SPEAK_HZ)
    result = CliRunner().invoke(app, ["detect", str(tmp_path / "spoken.mp3"), str(DATA / "jfk.flac")])
    first, second = result.stdout.splitlines()
    assert "spoken.mp3: marked (" in first
    assert "jfk.flac: no mark (" in second
    result = CliRunner().invoke(app, ["detect", str(tmp_path / "gone.wav")])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
