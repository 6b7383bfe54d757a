"""Serve a toy that answers by rules, so that a client's tools, texts and interruptions can be tried in seconds.

All that the server does is real, and so are the toy's ears and its voice, which have learnt nothing: it hears the same
words in every sound. What it answers is settled by what it has read, by the first of these rules that fits:

    there are tools, none was used   it calls the first one, for Oslo
    a tool has answered              The tool says: {its answer}
    ... story ...                    a long story
    ... first ...                    First you said: {what the user said first}
    ... you said ...                 I said: {the last answer, as far as it is remembered}
    anything else                    You said: {what the user said last}
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from tristep.backbone.checkpoints import load_backbone
from tristep.backbone.transformer import KVCache
from tristep.engine.conversing import Thinker
from tristep.engine.engine import Engine
from tristep.engine.talking import Talker
from tristep.modes.realtime.decoding import call_text
from tristep.server.app import build_server, listen, serve
from tristep.server.jobs import EngineJobs
from tristep.server.service import Service
from tristep.server.settings import Settings
from tristep.server.worker import Answer, Worker

TESTS = Path(__file__).parents[1] / "tests"
STORY = "".join(f"On day {day} nothing happened. " for day in range(1, 10))
ARGUMENTS = '{"city": "Oslo"}'
SURE = 1e4
"""Added to the score of the token that comes next."""
ROOM = 4096
"""Positions of a cache, from the start: it is never exchanged for a larger one."""


class Ruled(Thinker):
    """A thinker that says what the rules want."""

    def __init__(self, folder: str) -> None:
        super().__init__(*load_backbone(folder, mode="asr"))
        new_cache = self.backbone.new_cache
        self.backbone.new_cache = lambda num_rows, num_positions: new_cache(num_rows, max(ROOM, num_positions))
        self.held: dict[int, list[int]] = {}
        """The tokens that each cache holds."""

    def read(self, tokens: Sequence[int], cache: KVCache) -> Tensor:
        """Read tokens; return the logits after the last of them, shape `(V,)`."""
        held = self.held.get(id(cache), [])[: int(cache.lengths[0])]
        self.held[id(cache)] = [*held, *tokens]
        logits = super().read(tokens, cache).clone()
        logits[self.next_token(self.held[id(cache)])] += SURE
        return logits

    def next_token(self, held: Sequence[int]) -> int:
        """Return the token that comes next, which means nothing before the assistant's turn has begun."""
        *turns, (_, written) = self.turns(held)
        answer = [*self.chat.tokenizer.encode(ruled(turns)), self.backbone.vocab.control("turn_end")]
        return answer[min(len(self.chat.tokenizer.encode(written)), len(answer) - 1)]

    def turns(self, held: Sequence[int]) -> list[tuple[str, str]]:
        """Return the role and the text of each turn."""
        starts = [place for place, token in enumerate(held) if token == self.backbone.vocab.control("turn_start")]
        num_text = self.backbone.vocab.config.num_text
        texts = [
            self.chat.tokenizer.decode(token for token in held[start:end] if token < num_text)
            for start, end in pairwise([*starts, len(held)])
        ]
        return [(role, said) for role, _, said in (text.partition("\n") for text in texts)]


def ruled(turns: Sequence[tuple[str, str]]) -> str:
    """Return the answer to a conversation, given as roles and what they said."""
    said = {role: [text for speaker, text in turns if speaker == role] for role, _ in turns}
    role, last = turns[-1] if turns else ("", "")
    if "tools" in said and "tool" not in said:
        return call_text(said["tools"][0].partition('"name": "')[2].partition('"')[0], ARGUMENTS)
    if role == "tool":
        return f"The tool says: {last}"
    if "story" in last:
        return STORY
    if "first" in last:
        return f"First you said: {said['user'][0]}"
    if "you said" in last:
        return f"I said: {said.get('assistant', [''])[-1]}"
    return f"You said: {last}"


def load(folder: str) -> Answer:
    """Start the engine's process."""
    backbone, tokenizer = load_backbone(folder, mode="asr")
    return EngineJobs(Engine(backbone, tokenizer, partial(Talker.load, folder), partial(Ruled, folder)))


def announce(address: str) -> None:
    """Print where the API is."""
    print(f"serving on {address}/v1", flush=True)


def main() -> None:
    """Serve on a free port to the web pages that are named, and print the address."""
    sys.path.insert(0, str(TESTS))
    with TemporaryDirectory(prefix="tristep-toy-") as folder:
        import_module("server.toys").write_toy(Path(folder) / "toy")
        settings = Settings(
            model=f"{folder}/toy", port=0, threads=1, max_sessions=8, allow_origins=tuple(sys.argv[1:])
        )  # fmt: skip
        service = Service(settings)
        service.engine = Worker("engine", partial(load, settings.model), settings.num_parallel)
        with listen(settings) as listener:
            asyncio.run(serve(build_server(service), service, listener, announce))


if __name__ == "__main__":
    main()
