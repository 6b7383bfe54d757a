from __future__ import annotations

from itertools import groupby, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tristep.modes.asr.letters import MAX_LOSS, NUM_CANDIDATES, LetterBias, LetterPaths, loss_of
from tristep.text import LETTERS
from tristep.vocab import byte_tokenizer

TOKENIZER = byte_tokenizer()
BLANK = len(LETTERS)
TAG, END = 400, 300


def clip_that_says(frames: str, sureness: float = 8.0) -> Tensor:
    """Log-probabilities that are sure of one letter a frame; `_` is blank."""
    labels = torch.tensor([BLANK if letter == "_" else LETTERS.index(letter) for letter in frames])
    return (sureness * torch.nn.functional.one_hot(labels, BLANK + 1).float()).log_softmax(dim=-1)


def bias_of(frames: str) -> LetterBias:
    return LetterBias(LetterPaths(clip_that_says(frames)), TOKENIZER, END)


def logits_of(scores: dict[str | int, float]) -> Tensor:
    """Logits of some bytes, or of tokens by number; all others are out of the question."""
    logits = torch.full((500,), -50.0)
    for token, logit in scores.items():
        logits[TOKENIZER.encode(token)[0] if isinstance(token, str) else token] = logit
    return logits


def chosen(bias: LetterBias, written: str, scores: dict[str | int, float]) -> str | int:
    logits = logits_of(scores)
    for token, loss in bias([TAG, *TOKENIZER.encode(written)], logits).items():
        logits[token] += loss
    best = int(logits.argmax())
    return best if best == END else TOKENIZER.decode([best])


def cost_by_enumeration(logprobs: Tensor, before: list[int], letters: list[int]) -> float:
    """Try every labelling of every frame: slow, and obviously the definition."""
    num_frames, num_labels = logprobs.shape
    best = {}
    for name, prefix in (("free", before), ("spelt", before + letters)):
        scores = [
            float(sum(logprobs[frame, label] for frame, label in enumerate(path)))
            for path in product(range(num_labels), repeat=num_frames)
            for collapsed in [[label for label, _ in groupby(path) if label != num_labels - 1]]
            if collapsed[: len(prefix)] == prefix
        ]
        best[name] = max(scores)
    return best["free"] - best["spelt"]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), before=st.sampled_from([(), (1,), (1, 2), (1, 1)]), letter=st.integers(1, 2))
def test_the_cost_is_that_of_the_best_of_all_paths(seed: int, before: tuple[int, ...], letter: int) -> None:
    few = (2 * torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))).log_softmax(-1)
    paths = LetterPaths(torch.zeros(5, BLANK + 1))
    lost = few - few.amax(dim=1, keepdim=True)
    paths.sums = np.full((BLANK + 1, 6), -1e6)
    paths.sums[[0, 1, 2, -1]] = torch.cat([torch.zeros(1, 4, dtype=torch.float64), lost.cumsum(dim=0)]).T
    start = np.full(6, -1e9)
    nothing = start.copy()
    start[0] = 0.0
    paths.columns = {(): paths.anywhere._replace(letter=nothing, blank=np.maximum(start, paths.sums[-1]))}
    expected = cost_by_enumeration(few, list(before), [letter])
    assert paths.cost_next(before, (letter,)) == pytest.approx(expected, abs=1e-6)


def test_where_the_decoder_is_unsure_the_letters_decide() -> None:
    bias = bias_of("_sh_e_  _sa_w__")
    assert chosen(bias, "she s", {"a": 0.0, "o": 1.5}) == "a"
    assert chosen(bias, "she ", {"s": 0.0, "d": 2.0}) == "s"


def test_where_the_decoder_is_sure_it_decides() -> None:
    assert chosen(bias_of("_sh_e_  _sa_w__"), "she s", {"a": 0.0, "o": MAX_LOSS + 0.1}) == "o"


def test_none_but_a_candidate_is_chosen() -> None:
    unlikely = dict.fromkeys((chr(97 + letter) for letter in range(NUM_CANDIDATES)), 0.0)
    assert chosen(bias_of("_zz_z_"), "", unlikely | {"x": -0.1}) in unlikely


def test_a_transcript_ends_where_the_letters_end() -> None:
    bias = bias_of("_sh_e_  _sa_w__")
    assert chosen(bias, "she saw", {END: 0.0, "n": 2.0}) == END
    assert chosen(bias, "she s", {"a": 0.0, END: 2.0}) == "a"


def test_what_has_no_letters_loses_no_more_than_what_has() -> None:
    bias = bias_of("_sh_e_  _sa_w__")
    losses = bias([TAG, *TOKENIZER.encode("she ")], logits_of({",": 0.0, "d": 0.0, "s": 0.0}))
    comma, wrong, right = (losses[TOKENIZER.encode(text)[0]] for text in (",", "d", "s"))
    assert wrong < comma == right == pytest.approx(0.0, abs=1e-6)


def test_the_loss_grows_ever_more_slowly_to_a_limit() -> None:
    losses = [loss_of(cost) for cost in (0.0, 1.0, 2.0, 10.0, 20.0, 1e6, 1e9)]
    assert losses == sorted(losses)
    assert losses[1] - losses[0] > losses[2] - losses[1] > (losses[4] - losses[3]) / 10
    assert losses[-2:] == [MAX_LOSS, MAX_LOSS]


def test_after_what_nobody_can_spell_the_decoder_decides() -> None:
    assert bias_of("_sh_e_")([TAG, *TOKENIZER.encode("你")], logits_of({"a": 0.0, "e": 0.0})) == {}


def test_the_language_tag_is_left_to_the_decoder() -> None:
    assert bias_of("_sh_e_")([], logits_of({"a": 0.0, "e": 0.0})) == {}


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), text=st.text("ab ", max_size=200))
def test_what_was_forgotten_is_worked_out_again(seed: int, text: str) -> None:
    heard = torch.randn(30, BLANK + 1, generator=torch.Generator().manual_seed(seed)).log_softmax(dim=-1)
    used, fresh = (LetterBias(LetterPaths(heard), TOKENIZER, END) for _ in range(2))
    logits = logits_of({"a": 0.0, "b": -1.0, " ": -2.0, END: -3.0})
    tokens = TOKENIZER.encode(text)
    for end in range(0, len(tokens), 7):
        used([TAG, *tokens[:end]], logits)
    assert used([TAG, *tokens], logits) == fresh([TAG, *tokens], logits)


def test_a_digit_that_says_another_number_loses_nothing() -> None:
    bias = bias_of("__th_ir_t_y__")
    assert chosen(bias, "3", {"0": 0.0, "a": 1.5}) == "0"
