from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tristep.audio import LISTEN_HZ, read_audio
from tristep.engine.segments import (
    FRAME_SIZE,
    MAX_SEGMENT_S,
    Segmenter,
    Stretch,
    quietest,
    speech_bounds,
    speech_segments,
)

CLIP = Path(__file__).parents[1] / "data" / "jfk.flac"
NUM_SAMPLES = 20 * LISTEN_HZ


def noises() -> dict[str, Tensor]:
    """Sounds in which nobody speaks."""
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(NUM_SAMPLES, generator=generator)
    time_s = torch.arange(NUM_SAMPLES) / LISTEN_HZ
    chord = sum(torch.sin(2 * torch.pi * hz * time_s) for hz in (220.0, 277.2, 329.6, 440.0))
    assert isinstance(chord, Tensor)
    return {
        "silence": torch.zeros(NUM_SAMPLES),
        "quiet noise": white * 1e-3,
        "loud noise": (white * 0.5).clamp(-1, 1),
        "rumble": (white.cumsum(0) / 200).clamp(-1, 1),
        "chord with a beat": chord / 5 * (1 + torch.sin(2 * torch.pi * 2 * time_s)) / 2,
        "mains hum": torch.sin(2 * torch.pi * 50 * time_s) * 0.8,
    }


def spans(segments: list[Stretch]) -> list[tuple[float, float]]:
    return [(segment.start_s, segment.end_s) for segment in segments]


@pytest.mark.parametrize("name", noises())
def test_where_nobody_speaks_there_are_no_segments(name: str) -> None:
    assert list(speech_segments([noises()[name]])) == []


def test_speech_between_silences_is_found_with_a_short_margin() -> None:
    clip, silence = read_audio(CLIP), torch.zeros(5 * LISTEN_HZ)
    (segment,) = speech_segments([silence, clip, silence])
    assert 5.0 <= segment.start_s <= 5.6
    assert 5.0 + len(clip) / LISTEN_HZ - 1 <= segment.end_s <= 5.0 + len(clip) / LISTEN_HZ + 0.3


@pytest.mark.parametrize("chunk_size", [100, 512, 16_001, 1_000_000])
def test_segments_do_not_depend_on_the_chunks(chunk_size: int) -> None:
    waveform = torch.cat([read_audio(CLIP), torch.zeros(50_000), read_audio(CLIP)])
    whole = list(speech_segments([waveform]))
    chunked = list(speech_segments(torch.split(waveform, chunk_size)))
    assert spans(chunked) == spans(whole)
    assert all(torch.equal(a.waveform, b.waveform) for a, b in zip(whole, chunked, strict=True))


def test_a_segment_is_the_stretch_of_sound_that_its_times_say() -> None:
    waveform = torch.cat([read_audio(CLIP)] * 4)
    for segment in speech_segments(torch.split(waveform, 8000)):
        start = round(segment.start_s * LISTEN_HZ)
        assert torch.equal(segment.waveform, waveform[start : start + len(segment.waveform)])


def test_speech_without_a_long_pause_is_cut_into_segments_that_fit_and_do_not_overlap() -> None:
    waveform = torch.cat([read_audio(CLIP)] * 8)
    segments = list(speech_segments(torch.split(waveform, LISTEN_HZ)))
    assert all(segment.duration_s <= MAX_SEGMENT_S for segment in segments)
    assert all(a.end_s <= b.start_s for a, b in pairwise(segments))
    # All of it is speech with short pauses: most has to be kept, in as few segments as context asks for.
    assert sum(segment.duration_s for segment in segments) > 0.9 * len(waveform) / LISTEN_HZ
    assert len(segments) <= 6


def test_a_long_pause_ends_a_segment() -> None:
    clip = read_audio(CLIP)
    assert len(list(speech_segments([clip, torch.zeros(4 * LISTEN_HZ), clip]))) == 2


def test_no_sound_at_all_is_silence() -> None:
    segmenter = Segmenter()
    assert [*segmenter.push(torch.zeros(0)), *segmenter.flush()] == []
    assert segmenter.max_prob == 0.0


def test_memory_is_bounded_by_one_segment_however_long_the_silence() -> None:
    segmenter = Segmenter()
    for _ in range(60):
        assert list(segmenter.push(torch.zeros(LISTEN_HZ))) == []
    assert len(segmenter._frames) * FRAME_SIZE < 3 * LISTEN_HZ


def test_speech_is_bounded_by_the_sure_beginning_and_the_unsure_end() -> None:
    assert speech_bounds([0.1, 0.4, 0.6, 0.4, 0.2, 0.4, 0.1]) == (2, 6)
    assert speech_bounds([0.1, 0.4]) == (2, 2)
    assert speech_bounds([]) == (0, 0)


def test_the_cut_lies_in_the_middle_of_the_longest_pause_of_the_second_half() -> None:
    probs = [0.9] * 400
    probs[50:100] = [0.0] * 50
    probs[250:254] = [0.0] * 4
    probs[300:315] = [0.0] * 15
    assert 303 <= quietest(probs) <= 311
