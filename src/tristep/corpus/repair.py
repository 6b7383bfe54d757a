"""Repair: a language model gives voted transcripts their capitals, punctuation and numbers back, and one spelling each.

Voting needs words without their looks, so what it returns has none. The report's last step (section 4.2) lets a
language model restore them, and write recurring terms the same way all through a session. Any endpoint that speaks
OpenAI's chat completions may be asked. It has not heard the sound: an answer whose words are not those that were voted
for, but for a few, is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from tristep.corpus.endpoint import ask
from tristep.corpus.vote import surface
from tristep.text import word_errors

MAX_CHANGE = 0.05
"""Share of words that a repair may change, which is what a misheard name or two take."""
PROMPT = (
    "You are given the consecutive parts of a speech transcript in lower case, and its language. Write them with "
    "punctuation and capitals, and numbers, dates and units as they are usually written. Where a name or a technical "
    "term recurs, write it the same way everywhere. Change, add or leave out no other word. Answer with a JSON object "
    "`texts`: the parts, as many as there were, in their order."
)


class _Answer(BaseModel):
    texts: list[str]


def repaired(texts: Sequence[str], language: str, client: Any, model: str) -> list[str]:
    """Ask a chat model to write the parts of one session as they are usually written.

    Args:
        texts: What was voted for, part after part.
        language: Their language.
        client: An `openai.OpenAI` client of any endpoint that speaks chat completions.
        model: The model's name at that endpoint.

    Returns:
        The parts. One whose words the model changed stays as it was, and all do if it did not answer as it was asked.
    """
    asked = {"language": language, "texts": list(texts)}
    try:
        answered = _Answer.model_validate_json(ask(client, model, PROMPT, asked)).texts
    except ValidationError:
        return list(texts)
    if len(answered) != len(texts):
        return list(texts)
    pairs = zip(texts, answered, strict=True)
    return [after if says_the_same(before, after, language) else before for before, after in pairs]


def says_the_same(before: str, after: str, language: str) -> bool:
    """Say whether a repair kept the words, up to `MAX_CHANGE` of them."""
    errors = word_errors(surface(before, language), surface(after, language))
    return errors.num_errors <= MAX_CHANGE * errors.num_units
