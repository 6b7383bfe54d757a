from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine.toy_dialogue import ANSWER, HEARD, backbone, engine, silence, speech, talker, voice
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tristep.audio import SPEAK_HZ
from tristep.backbone.checkpoints import save_backbone
from tristep.backbone.low_rank import LowRankLinear, add_low_rank
from tristep.chat import Turn
from tristep.engine.conversing import Answer, Ear, Memory, Prompt, Thinker, Thought, Utterance
from tristep.engine.microphone import Microphone
from tristep.engine.settings import Settings
from tristep.engine.streaming import TranscriptionStream
from tristep.modes.realtime.decoding import Call, call_text
from tristep.vocab import byte_tokenizer


@pytest.fixture(scope="module")
def thinker() -> Thinker:
    return Thinker(backbone(), byte_tokenizer())


def prompt(text: str = "Hello", budget: int = 40, **changes: object) -> Prompt:
    tokens = engine().chat.prompt([Turn("user", (text,))])
    return Prompt(tokens, budget, **changes)  # type: ignore[arg-type]


def thought_of(thought: Thought) -> list[str | Call]:
    pieces = []
    while thought.finish_reason is None:
        pieces += thought.step()
    return pieces


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(st.integers(0, 255), min_size=1, max_size=60), min_size=2, max_size=5), st.integers(1, 50))
def test_what_is_remembered_is_what_would_be_read(prompts: list[list[int]], most: int) -> None:
    thinker = Thinker(backbone(), byte_tokenizer())
    memory = Memory(thinker)
    for number, tokens in enumerate(prompts):
        whole = prompts[0][: 10 * number] + tokens  # prompts that begin alike
        while not memory.read(whole, most):
            pass
        fresh = Memory(thinker)
        fresh.read(whole, len(whole))
        assert memory.tokens == fresh.tokens == whole
        assert memory.logits is not None
        assert fresh.logits is not None
        torch.testing.assert_close(memory.logits, fresh.logits, atol=1e-4, rtol=1e-4)


def test_what_was_read_is_not_read_again(thinker: Thinker) -> None:
    memory = Memory(thinker)
    memory.read([1, 2, 3, 4, 5], 9)
    assert memory.missing([1, 2, 3, 4, 5]) == 0
    assert memory.missing([1, 2, 3, 4, 5, 6, 7]) == 2
    assert memory.missing([1, 2, 9]) == 1
    assert memory.missing([1, 2, 3]) == 1  # what follows the last token has to be known


def test_a_long_conversation_finds_room(thinker: Thinker) -> None:
    memory = Memory(thinker)
    tokens = [number % 250 for number in range(700)]
    assert not memory.read(tokens, 500)
    assert memory.read(tokens, 500)
    assert memory.tokens == tokens


def test_the_same_seed_thinks_the_same(thinker: Thinker) -> None:
    def written(seed: int) -> str:
        return "".join(map(str, thought_of(Thought(Memory(thinker), prompt(seed=seed)))))

    assert written(1) == written(1) != written(2)


def test_an_answer_is_text_only_and_ends_at_its_budget(thinker: Thinker) -> None:
    thought = Thought(Memory(thinker), prompt(budget=17, temperature=2.0))
    thought_of(thought)
    assert thought.finish_reason == "length"
    assert len(thought.written) == 17
    assert {thinker.backbone.vocab.region(token) for token in thought.written} == {"text"}


def test_an_answer_goes_on_after_its_memory_was_used_for_something_else() -> None:
    memory = Memory(engine().thinker)
    thought = Thought(memory, prompt())
    pieces = thought.step()
    memory.read([1, 2, 3], 9)
    begun = "".join(map(str, pieces))
    assert ANSWER.startswith(begun)
    assert begun
    thought_of(thought)
    assert memory.tokens[: len(thought.prompt.tokens)] == list(thought.prompt.tokens)


def test_characters_come_out_whole() -> None:
    answer = "na\u00efve \u4f60\u597d!"
    pieces = thought_of(Thought(Memory(engine(answer).thinker), prompt()))
    assert "".join(map(str, pieces)) == answer
    assert "\ufffd" not in "".join(map(str, pieces))


def test_a_call_is_read_out_of_an_answer() -> None:
    wanted = Call("weather", '{"city": "Oslo"}')
    thinker = engine(f"One moment. {call_text(wanted.name, wanted.arguments)}").thinker
    pieces = thought_of(Thought(Memory(thinker), prompt(budget=200, tools=("weather",))))
    assert "".join(piece for piece in pieces if isinstance(piece, str)) == "One moment. "
    assert [piece for piece in pieces if isinstance(piece, Call)] == [wanted]


def test_an_answer_may_have_to_begin_in_a_way() -> None:
    thought = Thought(Memory(engine().thinker), prompt(budget=60, opening="Ahoy! "))
    assert "".join(map(str, thought_of(thought))).startswith("Ahoy! ")


def spoken(utterance: Utterance) -> Tensor:
    chunks = []
    while utterance.is_speaking or utterance.num_waiting:
        chunks.append(utterance.step())
    return torch.cat(chunks)


def test_clauses_say_where_they_sound() -> None:
    utterance = Utterance(talker(), voice(), "", 0)
    for piece in ("I am he", "re. And", " ... You"):
        utterance.push(piece)
    utterance.finish()
    waveform = spoken(utterance)
    assert [clause.text for clause in utterance.clauses] == ["I am here.", " And ...", " You"]
    ends = [clause.end for clause in utterance.clauses]
    assert [clause.start for clause in utterance.clauses] == [0, *ends[:-1]]
    assert ends[-1] == len(waveform) == utterance.num_samples
    assert utterance.num_codes == round(len(waveform) / SPEAK_HZ * talker().codec.code_rate_hz)


def test_a_clause_without_words_makes_no_sound() -> None:
    utterance = Utterance(talker(), voice(), "", 0)
    utterance.push("...\n!!!\n")
    utterance.finish()
    assert len(spoken(utterance)) == 0


def test_text_leads_sound_and_sound_does_not_wait_for_the_end_of_the_text() -> None:
    answer = Answer(Thought(Memory(engine().thinker), prompt()), Utterance(talker(), voice(), "", 0))
    pieces: list[str | Call | Tensor] = []
    while not answer.is_done:
        pieces += answer.step()
    first_sound = next(place for place, piece in enumerate(pieces) if isinstance(piece, Tensor))
    last_text = max(place for place, piece in enumerate(pieces) if isinstance(piece, str))
    assert 0 < first_sound < last_text
    assert "".join(piece for piece in pieces if isinstance(piece, str)) == ANSWER


def heard(pauses: bool, chunk: int) -> tuple[str, int]:
    """Hear a turn, and return what was said and how often the model was asked."""
    asked: list[float] = []

    class Counting(type(engine())):  # type: ignore[misc]
        def transcribe_stretches(self, stretches, *args, **kwargs):  # type: ignore[no-untyped-def]
            asked.extend(stretch.duration_s for stretch in stretches)
            return super().transcribe_stretches(stretches, *args, **kwargs)

    microphone = Microphone()
    microphone.push(torch.cat([speech(1900), silence(600)]), SPEAK_HZ)
    ear = Ear(TranscriptionStream(Counting(backbone(), byte_tokenizer()), Settings(), "segment", 1e6))
    for piece in microphone.between(0, 40_000).split(chunk):
        ear.push(piece)
    if pauses:
        ear.pause()
    while ear.has_work:
        ear.step()
    before = len(asked)
    assert ear.text == (HEARD if pauses else "")
    ear.close()
    while ear.has_work:
        ear.step()
    assert ear.is_finished
    return ear.text, len(asked) - before


@pytest.mark.parametrize("chunk", [512, 40_000])
def test_a_pause_leaves_nothing_to_hear_at_the_end(chunk: int) -> None:
    assert heard(pauses=True, chunk=chunk) == (HEARD, 0)
    assert heard(pauses=False, chunk=chunk) == (HEARD, 1)


def test_the_text_model_is_what_all_modes_share(tmp_path: Path) -> None:
    shared, own = backbone(), backbone()
    torch.manual_seed(3)
    for parameter in add_low_rank(own.decoder, 2, ["o_proj"]):
        torch.nn.init.normal_(parameter)
    save_backbone(shared, byte_tokenizer(), tmp_path / "toy", packing="fp32", modes={"asr": own})
    loaded = Thinker.load(tmp_path / "toy", precision="fp32")
    assert not any(isinstance(module, LowRankLinear) for module in loaded.backbone.modules())
    weight = "decoder.blocks.0.attention.o_proj.weight"
    assert torch.equal(loaded.backbone.state_dict()[weight], shared.state_dict()[weight])
    save_backbone(shared, byte_tokenizer(), tmp_path / "both", packing="fp32", modes={"asr": shared, "realtime": own})
    trained = Thinker.load(tmp_path / "both", precision="fp32")
    assert not torch.equal(trained.backbone.state_dict()[weight], shared.state_dict()[weight])
