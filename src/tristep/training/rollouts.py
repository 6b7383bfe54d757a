"""Rollouts: what a policy is asked, and what it answers, by mode.

The answers are drawn by the project's own engine from all that the mode's decoding constraint allows, without top-k or
top-p: the probabilities of what was drawn are those that the update differentiates. A rollout says at every position
which token was chosen there and among which; what was no choice (text that is given, a budget that ran out) does not
count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import pad_sequence

from tristep.backbone.low_rank import merge_low_rank
from tristep.backbone.model import Backbone
from tristep.backbone.precision import compute_in
from tristep.chat import Chat, Turn
from tristep.engine.answers import SAMPLING, Words, notes
from tristep.engine.drawing import draw_completions
from tristep.engine.reciting import Sampling, recite
from tristep.engine.sampling import Completion
from tristep.modes.asr.data import Style
from tristep.modes.asr.data import turns as listening_turns
from tristep.modes.asr.decoding import Constraint, parse, token_budget
from tristep.modes.realtime.decoding import allowed
from tristep.modes.tts.data import DEGREES, FEATURES, IGNORED, NEXT, Utterance, Word, render, render_manner
from tristep.modes.tts.data import turns as speaking_turns
from tristep.modes.tts.decoding import Recital, word_budget
from tristep.training import hearing, speaking
from tristep.training.conversing import Exchange, ItemSource, as_heard, given
from tristep.training.mixture import CorpusSettings, Mixture, batch_finder
from tristep.training.policies import RewardedSpeaking
from tristep.training.speaking import NOTHING_ASKED, Direction

ENCODER_HZ = 50
"""Frames a second that the frozen encoder hands over."""
NOT_CHOSEN = -1
"""The choice of a position where nothing was chosen."""


@dataclass(frozen=True)
class Transcribed:
    """What was heard, and what was said."""

    reference: str
    text: str
    language: str


@dataclass(frozen=True)
class Asked:
    """What is to be spoken, and how."""

    reference: Utterance
    """The text, as somebody said it."""
    direction: Direction = NOTHING_ASKED
    usual_codes: float = 0.0
    """How many codes the text takes at the speakers' usual pace; 0 where that is not known."""

    @property
    def text(self) -> str:
        """The text, with a cue where there is one."""
        return self.direction.cued(self.reference.text)


@dataclass(frozen=True)
class Spoken:
    """What was asked for, and what was spoken."""

    asked: Asked
    utterance: Utterance
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True)
class Replied:
    """What a persona was told, and what it replied."""

    exchange: Exchange
    """With the reference."""
    other: str
    """What another user said; a reply that suits it as well is a reply to nothing."""
    text: str
    is_whole: bool
    """Whether it came to its end by itself."""


@dataclass(frozen=True)
class Rollout:
    """One answer, as the backbone reads it and as rewards see it."""

    tokens: list[int]
    """Prompt and answer."""
    targets: list[int]
    """What each position predicts; `IGNORED` where nothing was chosen."""
    choices: list[int]
    """Among what: a row of the mode's `masks`, `NOT_CHOSEN` where nothing was chosen."""
    audio_embeddings: Tensor | None
    """Vectors for the audio slots, shape `(N, D)`."""
    answer: Transcribed | Spoken | Replied

    @property
    def num_chosen(self) -> int:
        """Count the tokens that the policy chose."""
        return sum(target != IGNORED for target in self.targets)


class Rollouts(Protocol):
    """What a mode's prompts are, how the policy answers them, and what it chooses among."""

    masks: Tensor
    """Which of the scored tokens may be written, by kind of choice, shape `(C, V)`."""
    first_token: int
    """The token that the first column stands for."""

    def indices_at(self, number: int) -> list[int]:
        """Return which prompts the update with this number is about: a pure function."""

    def roll_out(
        self, backbone: Backbone, indices: Sequence[int], seeds: Sequence[Sequence[int]], temperature: float
    ) -> list[Rollout]:
        """Answer each prompt as often as it has seeds, its answers next to each other."""

    def logits(self, backbone: Backbone, hidden: Tensor) -> Tensor:
        """Score what a mode writes: `(N, D)` -> `(N, V)`."""


def seeds_of(seed: int, number: int, num_prompts: int, group_size: int) -> list[list[int]]:
    """Give every rollout of an update a seed of its own, a pure function of the run's seed and the update's number."""
    words = np.random.SeedSequence([seed, number]).generate_state(num_prompts * group_size, np.uint64)
    return [[int(word) >> 1 for word in group] for group in words.reshape(num_prompts, group_size)]


def acting(backbone: Backbone, precision: Literal["fp32", "bf16"]) -> Backbone:
    """Return who answers: the policy itself, or in bf16 a copy with its updates folded in, which writes twice as fast.

    How the copy is rounded is no matter: the log-probabilities that are learnt from are the policy's own.
    """
    if precision == "fp32":
        return backbone
    actor = deepcopy(backbone).requires_grad_(False)
    merge_low_rank(actor)
    compute_in(actor, "bf16")
    return actor


class HearingRollouts:
    """Sounds, and transcripts that are drawn for them."""

    def __init__(self, source: hearing.SampleSource, backbone: Backbone, seed: int) -> None:
        self.source, self.seed = source, seed
        durations = np.array([clip.duration_s for clip in source.clips])
        repeats = np.array([clip.corpus.repeat for clip in source.clips])
        self._find = batch_finder(Mixture(durations, repeats, source.settings.batch_s, seed))
        constraint, size = Constraint(backbone.vocab), backbone.vocab.size
        self.masks = torch.stack([constraint.opening(size), constraint.body(size)])
        self.first_token = 0

    def indices_at(self, number: int) -> list[int]:
        """Return the clips of an update: `batch_s` of similar length."""
        return self._find(number, 0, 1, 0, 1)

    def roll_out(
        self, backbone: Backbone, indices: Sequence[int], seeds: Sequence[Sequence[int]], temperature: float
    ) -> list[Rollout]:
        """Hear the clips, as noisily as the recipe has them, and draw transcripts."""
        augmented = self.source.settings.spec_augment and temperature > 0
        heard = [
            self.source.heard(self.source.clips[index], torch.Generator().manual_seed(own[0]) if augmented else None)
            for index, own in zip(indices, seeds, strict=True)
        ]
        embeddings = embedded(backbone, [frames for frames, _ in heard])
        styles = [self.source.clips[index].style for index in indices]
        prompts = [self.prompt(len(row), style) for row, style in zip(embeddings, styles, strict=True)]
        budgets = [token_budget(len(frames) / ENCODER_HZ) for frames, _ in heard]
        sampling = Sampling(temperature, top_k=backbone.vocab.size, top_p=1.0, ends_apart=False)
        groups = draw_completions(
            backbone, prompts, torch.cat(embeddings), Constraint(backbone.vocab), budgets, seeds, sampling
        )
        return [
            self.rollout(prompt, completion, row, text, self.source.clips[index].language)
            for prompt, group, row, (_, text), index in zip(prompts, groups, embeddings, heard, indices, strict=True)
            for completion in group
        ]

    def prompt(self, num_slots: int, style: Style) -> list[int]:
        """Ask for a transcript of a sound of `num_slots` audio embeddings."""
        return self.source.chat.prompt(listening_turns(num_slots, style))

    def rollout(
        self, prompt: list[int], completion: Completion, embeddings: Tensor, reference: str, language: str
    ) -> Rollout:
        """Write down one answer: every token of it was chosen, the end of the turn too."""
        vocab = self.source.chat.vocab
        written = parse(completion.tokens, vocab, self.source.chat.tokenizer)
        chosen = list(completion.tokens)
        if completion.finish_reason == "stop" and chosen[-1:] != [vocab.control("nospeech")]:
            chosen.append(vocab.control("turn_end"))
        before = len(prompt) - 1  # the prompt's last token predicts the first of the answer
        return Rollout(
            tokens=prompt + chosen,
            targets=[IGNORED] * before + chosen + [IGNORED],
            choices=[NOT_CHOSEN] * before + [0] + [1] * (len(chosen) - 1) + [NOT_CHOSEN],
            audio_embeddings=embeddings,
            answer=Transcribed(reference, written.text, language),
        )

    def logits(self, backbone: Backbone, hidden: Tensor) -> Tensor:
        """Score the whole vocabulary."""
        return backbone.logits(hidden)


@torch.no_grad()
def embedded(backbone: Backbone, frames: Sequence[Tensor]) -> list[Tensor]:
    """Return what the decoder sees of each sound, whose frames are `(N, De)`: vectors of shape `(slots, D)`."""
    device = backbone.embedding.weight.device
    num_frames = torch.tensor([len(row) for row in frames], device=device)
    adapted = backbone.adapt(pad_sequence(list(frames), batch_first=True).to(device), num_frames)
    return [row[shown].float() for row, shown in zip(adapted.audio_embeddings, adapted.shown, strict=True)]


class SpeakingRollouts:
    """Texts, and codes that are drawn for them."""

    def __init__(self, chat: Chat, clips: list[speaking.Clip], recipe: RewardedSpeaking, first: int) -> None:
        self.chat, self.clips, self.first_token = chat, clips, first
        self.rate_hz, self.seed = recipe.codes.rate_hz, recipe.optim.seed
        self.instructed_share, self.manner_only = recipe.data.instructed_share, recipe.manner_only
        spoken = [clip.utterance for clip in clips if clip.utterance.codes]
        letters = sum(letters_of(utterance) for utterance in spoken)
        self.codes_per_letter = sum(len(utterance.codes) for utterance in spoken) / letters if letters else 0.0
        durations = np.array([clip.duration_s for clip in clips])
        repeats = np.array([clip.repeat for clip in clips])
        self._find = batch_finder(Mixture(durations, repeats, recipe.data.batch_s, self.seed))
        self.masks = speaking_masks(chat, first)

    def indices_at(self, number: int) -> list[int]:
        """Return the texts of an update: about `batch_s` of speech of similar length."""
        return self._find(number, 0, 1, 0, 1)

    def roll_out(
        self, backbone: Backbone, indices: Sequence[int], seeds: Sequence[Sequence[int]], temperature: float
    ) -> list[Rollout]:
        """Speak the texts, some of them under an instruction."""
        wanted = [self.asked(index, own[0]) for index, own in zip(indices, seeds, strict=True) for _ in own]
        words = [[word.text for word in asked.reference.words] for asked in wanted]
        recitals = [Recital.of(row, self.chat.vocab, self.chat.tokenizer, self.rate_hz) for row in words]
        prompts = [self.chat.prompt(self.turns(asked)) for asked in wanted]
        sampling = Sampling(temperature, top_k=backbone.vocab.size, top_p=1.0, ends_apart=False)
        with parametrize.cached():  # what the codes' rows share is added up once, and not for every token
            steps = recite(backbone, prompts, recitals, [seed for own in seeds for seed in own], sampling)
            for _ in islice(steps, len(FEATURES)) if self.manner_only else steps:
                pass
        if self.manner_only:
            return [self.settled(asked, recital) for asked, recital in zip(wanted, recitals, strict=True)]
        return [self.rollout(*row) for row in zip(wanted, words, recitals, strict=True)]

    def asked(self, index: int, seed: int) -> Asked:
        """Draw how a text is to be spoken: the same for all answers of a prompt."""
        clip, rng = self.clips[index], np.random.default_rng(seed)
        usual_codes = letters_of(clip.utterance) * self.codes_per_letter
        if not clip.directions or rng.random() >= self.instructed_share:
            return Asked(clip.utterance, usual_codes=usual_codes)
        return Asked(clip.utterance, clip.directions[rng.integers(len(clip.directions))], usual_codes)

    def turns(self, asked: Asked) -> list[Turn]:
        """Build what the model is given."""
        return speaking_turns(asked.text, asked.direction.instructions)

    def settled(self, asked: Asked, recital: Recital) -> Rollout:
        """Write down a manner: every feature of it was chosen, and nothing was said."""
        sample = render_manner(self.chat, self.turns(asked), recital.settled)
        targets = [*sample.targets[:-2], IGNORED, IGNORED]  # `tts_start` is given
        before = len(targets) - len(FEATURES) - 2
        choices = [NOT_CHOSEN] * before + [*range(len(FEATURES)), NOT_CHOSEN, NOT_CHOSEN]
        answer = Spoken(asked, Utterance((), (), recital.settled), "stop")
        return Rollout(sample.tokens, targets, choices, None, answer)

    def rollout(self, asked: Asked, words: list[str], recital: Recital) -> Rollout:
        """Write down one answer as a training sample, and what was a choice in it."""
        assert recital.finish_reason is not None
        firsts = [Word(word, first) for word, first in zip(words, recital.starts, strict=True)]
        utterance = Utterance(tuple(firsts), tuple(recital.codes), recital.settled)
        sample = render(self.chat, self.turns(asked), utterance)
        choices = choices_of(sample.targets, utterance, self.chat, self.rate_hz)
        targets = [target if choice >= 0 else IGNORED for target, choice in zip(sample.targets, choices, strict=True)]
        return Rollout(sample.tokens, targets, choices, None, Spoken(asked, utterance, recital.finish_reason))

    def logits(self, backbone: Backbone, hidden: Tensor) -> Tensor:
        """Score control tokens and codes."""
        return backbone.head.grown_logits(hidden)


CODE_OR_NEXT, CODE_OR_END = len(FEATURES), len(FEATURES) + 1
"""The choices after those of the manner: inside a word, and inside the last one."""


def letters_of(utterance: Utterance) -> int:
    """Count the letters of what is spoken."""
    return sum(map(str.isalpha, utterance.text))


def speaking_masks(chat: Chat, first_token: int) -> Tensor:
    """Mark what may be written at each kind of choice of the TTS mode, shape `(C, V)`."""
    vocab = chat.vocab
    masks = torch.zeros(len(FEATURES) + 2, vocab.size - first_token, dtype=torch.bool)
    for row, feature in enumerate(FEATURES):
        masks[row, [vocab.control(f"{feature}_{degree}") - first_token for degree in DEGREES[feature]]] = True
    masks[len(FEATURES) :, vocab.first_code - first_token :] = True
    masks[CODE_OR_NEXT, vocab.control(NEXT) - first_token] = True
    masks[CODE_OR_END, vocab.control("tts_end") - first_token] = True
    return masks


def choices_of(targets: Sequence[int], utterance: Utterance, chat: Chat, rate_hz: float) -> list[int]:
    """Say among what each target of an utterance was chosen; a word's end that its budget forced was no choice."""
    ends = [word.first_code for word in utterance.words[1:]] + [len(utterance.codes)]
    spans = zip(utterance.words, ends, strict=True)
    kinds = [*range(len(FEATURES)), NOT_CHOSEN]  # manner, then `tts_start`
    for number, (word, end) in enumerate(spans, start=1):
        inside = CODE_OR_END if number == len(utterance.words) else CODE_OR_NEXT
        num_codes = end - word.first_code
        kinds += [inside] * num_codes + [NOT_CHOSEN if num_codes >= word_budget(word.text, rate_hz) else inside]
    following = iter(kinds)
    return [NOT_CHOSEN if target == IGNORED else next(following) for target in targets]


class ConversingRollouts:
    """Turns of a user, typed or in sound, and replies that are drawn for them.

    A turn of sound is noted before it is answered, by the best tokens, as in every session: the trace says what was
    heard, which is no matter of preference, so nothing in it counts as chosen.
    """

    def __init__(
        self, sources: Mapping[str, ItemSource], corpora: Mapping[str, CorpusSettings],
        num_prompts: int, budget: int, seed: int, own_turns: int = 0,
    ) -> None:  # fmt: skip
        """Take the exchanges of all corpora; clips without an answer are left to rehearsal.

        Args:
            sources: What was read, by corpus.
            corpora: How often each is met.
            num_prompts: Exchanges of an update.
            budget: The most tokens of a reply.
            seed: Shuffles them.
            own_turns: How many of the persona's last turns in the history are what it would say itself.

        Raises:
            ValueError: If there is no exchange.
        """
        named = [(name, item) for name, source in sources.items() for item in source.items]
        self.asked = [(name, item) for name, item in named if isinstance(item, Exchange)]
        if not self.asked:
            raise ValueError(f"the corpora {', '.join(sources)} have no exchange to be answered: name one in [data]")
        self.sources, self.budget, self.own_turns = sources, budget, own_turns
        self.chat = next(iter(sources.values())).chat
        repeats = np.array([corpora[name].repeat for name, _ in self.asked])
        self._find = batch_finder(Mixture(np.ones(len(repeats)), repeats, num_prompts, seed))
        self.masks = allowed(self.chat.vocab)[None]
        self.first_token = 0

    def indices_at(self, number: int) -> list[int]:
        """Return the exchanges of an update."""
        return self._find(number, 0, 1, 0, 1)

    def roll_out(
        self, backbone: Backbone, indices: Sequence[int], seeds: Sequence[Sequence[int]], temperature: float
    ) -> list[Rollout]:
        """Note what was said in sound, and draw replies."""
        heard = self.heard(backbone, indices)
        exchanges = [self.asked[index][1] for index in indices]
        for back in range(self.own_turns, 0, -1):
            exchanges = self.relived(backbone, exchanges, back, [own[0] for own in seeds])
        rows = zip(indices, exchanges, heard, seeds, strict=True)
        prompts = [self.prompt(index, exchange, row, own[0]) for index, exchange, row, own in rows]
        sound = torch.cat(found) if (found := [row for row in heard if row is not None]) else None
        spoken = [place for place, row in enumerate(heard) if row is not None]
        noted = notes(backbone, self.chat, [prompts[place] for place in spoken], sound) if spoken else []
        for place, trace in zip(spoken, noted, strict=True):
            prompts[place] = prompts[place] + trace
        sampling = Sampling(temperature, top_k=backbone.vocab.size, top_p=1.0, ends_apart=False)
        words, budgets = Words(backbone.vocab), [self.budget] * len(prompts)
        groups = draw_completions(backbone, prompts, sound, words, budgets, seeds, sampling)
        others = [self.other(index, own[0]) for index, own in zip(indices, seeds, strict=True)]
        return [
            self.rollout(prompt, completion, row, exchange, other)
            for prompt, group, row, exchange, other in zip(prompts, groups, heard, exchanges, others, strict=True)
            for completion in group
        ]

    def relived(
        self, backbone: Backbone, exchanges: Sequence[Exchange], back: int, seeds: Sequence[int]
    ) -> list[Exchange]:
        """Let the policy say the turn of the persona that is the `back`-th from the end, where there is one.

        In a conversation its history is its own: what it repeats, it has said itself.
        """
        new, asked = list(exchanges), list[tuple[int, int]]()
        for number, exchange in enumerate(exchanges):
            said = [place for place, (role, _) in enumerate(exchange.history) if role == "assistant" and place]
            asked += [(number, said[-back])] if len(said) >= back else []
        if not asked:
            return new
        prompts = [self.chat.prompt(before_turn(exchanges[number], place)) for number, place in asked]
        words, budgets = Words(backbone.vocab), [self.budget] * len(prompts)
        drawn = draw_completions(
            backbone, prompts, None, words, budgets, [[seeds[number] + back] for number, _ in asked], SAMPLING
        )
        for (number, place), (completion,) in zip(asked, drawn, strict=True):
            text, history = self.chat.tokenizer.decode(completion.tokens).strip(), exchanges[number].history
            lived = (*history[:place], ("assistant", text), *history[place + 1 :])
            new[number] = replace(exchanges[number], history=lived)
        return new

    def heard(self, backbone: Backbone, indices: Sequence[int]) -> list[Tensor | None]:
        """Return what the decoder sees of each turn's sound, shape `(N, D)`; None where it was typed."""
        asked = [self.asked[index] for index in indices]
        frames = [self.sources[name].frames(exchange, None) for name, exchange in asked]
        known = iter(embedded(backbone, found) if (found := [row for row in frames if row is not None]) else [])
        return [None if row is None else next(known) for row in frames]

    def prompt(self, index: int, exchange: Exchange, heard: Tensor | None, seed: int) -> list[int]:
        """Ask for a reply; a share of the typed turns is written as the ear hears, as in training."""
        if heard is not None:
            return self.chat.prompt(given(exchange, len(heard), heard=True))
        by_ear = np.random.default_rng(seed).random() < self.sources[self.asked[index][0]].settings.heard_share
        return self.chat.prompt(given(exchange, as_heard(exchange.text) if by_ear else exchange.text, by_ear))

    def other(self, index: int, seed: int) -> str:
        """Draw another user's turn."""
        shift = 1 + int(np.random.default_rng(seed).integers(max(1, len(self.asked) - 1)))
        return self.asked[(index + shift) % len(self.asked)][1].text

    def rollout(
        self, prompt: list[int], completion: Completion, heard: Tensor | None, exchange: Exchange, other: str
    ) -> Rollout:
        """Write down one reply: every token of it was chosen, the end of the turn too."""
        chosen, is_whole = list(completion.tokens), completion.finish_reason == "stop"
        if is_whole:
            chosen.append(self.chat.vocab.control("turn_end"))
        before = len(prompt) - 1  # the prompt's last token predicts the first of the answer
        text = self.chat.tokenizer.decode(completion.tokens).strip()
        return Rollout(
            tokens=prompt + chosen,
            targets=[IGNORED] * before + chosen + [IGNORED],
            choices=[NOT_CHOSEN] * before + [0] * len(chosen) + [NOT_CHOSEN],
            audio_embeddings=heard,
            answer=Replied(exchange, other, text, is_whole),
        )

    def logits(self, backbone: Backbone, hidden: Tensor) -> Tensor:
        """Score the whole vocabulary."""
        return backbone.logits(hidden)


def before_turn(exchange: Exchange, place: int) -> list[Turn]:
    """Build what the turn at a place of the history replied to."""
    earlier = replace(exchange, history=exchange.history[: place - 1])
    return given(earlier, exchange.history[place - 1][1], heard=False)
