"""Personas: who answers, written as a card, and the rules by which an answer is in character.

A card holds what the report recombines (section 6.2): personality, verbal habits, emotional boundaries and an
interaction archetype, beside facts of its own. The rules look for what can be seen in the words alone: a fact
contradicted, the role left, the wrong language, too long an answer, an earlier one said again. They are a floor, cheap
and the same for everyone: they miss what needs understanding, and praise nothing.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from num2words import num2words

from tristep.config import Settings, parse

MAX_WORDS = 45
"""An answer that is spoken is short: this many words take about fifteen seconds."""
LEAST_BESIDE = 2
"""Words that an answer has at least beside a verbal habit."""
LEAVES_THE_ROLE = re.compile(
    r"\bas an? (?:ai|artificial|virtual|language model|chatbot)"
    r"|\bi(?:'m| am) (?:just |only )?an? (?:ai|artificial|virtual|digital|language model|chatbot|bot\b|computer)"
    r"|\b(?:large )?language model\b|\bsmollm\b|\bhugging ?face\b|\bopenai\b|\bchatgpt\b"
    r"|\bi (?:do not|don't) have (?:personal |human )?(?:feelings|emotions|experiences|opinions|preferences|a body)\b"
    r"|\bmy (?:programming|training data|creators)\b|\bi was (?:trained|programmed|created) (?:by|to)\b"
    r"|\b(?:my|this|the) (?:persona|character card|system prompt)\b",
    re.IGNORECASE,
)
"""What nobody says who is who they are."""
SPEAKS_FOR_OTHERS = re.compile(r"(?:^|\n)\s*(?:user|assistant|system|human|ai|user [12])\s*:", re.IGNORECASE)


class PersonaCard(Settings):
    """Who answers."""

    id: str
    facts: tuple[str, ...] = ()
    """What is true of them, in the first person: "I have two dogs."."""
    personality: str = ""
    """Such as `warm and curious`."""
    verbal_habits: tuple[str, ...] = ()
    """Phrases that they like to begin with, such as `Oh my!` or `Well now,`."""
    emotional_boundaries: str = ""
    """What they will not do, such as `never speak ill of anyone`."""
    archetype: str = ""
    """The part that they play in a conversation, such as `a patient listener`."""
    language: str = "en"
    """What they speak."""

    def prompt(self) -> str:
        """Write the card as the system turn that a conversation begins with."""
        role = ", ".join(part for part in (self.archetype, self.personality) if part)
        lines = [f"You are {role or 'a person'} and talk with someone."]
        if self.facts:
            lines.append("You say of yourself: " + " ".join(fact.rstrip(".") + "." for fact in self.facts))
        if self.verbal_habits:
            lines.append("You like to say " + " and ".join(f'"{habit}"' for habit in self.verbal_habits) + ".")
        if self.emotional_boundaries:
            lines.append(f"You {self.emotional_boundaries}.")
        return " ".join([*lines, "Stay who you are and answer in one or two short sentences."])


def read_prompt(persona: str, language: str = "en") -> PersonaCard:
    """Read the facts and verbal habits of a card from what its `prompt` wrote: what the rules need to know."""
    said = re.search(r"You say of yourself: (.*?)(?= You |$| Stay who you are)", persona)
    facts = re.findall(r"[^.]+\.", said[1]) if said else []
    liked = re.search(r'You like to say ("[^"]*"(?: and "[^"]*")*)', persona)
    habits = re.findall(r'"([^"]*)"', liked[1]) if liked else []
    return PersonaCard(
        id="", facts=tuple(fact.strip() for fact in facts), verbal_habits=tuple(habits), language=language
    )


def read_cards(path: str | Path) -> list[PersonaCard]:
    """Read cards, one JSON object a line.

    Raises:
        ValueError: If the file can't be read, or a line is no card.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        return [parse(json.loads(line), PersonaCard, f"{path}, line {n}") for n, line in enumerate(lines, start=1)]
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{str(path)!r} can't be read as JSON lines ({error}): give a file of persona cards"
        ) from error


def write_cards(cards: Iterable[PersonaCard], path: str | Path) -> None:
    """Write cards; `read_cards` reads them back."""
    lines = (card.model_dump_json(exclude_defaults=True) + "\n" for card in cards)
    Path(path).write_text("".join(lines), encoding="utf-8")


def violations(card: PersonaCard, answer: str, earlier: Sequence[str] = ()) -> list[str]:
    """Name what is out of character in an answer; nothing where all is well.

    Args:
        card: Who answers.
        answer: What they say.
        earlier: Their answers before it.
    """
    found = [
        ("empty", not answer.strip()),
        ("leaves the role", bool(LEAVES_THE_ROLE.search(straight(answer)))),
        ("speaks for others", bool(SPEAKS_FOR_OTHERS.search(answer))),
        ("leaves a blank", has_blank(answer)),
        ("too long", len(answer.split()) > MAX_WORDS),
        ("other language", not is_in(card.language, answer)),
        ("says it again", bool(answer.strip()) and plain(answer) in map(plain, earlier) and len(answer.split()) > 3),
    ]
    contradicted = [f"contradicts {fact!r}" for fact in card.facts if contradicts(answer, fact)]
    return [name for name, wrong in found if wrong] + contradicted


def has_blank(text: str) -> bool:
    """Say whether a text has a place that somebody should have filled in, such as `[name]`."""
    return bool(re.search(r"\[[^\]]*\]|\{[^}]*\}|<[^>]*>", text))


def habits_shown(card: PersonaCard, answers: Iterable[str]) -> float | None:
    """Return the share of answers in which one of the card's verbal habits is heard; None where it has none."""
    heard = [any(plain(habit) in plain(answer) for habit in card.verbal_habits) for answer in answers]
    return sum(heard) / len(heard) if heard and card.verbal_habits else None


def shows_habit(card: PersonaCard, answer: str) -> bool:
    """Say whether an answer shows one of the card's verbal habits, once, and says more than that."""
    said, habits = plain(answer), [plain(habit) for habit in card.verbal_habits]
    heard = [habit for habit in habits for _ in re.findall(rf"\b{re.escape(habit)}\b", said)]
    return len(heard) == 1 and len(said.split()) >= len(heard[0].split()) + LEAST_BESIDE


def plain(text: str) -> str:
    """Write a text in lower case without punctuation, so that two may be compared."""
    return " ".join(re.findall(r"[^\W_]+(?:'[^\W_]+)*", straight(text).lower()))


def straight(text: str) -> str:
    """Write apostrophes in ASCII."""
    return text.replace("\u2019", "'")


SCRIPTS = {"zh": "CJK", "ja": "CJK HIRAGANA KATAKANA", "ko": "HANGUL", "ru": "CYRILLIC", "uk": "CYRILLIC"}
"""The scripts of languages that are not written in Latin letters."""


def is_in(language: str, text: str) -> bool:
    """Say whether most letters of a text are of the language's script; a text without letters may be in any."""
    scripts = SCRIPTS.get(language, "LATIN").split()
    letters = [unicodedata.name(letter, "").split()[0] for letter in text if letter.isalpha()]
    return sum(script in scripts for script in letters) >= 0.8 * len(letters)


@dataclass(frozen=True)
class Claim:
    """What someone says of themselves, as far as rules can read it."""

    kind: str
    """`have`, `like`, `be` or another verb."""
    is_so: bool
    """False where it is denied."""
    words: frozenset[str]
    """What it is about, without small words and numbers."""
    number: str = ""
    """How many, or how old; empty where it is not said."""


def stem(word: str) -> str:
    """Take the endings of plurals and gerunds off: enough to see that `dogs` are about a `dog`."""
    for ending in ("ing", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending)
    return word.removesuffix("e") if len(word) > 3 else word


KINDS = {
    "have": "have has had own got keep",
    "like": "like love enjoy adore hate dislike detest fond passion",
    "be": "am was be been",
}
VERBS = {verb: kind for kind, verbs in KINDS.items() for verb in verbs.split()}
OTHER_VERBS = "eat drink play work live smoke drive travel read cook bake sing dance swim run speak watch collect study"
VERBS |= {verb: verb for verb in OTHER_VERBS.split()}
NO = "not never no none neither cannot hate dislike detest without nor"
DENIALS = frozenset(NO.split())
SMALL_WORDS = (
    "i a an the my me to do does did of in at on for with very really much so too also some any lot lots many all and "
    "or but that this it is are would will can could just right now old years year them because as be been am was "
    "have has had like love enjoy own got doing being actually about well oh yes"
)
SMALL = frozenset(SMALL_WORDS.split())
EXCLUSIVE = tuple(
    frozenset(map(stem, words.split()))
    for words in ("married single divorced widowed", "man woman", "boy girl", "male female", "vegan carnivore",
                  "short tall", "retired student")
)  # fmt: skip
"""Of each row nobody is two."""


def contradicts(answer: str, fact: str) -> bool:
    """Say whether an answer denies a fact: the reverse of it, another number, another of what excludes one another."""
    known = claims(fact)
    return any(clash(said, fact_said) for said in claims(answer) for fact_said in known)


def clash(said: Claim, known: Claim) -> bool:
    """Say whether two claims cannot both be true of one person."""
    if said.kind != known.kind:
        return False
    if said.is_so and known.is_so and known.kind == "be":
        pairs = [(said.words & row, known.words & row) for row in EXCLUSIVE]
        if any(ours and theirs and ours != theirs for ours, theirs in pairs):
            return True
    if said.kind.startswith("favorite "):
        return said.is_so and known.is_so and bool(said.words) and not said.words & known.words
    if said.is_so and known.is_so:
        return bool(said.number and known.number) and said.number != known.number and said.words == known.words
    # A denial is of all or of what it is about: "I don't like loud music" denies no love of music.
    about = said.words & known.words
    return said.is_so != known.is_so and (said.words == known.words or (bool(about) and denied(said, known) <= about))


def denied(said: Claim, known: Claim) -> frozenset[str]:
    """Return what the one of two claims that is a denial is about."""
    return known.words if said.is_so else said.words


def claims(text: str) -> list[Claim]:
    """Read what someone says of themselves, clause by clause."""
    text = straight(text).lower().replace("favourite", "favorite").replace("can't", "cannot")
    text = re.sub(r"\b(\w+)n't\b", r"\1 not", re.sub(r"\bi'm\b", "i am", re.sub(r"\bi've\b", "i have", text)))
    statements = re.findall(r"[^.!?;\n]+(?![^.!?;\n]*\?)[.!;\n]?", text)
    clauses = [clause for each in statements for clause in re.split(r",|\bbut\b|\band (?=i\b|my\b)|\bbecause\b", each)]
    found = (claim(re.findall(r"[a-z0-9']+", clause)) for clause in clauses)
    return [each for each in found if each is not None]


def claim(words: Sequence[str]) -> Claim | None:
    """Read one clause; None if it claims nothing of the one who speaks."""
    denied = any(word in DENIALS for word in words)
    if words[:2] == ["my", "favorite"] and ("is" in words or "are" in words):
        place = words.index("is") if "is" in words else words.index("are")
        return Claim("favorite " + " ".join(map(stem, words[2:place])), not denied, topic(words[place + 1 :]))
    if "i" not in words[:3]:
        return None
    rest = words[words.index("i") + 1 :]
    verb = next((word for word in rest if word in VERBS), None)
    if verb is None or rest.index(verb) > 3:
        return None
    number = next((spelt for word in rest if (spelt := number_of(word))), "")
    return Claim(VERBS[verb], not denied, topic(word for word in rest if word != verb), number)


def topic(words: Iterable[str]) -> frozenset[str]:
    """Keep what a clause is about."""
    return frozenset(stem(word) for word in words if word not in SMALL | DENIALS and not number_of(word))


@cache
def number_names() -> dict[str, str]:
    """Return what numbers are called up to a hundred."""
    return {num2words(number): str(number) for number in range(1, 101)} | {"a couple": "2"}


def number_of(word: str) -> str:
    """Return a number in digits; empty if the word is none."""
    return word if word.isdigit() else number_names().get(word, "")
