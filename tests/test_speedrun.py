"""The speedrun takes minutes; that its stages are there, and stand on one another, is seen in a moment."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tristep.config import load_toml
from tristep.training.codec import VocoderRecipe
from tristep.training.codec_tasks import FlowRecipe, TokenizerRecipe
from tristep.training.learnt import Bar
from tristep.training.stages import load_recipe

RECIPES = Path(__file__).parents[1] / "recipes"
PARTS = {"tokenizer": TokenizerRecipe, "flow": FlowRecipe, "vocoder": VocoderRecipe}
STAGES = re.findall(r'^learn (\w+) (\w+) "(.*)"$', (RECIPES / "speedrun.sh").read_text(), re.MULTILINE)


@pytest.mark.parametrize("recipe", [recipe for recipe, _, _ in STAGES])
def test_every_stage_has_a_recipe_that_can_be_read(recipe: str) -> None:
    path = RECIPES / "toy" / f"{recipe}.toml"
    part = tomllib.loads(path.read_text()).get("part")
    settings = load_toml(path, PARTS[part]) if part else load_recipe(path)
    assert settings.loop.evaluate_first  # or nobody knows from where it came


def test_every_stage_stands_on_runs_before_it() -> None:
    done: set[str] = set()
    for recipe, run, _ in STAGES:
        needed = set(re.findall(r'"runs/(\w+)/', (RECIPES / "toy" / f"{recipe}.toml").read_text()))
        assert needed <= done, f"{recipe} needs {needed - done}"
        done.add(run)
    assert {"rlhf_asr", "rlhf_tts"} <= done


def test_every_stage_has_a_bar() -> None:
    assert [Bar.parse(bar).measure for _, _, bar in STAGES]
