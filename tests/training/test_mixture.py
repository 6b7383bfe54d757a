from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lhotse import CutSet

from tristep.training.mixture import (
    CorpusSettings,
    Mixture,
    Sample,
    batch_finder,
    collate,
    manifest_cuts,
    pack_rows,
    read_corpus,
)

DURATIONS = st.lists(st.floats(0.2, 30), min_size=1, max_size=40)


def mixture(
    durations: list[float], repeats: float | list[float] = 1.0, batch_s: float = 40.0, seed: int = 0
) -> Mixture:
    return Mixture(np.array(durations), np.broadcast_to(np.array(repeats, float), len(durations)), batch_s, seed)


@given(DURATIONS, st.data())
@settings(deadline=None)
def test_an_epoch_sees_every_clip_as_often_as_it_repeats(durations: list[float], data: st.DataObject) -> None:
    repeats = [data.draw(st.integers(1, 3)) for _ in durations]
    seen = Counter(clip for batch in mixture(durations, [float(r) for r in repeats]).epoch(0) for clip in batch)
    assert seen == dict(enumerate(repeats))


def test_a_fraction_of_repeats_is_seen_on_average_and_differs_between_epochs() -> None:
    mixed = mixture([1.0] * 400, 1.25)
    epochs = [Counter(clip for batch in mixed.epoch(number) for clip in batch) for number in range(4)]
    assert all(set(epoch.values()) == {1, 2} for epoch in epochs)
    assert sum(map(Counter.total, epochs)) / 1600 == pytest.approx(1.25, abs=0.05)
    assert epochs[0] != epochs[1]


@given(DURATIONS, st.floats(5, 60), st.integers(0, 5))
@settings(deadline=None)
def test_a_batch_holds_its_seconds_unless_a_single_clip_is_longer(
    durations: list[float], batch_s: float, seed: int
) -> None:
    for batch in mixture(durations, batch_s=batch_s, seed=seed).epoch(0):
        assert len(batch) == 1 or sum(durations[clip] for clip in batch) <= batch_s + 1e-6
        assert batch


def test_clips_of_a_batch_are_of_similar_length() -> None:
    durations = np.random.default_rng(0).uniform(1, 20, 500).tolist()
    spreads = [
        max(durations[clip] for clip in batch) / min(durations[clip] for clip in batch)
        for batch in mixture(durations, batch_s=60).epoch(0)
    ]
    assert np.median(spreads) < 1.5


def test_epochs_and_seeds_shuffle_differently_and_the_same_ones_alike() -> None:
    durations = [1.0 + i / 10 for i in range(50)]
    assert mixture(durations).epoch(3) == mixture(durations).epoch(3)
    assert mixture(durations).epoch(3) != mixture(durations).epoch(4)
    assert mixture(durations).epoch(3) != mixture(durations, seed=1).epoch(3)


def test_an_epoch_that_draws_no_clip_at_all_is_passed_over() -> None:
    finder = batch_finder(mixture([1.0, 2.0], repeats=0.1))
    assert all(finder(step, 0, 1, 0, 1) for step in range(20))


def test_the_clips_of_a_step_do_not_depend_on_what_was_asked_before() -> None:
    durations = [1.0 + i / 10 for i in range(50)]
    whole = batch_finder(mixture(durations))
    in_order = [whole(step, 0, 1, 0, 1) for step in range(40)]
    for step in (33, 2, 39):
        assert batch_finder(mixture(durations))(step, 0, 1, 0, 1) == in_order[step]


@pytest.mark.parametrize(("num_micro", "world_size"), [(1, 3), (4, 1), (2, 3)])
def test_processes_and_micro_batches_share_the_batches_of_an_epoch_out(num_micro: int, world_size: int) -> None:
    mixed = mixture([1.0 + i / 10 for i in range(60)], batch_s=10)
    find = batch_finder(mixed)
    per_step = num_micro * world_size
    steps = len(mixed.epoch(0)) // per_step
    shared = [
        find(step, micro, num_micro, rank, world_size)
        for step in range(steps)
        for micro in range(num_micro)
        for rank in range(world_size)
    ]
    assert steps > 1
    assert shared == mixed.epoch(0)[: steps * per_step]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 60))
@settings(deadline=None)
def test_packing_overfills_no_row_and_loses_nothing(lengths: list[int], row_tokens: int) -> None:
    rows = pack_rows(lengths, row_tokens)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    for row in rows:
        assert len(row) == 1 or sum(lengths[index] for index in row) <= row_tokens


@given(st.lists(st.integers(1, 50), min_size=2, max_size=40), st.integers(1, 60))
@settings(deadline=None)
def test_no_two_rows_would_have_fitted_into_one(lengths: list[int], row_tokens: int) -> None:
    totals = sorted(sum(lengths[index] for index in row) for row in pack_rows(lengths, row_tokens))
    if len(totals) > 1:
        assert totals[0] + totals[1] > row_tokens


def numbered_sample(number: int, num_tokens: int, num_frames: int) -> Sample:
    tokens = [100 * number + i for i in range(num_tokens)]
    return Sample(
        tokens,
        [i % 2 == 1 for i in range(num_tokens)],
        torch.full((num_frames, 4), number),
        [number] * number,
        list(range(number)),
    )


def test_collating_numbers_sequences_and_keeps_sounds_in_reading_order() -> None:
    batch = collate([numbered_sample(1, 3, 2), numbered_sample(2, 5, 4), numbered_sample(3, 2, 3)], row_tokens=8)
    assert batch.tokens.tolist() == [[200, 201, 202, 203, 204, 100, 101, 102], [300, 301, 0, 0, 0, 0, 0, 0]]
    assert batch.segments.tolist() == [[0, 0, 0, 0, 0, 1, 1, 1], [0, 0, -1, -1, -1, -1, -1, -1]]
    assert batch.loss_mask.int().tolist() == [[0, 1, 0, 1, 0, 0, 1, 0], [0, 1, 0, 0, 0, 0, 0, 0]]
    assert batch.num_frames.tolist() == [4, 2, 3]
    assert batch.frames[:, :, 0].tolist() == [[2, 2, 2, 2], [1, 1, 0, 0], [3, 3, 3, 0]]
    assert batch.ctc_targets.tolist() == [2, 2, 1, 3, 3, 3]
    assert batch.num_ctc_targets.tolist() == [2, 1, 3]
    assert batch.letters.tolist() == [0, 1, 0, 0, 1, 2]
    assert batch.num_letters.tolist() == [2, 1, 3]


def test_moving_a_batch_moves_every_tensor() -> None:
    moved = collate([numbered_sample(1, 3, 2)], row_tokens=8).to(torch.device("meta"))
    assert all(tensor.device.type == "meta" for tensor in vars(moved).values())


def row(name: str, duration: float, split: str = "train") -> dict[str, object]:
    return {
        "id": name, "audio": f"audio/{name}.wav", "text": f"text of {name}", "speaker": "s", "language": "en",
        "duration": duration, "sample_rate": 16_000, "split": split,
    }  # fmt: skip


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rows = [row("a", 2.0), row("long", 31.0), row("b", 3.5), row("held", 1.0, "dev"), row("click", 0.05)]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return tmp_path


def test_only_clips_of_the_split_and_of_an_honest_length_are_read(corpus: Path) -> None:
    cuts = read_corpus(CorpusSettings(path="manifest.jsonl"), corpus)
    assert [cut.id for cut in cuts] == ["a", "b"]
    assert [cut.id for cut in read_corpus(CorpusSettings(path="manifest.jsonl", split="dev"), corpus)] == ["held"]
    assert [cut.id for cut in read_corpus(CorpusSettings(path="manifest.jsonl", max_clips=1), corpus)] == ["a"]


def test_a_cut_knows_its_sound_its_words_and_its_language(corpus: Path) -> None:
    cut = read_corpus(CorpusSettings(path="manifest.jsonl"), corpus)[0]
    assert cut.recording.sources[0].source == str(corpus / "audio/a.wav")
    assert (cut.duration, cut.recording.sampling_rate) == (2.0, 16_000)
    assert (cut.supervisions[0].text, cut.supervisions[0].language) == ("text of a", "en")


@pytest.mark.parametrize("name", ["cuts.jsonl", "cuts.jsonl.gz"])
def test_lhotse_cuts_and_our_manifest_read_alike(corpus: Path, name: str) -> None:
    manifest_cuts(corpus / "manifest.jsonl").to_file(corpus / name)
    for split in ("train", "dev"):
        theirs = read_corpus(CorpusSettings(path=name, split=split), corpus)
        ours = read_corpus(CorpusSettings(path="manifest.jsonl", split=split), corpus)
        assert [cut.to_dict() for cut in theirs] == [cut.to_dict() for cut in ours]


def test_cuts_without_a_split_all_count(corpus: Path) -> None:
    cuts = [cut.with_custom("split", None) for cut in manifest_cuts(corpus / "manifest.jsonl")]
    for cut in cuts:
        cut.custom.pop("split")
    CutSet.from_cuts(cuts).to_file(corpus / "cuts.jsonl")
    chosen = read_corpus(CorpusSettings(path="cuts.jsonl"), corpus)
    assert [cut.id for cut in chosen] == ["a", "b", "held"]


def test_a_missing_manifest_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no manifest '.*nowhere/manifest.jsonl': fetch the corpus, or say where"):
        read_corpus(CorpusSettings(path="nowhere/manifest.jsonl"), tmp_path)


def test_a_split_without_clips_is_named(corpus: Path) -> None:
    with pytest.raises(ValueError, match="has no clip of split 'test' up to 30 s long"):
        read_corpus(CorpusSettings(path="manifest.jsonl", split="test"), corpus)


@pytest.mark.parametrize("repeat", [0.0, -1.0])
def test_a_corpus_is_repeated_more_than_never(repeat: float) -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        CorpusSettings(path="manifest.jsonl", repeat=repeat)
