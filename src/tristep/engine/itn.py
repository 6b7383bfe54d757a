"""Inverse text normalisation: "twenty three dollars" becomes "$23".

The rules are WeTextProcessing's, through `wetext`: small transducers without a compiler or a model (NVIDIA's
`nemo_text_processing` has more languages, and needs pynini and most of NeMo). They know only what is spoken, and no
capitals: so they are for the spoken style, and whatever else a model writes is left as it is.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wetext import Normalizer

ITN_LANGUAGES = ("en", "ja", "zh")
"""Languages that have rules."""
_PLAIN = {
    "en": re.compile(r"(?<!\S)[a-z']+(?:\s+[a-z']+)*(?!\S)"),
    "ja": re.compile(r"[\u3005-\u30ff\u4e00-\u9fff]+"),
    "zh": re.compile(r"[\u3007\u4e00-\u9fff]+"),
}
"""What the rules of each language can read; other characters would make them fail."""


def inverse_normalised(text: str, language: str | None) -> str:
    """Write the numbers, dates, times and amounts of a spoken text in digits; one without rules stays as it is."""
    if language not in ITN_LANGUAGES:
        return text
    return _PLAIN[language].sub(lambda words: _rules(language).normalize(words[0]), text)


def check_itn(language: str | None, style: str) -> None:
    """Refuse inverse text normalisation where there is none."""
    if language is not None and language not in ITN_LANGUAGES:
        raise ValueError(f"itn has no rules for {language!r}: expected one of {', '.join(ITN_LANGUAGES)}; leave it out")
    if style != "spoken":
        raise ValueError(f"itn rewrites what is written as it is spoken, the style is {style!r}: ask for 'spoken'")
    if find_spec("wetext") is None:
        raise ValueError("itn needs wetext, which is not installed: run pip install 'tristep[itn]'")


@cache
def _rules(language: str) -> Normalizer:
    """Load the rules of a language once."""
    from wetext import Normalizer

    return Normalizer(lang=language, operator="itn")
