from __future__ import annotations

from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training import toys

from tristep.backbone.model import Backbone
from tristep.chat import Chat
from tristep.config import load_backbone_config
from tristep.corpus.tones import write_corpus
from tristep.engine.sampling import Completion
from tristep.modes.tts.data import FEATURES, IGNORED, NEXT, Utterance, Word, render, turns
from tristep.modes.tts.decoding import word_budget
from tristep.training import conversing, hearing, speaking, stages
from tristep.training.mixture import CorpusSettings, read_clips
from tristep.training.policies import RewardedConversing, RewardedSpeaking
from tristep.training.rollouts import (
    CODE_OR_END,
    CODE_OR_NEXT,
    NOT_CHOSEN,
    ConversingRollouts,
    HearingRollouts,
    Replied,
    Rollout,
    SpeakingRollouts,
    Spoken,
    Transcribed,
    acting,
    choices_of,
    seeds_of,
    speaking_masks,
)
from tristep.vocab import byte_tokenizer


@pytest.fixture(scope="module")
def speaking_rollouts(tmp_path_factory: pytest.TempPathFactory) -> tuple[SpeakingRollouts, Backbone]:
    root = tmp_path_factory.mktemp("letters")
    toys.write_letters(root)
    recipe = stages.load_recipe(toys.speaking_recipe(root))
    assert isinstance(recipe, RewardedSpeaking)
    backbone, tokenizer = stages.prepare(recipe, root, root)
    clips = speaking.read_clips(recipe.data.corpora, root, recipe.codes, 20.0)
    chat = Chat(backbone.vocab, tokenizer)
    return SpeakingRollouts(chat, clips, recipe, len(backbone.head.weight)), backbone.eval()


def hearing_rollouts(root: Path) -> tuple[HearingRollouts, Backbone]:
    write_corpus(root / "tones", num_clips=4, seed=0)
    backbone = Backbone(load_backbone_config("toy")).eval()
    corpus = CorpusSettings(path="tones/manifest.jsonl")
    data = hearing.DataSettings(corpora=(corpus,), dev=(corpus,), batch_s=0.8, noisy_share=0.0)
    clips = read_clips(data.corpora, root, 30.0)
    source = hearing.SampleSource(Chat(backbone.vocab, byte_tokenizer()), backbone, clips, data, root / "frames")
    return HearingRollouts(source, backbone, seed=0), backbone


def drawn(rollouts: SpeakingRollouts, backbone: Backbone, temperature: float = 1.0) -> list[Rollout]:
    indices = rollouts.indices_at(0)
    return rollouts.roll_out(backbone, indices, seeds_of(0, 0, len(indices), 3), temperature)


def test_seeds_differ_and_follow_from_the_run_and_the_update() -> None:
    seeds = seeds_of(5, 7, 3, 4)
    assert len({seed for group in seeds for seed in group}) == 12
    assert seeds == seeds_of(5, 7, 3, 4) != seeds_of(5, 8, 3, 4)
    assert all(0 <= seed < 2**63 for group in seeds for seed in group)


def test_everything_that_was_drawn_could_have_been(
    speaking_rollouts: tuple[SpeakingRollouts, Backbone],
) -> None:
    rollouts, backbone = speaking_rollouts
    found = drawn(rollouts, backbone)
    assert len(found) == 3 * len(rollouts.indices_at(0))
    for rollout in found:
        pairs = [pair for pair in zip(rollout.targets, rollout.choices, strict=True) if pair[0] != IGNORED]
        assert len(rollout.tokens) == len(rollout.targets) == len(rollout.choices)
        assert all(rollouts.masks[choice, target - rollouts.first_token] for target, choice in pairs)
        assert [choice for _, choice in pairs][: len(FEATURES)] == list(range(len(FEATURES)))


def test_the_answers_of_a_prompt_are_asked_for_alike(speaking_rollouts: tuple[SpeakingRollouts, Backbone]) -> None:
    found = drawn(*speaking_rollouts)
    answers = [rollout.answer for rollout in found]
    assert all(isinstance(answer, Spoken) for answer in answers)
    for first in range(0, len(answers), 3):
        assert answers[first].asked == answers[first + 1].asked == answers[first + 2].asked
    assert len({answer.utterance.codes for answer in answers}) > len(answers) // 3


def test_the_most_probable_answer_is_the_same_whatever_the_seed(
    speaking_rollouts: tuple[SpeakingRollouts, Backbone],
) -> None:
    found = drawn(*speaking_rollouts, temperature=0.0)
    assert all(found[place].tokens == found[place + 1].tokens for place in range(0, len(found), 3))


def test_a_words_end_that_its_budget_forced_was_no_choice(
    speaking_rollouts: tuple[SpeakingRollouts, Backbone],
) -> None:
    rollouts, _ = speaking_rollouts
    budget = word_budget("a", 12.5)
    utterance = Utterance((Word("a", 0), Word("b", budget)), (0,) * (budget + 2))
    sample = render(rollouts.chat, turns(utterance.text), utterance)
    choices = choices_of(sample.targets, utterance, rollouts.chat, 12.5)
    chosen = [choice for choice in choices if choice >= 0]
    assert chosen == [*range(len(FEATURES)), *[CODE_OR_NEXT] * budget, *[CODE_OR_END] * 3]
    forced = sample.targets.index(rollouts.chat.vocab.control(NEXT))
    assert choices[forced] == NOT_CHOSEN


def test_a_word_ends_with_the_next_one_and_the_last_with_the_end() -> None:
    vocab = Backbone(load_backbone_config("toy")).vocab
    masks = speaking_masks(Chat(vocab, byte_tokenizer()), first_token=256)
    for row, name, other in ((CODE_OR_NEXT, NEXT, "tts_end"), (CODE_OR_END, "tts_end", NEXT)):
        assert masks[row, vocab.control(name) - 256]
        assert not masks[row, vocab.control(other) - 256]


def test_a_transcript_is_chosen_from_the_tag_to_the_end_of_the_turn(tmp_path: Path) -> None:
    rollouts, backbone = hearing_rollouts(tmp_path)
    vocab = backbone.vocab
    prompt, heard = rollouts.prompt(2, "spoken"), torch.zeros(2, backbone.config.decoder.dim)
    words = [vocab.control("lang_en"), *byte_tokenizer().encode("oh")]
    rollout = rollouts.rollout(prompt, Completion(9, words, finish_reason="stop"), heard, "oh no", "en")
    assert rollout.answer == Transcribed("oh no", "oh", "en")
    assert [t for t in rollout.targets if t != IGNORED] == [*words, vocab.control("turn_end")]
    assert [c for c in rollout.choices if c >= 0] == [0, 1, 1, 1]
    cut = rollouts.rollout(prompt, Completion(3, words, finish_reason="length"), heard, "oh no", "en")
    assert cut.num_chosen == rollout.num_chosen - 1
    silence = [vocab.control("nospeech")]
    assert rollouts.rollout(prompt, Completion(3, silence, finish_reason="stop"), heard, "", "en").num_chosen == 1


def test_clips_that_are_measured_are_heard_as_they_are(tmp_path: Path) -> None:
    rollouts, backbone = hearing_rollouts(tmp_path)
    first, other = (rollouts.roll_out(backbone, [0], [[seed]], temperature=0.0)[0] for seed in (1, 2))
    assert first.tokens == other.tokens
    noisy = rollouts.roll_out(backbone, [0], [[1]], temperature=1.0)[0]
    assert first.audio_embeddings is not None
    assert not torch.equal(first.audio_embeddings, noisy.audio_embeddings[: len(first.audio_embeddings)])


def conversing_rollouts(root: Path) -> tuple[ConversingRollouts, Backbone]:
    write_corpus(root / "tones", num_clips=20, seed=0)
    recipe = stages.load_recipe(toys.conversing_recipe(root))
    assert isinstance(recipe, RewardedConversing)
    backbone, tokenizer = stages.prepare(recipe, root, root)
    sources, _ = conversing.sources(recipe, Chat(backbone.vocab, tokenizer), backbone.eval(), root)
    return ConversingRollouts(sources, recipe.data.corpora, num_prompts=4, budget=8, seed=0), backbone


def test_turns_in_sound_and_in_text_are_replied_to_together(tmp_path: Path) -> None:
    rollouts, backbone = conversing_rollouts(tmp_path)
    vocab = backbone.vocab
    kinds = [name for name, _ in rollouts.asked]
    indices = [kinds.index("typed"), kinds.index("spoken")]
    typed, _, spoken, _ = rollouts.roll_out(backbone, indices, seeds_of(0, 0, 2, 2), temperature=1.0)
    assert typed.audio_embeddings is None
    assert spoken.audio_embeddings is not None
    assert spoken.tokens.count(vocab.control("audio_slot")) == len(spoken.audio_embeddings)
    for rollout, name in ((typed, "typed"), (spoken, "spoken")):
        assert isinstance(rollout.answer, Replied)
        assert rollout.answer.exchange is rollouts.asked[kinds.index(name)][1]
        chosen = [target for target in rollout.targets if target != IGNORED]
        assert all(rollouts.masks[0, token] for token in chosen)
        assert len(chosen) == sum(choice >= 0 for choice in rollout.choices) <= 8
        assert (chosen[-1] == vocab.control("turn_end")) == rollout.answer.is_whole


def test_what_was_noted_of_a_sound_is_read_and_was_not_chosen(tmp_path: Path) -> None:
    rollouts, backbone = conversing_rollouts(tmp_path)
    spoken = [place for place, (name, _) in enumerate(rollouts.asked) if name == "spoken"][:1]
    found = rollouts.roll_out(backbone, spoken, [[1, 2]], temperature=1.0)
    start, end = (backbone.vocab.control(name) for name in ("think_start", "think_end"))
    traces = [rollout.tokens[rollout.tokens.index(start) : rollout.tokens.index(end) + 1] for rollout in found]
    assert traces[0] == traces[1]
    for rollout in found:
        before = rollout.tokens.index(end)
        assert set(rollout.choices[:before]) == {NOT_CHOSEN}
        assert rollout.choices[before] == 0


def test_a_reply_is_held_against_what_another_user_said(tmp_path: Path) -> None:
    rollouts, backbone = conversing_rollouts(tmp_path)
    indices = rollouts.indices_at(0)
    assert len(indices) == 4
    found = rollouts.roll_out(backbone, indices, seeds_of(0, 0, 4, 3), temperature=1.0)
    answers = [rollout.answer for rollout in found]
    for first in range(0, len(answers), 3):
        assert answers[first].other == answers[first + 1].other == answers[first + 2].other
    texts = {exchange.text for _, exchange in rollouts.asked}
    assert {answer.other for answer in answers} <= texts


def test_corpora_without_an_exchange_give_nothing_to_reply_to(tmp_path: Path) -> None:
    rollouts, _ = conversing_rollouts(tmp_path)
    with pytest.raises(ValueError, match="the corpora clips have no exchange to be answered"):
        ConversingRollouts({"clips": rollouts.sources["clips"]}, {}, num_prompts=4, budget=8, seed=0)


def test_a_manner_alone_is_four_choices_and_no_word(speaking_rollouts: tuple[SpeakingRollouts, Backbone]) -> None:
    rollouts, backbone = speaking_rollouts
    whole, silent = drawn(rollouts, backbone), copy(rollouts)
    silent.manner_only = True
    for spoken, rollout in zip(whole, drawn(silent, backbone), strict=True):
        assert isinstance(rollout.answer, Spoken)
        assert isinstance(spoken.answer, Spoken)
        assert rollout.answer.utterance == replace(spoken.answer.utterance, words=(), codes=())
        assert [choice for choice in rollout.choices if choice >= 0] == list(range(len(FEATURES)))
        chosen = [place for place, target in enumerate(rollout.targets) if target != IGNORED]
        assert rollout.targets == [*spoken.targets[: chosen[-1] + 1], IGNORED, IGNORED]
        assert all(rollout.targets[place] == rollout.tokens[place + 1] for place in chosen)


def test_who_answers_in_bf16_is_a_copy_that_leaves_the_policy_as_it_is(
    speaking_rollouts: tuple[SpeakingRollouts, Backbone],
) -> None:
    rollouts, backbone = speaking_rollouts
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    actor = acting(backbone, "bf16")
    assert actor.embedding.weight.dtype == torch.bfloat16
    assert len(drawn(rollouts, actor)) == len(drawn(rollouts, backbone))
    assert before.keys() == backbone.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.state_dict().items())
    assert acting(backbone, "fp32") is backbone


def test_what_a_persona_has_said_may_be_what_the_policy_says(tmp_path: Path) -> None:
    rollouts, backbone = conversing_rollouts(tmp_path)
    history = (("user", "hi"), ("assistant", "one"), ("user", "well"), ("assistant", "two"))
    name, exchange = next(each for each in rollouts.asked if each[1].clip is None)
    rollouts.asked[0], rollouts.own_turns = (name, replace(exchange, history=history)), 2
    found = rollouts.roll_out(backbone, [0], [[1, 2]], temperature=1.0)
    first, second = (rollout.answer for rollout in found)
    assert isinstance(first, Replied)
    assert isinstance(second, Replied)
    lived = first.exchange.history
    assert lived == second.exchange.history  # the answers of a prompt follow the same turns
    assert [turn for turn in lived if turn[0] == "user"] == [turn for turn in history if turn[0] == "user"]
    assert all(own != said for own, said in zip(lived[1::2], history[1::2], strict=True))
    prompt = rollouts.prompt(0, first.exchange, None, seed=1)
    assert found[0].tokens[: len(prompt)] == prompt


def test_a_first_turn_has_nothing_to_say_again(tmp_path: Path) -> None:
    rollouts, backbone = conversing_rollouts(tmp_path)
    before = [rollout.tokens for rollout in rollouts.roll_out(backbone, [0], [[1, 2]], temperature=1.0)]
    rollouts.own_turns = 2
    assert [rollout.tokens for rollout in rollouts.roll_out(backbone, [0], [[1, 2]], temperature=1.0)] == before
