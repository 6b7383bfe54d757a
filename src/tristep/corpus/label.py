"""Pseudo-labels: sound without transcripts gets those on which recognisers that exist already agree.

`tristep label` is the report's pipeline (section 4.2): recordings are cut into pieces and graded (`segment`), several
recognisers hear every piece, they vote (`vote`), pieces about which they disagree too much are dropped, neighbours that
are kept may be joined to long samples, and a language model may give the words their looks back (`repair`). Each piece
is written down as soon as it is heard, whatever becomes of it, so a run that was stopped goes on where it was.

`python -m tristep.corpus.label` labels a manifest by one recogniser and its own confidence: a clip is kept if the
recogniser heard speech, was sure of its words, and did not loop. That teacher is faster-whisper
(`pip install faster-whisper`). Either way the teachers make data only.

What differs from the report: its three systems are not named, ours are those you name, and any number of them. A voted
transcript is written as the first voter wrote it that has the same words, so capitals and punctuation are kept where
somebody wrote them. Pieces of different speakers are not told apart.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import compress, islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from tristep.arguments import existing
from tristep.audio import LISTEN_HZ, AudioError, write_audio
from tristep.corpus.label_page import write_page
from tristep.corpus.recognisers import Heard, Recognise, is_sure, open_whisper
from tristep.corpus.repair import repaired
from tristep.corpus.segment import grade, pieces, read_stretch
from tristep.corpus.vote import MAX_DISAGREEMENT, Vote, surface, vote_texts
from tristep.engine.segments import Stretch
from tristep.text import scored_by_character, speakable

SUFFIXES = frozenset({".flac", ".m4a", ".mp3", ".mp4", ".ogg", ".opus", ".wav", ".webm"})
"""What is taken for a recording in a folder without a manifest."""
BATCH_SIZE = 8
"""Pieces that a recogniser hears at once."""

Row = dict[str, Any]
Repair = Callable[[Sequence[str], str], list[str]]
"""Writes the parts of a session, in a language, as they are usually written."""


@dataclass(frozen=True)
class Settings:
    """What is kept, and in which form."""

    language: str | None = None
    """Language that is spoken; what most recognisers hear if not given."""
    max_disagreement: float = MAX_DISAGREEMENT
    """Share of disputed places above which a piece is dropped."""
    min_speech_share: float = 0.1
    """Share of speech under which a piece is dropped unheard."""
    max_joined_s: float = 0.0
    """Length up to which neighbouring pieces of a recording become one sample; 0 joins none."""


@dataclass(frozen=True)
class Piece:
    """A stretch of a recording that waits for its label."""

    waveform: Tensor
    """Shape `(S,)`, at `LISTEN_HZ`."""
    row: Row
    """The recording's row, where in it the piece lies, and how it sounds."""


def label_folder(
    folder: str | Path,
    out: str | Path,
    recognisers: Mapping[str, Recognise],
    settings: Settings | None = None,
    repair: Repair | None = None,
) -> Counter[str]:
    """Label the recordings of a folder by the votes of recognisers.

    Args:
        folder: A corpus: recordings of any length, and a `manifest.jsonl` if there is one.
        out: Where to write: `pieces.jsonl`, every piece with what became of it; `manifest.jsonl`, the samples that are
            kept; `audio/`, those that were cut; and `summary.html`.
        recognisers: Who votes, the most trusted one first.
        settings: What is kept.
        repair: Writes transcripts as they are usually written; they stay as they are without it.

    Returns:
        How many pieces were `kept`, and how many dropped for which reason.

    Raises:
        ValueError: If there is nothing to label, or nobody to label it.
    """
    source, target, settings = Path(folder), Path(out), settings or Settings()
    recordings = find_recordings(source)
    if not recognisers:
        raise ValueError("nobody is there to listen: name at least one recogniser")
    (target / "audio").mkdir(parents=True, exist_ok=True)
    known = resumed(target, list(recognisers), settings)
    shown = track(recordings, "listening", console=Console(stderr=True))
    with (target / "pieces.jsonl").open("a", encoding="utf-8") as log:
        for row in label_pieces(found_pieces(shown, source, target, known), recognisers, settings):
            log.write(json.dumps(row, ensure_ascii=False) + "\n")
            log.flush()
    rows = read_rows(target / "pieces.jsonl")
    kept = list(samples(rows, target, settings.max_joined_s, repair))
    write_rows(kept, target / "manifest.jsonl")
    write_page(rows, list(recognisers), target / "summary.html")
    return Counter(row["outcome"] for row in rows)


def resumed(out: Path, voters: Sequence[str], settings: Settings) -> set[str]:
    """Name the pieces that are labelled already; a line that a killed run left unfinished is forgotten.

    Raises:
        ValueError: If they were labelled by others, or by other rules. How neighbours are joined may change.
    """
    rules = {"recognisers": list(voters), **asdict(settings)}
    del rules["max_joined_s"]
    path, log = out / "settings.json", out / "pieces.jsonl"
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != rules:
        raise ValueError(f"{str(out)!r} was labelled as {path} says: label in the same way, or into another folder")
    path.write_text(json.dumps(rules) + "\n", encoding="utf-8")
    text = log.read_text(encoding="utf-8") if log.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    log.write_text(whole, encoding="utf-8")
    return {json.loads(line)["id"] for line in whole.splitlines()}


def repair_by(endpoint: str, model: str) -> Repair:
    """Repair transcripts by a model at a chat endpoint, whose key is in `OPENAI_API_KEY`."""
    from openai import OpenAI

    client = OpenAI(base_url=endpoint)
    return lambda texts, language: repaired(texts, language, client, model)


def find_recordings(folder: Path) -> list[Row]:
    """List the recordings of a folder: the rows of its manifest, or else the sound files in it."""
    manifest = folder / "manifest.jsonl"
    if manifest.exists():
        rows = read_rows(manifest)
    else:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        rows = [{"id": _name(path.relative_to(folder)), "audio": str(path.relative_to(folder))} for path in paths]
    if not rows:
        raise ValueError(f"there is nothing to label in {str(folder)!r}: give a folder with recordings")
    name, count = Counter(row["id"] for row in rows).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{count} recordings in {str(folder)!r} are named {name!r}: give each a name of its own")
    return rows


def _name(path: Path) -> str:
    """Name a recording after its place in the folder; the name is no path itself."""
    return "-".join(path.with_suffix("").parts)


def found_pieces(recordings: Iterable[Row], folder: Path, out: Path, known: set[str]) -> Iterator[Piece]:
    """Yield the pieces that are not known yet; a recording that can't be read is one piece without sound."""
    for recording in recordings:
        audio = (folder / recording["audio"]).resolve()
        try:
            for stretch, is_whole in pieces(audio):
                row = piece_row(recording, audio, stretch, None if is_whole else out.resolve() / "audio")
                if row["id"] not in known:
                    yield Piece(stretch.waveform, {**row, **asdict(grade(stretch.waveform))})
        except AudioError as error:
            if recording["id"] not in known:
                yield Piece(torch.zeros(0), {**recording, "audio": str(audio), "error": str(error)})


def piece_row(recording: Row, audio: Path, stretch: Stretch, cuts: Path | None) -> Row:
    """Say where a piece lies; one that is cut out gets a name of its own, and a file in the folder `cuts`."""
    place = {"recording": str(audio), "start_s": round(stretch.start_s, 3), "duration": round(stretch.duration_s, 3)}
    name = f"{recording['id']}-{round(1000 * stretch.start_s):08d}" if cuts else recording["id"]
    return {**recording, **place, "id": name, "audio": str(cut_path(cuts, name) if cuts else audio)}


def cut_path(folder: Path, name: str) -> Path:
    """Say where a cut is written; whatever a manifest calls it, that is a file in this folder."""
    return folder / (re.sub(r"[^\w-]", "_", name) + ".flac")


def label_pieces(found: Iterable[Piece], recognisers: Mapping[str, Recognise], settings: Settings) -> Iterator[Row]:
    """Yield the row of each piece with what was heard and voted, and its `outcome`."""
    waiting = iter(found)
    while batch := list(islice(waiting, BATCH_SIZE)):
        has_speech = [piece.row.get("speech_share", 0.0) >= settings.min_speech_share for piece in batch]
        heard = iter(hear(list(compress(batch, has_speech)), recognisers, settings.language))
        for piece, speaks in zip(batch, has_speech, strict=True):
            row = voted_row(piece.row, next(heard) if speaks else {}, settings)
            if row["outcome"] == "kept" and row["audio"] != row["recording"]:
                write_audio(row["audio"], piece.waveform, LISTEN_HZ)
            yield row


def hear(batch: Sequence[Piece], recognisers: Mapping[str, Recognise], language: str | None) -> list[dict[str, Heard]]:
    """Let every recogniser hear a batch; what each of them heard, piece by piece."""
    waveforms = [piece.waveform for piece in batch]
    by_voter = [recognise(waveforms, language) for recognise in recognisers.values() if waveforms]
    return [dict(zip(recognisers, ears, strict=True)) for ears in zip(*by_voter, strict=True)]


def voted_row(row: Row, heard: Mapping[str, Heard], settings: Settings) -> Row:
    """Complete the row of a piece, given what each recogniser heard in it."""
    if not heard:
        return {**row, "outcome": "unreadable" if "error" in row else "no speech"}
    spoken = Counter(ear.language for ear in heard.values() if ear.language)
    language = settings.language or (spoken.most_common(1)[0][0] if spoken else "en")
    result = vote_texts([ear.text for ear in heard.values()], language)
    texts = {name: ear.text for name, ear in heard.items()}
    agreement = {name: round(share, 4) for name, share in zip(heard, result.agreement(), strict=False)}
    measured = {"disagreement": round(result.disagreement, 4), "agreement": agreement}
    row = {**row, "language": language, "heard": texts, **measured}
    outcome = outcome_of(result, list(heard.values()), settings.max_disagreement)
    if outcome != "kept":
        return {**row, "outcome": outcome}
    text = written(result, list(texts.values()), language)
    return {**row, "text": text, "text_source": "+".join(heard), "outcome": outcome}


def outcome_of(result: Vote, heard: Sequence[Heard], max_disagreement: float) -> str:
    """Say what becomes of a piece: it is `kept`, or else the reason. Alone, a recogniser has to be sure of itself."""
    if not result.units:
        return "nothing heard"
    if result.disagreement > max_disagreement:
        return "disagreement"
    return "unsure" if len(heard) == 1 and not heard[0].is_sure else "kept"


def written(result: Vote, texts: Sequence[str], language: str) -> str:
    """Write a voted transcript as the first voter did that has the same words, or else in plain words."""
    voted = " ".join(result.units)
    same = (text for text in texts if surface(text, language) == voted)
    plain = "".join(result.units) if scored_by_character(language) else speakable(voted, language)
    return next(same, plain)


def samples(rows: Sequence[Row], out: Path, max_joined_s: float, repair: Repair | None) -> Iterator[Row]:
    """Yield the rows of a manifest: what was kept, joined to long samples and repaired where that is asked for."""
    for group in neighbours(rows, max_joined_s):
        language = group[0]["language"]
        texts = [row["text"] for row in group]
        if repair:
            texts = repair(texts, language)
        space = "" if scored_by_character(language) else " "
        row = group[0] if len(group) == 1 else joined(group, out)
        yield {**row, "text": space.join(texts)}


def neighbours(rows: Sequence[Row], max_joined_s: float) -> Iterator[list[Row]]:
    """Group kept pieces that follow one another in a recording, up to a length; alone where none is to be joined."""
    group: list[Row] = []
    for row in rows:
        if group and not (group[-1]["outcome"] == row["outcome"] == "kept" and _fits(group, row, max_joined_s)):
            if group[0]["outcome"] == "kept":
                yield group
            group = []
        group.append(row)
    if group and group[0]["outcome"] == "kept":
        yield group


def _fits(group: Sequence[Row], row: Row, max_joined_s: float) -> bool:
    """Say whether a piece goes on where a group ends."""
    first = group[0]
    same = (first["recording"], first["language"]) == (row["recording"], row["language"])
    return same and row["start_s"] + row["duration"] - first["start_s"] <= max_joined_s


def joined(group: Sequence[Row], out: Path) -> Row:
    """Make one sample of neighbouring pieces, with the pauses that are between them in the recording."""
    first, last = group[0], group[-1]
    end_s = last["start_s"] + last["duration"]
    name = f"{first['id']}-{round(1000 * end_s):08d}"
    path = cut_path(out.resolve() / "audio", name)
    write_audio(path, read_stretch(first["recording"], first["start_s"], end_s), LISTEN_HZ)
    heard = {name: " ".join(row["heard"][name] for row in group) for name in first["heard"]}
    worst = max(row["disagreement"] for row in group)
    place = {"id": name, "audio": str(path), "duration": round(end_s - first["start_s"], 3)}
    return {**first, **place, "heard": heard, "disagreement": worst}


def read_rows(path: Path) -> list[Row]:
    """Read JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def label(rows: list[Row], folder: Path, model: Any) -> Iterator[Row]:
    """Yield the rows whose clip one teacher heard clearly, with its transcript as their text."""
    for row in track(rows, description="labelling"):
        segments, _ = model.transcribe(str(folder / row["audio"]), language=row["language"], beam_size=5)
        segments = list(segments)
        if segments and all(map(is_sure, segments)):
            text = " ".join(segment.text.strip() for segment in segments)
            logprob = min(segment.avg_logprob for segment in segments)
            yield {**row, "text": text, "text_source": "faster-whisper", "logprob": round(logprob, 3)}


def main() -> None:
    """Label the clips of a manifest that have no text, by one teacher."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=existing)
    parser.add_argument("--model", default="base", help="a faster-whisper model: its name, or a CTranslate2 folder")
    parser.add_argument("--out", type=Path, required=True, help="the labelled manifest.jsonl")
    parser.add_argument("--split", default="train")
    parser.add_argument(
        "--relabel", action="store_true", help="label clips that have a text too, to have it written out"
    )
    options = parser.parse_args()
    teacher = open_whisper(options.model)
    rows = [row for row in read_rows(options.manifest) if row["split"] == options.split]
    rows = [row for row in rows if options.relabel or not row["text"]]
    folder = options.manifest.parent.resolve()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", encoding="utf-8") as out:
        for row in label(rows, folder, teacher):
            out.write(json.dumps({**row, "audio": str(folder / row["audio"])}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
