from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from tristep.backbone.model import Backbone
from tristep.config import load_backbone_config
from tristep.corpus.recognisers import from_engine, is_sure, load_recognisers
from tristep.engine.engine import Engine
from tristep.vocab import byte_tokenizer


@dataclass(frozen=True)
class Segment:
    """What faster-whisper says of a stretch of sound."""

    avg_logprob: float
    compression_ratio: float


@pytest.mark.parametrize(
    ("segment", "sure"),
    [(Segment(-0.2, 1.3), True), (Segment(-0.8, 1.3), False), (Segment(-0.2, 3.0), False)],
)
def test_a_segment_is_believed_if_it_is_probable_and_no_loop(segment: Segment, sure: bool) -> None:
    assert is_sure(segment) is sure


def test_our_engine_hears_silence_as_silence() -> None:
    torch.manual_seed(0)
    recognise = from_engine(Engine(Backbone(load_backbone_config("toy")), byte_tokenizer()))
    (heard,) = recognise([torch.zeros(16_000)], "en")
    assert (heard.text, heard.is_sure) == ("", True)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([], "at least one"),
        (["nano", "weights/nano"], "each of another name"),
        (["gone"], "no weights 'gone'"),
    ],
)
def test_recognisers_that_are_not_there_are_refused(names: list[str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        load_recognisers(names)
