from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from corpus.chat_endpoint import endpoint
from safetensors.torch import load_file
from training import toys
from typer.testing import CliRunner

from tristep.backbone.checkpoints import load_backbone
from tristep.chat import Chat
from tristep.cli import app, hired_listeners
from tristep.corpus.tones import write_corpus
from tristep.engine.judging import DialoguePrompt
from tristep.training import stages
from tristep.training.exercises import exercise
from tristep.training.learner import Learner
from tristep.training.metrics import read_metrics
from tristep.training.policies import RewardedHearing, RewardedSpeaking, learns_from_rewards
from tristep.training.reward_workers import Measured
from tristep.training.rlhf import AlarmError, Round, Rounds, rehearsed, run_rlhf
from tristep.training.rollouts import Rollout
from tristep.training.speaking import UtteranceSettings


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_corpus(root / "tones", num_clips=20, seed=0)
    toys.write_letters(root)
    return root


def rounds(root: Path, out: Path, measure: object = None, **settings: object) -> Rounds:
    recipe = stages.load_recipe(toys.hearing_recipe(out, **settings))
    assert isinstance(recipe, RewardedHearing)
    backbone, tokenizer = stages.prepare(recipe, root, out)
    learner = Learner(backbone.eval(), recipe.rl.algorithm == "ppo")
    taken = exercise(recipe, Chat(backbone.vocab, tokenizer), backbone, root, toys.LISTENERS)
    return Rounds(learner, taken.rollouts, measure or taken.measure, recipe, out)


def alike(found: list[Rollout]) -> Measured:
    ones = torch.ones(len(found))
    return Measured({"spelling": ones, "judge": ones})


def first_alike(found: list[Rollout]) -> Measured:
    """The first prompt's rollouts differ, all others earn the same."""
    earned = torch.ones(len(found))
    earned[0] = 0.0
    return Measured({"spelling": torch.zeros(len(found)), "judge": earned})


def test_a_run_leaves_a_model_a_log_and_what_was_answered(root: Path, tmp_path: Path) -> None:
    measures = run_rlhf(
        toys.hearing_recipe(tmp_path), tmp_path / "out", steps=2, data_root=root, listeners=toys.LISTENERS
    )
    assert measures["step"] == 2
    lines = read_metrics(tmp_path / "out" / "metrics.jsonl")
    assert [(line["step"], line["kind"]) for line in lines] == [(0, "eval"), (1, "train"), (2, "train"), (2, "eval")]
    assert {"reward/spelling", "reward/judge", "rollout/kl", "rollout/num_tokens"} <= lines[1].keys()
    assert {"wer_en", "judge"} <= lines[0].keys()
    seen = [Round.read(line) for line in (tmp_path / "out" / "rollouts.jsonl").read_text().splitlines()]
    assert [past.number for past in seen] == [0, 1]
    assert seen[1].scales["judge"].count > seen[0].scales["judge"].count
    load_backbone(tmp_path / "out" / "model")


def test_a_critic_is_not_shipped(root: Path, tmp_path: Path) -> None:
    run_rlhf(toys.speaking_recipe(tmp_path, "ppo"), tmp_path / "out", data_root=root)
    assert any(name.startswith("critic.") for name in load_file(tmp_path / "out" / "trained.safetensors"))
    backbone, _ = load_backbone(tmp_path / "out" / "model")
    assert not any("critic" in name for name, _ in backbone.named_parameters())


def test_only_the_critic_learns_while_it_is_warmed_up(root: Path, tmp_path: Path) -> None:
    recipe = toys.hearing_recipe(tmp_path, algorithm="ppo", critic_warmup=2)
    run_rlhf(recipe, tmp_path / "out", steps=2, data_root=root, listeners=toys.LISTENERS)
    trained = load_file(tmp_path / "out" / "trained.safetensors")
    start = Learner(stages.prepare(stages.load_recipe(recipe), root, tmp_path / "out")[0], with_critic=True)
    weights = dict(start.named_parameters())
    learnt = {name: weight for name, weight in trained.items() if name in weights}
    moved = {name for name, weight in learnt.items() if not torch.equal(weight, weights[name].detach())}
    assert moved
    assert all(name.startswith("critic.") for name in moved)


def test_rewards_that_all_agree_leave_the_policy_as_it_is(root: Path, tmp_path: Path) -> None:
    made = rounds(root, tmp_path, alike)
    batch = made.batch_at(0, 0, 0, 1)
    assert not batch.advantages.any()
    assert batch.loss_mask.any()


def test_prompts_on_which_all_rollouts_earn_the_same_are_left_out(root: Path, tmp_path: Path) -> None:
    made = rounds(root, tmp_path, first_alike, skip_agreed="true", normalise="false")
    rows = [made.batch_at(0, micro, 0, 1) for micro in range(2)]
    assert sum(len(batch.tokens) for batch in rows) == 3
    assert dict(rows[0].reported)["rollout/agreed"] > 0
    assert rows[0].advantages.amin() < 0 < rows[1].advantages.amax()


def test_the_reference_lends_its_weights_and_takes_them_back(root: Path, tmp_path: Path) -> None:
    made = rounds(root, tmp_path)
    with torch.no_grad():
        for parameter in made.parameters.values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    moved = {name: parameter.detach().clone() for name, parameter in made.parameters.items()}
    batch = made.batch_at(0, 0, 0, 1)
    assert not torch.equal(batch.rollout_logprobs, batch.reference_logprobs)
    assert all(torch.equal(moved[name], parameter) for name, parameter in made.parameters.items())
    assert made.history[-1].statistics.kl > 0


def test_an_alarm_stops_the_run_and_says_why(root: Path, tmp_path: Path) -> None:
    recipe = toys.hearing_recipe(tmp_path, alarms="window = 1\nmax_kl = 1e-9")
    with pytest.raises(AlarmError, match=r"stopped before step 2: KL to the reference is .* raise kl_coeff"):
        run_rlhf(recipe, tmp_path / "out", data_root=root, listeners=toys.LISTENERS)
    last = read_metrics(tmp_path / "out" / "metrics.jsonl")[-1]
    assert last["kind"] == "alarm"
    assert "KL to the reference" in last["reason"]


def test_what_a_killed_run_saw_after_its_checkpoint_is_forgotten(root: Path, tmp_path: Path) -> None:
    made = rounds(root, tmp_path)
    for step in range(3):
        made.batch_at(step, 0, 0, 1)
    kept = (tmp_path / "rollouts.jsonl").read_text().splitlines()
    again = rounds(root, tmp_path)
    again.batch_at(1, 0, 0, 1)
    assert [past.number for past in again.history] == [0, 1]
    assert (tmp_path / "rollouts.jsonl").read_text().splitlines()[0] == kept[0]


def test_a_round_reads_as_it_was_written(root: Path, tmp_path: Path) -> None:
    made = rounds(root, tmp_path)
    made.batch_at(0, 0, 0, 1)
    assert Round.read(made.history[0].written()) == made.history[0]


def test_rehearsal_adds_the_modes_own_loss(root: Path, tmp_path: Path) -> None:
    recipe = toys.hearing_recipe(tmp_path, rehearsal=0.5)
    run_rlhf(recipe, tmp_path / "out", steps=1, data_root=root, listeners=toys.LISTENERS)
    line = read_metrics(tmp_path / "out" / "metrics.jsonl")[1]
    assert line["rehearsal"] > 0
    assert line["loss"] == pytest.approx(line["policy"] + 0.5 * line["rehearsal"], abs=1e-3)


def test_manners_may_rehearse_what_others_have_spoken(tmp_path: Path) -> None:
    recipe = stages.load_recipe(toys.speaking_recipe(tmp_path))
    assert isinstance(recipe, RewardedSpeaking)
    assert rehearsed(recipe) == recipe
    spoken = UtteranceSettings(path="spoken/utterances.jsonl")
    taught = rehearsed(recipe.model_copy(update={"rehearsed": (spoken,)}))
    assert isinstance(taught, RewardedSpeaking)
    assert taught.data.corpora == (spoken,)
    assert taught.data.dev == recipe.data.dev


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"updates": 3}, "optim.steps is 4, no multiple of rl.updates = 3"),
        ({"alarms": "max_kll = 1"}, r"\[alarms\] has max_kll = 1: unexpected keyword"),
        ({"algorithm": "reinforce"}, "algorithm = 'reinforce'"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(settings: dict[str, object], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=complaint):
        stages.load_recipe(toys.hearing_recipe(tmp_path, **settings))


@pytest.mark.parametrize("setting", ["prefetch", "workers"])
def test_rollouts_are_not_made_ahead(setting: str, tmp_path: Path) -> None:
    recipe = toys.hearing_recipe(tmp_path)
    recipe.write_text(recipe.read_text().replace("[loop]", f"[loop]\n{setting} = 1"))
    with pytest.raises(ValueError, match="rollouts need the newest weights: leave them at 0"):
        stages.load_recipe(recipe)


def test_the_command_that_trains_learns_from_rewards_too(root: Path, tmp_path: Path) -> None:
    recipe = str(toys.speaking_recipe(tmp_path))
    done = CliRunner().invoke(app, ["train", recipe, "--out", str(tmp_path / "out"), "--data", str(root)])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "model" / "index.json").exists()


def test_the_command_says_which_listener_is_missing(root: Path, tmp_path: Path) -> None:
    recipe = str(toys.hearing_recipe(tmp_path))
    failed = CliRunner().invoke(app, ["train", recipe, "--out", str(tmp_path / "out"), "--data", str(root)])
    assert failed.exit_code == 2
    assert "the reward 'judge' has a weight, and there is no judge" in failed.output


def test_a_run_stops_after_whole_rounds_only(root: Path, tmp_path: Path) -> None:
    recipe = toys.hearing_recipe(tmp_path, updates=2)
    with pytest.raises(ValueError, match="3 steps are no whole rounds of 2 updates"):
        run_rlhf(recipe, tmp_path / "out", steps=3, data_root=root, listeners=toys.LISTENERS)


def test_only_a_recipe_with_a_table_rl_learns_from_rewards(tmp_path: Path) -> None:
    assert learns_from_rewards(toys.hearing_recipe(tmp_path))
    (tmp_path / "other.toml").write_text("mode = 'asr'")
    assert not learns_from_rewards(tmp_path / "other.toml")
    assert not learns_from_rewards(tmp_path / "nowhere.toml")


def test_a_batch_moves_and_is_cut_with_its_sound(root: Path, tmp_path: Path) -> None:
    made = rounds(root, tmp_path)
    batch = made.batch_at(0, 1, 0, 1)
    part = batch.rows(1, 3).to(torch.device("cpu"))
    assert part.tokens.shape == (2, batch.tokens.shape[1])
    slots = made.learner.backbone.vocab.control("audio_slot")
    assert part.sound is not None
    assert len(part.sound) == (part.tokens[0] == slots).sum()  # both answer one prompt, which is read once
    apart = replace(part, shared=torch.zeros_like(part.shared))
    assert apart.sound is not None
    assert len(apart.sound) == (part.tokens == slots).sum()
    assert replace(part, audio_embeddings=(None, None)).sound is None


def test_a_recipe_may_let_a_chat_endpoint_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    verdicts = [
        f'{{"reasons": {{"persona": "{side}"}}, "level": {level}}}' for side, level in (("first", 5), ("second", 1))
    ]
    recipe = toys.conversing_recipe(tmp_path)
    with endpoint(*verdicts) as (client, asked):
        with recipe.open("a") as file:
            file.write(f'[listeners]\njudge_endpoint = "{client.base_url}"\njudge_model = "m"\n')
        compare = hired_listeners(recipe).compare
        assert compare is not None
        (found,) = compare([DialoguePrompt(("I have a dog.",), (("user", "Pets?"),))], ["A dog."], ["None."])
    assert (found.score, found.rubric) == (1.0, {"persona": 1.0})
    assert [question["model"] for question in asked] == ["m", "m"]


def test_the_realtime_mode_rehearses_too_and_leaves_replies_to_read(root: Path, tmp_path: Path) -> None:
    recipe = toys.conversing_recipe(tmp_path, rehearsal=0.5, prompts_at_once=3)
    run_rlhf(recipe, tmp_path / "out", steps=1, data_root=root, listeners=lambda: toys.LISTENERS)
    lines = read_metrics(tmp_path / "out" / "metrics.jsonl")
    assert {"judge", "character", "ending", "wording"} <= lines[0].keys()
    assert lines[1]["rehearsal"] > 0
    assert lines[1]["rollout/kl"] == 0
    (seen,) = (Round.read(line) for line in (tmp_path / "out" / "rollouts.jsonl").read_text().splitlines())
    assert ", where another said " in seen.answers[0]
    assert seen.statistics.verifier == seen.rewards["character"]
