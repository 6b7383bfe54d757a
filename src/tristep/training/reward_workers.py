"""Reward workers: what each rollout has earned, by name, before anything is weighed.

Rewards of codes need no vocoder: how steady they are, how long, how fast, which phones they say, whether the manner is
the one that was asked for.
Rewards of waveforms render a rollout once and let listeners hear it: a recogniser, a comparison of voices, a predictor
of opinion scores. Replies are read: do they keep to the persona, do they answer what was said. A judge compares an
answer with a reference, replies by each aspect of its rubric too. Listeners and judges are plain callables, so that
anything can be one: this project's own ASR mode, its judge, another recogniser, a chat endpoint. On every scale 1 is
as good as it gets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tristep.audio import SPEAK_HZ
from tristep.backbone.checkpoints import find_weights, load_encoder
from tristep.codec.codec import Codec
from tristep.codec.saying import load_cells
from tristep.codec.speaker import SpeakerEncoder, similarity
from tristep.codec.voice import Voice, is_sound, list_voices, read_voice, to_listening_rate
from tristep.engine.engine import Engine
from tristep.engine.fitting import Reader
from tristep.engine.judging import BackbonePanel, DialoguePrompt, Judgement, Panel
from tristep.engine.judging import Judge as Judging
from tristep.engine.talking import sounding
from tristep.engine.witness import SpeechPrompt, Witness
from tristep.modes.judge.data import RUBRICS
from tristep.modes.realtime.data import turns
from tristep.modes.realtime.persona import read_prompt, shows_habit, violations
from tristep.modes.tts.data import FEATURES, Utterance
from tristep.objectives.rewards import intelligibility, likeness, obedience, opinion, shaped, variety, within_budget
from tristep.phones import read_phones, without_repeats
from tristep.pronouncing import english
from tristep.text import normalise, word_errors
from tristep.training.policies import ListenerSettings
from tristep.training.rollouts import Asked, Replied, Rollout, Spoken, Transcribed

Rewards = dict[str, Tensor]
"""Rewards by name, one for each rollout, shape `(B,)`."""
Judge = Callable[[Any, Any, Any], float]
"""`score(prompt, candidate, reference)`: how much better the candidate is than the reference, 0 for as good. For speech
the prompt is what was asked (`Asked`), the others are waveforms at 24 kHz; for a reply it is a `DialoguePrompt`, the
others are texts; for transcripts all three are texts."""
Compare = Callable[[Sequence[DialoguePrompt], Sequence[str], Sequence[str]], Sequence[Judgement]]
"""`judge(prompts, candidates, references)`: all there is to say of replies (`tristep.engine.judging.Judge.judge`)."""

Likely = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""How likely replies are after turns of the user: turns, replies -> mean log-probabilities of their tokens."""

LONGEST_RUN_S = 0.4
"""A code that is held longer is a decoder that is stuck."""
SHORTEST, LONGEST = 0.6, 1.6
"""Honest durations, as a share of that of the same text as somebody said it."""
USUAL = 3
"""The degree of a manner that is the voice's own."""
ENOUGH_PACE = 0.3
"""Octaves of pace that nobody can miss: a quarter faster, or a fifth slower."""
STRANGERS = 0.1
"""CAM++'s similarity of two voices that have nothing in common."""


@dataclass(frozen=True)
class Listeners:
    """Who hears and judges; what is not there measures nothing."""

    sound: Callable[[Utterance], Tensor] | None = None
    """Renders codes: a waveform at 24 kHz, shape `(S,)`."""
    recognise: Callable[[Tensor], str] | None = None
    """Writes down what such a waveform says."""
    embed: Callable[[Tensor], Tensor] | None = None
    """CAM++ of such a waveform, shape `(192,)`."""
    read_phones: Callable[[Sequence[int]], str] | None = None
    """Reads the phones that codes say."""
    voice: Tensor | None = None
    """CAM++ of the voice that `sound` speaks in."""
    rate: Callable[[Tensor], float] | None = None
    """Predicts its mean opinion score, 1 to 5."""
    judge: Judge | None = None
    compare: Compare | None = None
    """A judge of replies that says what it thinks of each aspect; it comes before `judge`."""
    likely: Likely | None = None


VERIFIERS = ("intelligibility", "legibility", "character")
"""The rewards that measure what a judge is checked against, in the order of trust."""


@dataclass(frozen=True)
class Measured:
    """What rollouts earned, and what was seen on the way."""

    rewards: Rewards
    silences: Tensor | None = None
    """Share of each rollout's sound in which nobody speaks, shape `(B,)`; None if nothing was rendered."""
    similarities: Tensor | None = None
    """Cosine similarity of each to the voice, shape `(B,)`."""

    def mean(self, name: str) -> float | None:
        """Return the mean of a reward, None if it was not measured."""
        return float(self.rewards[name].mean()) if name in self.rewards else None

    @property
    def silence_share(self) -> float | None:
        """Mean share of silence."""
        return None if self.silences is None else float(self.silences.mean())

    @property
    def similarity(self) -> float | None:
        """Mean similarity to the voice."""
        return None if self.similarities is None else float(self.similarities.mean())

    @property
    def verifier(self) -> float | None:
        """Mean reward by what can be measured."""
        return next((self.mean(name) for name in VERIFIERS if name in self.rewards), None)


def joined(parts: Sequence[Measured]) -> Measured:
    """Put together what was measured of the pieces of a round, in their order."""

    def cat(found: Sequence[Tensor | None]) -> Tensor | None:
        known = [part for part in found if part is not None]
        return torch.cat(known) if known else None

    rewards = {name: torch.cat([part.rewards[name] for part in parts]) for name in parts[0].rewards}
    return Measured(rewards, cat([part.silences for part in parts]), cat([part.similarities for part in parts]))


def measure_transcripts(rollouts: Sequence[Rollout], names: AbstractSet[str], listeners: Listeners) -> Measured:
    """Compare transcripts with what was said.

    `intelligibility` is 1 - WER, the reward whose policy gradient within a group of samples is that of the minimum word
    error rate (Prabhavalkar et al. 2018, equation 5). `spelling` is 1 - CER, which still tells two wrong words apart;
    `exactness` is 1 where every word is right.
    """
    answers = [rollout.answer for rollout in rollouts if isinstance(rollout.answer, Transcribed)]
    wers = torch.tensor([wer(answer.reference, answer.text, answer.language) for answer in answers])
    cers = torch.tensor([cer(answer.reference, answer.text, answer.language) for answer in answers])
    rewards = {
        "intelligibility": intelligibility(wers), "spelling": intelligibility(cers), "exactness": (wers == 0).float(),
    }  # fmt: skip
    if "judge" in names:
        rewards["judge"] = judged([("", answer.text, answer.reference) for answer in answers], listeners)
    return Measured(only(rewards, names))


def measure_speech(
    rollouts: Sequence[Rollout], names: AbstractSet[str], listeners: Listeners, code_rate_hz: float
) -> Measured:
    """Measure codes, and their sound where a reward that is asked for needs it."""
    answers = [rollout.answer for rollout in rollouts if isinstance(rollout.answer, Spoken)]
    rewards = code_rewards(answers, code_rate_hz, listeners.read_phones)
    if not names - rewards.keys():
        return Measured(only(rewards, names))
    if listeners.sound is None:
        missing = ", ".join(sorted(names - rewards.keys()))
        raise ValueError(
            f"the rewards {missing} are of sound, and nothing renders it: name a codec and a voice in [listeners], or "
            f"weigh only {', '.join(sorted(rewards))}"
        )
    waveforms = [listeners.sound(answer.utterance) for answer in answers]
    return measure_sound(answers, waveforms, rewards, names, listeners)


def code_rewards(
    answers: Sequence[Spoken], code_rate_hz: float, read: Callable[[Sequence[int]], str] | None = None
) -> Rewards:
    """Reward codes without rendering them: `variety`, `duration`, `tempo`, and `phones` by a reader.

    `obedience` and `heeded` reward the manner: how far it goes the way that was asked for, and whether all of it does.
    """
    lengths = torch.tensor([len(answer.utterance.codes) for answer in answers])
    codes = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(answer.utterance.codes or (0,), dtype=torch.long) for answer in answers], batch_first=True
    )
    kept = torch.arange(codes.shape[1]) < lengths[:, None]
    wanted = torch.tensor([len(answer.asked.reference.codes) for answer in answers]).clamp(min=1)
    return {
        "variety": variety(codes, kept, max(1, round(LONGEST_RUN_S * code_rate_hz))),
        "duration": within_budget(lengths.float(), SHORTEST * wanted, LONGEST * wanted),
        "tempo": torch.tensor([tempo_obeyed(answer) for answer in answers]),
        "obedience": torch.tensor([manner_obeyed(answer) for answer in answers]),
        "heeded": torch.tensor([float(manner_heeded(answer)) for answer in answers]),
    } | ({"phones": torch.tensor([phones_said(answer, read) for answer in answers])} if read else {})


def manner_obeyed(answer: Spoken) -> float:
    """Say how far the manner that was settled is the one that the instructions ask for; 1 where they ask for none."""
    manner = answer.asked.direction.manner
    features = [feature for feature in FEATURES if feature in manner]
    if not features:
        return 1.0
    asked = torch.tensor([manner[feature] - USUAL for feature in features])
    settled = torch.tensor([getattr(answer.utterance.manner, feature) - USUAL for feature in features])
    enough = asked.abs().clamp(min=1)
    return float(obedience(settled / enough, asked.sign(), 1.0).mean())


def manner_heeded(answer: Spoken) -> bool:
    """Say whether all that was asked for goes the way that it was asked for, and nothing else moves."""
    asked, settled = answer.asked.direction.manner, answer.utterance.manner
    return all(
        np.sign(asked.get(feature, USUAL) - USUAL) == np.sign(getattr(settled, feature) - USUAL) for feature in FEATURES
    )


def tempo_obeyed(answer: Spoken) -> float:
    """Say how far the pace is the one that was asked for, against the speakers' usual; 1 where that is not known."""
    if not answer.asked.usual_codes:
        return 1.0
    octaves = math.log2(answer.asked.usual_codes / max(1, len(answer.utterance.codes)))
    asked = torch.tensor(answer.asked.direction.manner.get("pace", USUAL) - USUAL)
    return float(obedience(torch.tensor(octaves), asked.sign(), ENOUGH_PACE))


def phones_said(answer: Spoken, read: Callable[[Sequence[int]], str]) -> float:
    """Return 1 - the phone error rate of what the codes say, against how a dictionary says the words."""
    parts = (part for word in answer.utterance.words for part in word.text.split("-"))
    wanted = without_repeats("".join(map(english().pronounce, parts)))
    return max(0.0, 1 - edit_rate(" ".join(wanted), " ".join(read(answer.utterance.codes))))


def measure_sound(
    answers: Sequence[Spoken], waveforms: Sequence[Tensor], rewards: Rewards, names: AbstractSet[str], by: Listeners
) -> Measured:
    """Add the rewards of sound to those of codes: `intelligibility`, `similarity`, `opinion` and `judge`."""
    heard = [by.recognise(waveform) for waveform in waveforms] if by.recognise else []
    texts = [answer.asked.reference.text for answer in answers]
    rewards = dict(rewards)
    found: Tensor | None = None
    if heard:
        wers = torch.tensor([wer(text, said, "en") for text, said in zip(texts, heard, strict=True)])
        rewards["intelligibility"] = intelligibility(wers)
    if by.embed is not None and by.voice is not None:
        found = torch.tensor([similarity(by.embed(waveform), by.voice) for waveform in waveforms])
        rewards["similarity"] = likeness(found, STRANGERS)
    if by.rate is not None and "opinion" in names:
        rewards["opinion"] = opinion(torch.tensor([by.rate(waveform) for waveform in waveforms]))
    if "judge" in names:
        assert by.sound is not None
        references = [by.sound(answer.asked.reference) for answer in answers]
        asked = [answer.asked for answer in answers]
        rewards["judge"] = judged(list(zip(asked, waveforms, references, strict=True)), by)
    silent = torch.stack([1 - is_sound(waveform).float().mean() for waveform in waveforms])
    return Measured(only(rewards, names), silent, found)


def measure_replies(rollouts: Sequence[Rollout], names: AbstractSet[str], listeners: Listeners) -> Measured:
    """Read replies.

    `character` is 1 where the rules of `modes/realtime/persona.py` find nothing; `ending` is 1 where a reply came to
    its end by itself; `habit` is 1 where one of the card's verbal habits is heard, once, and more is said, or where it
    has none; `wording` is 1 - CER against the reference, for replies of which only one is right. `relevance` asks a
    text model how much likelier a reply is after its own turn than after another's, in nats a token, shaped.
    """
    answers = [rollout.answer for rollout in rollouts if isinstance(rollout.answer, Replied)]
    rewards = {
        "character": torch.tensor([float(not out_of_character(answer)) for answer in answers]),
        "ending": torch.tensor([float(answer.is_whole) for answer in answers]),
        "habit": torch.tensor([float(in_the_habit(answer)) for answer in answers]),
        "wording": intelligibility(torch.tensor([misspelt(answer) for answer in answers])),
    }
    if "relevance" in names and listeners.likely is not None:
        rewards["relevance"] = shaped(torch.tensor(gains(answers, listeners.likely)))
    if not RUBRICS["dialogue"].keys().isdisjoint(names) or "judge" in names:
        rewards |= compared(answers, listeners)
    return Measured(only(rewards, names))


def out_of_character(answer: Replied) -> list[str]:
    """Name what is out of character in a reply."""
    exchange = answer.exchange
    earlier = [text for role, text in exchange.history if role == "assistant"]
    return violations(read_prompt(exchange.persona, exchange.language), answer.text, earlier)


def in_the_habit(answer: Replied) -> bool:
    """Say whether a reply shows a verbal habit of the card, or the card has none."""
    card = read_prompt(answer.exchange.persona, answer.exchange.language)
    return not card.verbal_habits or shows_habit(card, answer.text)


def misspelt(answer: Replied) -> float:
    """Return the character error rate of a reply against the reference, as both are written."""
    return edit_rate(*(" ".join(text.replace(" ", "\u2423")) for text in (answer.exchange.answer, answer.text)))


def gains(answers: Sequence[Replied], likely: Likely) -> list[float]:
    """Return how much likelier replies are after their own turns than after others'; of nothing said, what is worst."""
    said = [answer for answer in answers if answer.text]
    if not said:
        return [-math.inf] * len(answers)
    turns = [answer.exchange.text for answer in said] + [answer.other for answer in said]
    found = likely(turns, [answer.text for answer in said] * 2)
    known = iter(own - other for own, other in zip(found[: len(said)], found[len(said) :], strict=True))
    return [next(known) if answer.text else -math.inf for answer in answers]


def compared(answers: Sequence[Replied], listeners: Listeners) -> Rewards:
    """Let a judge compare replies with their references; one that is asked for reasons marks every aspect too."""
    prompts = [dialogue_of(answer) for answer in answers]
    candidates, references = ([answer.text for answer in answers], [answer.exchange.answer for answer in answers])
    if listeners.compare is None:
        return {"judge": judged(list(zip(prompts, candidates, references, strict=True)), listeners)}
    found = listeners.compare(prompts, candidates, references)
    marks = {aspect: torch.tensor([each.rubric.get(aspect, 0.0) for each in found]) for aspect in RUBRICS["dialogue"]}
    return {"judge": shaped(torch.tensor([each.score for each in found])), **marks}


def dialogue_of(answer: Replied) -> DialoguePrompt:
    """Say what a reply replies to, as a judge reads it: the persona by its facts, where it is a card's."""
    exchange = answer.exchange
    facts = read_prompt(exchange.persona, exchange.language).facts or (exchange.persona,)
    return DialoguePrompt(facts, (*exchange.history, ("user", exchange.text)))


def judged(cases: Sequence[tuple[Any, Any, Any]], listeners: Listeners) -> Tensor:
    """Let the judge compare answers with references; each case is a prompt, a candidate and a reference."""
    if listeners.judge is None:
        raise ValueError("the reward 'judge' has a weight, and there is no judge: hand one over, or leave it out")
    return shaped(torch.tensor([listeners.judge(*case) for case in cases]))


def only(rewards: Mapping[str, Tensor], names: AbstractSet[str]) -> Rewards:
    """Return the rewards that are asked for.

    Raises:
        ValueError: If one of them was not measured.
    """
    if missing := sorted(names - rewards.keys()):
        raise ValueError(
            f"nothing measures the reward {missing[0]!r}: there are {', '.join(sorted(rewards))} here; weigh one of "
            "them, or name who measures it in [listeners]"
        )
    return {name: rewards[name] for name in sorted(names)}


def wer(reference: str, text: str, language: str) -> float:
    """Return the word error rate of one text, both normalised; of no words, the number of errors."""
    return edit_rate(normalise(reference, language), normalise(text, language))


def cer(reference: str, text: str, language: str) -> float:
    """Return the character error rate of one text, both normalised, spaces not counted."""
    spelt = [" ".join(normalise(written, language).replace(" ", "")) for written in (reference, text)]
    return edit_rate(*spelt)


def edit_rate(reference: str, text: str) -> float:
    """Count the edits between texts whose units are separated by spaces, as a share of the reference's."""
    errors = word_errors(reference, text)
    return errors.num_errors / max(1, errors.num_units)


def load_listeners(
    named: ListenerSettings,
    recognise: Callable[[Tensor], str] | None = None,
    rate: Callable[[Tensor], float] | None = None,
    panel: Panel | None = None,
) -> Listeners:
    """Load who hears and judges; where nothing sounds, who reads and judges.

    Args:
        named: Who, by their weights.
        recognise: A recogniser that is not ours; ours is loaded if none is given and one is named.
        rate: A predictor of opinion scores.
        panel: A judge of replies that is not ours.

    Raises:
        ValueError: If weights that are named are not there.
    """
    reader = load_phone_reader(named.phone_cells) if named.phone_cells else None
    if named.sound is None:
        return replace(load_readers(named, panel), read_phones=reader)
    folder = find_weights(named.sound)
    voices, campplus = folder / "voices", folder / "codec" / "speaker.safetensors"
    voice = read_voice(voices, named.voice or next(iter(list_voices(voices)), "none"))
    sound = sound_by(Codec.load(folder / "codec", load_encoder(folder)), voice)
    embed = embedder(SpeakerEncoder.load(campplus)) if campplus.exists() else None
    if recognise is None and named.recogniser:
        recognise = own_recogniser(named.recogniser)
    judge = None
    if named.judge:
        if recognise is None:
            raise ValueError("[listeners] names a judge and no recogniser, whose witness it reads: name one")
        judge = speech_judge(Judging.load(named.judge, Witness(recognise, embed)), sound, voice)
    return Listeners(sound, recognise, embed, reader, voice.embedding, rate, judge)


def load_phone_reader(path: str) -> Callable[[Sequence[int]], str]:
    """Read the phones of codes by what a tokenizer's cells say.

    Raises:
        ValueError: If the file is not there.
    """
    phones = load_cells(path).argmax(dim=-1)  # (cells, stride)
    return lambda codes: read_phones(phones[torch.tensor(codes, dtype=torch.long) % len(phones)].flatten())


def load_readers(named: ListenerSettings, panel: Panel | None = None) -> Listeners:
    """Load who reads replies: a judge that compares them, and a text model that knows what answers what.

    The text model also tells the judge how well replies fit, where both are named.
    """
    if panel is None and named.judge:
        panel = BackbonePanel.load(named.judge)
    reader = Reader.load(named.text_model) if named.text_model else None
    compare = Judging(panel, reader=reader).judge if panel else None
    return Listeners(compare=compare, likely=after_turns(reader) if reader else None)


def after_turns(reader: Reader) -> Likely:
    """Say how likely replies are after turns, without any persona."""
    return lambda said, replies: reader.likely([turns("", [], each) for each in said], replies)


def embedder(encoder: SpeakerEncoder) -> Callable[[Tensor], Tensor]:
    """Turn a waveform at 24 kHz into the embedding of its voice."""
    return lambda waveform: encoder.embed(to_listening_rate(waveform))


def own_recogniser(weights: str) -> Callable[[Tensor], str]:
    """Listen by our own ASR mode."""
    engine = Engine.load(weights)
    return lambda waveform: engine.transcribe(to_listening_rate(waveform)).text


def speech_judge(judge: Judging, sound: Callable[[Utterance], Tensor], voice: Voice) -> Judge:
    """Let a judge compare readings, and know how the voice usually speaks from its own clip."""
    assert judge.witness is not None
    usual = judge.witness.hear(sound(Utterance((), tuple(voice.reference_codes.tolist()))))

    def score(asked: Asked, candidate: Tensor, reference: Tensor) -> float:
        return judge.score(SpeechPrompt(asked.text, usual, asked.direction.instructions), candidate, reference)

    return score


def sound_by(codec: Codec, voice: Voice, seed: int = 0) -> Callable[[Utterance], Tensor]:
    """Render utterances in a voice, as the TTS mode does."""

    def sound(utterance: Utterance) -> Tensor:
        codes = torch.tensor(utterance.codes, dtype=torch.long)
        waveform = codec.decode(codes, voice, seed=seed, **sounding(utterance.manner))
        return waveform if len(waveform) else torch.zeros(SPEAK_HZ // 10)

    return sound
