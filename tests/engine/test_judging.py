from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from corpus.chat_endpoint import endpoint
from torch import Tensor

from tristep.audio import SPEAK_HZ
from tristep.backbone.foreign import start_backbone
from tristep.config import load_backbone_config
from tristep.corpus.endpoint import ask
from tristep.engine.fitting import Reader
from tristep.engine.judging import (
    BackbonePanel,
    DialoguePrompt,
    EndpointPanel,
    Judge,
    Opinion,
    consider,
    read_answer,
)
from tristep.engine.witness import Reading, SpeechPrompt, Witness
from tristep.modes.judge.data import RUBRICS, Answer, Case

PROMPT = DialoguePrompt(("I have a dog.",), (("user", "Do you have pets?"),))
CASES = [
    Case("dialogue", "a", Answer("yes"), Answer("no")),
    Case("dialogue", "a longer question", Answer("well"), Answer("who knows")),
    Case("speech", "b", Answer("fast"), Answer("slow")),
]


def opinion(level: int, reasons: str = "") -> Opinion:
    return Opinion(reasons, tuple(float(level == other) for other in range(1, 6)))


@dataclass(frozen=True)
class ByLength:
    """Prefers the longer answer, and leans towards the first place; every reading but the first is in two minds."""

    name: str = "by length"
    lean: int = 0

    def opinions(self, cases: Sequence[Case], sound: Sequence[Tensor] = (), seed: int = 0) -> list[Opinion]:
        levels = [
            3 + (len(c.first.text) > len(c.second.text)) - (len(c.first.text) < len(c.second.text)) for c in cases
        ]
        return [opinion(min(level + self.lean, 5) if seed == 0 else 3, "words: first; pace: alike") for level in levels]


def panel(batch_size: int = 8) -> BackbonePanel:
    backbone, tokenizer = start_backbone(load_backbone_config("toy"), None, None, seed=0)
    return BackbonePanel(backbone.eval(), tokenizer, batch_size=batch_size)


def test_a_liking_for_the_first_place_cancels_out_and_is_seen() -> None:
    fair, leaning = (Judge(ByLength(lean=lean)).judge([PROMPT], ["yes, two"], ["no"])[0] for lean in (0, 1))
    assert fair.score == leaning.score == 0.5
    assert fair.agrees
    assert not leaning.agrees


def test_to_swap_candidate_and_reference_is_to_change_the_sign() -> None:
    for judge in (Judge(ByLength(lean=1)), Judge(panel())):
        assert judge.score(PROMPT, "yes, two", "no") == pytest.approx(-judge.score(PROMPT, "no", "yes, two"), abs=1e-5)


def test_an_answer_is_as_good_as_itself() -> None:
    assert Judge(panel()).score(PROMPT, "yes", "yes") == pytest.approx(0, abs=1e-6)


def test_readings_are_averaged_and_their_spread_is_told() -> None:
    once, twice = (Judge(ByLength(), num_readings=count).judge([PROMPT], ["yes, two"], ["no"])[0] for count in (1, 2))
    assert (once.score, once.spread) == (0.5, 0.0)
    assert (twice.score, twice.spread) == (0.25, 0.25)


def test_what_the_reasons_say_of_an_aspect_is_averaged_over_both_orders() -> None:
    judged = Judge(ByLength()).judge([PROMPT], ["yes, two"], ["no"])[0]
    assert judged.rubric == {"words": 0.0, "pace": 0.0}  # it says "first" whatever comes first
    assert judged.prob_better == 1.0


def test_the_expected_level_goes_from_minus_one_to_one() -> None:
    assert [opinion(level).score for level in range(1, 6)] == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert Opinion("", (0.5, 0, 0, 0, 0.5)).score == 0


def test_a_verdict_is_the_same_alone_and_in_a_batch() -> None:
    together = panel().opinions(CASES)
    alone = [panel().opinions([case])[0] for case in CASES]
    in_twos = panel(batch_size=2).opinions(CASES)
    for other in (alone, in_twos):
        assert [found.reasons for found in other] == [found.reasons for found in together]
        for one, found in zip(other, together, strict=True):
            assert one.level_probs == pytest.approx(found.level_probs, abs=1e-5)


def test_other_readings_are_drawn_and_the_same_seed_draws_the_same() -> None:
    judge = panel()
    first, second, again = (judge.opinions(CASES, seed=seed) for seed in (1, 2, 1))
    assert first == again
    assert [found.reasons for found in first] != [found.reasons for found in second]
    assert all(sum(found.level_probs) == pytest.approx(1) for found in first)


def test_sound_in_a_case_is_heard() -> None:
    judge = panel()
    case = replace(CASES[0], first=Answer("yes", 2), second=Answer("no", 3))
    sounds = [torch.randn(num, 64, generator=torch.Generator().manual_seed(num)) for num in (2, 3)]
    judged = consider(judge, [case], [sounds])[0]
    changed = consider(judge, [case], [[sounds[0], -sounds[1]]])[0]
    assert judged.score != changed.score


def test_a_judge_of_sound_needs_a_witness() -> None:
    prompt = SpeechPrompt("Hello.", Reading("", 12.0, 120.0, -25.0))
    waveform = torch.zeros(SPEAK_HZ)
    with pytest.raises(ValueError, match="has no witness"):
        Judge(ByLength()).score(prompt, waveform, waveform)
    with pytest.raises(ValueError, match="give two waveforms for a SpeechPrompt, two texts for a DialoguePrompt"):
        Judge(ByLength()).score(PROMPT, waveform, "no")


def test_a_judge_of_sound_is_told_what_its_witness_heard() -> None:
    heard = iter(["hello", "hello there you"])
    witness = Witness(lambda waveform: next(heard))
    prompt = SpeechPrompt("Hello.", Reading("", 12.0, 120.0, -25.0), "slowly")
    tone = 0.1 * torch.sin(torch.arange(SPEAK_HZ) * 0.05)
    assert Judge(ByLength(), witness).score(prompt, tone, tone) < 0  # the second one's evidence is longer


def test_a_judge_of_replies_is_told_how_well_they_fit_what_was_said() -> None:
    reader = Reader(lambda conversations, replies: [float(len(turns)) * len(reply) for turns, reply in
                                                    zip(conversations, replies, strict=True)])  # fmt: skip
    plain, told = (Judge(ByLength(), reader=each).put(PROMPT, "Yes.", "No")[0] for each in (None, reader))
    assert told == replace(plain, first=Answer("Yes.", fits="well +4.0"), second=Answer("No", fits="well +2.0"))


def test_a_case_longer_than_the_backbone_reads_is_refused() -> None:
    with pytest.raises(ValueError, match="the backbone reads 4096: judge shorter answers"):
        panel().opinions([replace(CASES[0], prompt="x" * 4000)])


def test_an_endpoint_judges_instead() -> None:
    answers = [
        json.dumps({"reasons": {"persona": side, "coherence": "alike"}, "level": level})
        for side, level in (("first", 5), ("second", 2))
    ]
    with endpoint(*answers) as (client, asked):
        judged = Judge(EndpointPanel(partial(ask, client, "m"), "m")).judge(
            [PROMPT], ["A dog, yes."], ["As an AI, no."]
        )[0]
    assert (judged.score, judged.agrees) == (0.75, True)
    assert judged.rubric == {"persona": 1.0, "coherence": 0.0}
    questions = [json.loads(request["messages"][1]["content"]) for request in asked]
    assert [question["first"] for question in questions] == ["A dog, yes.", "As an AI, no."]
    assert all(aspect in asked[0]["messages"][0]["content"] for aspect in RUBRICS["dialogue"])


@pytest.mark.parametrize(
    "content",
    ["no json", "[]", '{"level": 3}', '{"reasons": {}, "level": 9}', '{"reasons": {"persona": "me"}, "level": 3}'],
)
def test_an_endpoint_that_does_not_answer_as_asked_is_refused(content: str) -> None:
    with pytest.raises(ValueError, match=r"the judge (did not answer|answered)"):
        read_answer(content, RUBRICS["dialogue"])
