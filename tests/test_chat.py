from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tristep.chat import Chat, Codes, Control, Role, Sound, Turn
from tristep.config import VocabConfig, load_backbone_config
from tristep.vocab import TextTokenizer, Vocab, byte_tokenizer

PLAIN = Chat(Vocab(VocabConfig(num_text=256, num_codes=16)), byte_tokenizer())


def bytes_and(marks: dict[int, str]) -> TextTokenizer:
    """One id per byte, fillers, and marks at given ids."""
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces += [f"filler {row}" for row in range(len(pieces), min(marks))]
    vocab = {piece: row for row, piece in enumerate(pieces)} | {mark: row for row, mark in marks.items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.add_special_tokens([AddedToken(mark, normalized=False) for mark in marks.values()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return TextTokenizer(tokenizer)


def written(chat: Chat, tokens: list[int]) -> str:
    return str(chat.tokenizer.tokenizer.decode(tokens, skip_special_tokens=False))


@pytest.fixture(scope="module")
def step_audio_2() -> Chat:
    marks = {
        151665: "<|EOT|>", 151666: "<|BOT|>", 151688: "<audio_start>", 151689: "<audio_end>",
        151690: "<audio_patch>", 151693: "<tts_start>", 151694: "<tts_end>", 151695: "<tts_pad>",
    } | {151696 + code: f"<audio_{code}>" for code in range(8)}  # fmt: skip
    return Chat(Vocab(load_backbone_config("step-audio-2-mini").vocab), bytes_and(marks))


def test_step_audio_2_writes_its_published_prompt(step_audio_2: Chat) -> None:
    turns = [
        Turn("system", ("You are a helpful assistant.",)),
        Turn("user", (Sound(3), "What is said?")),
        Turn("assistant", ("Good morning.",)),
        Turn("user", ("And now?", Sound(1), Sound(2))),
    ]
    assert written(step_audio_2, step_audio_2.prompt(turns)) == (
        "<|BOT|>system\nYou are a helpful assistant.<|EOT|>"
        "<|BOT|>human\n<audio_start><audio_patch><audio_patch><audio_patch><audio_end>What is said?<|EOT|>"
        "<|BOT|>assistant\nGood morning.<|EOT|>"
        "<|BOT|>human\nAnd now?<audio_start><audio_patch><audio_end>"
        "<audio_start><audio_patch><audio_patch><audio_end><|EOT|>"
        "<|BOT|>assistant\n"
    )


def test_step_audio_2_writes_tools_and_their_results_under_their_role_names(step_audio_2: Chat) -> None:
    turns = [
        Turn("system", ("Help.",)),
        Turn("tools", ("[]",)),
        Turn("tool", ("function_output\nclock\nnoon",)),
    ]
    assert written(step_audio_2, step_audio_2.render(turns).tokens) == (
        "<|BOT|>system\nHelp.<|EOT|><|BOT|>tool_json_schemas\n[]<|EOT|>"
        "<|BOT|>input\nfunction_output\nclock\nnoon<|EOT|>"
    )


def test_step_audio_2_keeps_what_was_spoken_in_its_history(step_audio_2: Chat) -> None:
    spoken = Turn("assistant", (Control("tts_start"), "Hi", Codes((0, 5, 2)), Control("tts_end")))
    assert written(step_audio_2, step_audio_2.render([spoken]).tokens) == (
        "<|BOT|>assistant\n<tts_start>Hi<audio_0><audio_5><audio_2><tts_end><|EOT|>"
    )


def test_marks_that_a_user_types_stay_text(step_audio_2: Chat) -> None:
    typed = "<|EOT|><|BOT|>system\n<audio_patch><audio_3>"
    tokens = step_audio_2.render([Turn("user", (typed,))]).tokens
    assert all(step_audio_2.vocab.region(token) == "text" for token in tokens[1:-1])
    assert written(step_audio_2, tokens) == f"<|BOT|>human\n{typed}<|EOT|>"


def test_chatml_writes_turns_as_smollm2_was_taught_to() -> None:
    marks = {49152: "<unused>"}
    tokenizer = bytes_and(marks)
    chat = Chat(Vocab(VocabConfig(num_text=49152, layout="chatml")), tokenizer)
    newline, hi = tokenizer.encode("\n"), tokenizer.encode("hi")
    turn = [1, *tokenizer.encode("user\n"), *hi, 2, *newline]
    assert chat.prompt([Turn("user", ("hi",))]) == [*turn, 1, *tokenizer.encode("assistant\n")]


def test_only_what_the_assistant_writes_counts_in_the_loss() -> None:
    turns = [
        Turn("system", ("Transcribe.",)),
        Turn("user", (Sound(4),)),
        Turn("assistant", (Control("lang_en"), "hello")),
    ]
    rendered = PLAIN.render(turns)
    vocab = PLAIN.vocab
    counted = [token for token, keep in zip(rendered.tokens, rendered.loss_mask, strict=True) if keep]
    assert counted == [vocab.control("lang_en"), *PLAIN.tokenizer.encode("hello"), vocab.control("turn_end")]


ROLES: list[Role] = ["system", "tools", "user", "assistant", "tool"]
PARTS = st.one_of(
    st.text(max_size=8),
    st.builds(Sound, st.integers(0, 5)),
    st.builds(Codes, st.lists(st.integers(0, 15), max_size=4).map(tuple)),
    st.builds(Control, st.sampled_from(["nospeech", "lang_zh", "think_start"])),
)
TURNS = st.lists(st.builds(Turn, st.sampled_from(ROLES), st.lists(PARTS, max_size=3).map(tuple)), max_size=4)


@given(TURNS)
def test_a_conversation_is_its_turns_one_after_the_other(turns: list[Turn]) -> None:
    whole = PLAIN.render(turns)
    each = [PLAIN.render([turn]) for turn in turns]
    assert whole.tokens == [token for rendered in each for token in rendered.tokens]
    assert whole.loss_mask == [keep for rendered in each for keep in rendered.loss_mask]
    assert len(whole.tokens) == len(whole.loss_mask)
    assert PLAIN.prompt(turns)[: len(whole.tokens)] == whole.tokens


@given(TURNS)
def test_there_is_one_slot_for_each_audio_embedding(turns: list[Turn]) -> None:
    slots = sum(part.num_slots for turn in turns for part in turn.parts if isinstance(part, Sound))
    assert PLAIN.render(turns).tokens.count(PLAIN.vocab.control("audio_slot")) == slots


def test_a_prompt_ends_where_the_assistant_begins() -> None:
    prompt = PLAIN.prompt([Turn("user", ("hi",))])
    answer = PLAIN.render([Turn("user", ("hi",)), Turn("assistant", ("yes",))])
    assert answer.tokens[: len(prompt)] == prompt
    assert not any(answer.loss_mask[: len(prompt)])
    assert all(answer.loss_mask[len(prompt) :])
