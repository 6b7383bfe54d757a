"""One id space for text, audio codes and control tokens: the only place that knows an offset.

A *token* is an index into the shared vocabulary; a *code* is an index into the codec's codebook. The text
tokenizer's ids come first and are kept as they are, control tokens and codes are appended to them, so a
pretrained text model reads its own tokens unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer

from tristep.config import VocabConfig

LANGUAGES = (
    "en", "zh", "de", "es", "ru", "ko", "fr", "ja", "pt", "tr", "pl", "ca", "nl", "ar", "sv", "it", "id", "hi", "fi",
    "vi", "he", "uk", "el", "ms", "cs", "ro", "da", "hu", "ta", "no", "th", "ur", "hr", "bg", "lt", "la", "mi", "ml",
    "cy", "sk", "te", "fa", "lv", "bn", "sr", "az", "sl", "kn", "et", "mk", "br", "eu", "is", "hy", "ne", "mn", "bs",
    "kk", "sq", "sw", "gl", "mr", "pa", "si", "km", "sn", "yo", "so", "af", "oc", "ka", "be", "tg", "sd", "gu", "am",
    "yi", "lo", "uz", "fo", "ht", "ps", "tk", "nn", "mt", "sa", "lb", "my", "bo", "tl", "mg", "as", "tt", "haw", "ln",
    "ha", "ba", "jw", "su", "yue",
)  # fmt: skip
"""Whisper's languages: each has a tag that opens its transcript."""

CONTROL = (
    *("turn_start", "turn_end", "audio_start", "audio_end", "audio_slot", "tts_start", "tts_end", "tts_pad"),
    *("think_start", "think_end", "nospeech"),
    *(f"lang_{language}" for language in LANGUAGES),
    *(f"{feature}_{degree}" for feature in ("pace", "pitch", "volume") for degree in range(1, 6)),
    *(f"pauses_{degree}" for degree in (3, 4)),
)
NUM_CONTROL_ROWS = 128
"""Rows kept for control tokens in the `plain` and `chatml` layouts, so that new ones don't move the codes."""

PLACED: dict[str, dict[str, int]] = {
    "plain": {},
    "chatml": {"turn_start": 1, "turn_end": 2},
    "step-audio-2": {
        **{"turn_end": 151665, "turn_start": 151666, "think_start": 151669, "think_end": 151670},
        **{"audio_start": 151688, "audio_end": 151689, "audio_slot": 151690},
        **{"tts_start": 151693, "tts_end": 151694, "tts_pad": 151695},
    },
}
"""Control tokens that a pretrained model already has, per layout: SmolLM2's chat marks, report section 8.5."""

STEP_AUDIO_2_CONTROLS = range(151665, 151696)
"""All that is neither text nor sound there, tokens that we have no name for included."""
STEP_AUDIO_2_FIRST_CODE = 151696

Region = Literal["text", "control", "code"]


@dataclass(frozen=True)
class Vocab:
    """The shared id space of one backbone."""

    config: VocabConfig
    controls: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        placed = PLACED[self.config.layout]
        if self.config.layout == "step-audio-2":
            controls = placed
        else:
            appended = (name for name in CONTROL if name not in placed)
            controls = placed | {name: self.config.num_text + row for row, name in enumerate(appended)}
        object.__setattr__(self, "controls", controls)

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """All that is neither text nor sound, tokens without a name included."""
        unnamed = STEP_AUDIO_2_CONTROLS if self.config.layout == "step-audio-2" else ()
        return frozenset(self.controls.values()).union(unnamed)

    @property
    def first_code(self) -> int:
        """The token of code 0."""
        if self.config.layout == "step-audio-2":
            return STEP_AUDIO_2_FIRST_CODE
        return self.config.num_text + NUM_CONTROL_ROWS

    @property
    def size(self) -> int:
        """Number of ids."""
        return self.first_code + self.config.num_codes

    def control(self, name: str) -> int:
        """Return the token of a control name such as `audio_slot` or `lang_en`."""
        if name not in self.controls:
            raise ValueError(
                f"the {self.config.layout!r} vocabulary has no control token {name!r}: "
                f"it has {', '.join(sorted(self.controls)[:12])}, ..."
            )
        return self.controls[name]

    def language_of(self, token: int) -> str | None:
        """Return the language that a tag names, None if the token is not a language tag."""
        return self._languages.get(token)

    @cached_property
    def _languages(self) -> dict[int, str]:
        tags = ((name.removeprefix("lang_"), token) for name, token in self.controls.items() if name[:5] == "lang_")
        return {token: language for language, token in tags}

    def code_token(self, code: int) -> int:
        """Shift a codebook index into the vocabulary."""
        if not 0 <= code < self.config.num_codes:
            raise ValueError(f"code {code} is outside the codebook of {self.config.num_codes} entries")
        return self.first_code + code

    def token_code(self, token: int) -> int:
        """Shift a token back to its codebook index; the inverse of `code_token`."""
        if self.region(token) != "code":
            raise ValueError(f"token {token} is {self.region(token)}, not an audio code")
        return token - self.first_code

    def region(self, token: int) -> Region:
        """Say whether a token is text, control or an audio code."""
        if not 0 <= token < self.size:
            raise ValueError(f"token {token} is outside the vocabulary of {self.size}")
        if token >= self.first_code:
            return "code"
        return "control" if token in self.control_ids or token >= self.config.num_text else "text"


class TextTokenizer:
    """Text to ids and back. Control tokens that a user types stay plain text, they never become control."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        tokenizer.encode_special_tokens = True

    @classmethod
    def read(cls, path: str | Path) -> TextTokenizer:
        """Read a Hugging Face `tokenizer.json`."""
        return cls(Tokenizer.from_file(str(path)))

    def encode(self, text: str) -> list[int]:
        """Turn text into ids, without any token added at its ends."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: Iterable[int]) -> str:
        """Turn ids back into text; control tokens are not text and leave no trace."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))


def byte_tokenizer() -> TextTokenizer:
    """Build the toy's tokenizer: one id per byte, 256 in all."""
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return TextTokenizer(tokenizer)
