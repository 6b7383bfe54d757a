from __future__ import annotations

import builtins
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from training import toys

from tristep.backbone.model import Backbone
from tristep.chat import Chat
from tristep.corpus.tones import write_corpus
from tristep.training import stages
from tristep.training.exercises import Exercise, exercise
from tristep.training.on_ray import check_room, started
from tristep.training.policies import ListenerSettings, RewardedConversing, ScaleSettings
from tristep.training.reward_workers import Listeners, load_listeners
from tristep.training.rlhf import Done, Hire, hired


def test_actors_that_would_wait_for_ever_are_refused() -> None:
    scale = ScaleSettings(rollout_actors=3, reward_actors=1, cpus=2, gpus=0.5)
    check_room({"CPU": 8.0, "GPU": 2.0}, scale)
    with pytest.raises(ValueError, match=r"need 8 processors and 1\.5 GPUs, the cluster has 4 and 2: ask for fewer"):
        check_room({"CPU": 4.0, "GPU": 2.0}, scale)
    with pytest.raises(ValueError, match="the cluster has 8 and 0"):
        check_room({"CPU": 8.0}, scale)


@pytest.mark.parametrize(
    ("scale", "at_once", "complaint"),
    [("rollout_actors = 2", "", "set rl.prompts_at_once"), ("reward_actors = 1", 2, "no rollout actors")],
)
def test_a_scale_that_makes_no_sense_is_refused(scale: str, at_once: object, complaint: str, tmp_path: Path) -> None:
    recipe = toys.conversing_recipe(tmp_path, scale=scale, prompts_at_once=at_once or 2)
    if not at_once:
        recipe.write_text(recipe.read_text().replace("prompts_at_once = 2", ""))
    with pytest.raises(ValueError, match=complaint):
        stages.load_recipe(recipe)


Work = tuple[RewardedConversing, Backbone, Exercise, Path]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """What a crew of one rollout actor and one reward actor works on, and what the learner's process works with."""
    root = tmp_path_factory.mktemp("work")
    write_corpus(root / "tones", num_clips=20, seed=0)
    scale = "rollout_actors = 1\nreward_actors = 1\nrestarts = 1"
    recipe = stages.load_recipe(toys.conversing_recipe(root, scale=scale))
    assert isinstance(recipe, RewardedConversing)
    backbone, tokenizer = stages.prepare(recipe, root, root)
    chat = Chat(backbone.vocab, tokenizer)
    return recipe, backbone, exercise(recipe, chat, backbone.eval(), root, toys.LISTENERS), root


def test_without_a_scale_nobody_is_hired_and_ray_is_not_imported(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, _, taken, root = work
    monkeypatch.setattr(builtins, "__import__", without_ray(builtins.__import__))
    alone = recipe.model_copy(update={"scale": ScaleSettings()})
    with hired(alone, root, root, taken, Listeners) as crew:
        assert crew is None
    with (
        pytest.raises(ValueError, match=r"run pip install 'tristep\[scale\]'"),
        hired(recipe, root, root, taken, Listeners),
    ):
        pass


def without_ray(find: Any) -> Any:
    """Import as where Ray is not installed."""

    def importing(name: str, *rest: Any) -> Any:
        if name == "ray":
            raise ModuleNotFoundError("No module named 'ray'", name="ray")
        return find(name, *rest)

    return importing


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'tristep[scale]'")
    with pytest.MonkeyPatch.context() as monkeypatch:
        toys.known_to_processes(monkeypatch)
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield ray
        ray.shutdown()


def same(one: Done, other: Done) -> bool:
    """Compare what was written and what it earned."""
    written = [[rollout.tokens for rollout in done[0]] for done in (one, other)]
    rewards = [done[1].rewards for done in (one, other)]
    return written[0] == written[1] and all(torch.equal(rewards[0][name], rewards[1][name]) for name in rewards[0])


@pytest.mark.slow
def test_an_actor_that_died_is_started_again_and_one_that_died_for_good_stops_the_run(work: Work, ray: Any) -> None:
    recipe, backbone, taken, root = work
    weights = {name: parameter.detach() for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    pieces = [([0, 1], [[1, 2, 3], [4, 5, 6]])]
    with started(recipe, root, root, taken, lambda: toys.LISTENERS) as crew:
        before = crew.work(weights, pieces)
        ray.kill(crew.rollers[0], no_restart=False)
        assert same(crew.work(weights, pieces)[0], before[0])
        changed = {name: weight + 0.1 for name, weight in weights.items()}
        assert not same(crew.work(changed, pieces)[0], before[0])
        ray.kill(crew.measurers[0])
        with pytest.raises(ValueError, match="an actor died, though it may be started again 1 times"):
            crew.work(weights, pieces)


@pytest.mark.slow
def test_what_goes_wrong_in_an_actor_goes_wrong_here(work: Work, ray: Any) -> None:
    recipe, backbone, taken, root = work
    hire: Hire = partial(load_listeners, ListenerSettings(sound="nowhere"))
    with (
        pytest.raises(ValueError, match=r"could not start: .*there are no weights 'nowhere'"),
        started(recipe, root, root, taken, hire),
    ):
        pass
    with (
        started(recipe, root, root, taken, Listeners) as crew,
        pytest.raises(ValueError, match=r"^the reward 'judge' has a weight, and there is no judge"),
    ):
        crew.work({name: p.detach() for name, p in backbone.named_parameters()}, [([0], [[1]])])
