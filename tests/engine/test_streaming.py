from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tristep.audio import LISTEN_HZ, AudioError, read_audio
from tristep.backbone.model import Backbone
from tristep.config import load_backbone_config
from tristep.engine.engine import Engine
from tristep.engine.segments import Segmenter, Stretch
from tristep.engine.settings import Settings
from tristep.engine.streaming import MAX_PAUSE_S, MAX_SEGMENT_S, StreamEvent, TranscriptionStream
from tristep.vocab import byte_tokenizer

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def engine() -> Engine:
    torch.manual_seed(3)
    return Engine(Backbone(load_backbone_config("toy")), byte_tokenizer())


@pytest.fixture(scope="module")
def waveform() -> Tensor:
    """Speech, a pause, and more speech: 7 s in two segments."""
    clip = read_audio(DATA / "kathleen_b0442.opus")[: round(2.5 * LISTEN_HZ)]
    return torch.cat([clip, torch.zeros(2 * LISTEN_HZ), clip])


def simple() -> Backbone:
    """A backbone that finds everything equally likely: it writes a loop, which is soon cut."""
    backbone = Backbone(load_backbone_config("toy"))
    torch.nn.init.zeros_(backbone.head.weight)
    torch.nn.init.zeros_(backbone.head.grown)
    return backbone


def pushed(stream: TranscriptionStream, waveform: Tensor, num_samples: int) -> list[StreamEvent]:
    events = [event for chunk in waveform.split(num_samples) for event in stream.push(chunk)]
    return events + stream.finish()


def committed(events: list[StreamEvent]) -> str:
    return "".join(event.text for event in events if event.kind == "committed")


def test_what_is_committed_is_the_transcript(engine: Engine, waveform: Tensor) -> None:
    stream = engine.stream_transcription()
    events = pushed(stream, waveform, LISTEN_HZ)
    assert committed(events) == stream.text == stream.transcription.text
    assert stream.transcription.duration_s == pytest.approx(7.0)
    assert [event.segment for event in events if event.segment] == list(stream.transcription.segments)


@pytest.mark.parametrize("num_samples", [700, 3 * LISTEN_HZ])
def test_the_events_do_not_depend_on_the_chunks(engine: Engine, waveform: Tensor, num_samples: int) -> None:
    events = pushed(engine.stream_transcription(interval_s=1.5), waveform, num_samples)
    assert events == pushed(engine.stream_transcription(interval_s=1.5), waveform, 7 * LISTEN_HZ)


def test_committed_by_segment_it_is_the_offline_text_of_each(engine: Engine, waveform: Tensor) -> None:
    segmenter = Segmenter(MAX_SEGMENT_S, MAX_PAUSE_S)
    stretches: list[Stretch] = [*segmenter.push(waveform), *segmenter.flush()]
    offline = [engine.transcribe_stretches([stretch], Settings())[0][0] for stretch in stretches]
    stream = engine.stream_transcription(commit="segment", interval_s=2.0)
    events = pushed(stream, waveform, LISTEN_HZ)
    assert list(stream.transcription.segments) == offline
    assert len(offline) == 2
    assert committed(events) == " ".join(segment.text for segment in offline)
    assert all(event.segment for event in events if event.kind == "committed")


class Scripted(Engine):
    """An engine that writes more of a fixed text the longer the speech is, its last word wrong."""

    words = "ask not what your country can do for you but ask what you can do"

    def answer(self, heard, completions, language=None, style="spoken", sources=None):  # type: ignore[no-untyped-def]
        assert heard.num_letter_frames is not None
        for row, frames in zip(completions, heard.num_letter_frames.tolist(), strict=True):
            said = " ".join([*self.words.split()[: frames // 25], "mumble"])
            tokens = [self.backbone.vocab.control("lang_en"), *self.chat.tokenizer.encode(said)]
            assert tokens[: len(row.tokens)] == row.tokens, "what is committed has been rewritten"
            row.tokens, row.probs, row.finish_reason = tokens, [0.5] * len(tokens), "stop"
        return list(completions)


def test_words_that_two_guesses_agree_on_are_committed_before_the_segment_ends() -> None:
    engine = Scripted(simple(), byte_tokenizer())
    stream = engine.stream_transcription()
    clip = read_audio(DATA / "lj002_0154.opus")
    events = [event for chunk in clip[: 6 * LISTEN_HZ].split(1600) for event in stream.push(chunk)]
    assert stream.text
    assert engine.words.startswith(stream.text)
    assert "mumble" not in stream.text
    assert not any(event.segment for event in events)
    tails = [event.text for event in events if event.kind == "provisional"]
    assert tails[-1].endswith("mumble")


def test_what_is_committed_begins_every_later_guess(engine: Engine, waveform: Tensor) -> None:
    stream = engine.stream_transcription(interval_s=1.0)
    text = ""
    for chunk in waveform.split(1600):
        for event in stream.push(chunk):
            text += event.text if event.kind == "committed" else ""
        assert stream.text == text
    stream.finish()
    assert stream.text.startswith(text)


@pytest.mark.parametrize("commit", ["agreement", "segment"])
def test_silence_and_noise_have_no_events(engine: Engine, commit: str) -> None:
    noise = 0.2 * torch.randn(5 * LISTEN_HZ, generator=torch.Generator().manual_seed(1))
    stream = engine.stream_transcription(commit=commit)  # type: ignore[arg-type]
    assert pushed(stream, torch.cat([torch.zeros(5 * LISTEN_HZ), noise]), 3000) == []
    assert stream.transcription.finish_reason == "silence"


def test_nothing_at_all_is_silence(engine: Engine) -> None:
    stream = engine.stream_transcription()
    assert stream.push(torch.zeros(0)) == []
    assert stream.finish() == []
    assert stream.transcription.duration_s == 0


def test_a_finished_stream_takes_no_more_sound(engine: Engine) -> None:
    stream = engine.stream_transcription()
    stream.finish()
    with pytest.raises(ValueError, match="begin another"):
        stream.push(torch.zeros(10))


class Counting(Engine):
    """An engine that notes how much sound it hears, and hears no words in it."""

    def transcribe_stretches(self, stretches, settings, hotwords=(), begun=None):  # type: ignore[no-untyped-def]
        self.heard_s = [*getattr(self, "heard_s", []), *(stretch.duration_s for stretch in stretches)]
        return super().transcribe_stretches(stretches, settings, hotwords, begun)


def test_a_minute_costs_the_same_late_in_the_stream_as_early(waveform: Tensor) -> None:
    engine = Counting(simple(), byte_tokenizer())
    stream = engine.stream_transcription(interval_s=2.0)
    clip = torch.cat([read_audio(DATA / "jfk.flac"), waveform, torch.zeros(2 * LISTEN_HZ)])  # 20 s
    costs_s = []
    for _ in range(4):
        engine.heard_s = []
        stream.push(clip)
        costs_s.append(sum(engine.heard_s))
        assert max(engine.heard_s) <= MAX_SEGMENT_S
        assert len(stream._segmenter._frames) * 512 <= (MAX_SEGMENT_S + 1) * LISTEN_HZ
    assert max(costs_s[1:]) <= 1.1 * min(costs_s[1:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"commit": "often"}, "no commit 'often'"),
        ({"interval_s": 0.0}, "interval_s is 0.0"),
        ({"itn": True}, "give commit='segment'"),
        ({"language": "english"}, "no language 'english'"),
    ],
)
def test_what_does_not_go_together_is_refused(engine: Engine, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        engine.stream_transcription(**options)  # type: ignore[arg-type]


def test_a_chunk_that_is_no_waveform_is_refused(engine: Engine) -> None:
    with pytest.raises(AudioError, match="expected finite floats"):
        engine.stream_transcription().push(torch.zeros(2, 100))


def test_words_hotwords_and_digits_work_in_a_stream(engine: Engine, waveform: Tensor) -> None:
    stream = engine.stream_transcription(
        commit="segment", interval_s=2.0, words=True, hotwords=["country"], itn=True, language="en"
    )
    pushed(stream, waveform, LISTEN_HZ)
    for segment in stream.transcription.segments:
        assert segment.words is not None
        assert [word.text for word in segment.words] == segment.text.split()
