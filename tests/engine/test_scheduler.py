from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import pytest
import torch
from torch import Tensor

from tristep.backbone.model import Backbone
from tristep.config import load_backbone_config
from tristep.engine.drafting import MOST_DRAFTED_ROWS, Hypothesis, PassCosts, RowSources
from tristep.engine.engine import Engine
from tristep.engine.reciting import Sampling
from tristep.engine.sampling import PROMPT_CHUNK, Completion, penalties
from tristep.engine.scheduler import BusyError, Request, Scheduler
from tristep.engine.segments import Stretch
from tristep.engine.settings import Settings
from tristep.engine.writers import DrawingWriter, TextWriter
from tristep.modes.asr.decoding import Constraint
from tristep.vocab import byte_tokenizer

FREE, DEAR = PassCosts(token=0.0), PassCosts(token=9.0)


class Endless(Constraint):
    """Letters only, so that an answer takes its whole budget."""

    def opening(self, num_tokens: int) -> Tensor:
        return self._only([self.vocab.control("lang_en")], num_tokens)

    def body(self, num_tokens: int) -> Tensor:
        letters = torch.zeros(num_tokens, dtype=torch.bool)
        letters[byte_tokenizer().encode(" abcdefghijklmnopqrstuvwxyz")] = True
        return letters


@cache
def toy(num_heads: int = 0) -> Backbone:
    torch.manual_seed(0)
    backbone = Backbone(load_backbone_config("toy"))
    for parameter in backbone.decoder.parameters():
        parameter.data *= 2
    if num_heads:
        backbone.add_draft_heads(num_heads)
    return backbone.eval().requires_grad_(False)


def request(length: int = 5, budget: int = 20, seed: int = 0, guess: str | None = None) -> Request:
    opening, body = penalties(toy(), Endless(toy().vocab))
    sources = RowSources(Hypothesis(guess, toy().vocab, byte_tokenizer()) if guess else None)
    prompt = torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Request(prompt, TextWriter(Completion(budget), opening, body, lambda tokens: None, sources))


def written(asked: Request) -> list[int]:
    assert isinstance(asked.writer, TextWriter)
    return asked.writer.row.tokens


def run(scheduler: Scheduler) -> int:
    """Take steps until nobody is left; return how many."""
    num_steps = 0
    while not scheduler.is_idle:
        scheduler.step()
        num_steps += 1
    return num_steps


def test_requests_share_their_passes() -> None:
    scheduler = Scheduler(toy(), num_slots=4)
    requests = [request(seed=seed, budget=30) for seed in range(4)]
    for each in requests:
        scheduler.submit(each)
    assert run(scheduler) < sum(len(written(each)) for each in requests) / 2
    assert all(each.writer.is_done for each in requests)


def test_a_long_prompt_is_read_while_others_write() -> None:
    scheduler, short, long = Scheduler(toy(), num_slots=2), request(budget=40), request(length=3 * PROMPT_CHUNK)
    scheduler.submit(short)
    scheduler.submit(long)
    scheduler.step()
    lengths = []
    while scheduler.reading or scheduler.waiting:
        scheduler.step()
        lengths.append(len(written(short)))
    assert len(lengths) == 3
    assert lengths == sorted(set(lengths))
    assert written(long)


def test_nobody_has_a_slot_beyond_those_there_are() -> None:
    scheduler = Scheduler(toy(), num_slots=2)
    for seed in range(5):
        scheduler.submit(request(seed=seed))
    while not scheduler.is_idle:
        scheduler.step()
        assert len(scheduler.writing) <= 2
        assert len(scheduler.writing) == scheduler.slots.num_used


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    scheduler = Scheduler(toy(), num_slots=1, max_waiting=2)
    first, refused = request(), request()
    scheduler.submit(first, request())
    with pytest.raises(BusyError, match="2 requests wait already: try again in 1 s") as refusal:
        scheduler.submit(refused)
    assert refusal.value.retry_after_s == 1
    scheduler.step()
    scheduler.submit(refused)  # there is room again
    scheduler.finish(refused)
    assert written(refused) == written(first)


def test_many_parts_of_one_recording_do_not_keep_another_waiting() -> None:
    scheduler, parts, short = (
        Scheduler(toy(), num_slots=3),
        [request(seed=seed) for seed in range(6)],
        request(budget=2),
    )
    scheduler.submit(*parts)
    scheduler.submit(short)
    while not short.writer.is_done:
        scheduler.step()
    assert sum(part.writer.is_done for part in parts) == 0


def test_a_client_who_leaves_frees_the_slot_at_the_next_step() -> None:
    scheduler, first, second = Scheduler(toy(), num_slots=1), request(budget=60), request(seed=1)
    scheduler.submit(first)
    scheduler.submit(second)
    scheduler.step()
    assert scheduler.writing == [first]
    first.is_cancelled = True
    scheduler.step()
    assert scheduler.writing == [second]


@pytest.mark.parametrize("steps", [0, 1, 2], ids=["waiting", "reading", "writing"])
def test_a_cancelled_request_leaves_from_wherever_it_is(steps: int) -> None:
    scheduler, leaving = Scheduler(toy()), request(length=PROMPT_CHUNK + 1, budget=60)
    scheduler.submit(leaving)
    for _ in range(steps):
        scheduler.step()
    leaving.is_cancelled = True
    scheduler.step()
    assert scheduler.is_idle
    assert not leaving.writer.is_done


def test_who_stops_listening_cancels() -> None:
    scheduler, heard = Scheduler(toy()), request(budget=60)
    scheduler.submit(heard)
    steps = scheduler.follow(heard)
    next(steps)
    steps.close()
    assert heard.is_cancelled
    scheduler.step()
    assert scheduler.is_idle


def test_threads_take_the_steps_in_turn() -> None:
    scheduler = Scheduler(toy(), num_slots=3)

    def ask(seed: int) -> list[int]:
        asked = request(seed=seed, length=1 + seed, budget=12)
        scheduler.submit(asked)
        scheduler.finish(asked)
        return written(asked)

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(ask, range(10)))
    assert together == [ask(seed) for seed in range(10)]


def test_what_breaks_a_step_fails_those_in_it_and_nobody_after_them() -> None:
    def broken(tokens: object) -> int | None:
        raise ArithmeticError("the loop finder broke")

    scheduler, victim, later = Scheduler(toy(), num_slots=1), request(), request(seed=1)
    assert isinstance(victim.writer, TextWriter)
    victim.writer.find_loop = broken
    scheduler.submit(victim)
    scheduler.submit(later)
    with pytest.raises(ArithmeticError, match="the loop finder broke"):
        scheduler.finish(victim)
    scheduler.finish(later)
    assert later.writer.is_done


@pytest.mark.parametrize(
    ("length", "budget", "message"),
    [(0, 5, "a prompt of 0 tokens"), (5, 0, "with room for 0"), (5, 100_000, "may take 100005 tokens")],
)
def test_what_can_not_be_answered_is_refused_at_once(length: int, budget: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scheduler(toy()).submit(request(length, budget))


def test_sound_without_its_slots_is_refused_at_once() -> None:
    asked = request()
    asked.audio_embeddings = torch.zeros(3, toy().config.decoder.dim)
    with pytest.raises(ValueError, match="0 audio slots, got 3"):
        Scheduler(toy()).submit(asked)


@pytest.mark.parametrize("num_writing", [MOST_DRAFTED_ROWS, MOST_DRAFTED_ROWS + 1])
def test_guesses_are_used_while_few_write(num_writing: int) -> None:
    plain, scheduler = request(budget=60), Scheduler(toy(), num_slots=4, costs=FREE)
    scheduler.submit(plain)
    scheduler.finish(plain)
    right = byte_tokenizer().decode(written(plain)[1:])
    requests = [request(budget=60, guess=right) for _ in range(num_writing)]
    for each in requests:
        scheduler.submit(each)
    while sum(each.writer.given != [] for each in requests) < num_writing:
        scheduler.step()
    before = [len(written(each)) for each in requests]
    scheduler.step()
    gained = [len(written(each)) - num for each, num in zip(requests, before, strict=True)]
    assert (min(gained) > 1) == (num_writing <= MOST_DRAFTED_ROWS)
    run(scheduler)
    assert all(written(each) == written(plain) for each in requests)


@torch.inference_mode()
def test_draft_heads_guess_after_a_move_to_another_slot_what_they_would_have_guessed() -> None:
    guesses, backbone = [], toy(3)
    for company in ([], [request(budget=4)]):
        asked, scheduler = request(length=40, budget=60), Scheduler(backbone, num_slots=2, costs=DEAR)
        scheduler.submit(*company)
        scheduler.submit(asked)
        while len(written(asked)) < 20:
            scheduler.step()
        scheduler.release()
        assert scheduler.writing == [asked]
        assert scheduler.slots.heads is not None
        lengths = scheduler.slots.lengths
        guesses.append(scheduler.slots.heads.guess(lengths, lengths.new_tensor(asked.writer.given), 3).tolist())
    assert guesses[0] == guesses[1]


def test_a_seed_repeats_and_another_differs() -> None:
    def drawn(seed: int) -> list[int]:
        opening, body = penalties(toy(), Endless(toy().vocab))
        generator = torch.Generator().manual_seed(seed)
        row, sampling = Completion(20), Sampling(temperature=2.0)
        writer = DrawingWriter(row, opening, body, lambda tokens: None, sampling=sampling, generator=generator)
        scheduler, asked = Scheduler(toy()), Request([1, 2, 3], writer)
        scheduler.submit(asked)
        scheduler.finish(asked)
        return row.tokens

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_the_cache_grows_with_what_is_asked_and_not_with_how_often() -> None:
    scheduler = Scheduler(toy(), num_slots=2)
    sizes = []
    for length in (5, 5, 300, 300, 5):
        asked = request(length)
        scheduler.submit(asked)
        scheduler.finish(asked)
        sizes.append(scheduler.slots.cache.keys.shape[3])
    assert sizes[0] == sizes[1] < sizes[2] == sizes[3] == sizes[4]


def test_what_several_threads_transcribe_is_what_one_transcribes() -> None:
    engine = Engine(toy(), byte_tokenizer())
    tones = [torch.sin(torch.arange(8000 * num) * 0.05 * num) for num in range(1, 5)]
    alone = [engine.transcribe_stretches([Stretch(0.0, tone)], Settings())[0][0] for tone in tones]
    shared = engine.sharing(num_slots=2)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda tone: shared.transcribe_stretches([Stretch(0.0, tone)], Settings()), tones))
    assert shared.scheduler is not None
    assert shared.scheduler.slots.cache.keys.shape[3] > 0  # it was asked
    for [(segment, _)], expected in zip(together, alone, strict=True):
        assert segment.text == expected.text
        assert segment.confidence == pytest.approx(expected.confidence, abs=1e-4)


def test_a_shared_engine_goes_on_from_what_was_begun() -> None:
    engine, speech = Engine(toy(), byte_tokenizer()), Stretch(0.0, torch.sin(torch.arange(40_000) * 0.3))
    [(_, whole)] = engine.transcribe_stretches([speech], Settings())
    begun = Completion(0, whole.tokens[:1], whole.probs[:1])
    [(_, plain)] = engine.transcribe_stretches([speech], Settings(), begun=[begun])
    [(_, shared)] = engine.sharing().transcribe_stretches([speech], Settings(), begun=[begun])
    assert shared.tokens == plain.tokens
