from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tristep.backbone.checkpoints import save_backbone
from tristep.backbone.foreign import start_backbone
from tristep.config import load_backbone_config
from tristep.engine.judging import DialoguePrompt, Judgement, Opinion
from tristep.modes.judge.data import Case
from tristep.modes.realtime.persona import PersonaCard
from tristep.modes.tts.data import Manner, Utterance, Word
from tristep.objectives.rewards import shaped
from tristep.phones import without_repeats
from tristep.pronouncing import english
from tristep.training.conversing import Exchange
from tristep.training.policies import ListenerSettings
from tristep.training.reward_workers import (
    Listeners,
    cer,
    joined,
    load_listeners,
    manner_obeyed,
    measure_replies,
    measure_speech,
    measure_transcripts,
    tempo_obeyed,
    wer,
)
from tristep.training.rollouts import Asked, Replied, Rollout, Spoken, Transcribed
from tristep.training.speaking import Direction

REFERENCE = Utterance((Word("hello", 0), Word("world", 5)), tuple(range(10)))
ASKED = Asked(REFERENCE, Direction("Slowly.", {"pace": 1}))
SETTLED = Manner(pace=1)


def heard(reference: str, text: str) -> Rollout:
    return Rollout([], [], [], None, Transcribed(reference, text, "en"))


def spoken(codes: tuple[int, ...], manner: Manner = SETTLED) -> Rollout:
    return Rollout([], [], [], None, Spoken(ASKED, replace(REFERENCE, codes=codes, manner=manner), "stop"))


def tone(utterance: Utterance) -> torch.Tensor:
    """A sound as long as its codes, the second half of it silent."""
    times = torch.arange(1920 * len(utterance.codes)) / 24000
    return torch.sin(880 * times) * (torch.arange(len(times)) < len(times) // 2)


def test_transcripts_earn_what_is_right_in_them() -> None:
    rollouts = [heard("a big cat", "A big cat."), heard("a big cat", "a big hat"), heard("a cat", "one two three four")]
    measured = measure_transcripts(rollouts, {"intelligibility", "exactness"}, Listeners())
    torch.testing.assert_close(measured.rewards["intelligibility"], torch.tensor([1.0, 2 / 3, 0.0]))
    assert measured.rewards["exactness"].tolist() == [1.0, 0.0, 0.0]
    assert measured.verifier == pytest.approx(5 / 9)


def test_letters_tell_two_wrong_words_apart() -> None:
    assert wer("cat", "bat", "en") == wer("cat", "dog", "en") == 1.0
    assert cer("cat", "bat", "en") == pytest.approx(1 / 3)
    assert cer("cat", "dog", "en") == 1.0


def test_silence_that_is_heard_as_words_counts_each_of_them() -> None:
    assert wer("", "two words", "en") == 2.0
    assert wer("", "", "en") == 0.0


def test_codes_earn_without_being_rendered() -> None:
    rollouts = [spoken(tuple(range(10))), spoken(tuple(range(40))), spoken((7,) * 10, Manner(pace=5))]
    measured = measure_speech(rollouts, {"variety", "duration", "obedience"}, Listeners(), code_rate_hz=12.5)
    assert measured.rewards["duration"].tolist() == pytest.approx([1.0, 0.4, 1.0])
    assert measured.rewards["variety"].tolist() == pytest.approx([1.0, 1.0, 0.5])  # five of ten are beyond 0.4 s
    assert measured.rewards["obedience"].tolist() == [1.0, 1.0, -1.0]
    assert measured.silence_share is None


@pytest.mark.parametrize(("pace", "expected"), [(1, 1.0), (2, 0.5), (3, 0.0), (5, -1.0)])
def test_a_manner_obeys_as_far_as_it_goes(pace: int, expected: float) -> None:
    assert manner_obeyed(Spoken(ASKED, replace(REFERENCE, manner=Manner(pace=pace)), "stop")) == expected


def test_whoever_asks_for_nothing_is_obeyed() -> None:
    assert manner_obeyed(Spoken(Asked(REFERENCE), REFERENCE, "stop")) == 1.0


@pytest.mark.parametrize(
    ("asked_pace", "num_codes", "expected"),
    [(5, 10, 0.0), (5, 5, 1.0), (5, 20, -1.0), (1, 20, 1.0), (1, 10, 0.0), (3, 10, 1.0), (3, 5, -1.0)],
)
def test_a_pace_obeys_by_what_was_said(asked_pace: int, num_codes: int, expected: float) -> None:
    asked = Asked(REFERENCE, Direction("", {"pace": asked_pace}), usual_codes=10)
    said = replace(REFERENCE, codes=tuple(range(num_codes)))
    assert tempo_obeyed(Spoken(asked, said, "stop")) == expected


def test_phones_are_read_in_codes() -> None:
    wanted = without_repeats(english().pronounce("hello") + english().pronounce("world"))

    def earned(said: str) -> float:
        listeners = Listeners(read_phones=lambda codes: said)
        return float(measure_speech([spoken((1, 2, 3))], {"phones"}, listeners, 12.5).rewards["phones"])

    assert [earned(wanted), earned(wanted[1:]), earned("")] == pytest.approx([1.0, 1 - 1 / len(wanted), 0.0])


def test_sound_is_rendered_once_and_heard_by_everybody() -> None:
    rendered: list[Utterance] = []

    def sound(utterance: Utterance) -> torch.Tensor:
        rendered.append(utterance)
        return tone(utterance)

    listeners = Listeners(
        sound,
        recognise=lambda waveform: "hello world" if len(waveform) > 12000 else "hello",
        embed=lambda waveform: torch.tensor([1.0, 0.0]),
        voice=torch.tensor([1.0, 0.0]),
        rate=lambda waveform: 3.0,
    )
    names = {"intelligibility", "similarity", "opinion", "duration"}
    measured = measure_speech([spoken(tuple(range(10))), spoken((1, 2))], names, listeners, code_rate_hz=12.5)
    assert measured.rewards.keys() == names
    assert measured.rewards["intelligibility"].tolist() == [1.0, 0.5]
    assert measured.rewards["similarity"].tolist() == [1.0, 1.0]
    assert measured.rewards["opinion"].tolist() == [0.5, 0.5]
    assert measured.similarity == 1.0
    assert measured.silence_share == pytest.approx(0.5, abs=0.05)
    assert len(rendered) == 2


def test_a_judge_hears_the_candidate_and_the_reference() -> None:
    def judge(asked: Asked, candidate: torch.Tensor, reference: torch.Tensor) -> float:
        assert asked is ASKED
        return (len(candidate) - len(reference)) / 1920

    rollouts = [spoken(tuple(range(10))), spoken(tuple(range(12)))]
    measured = measure_speech(rollouts, {"judge"}, Listeners(tone, judge=judge), code_rate_hz=12.5)
    torch.testing.assert_close(measured.rewards["judge"], shaped(torch.tensor([0.0, 2.0])))


def test_a_reward_that_nobody_measures_is_refused() -> None:
    with pytest.raises(ValueError, match="the rewards similarity are of sound, and nothing renders it"):
        measure_speech([spoken((1,))], {"similarity"}, Listeners(), code_rate_hz=12.5)
    with pytest.raises(ValueError, match="nothing measures the reward 'similarity'"):
        measure_speech([spoken((1, 2))], {"similarity"}, Listeners(tone), code_rate_hz=12.5)
    with pytest.raises(ValueError, match="nothing measures the reward 'kindness': there are exactness"):
        measure_transcripts([heard("a", "a")], {"kindness"}, Listeners())
    with pytest.raises(ValueError, match="there is no judge"):
        measure_transcripts([heard("a", "a")], {"judge"}, Listeners())


def test_whoever_names_nobody_gets_nobody() -> None:
    assert load_listeners(ListenerSettings()) == Listeners()


def test_weights_that_are_not_there_are_named() -> None:
    with pytest.raises(ValueError, match="there are no weights 'nowhere'"):
        load_listeners(ListenerSettings(sound="nowhere"))


CARD = PersonaCard(id="a", facts=("I have two dogs.", "I live in Rome."), verbal_habits=("Oh my!",))
EXCHANGE = Exchange(
    CARD.prompt(), (("user", "Hi!"), ("assistant", "Good day to you all.")), "Any pets?", "Two dogs.", (), None
)


def replied(text: str, is_whole: bool = True) -> Rollout:
    return Rollout([], [], [], None, Replied(EXCHANGE, "Where do you live?", text, is_whole))


def test_replies_are_read_by_the_rules_and_against_the_reference() -> None:
    replies = [replied("Two dogs."), replied("I have no dogs.", is_whole=False), replied("Good day to you all.")]
    measured = measure_replies(replies, {"character", "ending", "wording"}, Listeners())
    assert measured.rewards["character"].tolist() == [1.0, 0.0, 0.0]  # denies a fact; says it again
    assert measured.rewards["ending"].tolist() == [1.0, 0.0, 1.0]
    assert measured.rewards["wording"][0] == 1.0
    assert measured.rewards["wording"][1:].max() < 0.5
    assert measured.verifier == pytest.approx(1 / 3)


def test_a_reply_is_relevant_as_far_as_it_is_likelier_after_its_own_turn() -> None:
    def likely(said: list[str], replies: list[str]) -> list[float]:
        pairs = zip(said, replies, strict=True)
        return [-1.0 if ("pets" in turn) == ("dogs" in reply) else -3.0 for turn, reply in pairs]

    measured = measure_replies(
        [replied("Two dogs."), replied("In Rome."), replied("")], {"relevance"}, Listeners(likely=likely)
    )
    torch.testing.assert_close(measured.rewards["relevance"], shaped(torch.tensor([2.0, -2.0, -torch.inf])))


def test_a_judge_reads_the_facts_and_the_conversation_and_marks_every_aspect() -> None:
    def compare(prompts: list[DialoguePrompt], candidates: list[str], references: list[str]) -> list[Judgement]:
        assert prompts[0] == DialoguePrompt(CARD.facts, (*EXCHANGE.history, ("user", "Any pets?")))
        assert references == ["Two dogs."] * 2
        return [Judgement(len(text) / 10, 0.0, 0.0, 0.0, 0.5, {"persona": -1.0}, "") for text in candidates]

    names = {"judge", "persona", "memory"}
    measured = measure_replies([replied("12345"), replied("1")], names, Listeners(compare=compare))
    torch.testing.assert_close(measured.rewards["judge"], shaped(torch.tensor([0.5, 0.1])))
    assert measured.rewards["persona"].tolist() == [-1.0, -1.0]
    assert measured.rewards["memory"].tolist() == [0.0, 0.0]


def test_a_judge_without_reasons_marks_no_aspect() -> None:
    listeners = Listeners(judge=lambda prompt, candidate, reference: float(len(candidate) - len(reference)))
    measured = measure_replies([replied("Two dogs!!")], {"judge"}, listeners)
    torch.testing.assert_close(measured.rewards["judge"], shaped(torch.tensor([1.0])))
    with pytest.raises(ValueError, match="nothing measures the reward 'persona'"):
        measure_replies([replied("Two dogs!!")], {"persona"}, listeners)


def test_a_panel_that_is_handed_over_reads_replies() -> None:
    class Fair:
        name = "fair"

        def opinions(self, cases: list[Case], sound: object = (), seed: int = 0) -> list[Opinion]:
            longer = [len(case.first.text) > len(case.second.text) for case in cases]
            return [
                Opinion("persona: first", (0.0, 0.0, 0.0, 0.0, 1.0) if first else (1.0, 0.0, 0.0, 0.0, 0.0))
                for first in longer
            ]

    listeners = load_listeners(ListenerSettings(), panel=Fair())
    measured = measure_replies([replied("Two large dogs."), replied("No.")], {"judge", "persona"}, listeners)
    torch.testing.assert_close(measured.rewards["judge"], shaped(torch.tensor([1.0, -1.0])))
    assert measured.rewards["persona"].tolist() == [0.0, 0.0]  # a liking for the first place is no merit


def test_the_text_model_tells_the_judge_of_replies_how_well_they_fit(tmp_path: Path) -> None:
    seen: list[Case] = []

    class Curious:
        name = "curious"

        def opinions(self, cases: Sequence[Case], sound: object = (), seed: int = 0) -> list[Opinion]:
            seen.extend(cases)
            return [Opinion("", (0.0, 0.0, 1.0, 0.0, 0.0)) for _ in cases]

    save_backbone(*start_backbone(load_backbone_config("toy"), None, None, seed=0), tmp_path)
    listeners = load_listeners(ListenerSettings(text_model=str(tmp_path)), panel=Curious())
    measured = measure_replies([replied("In Rome.")], {"judge", "relevance"}, listeners)
    assert measured.rewards.keys() == {"judge", "relevance"}
    forward, backward = seen
    assert forward.first.fits
    assert backward == forward.swapped()


def test_the_pieces_of_a_round_are_put_together_in_their_order() -> None:
    whole = [replied("Two dogs."), replied("No."), replied("", is_whole=False)]
    names = {"character", "ending", "wording"}
    parts = joined([measure_replies(part, names, Listeners()) for part in (whole[:1], whole[1:])])
    expected = measure_replies(whole, names, Listeners())
    assert all(torch.equal(parts.rewards[name], expected.rewards[name]) for name in names)
    assert parts.silence_share is None


def test_a_reply_in_the_habit_of_its_card_earns_and_a_card_without_one_pays_all() -> None:
    measured = measure_replies([replied("Oh my! Two dogs."), replied("Two dogs.")], {"habit"}, Listeners())
    assert measured.rewards["habit"].tolist() == [1.0, 0.0]
    plain = replace(EXCHANGE, persona=CARD.model_copy(update={"verbal_habits": ()}).prompt())
    reply = Rollout([], [], [], None, Replied(plain, "", "Two dogs.", True))
    assert measure_replies([reply], {"habit"}, Listeners()).rewards["habit"].tolist() == [1.0]


@pytest.mark.parametrize(
    ("asked", "settled", "heeded"),
    [
        ({"pace": 1}, Manner(pace=2), True),
        ({"pace": 1}, Manner(pace=4), False),
        ({"pace": 1}, Manner(pace=1, volume=4), False),
        ({}, Manner(), True),
        ({}, Manner(pitch=4), False),
        ({"pace": 5, "pitch": 4}, Manner(pace=5), False),
    ],
)
def test_a_manner_heeds_all_that_was_asked_for_and_moves_nothing_else(
    asked: dict[str, int], settled: Manner, heeded: bool
) -> None:
    answer = Spoken(Asked(REFERENCE, Direction("", asked)), Utterance((), (), settled), "stop")
    measured = measure_speech([Rollout([], [], [], None, answer)], {"heeded"}, Listeners(), code_rate_hz=12.5)
    assert measured.rewards["heeded"].tolist() == [float(heeded)]
