from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tristep.backbone.checkpoints import load_backbone
from tristep.backbone.model import Backbone
from tristep.chat import Chat
from tristep.config import load_backbone_config, load_toml
from tristep.corpus.tones import write_corpus
from tristep.modes.realtime.data import LABELS, NOTHING
from tristep.training.conversing import (
    ConversingData,
    ConversingRecipe,
    Curriculum,
    Exchange,
    Injection,
    ItemSource,
    check_injections,
    collate,
    injection_at,
    read_items,
)
from tristep.training.mixture import CorpusSettings
from tristep.training.stages import run
from tristep.vocab import byte_tokenizer

RECIPE = Path(__file__).parents[2] / "recipes" / "toy" / "realtime.toml"
SPOKEN = CorpusSettings(path="tones/exchanges.jsonl")
TYPED = CorpusSettings(path="tones/typed/exchanges.jsonl")
CLIPS = CorpusSettings(path="tones/manifest.jsonl")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_corpus(root / "tones", num_clips=20, seed=0)
    return root


@pytest.fixture(scope="module")
def toy() -> Backbone:
    torch.manual_seed(0)
    return Backbone(load_backbone_config("toy")).eval()


def source(root: Path, toy: Backbone, corpus: CorpusSettings, **shares: float) -> ItemSource:
    data = ConversingData(corpora={}, dev={}, noisy_share=0.0, **shares)
    return ItemSource(
        Chat(toy.vocab, byte_tokenizer()), toy, read_items(corpus, root, 20.0), data, root / "frames"
    )  # fmt: skip


def labels_of(source: ItemSource, generator: torch.Generator | None = None) -> set[str]:
    """Name the targets of a source's first item."""
    sample, _ = source.sample(source.items[0], generator)
    return {LABELS[label - 1] for label in sample.labels if label != NOTHING}


def targets(source: ItemSource) -> str:
    """Read the text that the first item's sample has to write."""
    sample, _ = source.sample(source.items[0])
    pairs = zip(sample.tokens, sample.labels, strict=True)
    return byte_tokenizer().decode(token for token, label in pairs if label != NOTHING and token < 256)


def test_sound_is_noted_and_answered_text_is_answered_and_clips_are_written_down(root: Path, toy: Backbone) -> None:
    assert labels_of(source(root, toy, SPOKEN)) == {"trace", "answer"}
    assert labels_of(source(root, toy, TYPED)) == {"text"}
    assert labels_of(source(root, toy, CLIPS)) == {"transcript"}


def test_what_has_to_be_written_is_what_was_heard_and_then_the_answer(root: Path, toy: Backbone) -> None:
    spoken = source(root, toy, SPOKEN)
    exchange = spoken.items[0]
    assert isinstance(exchange, Exchange)
    assert targets(spoken) == exchange.text + exchange.answer


def test_a_share_of_the_answers_comes_at_once(root: Path, toy: Backbone) -> None:
    generator = torch.Generator().manual_seed(0)
    assert labels_of(source(root, toy, SPOKEN, traced_share=0.0), generator) == {"answer"}


def test_a_share_of_the_typed_turns_is_written_as_it_would_be_heard(root: Path, toy: Backbone, tmp_path: Path) -> None:
    row = {"id": "a", "persona": "b", "history": [], "text": "It's 2 o'clock.", "answer": "So late!"}
    (tmp_path / "exchanges.jsonl").write_text(json.dumps(row) + "\n")
    typed = source(tmp_path, toy, CorpusSettings(path="exchanges.jsonl"), heard_share=1.0)
    for generator, said in ((torch.Generator(), "it's two o'clock"), (None, "It's 2 o'clock.")):
        tokens = typed.sample(typed.items[0], generator)[0].tokens
        assert said in byte_tokenizer().decode(token for token in tokens if token < 256)


def test_a_spoken_history_is_remembered_as_it_was_heard(root: Path, toy: Backbone, tmp_path: Path) -> None:
    row = json.loads((root / SPOKEN.path).read_text().splitlines()[0])
    row |= {"history": [["user", "I'm Bob, 20."], ["assistant", "Hi, Bob!"]]}
    row |= {"audio": str(root / "tones" / row["audio"]), "id": "with history"}
    (tmp_path / "exchanges.jsonl").write_text(json.dumps(row) + "\n")
    told = source(tmp_path, toy, CorpusSettings(path="exchanges.jsonl"))
    read = byte_tokenizer().decode(token for token in told.sample(told.items[0])[0].tokens if token < 256)
    assert "i'm bob twenty" in read
    assert "Hi, Bob!" in read


def test_a_batch_of_text_alone_has_no_sound_and_a_mixed_one_has_its_sounds_in_order(root: Path, toy: Backbone) -> None:
    typed, spoken = source(root, toy, TYPED), source(root, toy, SPOKEN)
    assert len(collate([typed.sample(typed.items[0])], 64).frames) == 0
    samples = [typed.sample(typed.items[0]), *(spoken.sample(item) for item in spoken.items[:3])]
    batch = collate(samples, 1024)
    assert batch.tokens.shape[0] == 1
    assert batch.frames.shape[0] == 3
    assert int((batch.tokens == toy.vocab.control("audio_slot")).sum()) == sum(
        int(toy.adaptor.num_embeddings(num)) for num in batch.num_frames
    )


def recipe_with(**injections: int) -> ConversingRecipe:
    recipe = load_toml(RECIPE, ConversingRecipe)
    listed = tuple(Injection(name=name, from_step=step, shares={"typed": 1.0}) for name, step in injections.items())
    return recipe.model_copy(update={"injections": listed})


def test_the_last_injection_that_has_begun_is_in_force() -> None:
    injections = recipe_with(first=0, second=5).injections
    assert [injection_at(injections, step).name for step in (0, 4, 5, 9)] == ["first", "first", "second", "second"]


def test_injections_that_cannot_be_followed_are_refused() -> None:
    with pytest.raises(ValueError, match="begins at step 0"):
        check_injections(recipe_with(late=3))
    unknown = Injection(name="a", from_step=0, shares={"xyzzy": 1.0})
    with pytest.raises(ValueError, match="share of 'xyzzy': expected some of asr, spoken, typed"):
        check_injections(recipe_with().model_copy(update={"injections": (unknown,)}))


def test_every_batch_rehearses_by_its_injections_shares(root: Path, toy: Backbone) -> None:
    recipe = load_toml(RECIPE, ConversingRecipe)
    sources = {name: source(root, toy, corpus) for name, corpus in recipe.data.corpora.items()}
    curriculum = Curriculum(sources, recipe)
    for step in range(3):
        labels = set(curriculum.batch_at(step, 0, 0, 1).labels.flatten().tolist())
        assert labels == {NOTHING, *range(1, len(LABELS) + 1)}
    again = Curriculum(sources, recipe)
    assert torch.equal(curriculum.batch_at(2, 0, 0, 1).tokens, again.batch_at(2, 0, 0, 1).tokens)


def test_missing_exchanges_and_splits_are_named(root: Path) -> None:
    with pytest.raises(ValueError, match="make them with `python -m tristep"):
        read_items(CorpusSettings(path="nowhere/exchanges.jsonl"), root, 20.0)
    with pytest.raises(ValueError, match="no exchange of split 'test'"):
        read_items(CorpusSettings(path="tones/exchanges.jsonl", split="test"), root, 20.0)


def test_the_toy_recipe_lowers_every_loss_and_a_resumed_run_is_the_uninterrupted_one(
    root: Path, tmp_path: Path
) -> None:
    first = run(RECIPE, tmp_path / "a", steps=2, data_root=root)
    resumed = run(RECIPE, tmp_path / "a", steps=30, data_root=root)
    for name in ("spoken_trace", "spoken_answer", "typed_text", "asr_transcript"):
        assert resumed[name] < first[name]
    run(RECIPE, tmp_path / "b", steps=30, data_root=root)
    ours, theirs = (load_backbone(tmp_path / name / "model")[0].state_dict() for name in ("a", "b"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
