from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lhotse import MonoCut

from tristep.audio import LISTEN_HZ
from tristep.backbone.audio_encoder import AudioEncoder
from tristep.config import load_backbone_config
from tristep.training.frames import FrameStore, add_noise, cut_waveform, encode_batch
from tristep.training.mixture import row_cut

SECONDS = {"a": 0.3, "b": 0.5, "c": 0.9, "d": 0.4, "e": 0.7}


@cache
def encoder() -> AudioEncoder:
    torch.manual_seed(0)
    return AudioEncoder(load_backbone_config("toy").encoder).eval()


@pytest.fixture
def cuts(tmp_path: Path) -> list[MonoCut]:
    made = []
    for number, (name, duration_s) in enumerate(SECONDS.items()):
        waveform = 0.3 * np.random.default_rng(number).standard_normal(round(duration_s * LISTEN_HZ)).clip(-2, 2)
        soundfile.write(tmp_path / f"{name}.wav", waveform, LISTEN_HZ)
        row = {
            "id": name, "audio": f"{name}.wav", "text": name, "language": "en", "duration": duration_s,
            "sample_rate": LISTEN_HZ,
        }  # fmt: skip
        made.append(row_cut(row, tmp_path))
    return made


def filled(folder: Path, cuts: list[MonoCut], noisy_share: float = 0.0) -> FrameStore:
    store = FrameStore(folder, encoder().config.dim)
    store.fill(cuts, 1.0, encoder(), noisy_share, batch_size=2)
    return store


def contents(folder: Path) -> dict[str, torch.Tensor]:
    store = FrameStore(folder, encoder().config.dim)
    return {name: store[name] for name in store.spans}


def assert_same(folder: Path, expected: dict[str, torch.Tensor]) -> None:
    found = contents(folder)
    assert found.keys() == expected.keys()
    for name, frames in expected.items():
        assert torch.equal(found[name], frames), name


@torch.no_grad()
def test_stored_frames_are_those_of_a_fresh_encoding(tmp_path: Path, cuts: list[MonoCut]) -> None:
    store = filled(tmp_path / "store", cuts)
    for cut in cuts:
        fresh = encode_batch([cut], 1.0, encoder(), 0.0)[0]
        assert len(store[cut.id]) == len(fresh) == pytest.approx(50 * (SECONDS[cut.id] + 0.5), abs=1)
        torch.testing.assert_close(store[cut.id].float(), fresh, atol=2e-2, rtol=2e-2)


@torch.no_grad()
def test_clips_encoded_together_come_out_as_alone(cuts: list[MonoCut]) -> None:
    together = encode_batch(cuts, 1.0, encoder(), 0.0)
    for cut, frames in zip(cuts, together, strict=True):
        torch.testing.assert_close(frames, encode_batch([cut], 1.0, encoder(), 0.0)[0], atol=2e-2, rtol=2e-2)


def test_what_is_stored_is_read_again_and_not_encoded_again(tmp_path: Path, cuts: list[MonoCut]) -> None:
    folder = tmp_path / "store"
    filled(folder, cuts[:2])
    before = (folder / "frames.f16").read_bytes()
    filled(folder, cuts)
    assert (folder / "frames.f16").read_bytes().startswith(before)
    assert set(contents(folder)) == set(SECONDS)


@pytest.mark.parametrize("lost", [1, 1000, 20_000])
def test_a_store_whose_data_is_cut_off_is_filled_again(tmp_path: Path, cuts: list[MonoCut], lost: int) -> None:
    folder = tmp_path / "store"
    filled(folder, cuts)
    expected = contents(folder)
    data = (folder / "frames.f16").read_bytes()
    (folder / "frames.f16").write_bytes(data[:-lost])
    assert len(contents(folder)) < len(expected)
    filled(folder, cuts)
    assert_same(folder, expected)


@pytest.mark.parametrize("lost", [1, 5, 60, 10_000])
def test_a_store_whose_index_is_cut_off_is_filled_again(tmp_path: Path, cuts: list[MonoCut], lost: int) -> None:
    folder = tmp_path / "store"
    filled(folder, cuts)
    expected = contents(folder)
    index = (folder / "index.jsonl").read_text()
    (folder / "index.jsonl").write_text(index[:-lost])
    filled(folder, cuts)
    assert_same(folder, expected)
    filled(folder, cuts)
    assert_same(folder, expected)


def test_an_index_without_any_data_is_filled_again(tmp_path: Path, cuts: list[MonoCut]) -> None:
    folder = tmp_path / "store"
    filled(folder, cuts)
    expected = contents(folder)
    (folder / "frames.f16").unlink()
    filled(folder, cuts)
    assert_same(folder, expected)


def test_a_clip_listed_twice_is_stored_once(tmp_path: Path, cuts: list[MonoCut]) -> None:
    folder = tmp_path / "store"
    filled(folder, [*cuts, cuts[0]])
    assert len((folder / "index.jsonl").read_text().splitlines()) == len(cuts)
    filled(folder, cuts)
    assert set(contents(folder)) == set(SECONDS)


def test_speed_shortens_the_clip(cuts: list[MonoCut]) -> None:
    slow, plain, fast = (len(cut_waveform(cuts[2], speed, 0.0)) / LISTEN_HZ for speed in (0.8, 1.0, 1.25))
    assert plain == SECONDS["c"]
    assert slow == pytest.approx(SECONDS["c"] / 0.8, abs=0.001)
    assert fast == pytest.approx(SECONDS["c"] / 1.25, abs=0.001)


def test_only_the_part_that_a_cut_names_is_read(cuts: list[MonoCut]) -> None:
    whole = cut_waveform(cuts[2], 1.0, 0.0)
    part = cut_waveform(cuts[2].truncate(offset=0.25, duration=0.5), 1.0, 0.0)
    assert torch.equal(part, whole[4000:12_000])


def test_noise_is_drawn_by_clip_and_speed_and_not_by_chance(cuts: list[MonoCut]) -> None:
    clean, noisy, again = (cut_waveform(cuts[0], 1.0, share) for share in (0.0, 1.0, 1.0))
    assert torch.equal(noisy, again)
    assert not torch.equal(noisy, clean)
    gain = float((noisy @ clean) / (clean @ clean))
    residue = noisy - gain * clean
    other = cut_waveform(cuts[3], 1.0, 1.0) - cut_waveform(cuts[3], 1.0, 0.0)
    assert float(residue.std()) > 0
    assert not torch.allclose(residue[:100], other[:100])


def test_a_share_of_zero_noise_leaves_every_clip_as_recorded(tmp_path: Path, cuts: list[MonoCut]) -> None:
    recorded, _ = soundfile.read(tmp_path / "a.wav", dtype="float32")
    assert torch.equal(cut_waveform(cuts[0], 1.0, 0.0), torch.from_numpy(recorded))


def test_the_share_of_noisy_clips_is_the_one_asked_for(cuts: list[MonoCut]) -> None:
    names = [cuts[0].with_id(f"clip {number}") for number in range(200)]
    half = [cut_waveform(cut, 1.0, 0.5) for cut in names]
    clean = cut_waveform(cuts[0], 1.0, 0.0)
    scaled = sum(float((w / w.norm()) @ (clean / clean.norm())) > 1 - 1e-6 for w in half)
    assert 70 < scaled < 130


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_five_to_thirty_decibels_below_the_sound(seed: int) -> None:
    waveform = np.sin(np.arange(16_000) / 10).astype(np.float32)
    noise = add_noise(waveform, np.random.default_rng(seed)) - waveform
    ratio_db = 20 * np.log10(waveform.std() / noise.std())
    assert 4.5 < ratio_db < 30.5
