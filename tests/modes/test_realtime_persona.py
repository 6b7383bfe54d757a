from __future__ import annotations

from pathlib import Path

import pytest

from tristep.modes.realtime.persona import (
    MAX_WORDS,
    PersonaCard,
    contradicts,
    habits_shown,
    is_in,
    read_cards,
    read_prompt,
    shows_habit,
    violations,
    write_cards,
)

BAKER = PersonaCard(
    id="baker",
    facts=("I have two dogs.", "I love to bake cookies.", "I am married."),
    personality="warm",
    verbal_habits=("Oh my!", "Well now,"),
    emotional_boundaries="never speak ill of anyone",
    archetype="a good neighbour",
)


def test_a_card_is_read_as_it_was_written(tmp_path: Path) -> None:
    cards = [BAKER, PersonaCard(id="nobody", language="zh")]
    write_cards(cards, tmp_path / "cards.jsonl")
    assert read_cards(tmp_path / "cards.jsonl") == cards


def test_a_card_with_an_unknown_attribute_is_refused_with_the_line(tmp_path: Path) -> None:
    (tmp_path / "cards.jsonl").write_text('{"id": "a"}\n{"id": "b", "persona": "x"}\n')
    with pytest.raises(ValueError, match=r"line 2 has no setting 'persona': did you mean 'personality'"):
        read_cards(tmp_path / "cards.jsonl")
    with pytest.raises(ValueError, match="give a file of persona cards"):
        read_cards(tmp_path / "nothing.jsonl")


def test_a_prompt_says_all_that_the_card_holds() -> None:
    prompt = BAKER.prompt()
    for part in (*BAKER.facts, *BAKER.verbal_habits, "warm", "never speak ill of anyone", "a good neighbour"):
        assert part in prompt


@pytest.mark.parametrize(
    ("answer", "fact"),
    [
        ("I don't have any dogs.", "I have two dogs."),
        ("I have three dogs!", "I have two dogs."),
        ("Well, I hate dogs.", "I love dogs."),
        ("No, I do not like baking cookies.", "I love to bake cookies."),
        ("I'm single.", "I am married."),
        ("I am 30 years old.", "I'm twenty."),
        ("My favorite color is red.", "My favourite colour is blue. My favorite color is blue."),
        ("I never smoke.", "I smoke."),
        ("I\u2019m not a nurse.", "I am a nurse."),
    ],
)
def test_what_denies_a_fact_contradicts_it(answer: str, fact: str) -> None:
    assert contradicts(answer, fact)


@pytest.mark.parametrize(
    ("answer", "fact"),
    [
        ("I have two dogs and I love them.", "I have two dogs."),
        ("I don't like loud music.", "I love music from the sixties."),
        ("I don't have a cat.", "I have two dogs."),
        ("You don't have any dogs?", "I have two dogs."),
        ("Don't you like cookies?", "I love to bake cookies."),
        ("I have three cats.", "I have two dogs."),
        ("My favorite food is pizza.", "My favorite color is blue."),
        ("I am a nurse and I am married.", "I am married."),
    ],
)
def test_what_agrees_with_a_fact_or_is_about_something_else_does_not(answer: str, fact: str) -> None:
    assert not contradicts(answer, fact)


@pytest.mark.parametrize(
    ("answer", "violation"),
    [
        ("  ", "empty"),
        ("As an AI language model, I can't bake.", "leaves the role"),
        ("I\u2019m just a virtual assistant.", "leaves the role"),
        ("I love it!\nUser: And then?", "speaks for others"),
        ("word " * (MAX_WORDS + 1), "too long"),
        ("\u4f60\u597d\uff0c\u4f60\u597d\u5417\uff1f", "other language"),
        ("I bake cookies every day.", "says it again"),
        ("Hi, I'm [your name]!", "leaves a blank"),
        ("I have no dogs.", "contradicts 'I have two dogs.'"),
    ],
)
def test_what_is_out_of_character_is_named(answer: str, violation: str) -> None:
    assert violations(BAKER, answer, ["I bake cookies, every day!"]) == [violation]


def test_an_ordinary_answer_is_in_character() -> None:
    assert violations(BAKER, "Oh my! I baked two trays today, and my dogs ate one.", ["Hello!"]) == []
    assert violations(BAKER, "Me too!", ["Me too!"]) == []  # short ones come again in any conversation


def test_habits_are_heard_whatever_their_punctuation() -> None:
    assert habits_shown(BAKER, ["oh my, that is late.", "Yes."]) == 0.5
    assert habits_shown(PersonaCard(id="plain"), ["Oh my!"]) is None


def test_a_language_is_known_by_its_script() -> None:
    assert is_in("en", "Caf\u00e9 au lait!")
    assert is_in("zh", "\u4f60\u597d\u3002")
    assert is_in("en", "1, 2, 3")
    assert not is_in("zh", "Hello.")


@pytest.mark.parametrize("boundaries", ["", "never speak ill of anyone"])
@pytest.mark.parametrize("habits", [(), ("Oh my!",), ("Well now,", "Ah, yes.")])
@pytest.mark.parametrize("facts", [(), ("I have two dogs.",), ("I'm 41.", "My cat is old.")])
def test_what_the_rules_need_is_read_back_from_a_prompt(
    facts: tuple[str, ...], habits: tuple[str, ...], boundaries: str
) -> None:
    card = PersonaCard(
        id="a", facts=facts, verbal_habits=habits, emotional_boundaries=boundaries, archetype="a coach"
    )  # fmt: skip
    read = read_prompt(card.prompt())
    assert read.verbal_habits == habits
    assert read.facts == facts


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ("Oh my! That is late.", True),
        ("That is late, oh my.", True),
        ("Oh my!", False),  # says nothing else
        ("Oh my! Oh my! That is late.", False),
        ("Oh my! Well now, that is late.", False),
        ("Oh mystery, that is late.", False),
    ],
)
def test_a_habit_is_shown_once_beside_something_that_is_said(answer: str, shown: bool) -> None:
    assert shows_habit(BAKER, answer) is shown
