from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import av
import pytest
import torch

from tristep.audio import SPEAK_HZ, read_audio
from tristep.backbone.model import Backbone
from tristep.codec.code_listener import CodeListener
from tristep.codec.codec import Codec
from tristep.codec.voice import Voice
from tristep.config import load_backbone_config, load_codec_config
from tristep.engine.reciting import Sampling
from tristep.engine.talking import MAX_INSTRUCTIONS, Talker, sounding
from tristep.mark import SYNTHETIC, is_marked
from tristep.vocab import byte_tokenizer

TEXT = "Hello there. It is so, at 5!"


@cache
def talker() -> Talker:
    torch.manual_seed(0)
    backbone = Backbone(load_backbone_config("toy"))
    codec = Codec(load_codec_config("codec-toy"), backbone.encode_audio)
    backbone.grow_vocabulary(codec.codebook_size)
    return Talker(backbone, byte_tokenizer(), codec, Path("nowhere"))


@cache
def voice() -> Voice:
    generator = torch.Generator().manual_seed(1)
    return Voice(
        "anna", torch.randn(192, generator=generator), torch.randn(80, 50, generator=generator),
        torch.zeros(5, dtype=torch.long), "what she says", 200.0, -20.0, "CC0",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "instructions"),
    [(TEXT, ""), ("One (long pause) two. (loudly) And three, (slowly) four five.", "Speak with long pauses.")],
)
def test_a_stream_gives_the_samples_of_the_whole(text: str, instructions: str) -> None:
    whole = talker().speak(text, voice(), instructions=instructions, seed=3)
    stream = talker().stream_speech(text, voice(), instructions=instructions, seed=3)
    chunks = list(stream)
    assert len(chunks) > 4
    assert tuple(stream.sentences) == whole.sentences
    assert stream.finish_reason == whole.finish_reason
    torch.testing.assert_close(torch.cat(chunks), whole.waveform, atol=5e-3, rtol=1e-2)


@pytest.mark.parametrize("at_once", [False, True])
def test_a_stream_sounds_no_word_before_it_is_settled(monkeypatch: pytest.MonkeyPatch, at_once: bool) -> None:
    torch.manual_seed(2)
    strict = CodeListener(talker().codec.config.tokenizer).eval()  # it understands next to nothing
    monkeypatch.setattr(talker().codec, "verify", strict.verify)
    whole = talker().speak(TEXT, voice(), seed=3)
    stream = talker().stream_speech(TEXT, voice(), seed=3, at_once=at_once)
    chunks = list(stream)
    assert all(sentence.num_again > 0 for sentence in whole.sentences)
    assert stream.sentences[-1].num_again == whole.sentences[-1].num_again  # of the first nobody waits for all words
    if not at_once:
        torch.testing.assert_close(torch.cat(chunks), whole.waveform, atol=5e-3, rtol=1e-2)
    once = talker().speak(TEXT, voice(), seed=3, sampling=Sampling(max_attempts=1))
    assert [sentence.num_again for sentence in once.sentences] == [0, 0]


@pytest.mark.parametrize("speed", [0.25, 0.8, 1.5, 4.0])
def test_the_duration_follows_the_speed(speed: float) -> None:
    natural, paced = (talker().speak(TEXT, voice(), speed=factor) for factor in (1.0, speed))
    assert paced.duration_s * speed == pytest.approx(natural.duration_s, rel=0.03)
    assert paced.sentences[1].start_s * speed == pytest.approx(natural.sentences[1].start_s, rel=0.03)
    stream = talker().stream_speech(TEXT, voice(), speed=speed)
    torch.testing.assert_close(torch.cat(list(stream)), paced.waveform, atol=5e-3, rtol=1e-2)


def test_at_once_nobody_waits_for_the_silence_before_the_first_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    request = talker().request(voice(), "", 3, None)
    recital = talker().recitals(["Hello there."], request)[0]
    for _ in talker().recite(["Hello there."], [recital], request, 0):
        pass
    codes = recital.codes
    silent = torch.zeros(talker().codec.codebook_size, dtype=torch.bool)
    silent[codes[:4]] = True
    num_silent = next(place for place, code in enumerate(codes) if not silent[code])
    monkeypatch.setattr(talker().codec, "silent", silent)
    lengths = [
        sum(map(len, talker().stream_speech("Hello there.", voice(), seed=3, at_once=at_once)))
        for at_once in (False, True)
    ]
    seconds = (num_silent - 1) / talker().codec.code_rate_hz / sounding(recital.settled)["tempo"]
    assert num_silent > 3
    assert lengths[0] - lengths[1] == pytest.approx(seconds * SPEAK_HZ, abs=0.02 * SPEAK_HZ)  # frames are 10 ms


@pytest.mark.parametrize(
    ("piece", "instructions", "num_silent"),
    [("one two of three", "", 0), ("one (long pause) two", "", 25), ("one two, three four", "with long pauses", 12)],
)
def test_pauses_are_given_as_silence(piece: str, instructions: str, num_silent: int) -> None:
    recital = talker().recitals([piece], talker().request(voice(), instructions, 0, None))[0]
    recital.asked.setdefault("pauses", 3)
    vocab, silent = talker().backbone.vocab, []
    while not recital.is_done:
        given = [token for token in recital.given if vocab.region(token) == "code"]
        silent += [vocab.token_code(token) for token in given]
        recital.given.clear()
        recital.write(recital.allowed()[-1].start)  # a word ends wherever it may
    assert silent == [talker().codec.config.silence] * round(num_silent * talker().codec.code_rate_hz / 25)


def test_a_sentence_is_cut_where_its_manner_changes() -> None:
    pieces = talker().pieces("(softly) One two (long pause) three, (loudly) four. Five.")
    assert pieces == ["(softly) One two (long pause) three,", "(loudly) four.", "Five."]


def test_sentences_spoken_together_sound_as_they_do_one_by_one() -> None:
    together = talker().speak(TEXT, voice(), batch_size=2)
    alone = talker().speak(TEXT, voice(), batch_size=1)
    torch.testing.assert_close(together.waveform, alone.waveform, atol=5e-3, rtol=1e-2)
    assert together.sentences == alone.sentences


def test_what_several_threads_say_is_what_one_says() -> None:
    texts = [TEXT, "A third one.", "Or this."]
    shared = talker().sharing(num_slots=2)
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda text: shared.speak(text, voice(), seed=2), texts))
    for text, speech in zip(texts, together, strict=True):
        alone = talker().speak(text, voice(), seed=2)
        assert speech.sentences == alone.sentences
        torch.testing.assert_close(speech.waveform, alone.waveform, atol=5e-3, rtol=1e-2)


def test_a_speech_says_what_was_said_and_when(tmp_path: Path) -> None:
    speech = talker().speak(TEXT, voice())
    assert [sentence.text for sentence in speech.sentences] == ["Hello there.", "It is so, at five!"]
    assert speech.sentences[0].end_s < speech.sentences[1].start_s
    assert speech.sentences[1].end_s == speech.duration_s
    speech.write(tmp_path / "a.wav")
    assert len(read_audio(tmp_path / "a.wav", SPEAK_HZ)) == len(speech.waveform)


def test_another_seed_says_it_in_another_way() -> None:
    assert not torch.equal(talker().speak("Oh.", voice(), seed=1).waveform, talker().speak("Oh.", voice()).waveform)


@pytest.mark.parametrize("text", ["", "   ", "...", "(softly)"])
def test_a_text_without_words_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="there is nothing to say"):
        talker().speak(text, voice())


def test_what_is_said_bears_the_mark_of_synthetic_speech_unless_it_must_not() -> None:
    long = "One two three four. " * 4
    assert is_marked(talker().speak(long, voice()).waveform)
    assert is_marked(torch.cat(list(talker().stream_speech(long, voice()))))
    silent = talker().sharing()
    silent.marks = False
    assert not is_marked(silent.speak(long, voice()).waveform)


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "opus", "mp3", "au"])
def test_a_file_of_it_says_so_too_where_it_has_room(tmp_path: Path, ending: str) -> None:
    silent = talker().sharing()
    silent.marks = False
    for said, expected in ((talker(), [SYNTHETIC] if ending != "au" else []), (silent, [])):
        said.speak("Oh.", voice()).write(tmp_path / f"said.{ending}")
        with av.open(str(tmp_path / f"said.{ending}")) as container:
            tags = {**container.metadata, **container.streams[0].metadata}
        assert [tag for name, tag in tags.items() if name.lower() == "comment" and tag] == expected


def test_what_can_not_be_heeded_is_refused() -> None:
    with pytest.raises(ValueError, match=f"at most {MAX_INSTRUCTIONS} are read"):
        talker().speak("Oh.", voice(), instructions="x" * (MAX_INSTRUCTIONS + 1))
    with pytest.raises(ValueError, match="come without voices"):
        talker().speak("Oh.")
    with pytest.raises(ValueError, match="a path is never one"):
        talker().speak("Oh.", "../anna")
    with pytest.raises(ValueError, match="speed is 5: expected 0"):
        talker().speak("Oh.", voice(), speed=5)


def test_a_codec_of_another_backbone_is_refused() -> None:
    backbone = Backbone(load_backbone_config("toy"))
    with pytest.raises(ValueError, match="load the codec that the backbone was trained with"):
        Talker(backbone, byte_tokenizer(), talker().codec, Path("nowhere"))
