"""A toy judge learns: random weights, pairs of replies of known worth, under a minute."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tristep.backbone.foreign import start_backbone
from tristep.config import load_backbone_config
from tristep.engine.agreement import Agreement, agreement
from tristep.engine.judging import BackbonePanel, Judge, consider
from tristep.modes.judge.data import Answer, Case, Clause, Known, Verdict, read_known, write_known
from tristep.training.stages import run

RECIPE = Path(__file__).parents[2] / "recipes" / "toy" / "5_judge.toml"
WORTH = ("awful", "poor", "fair", "good")
"""From the worst to the best."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def pair(number: int, split: str) -> Known:
    """Two replies, the first of which is worth more; the question says nothing about it."""
    rng = random.Random(f"{split} {number}")
    worse, better = sorted(rng.sample(range(len(WORTH)), 2))
    question = "".join(rng.choices("abcdefgh", k=6))
    case = Case("dialogue", question, Answer(WORTH[better]), Answer(WORTH[worse]))
    verdict = Verdict({"coherence": Clause("first")}, 5 if better - worse > 1 else 4)
    return Known(f"{split}{number}", "worth", split, case, verdict)


def worth(panel: BackbonePanel, known: list[Known]) -> Agreement:
    return agreement(consider(panel, [case.case for case in known]), known)


@pytest.mark.slow
def test_a_toy_learns_to_judge_pairs_it_has_not_seen_from_either_side(tmp_path: Path) -> None:
    path = tmp_path / "pairs" / "judged.jsonl"
    write_known(path, [pair(n, "train") for n in range(400)] + [pair(n, "held_out") for n in range(24)])
    held_out = read_known(path, "held_out")
    untrained = worth(BackbonePanel(*start_backbone(load_backbone_config("toy"), None, None, seed=0)), held_out)
    measures = run(RECIPE, tmp_path / "out", data_root=tmp_path)
    assert measures["accuracy"] > 0.9 > untrained.accuracy + 0.1
    judge = Judge.load(tmp_path / "out" / "model")
    learnt = worth(judge.panel, held_out)  # type: ignore[arg-type]
    assert learnt.accuracy > 0.9
    assert learnt.position_agreement > 0.9
    assert learnt.calibration_error < 0.2
