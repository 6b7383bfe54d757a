from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import BPE

from tristep.backbone.audio_encoder import AudioEncoder
from tristep.backbone.checkpoints import load_encoder, save_backbone
from tristep.backbone.model import Backbone
from tristep.codec.ear import PhoneReader
from tristep.codec.flow import NO_CODE, UNKNOWN, Flow
from tristep.codec.speaker import SpeakerEncoder
from tristep.codec.tokenizer import SpeechTokenizer
from tristep.config import load_backbone_config, load_codec_config, load_toml
from tristep.corpus.tones import write_corpus
from tristep.training.codec import run_codec
from tristep.training.codec_batches import (
    HeardClips,
    VoicedCrops,
    VoicedCropSettings,
    hear,
    prosody_bins,
    tokenize_clips,
    whole_clip_batches,
)
from tristep.training.codec_tasks import (
    FlowRecipe,
    TokenizerRecipe,
    load_tokenizer,
)
from tristep.training.mixture import CorpusSettings, read_clips
from tristep.training.settings import OptimSettings
from tristep.training.speech import SpeechSource
from tristep.vocab import TextTokenizer

RECIPES = Path(__file__).parents[2] / "recipes"
CODEC = load_codec_config("codec-toy")
CORPORA = """
corpora = [{ path = "tones/manifest.jsonl" }]
dev = [{ path = "tones/manifest.jsonl", split = "dev" }]
"""
LOOP = """
[optim]
steps = 3
ema_decay = 0.5
[loop]
log_every = 1
evaluate_every = 3
save_every = 3
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("codec")
    write_corpus(root / "tones", num_clips=20, seed=0)
    torch.manual_seed(0)
    backbone = Backbone(load_backbone_config("toy"))
    save_backbone(backbone, TextTokenizer(Tokenizer(BPE())), root / "toy", "fp32")
    SpeakerEncoder(width=16, growth=4, num_planes=4).save(root / "speaker.safetensors")
    return root


@pytest.fixture(scope="module")
def heard(root: Path) -> HeardClips:
    clips = read_clips([CorpusSettings(path="tones/manifest.jsonl")], root, 30.0)
    speaker = SpeakerEncoder.load(root / "speaker.safetensors")
    return hear(SpeechSource(clips, root / "speech"), load_encoder(root / "toy"), "toy", speaker, CODEC.tokenizer)


@pytest.fixture(scope="module")
def codes(heard: HeardClips) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(64, (int(num) // 8,), generator=generator) for num in heard.source.num_frames]


def crops(heard: HeardClips, codes: list[torch.Tensor], **settings: float) -> VoicedCrops:
    corpora = (CorpusSettings(path="tones/manifest.jsonl"),)
    drawn = {"num_crops": 6, "crop_s": 0.16, "min_reference_s": 0.05, "max_reference_s": 0.1} | settings
    return VoicedCrops(heard, codes, VoicedCropSettings(corpora=corpora, dev=corpora, **drawn), 2, 8)


def recipe(root: Path, part: str, data: str, more: str = "") -> Path:
    path = root / f"{part}.toml"
    path.write_text(
        f'part = "{part}"\ncodec = "codec-toy"\nencoder = "{root}/toy"\nspeaker = "{root}/speaker.safetensors"\n'
        f"lr = 1e-3\n{more}\n[data]\n{CORPORA}{data}\n{LOOP}"
    )
    return path


def test_the_encoder_is_loaded_alone(root: Path) -> None:
    torch.manual_seed(0)
    expected = Backbone(load_backbone_config("toy")).audio_encoder.state_dict()
    loaded = load_encoder(root / "toy")
    assert isinstance(loaded, AudioEncoder)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())


def test_both_parts_are_trained_one_on_the_other(root: Path) -> None:
    path = recipe(root, "tokenizer", "batch_s = 2")
    measures = run_codec(path, root / "runs/tokenizer", data_root=root)
    assert {
        "phone_accuracy",
        "early_phone_accuracy",
        "melody_correlation",
        "code_entropy_bits",
        "codes_used",
        "mel",
    } <= set(measures)
    weights = root / "runs/tokenizer/tokenizer.safetensors"
    load_tokenizer(CODEC.tokenizer, weights)
    path = recipe(root, "flow", "num_crops = 4\ncrop_s = 0.32\nmin_reference_s = 0.05", f'tokenizer = "{weights}"')
    measures = run_codec(path, root / "runs/flow", data_root=root)
    assert {"flow", "guess", "step"} <= set(measures)
    Flow(CODEC.flow, CODEC.tokenizer).load_state_dict(load_file(root / "runs/flow/flow.safetensors"))


def test_a_flow_learns_to_please_an_ear_on_codes_that_say_the_phones(root: Path) -> None:
    run_codec(recipe(root, "tokenizer", "batch_s = 2"), root / "runs/said", data_root=root)
    PhoneReader(load_encoder(root / "toy").config.dim).save(root / "phone_reader.safetensors")
    run = root / "runs/said"
    more = "\n".join(
        f'{name} = "{path}"'
        for name, path in (
            ("tokenizer", run / "tokenizer.safetensors"),
            ("phone_cells", run / "phone_cells.safetensors"),
            ("phone_reader", root / "phone_reader.safetensors"),
        )
    )
    path = recipe(root, "flow", "num_crops = 4\ncrop_s = 0.32\nmin_reference_s = 0.05", more)
    measures = run_codec(path, root / "runs/pleasing", data_root=root)
    assert {"flow", "guess", "phones", "frames", "voice", "right"} <= set(measures)


@pytest.mark.parametrize("missing", ["phone_cells", "phone_reader"])
def test_a_flow_without_what_its_recipe_names_says_so(root: Path, missing: str) -> None:
    run_codec(recipe(root, "tokenizer", "batch_s = 2"), root / "runs/said", data_root=root)
    more = f'tokenizer = "{root}/runs/said/tokenizer.safetensors"\n{missing} = "nowhere.safetensors"'
    with pytest.raises(ValueError, match="there is no 'nowhere\\.safetensors'"):
        run_codec(recipe(root, "flow", "", more), root / "runs/none", data_root=root)


def test_a_flow_without_a_tokenizer_says_so(root: Path) -> None:
    path = recipe(root, "flow", "", 'tokenizer = "nowhere.safetensors"')
    with pytest.raises(ValueError, match="there is no tokenizer 'nowhere\\.safetensors'"):
        run_codec(path, root / "runs/none", data_root=root)


def test_the_recipes_that_ship_are_valid() -> None:
    assert load_toml(RECIPES / "nano/0_codec_tokenizer.toml", TokenizerRecipe).part == "tokenizer"
    for name in ("0_codec_flow", "0_codec_flow_voice"):
        assert load_toml(RECIPES / f"nano/{name}.toml", FlowRecipe).part == "flow"


def test_a_batch_of_whole_clips_has_frames_mels_and_phones_of_the_same_time(heard: HeardClips) -> None:
    batch = whole_clip_batches(heard, 3.0, OptimSettings(steps=1))(0, 0, 0, 1)
    assert batch.frames is not None
    assert batch.listening_mel is not None
    assert batch.phones is not None
    B, N = batch.frames.shape[:2]
    assert batch.mel.shape == batch.listening_mel.shape == (B, 80, 2 * N)
    assert batch.f0.shape == (B, 2 * N)
    assert batch.phones.shape == (B, N)
    assert batch.phones[0, :4].unique().shape == (1,)  # a tone lasts four frames


def test_clips_have_the_codes_that_the_tokenizer_gives_each_alone(root: Path, heard: HeardClips) -> None:
    torch.manual_seed(0)
    tokenizer = SpeechTokenizer(CODEC.tokenizer).eval()
    together, alone = tokenize_clips(heard, tokenizer, size=7), tokenize_clips(heard, tokenizer, size=1)
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    assert [len(row) for row in together] == [int(num) // 8 for num in heard.source.num_frames]


def test_stretches_begin_with_a_code_and_bring_their_lookahead(heard: HeardClips, codes: list[torch.Tensor]) -> None:
    drawn = crops(heard, codes)
    rng = np.random.default_rng(0)
    for _ in range(20):
        stretch = drawn.stretch(int(rng.integers(len(codes))), rng)
        assert stretch.start % 8 == 0
        assert stretch.num_frames == 16
        own = drawn.codes_of(stretch)
        assert len(own) == 2 + 2
        first = stretch.start // 8
        expected = codes[stretch.clip][first : first + 4]
        assert own.tolist() == expected.tolist() + [NO_CODE] * (4 - len(expected))


def test_a_reference_is_another_clip_of_the_speaker(heard: HeardClips, codes: list[torch.Tensor]) -> None:
    drawn, rng = crops(heard, codes), np.random.default_rng(0)
    for _ in range(20):
        stretch = drawn.stretch(int(rng.integers(len(codes))), rng)
        assert drawn.reference(stretch, rng).clip != stretch.clip


def test_a_lone_clips_reference_does_not_overlap_the_stretch(heard: HeardClips, codes: list[torch.Tensor]) -> None:
    drawn, rng = crops(heard, codes), np.random.default_rng(0)
    drawn.by_speaker = {"tones": [3]}
    for _ in range(20):
        stretch = drawn.stretch(3, rng)
        reference = drawn.reference(stretch, rng)
        end = reference.start + reference.num_frames
        assert reference.clip == 3
        assert end <= stretch.start or reference.start >= stretch.start + stretch.num_frames


def test_a_batch_of_stretches_is_a_function_of_the_generator(heard: HeardClips, codes: list[torch.Tensor]) -> None:
    drawn = crops(heard, codes)
    first, again, other = (drawn.draw(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(getattr(first, name), getattr(again, name)) for name in vars(first))
    assert not torch.equal(first.codes, other.codes)
    assert first.mel.shape == (6, 80, 16)
    assert first.codes.shape == (6, 4)
    assert ((first.prosody >= UNKNOWN) & (first.prosody < 7)).all()


def test_every_fourth_stretch_is_lent_the_voice_before_it(heard: HeardClips, codes: list[torch.Tensor]) -> None:
    batch = crops(heard, codes).draw(np.random.default_rng(0))
    batch = replace(batch, voice=torch.arange(6.0)[:, None])
    spoken, lent = batch.with_lent_voices()
    assert lent.tolist() == [False, False, False, True, False, False]
    assert spoken.voice[:, 0].tolist() == [0, 1, 2, 2, 4, 5]
    assert torch.equal(spoken.reference_mel[3], batch.reference_mel[2])
    assert spoken.prosody[3].tolist() == [UNKNOWN, UNKNOWN]
    assert torch.equal(spoken.codes, batch.codes)


def test_louder_and_higher_fall_into_other_bins() -> None:
    waveform, f0 = 0.1 * torch.randn(24_000), torch.full((100,), 200.0)
    assert prosody_bins(waveform, f0, waveform, f0).tolist() == [3, 3]
    assert prosody_bins(2 * waveform, f0 * 2 ** (3 / 12), waveform, f0).tolist() == [5, 5]
    assert prosody_bins(waveform / 4, torch.zeros(100), waveform, f0).tolist() == [UNKNOWN, 0]
