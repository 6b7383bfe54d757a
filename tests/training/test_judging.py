from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tristep.audio import LISTEN_HZ, write_audio
from tristep.backbone.foreign import start_backbone
from tristep.backbone.model import Backbone
from tristep.chat import Chat
from tristep.config import load_backbone_config
from tristep.modes.judge.data import Answer, Case, Clause, Known, Verdict, render, write_known
from tristep.training.judging import (
    Batch,
    JudgingData,
    JudgingRecipe,
    Pair,
    PairSource,
    PairsSettings,
    lesson,
    open_ear,
    read_pairs,
)
from tristep.training.recipes import LearnSettings, ModelSettings
from tristep.training.settings import OptimSettings
from tristep.training.stages import load_recipe, run

RECIPE = """
mode = "judge"
[model]
config = "toy"
[learn]
decoder = 1e-3
grown = 1e-3
[data]
corpora = [{ path = "judged.jsonl" }]
dev = [{ path = "judged.jsonl", split = "held_out", max_pairs = 2 }]
batch_tokens = 1500
[optim]
steps = 2
[loop]
evaluate_every = 2
"""


def known(number: int, split: str = "train", sounds: tuple[str, ...] = ()) -> Known:
    case = Case("dialogue", f"Question {number}.", Answer("good"), Answer("bad"))
    return Known(f"{split}{number}", "worth", split, case, Verdict({"coherence": Clause("first")}, 5), sounds)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_known(tmp_path / "judged.jsonl", [known(n) for n in range(6)] + [known(n, "held_out") for n in range(4)])
    (tmp_path / "judge.toml").write_text(RECIPE)
    return tmp_path


@pytest.fixture(scope="module")
def toy() -> tuple[Backbone, Chat]:
    backbone, tokenizer = start_backbone(load_backbone_config("toy"), None, None, seed=0)
    return backbone.eval(), Chat(backbone.vocab, tokenizer)


def settings(**changed: object) -> JudgingData:
    corpus = (PairsSettings(path="judged.jsonl"),)
    return JudgingData(corpora=corpus, dev=corpus, **changed)  # type: ignore[arg-type]


def source(chat: Chat, pairs: list[Known], **changed: object) -> PairSource:
    return PairSource(chat, [Pair(one, Path(), 1.0) for one in pairs], settings(**changed), None)


def test_a_split_is_read_and_thinned_out_evenly(data: Path) -> None:
    pairs = read_pairs([PairsSettings(path="judged.jsonl", max_pairs=3)], data)
    assert [pair.known.id for pair in pairs] == ["train0", "train2", "train5"]
    assert len(read_pairs([PairsSettings(path="judged.jsonl", split="held_out")], data)) == 4


def test_every_pair_is_met_from_both_sides(toy: tuple[Backbone, Chat]) -> None:
    pairs = source(toy[1], [known(0)])
    rng = np.random.default_rng(0)
    seen = {tuple(pairs.collate(pairs.pairs, rng).tokens[0].tolist()) for _ in range(20)}
    plain, swapped = (render(toy[1], one.case, one.verdict).tokens for one in (known(0), known(0).swapped()))
    assert seen == {tuple(plain), tuple(swapped)}
    assert pairs.collate(pairs.pairs).tokens[0].tolist() == plain


def test_a_batch_follows_from_its_step_alone(toy: tuple[Backbone, Chat]) -> None:
    def tokens(batch_at: Callable[[int, int, int, int], Batch], step: int) -> list[list[int]]:
        return batch_at(step, 0, 0, 1).tokens.tolist()

    pairs = source(toy[1], [known(n) for n in range(6)], batch_tokens=1500)
    first, again = (pairs.batches(OptimSettings(steps=4)) for _ in range(2))
    assert tokens(first, 3) == tokens(again, 3)
    assert tokens(first, 0) != tokens(first, 1)


def test_pairs_are_packed_into_rows_apart_from_one_another(toy: tuple[Backbone, Chat]) -> None:
    pairs = source(toy[1], [known(0), known(1), known(2)], row_tokens=1200)
    batch = pairs.collate(pairs.pairs)
    assert int((batch.segments.max(dim=1).values + 1).sum()) == 3
    assert not batch.loss_mask[batch.segments < 0].any()


def test_sounds_are_embedded_once_and_swapped_with_their_answers(toy: tuple[Backbone, Chat], tmp_path: Path) -> None:
    for name, pitch in (("a", 0.02), ("b", 0.05)):
        write_audio(tmp_path / f"{name}.wav", 0.1 * torch.sin(torch.arange(LISTEN_HZ) * pitch), LISTEN_HZ)
    ear = open_ear(toy[0])
    pair = Pair(known(0, sounds=("a.wav", "b.wav")), tmp_path, 1.0)
    pairs = PairSource(toy[1], [pair], settings(hears=True), ear)
    (plain, sounds), (swapped, turned) = pairs.heard(pair), pairs.heard(pair, True)
    assert sounds[0] is turned[1]
    assert plain.case.first.num_slots == len(sounds[0]) > 0
    assert swapped.case.first.num_slots == len(sounds[1])
    batch = pairs.collate([pair])
    slots = int((batch.tokens == toy[0].vocab.control("audio_slot")).sum())
    assert batch.audio_embeddings is not None
    assert slots == len(batch.audio_embeddings)
    assert torch.equal(batch.audio_embeddings, torch.cat(sounds))


def test_a_judge_that_hears_leaves_the_adaptor_alone(toy: tuple[Backbone, Chat], data: Path) -> None:
    recipe = JudgingRecipe(
        mode="judge", model=ModelSettings(config="toy"), learn=LearnSettings(adaptor=1e-3),
        optim=OptimSettings(steps=1), data=settings(hears=True),
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"set adaptor = 0 in \[learn\]"):
        lesson(recipe, toy[1], toy[0], data)


def test_a_run_teaches_and_measures_a_judge(data: Path) -> None:
    assert isinstance(load_recipe(data / "judge.toml"), JudgingRecipe)
    measures = run(data / "judge.toml", data / "out", data_root=data)
    assert {"loss", "level", "reason", "accuracy", "position_agreement", "calibration_error"} <= measures.keys()
    assert 0 <= measures["accuracy"] <= 1
    assert (data / "out" / "model" / "index.json").exists()
