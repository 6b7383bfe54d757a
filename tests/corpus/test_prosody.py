from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch
from torch import Tensor

from tristep.audio import LISTEN_HZ
from tristep.corpus.prosody import Prosody, fit_bins, main, measure, num_letters, pauses, read_bins, write_bins

MEASURED = Prosody(
    pitch_hz=120.0, pitch_spread=2.0, letters_per_s=14.0, pause_share=0.1, longest_pause_s=0.3, centroid_hz=500.0,
    level_db=-25.0, mfcc_variance=2000.0, hnr_db=12.0,
)  # fmt: skip


def buzz(pitch_hz: float, duration_s: float, level: float = 0.1) -> Tensor:
    """Ten harmonics, as a voice has them."""
    times = torch.arange(round(duration_s * LISTEN_HZ), dtype=torch.float64) / LISTEN_HZ
    return (level * sum(torch.sin(2 * math.pi * pitch_hz * n * times) / n for n in range(1, 11))).float()


def silence(duration_s: float) -> Tensor:
    return torch.zeros(round(duration_s * LISTEN_HZ))


@pytest.mark.parametrize("pitch_hz", [90.0, 180.0, 320.0])
def test_the_pitch_of_a_buzz_is_its_own_and_does_not_move(pitch_hz: float) -> None:
    measured = measure(buzz(pitch_hz, 0.8), LISTEN_HZ)
    assert measured.pitch_hz == pytest.approx(pitch_hz, rel=0.01)
    assert measured.pitch_spread < 0.2
    assert measured.hnr_db > 15
    assert math.isnan(measured.letters_per_s)


def test_a_voice_that_wanders_spreads_by_as_many_semitones() -> None:
    measured = measure(torch.cat([buzz(150, 1.0), buzz(150 * 2 ** (4 / 12), 1.0)]), LISTEN_HZ)
    assert measured.pitch_spread == pytest.approx(2.0, abs=0.2)


def test_pauses_are_inside_the_speech_and_slow_nothing_down() -> None:
    clip = torch.cat(
        [silence(0.5), buzz(120, 0.5), silence(0.4), buzz(120, 0.5), silence(0.05), buzz(120, 0.4), silence(1)]
    )
    (pause,) = pauses(clip, LISTEN_HZ)
    assert pause == pytest.approx((1.0, 1.4), abs=0.025)
    measured = measure(clip, LISTEN_HZ, "one two three")
    assert measured.longest_pause_s == pytest.approx(0.4, abs=0.04)
    assert measured.pause_share == pytest.approx(0.4 / 1.85, abs=0.02)
    assert measured.letters_per_s == pytest.approx(11 / 1.45, rel=0.03)


def test_twice_the_amplitude_is_six_decibels_and_nothing_else() -> None:
    quiet, loud = measure(buzz(150, 1, level=0.05), LISTEN_HZ), measure(buzz(150, 1, level=0.1), LISTEN_HZ)
    assert loud.level_db - quiet.level_db == pytest.approx(6.02, abs=0.01)
    assert loud.centroid_hz == pytest.approx(quiet.centroid_hz, rel=1e-3)
    assert loud.pitch_hz == pytest.approx(quiet.pitch_hz, rel=1e-3)


def test_hiss_is_brighter_and_less_harmonic_than_a_buzz() -> None:
    hiss = 0.1 * torch.randn(LISTEN_HZ, generator=torch.Generator().manual_seed(0))
    of_hiss, of_buzz = measure(hiss, LISTEN_HZ), measure(buzz(120, 1), LISTEN_HZ)
    assert of_hiss.centroid_hz > 2 * of_buzz.centroid_hz
    assert not of_hiss.hnr_db > of_buzz.hnr_db - 10


def test_letters_are_counted_as_they_are_read() -> None:
    assert num_letters("5 cats (softly)") == len("fivecats")


@pytest.mark.parametrize("clip", [silence(2.0), buzz(100, 0.1)], ids=["silent", "short"])
def test_a_clip_without_speech_has_no_prosody(clip: Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected at least 0\.3 s of speech"):
        measure(clip, LISTEN_HZ)


def test_a_clip_is_compared_with_the_speakers_own_clips() -> None:
    low = [("low", replace(MEASURED, pitch_hz=80.0 + step)) for step in range(40)]
    high = [("high", replace(MEASURED, pitch_hz=180.0 + step)) for step in range(40)]
    rare = [("rare", replace(MEASURED, pitch_hz=119.0))]
    bins = fit_bins(low + high + rare)
    assert bins.names(replace(MEASURED, pitch_hz=119.0), "low")["pitch_hz"] == "very high"
    assert bins.names(replace(MEASURED, pitch_hz=182.0), "high")["pitch_hz"] == "very low"
    assert bins.names(replace(MEASURED, pitch_hz=200.0), "high")["pitch_hz"] == "medium"
    assert "rare" not in bins.edges  # one clip: compared with everybody, as is a stranger
    assert bins.names(MEASURED, "rare") == bins.names(MEASURED, "stranger")


def test_a_feature_that_a_clip_does_not_have_has_no_bin() -> None:
    bins = fit_bins([("a", MEASURED)])
    assert "pitch_hz" not in bins.names(replace(MEASURED, pitch_hz=float("nan")), "a")
    with pytest.raises(ValueError, match="no clips were measured"):
        fit_bins([])


def test_bins_are_read_as_they_were_written(tmp_path: Path) -> None:
    bins = fit_bins([("a", replace(MEASURED, level_db=-30.0 + step)) for step in range(30)])
    write_bins(bins, tmp_path / "bins.json")
    assert read_bins(tmp_path / "bins.json") == bins
    (tmp_path / "bins.json").write_text('{"*": {"pitch_hz": [1, 2]}}')
    with pytest.raises(ValueError, match="needs 4 edges a feature"):
        read_bins(tmp_path / "bins.json")


def test_a_manifest_is_measured_and_its_bins_serve_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    for index in range(6):
        soundfile.write(tmp_path / f"{index}.wav", buzz(100 + 20 * index, 0.5).numpy(), LISTEN_HZ)
        rows.append({"id": str(index), "audio": f"{index}.wav", "text": "aha", "speaker": "buzzer"})
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    written = []
    for out in ("first.jsonl", "second.jsonl"):
        paths = [str(tmp_path / name) for name in ("manifest.jsonl", out, "bins.json")]
        monkeypatch.setattr(sys, "argv", ["prosody", paths[0], "--out", paths[1], "--bins", paths[2]])
        main()
        written.append((tmp_path / out).read_text())
    assert written[0] == written[1]
    labelled = [json.loads(line) for line in written[0].splitlines()]
    assert [row["prosody_bins"]["pitch_hz"] for row in labelled] == [
        "very low", "low", "medium", "medium", "high", "very high",
    ]  # fmt: skip
    assert labelled[0]["prosody"]["pitch_hz"] == pytest.approx(100, rel=0.01)
