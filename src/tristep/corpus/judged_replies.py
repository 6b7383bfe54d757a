"""Judged replies: pairs of answers in a dialogue of which it is known which one is in character, and why.

Made from dialogues of people with personas: somebody else's facts, denied facts, an assistant's disclaimers, answers
from another dialogue, false memories, the wrong feeling. What is made up: templates put the same words into good and
bad replies, so that a judge has to read the persona and can't go by the wording; real replies go wrong in more ways.
"""

from __future__ import annotations

import csv
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tristep.engine.judging import DialoguePrompt
from tristep.modes.judge.data import ALIKE, NUM_LEVELS, RUBRICS, Answer, Case, Clause, Known, Verdict


@dataclass(frozen=True)
class Dialogue:
    """A conversation of somebody with a persona."""

    persona: tuple[str, ...]
    """Sentences in the first person."""
    turns: tuple[tuple[str, str], ...]
    """Role, `user` or `assistant`, and text; the persona is the assistant's."""

    @property
    def words(self) -> tuple[str, ...]:
        """What was said, whoever said it."""
        return tuple(text for _, text in self.turns)


DISCLAIMERS = (
    "As an AI language model, I don't have personal experiences.", "I'm just a computer program, so I can't say.",
    "I am an artificial intelligence and have no hobbies.", "Sorry, as a virtual assistant I have no feelings.",
    "I'm a language model trained on text, so I have no life.", "As a chatbot, I don't have a family or a job.",
    "I don't have a body, I am only software.", "I was created by engineers to answer questions.",
    "I'm an automated system and can't have opinions.", "How can I assist you today? I am your AI assistant.",
    "My training data does not say anything about that.", "Being a machine, I never eat or sleep.",
)  # fmt: skip
FEELINGS: tuple[tuple[str, str, str], ...] = (
    ("(sighing) I lost my job today.", "Oh no, I am so sorry to hear that.", "(laughing) Haha, that is so funny!"),
    ("(laughing) I won the race!", "Wow, congratulations! That's wonderful!", "I am so sorry, how terrible for you."),
    ("(crying) My dog died last night.", "That must hurt so much, I'm here for you.", "Great news, let's celebrate!"),
)
"""For held-out pairs: what the user says, a reply that fits how it is said, and one that does not."""
SORROWS = (
    "(sadly) Nobody came to my party.", "(whispering) I am scared to go home.", "(angry) They broke my car again!",
    "(sighing) The doctor had bad news.", "(crying) She left me after ten years.", "(sadly) I failed the driving test.",
    "(sighing) I can't sleep, I worry so much.", "(crying) My grandmother passed away.",
    "(angry) Somebody stole my bike!", "(sadly) My best friend moved away.", "(sighing) We lost the final.",
    "(crying) Our house burnt down.", "(sadly) I miss my family so much.", "(angry) My boss shouted at me all day.",
    "(whispering) I feel so alone.", "(sighing) I broke my leg.", "(crying) I lost my wedding ring.",
    "(sadly) They did not want me on the team.", "(angry) The train was late, I missed the interview.",
    "(sighing) My cat has run away.", "(sadly) I had to sell my guitar.", "(crying) He forgot my birthday.",
    "(sighing) I have no money left.", "(whispering) I am afraid of the operation.",
    "(sadly) The library in our village has closed.", "(angry) The landlord put the rent up again!",
    "(crying) I dropped the cake for her birthday.", "(sighing) My knee hurts every time I walk.",
    "(whispering) There were footsteps outside my window.", "(sadly) The tree that I planted has withered.",
    "(sighing) Nothing I cook ever tastes right.", "(crying) The flood took everything we had.",
    "(angry) He read my diary without asking!", "(sadly) My brother does not speak to me any more.",
    "(sighing) It has rained on my whole holiday.", "(whispering) I have made a terrible mistake.",
    "(crying) They sent my painting back unopened.", "(angry) Somebody scratched my new bicycle!",
    "(sadly) I had nobody to talk to all week.", "(sighing) I studied for months, and it was not enough.",
    "(crying) My little boy is in hospital.", "(sadly) My favorite teacher is leaving.",
    "(angry) The neighbours were drilling all night!", "(sighing) I waited for two hours and he never came.",
    "(whispering) I am ashamed of what I said to her.", "(crying) The letter says I can't stay in this country.",
    "(sadly) I can't hear the birds as I used to.", "(sighing) Our shop had no customer today.",
)  # fmt: skip
JOYS = (
    "(excited) We are having a baby!", "(happily) I passed my exam!", "(excited) I got the job!",
    "(laughing) My cat learnt to open doors!", "(excited) We are getting married!", "(happily) The sun is out at last!",
    "(laughing) My son told me the best joke.", "(excited) They are going to print my book!",
    "(happily) I can walk again!", "(excited) I found my lost ring!", "(happily) My sister is coming to visit.",
    "(laughing) We danced all night.", "(excited) I have a ticket for the concert!", "(happily) The test was negative.",
    "(excited) We bought a house!", "(laughing) The puppy fell asleep in my shoe.", "(happily) I ran ten miles today.",
    "(excited) We won the cup!", "(happily) My garden is in flower.", "(excited) I am off to Italy tomorrow!",
    "(laughing) I beat my brother at chess!", "(happily) My boss gave me a raise.", "(excited) She said yes!",
    "(happily) My fever has gone.",
    "(excited) My poem is in the newspaper!", "(happily) The roses smell so sweet this morning.",
    "(laughing) The parrot called my uncle by name.", "(excited) My first lesson on the trumpet is tonight!",
    "(happily) Grandpa is home from hospital.", "(laughing) We slid down the hill on a tray.",
    "(excited) The band wants me as their drummer!", "(happily) The bread came out just right.",
    "(excited) I saw a whale from the boat!", "(laughing) My daughter put the shoes on the cat.",
    "(happily) I had breakfast by the lake.", "(excited) We leave for the mountains on Friday!",
    "(happily) The old clock is ticking again.", "(laughing) He came dressed as a banana.",
    "(excited) They picked my design!", "(happily) I slept for ten hours.", "(excited) My cousin has had twins!",
    "(laughing) The speech was a riot from start to end.", "(happily) My neighbour gave me a basket of plums.",
    "(excited) I can swim without help now!", "(happily) All my friends were at the table last night.",
    "(excited) The telescope shows the rings of Saturn!", "(laughing) We sang so loudly that the dog joined in.",
    "(happily) The new bakery is next to my door.",
)  # fmt: skip
COMFORTS = (
    "That must have felt lonely. I'm sorry.", "You are safe talking to me. What happened?", "I'm sorry, that is hard.",
    "I'd be upset too. What did you do?", "I'm so sorry, that must be painful.", "That's a pity. I feel for you.",
    "That sounds exhausting. Do you want to talk?", "Oh dear, that is sad news.", "How awful. I wish I could help.",
    "My heart goes out to you.", "I can hear how much it hurts.", "That is so unfair. Tell me more.",
    "Poor you, stay strong.", "I'm with you, you are not alone.", "What a terrible thing. Take your time.",
    "Oh, I feel awful for you.",
    "I understand, that would make anyone sad.", "Give yourself some rest, you have been through a lot.",
    "That is rough. Can I do anything?", "It's all right to cry about it.",
    "I'd be worried as well. Let's think what to do.", "No wonder that you are low today.",
    "What a shame, after all your trouble.", "Hold on, better days will come.",
    "That was unkind, you did not deserve it.", "I know, such things take long to heal.",
    "Don't blame yourself for it.", "Such a loss. I'm thinking of you.",
)  # fmt: skip
DELIGHTS = (
    "That's amazing, I'm so happy for you!", "Well done, you earned it!", "Congratulations, that's fantastic!",
    "Haha, I love it!", "Hooray, that's brilliant!", "Awesome! What a blast!", "Lucky you, enjoy!", "Yay! How lovely!",
    "Superb, that made my day!", "Woohoo, party time!", "Oh, that's delightful!", "Ha, that makes me smile too!",
    "How exciting! Tell me everything!", "Great, cheers to that!", "Splendid, let's dance!",
    "I'm thrilled, what a treat!",
    "That's the best thing I've heard all day!", "Good for you, I'm grinning from ear to ear!",
    "Fabulous, how did you manage that?", "Ooh, I want to hear more of this fun!", "What a lovely thing to happen!",
    "Bravo, take a bow!", "That must have been hilarious!", "Sounds like heaven, keep enjoying it!",
    "Terrific, you must be proud!", "Marvellous, I can picture it and smile!", "What luck, I nearly envy you!",
    "Cheerful news like that makes my week!",
)  # fmt: skip
"""What users are sad or glad about and replies that fit one of them and not the other, for training."""
COMFORT_CUES, DELIGHT_CUES = ("(softly) ", "(gently) ", "(quietly) "), ("(chuckling) ", "(cheerfully) ", "(beaming) ")
"""How such replies are said, where they say it."""
CUED_SHARE = 0.4
OPENINGS = ("", "Well, ", "You know, ", "To be honest, ", "Let me see. ", "As for me, ", "Oh, ", "I'd say ")
QUESTIONS = ("Tell me about yourself.", "What should I know about you?", "Who are you?", "Tell me something about you.")
MEMORIES = ("What did I tell you about myself?", "Do you remember what I said?", "What do you know about me?")
SECOND_PERSON = {"i": "you", "my": "your", "me": "you", "i'm": "you're", "am": "are", "mine": "yours", "i've": "you've"}
DENIALS = (
    (r"^I am not ", "I am "), (r"^I am ", "I am not "), (r"^I'm ", "I'm not "), (r"^I (don't|do not) ", "I "),
    (r"^I (like|love|enjoy|have|work|live|want|play|eat|drink|own|speak|hate|go|drive|teach|read)\b", r"I don't \1"),
    (r"^My (.*?) is ", r"My \1 is not "), (r"^My (.*?) are ", r"My \1 are not "), (r"^I can ", "I can't "),
)  # fmt: skip
STATEMENT = re.compile(r"^(I (?:am|have|like|love|work|live|want|play)\b[^.!?,]*)[.!]")
NUM_HELD_OUT_TEMPLATES = 3
"""The first disclaimers are for held-out pairs only."""
MIN_REPLY_WORDS, MAX_REPLY_WORDS, MAX_TURNS = 5, 28, 4


def denied(sentence: str) -> str | None:
    """Say the opposite of a sentence in the first person; None where no rule can."""
    for pattern, opposite in DENIALS:
        if re.match(pattern, sentence):
            return re.sub(pattern, opposite, sentence)
    return None


def told(sentence: str) -> str:
    """Turn a sentence in the first person into what somebody else is told about it."""
    words = [SECOND_PERSON.get(word.lower(), word) for word in sentence.rstrip(".!").split()]
    return f"You told me that {' '.join(words)}."


def read_dialogues(path: Path) -> list[Dialogue]:
    """Read conversations: Synthetic-Persona-Chat's .csv, or JSON lines with `persona` and `turns`."""
    with path.open(encoding="utf-8", newline="") as lines:
        if path.suffix != ".csv":
            rows = [json.loads(line) for line in lines]
            return [Dialogue(tuple(row["persona"]), tuple((role, text) for role, text in row["turns"])) for row in rows]
        return [
            persona_chat(row[f"user {user} personas"], row["Best Generated Conversation"], user)
            for row in csv.DictReader(lines)
            for user in (1, 2)
        ]


def persona_chat(persona: str, conversation: str, user: int) -> Dialogue:
    """Read one conversation from the side of one of its two speakers."""
    spoken = re.findall(r"User (\d): (.*)", conversation)
    turns = tuple(("assistant" if number == str(user) else "user", text.strip()) for number, text in spoken)
    facts = tuple(
        re.sub(r"\bi\b", "I", line.strip().rstrip(".")) + "." for line in persona.splitlines() if line.strip()
    )
    return Dialogue(tuple(fact[0].upper() + fact[1:] for fact in facts), turns)


@dataclass(frozen=True)
class Draft:
    """A good and a bad reply."""

    history: tuple[tuple[str, str], ...]
    good: str
    bad: str
    clauses: dict[str, Clause]
    """Of the aspects in which they differ."""


def quoted(aspect: str, line: str) -> dict[str, Clause]:
    """Say that the first answer is better, by a line that it can be held against."""
    return {aspect: Clause("first", wanted=f'"{line.replace(";", ",")}"')}


@dataclass
class Replies:
    """Draws good and bad replies; `others` are whom the bad ones are borrowed from."""

    others: Sequence[Dialogue]
    rng: np.random.Generator
    is_held_out: bool
    """Whose templates are used: those of held-out pairs are new to who has learnt from the others."""

    @property
    def kinds(self) -> dict[str, Callable[[Dialogue], Draft | None]]:
        """What makes each kind of pair; None where a dialogue does not lend itself to it."""
        return {
            "coherence": self.coherence, "disclaimer": self.disclaimer, "facts": self.facts, "denial": self.denial,
            "memory": self.memory, "feeling": self.feeling, "alike": self.alike,
        }  # fmt: skip

    def pick(self, options: Sequence[Any]) -> Any:
        """Draw one."""
        return options[int(self.rng.integers(len(options)))]

    def stranger(self, dialogue: Dialogue) -> Dialogue:
        """Draw somebody with another persona."""
        return next(d for d in iter(lambda: self.pick(self.others), None) if d.persona != dialogue.persona)

    def turn(self, dialogue: Dialogue) -> tuple[tuple[tuple[str, str], ...], str] | None:
        """Draw a turn of the assistant's in the middle of a dialogue: what came before, and what was said."""
        places = [
            place for place, (role, text) in enumerate(dialogue.turns)
            if role == "assistant" and place >= 3 and MIN_REPLY_WORDS <= len(text.split()) <= MAX_REPLY_WORDS
        ]  # fmt: skip
        if not places:
            return None
        place = self.pick(places)
        return dialogue.turns[max(0, place - MAX_TURNS) : place], dialogue.turns[place][1]

    def coherence(self, dialogue: Dialogue) -> Draft | None:
        """Answer what was said, or what somebody said elsewhere."""
        here, there = self.turn(dialogue), self.turn(self.stranger(dialogue))
        if not here or not there:
            return None
        return Draft(here[0], here[1], there[1], {"coherence": Clause("first")})

    def disclaimer(self, dialogue: Dialogue) -> Draft | None:
        """Answer as somebody, or as a machine."""
        if not (here := self.turn(dialogue)):
            return None
        some = DISCLAIMERS[:NUM_HELD_OUT_TEMPLATES] if self.is_held_out else DISCLAIMERS[NUM_HELD_OUT_TEMPLATES:]
        bad = self.pick(some)
        return Draft(here[0], here[1], bad, {"persona": Clause("first", wanted="not a machine")})

    def facts(self, dialogue: Dialogue) -> Draft:
        """Tell one's own facts, or somebody else's."""
        opening, own = self.pick(OPENINGS), self.pick(dialogue.persona)
        bad = opening + self.pick(self.stranger(dialogue).persona)
        return Draft(self.asked(dialogue, QUESTIONS), opening + own, bad, quoted("persona", own))

    def denial(self, dialogue: Dialogue) -> Draft | None:
        """Tell one's own facts or deny them; or deny somebody else's, or claim them."""
        is_own = self.rng.random() < 0.5
        fact = self.pick((dialogue if is_own else self.stranger(dialogue)).persona)
        if not (opposite := denied(fact)):
            return None
        opening = self.pick(OPENINGS)
        good, bad = (fact, opposite) if is_own else (opposite, fact)
        clauses = quoted("persona", fact) if is_own else {"persona": Clause("first", wanted="no such fact")}
        return Draft(self.asked(dialogue, QUESTIONS), opening + good, opening + bad, clauses)

    def memory(self, dialogue: Dialogue) -> Draft | None:
        """Remember what the user said, or what somebody else did."""
        said = [statements(other) for other in (dialogue, self.stranger(dialogue))]
        if not all(said):
            return None
        own = self.pick(said[0])
        history = (("user", own), ("assistant", "That is good to know."), ("user", self.pick(MEMORIES)))
        return Draft(history, told(own), told(self.pick(said[1])), quoted("memory", own))

    def feeling(self, dialogue: Dialogue) -> Draft:
        """Answer as the user feels, or as they do not."""
        if self.is_held_out:
            line, good, bad = self.pick(FEELINGS)
        else:
            is_sad = self.rng.random() < 0.5
            line = self.pick(SORROWS if is_sad else JOYS)
            good, bad = self.felt(is_sad), self.felt(not is_sad)
        return Draft((*dialogue.turns[:1], ("user", line)), good, bad, {"feeling": Clause("first")})

    def felt(self, is_sad: bool) -> str:
        """Draw a reply to sorrow or to joy, some of them with a cue."""
        replies, cues = (COMFORTS, COMFORT_CUES) if is_sad else (DELIGHTS, DELIGHT_CUES)
        cue = self.pick(cues) if self.rng.random() < CUED_SHARE else ""
        return cue + str(self.pick(replies))

    def alike(self, dialogue: Dialogue) -> Draft:
        """Tell two of one's own facts: neither is better."""
        facts = [self.pick(dialogue.persona) for _ in range(2)]
        opening = self.pick(OPENINGS)
        return Draft(self.asked(dialogue, QUESTIONS), opening + facts[0], opening + facts[1], {})

    def asked(self, dialogue: Dialogue, questions: Sequence[str]) -> tuple[tuple[str, str], ...]:
        """Open a dialogue with a question."""
        return (*dialogue.turns[:2], ("user", self.pick(questions)))


def statements(dialogue: Dialogue) -> list[str]:
    """Find what the user says about themselves in one sentence."""
    said = (STATEMENT.match(text) for role, text in dialogue.turns if role == "user")
    return [match[1] + "." for match in said if match and len(match[1].split()) >= 4]


def dialogue_pairs(dialogues: Sequence[Dialogue], *, held_out_share: float = 0.1, seed: int = 0) -> Iterator[Known]:
    """Make one pair of each kind from each dialogue, split by persona; bad replies come from the same split."""
    train, held_out = split_by_persona(dialogues, held_out_share, seed)
    for split, members in (("train", train), ("held_out", held_out)):
        if len({dialogue.persona for dialogue in members}) < 2:
            continue
        replies = Replies(members, np.random.default_rng([seed, len(split)]), split == "held_out")
        for number, dialogue in enumerate(members):
            for kind, make in replies.kinds.items():
                draft = make(dialogue)
                if draft and (draft.good != draft.bad or kind == "alike"):
                    yield known_reply(f"{split}-{number}-{kind}", kind, split, dialogue, draft)


def split_by_persona(dialogues: Sequence[Dialogue], share: float, seed: int) -> tuple[list[Dialogue], list[Dialogue]]:
    """Hold out personas, and all conversations with them, from whichever side they are told."""
    held = [d for d in dialogues if zlib.crc32(f"{seed} {sorted(d.persona)}".encode()) % 1000 < 1000 * share]
    personas, conversations = {d.persona for d in held}, {d.words for d in held}
    return [d for d in dialogues if d.persona not in personas and d.words not in conversations], held


def known_reply(name: str, kind: str, split: str, dialogue: Dialogue, draft: Draft) -> Known:
    """Write a draft as a case with its verdict."""
    case = Case("dialogue", str(DialoguePrompt(dialogue.persona, draft.history)), Answer(draft.good), Answer(draft.bad))
    clauses = {aspect: draft.clauses.get(aspect, Clause("alike")) for aspect in RUBRICS["dialogue"]}
    return Known(name, kind, split, case, Verdict(clauses, ALIKE if kind == "alike" else NUM_LEVELS))
