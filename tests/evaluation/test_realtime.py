from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tristep.evaluation.realtime import (
    Reply,
    Script,
    Situation,
    UserTurn,
    evaluate_realtime,
    hold,
    latency,
    read_scripts,
)
from tristep.evaluation.realtime_report import RealtimeReport, as_page, as_table, read_json, write_report
from tristep.modes.realtime.persona import PersonaCard

CARD = PersonaCard(id="baker", facts=("I have two dogs.",), verbal_habits=("Well now,",))
SCRIPTS = [
    Script("first", CARD, (UserTurn("Do you have dogs?"), UserTurn("What are they called?"))),
    Script("second", CARD, (UserTurn("What do you bake?"), UserTurn("Is it any good?"))),
]


def faithful(situations: Sequence[Situation]) -> list[Reply]:
    """Answers about what was asked, in character."""
    return [Reply(f"Well now, you ask: {each.said.text}", first_text_s=0.1) for each in situations]


def forgetful(situations: Sequence[Situation]) -> list[Reply]:
    """Denies the dogs from the second turn on."""
    return [Reply("I have no dogs." if each.history else "I see.", heard="do you") for each in situations]


def judge(said: str, answer: str) -> float:
    """Finds an answer likely that holds the turn's own words."""
    return float(len(set(said.split()) & set(answer.split())))


def report() -> RealtimeReport:
    models = {"faithful": faithful, "forgetful": forgetful}
    return evaluate_realtime(models, SCRIPTS, judge, model="toy", num_timed=2, progress=False)


def test_what_was_answered_and_heard_becomes_the_history() -> None:
    seen: list[Situation] = []

    def model(situations: Sequence[Situation]) -> list[Reply]:
        seen.extend(situations)
        return forgetful(situations)

    held = hold(model, SCRIPTS)
    assert [each.history for each in seen[:2]] == [(), ()]
    assert seen[2].history == (("user", "do you"), ("assistant", "I see."))
    assert seen[2].said.text == "What are they called?"
    assert [reply.text for reply in held[0][1]] == ["I see.", "I have no dogs."]


def test_answers_in_character_are_counted_by_answer_dialogue_and_turn() -> None:
    good, bad = report().models
    assert good.habits_shown is not None
    assert bad.habits_shown is not None
    assert (good.in_character.mean, good.whole_dialogues.mean, good.habits_shown.mean) == (1.0, 1.0, 1.0)
    assert (bad.in_character.mean, bad.whole_dialogues.mean, bad.habits_shown.mean) == (0.5, 0.0, 0.0)
    assert bad.in_character_by_turn() == [1.0, 0.0]
    assert bad.dialogues[0].answers[1].violations == ("contradicts 'I have two dogs.'",)


def test_an_answer_is_relevant_if_it_is_likelier_after_its_own_turn() -> None:
    good, bad = report().models
    assert good.relevant is not None
    assert bad.relevant is not None
    assert (good.relevant.mean, bad.relevant.mean) == (1.0, 0.0)
    assert evaluate_realtime({"a": faithful}, SCRIPTS, progress=False).models[0].relevant is None


def test_times_are_those_of_answers_given_alone() -> None:
    sizes: list[int] = []

    def model(situations: Sequence[Situation]) -> list[Reply]:
        sizes.append(len(situations))
        return faithful(situations)

    (result,) = evaluate_realtime({"a": model}, SCRIPTS, num_timed=1, progress=False).models
    assert sizes == [2, 2, 1]
    assert result.first_text is not None
    assert result.first_text.times_ms == (100.0,)
    assert result.first_audio is None


def test_percentiles_are_of_the_known_times() -> None:
    summed = latency([0.1, None, 0.2, 0.3])
    assert summed is not None
    assert (summed.num_timed, summed.p50_ms) == (3, pytest.approx(200))
    assert summed.p95_ms == pytest.approx(290)


def test_a_report_is_read_as_it_was_written_and_its_page_shows_what_was_said(tmp_path: Path) -> None:
    written = report()
    data, page = write_report(written, tmp_path / "r" / "report.json")
    assert read_json(data) == written
    html = page.read_text()
    for part in (
        "I have no dogs.",
        "<mark>contradicts &#x27;I have two dogs.&#x27;</mark>",
        "<svg",
        "faithful",
        "heard: do you",
    ):
        assert part in html
    assert as_table(written).row_count == 2
    with pytest.raises(ValueError, match="name a JSON file"):
        write_report(written, tmp_path / "report.html")


def test_a_page_without_times_has_its_plots(tmp_path: Path) -> None:
    assert "<svg" in as_page(evaluate_realtime({"a": forgetful}, SCRIPTS, progress=False))


def test_scripts_are_read_with_their_recordings(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "card": {"id": "a", "facts": ["I ski."]}, "turns": [{"text": "Hi!", "audio": "a.flac"}]},
        {"id": "b", "card": {"id": "b"}, "turns": [{"text": "Hello."}]},
    ]
    (tmp_path / "script.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = read_scripts(tmp_path / "script.jsonl")
    assert first.turns[0].audio == tmp_path / "a.flac"
    assert (first.is_spoken, second.is_spoken) == (True, False)
    assert first.card.facts == ("I ski.",)
    assert len(read_scripts(tmp_path / "script.jsonl", most=1)) == 1


def test_what_holds_no_dialogues_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "script.jsonl"
    for text in ("", '{"id": "a"}\n', "no json\n"):
        path.write_text(text)
        with pytest.raises(ValueError, match="dialogues"):
            read_scripts(path)
    with pytest.raises(ValueError, match="give at least one of each"):
        evaluate_realtime({}, SCRIPTS)
