from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tristep.backbone.checkpoints import load_backbone
from tristep.backbone.model import Backbone
from tristep.config import load_backbone_config
from tristep.corpus.tones import write_corpus
from tristep.training.codec import part_of
from tristep.training.recipes import LearnSettings, LowRankSettings
from tristep.training.stages import load_recipe, parameter_groups, run

RECIPE = """
[model]
config = "toy"
[learn]
adaptor = 1e-3
grown = 1e-3
[loss]
ctc = 1.0
[data]
corpora = [{ path = "tones/manifest.jsonl", speeds = [1.0, 1.1] }]
dev = [{ path = "tones/manifest.jsonl", split = "dev" }]
batch_s = 2
joined_share = 0.5
row_tokens = 160
[optim]
steps = 4
ema_decay = 0.5
[loop]
log_every = 1
evaluate_every = 2
save_every = 2
"""


def toy(tied: bool = True, **decoder: int) -> Backbone:
    config = load_backbone_config("toy")
    settings = config.decoder.model_copy(update={"tied": tied, **decoder})
    return Backbone(config.model_copy(update={"decoder": settings}))


def trainable(backbone: Backbone) -> set[str]:
    return {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}


def names(backbone: Backbone, prefix: str) -> set[str]:
    return {name for name, _ in backbone.named_parameters() if name.startswith(prefix)}


@pytest.mark.parametrize(
    ("part", "prefix"), [("adaptor", "adaptor."), ("decoder", "decoder."), ("embedding", "embedding.weight"),
                         ("grown", "embedding.grown")],
)  # fmt: skip
def test_a_rate_frees_its_part_and_nothing_else(part: str, prefix: str) -> None:
    backbone = toy()
    groups = parameter_groups(backbone, LearnSettings(**{part: 0.5}))
    assert trainable(backbone) == names(backbone, prefix) != set()
    assert [(group["name"], group["lr"]) for group in groups] == [(part, 0.5)]


def test_the_encoder_never_learns() -> None:
    backbone = toy()
    backbone.requires_grad_(True)
    parameter_groups(backbone, LearnSettings(adaptor=1, decoder=1, router=1, embedding=1, grown=1, head=1))
    assert not any(name.startswith("audio_encoder.") for name in trainable(backbone))


def test_groups_hold_every_free_parameter_once_at_its_own_rate() -> None:
    backbone = toy(num_experts=2)
    groups = parameter_groups(backbone, LearnSettings(adaptor=0.1, decoder=0.2, router=0.3, grown=0.4))
    assert {group["name"]: group["lr"] for group in groups} == {
        "adaptor": 0.1, "decoder": 0.2, "router": 0.3, "grown": 0.4,
    }  # fmt: skip
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in backbone.parameters() if p.requires_grad}


def test_routers_learn_apart_from_the_experts() -> None:
    backbone = toy(num_experts=2)
    parameter_groups(backbone, LearnSettings(router=1.0))
    assert trainable(backbone) == {f"decoder.blocks.{layer}.ffn.router.weight" for layer in range(2)}
    parameter_groups(backbone, LearnSettings(decoder=1.0))
    assert trainable(backbone) == {name for name in names(backbone, "decoder.") if ".router." not in name}


def test_an_output_layer_of_its_own_has_a_rate_of_its_own() -> None:
    backbone = toy(tied=False)
    parameter_groups(backbone, LearnSettings(head=1.0))
    assert trainable(backbone) == names(backbone, "head.") != set()


def test_low_rank_updates_learn_while_the_projections_stay_frozen() -> None:
    backbone = toy()
    learn = LearnSettings(low_rank=LowRankSettings(rank=2, lr=0.1, names=("q_proj", "down_proj")))
    groups = parameter_groups(backbone, learn)
    expected = {
        f"decoder.blocks.{layer}.{module}.{matrix}"
        for layer in range(2)
        for module in ("attention.q_proj", "ffn.down_proj")
        for matrix in ("up", "down")
    }
    assert trainable(backbone) == expected
    assert [group["name"] for group in groups] == ["low_rank"]


def test_draft_heads_have_a_rate_of_their_own() -> None:
    backbone = toy()
    backbone.add_draft_heads(2)
    groups = parameter_groups(backbone, LearnSettings(draft_heads=2e-4))
    assert trainable(backbone) == names(backbone, "draft_heads.") != set()
    assert [(group["name"], group["lr"]) for group in groups] == [("draft_heads", 2e-4)]


def test_draft_heads_that_are_not_there_cannot_learn() -> None:
    with pytest.raises(ValueError, match=r"the model has no draft heads: set num_draft_heads in \[model\]"):
        parameter_groups(toy(), LearnSettings(draft_heads=2e-4))


def test_asking_for_the_groups_again_adds_no_second_update() -> None:
    backbone = toy()
    learn = LearnSettings(decoder=0.01, low_rank=LowRankSettings(rank=2, lr=0.1))
    first = parameter_groups(backbone, learn)
    again = parameter_groups(backbone, learn)
    assert [[id(p) for p in group["params"]] for group in first] == [[id(p) for p in g["params"]] for g in again]
    assert not any(".base.base" in name for name, _ in backbone.named_parameters())


def test_a_recipe_with_an_unknown_setting_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(RECIPE.replace("batch_s = 2", "batchs = 2"))
    with pytest.raises(ValueError, match=r"wrong.toml \[data\] has no setting 'batchs': did you mean 'batch_s'\?"):
        run(path, tmp_path / "out", data_root=tmp_path)
    assert not (tmp_path / "out").exists()


RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.toml"))


@pytest.mark.parametrize("path", [path for path in RECIPES if part_of(path) is None], ids=lambda p: p.stem)
def test_every_recipe_of_the_backbone_that_ships_is_one(path: Path) -> None:
    assert load_recipe(path).data.corpora


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_corpus(root / "tones", num_clips=20, seed=0)
    (root / "asr.toml").write_text(RECIPE)
    return root


@pytest.fixture(scope="module")
def finished(data: Path) -> tuple[Path, dict[str, float]]:
    return data / "out", run(data / "asr.toml", data / "out", data_root=data)


def test_a_run_measures_itself_and_draws_what_it_measured(finished: tuple[Path, dict[str, float]]) -> None:
    out, measures = finished
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if line["kind"] == "eval"] == [2, 4]
    assert measures["step"] == 4
    assert {"loss", "ctc", "next_token", "ctc_wer"} <= measures.keys()
    assert lines[-1]["loss"] == measures["loss"]
    assert (out / "metrics.png").read_bytes().startswith(b"\x89PNG")


def test_the_model_of_a_run_is_whole_and_is_the_averaged_one(finished: tuple[Path, dict[str, float]]) -> None:
    out, _ = finished
    backbone, tokenizer = load_backbone(out / "model")
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"
    stored = backbone.state_dict()
    averaged = load_file(out / "trained.safetensors")
    weights = load_file(out / "checkpoints" / "step-000004" / "model.safetensors")
    assert "adaptor.ctc_head.weight" in averaged
    for name, tensor in averaged.items():
        assert torch.equal(stored[name], tensor), name
    assert not torch.equal(stored["adaptor.ctc_head.weight"], weights["adaptor.ctc_head.weight"])


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(
    data: Path, finished: tuple[Path, dict[str, float]]
) -> None:
    out = data / "stopped"
    assert run(data / "asr.toml", out, steps=2, data_root=data)["step"] == 2
    assert run(data / "asr.toml", out, data_root=data) == finished[1]
    expected = load_file(finished[0] / "trained.safetensors")
    for name, tensor in load_file(out / "trained.safetensors").items():
        assert torch.equal(tensor, expected[name]), name


def test_a_run_starts_from_the_model_of_another(data: Path, finished: tuple[Path, dict[str, float]]) -> None:
    before, _ = load_backbone(finished[0] / "model")
    recipe = data / "next.toml"
    started = RECIPE.replace('config = "toy"', f'start = "{finished[0] / "model"}"')
    recipe.write_text(started.replace("adaptor = 1e-3", "low_rank = { rank = 2, lr = 1e-3 }"))
    run(recipe, data / "next", steps=1, data_root=data)
    after, _ = load_backbone(data / "next" / "model")
    assert torch.equal(before.adaptor.ctc_head.weight, after.adaptor.ctc_head.weight)
    assert torch.equal(before.adaptor.ctc_tokens, after.adaptor.ctc_tokens)
    assert any(name.endswith(".up") and parameter.any() for name, parameter in after.named_parameters())


def test_draft_heads_are_added_once_and_learn_in_two_stages(
    data: Path, finished: tuple[Path, dict[str, float]]
) -> None:
    start = f'start = "{finished[0] / "model"}"\nnum_draft_heads = 2'
    first = RECIPE.replace('config = "toy"', start).replace("adaptor = 1e-3\ngrown = 1e-3", "draft_heads = 2e-4")
    (data / "heads.toml").write_text(first.replace("ctc = 1.0", "drafts = 1.0"))
    measures = run(data / "heads.toml", data / "heads", steps=2, data_root=data)
    assert {"draft_1", "draft_2", "accepted_1", "accepted_2"} <= measures.keys()
    rates = "2e-5\nadaptor = 2e-5\ndecoder = 2e-5"
    second = first.replace(str(finished[0]), str(data / "heads")).replace("2e-4", rates)
    (data / "both.toml").write_text(second.replace("ctc = 1.0", "drafts = 1.0"))
    run(data / "both.toml", data / "both", steps=1, data_root=data)
    before, after = (load_backbone(data / name / "model")[0] for name in ("heads", "both"))
    assert before.config.num_draft_heads == after.config.num_draft_heads == 2
    assert moved(load_backbone(finished[0] / "model")[0], before) == set()
    assert moved(before, after) == {"draft_heads", "adaptor", "decoder"}


def moved(before: Backbone, after: Backbone) -> set[str]:
    """Name the parts of which some weight is another than before."""
    weights = after.state_dict()
    return {name.split(".")[0] for name, old in before.state_dict().items() if not torch.equal(old, weights[name])}
