from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tristep.backbone.model import Backbone
from tristep.chat import Chat
from tristep.config import load_backbone_config
from tristep.corpus.tones import write_corpus
from tristep.training.hearing import DataSettings, HearingRecipe, SampleSource, choose_tokens
from tristep.training.mixture import CorpusSettings, read_clips
from tristep.training.recipes import LearnSettings, ModelSettings
from tristep.training.settings import OptimSettings
from tristep.vocab import byte_tokenizer

CORPUS = CorpusSettings(path="tones/manifest.jsonl", speeds=(1.0, 1.1))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_corpus(root / "tones", num_clips=12, seed=0)
    return root


def source(root: Path, **settings: float) -> SampleSource:
    torch.manual_seed(0)
    backbone = Backbone(load_backbone_config("toy"))
    data = DataSettings(corpora=(CORPUS,), dev=(CORPUS,), spec_augment=True, **settings)
    clips = read_clips(data.corpora, root, data.max_duration_s)
    return SampleSource(Chat(backbone.vocab, byte_tokenizer()), backbone, clips, data, root / "frames")


def test_a_joined_sample_is_two_clips_one_after_the_other(root: Path) -> None:
    joined = source(root, joined_share=1.0)
    clip, generator = joined.clips[0], torch.Generator().manual_seed(3)
    other = joined.neighbour(clip, torch.Generator().manual_seed(3))
    assert other is not None
    sample = joined.sample(clip, generator)
    assert len(sample.frames) == len(joined.frames(clip)) + len(joined.frames(other))
    assert f"{clip.text} {other.text}" in byte_tokenizer().decode(t for t in sample.tokens if t < 256)
    assert len(sample.letters) == len(f"{clip.text} {other.text}")


def test_clips_are_joined_neither_for_measuring_nor_beyond_what_the_encoder_hears(root: Path) -> None:
    clip = source(root).clips[0]
    assert len(source(root, joined_share=1.0).sample(clip, None).frames) == len(source(root).frames(clip))
    short = source(root, joined_share=1.0, max_duration_s=1.5 * clip.duration_s)
    longest = max(short.clips, key=lambda clip: clip.duration_s)
    assert short.neighbour(longest, torch.Generator().manual_seed(0)) is None


def test_the_ctc_tokens_are_chosen_once_even_if_the_corpus_grows(root: Path, tmp_path: Path) -> None:
    grown = source(root)
    recipe = HearingRecipe(
        model=ModelSettings(config="toy"), learn=LearnSettings(adaptor=0.1), optim=OptimSettings(steps=1),
        data=DataSettings(corpora=(CORPUS,), dev=(CORPUS,)),
    )  # fmt: skip
    adaptor = Backbone(load_backbone_config("toy")).adaptor
    choose_tokens(recipe, grown.chat, adaptor, root, tmp_path / "ctc_tokens.json")
    chosen = adaptor.ctc_tokens.clone()
    adaptor.ctc_tokens.zero_()
    choose_tokens(recipe, grown.chat, adaptor, tmp_path / "nowhere", tmp_path / "ctc_tokens.json")
    assert torch.equal(adaptor.ctc_tokens, chosen)
