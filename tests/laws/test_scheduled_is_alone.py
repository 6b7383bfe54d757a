"""A law: what a request is answered in the company of any others is what it is answered alone.

Requests of three kinds, transcripts with drafts and biases, text that is drawn by a seed, and codes, arrive at any
step, are cancelled at any other, and take slots that others have left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tristep.backbone.model import Backbone
from tristep.backbone.precision import MANY_TOKENS, Int8Linear, Kind, compute_in_few_bits, four_bits
from tristep.backbone.transformer import FEW_TOKENS
from tristep.config import load_backbone_config
from tristep.engine.drafting import Hypothesis, PassCosts, RowSources
from tristep.engine.reciting import Sampling, recite
from tristep.engine.sampling import Completion, greedy, penalties
from tristep.engine.scheduler import Request, Scheduler
from tristep.engine.writers import MOST_READ, CodeWriter, DrawingWriter, TextWriter, Writer
from tristep.modes.asr.decoding import Constraint, repetition_start
from tristep.modes.tts.decoding import Recital
from tristep.vocab import byte_tokenizer

FREE = PassCosts(token=0.0)
LONG_WORD = ["an", "unusually", "longwindedandneverendingword", "it", "is"]


class Letters(Constraint):
    """Plain letters only, so that what a toy of bytes writes is a text that can be guessed."""

    def body(self, num_tokens: int) -> Tensor:
        letters = torch.zeros(num_tokens, dtype=torch.bool)
        letters[byte_tokenizer().encode(" abcdefghijklmnopqrstuvwxyz")] = True
        letters[self.vocab.control("turn_end")] = True
        return super().body(num_tokens) & letters


@dataclass(frozen=True)
class Asked:
    """What one client asks, and when."""

    kind: str
    length: int
    num_sounds: int
    seed: int
    arrives: int
    stays: int | None
    """Steps after which the client leaves, if it does."""


@st.composite
def asked(draw: st.DrawFn) -> Asked:
    length = draw(st.sampled_from([1, 5, 31, 32, 33, 128, 150]))
    return Asked(
        kind=draw(st.sampled_from(["text", "guessed", "biased", "drawn", "codes"])),
        length=length,
        num_sounds=draw(st.integers(0, length)),
        seed=draw(st.integers(0, 10_000)),
        arrives=draw(st.integers(0, 25)),
        stays=draw(st.sampled_from([None, None, None, 0, 3, 11])),
    )


CLIENTS = st.lists(asked(), min_size=1, max_size=6)


@cache
def toy(kind: Kind | None, num_heads: int = 0) -> Backbone:
    """A toy whose answers depend on what it reads, and whose draft heads are copies that are sometimes right."""
    torch.manual_seed(0)
    backbone = Backbone(load_backbone_config("toy"))
    backbone.grow_vocabulary(32)
    torch.nn.init.normal_(backbone.embedding.grown, std=0.5)
    for parameter in backbone.decoder.parameters():
        parameter.data *= 2
    if num_heads:
        backbone.add_draft_heads(num_heads)
    if kind is not None:
        compute_in_few_bits(backbone, kind)
    return backbone.eval().requires_grad_(False)


def prompt_of(client: Asked, backbone: Backbone) -> tuple[list[int], Tensor]:
    """Make up a prompt, which begins with sound."""
    generator = torch.Generator().manual_seed(client.seed)
    tokens = torch.randint(0, 256, (client.length,), generator=generator)
    tokens[: client.num_sounds] = backbone.vocab.control("audio_slot")
    dim = backbone.config.decoder.dim
    return tokens.tolist(), torch.randn(client.num_sounds, dim, generator=generator) * 0.02


def favour_what_was_written(written: Sequence[int], logits: Tensor) -> dict[int, float]:
    return {written[-1]: 1.0, 97 + len(written) % 20: 2.0} if written else {}


def text_row(client: Asked) -> Completion:
    bias = favour_what_was_written if client.kind == "biased" else None
    return Completion(1 + client.seed % 30, bias=bias)


def text_writer(client: Asked, backbone: Backbone) -> TextWriter:
    opening, body = penalties(backbone, Letters(backbone.vocab, "en"))
    if client.kind == "drawn":
        generator = torch.Generator().manual_seed(client.seed)
        return DrawingWriter(text_row(client), opening, body, repetition_start, generator=generator)
    hypothesis = None
    if client.kind == "guessed":  # some letters right, some wrong
        letters = [97 if place % 5 == 4 else token for place, token in enumerate(plain(client, backbone)[1:])]
        hypothesis = Hypothesis(byte_tokenizer().decode(letters), backbone.vocab, byte_tokenizer())
    return TextWriter(text_row(client), opening, body, repetition_start, RowSources(hypothesis))


def recital_of(client: Asked, backbone: Backbone) -> Recital:
    words = LONG_WORD[: 1 + client.seed % len(LONG_WORD)]
    return Recital.of(words, backbone.vocab, byte_tokenizer(), code_rate_hz=1.0)


def request_of(client: Asked, backbone: Backbone) -> Request:
    prompt, sounds = prompt_of(client, backbone)
    writer: Writer
    if client.kind == "codes":
        generator = torch.Generator().manual_seed(client.seed)
        writer = CodeWriter(recital_of(client, backbone), Sampling(), generator)
    else:
        writer = text_writer(client, backbone)
    return Request(prompt, writer, sounds)


def plain(client: Asked, backbone: Backbone) -> list[int]:
    """Write a transcript in the ordinary way."""
    prompt, sounds = prompt_of(client, backbone)
    row = text_row(client)
    constraint = Letters(backbone.vocab, "en")
    greedy(backbone, [prompt], sounds, constraint, [row.budget], repetition_start, [row])
    return row.tokens


def answer(request: Request) -> list[int]:
    """Return what has been written."""
    writer = request.writer
    if isinstance(writer, CodeWriter):
        return said(writer.recital)
    assert isinstance(writer, TextWriter)
    return writer.row.tokens


def said(recital: Recital) -> list[int]:
    return [*recital.manner.values(), *recital.starts, *recital.codes]


def served_alone(client: Asked, backbone: Backbone) -> Request:
    scheduler, request = Scheduler(backbone, num_slots=1), request_of(client, backbone)
    scheduler.submit(request)
    scheduler.finish(request)
    return request


def alone(client: Asked, backbone: Backbone) -> list[int]:
    return answer(served_alone(client, backbone))


def together(clients: list[Asked], backbone: Backbone, num_slots: int) -> list[Request]:
    """Answer everybody in one scheduler."""
    scheduler = Scheduler(backbone, num_slots, costs=FREE)
    requests = [request_of(client, backbone) for client in clients]
    for step in range(10_000):
        for client, request in zip(clients, requests, strict=True):
            if step == client.arrives:
                scheduler.submit(request)
            if client.stays is not None and step == client.arrives + client.stays:
                request.is_cancelled = True
        scheduler.step()
        if step > 40 and scheduler.is_idle:
            return requests
    raise AssertionError("the scheduler never came to an end")


@settings(max_examples=15, deadline=None)
@given(CLIENTS, st.integers(1, 4))
@pytest.mark.parametrize("kind", [None, Int8Linear, four_bits], ids=["float32", "int8", "int4"])
@pytest.mark.parametrize("num_heads", [0, 3])
def test_whoever_comes_and_goes_everybody_is_answered_as_if_alone(
    num_heads: int, kind: Kind | None, clients: list[Asked], num_slots: int
) -> None:
    assert min(MANY_TOKENS, FEW_TOKENS) > MOST_READ  # a row is computed alike in passes of any such width
    backbone = toy(kind, num_heads)
    for client, request in zip(clients, together(clients, backbone, num_slots), strict=True):
        expected = served_alone(client, toy(kind))  # without heads
        if request.is_cancelled:
            assert_begins(expected, request)
            continue
        assert request.writer.is_done
        assert answer(request) == answer(expected)
        if isinstance(request.writer, TextWriter) and isinstance(expected.writer, TextWriter):
            assert request.writer.row.finish_reason == expected.writer.row.finish_reason
            torch.testing.assert_close(request.writer.row.probs, expected.writer.row.probs, atol=1e-4, rtol=1e-3)


def assert_begins(whole: Request, part: Request) -> None:
    """Check what was written before a client left; a loop may not have been noticed yet, and be longer for it."""
    if isinstance(part.writer, CodeWriter) and isinstance(whole.writer, CodeWriter):
        written, expected = part.writer.recital.codes, whole.writer.recital.codes
    else:
        written, expected = answer(part), answer(whole)
    num = min(len(written), len(expected))
    assert written[:num] == expected[:num]


@settings(max_examples=15, deadline=None)
@given(asked())
@pytest.mark.parametrize("kind", [None, Int8Linear, four_bits], ids=["float32", "int8", "int4"])
def test_alone_a_transcript_is_what_plain_greedy_decoding_writes(kind: Kind | None, client: Asked) -> None:
    client = replace(client, kind="guessed")
    assert alone(client, toy(kind)) == plain(client, toy(kind))


@settings(max_examples=10, deadline=None)
@given(asked())
def test_alone_codes_are_what_a_plain_recital_speaks(client: Asked) -> None:
    client, recital = replace(client, kind="codes", num_sounds=0), recital_of(client, toy(None))
    prompt, _ = prompt_of(client, toy(None))
    for _ in recite(toy(None), [prompt], [recital], [client.seed], Sampling()):
        pass
    assert alone(client, toy(None)) == said(recital)
