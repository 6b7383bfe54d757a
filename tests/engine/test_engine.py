from __future__ import annotations

import gc
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import tristep
from tristep.audio import LISTEN_HZ, AudioError, read_audio
from tristep.backbone.checkpoints import save_backbone
from tristep.backbone.low_rank import LowRankLinear, add_low_rank
from tristep.backbone.model import Backbone
from tristep.backbone.precision import Precision, RoundedLinear, multiplies_int8
from tristep.config import load_backbone_config
from tristep.engine.engine import Engine
from tristep.engine.sampling import Completion
from tristep.engine.segments import speech_segments
from tristep.engine.settings import Settings
from tristep.engine.transcription import Segment, in_digits, joined
from tristep.engine.words import Word
from tristep.vocab import byte_tokenizer

DATA = Path(__file__).parents[1] / "data"
CLIP = DATA / "jfk.flac"


def toy() -> Backbone:
    torch.manual_seed(0)
    return Backbone(load_backbone_config("toy"))


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(toy(), byte_tokenizer())


def segment(text: str, duration_s: float = 1.0, language: str | None = "en", **changes: object) -> Segment:
    values = {"confidence": 0.5, "min_confidence": 0.1, "finish_reason": "stop"} | changes
    return Segment(0.0, duration_s, text, language=language, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "waveform",
    [torch.zeros(0), torch.zeros(1), torch.zeros(100), torch.zeros(90_000)],
    ids=["empty", "one sample", "too short", "silent"],
)
def test_silence_gives_empty_text_without_decoding(engine: Engine, waveform: torch.Tensor) -> None:
    result = engine.transcribe(waveform)
    assert (result.text, result.segments, result.finish_reason) == ("", (), "silence")
    assert result.language is None
    assert 0.9 < result.confidence <= 1


def test_noise_gives_empty_text(engine: Engine) -> None:
    noise = torch.randn(10 * LISTEN_HZ, generator=torch.Generator().manual_seed(1)) * 0.2
    assert engine.transcribe(noise).text == ""


def test_a_path_its_bytes_and_its_waveform_say_the_same(engine: Engine) -> None:
    results = engine.transcribe([CLIP, CLIP.read_bytes(), read_audio(CLIP), str(CLIP)])
    assert results[0].segments
    assert results[1:] == results[:1] * 3


def test_one_source_gives_one_result_and_a_list_gives_a_list(engine: Engine) -> None:
    assert engine.transcribe([CLIP]) == [engine.transcribe(CLIP)]
    assert engine.transcribe([]) == []


def test_results_come_in_the_order_of_the_sources(engine: Engine) -> None:
    sources = [DATA / "lj002_0154.opus", torch.zeros(8000), CLIP, DATA / "kathleen_b0442.opus"]
    durations = [result.duration_s for result in engine.transcribe(sources, batch_size=2)]
    assert durations == pytest.approx([9.0, 0.5, 11.0, 2.9], abs=0.02)


def test_segments_lie_inside_the_sound_and_carry_confidence(engine: Engine) -> None:
    result = engine.transcribe(CLIP)
    assert 0 <= result.segments[0].start_s < result.segments[-1].end_s <= result.duration_s
    assert all(0 < s.min_confidence <= s.confidence <= 1 for s in result.segments)


def test_the_language_can_be_fixed(engine: Engine) -> None:
    assert {s.language for s in engine.transcribe(CLIP, language="de").segments} <= {"de", None}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"language": "english"}, "no language 'english'"),
        ({"style": "rhymed"}, "no style 'rhymed'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"hotwords": "Ann, Bob"}, "give a list"),
        ({"hotwords": ["Ann", "?"]}, "'\\?' can't be spelt"),
        ({"itn": True, "language": "fr"}, "no rules for 'fr'"),
        ({"itn": True, "style": "written"}, "the style is 'written'"),
    ],
)
def test_a_setting_that_does_not_exist_is_refused(engine: Engine, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        engine.transcribe(CLIP, **settings)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "waveform",
    [torch.zeros(2, 100), torch.zeros(100, dtype=torch.int16), torch.tensor([0.0, float("nan")])],
    ids=["two channels", "integers", "not a number"],
)
def test_a_tensor_that_is_no_waveform_is_refused(engine: Engine, waveform: torch.Tensor) -> None:
    with pytest.raises(AudioError, match="expected finite floats"):
        engine.transcribe(waveform)


def test_a_bad_source_raises_but_does_not_stop_the_others_of_transcribe_each(engine: Engine) -> None:
    sources = [b"not a sound", CLIP]
    with pytest.raises(AudioError):
        engine.transcribe(sources)
    bad, good = engine.transcribe_each(sources)
    assert isinstance(bad, AudioError)
    assert good == engine.transcribe(CLIP)


def test_a_result_is_plain_json(engine: Engine) -> None:
    result = engine.transcribe(CLIP)
    read = json.loads(json.dumps(result.to_dict()))
    assert read["finish_reason"] == result.finish_reason
    assert read["segments"][0]["end_s"] == result.segments[0].end_s


def test_a_sound_ends_as_its_worst_segment_does() -> None:
    assert joined([segment("a"), segment("b", finish_reason="length")], 2.0, 0.0).finish_reason == "length"
    assert joined([segment("", finish_reason="silence"), segment("b")], 2.0, 0.0).finish_reason == "stop"
    assert joined([segment("", finish_reason="silence")], 2.0, 0.0).finish_reason == "silence"


def test_segments_are_joined_as_their_language_is_written() -> None:
    assert joined([segment("Good."), segment(""), segment("Morning.")], 3.0, 0.0).text == "Good. Morning."
    assert joined([segment("你好。", language="zh"), segment("早。", language="zh")], 3.0, 0.0).text == "你好。早。"


def test_the_language_of_most_of_the_speech_is_the_sounds() -> None:
    segments = [segment("a", 3.0), segment("b", 2.0, "de"), segment("c", 2.0, "de"), segment("", 9.0, None)]
    assert joined(segments, 16.0, 0.0).language == "de"


def test_confidence_is_weighted_by_duration() -> None:
    result = joined([segment("a", 3.0, confidence=1.0), segment("b", 1.0, confidence=0.2)], 4.0, 0.0)
    assert result.confidence == pytest.approx(0.8)


def test_low_rank_updates_are_merged_and_change_nothing() -> None:
    backbone = toy()
    for parameter in add_low_rank(backbone.decoder, 2, {"q_proj", "down_proj"}):
        torch.nn.init.normal_(parameter, std=0.02)
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        before = backbone(tokens)
        merged = Engine(backbone, byte_tokenizer()).backbone
        assert not any(isinstance(module, LowRankLinear) for module in merged.modules())
        torch.testing.assert_close(merged(tokens), before, atol=1e-5, rtol=1e-4)


def test_a_saved_model_loads_by_its_folder_and_says_the_same(engine: Engine, tmp_path: Path) -> None:
    save_backbone(engine.backbone, engine.chat.tokenizer, tmp_path / "toy", packing="fp32")
    assert tristep.load(tmp_path / "toy", precision="fp32").transcribe(CLIP) == engine.transcribe(CLIP)


@pytest.mark.parametrize("precision", ["bf16", "int8", "int4", None])
def test_the_decoder_has_few_bits_and_the_ear_with_it(
    engine: Engine, tmp_path: Path, precision: Precision | None
) -> None:
    save_backbone(engine.backbone, engine.chat.tokenizer, tmp_path / "toy", packing="fp32")
    loaded = tristep.load(tmp_path / "toy", precision=precision)
    assert loaded.backbone.embedding.weight.dtype == torch.bfloat16
    assert loaded.backbone.audio_encoder.conv1.weight.dtype == torch.float32
    rounds = any(isinstance(module, RoundedLinear) for module in loaded.backbone.audio_encoder.modules())
    assert rounds == (precision != "bf16" and multiplies_int8())
    assert loaded.transcribe(CLIP).segments


def test_an_unknown_precision_is_refused(engine: Engine, tmp_path: Path) -> None:
    save_backbone(engine.backbone, engine.chat.tokenizer, tmp_path / "toy", packing="fp32")
    with pytest.raises(ValueError, match="no precision 'int3': give fp32, bf16, int8, int4"):
        tristep.load(tmp_path / "toy", precision="int3")  # type: ignore[arg-type]


def test_progress_adds_up_to_the_duration(engine: Engine) -> None:
    heard: list[float] = []
    list(engine.transcribe_each([CLIP, torch.zeros(160_000)], on_progress=heard.append))
    assert sum(heard) == pytest.approx(21.0)


def ten_minutes(path: Path) -> Path:
    """Write speech and silence, ten minutes of it."""
    clip = read_audio(CLIP).numpy()
    with soundfile.SoundFile(path, "w", LISTEN_HZ, 1) as file:
        while file.frames < 600 * LISTEN_HZ:
            file.write(np.concatenate([clip, np.zeros(3 * LISTEN_HZ, np.float32)]))
    return path


def test_ten_minutes_are_transcribed_in_bounded_memory(engine: Engine, tmp_path: Path) -> None:
    path = ten_minutes(tmp_path / "long.wav")
    held: list[int] = []

    def watch(_: float) -> None:
        held.append(num_bytes_alive())

    (result,) = engine.transcribe_each([path], batch_size=1, on_progress=watch)
    assert not isinstance(result, AudioError)
    assert len(result.segments) >= 600 // 14 - 1
    assert result.duration_s >= 600
    early, late = max(held[:20]), max(held[-20:])
    assert late < early + 2e6  # ten minutes at 16 kHz are 38 MB


def num_bytes_alive() -> int:
    """Count the memory of every tensor that is alive, views only once."""
    tensors = [thing for thing in gc.get_objects() if type(thing) is torch.Tensor and not thing.is_mkldnn]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def test_importing_the_package_and_its_command_line_does_not_import_torch() -> None:
    code = "import sys, tristep, tristep.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_transcribing_imports_nothing_that_only_training_needs() -> None:
    heavy = ("lhotse", "matplotlib", "transformers", "jiwer", "scipy", "huggingface_hub")
    code = f"import sys, tristep.engine.engine; sys.exit(', '.join(sys.modules.keys() & {set(heavy)!r}))"
    result = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert result.stderr.strip() == ""


EVERYTHING: dict[str, Any] = {"words": True, "hotwords": ["Troutina"], "itn": True}
SOURCES = [CLIP, DATA / "kathleen_b0442.opus", torch.zeros(8000), DATA / "lj002_0154.opus"]


def test_the_words_of_a_segment_are_its_text_and_lie_inside_it(engine: Engine) -> None:
    result = engine.transcribe(CLIP, words=True)
    for segment in result.segments:
        assert segment.words is not None
        assert [word.text for word in segment.words] == segment.text.split()
        edges = [edge for word in segment.words for edge in (word.start_s, word.end_s)]
        assert edges == sorted(edges)
        assert all(segment.start_s - 1e-6 <= edge <= segment.end_s + 1e-6 for edge in edges)
        assert all(0 < word.confidence <= 1 for word in segment.words)
    assert json.loads(json.dumps(result.to_dict()))["segments"][0]["words"][0].keys() == {
        "text", "start_s", "end_s", "confidence",
    }  # fmt: skip


def test_nobody_who_did_not_ask_gets_words(engine: Engine) -> None:
    assert all(segment.words is None for segment in engine.transcribe(CLIP).segments)


def test_words_change_nothing_else(engine: Engine) -> None:
    plain, timed = engine.transcribe(CLIP), engine.transcribe(CLIP, words=True)
    assert [replace(segment, words=None) for segment in timed.segments] == list(plain.segments)


def test_a_hotword_that_the_sound_agrees_with_is_written(engine: Engine) -> None:
    # Untrained, the toy's letters agree with everything.
    assert "troutina" not in engine.transcribe(CLIP).text
    assert "troutina" in engine.transcribe(CLIP, hotwords=["Troutina"]).text
    assert "Troutina" in engine.transcribe(CLIP, hotwords=["Troutina"], style="written").text


@pytest.mark.parametrize("batch_size", [1, 2])
def test_everything_together_says_the_same_in_any_batch(engine: Engine, batch_size: int) -> None:
    together = engine.transcribe(SOURCES, batch_size=batch_size, **EVERYTHING)
    alone = [engine.transcribe(source, **EVERYTHING) for source in SOURCES]
    assert [result.text for result in together] == [result.text for result in alone]
    assert any("troutina" in result.text for result in together)
    for one, other in zip(together, alone, strict=True):
        for first, second in zip(one.segments, other.segments, strict=True):
            assert [word.text for word in first.words or ()] == [word.text for word in second.words or ()]
            assert [word.start_s for word in first.words or ()] == pytest.approx(
                [word.start_s for word in second.words or ()], abs=0.1
            )


def test_digits_keep_the_times_of_what_was_said() -> None:
    words = (Word("for", 1.0, 1.2, 0.9), Word("twenty", 1.2, 1.5, 0.8), Word("dollars", 1.6, 2.0, 0.6))
    (number, price) = in_digits(segment("for twenty dollars", words=words)).words or ()
    assert (number, price.text, price.start_s, price.end_s) == (words[0], "$20", 1.2, 2.0)
    assert in_digits(segment("for twenty dollars")) == segment("for $20")


@pytest.mark.parametrize("options", [{"words": True}, {"hotwords": ["Ann"]}])
def test_what_needs_letters_is_refused_without_them(options: dict[str, Any]) -> None:
    config = load_backbone_config("toy")
    adaptor = config.adaptor.model_copy(update={"kind": "linear"})
    listener = Engine(Backbone(config.model_copy(update={"adaptor": adaptor})), byte_tokenizer())
    with pytest.raises(ValueError, match="needs an adaptor that spells letters, this one is 'linear'"):
        listener.transcribe(CLIP, **options)


def test_what_has_been_begun_is_gone_on_with(engine: Engine) -> None:
    (stretch,) = speech_segments([read_audio(DATA / "kathleen_b0442.opus")])
    ((_, whole),) = engine.transcribe_stretches([stretch], Settings())
    begun = Completion(0, whole.tokens[:1], whole.probs[:1])
    ((_, again),) = engine.transcribe_stretches([stretch], Settings(), begun=[begun])
    assert again.tokens == whole.tokens
    assert len(begun.tokens) == 1
    assert again.probs == pytest.approx(whole.probs, rel=1e-3)


def test_what_is_heard_in_a_batch_is_bit_for_bit_what_is_heard_alone(engine: Engine) -> None:
    sounds = [torch.randn(num, generator=torch.Generator().manual_seed(num)) * 0.1 for num in (16_000, 40_001, 8_000)]
    together = engine.hear(sounds)
    for row, sound in enumerate(sounds):
        alone = engine.hear([sound])
        num = int(alone.num_embeddings)
        assert int(together.num_embeddings[row]) == num
        assert torch.equal(together.audio_embeddings[row, :num], alone.audio_embeddings[0, :num])
        assert torch.equal(together.shown[row, :num], alone.shown[0, :num])
