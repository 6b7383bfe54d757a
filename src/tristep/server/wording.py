"""What becomes of a text before it is spoken, where a client asks for that."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Annotated

from markdown_it import MarkdownIt
from markdown_it.token import Token
from pydantic import BaseModel, Field

from tristep.text import Text, join_parts, split_cues

MAX_READINGS = 200


class PronunciationMap(BaseModel):
    """How words are to be read, as StepFun writes it."""

    tone: list[Annotated[str, Field(pattern=r"^[^/]*[^/\s][^/]*/[^/]*[^/\s][^/]*$", max_length=200)]] = Field(
        default=[], max_length=MAX_READINGS
    )
    """Each a word, a stroke, and the words that are read instead, such as `GIF/jiff`."""

    def read(self, text: str) -> str:
        """Write the readings into a text; a word is found whole, in capitals or not, the longest first."""
        pairs = (entry.split("/") for entry in self.tone)
        readings = {word.strip().casefold(): reading.strip() for word, reading in pairs}
        if not readings:
            return text
        words = "|".join(map(re.escape, sorted(readings, key=len, reverse=True)))
        return re.sub(rf"(?<!\w)(?:{words})(?!\w)", lambda found: readings[found[0].casefold()], text, flags=re.I)


def without_directions(text: str) -> str:
    """Open the brackets of directions, so that they are spoken like all the rest."""
    return join_parts(Text(part.text) for part in split_cues(text))


def without_markdown(text: str) -> str:
    """Leave of Markdown what is read aloud: a line for each paragraph, heading, entry and cell; no code blocks."""
    tokens = MarkdownIt().enable(["table", "strikethrough"]).parse(text)
    return "\n".join("".join(plain(token.children or [])) for token in tokens if token.type == "inline")


def plain(tokens: Iterable[Token]) -> Iterator[str]:
    """Yield what is read of a paragraph; of a link its words, of a picture what it shows."""
    for token in tokens:
        yield " " if token.type in ("softbreak", "hardbreak") else "" if token.type == "html_inline" else token.content
