"""Rewards: what a judge said, what can be measured, and how they are mixed; and alarms for when they are gamed.

Nothing here loads a model or renders a sound. Rewards of waveforms are functions of what has been measured already;
rewards of codes read the codes, what a recogniser reads in them, or a reward head's opinion of every prefix, so that
no vocoder is in the loop. Every reward has a scale on which 1 is as good as it gets.

The report (section 5.3) rewards a candidate by `s(r(x, y, y*))`, a judge's comparison with a reference `y*`, and
leaves `s` open. Here `s` is `shaped`. Single rewards are easily gamed: speech that is optimised for word errors alone
loses its voice. So a reward is a mixture with explicit weights, it keeps its parts, and `alarm` looks at them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tristep.objectives.alignment import ctc_align_batch

BEST_MOS, WORST_MOS = 5.0, 1.0
"""The ends of the scale of opinion scores (ITU-T P.800)."""


def shaped(comparison: Tensor, scale: float = 1.0) -> Tensor:
    """`s(r) = tanh(r / scale)`: a judge's comparison with the reference, on a scale from -1 to 1.

    It is odd, so to swap candidate and reference is to change the sign, and as good as the reference is 0; it keeps
    the order; and it is bounded, so that one verdict far out does not decide a whole update.

    Args:
        comparison: What the judge said, 0 for "as good as the reference", any shape.
        scale: The difference that a judge calls clear: it is worth 0.76.
    """
    return (comparison / scale).tanh()


def unswapped(forward: Tensor, backward: Tensor) -> Tensor:
    """`(r(y, y*) - r(y*, y)) / 2`: a comparison of which the liking for the first, or second, place is gone."""
    return (forward - backward) / 2


def from_level(level: Tensor, num_levels: int) -> Tensor:
    """Map an ordinal verdict, 1 worst and `num_levels` best, to -1 .. 1; the middle one is 0."""
    return (2 * level - num_levels - 1) / (num_levels - 1)


def intelligibility(wer: Tensor) -> Tensor:
    """`1 - wer`, at least 0: insertions can make more errors than there are words."""
    return (1 - wer).clamp(0, 1)


def likeness(similarity: Tensor, floor: float = 0.0) -> Tensor:
    """Map the cosine similarity of two voices to 0 .. 1; `floor`, that of two strangers, and below is 0."""
    return ((similarity - floor) / (1 - floor)).clamp(0, 1)


def within_budget(duration_s: Tensor, shortest_s: Tensor, longest_s: Tensor) -> Tensor:
    """Return 1 within a budget, and outside the ratio to its nearer end: twice too long, or half too short, is 0.5."""
    return torch.minimum(duration_s / shortest_s, longest_s / duration_s.clamp(min=1e-6)).clamp(0, 1)


def obedience(change: Tensor, direction: Tensor, enough: float) -> Tensor:
    """Say how far a measure went where a cue or an instruction sent it, -1 (the other way) to 1 (far enough).

    Args:
        change: The measure against the same text without the cue: octaves of pitch or rate, or dB of level.
        direction: 1 where the cue asks for more, -1 for less, 0 where it asks for no change.
        enough: The change that a listener can't miss. Where none was asked for, it is also the change that is worth 0.
    """
    steps = change / enough
    return torch.where(direction == 0, 1 - steps.abs(), direction * steps).clamp(-1, 1)


def opinion(mos: Tensor) -> Tensor:
    """Map a mean opinion score from 1 .. 5 to 0 .. 1."""
    return ((mos - WORST_MOS) / (BEST_MOS - WORST_MOS)).clamp(0, 1)


def legibility(letter_logprobs: Tensor, num_frames: Sequence[int], letters: Sequence[Tensor]) -> Tensor:
    """Say how well a text can be read in codes that were written for it: the probability of its best path a frame.

    The letters are what a codec's recogniser reads in the codes themselves. It does what `intelligibility` does,
    many times a second and without a vocoder; but it likes dull, clear codes, so it is one part of a mixture.

    Args:
        letter_logprobs: Of each frame of each completion, blank last, shape `(B, N, L + 1)`.
        num_frames: Valid frames of each completion, B numbers.
        letters: The text that was to be said, spelt as indices (`tristep.text.spell_letters`), B tensors.

    Returns:
        Shape `(B,)`, from 0 to 1; 0 where the text does not fit the frames at all.
    """
    found = letter_logprobs.new_zeros(len(letters))
    fitting = [row for row, spelt in enumerate(letters) if _fits(spelt, num_frames[row])]
    if fitting:
        frames, texts = [num_frames[row] for row in fitting], [letters[row] for row in fitting]
        spans = ctc_align_batch(letter_logprobs[fitting], frames, texts)
        found[fitting] = found.new_tensor([span.logprob for span in spans]).exp()
    return found


def _fits(letters: Tensor, num_frames: int) -> bool:
    return num_frames >= max(1, len(letters) + int((letters[1:] == letters[:-1]).sum()))


def variety(codes: Tensor, loss_mask: Tensor, longest_run: int) -> Tensor:
    """Return 1 where no code is held longer than `longest_run`, and less the more codes are held beyond it.

    A stuck decoder holds one code, be it silence or a vowel, and pleases every judge that only hears the rest.

    Args:
        codes: Shape `(B, T)`.
        loss_mask: True where the policy wrote the code, shape `(B, T)`.
        longest_run: Codes that may be the same in a row.

    Returns:
        The share of kept codes that are not beyond such a run, shape `(B,)`; 1 where nothing is kept.
    """
    held = F.pad((codes[:, 1:] == codes[:, :-1]) & loss_mask[:, 1:] & loss_mask[:, :-1], (1, 0))
    run = torch.zeros_like(codes[:, 0])
    beyond = torch.zeros_like(loss_mask)
    for t in range(codes.shape[1]):
        run = torch.where(held[:, t], run + 1, loss_mask[:, t].long())
        beyond[:, t] = run > longest_run
    return 1 - beyond.sum(dim=1) / loss_mask.sum(dim=1).clamp(min=1)


def prefix_gains(prefix_rewards: Tensor, loss_mask: Tensor) -> Tensor:
    """`r_t = phi_t - phi_(t-1)`: what each token added to a reward head's opinion of the completion so far.

    The gains of a completion sum to the head's opinion of the whole, so the best policy stays the same (potentials,
    Ng et al. 1999), and credit arrives where it was earned.

    Args:
        prefix_rewards: The head's reward of each prefix, shape `(B, T)`.
        loss_mask: True where the policy wrote the token, shape `(B, T)`.
    """
    gains = torch.zeros_like(prefix_rewards)
    before = torch.zeros_like(prefix_rewards[:, 0])
    for t in range(prefix_rewards.shape[1]):
        keep, now = loss_mask[:, t], prefix_rewards[:, t]
        gains[:, t] = torch.where(keep, now - before, 0.0)
        before = torch.where(keep, now, before)
    return gains


@dataclass(frozen=True)
class Scale:
    """Mean and spread of a reward over all rollouts so far, so that rewards of different units can be mixed."""

    count: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def with_rewards(self, rewards: Tensor) -> Scale:
        """Return the scale after these rewards too (Chan et al. 1979, parallel variance)."""
        if not len(rewards):
            return self
        values = rewards.double()
        count = self.count + len(values)
        shift = float(values.mean()) - self.mean
        share = len(values) / count
        spread = (1 - share) * self.variance + share * float(values.var(correction=0))
        return Scale(count, self.mean + share * shift, spread + share * (1 - share) * shift**2)

    def __call__(self, rewards: Tensor) -> Tensor:
        """Bring rewards to mean 0 and standard deviation 1; a reward that never varied becomes 0."""
        if self.variance <= 0:
            return torch.zeros_like(rewards)
        return (rewards - self.mean) / self.variance**0.5


@dataclass(frozen=True)
class Rewards:
    """What rollouts earned, and for what."""

    total: Tensor
    """The weighted sum of the normalised parts, shape `(B,)`."""
    parts: Mapping[str, Tensor]
    """Each reward as it was measured, shape `(B,)`."""

    def means(self) -> dict[str, float]:
        """Return the mean of each part, for logs and alarms."""
        return {name: float(part.mean()) for name, part in self.parts.items()}


def mixed(parts: Mapping[str, Tensor], weights: Mapping[str, float], scales: Mapping[str, Scale]) -> Rewards:
    """`sum_n w_n (r_n - mean_n) / std_n`: weigh rewards after each is brought to its own scale.

    Args:
        parts: Rewards by name, shape `(B,)` each.
        weights: What each is worth; they say all there is to say, so every part has one and no other has.
        scales: How to normalise a part; one that is not named here counts as it is.

    Raises:
        ValueError: If parts and weights do not have the same names, or a reward is not a finite number.
    """
    if parts.keys() != weights.keys():
        raise ValueError(
            f"rewards {sorted(parts)} are weighed by {sorted(weights)}: give every reward a weight, 0 to only watch it"
        )
    if bad := [name for name, part in parts.items() if not part.isfinite().all()]:
        raise ValueError(f"the reward {bad[0]!r} is not finite: drop the rollouts that could not be measured")
    normalised = {name: scales[name](part) if name in scales else part for name, part in parts.items()}
    total = torch.stack([weights[name] * part for name, part in normalised.items()]).sum(dim=0)
    return Rewards(total, dict(parts))


@dataclass(frozen=True)
class Statistics:
    """What the rollouts of one update looked like; None is what was not measured."""

    kl: float
    """Divergence from the reference, nats a token."""
    num_tokens: float
    """Mean length of a completion."""
    silence_share: float | None = None
    """Share of the sound in which nobody speaks."""
    similarity: float | None = None
    """Mean similarity to the voice that was asked for."""
    judge: float | None = None
    """Mean reward by the judge, on a scale of about 1."""
    verifier: float | None = None
    """Mean reward by what can be measured, such as 1 - WER, on a scale of about 1."""


@dataclass(frozen=True)
class Limits:
    """How far a run may go before an alarm stops it; changes are against its first `window` updates."""

    window: int = 5
    """Updates that are averaged, so that one odd batch stops nothing."""
    max_kl: float = 0.5
    """Nats a token."""
    max_length_ratio: float = 1.5
    """Completions may grow or shrink by this factor."""
    max_silence_gain: float = 0.15
    max_similarity_drop: float = 0.05
    max_disagreement: float = 0.05
    """How much the judge may have risen while the verifier has fallen as much."""


def alarm(history: Sequence[Statistics], limits: Limits) -> str | None:
    """Say why a run should stop, or None if its rewards are earned honestly as far as can be seen.

    Args:
        history: The statistics of each update so far, in order.
        limits: How far the run may go.

    Returns:
        The first reason there is, as a sentence with its numbers. None in the first `window` updates.
    """
    if len(history) <= limits.window:
        return None
    checks = (kl_alarm, length_alarm, silence_alarm, similarity_alarm, disagreement_alarm)
    return next((reason for check in checks if (reason := check(history, limits))), None)


def kl_alarm(history: Sequence[Statistics], limits: Limits) -> str | None:
    """Warn that the policy has left the reference."""
    _, now = _trend(history, "kl", limits)
    if now > limits.max_kl:
        return f"KL to the reference is {now:.3f} nats a token, over {limits.max_kl}: raise kl_coeff or lower the rate"
    return None


def length_alarm(history: Sequence[Statistics], limits: Limits) -> str | None:
    """Warn that completions grow, or shrink, for their reward."""
    start, now = _trend(history, "num_tokens", limits)
    if not start / limits.max_length_ratio <= now <= start * limits.max_length_ratio:
        return f"completions went from {start:.0f} to {now:.0f} tokens: is a reward paid for their length?"
    return None


def silence_alarm(history: Sequence[Statistics], limits: Limits) -> str | None:
    """Warn that speech is thinned out with silence."""
    start, now = _trend(history, "silence_share", limits)
    if now - start > limits.max_silence_gain:
        return f"silence went from {start:.0%} to {now:.0%} of the sound: is a reward paid for pauses?"
    return None


def similarity_alarm(history: Sequence[Statistics], limits: Limits) -> str | None:
    """Warn that the voice is traded for other rewards."""
    start, now = _trend(history, "similarity", limits)
    if start - now > limits.max_similarity_drop:
        return f"voice similarity fell from {start:.3f} to {now:.3f}: give it more weight"
    return None


def disagreement_alarm(history: Sequence[Statistics], limits: Limits) -> str | None:
    """Warn that the judge is more and more pleased by what is measurably worse."""
    judged, judged_now = _trend(history, "judge", limits)
    measured, measured_now = _trend(history, "verifier", limits)
    if judged_now - judged > limits.max_disagreement and measured - measured_now > limits.max_disagreement:
        return (
            f"the judge rose from {judged:.3f} to {judged_now:.3f} while the verifier fell from {measured:.3f} to "
            f"{measured_now:.3f}: the judge is being fooled"
        )
    return None


def _trend(history: Sequence[Statistics], name: str, limits: Limits) -> tuple[float, float]:
    """Average a statistic over the first and over the last window; NaN, over no limit, where it was not measured."""
    values = [value for statistics in history if (value := getattr(statistics, name)) is not None]
    if not values:
        return float("nan"), float("nan")
    first, last = values[: limits.window], values[-limits.window :]
    return sum(first) / len(first), sum(last) / len(last)
