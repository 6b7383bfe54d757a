"""Law: what the engine draws is drawn from the policy that learns; before the first update its ratio is exactly 1."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training import toys

from tristep.chat import Chat
from tristep.corpus.tones import write_corpus
from tristep.engine.drawing import draw_completions
from tristep.engine.reciting import Sampling
from tristep.modes.asr.decoding import Constraint
from tristep.objectives.policy import clipped_share
from tristep.training import stages
from tristep.training.exercises import Exercise, exercise
from tristep.training.learner import Learner, PolicyBatch, collate, forward
from tristep.training.policies import RewardedRecipe
from tristep.training.rlhf import Rounds
from tristep.training.rollouts import HearingRollouts


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_corpus(root / "tones", num_clips=20, seed=0)
    toys.write_letters(root)
    return root


def first_round(recipe_path: Path, root: Path) -> tuple[Rounds, Exercise, list[PolicyBatch]]:
    recipe = stages.load_recipe(recipe_path)
    assert isinstance(recipe, RewardedRecipe)
    backbone, tokenizer = stages.prepare(recipe, root, recipe_path.parent)
    learner = Learner(backbone.eval(), recipe.rl.algorithm == "ppo")
    taken = exercise(recipe, Chat(backbone.vocab, tokenizer), backbone, root, toys.LISTENERS)
    rounds = Rounds(learner, taken.rollouts, taken.measure, recipe, recipe_path.parent)
    return rounds, taken, [rounds.batch_at(0, micro, 0, 1) for micro in range(recipe.optim.num_accumulation)]


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
@pytest.mark.parametrize("mode", ["asr", "tts", "realtime"])
def test_the_ratio_is_one_before_the_first_update(mode: str, algorithm: str, root: Path, tmp_path: Path) -> None:
    write = {"asr": toys.hearing_recipe, "tts": toys.speaking_recipe, "realtime": toys.conversing_recipe}
    rounds, taken, batches = first_round(write[mode](tmp_path, algorithm=algorithm), root)
    for batch in batches:
        found = forward(rounds.learner, batch, taken.rollouts, temperature=1.0)
        assert batch.loss_mask.any()
        assert torch.equal(found.logprobs, batch.rollout_logprobs)
        assert torch.equal(batch.reference_logprobs, batch.rollout_logprobs)  # and so the divergence is 0
        assert clipped_share(found.logprobs, batch.rollout_logprobs, batch.loss_mask, clip_range=0.0) == 0


def test_the_policy_that_writes_token_by_token_is_the_one_that_is_scored_at_once(root: Path, tmp_path: Path) -> None:
    rounds, taken, _ = first_round(toys.hearing_recipe(tmp_path), root)
    rollouts, backbone = taken.rollouts, rounds.learner.backbone
    assert isinstance(rollouts, HearingRollouts)
    heard = torch.randn(5, backbone.config.decoder.dim)
    prompt = rollouts.prompt(len(heard), "spoken")
    for temperature in (0.5, 1.0):
        sampling = Sampling(temperature, top_k=backbone.vocab.size, top_p=1.0)
        written = draw_completions(
            backbone, [prompt], heard, Constraint(backbone.vocab), [12], [list(range(8))], sampling
        )[0]
        batch = collate([rollouts.rollout(prompt, completion, heard, "", "en") for completion in written])
        scored = forward(rounds.learner, batch, rollouts, temperature=1.0)
        for logprobs, mask, completion in zip(scored.logprobs, batch.loss_mask, written, strict=True):
            torch.testing.assert_close(logprobs[mask].exp(), torch.tensor(completion.probs), rtol=1e-3, atol=1e-6)
