"""Judges measure sounds whose properties are known."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tristep.audio import SPEAK_HZ, read_audio
from tristep.codec.speaker import similarity
from tristep.evaluation import speech

CLIP = Path(__file__).parents[1] / "data" / "jfk.flac"


def buzz(duration_s: float, f0_hz: float, level: float = 0.3) -> Tensor:
    """Ten harmonics of a pitch that wavers by a semitone, as a voice's would."""
    seconds = torch.arange(round(duration_s * SPEAK_HZ)) / SPEAK_HZ
    f0 = f0_hz * 2 ** (torch.sin(2 * torch.pi * 4 * seconds) / 12)
    phase = 2 * torch.pi * (f0 / SPEAK_HZ).cumsum(0)
    return level * sum((torch.sin(k * phase) / k for k in range(1, 11)), torch.zeros(1)) / 2


def silence(duration_s: float) -> Tensor:
    return torch.zeros(round(duration_s * SPEAK_HZ))


def test_pauses_inside_count_and_silence_outside_does_not() -> None:
    pytest.importorskip("parselmouth")
    waveform = torch.cat(
        [silence(1), buzz(0.5, 120), silence(0.3), buzz(0.5, 120), silence(0.05), buzz(0.5, 120), silence(2)]
    )
    said = speech.delivery(waveform, "three words here")
    assert said.duration_s == pytest.approx(1.85, abs=0.12)
    assert said.pause_s == said.longest_pause_s == pytest.approx(0.3, abs=0.03)
    assert said.words_per_s == pytest.approx(3 / said.duration_s)


def test_pitch_level_and_voicing_are_those_of_the_sound() -> None:
    pytest.importorskip("parselmouth")
    low, high = (speech.delivery(buzz(1, f0_hz), "one") for f0_hz in (110, 220))
    assert low.median_f0_hz == pytest.approx(110, rel=0.03)
    assert high.median_f0_hz == pytest.approx(220, rel=0.03)
    assert high.f0_spread == pytest.approx(0.7, abs=0.15)  # a sine of amplitude one semitone
    assert low.voiced_share > 0.9
    louder = speech.delivery(buzz(1, 110, level=0.6), "one")
    assert louder.level_db - low.level_db == pytest.approx(6.02, abs=0.01)


def test_noise_has_no_voice() -> None:
    pytest.importorskip("parselmouth")
    noise = 0.1 * torch.randn(SPEAK_HZ, generator=torch.Generator().manual_seed(0))
    assert speech.delivery(noise, "one").voiced_share < 0.2


def test_an_empty_waveform_has_no_words_and_no_pitch() -> None:
    pytest.importorskip("parselmouth")
    said = speech.delivery(silence(0.5), "")
    assert (said.words_per_s, said.median_f0_hz, said.pause_s) == (0, 0, 0)


def test_rectified_similarity_forgets_negative_numbers() -> None:
    first, second = torch.tensor([1.0, -5.0, 0.0]), torch.tensor([2.0, 3.0, 0.0])
    assert similarity(first, second) < 0
    assert speech.rectified_similarity(first, second) == pytest.approx(2 / 13**0.5)


def test_references_are_compared_over_the_shorter_length() -> None:
    pytest.importorskip("pystoi")
    clip = read_audio(CLIP, SPEAK_HZ)[: 3 * SPEAK_HZ]
    assert speech.stoi(clip, torch.cat([clip, silence(1)])) == pytest.approx(1, abs=1e-3)
    noisy = clip + 0.1 * torch.randn(len(clip), generator=torch.Generator().manual_seed(0))
    assert speech.stoi(clip, noisy) < 0.9


def test_pesq_prefers_the_reference_itself() -> None:
    pytest.importorskip("pesq")
    clip = read_audio(CLIP, SPEAK_HZ)[: 3 * SPEAK_HZ]
    noisy = clip + 0.02 * torch.randn(len(clip), generator=torch.Generator().manual_seed(0))
    assert speech.pesq_wb(clip, clip) > 4.5 > 3 > speech.pesq_wb(clip, noisy)


def test_a_missing_package_is_one_sentence() -> None:
    with (
        pytest.raises(ValueError, match=r"needs no_such_judge.*pip install no-such-judge"),
        speech.needs("no-such-judge"),
    ):
        import no_such_judge  # noqa: F401


def test_a_folder_without_distillmos_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no package distillmos in"):
        speech.load_distillmos(tmp_path)


def test_a_package_in_a_folder_is_judged_by_and_leaves_no_trace(tmp_path: Path) -> None:
    (tmp_path / "distillmos").mkdir()
    (tmp_path / "distillmos" / "__init__.py").write_text(
        "import torch, torchaudio\n"
        "print('chatter')\n"
        "class ConvTransformerSQAModel(torch.nn.Module):\n"
        "    def forward(self, waveform):\n"
        "        return torch.full((len(waveform), 1), waveform.shape[1] / 16_000)\n"
    )
    path = list(sys.path)
    try:
        rate = speech.load_distillmos(tmp_path)
    finally:
        sys.modules.pop("distillmos", None)
    assert rate(silence(2)) == pytest.approx(2)
    assert sys.path == path


def test_a_recogniser_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("faster_whisper")
    with pytest.raises(ValueError, match=r"can't load.*CTranslate2 folder"):
        speech.load_recogniser(str(tmp_path))
