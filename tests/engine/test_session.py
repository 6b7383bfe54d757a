from __future__ import annotations

import itertools
import json

import pytest
import torch
from engine.toy_dialogue import (
    ANSWER,
    HEARD,
    backbone,
    cough,
    engine,
    of,
    plain,
    session,
    silence,
    speech,
    worked,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tristep.audio import SPEAK_HZ
from tristep.engine.dialogue import (
    ArgumentsDone,
    AudioDelta,
    Cleared,
    Committed,
    ContextTrimmed,
    Ducked,
    Event,
    IdleTimeout,
    Item,
    ItemAdded,
    ItemDone,
    ItemRetrieved,
    Part,
    ResponseCreated,
    ResponseDone,
    ResponseOptions,
    SemanticVad,
    ServerVad,
    SessionError,
    SessionSettings,
    SpeechStarted,
    SpeechStopped,
    TextDelta,
    TextDone,
    Tool,
    Transcribing,
    TranscriptCompleted,
    TranscriptDelta,
    Truncated,
)
from tristep.engine.engine import Engine
from tristep.engine.session import ANSWER_TOKENS, Session
from tristep.modes.realtime.decoding import call_text
from tristep.vocab import byte_tokenizer

TURN = torch.cat([silence(300), speech(900), silence(700)])
LONG = "One is here. Two is here. Three is here. Four is here."
TOOL = Tool("weather", "Tells the weather.", {"type": "object"})


def names(events: list[Event]) -> list[str]:
    """Return the kinds of events, those that repeat once."""
    return [name for name, _ in itertools.groupby(type(event).__name__ for event in events)]


def answered(talking: Session) -> list[Event]:
    """Ask for an answer to a text."""
    added = talking.add_item(Item(parts=(Part("text", "Hello"),)))
    return [*added, *talking.create_response(), *worked(talking)]


def speaking(num_chunks: int = 3, **settings: object) -> tuple[Session, list[Event]]:
    """Return a session in the middle of an answer aloud."""
    talking = session(LONG, **settings)
    talking.append(silence(320))
    events = talking.add_item(Item(parts=(Part("text", "Hello"),))) + talking.create_response()
    while len(of(AudioDelta, events)) < num_chunks:
        events += talking.step()
    return talking, events


def streamed(talking: Session, sound: torch.Tensor, chunk_ms: int = 20) -> list[tuple[int, Event]]:
    """Append a sound in real chunks; return each event with the samples after which it came."""
    events, num_samples = [], 0
    for chunk in sound.split(SPEAK_HZ * chunk_ms // 1000):
        num_samples += len(chunk)
        events += [(num_samples, event) for event in talking.append(chunk)]
    return events


def refused(command: object, code: str, message: str) -> None:
    with pytest.raises(SessionError, match=message) as error:
        command()  # type: ignore[operator]
    assert error.value.code == code


# A turn and its answer


def test_a_spoken_turn_is_answered_aloud() -> None:
    talking = session(transcription=Transcribing())
    events = [*talking.append(TURN), *worked(talking)]
    kinds = names(events)
    assert [kind for kind in kinds if kind not in ("TextDelta", "AudioDelta")] == [
        *("SpeechStarted", "SpeechStopped", "Committed", "ItemAdded", "ItemDone", "ResponseCreated"),
        *("TranscriptDelta", "TranscriptCompleted", "ItemAdded", "PartAdded"),
        *("AudioDone", "TextDone", "PartDone", "ItemDone", "ResponseDone"),
    ]
    first, last = kinds.index("PartAdded"), kinds.index("AudioDone")
    assert kinds[first : first + 4] == ["PartAdded", "TextDelta", "AudioDelta", "TextDelta"]  # text leads sound
    assert set(kinds[first + 1 : last]) == {"TextDelta", "AudioDelta"}
    (turn,) = {event.item_id for event in events if isinstance(event, SpeechStarted | SpeechStopped | Committed)}
    question, answer = talking.items
    assert (question.id, question.text, answer.text) == (turn, HEARD, ANSWER)
    assert of(ItemAdded, events)[1].previous_item_id == question.id
    assert "".join(event.delta for event in of(TextDelta, events)) == of(TextDone, events)[0].text == ANSWER
    (done,) = of(ResponseDone, events)
    assert done.response.status == "completed"
    assert done.response.output == (answer,)
    sound = torch.cat([event.waveform for event in of(AudioDelta, events)])
    assert torch.equal(sound, answer.parts[0].waveform)  # type: ignore[arg-type]
    assert done.response.usage.output_audio_tokens > 0
    assert done.response.usage.input_audio_tokens > 0


def test_times_count_what_was_appended() -> None:
    talking = session(modality="text", turn_detection=ServerVad(prefix_padding_ms=100, silence_duration_ms=320))
    events = talking.append(torch.cat([silence(1000), speech(900), silence(900)]))
    (started,), (stopped,) = of(SpeechStarted, events), of(SpeechStopped, events)
    assert started.audio_start_ms == pytest.approx(900, abs=70)
    assert stopped.audio_end_ms == pytest.approx(2220, abs=200)
    sound = talking.items[0].parts[0].waveform
    assert sound is not None
    assert len(sound) / 16 == pytest.approx(stopped.audio_end_ms - started.audio_start_ms, abs=1)


def run(cuts: list[int], steps: int) -> list[Event]:
    """Append two turns, cut anywhere; work after the first and after all."""
    talking = session(modality="text", transcription=Transcribing())
    events: list[Event] = []
    for turn in (TURN, torch.cat([speech(600), silence(600), cough(), silence(100)])):
        for chunk in turn.tensor_split(sorted(cut for cut in cuts if cut < len(turn))):
            events += talking.append(chunk)
            for _ in range(steps):  # hearing while the user speaks changes nothing either
                if talking._turn and talking.has_work:
                    assert not talking.step()
        events += worked(talking)
    return events


@settings(max_examples=4, deadline=None)
@given(st.lists(st.integers(0, len(TURN)), max_size=12), st.integers(0, 2))
def test_the_events_do_not_depend_on_the_chunks(cuts: list[int], steps: int) -> None:
    assert plain(run(cuts, steps)) == plain(run([], 0))


def test_the_end_of_a_turn_leaves_little_to_hear_and_read() -> None:
    talking = session(modality="text")
    streamed(talking, torch.cat([silence(300), speech(900), silence(400)]))
    assert worked(talking) == []  # heard, and read, and nobody is told yet
    events = [*talking.append(silence(300)), *worked(talking)]
    usage = of(ResponseDone, events)[0].response.usage
    assert usage.input_text_tokens - usage.cached_tokens <= len(engine().chat.header("assistant")) + 2


def test_the_second_turn_reads_only_what_is_new() -> None:
    talking = session(modality="text")
    answered(talking)
    usage = of(ResponseDone, answered(talking))[0].response.usage
    assert usage.cached_tokens > 0.6 * usage.input_text_tokens


def test_words_are_told_while_they_are_spoken_where_that_is_asked_for() -> None:
    talking = session(modality="text", transcription=Transcribing(live=True))
    events = []
    for chunk in torch.cat([silence(300), speech(1900), speech(1900)]).split(2400):
        events += [*talking.append(chunk), *worked(talking)]
    assert of(TranscriptDelta, events)
    assert not of(SpeechStopped, events)
    events += [*talking.append(silence(700)), *worked(talking)]
    told = "".join(event.delta for event in of(TranscriptDelta, events))
    assert told == of(TranscriptCompleted, events)[0].text == HEARD


def test_where_nothing_was_said_nothing_is_answered() -> None:
    talking = session(heard="", modality="text")
    events = [*talking.append(TURN), *worked(talking)]
    (done,) = of(ResponseDone, events)
    assert (done.response.status, done.response.output) == ("completed", ())
    assert not of(TextDelta, events)


def test_a_cough_begins_no_turn() -> None:
    assert session().append(torch.cat([silence(300), cough(), silence(800)])) == []


@pytest.mark.parametrize("kind", [ServerVad, SemanticVad])
def test_turns_may_be_heard_and_not_answered(kind: type[ServerVad] | type[SemanticVad]) -> None:
    talking = session(modality="text", turn_detection=kind(create_response=False))
    events = [*talking.append(torch.cat([TURN, silence(500)])), *worked(talking)]
    assert names(events) == ["SpeechStarted", "SpeechStopped", "Committed", "ItemAdded", "ItemDone"]
    assert talking.items[0].text == HEARD


# Speaking into an answer


def test_speech_stops_an_answer_within_200_ms() -> None:
    talking, _ = speaking(num_chunks=8)  # more than is played until then
    events = streamed(talking, torch.cat([silence(500), speech(600)]))
    came = next(place for place, event in events if isinstance(event, SpeechStarted))
    assert (came - SPEAK_HZ // 2) / SPEAK_HZ <= 0.21  # 200 ms, and the chunk that it was noticed in
    kinds = names([event for _, event in events])
    closed = ["AudioDone", "TextDone", "PartDone", "ItemDone", "ResponseDone"]
    assert kinds == ["Ducked", "SpeechStarted", *closed, "Truncated"]
    (done,) = of(ResponseDone, [event for _, event in events])
    assert (done.response.status, done.response.reason) == ("cancelled", "turn_detected")
    assert done.response.output[0].status == "incomplete"
    assert not of(AudioDelta, worked(talking))


@pytest.mark.parametrize("seed", range(3))
def test_a_cough_only_lowers_an_answer(seed: int) -> None:
    talking, events = speaking()
    noise = 0.5 * torch.rand(SPEAK_HZ // 10, generator=torch.Generator().manual_seed(seed)) - 0.25
    talking.append(torch.cat([silence(300), noise, cough(), silence(500)]))
    assert talking.is_responding
    events += worked(talking)
    assert of(ResponseDone, events)[0].response.status == "completed"


def test_a_short_voice_lowers_the_answer_and_lets_it_go_on() -> None:
    talking, events = speaking()
    heard = [event for _, event in streamed(talking, torch.cat([silence(300), speech(40), silence(500)]))]
    assert heard == [Ducked(True), Ducked(False)]
    events += worked(talking)
    assert of(ResponseDone, events)[0].response.status == "completed"


def test_no_sound_comes_while_it_is_settled_who_speaks() -> None:
    talking, _ = speaking()
    for chunk in torch.cat([silence(300), speech(64)]).split(480):
        events = talking.append(chunk)
        if events == [Ducked(True)]:
            break
    assert events == [Ducked(True)]
    assert not talking.has_work


def test_what_is_remembered_is_what_the_clock_let_be_played() -> None:
    talking, events = speaking(num_chunks=6)
    sent_ms = sum(len(event.waveform) for event in of(AudioDelta, events)) / 24
    events = [event for _, event in streamed(talking, torch.cat([silence(200), speech(400)]))]
    (cut,) = of(Truncated, events)
    assert 200 <= cut.audio_end_ms <= 432 < sent_ms
    item = talking.items[-1]
    assert item.text == cut.text
    assert LONG.startswith(cut.text)
    assert len(item.parts[0].waveform) == cut.audio_end_ms * 24  # type: ignore[arg-type]


def test_acknowledged_playback_is_believed() -> None:
    talking, _ = speaking(num_chunks=6)
    talking.played(talking.items[-1].id, 60)
    events = [event for _, event in streamed(talking, torch.cat([silence(600), speech(400)]))]
    assert of(Truncated, events)[0].audio_end_ms == 60


def test_an_answer_that_has_been_heard_is_not_cut() -> None:
    talking, events = speaking()
    events += worked(talking)
    sent_ms = sum(len(event.waveform) for event in of(AudioDelta, events)) / 24
    events = talking.append(torch.cat([silence(sent_ms + 100), speech(600)]))
    assert not of(Truncated, events)
    assert not of(Ducked, events)
    assert talking.items[-1].text == LONG


def test_words_that_nobody_heard_are_not_shown_to_the_model() -> None:
    talking, _ = speaking(num_chunks=1)
    events = talking.cancel()
    assert of(ResponseDone, events)[0].response.reason == "client_cancelled"
    full, shown = talking.items[-1].text, talking._remembered(talking.items[-1]).text
    assert full.startswith(shown)
    assert len(shown) < len(full)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 1.0])
def test_truncated_by_the_client_it_is_what_was_played(share: float) -> None:
    talking, events = speaking()
    events += worked(talking)
    item = talking.items[-1]
    total_ms = len(item.parts[0].waveform) / 24  # type: ignore[arg-type]
    (cut,) = of(Truncated, talking.truncate(item.id, round(share * total_ms)))
    assert LONG.startswith(cut.text)
    assert len(cut.text) <= share * len(LONG) + 15
    assert (cut.text == LONG) == (share == 1.0)
    assert cut.by_client
    again = talking.truncate(item.id, round(0.2 * total_ms))  # a client may correct itself
    assert len(again[0].text) <= len(LONG) // 3  # type: ignore[union-attr]


def test_an_answer_that_is_truncated_while_it_is_given_is_not_gone_on_with() -> None:
    talking, events = speaking()
    item_id = talking.items[-1].id
    events = talking.truncate(item_id, 100)
    assert names(events)[-2:] == ["ResponseDone", "Truncated"]
    (done,) = of(ResponseDone, events)
    assert (done.response.status, done.response.reason) == ("cancelled", "client_cancelled")
    assert not talking.has_work
    assert talking.items[-1].text == of(Truncated, events)[0].text != LONG
    assert of(ResponseDone, answered(talking))[0].response.status == "completed"


def test_an_answer_is_not_truncated_beyond_its_end() -> None:
    talking, events = speaking()
    events += worked(talking)
    item = talking.items[-1]
    total_ms = round(len(item.parts[0].waveform) / 24)  # type: ignore[arg-type]
    assert of(Truncated, talking.truncate(item.id, total_ms + 400))[0].text == LONG
    refused(lambda: talking.truncate(item.id, total_ms + 600), "invalid_value", "audio_end_ms is .* the item has")
    refused(lambda: talking.truncate("nowhere", 0), "item_truncate_invalid_item_id", "no item 'nowhere'")
    refused(lambda: talking.truncate(talking.items[0].id, 0), "invalid_value", "is no spoken answer")


def test_an_answer_that_must_not_be_interrupted_goes_on() -> None:
    talking, events = speaking(turn_detection=ServerVad(interrupt_response=False))
    spoken = talking.append(TURN)
    assert names(spoken) == ["SpeechStarted", "SpeechStopped", "Committed", "ItemAdded", "ItemDone"]
    events += worked(talking)
    assert [done.response.status for done in of(ResponseDone, events)] == ["completed"]
    assert [item.text for item in talking.items if item.role == "user"] == ["Hello", HEARD]


def test_cancelled_at_any_moment_the_session_goes_on() -> None:
    for num_steps in itertools.count():
        talking = session("Ahoy. Yes.")
        talking.add_item(Item(parts=(Part("text", "Hello"),)))
        events = talking.create_response()
        for _ in range(num_steps):
            events += talking.step()
        if not talking.is_responding:
            break
        events += talking.cancel()
        opened, closed = of(ItemAdded, events), of(ItemDone, events)
        assert [event.item.id for event in opened] == [event.item.id for event in closed]
        assert not talking.has_work
        talking.update(modality="text")
        assert of(ResponseDone, answered(talking))[0].response.status == "completed"
    assert num_steps > 5


# Push-to-talk


def test_whoever_holds_a_button_settles_what_a_turn_is() -> None:
    talking = session(modality="text", turn_detection=None, transcription=Transcribing())
    events = [*talking.append(torch.cat([speech(900), silence(900), speech(500)])), *worked(talking)]
    assert not of(Committed, events)
    events += [*talking.commit(), *talking.create_response(), *worked(talking)]
    assert of(TranscriptCompleted, events)[0].text == HEARD
    assert len(talking.items[0].parts[0].waveform) == 2300 * 16  # type: ignore[arg-type]
    assert talking.items[-1].text == ANSWER
    refused(talking.commit, "input_audio_buffer_commit_empty", "buffer is too small: it holds 0 ms")


def test_turns_held_one_after_the_other_share_no_sound() -> None:
    talking = session(turn_detection=None)
    sound = speech(1500)
    kept = []
    for part in sound.split(SPEAK_HZ // 2 + 100):
        talking.append(part)
        if len(part) > 2400:
            talking.commit()
            kept.append(talking.items[-1].parts[0].waveform)
    assert sum(len(part) for part in kept if part is not None) == pytest.approx(len(sound) * 2 // 3, abs=2)


def test_what_is_cleared_is_forgotten() -> None:
    talking = session(turn_detection=None)
    talking.append(speech(900))
    assert talking.clear() == [Cleared()]
    assert worked(talking) == []
    refused(talking.commit, "input_audio_buffer_commit_empty", "append more")
    talking.append(speech(200))
    assert of(Committed, talking.commit())


def test_detection_may_be_switched_off_in_the_middle_of_a_turn() -> None:
    talking = session(modality="text")
    (started,) = of(SpeechStarted, talking.append(torch.cat([silence(300), speech(900)])))
    talking.update(turn_detection=None)
    assert talking.append(silence(3000)) == []
    (committed,) = of(Committed, talking.commit())
    assert committed.item_id == started.item_id
    talking.append(silence(500))
    talking.update(turn_detection=ServerVad())
    assert names(talking.append(TURN))[:2] == ["SpeechStarted", "SpeechStopped"]


# Items


def test_items_are_added_where_they_are_wanted() -> None:
    talking = session(modality="text")
    (first, _) = talking.add_item(Item("a", parts=(Part("text", "one"),)))
    (second, _) = talking.add_item(Item("b", parts=(Part("text", "two"),)))
    (between, _) = talking.add_item(Item("c", role="assistant", parts=(Part("text", "three"),)), after="a")
    (front, _) = talking.add_item(Item("d", role="system", parts=(Part("text", "four"),)), after="root")
    before = [event.previous_item_id for event in (first, second, between, front)]  # type: ignore[union-attr]
    assert before == [None, "a", "a", None]
    assert [item.id for item in talking.items] == ["d", "a", "c", "b"]
    assert talking.retrieve_item("c") == [ItemRetrieved(talking.items[2])]
    talking.delete_item("a")
    assert [item.id for item in talking.items] == ["d", "c", "b"]
    refused(lambda: talking.add_item(Item("b")), "item_create_duplicate_item_id", "already is an item 'b'")
    refused(lambda: talking.add_item(Item(), after="a"), "item_create_invalid_previous_item_id", "or 'root'")
    refused(lambda: talking.retrieve_item("a"), "item_retrieve_invalid_item_id", "no item 'a'")
    refused(lambda: talking.delete_item("a"), "item_delete_invalid_item_id", "no item 'a'")


def test_a_sound_that_was_added_is_heard_before_it_is_answered() -> None:
    talking = session(modality="text")
    talking.add_item(Item(parts=(Part("audio", None, speech(900), SPEAK_HZ),)))
    talking.create_response()
    worked(talking)
    assert [item.text for item in talking.items] == [HEARD, ANSWER]


def test_ids_are_never_given_twice() -> None:
    talking = session(modality="text")
    talking.add_item(Item("item_2", parts=(Part("text", "mine"),)))
    events = answered(talking) + answered(talking)
    ids = [event.item.id for event in of(ItemAdded, events)] + [event.response.id for event in of(ResponseDone, events)]
    assert len(set(ids)) == len(ids)
    assert "item_2" not in ids


# Responses


def test_one_response_of_the_conversation_at_a_time() -> None:
    talking, _ = speaking()
    refused(talking.create_response, "conversation_already_has_active_response", "cancel it, or wait")
    worked(talking)
    assert of(ResponseCreated, talking.create_response())
    refused(lambda: talking.cancel("resp_9"), "response_cancel_not_active", "^Cancellation failed")


def test_responses_beside_the_conversation_run_together_and_write_nothing() -> None:
    talking = session(modality="text")
    answered(talking)
    before = talking.items
    beside = ResponseOptions(in_conversation=False, metadata={"topic": "one"}, input=(before[0].id,))
    events = [*talking.create_response(beside), *talking.create_response(replace_metadata(beside)), *worked(talking)]
    done = of(ResponseDone, events)
    assert {str(event.response.options.metadata) for event in done} == {"{'topic': 'one'}", "{'topic': 'two'}"}
    assert all(event.response.output[0].text == ANSWER for event in done)
    assert not any(event.in_conversation for event in [*of(ItemAdded, events), *of(ItemDone, events)])
    text = [event.response_id for event in of(TextDelta, events)]
    assert len(list(itertools.groupby(text))) > 2  # they take turns
    assert talking.items == before
    assert not talking.is_responding


def replace_metadata(options: ResponseOptions) -> ResponseOptions:
    return ResponseOptions(in_conversation=False, metadata={"topic": "two"}, input=options.input)


def test_a_response_may_differ_from_the_session() -> None:
    talking = session(LONG)
    talking.add_item(Item(parts=(Part("text", "Hello"),)))
    events = [*talking.create_response(ResponseOptions(modality="text", max_output_tokens=5)), *worked(talking)]
    (done,) = of(ResponseDone, events)
    assert (done.response.status, done.response.reason) == ("incomplete", "max_output_tokens")
    assert done.response.output[0].text == LONG[:5]
    assert not of(AudioDelta, events)
    assert talking.settings.modality == "audio"


@pytest.mark.parametrize("retention", [1.0, 0.5])
def test_the_context_is_never_outgrown(retention: float) -> None:
    talking = session(modality="text", context_tokens=240, retention=retention, max_output_tokens=60)
    read: list[int] = []
    trimmed: list[str] = []
    for _ in range(8):
        for event in answered(talking):
            if isinstance(event, ResponseDone):
                usage = event.response.usage
                read.append(usage.input_text_tokens + usage.output_text_tokens)
                assert len(talking._own_memory().tokens) <= 240
            elif isinstance(event, ContextTrimmed):
                trimmed += event.item_ids
    assert max(read) <= 240
    assert trimmed == [item.id for item in talking.items][: len(trimmed)]
    assert trimmed


def test_a_context_that_must_not_be_trimmed_fails_aloud() -> None:
    talking = session(modality="text", context_tokens=240, retention=None, max_output_tokens=60)
    talking.add_item(Item(parts=(Part("text", "x" * 300),)))
    (done,) = of(ResponseDone, [*talking.create_response(), *worked(talking)])
    assert done.response.status == "failed"
    assert "allow truncation" in str(done.response.error)


def test_a_long_silence_is_answered_once() -> None:
    talking = session(modality="text", turn_detection=ServerVad(idle_timeout_ms=1000))
    assert talking.append(silence(3000)) == []  # there is nothing to come back to
    answered(talking)
    events = [*talking.append(silence(1500)), *worked(talking), *talking.append(silence(3000)), *worked(talking)]
    assert names(events)[:5] == ["IdleTimeout", "Committed", "ItemAdded", "ItemDone", "ResponseCreated"]
    (timeout,) = of(IdleTimeout, events)
    assert timeout.audio_end_ms - timeout.audio_start_ms == pytest.approx(1000, abs=33)
    assert of(ResponseDone, events)[0].response.output[0].text == ANSWER


def test_a_tool_is_called_and_its_output_is_read() -> None:
    talking = session(call_text("weather", '{"city": "Oslo"}'), modality="text", tools=(TOOL,))
    events = answered(talking)
    assert not of(TextDelta, events)
    assert names(events)[-5:] == ["ItemAdded", "ArgumentsDelta", "ArgumentsDone", "ItemDone", "ResponseDone"]
    (arguments,) = of(ArgumentsDone, events)
    assert (arguments.name, json.loads(arguments.arguments)) == ("weather", {"city": "Oslo"})
    call = talking.items[-1]
    assert (call.kind, call.call_id, call.name) == ("function_call", arguments.call_id, "weather")
    talking.add_item(Item(kind="function_call_output", call_id=call.call_id, output="12 degrees"))
    shown = engine().chat.tokenizer.decode(talking._show(talking.settings, talking.items).tokens)
    assert shown.index("Oslo") < shown.index("12 degrees")


def test_text_before_a_call_is_said_first() -> None:
    talking = session("One moment please. " + call_text("weather", "{}"), tools=(TOOL,))
    events = answered(talking)
    (done,) = of(ResponseDone, events)
    assert [item.kind for item in done.response.output] == ["message", "function_call"]
    assert of(AudioDelta, events)


def test_a_call_that_can_not_be_read_fails_the_response() -> None:
    talking = session("<tool_call>weather(Oslo)</tool_call>", modality="text", tools=(TOOL,))
    (done,) = of(ResponseDone, answered(talking))
    assert done.response.status == "failed"
    assert "which is no JSON" in str(done.response.error)


# Settings


def test_weights_that_can_not_speak_answer_in_text() -> None:
    silent = Engine(backbone(), byte_tokenizer(), None, lambda: engine().thinker)
    with pytest.raises(SessionError, match="built to listen only"):
        Session(silent)
    talking = Session(silent, SessionSettings(modality="text"))
    assert of(ResponseDone, answered(talking))[0].response.output[0].text == ANSWER
    refused(lambda: talking.update(modality="audio"), "invalid_value", "built to listen only")
    refused(lambda: talking.create_response(ResponseOptions(modality="audio")), "invalid_value", "listen only")
    assert talking.settings.modality == "text"


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"modality": "smell"}, "invalid_value", "expected audio or text"),
        ({"colour": "red"}, "invalid_value", "no setting 'colour'"),
        ({"voice": "../anna"}, "invalid_value", "a path is never one"),
        ({"transcription": Transcribing(language="english")}, "invalid_value", "no language 'english'"),
        ({"tool_choice": "weather"}, "invalid_value", "no tool 'weather' to choose"),
        ({"instructions": "x" * 1100}, "string_above_max_length", "expected at most 1024"),
        ({"max_output_tokens": 0}, "invalid_value", "expected at least 1"),
        ({"temperature": 3.0}, "invalid_value", "expected 0 to 2"),
    ],
)
def test_settings_that_can_not_be_met_change_nothing(changes: dict[str, object], code: str, message: str) -> None:
    talking = session()
    before = talking.settings
    refused(lambda: talking.update(instructions="new", **changes) if "instructions" not in changes
            else talking.update(**changes), code, message)  # fmt: skip
    assert talking.settings is before


def test_a_voice_that_was_heard_stays() -> None:
    talking, _ = speaking()
    refused(lambda: talking.update(voice="other"), "cannot_update_voice", "stays for this session")
    talking.update(instructions="Now a pirate.")
    assert talking.settings.instructions == "Now a pirate."


def test_sound_of_another_rate_is_refused_and_changes_nothing() -> None:
    talking = session(modality="text")
    refused(lambda: talking.append(speech(100), 8000), "invalid_value", "8000 Hz")
    assert of(ResponseDone, [*talking.append(TURN), *worked(talking)])


def test_an_answer_has_an_end_where_nobody_settled_one() -> None:
    talking = session("words " * 200, modality="text")
    (done,) = of(ResponseDone, answered(talking))
    assert done.response.usage.output_text_tokens <= ANSWER_TOKENS
