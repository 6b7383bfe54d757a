"""Personas and what they answer: cards, recombined, paired with dialogues, and joined with sound.

A run of the realtime mode reads an `exchanges.jsonl`. It is made in steps, each of which can be looked at:

    python -m tristep.corpus.personas cards dialogues.csv --out cards.jsonl
    python -m tristep.corpus.personas fission cards.jsonl --number 2000 --out more.jsonl
    python -m tristep.corpus.personas pair dialogues.csv --cards more.jsonl --out typed/exchanges.jsonl
    python -m tristep.corpus.personas script dialogues.csv --cards cards.jsonl --out script.jsonl
    python -m tristep.corpus.personas sentences typed/exchanges.jsonl script.jsonl --out turns.tsv
    python -m tristep.corpus.synthesize turns.tsv --teacher piper --model joe.onnx --out turns
    python -m tristep.corpus.personas sound typed/exchanges.jsonl turns/manifest.jsonl --out exchanges.jsonl
    python -m tristep.corpus.personas distil typed/exchanges.jsonl --model nano --out own/exchanges.jsonl

A card (`modes/realtime/persona.py`) has the facts of one speaker of a dialogue, and four attributes. Fission gives the
facts of each card the attributes of others, drawn one by one (report section 6.2), so that a few hundred cards become
as many as there are combinations. Paired, a persona says what its speaker said, with its own verbal habits; what is
out of character by the rules, or said before nearly word for word, is left out. `distil` lets a text model answer
instead: what a model answers to text is what it should answer to sound. A script holds the user's side of dialogues
that are kept for measuring (`tristep evaluate realtime`).
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from tristep.arguments import existing
from tristep.chat import Turn
from tristep.corpus.dialogues import Dialogue, read_dialogues, without_near_duplicates
from tristep.corpus.endpoint import next_turn
from tristep.modes.realtime.data import remembered, turns
from tristep.modes.realtime.persona import PersonaCard, has_blank, plain, read_cards, violations, write_cards
from tristep.text import speakable, spoken_words

ATTRIBUTES: dict[str, tuple[Any, ...]] = {
    "personality": (
        "warm and curious", "dry and witty", "shy but kind", "cheerful and loud", "calm and thoughtful",
        "blunt and honest", "dreamy and poetic", "practical and brisk", "nervous and eager to please",
        "proud and a little vain", "patient and gentle", "playful and teasing",
    ),
    "verbal_habits": (
        ("Oh my!",), ("Well now,",), ("Right then,",), ("Hmm, let me see.",), ("You know,",), ("Ha!",), ("My friend,",),
        ("Honestly,",), ("Goodness!",), ("Ah, yes.",), ("I tell you,",), (),
    ),
    "emotional_boundaries": (
        "never speak ill of anyone", "do not talk about money", "change the subject when someone flirts",
        "do not give medical advice", "stay calm when someone is rude", "keep family matters to yourself",
        "do not discuss politics", "never promise what you cannot keep", "comfort before you advise",
        "admit what you do not know",
    ),
    "archetype": (
        "a good neighbour", "an old friend", "a patient tutor", "a chance companion on a train", "a shopkeeper",
        "a coach", "a fellow student", "a grandparent", "a colleague at lunch", "a pen pal", "a travel guide",
    ),
}  # fmt: skip
"""The four attributes that are recombined, as we write them; a project's own cards bring their own."""
MOST_HISTORY = 4
"""Turns that an exchange remembers."""
MOST_SPOKEN_WORDS = 24
"""Turns of the user with more words are not read aloud."""
HABIT_SHARE = 0.5
"""Share of the answers that show a verbal habit."""
SLOW, FAST = 0.85, 1.2
"""Speeds of a teacher's reading beyond which its pace is a cue."""
CUES = ("slow", "fast", "pauses", "whisper", "laugh", "sigh", "breath", "hesitation")
"""Manners that can be heard without knowing the voice; a low voice or a quiet recording can't be told from others."""

Exchange = dict[str, Any]
Answer = Callable[[Sequence[Sequence[Turn]]], list[str]]
"""Answers the last turns of conversations."""


def native_cards(dialogues: Sequence[Dialogue], seed: int) -> list[PersonaCard]:
    """Give the second speaker of each dialogue a card: their own facts, and attributes drawn at random."""
    cards = []
    for place, dialogue in enumerate(dialogues):
        rng = np.random.default_rng([seed, place])
        drawn = {name: choices[rng.integers(len(choices))] for name, choices in ATTRIBUTES.items()}
        cards.append(PersonaCard(id=dialogue.id, facts=dialogue.facts[1], **drawn))
    return cards


def fission(cards: Sequence[PersonaCard], number: int, seed: int) -> list[PersonaCard]:
    """Recombine cards: the facts of one with each attribute of another, no combination twice.

    Args:
        cards: Native cards.
        number: How many are wanted; there are as many at most as there are combinations.
        seed: Chooses among them.

    Returns:
        New cards, each named after the one whose facts it has: `spc0007.2` is the second of `spc0007`.
    """
    rng = np.random.default_rng(seed)
    made: dict[tuple[Any, ...], PersonaCard] = {(card.facts, *traits(card)): card for card in cards}
    counts: dict[str, int] = {}
    new: list[PersonaCard] = []
    for _ in range(20 * number):
        if len(new) == number:
            break
        source = cards[int(rng.integers(len(cards)))]
        drawn = {name: getattr(cards[int(rng.integers(len(cards)))], name) for name in ATTRIBUTES}
        name = f"{source.id}.{counts.get(source.id, 0) + 1}"
        card = source.model_copy(update={"id": name, **drawn})
        if (key := (card.facts, *traits(card))) not in made:
            made[key] = card
            counts[source.id] = counts.get(source.id, 0) + 1
            new.append(card)
    return new


def traits(card: PersonaCard) -> tuple[Any, ...]:
    """Return what fission recombines."""
    return tuple(getattr(card, name) for name in ATTRIBUTES)


def with_habit(answer: str, card: PersonaCard, rng: np.random.Generator) -> str:
    """Let an answer begin with one of the card's verbal habits, by chance, if none is there."""
    shown = any(plain(habit) in plain(answer) for habit in card.verbal_habits)
    if not card.verbal_habits or shown or rng.random() >= HABIT_SHARE:
        return answer
    habit = card.verbal_habits[rng.integers(len(card.verbal_habits))]
    if habit.endswith(",") and not re.match(r"I\b|[A-Z]{2}", answer):
        answer = answer[:1].lower() + answer[1:]
    return f"{habit} {answer}"


def pair(
    cards: Iterable[PersonaCard], dialogues: Sequence[Dialogue], per_card: int, held_out: Mapping[str, str], seed: int
) -> Iterator[Exchange]:
    """Yield what each persona answers in the dialogue whose facts it has, as far as it is in character.

    Args:
        cards: Native ones or those that fission made of them.
        dialogues: What was said.
        per_card: Exchanges that are drawn of each card at most.
        held_out: The split of dialogues that are not for training, by id.
        seed: Chooses turns, and where habits show.
    """
    by_id = {dialogue.id: dialogue for dialogue in dialogues}
    for place, card in enumerate(cards):
        dialogue = by_id.get(card.id.split(".")[0])
        if dialogue is None:
            continue
        rng = np.random.default_rng([seed, place])
        said = [with_habit(text, card, rng) if turn % 2 else text for turn, text in enumerate(dialogue.turns)]
        if any(map(has_blank, said)):
            continue
        asked = [turn for turn in range(0, len(said) - 1, 2) if not violations(card, said[turn + 1], said[1:turn:2])]
        for turn in sorted(rng.permutation(asked)[:per_card].tolist()):
            yield exchange(card, dialogue.id, said, turn, held_out.get(dialogue.id, "train"))


def exchange(card: PersonaCard, dialogue: str, said: Sequence[str], turn: int, split: str) -> Exchange:
    """Write one row: the user's turn at `turn`, what came before it and what follows."""
    first = max(0, turn - MOST_HISTORY)
    return {
        "id": f"{card.id}_{turn:02d}", "sound": f"{dialogue}_{turn:02d}", "split": split, "language": card.language,
        "persona": card.prompt(), "card": card.id,
        "history": [["assistant" if place % 2 else "user", said[place]] for place in range(first, turn)],
        "text": said[turn], "answer": said[turn + 1], "answered_by": "dialogue",
    }  # fmt: skip


def distinct(rows: Sequence[Exchange]) -> list[Exchange]:
    """Leave out exchanges that are nearly another one of their split."""
    kept = []
    for split in dict.fromkeys(row["split"] for row in rows):
        own = [row for row in rows if row["split"] == split]
        kept += [own[place] for place in without_near_duplicates([f"{row['text']} {row['answer']}" for row in own])]
    return kept


def script(
    cards: Mapping[str, PersonaCard], dialogues: Sequence[Dialogue], clips: Mapping[str, dict[str, Any]], num_turns: int
) -> Iterator[Exchange]:
    """Yield the card and the user's first turns of each dialogue that has as many, with their sound if there is any."""
    for dialogue in dialogues:
        asked = dialogue.turns[: 2 * num_turns : 2]
        if len(asked) < num_turns or dialogue.id not in cards or any(map(has_blank, asked)):
            continue
        names = [f"{dialogue.id}_{2 * place:02d}" for place in range(num_turns)]
        sounds = [{"audio": clips[name]["audio"]} if name in clips else {} for name in names]
        said = [{"sound": name, "text": text, **sound} for name, text, sound in zip(names, asked, sounds, strict=True)]
        yield {"id": dialogue.id, "card": cards[dialogue.id].model_dump(exclude_defaults=True), "turns": said}


def sentences(rows: Iterable[Exchange]) -> dict[str, str]:
    """List the user's turns of exchanges and scripts that can be read aloud, by the name of their sound."""
    listed: dict[str, str] = {}
    for turn in (turn for row in rows for turn in row.get("turns", [row])):
        words = spoken_words(speakable(turn["text"]))
        if words and len(words) <= MOST_SPOKEN_WORDS:
            listed[turn["sound"]] = " ".join(turn["text"].split())
    return listed


def with_sound(rows: Iterable[Exchange], clips: Mapping[str, dict[str, Any]]) -> Iterator[Exchange]:
    """Yield the exchanges whose turn was read aloud, with their sound and how it was said.

    An exchange stays out of training if either its dialogue or its clip does.
    """
    for row in rows:
        if (clip := clips.get(row["sound"])) is None:
            continue
        split = next((part for part in (row["split"], clip["split"]) if part != "train"), "train")
        sound = {name: clip[name] for name in ("audio", "duration", "sample_rate", "speaker")}
        yield {**row, **sound, "split": split, "cues": cues_of(clip)}


def cues_of(clip: Mapping[str, Any]) -> list[str]:
    """Say what can be heard of how a clip is said, from what its manifest knows."""
    known = [cue for cue in (*clip.get("styles", ()), *clip.get("cues", ())) if cue in CUES]
    speed = clip.get("speed", 1.0)
    pace = ["slow"] if speed < SLOW else ["fast"] if speed > FAST else []
    return list(dict.fromkeys([*known, *pace]))


def read_clips(manifests: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Read manifests, by the clips' ids, with the whole path of their sound."""
    clips = {}
    for manifest in manifests:
        for line in manifest.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            clips[row["id"]] = {**row, "audio": str(manifest.parent.resolve() / row["audio"])}
    return clips


def distil(
    rows: Sequence[Exchange], cards: Mapping[str, PersonaCard], answer: Answer, by: str, batch_size: int = 8
) -> Iterator[Exchange]:
    """Let a model answer; where it is out of character the row keeps the answer it had.

    Args:
        rows: Exchanges, whose user turns are put as text.
        cards: By their ids: the rules need the facts.
        answer: The model.
        by: Its name, for the rows that it answered.
        batch_size: Conversations that are answered at once.
    """
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        asked = [turns(row["persona"], history_of(row), row["text"]) for row in batch]
        for row, text in zip(batch, map(whole_sentences, answer(asked)), strict=True):
            card = cards.get(row.get("card", ""), PersonaCard(id=""))
            earlier = [said for role, said in row["history"] if role == "assistant"]
            good = not violations(card, text, earlier)
            yield {**row, "answer": text, "answered_by": by} if good else row


def history_of(row: Exchange) -> list[Turn]:
    """Return the turns before an exchange."""
    return [remembered(role, text) for role, text in row["history"]]


def whole_sentences(text: str) -> str:
    """Leave out a last sentence that was cut."""
    match = re.match(r".*[.!?][\"')]*(?=\s|$)", text.strip(), re.DOTALL)
    return match[0] if match else text.strip()


def local_teacher(name: str, mode: str | None) -> Answer:
    """Load a backbone as a teacher: its text chat, without what a mode has learnt unless one is named."""
    from tristep.backbone.checkpoints import load_backbone
    from tristep.backbone.low_rank import merge_low_rank
    from tristep.chat import Chat
    from tristep.engine.answers import answers

    backbone, tokenizer = load_backbone(name, mode=mode)
    merge_low_rank(backbone)
    chat = Chat(backbone.eval().vocab, tokenizer)
    return lambda conversations: [each.text for each in answers(backbone, chat, conversations)]


def distant_teacher(url: str, model: str) -> Answer:
    """Ask a chat endpoint."""
    from openai import OpenAI

    client = OpenAI(base_url=url)

    def answer(conversations: Sequence[Sequence[Turn]]) -> list[str]:
        asked = [[(turn.role, "".join(map(str, turn.parts))) for turn in each] for each in conversations]
        return [next_turn(client, model, messages, max_tokens=96) for messages in asked]

    return answer


def read_rows(path: Path) -> list[Exchange]:
    """Read JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_rows(rows: Iterable[Exchange], path: Path) -> int:
    """Write JSON lines as they come; return how many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number = 0
    with path.open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
            out.flush()
            number += 1
    return number


def parser() -> argparse.ArgumentParser:
    """Lay out the command line."""
    root = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = root.add_subparsers(dest="step", required=True)

    def step(name: str, about: str, *inputs: str) -> argparse.ArgumentParser:
        added = steps.add_parser(name, help=about, description=about)
        for each in inputs:
            added.add_argument(each, type=existing)
        added.add_argument("--out", type=Path, required=True, help="JSON lines to write")
        return added

    cards = step("cards", "Write a card for the second speaker of every dialogue.", "dialogues")
    cards.add_argument("--seed", type=int, default=0)
    split = step("fission", "Recombine the attributes of cards into new ones.", "cards")
    split.add_argument("--number", type=int, required=True, help="cards to make")
    split.add_argument("--seed", type=int, default=0)
    pairs = step("pair", "Write what personas answer in their dialogues, in character only.", "dialogues")
    pairs.add_argument("--cards", type=existing, required=True)
    pairs.add_argument("--per-card", type=int, default=4, help="exchanges of each card at most")
    pairs.add_argument("--dev", type=int, default=20, help="dialogues that are dev: those before the test ones")
    pairs.add_argument("--test", type=int, default=60, help="dialogues that are test: the last ones")
    pairs.add_argument("--seed", type=int, default=0)
    held = step("script", "Write the user's side of the last dialogues, for measuring.", "dialogues")
    held.add_argument("manifests", type=existing, nargs="*", help="clips of the user's turns")
    held.add_argument("--cards", type=existing, required=True)
    held.add_argument("--test", type=int, default=60, help="dialogues that are test: the last ones")
    held.add_argument("--turns", type=int, default=6, help="the user's turns of each")
    listed = step("sentences", "List the user's turns for a teacher to read aloud, one `id<TAB>text` a line.", "first")
    listed.add_argument("more", type=existing, nargs="*", help="exchanges or scripts")
    sound = step("sound", "Join exchanges with clips of the user's turns.", "exchanges")
    sound.add_argument("manifests", type=existing, nargs="+")
    sound.add_argument("--cued", action="store_true", help="keep only those with something to hear of their manner")
    teach = step("distil", "Let a text model answer instead; it is kept where it is in character.", "exchanges")
    teach.add_argument("--cards", type=existing, help="their cards: the rules need the facts")
    teach.add_argument("--model", default="nano", help="weights, or the model's name at the endpoint")
    teach.add_argument("--mode", help="what the weights have learnt for this mode; else their text model alone")
    teach.add_argument("--endpoint", help="base URL of a chat endpoint, its key in OPENAI_API_KEY")
    teach.add_argument("--number", type=int, help="take this many exchanges, from all over the file")
    return root


def split_of(dialogues: Sequence[Dialogue], num_dev: int, num_test: int) -> dict[str, str]:
    """Hold the last dialogues out."""
    names = [dialogue.id for dialogue in dialogues]
    test, dev = names[len(names) - num_test :], names[len(names) - num_test - num_dev : len(names) - num_test]
    return dict.fromkeys(dev, "dev") | dict.fromkeys(test, "test")


def paired(options: argparse.Namespace) -> list[Exchange]:
    """Do the step `pair`."""
    dialogues = read_dialogues(options.dialogues)
    held_out = split_of(dialogues, options.dev, options.test)
    return distinct(list(pair(read_cards(options.cards), dialogues, options.per_card, held_out, options.seed)))


def scripted(options: argparse.Namespace) -> Iterator[Exchange]:
    """Do the step `script`."""
    cards = {card.id: card for card in read_cards(options.cards)}
    dialogues = read_dialogues(options.dialogues)[-options.test :]
    return script(cards, dialogues, read_clips(options.manifests), options.turns)


def sounded(options: argparse.Namespace) -> Iterator[Exchange]:
    """Do the step `sound`."""
    rows = with_sound(read_rows(options.exchanges), read_clips(options.manifests))
    return (row for row in rows if row["cues"] or not options.cued)


def distilled(options: argparse.Namespace) -> Iterator[Exchange]:
    """Do the step `distil`."""
    rows = read_rows(options.exchanges)
    if options.number and options.number < len(rows):
        rows = [rows[place] for place in np.linspace(0, len(rows) - 1, options.number).astype(int)]
    cards = {card.id: card for card in read_cards(options.cards)} if options.cards else {}
    teacher = (
        distant_teacher(options.endpoint, options.model)
        if options.endpoint
        else local_teacher(options.model, options.mode)
    )
    answers = distil(rows, cards, teacher, options.model)
    yield from track(answers, total=len(rows), description=f"{options.model} answers")


def carded(options: argparse.Namespace) -> list[PersonaCard]:
    """Do the step `cards` or `fission`."""
    if options.step == "cards":
        return native_cards(read_dialogues(options.dialogues), options.seed)
    return fission(read_cards(options.cards), options.number, options.seed)


ROWS: dict[str, Callable[[argparse.Namespace], Iterable[Exchange]]] = {
    "pair": paired, "script": scripted, "sound": sounded, "distil": distilled,
}  # fmt: skip
"""The steps that write rows."""


def main() -> None:
    """Do the step that the command line names."""
    options = parser().parse_args()
    if options.step in ROWS:
        number = write_rows(ROWS[options.step](options), options.out)
    elif options.step == "sentences":
        listed = sentences(row for path in (options.first, *options.more) for row in read_rows(path))
        options.out.write_text("".join(f"{name}\t{text}\n" for name, text in listed.items()), encoding="utf-8")
        number = len(listed)
    else:
        cards = carded(options)
        write_cards(cards, options.out)
        number = len(cards)
    print(f"{number} lines in {options.out}")


if __name__ == "__main__":
    main()
