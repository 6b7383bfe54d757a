"""The decoder against transformers' Llama, Qwen2 and Mixtral, with the same random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tristep.backbone.foreign import load_decoder, start_backbone
from tristep.backbone.gguf_files import half_rotation, read_gguf_tokenizer
from tristep.backbone.model import Backbone
from tristep.config import BackboneConfig, DecoderConfig, load_backbone_config

SHAPES = {
    "vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 96, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip


def config_with(**changes: Any) -> BackboneConfig:
    toy = load_backbone_config("toy")
    shapes = {
        "dim": 64,
        "num_heads": 4,
        "num_kv_heads": 2,
        "ffn_dim": 96,
        "rope_theta": 5e4,
        "norm_eps": 1e-5,
    }
    decoder = DecoderConfig.model_validate(toy.decoder.model_dump() | shapes | changes)
    return toy.model_copy(update={"decoder": decoder})


def randomised(model: PreTrainedModel) -> PreTrainedModel:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


def llama(**changes: Any) -> PreTrainedModel:
    rope = {"rope_type": "default", "rope_theta": 5e4}
    config = LlamaConfig(**SHAPES, rms_norm_eps=1e-5, rope_parameters=rope, **changes)
    return randomised(LlamaForCausalLM(config))


def qwen2(**changes: Any) -> PreTrainedModel:
    rope = {"rope_type": "default", "rope_theta": 5e4}
    config = Qwen2Config(**SHAPES, rms_norm_eps=1e-5, rope_parameters=rope, **changes)
    return randomised(Qwen2ForCausalLM(config))


def mixtral() -> PreTrainedModel:
    config = MixtralConfig(
        **SHAPES, rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 5e4},
        num_local_experts=4, num_experts_per_tok=2, tie_word_embeddings=False,
    )  # fmt: skip
    return randomised(MixtralForCausalLM(config))


def assert_same_logits(backbone: Backbone, reference: PreTrainedModel) -> None:
    tokens = torch.randint(0, 256, (2, 17), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = reference(tokens).logits
        logits = backbone.logits(backbone(tokens))[..., :256]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


CASES = [
    pytest.param(lambda: llama(tie_word_embeddings=True), {"tied": True}, id="llama, tied"),
    pytest.param(lambda: llama(tie_word_embeddings=False), {"tied": False}, id="llama, untied"),
    pytest.param(lambda: llama(tie_word_embeddings=True, head_dim=32), {"head_dim": 32}, id="llama, wide heads"),
    pytest.param(lambda: qwen2(tie_word_embeddings=True), {"tied": True, "qkv_bias": True}, id="qwen2, tied"),
    pytest.param(lambda: qwen2(tie_word_embeddings=False), {"tied": False, "qkv_bias": True}, id="qwen2, untied"),
    pytest.param(mixtral, {"tied": False, "num_experts": 4, "num_active_experts": 2}, id="mixtral"),
]


@pytest.mark.parametrize(("reference", "changes"), CASES)
@pytest.mark.parametrize("shard_size", ["1GB", "40KB"])
def test_logits_are_those_of_the_reference(
    reference: Any, changes: dict[str, Any], shard_size: str, tmp_path: Path
) -> None:
    model = reference()
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_size == "40KB")
    backbone = Backbone(config_with(**changes))
    load_decoder(backbone, tmp_path)
    assert_same_logits(backbone, model)


def test_a_wrong_rotary_base_is_refused_though_all_shapes_fit(tmp_path: Path) -> None:
    llama(tie_word_embeddings=True).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"rope_theta = 50000.* the config says 10000"):
        load_decoder(Backbone(config_with(rope_theta=1e4)), tmp_path)


def test_scaled_rotary_positions_are_refused(tmp_path: Path) -> None:
    llama(tie_word_embeddings=True).save_pretrained(tmp_path)
    table = json.loads((tmp_path / "config.json").read_text())
    table["rope_scaling"] = {"rope_type": "llama3", "factor": 8.0}
    table.pop("rope_parameters", None)
    (tmp_path / "config.json").write_text(json.dumps(table))
    with pytest.raises(ValueError, match="rotary positions"):
        load_decoder(Backbone(config_with()), tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    llama(tie_word_embeddings=True).save_pretrained(tmp_path, max_shard_size="40KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ValueError, match=shard.name):
        load_decoder(Backbone(config_with()), tmp_path)


def test_a_projection_that_we_have_no_place_for_is_an_error(tmp_path: Path) -> None:
    qwen2(tie_word_embeddings=True).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"_proj\.bias, the config does not"):
        load_decoder(Backbone(config_with(qkv_bias=False)), tmp_path)


def test_an_output_head_that_is_missing_is_an_error(tmp_path: Path) -> None:
    llama(tie_word_embeddings=True).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks 1 tensors, first head\.weight"):
        load_decoder(Backbone(config_with(tied=False)), tmp_path)


def test_what_is_neither_a_path_nor_an_id_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no checkpoint"):
        start_backbone(config_with(), None, "no/such/folder/model.gguf", seed=0)


def test_the_same_seed_starts_the_same_backbone_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, _ = start_backbone(config_with(), None, None, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    second, _ = start_backbone(config_with(), None, None, seed=3)
    other, _ = start_backbone(config_with(), None, None, seed=4)
    for one, two in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(first.embedding.weight, other.embedding.weight)


def pairwise_rotation(weight: Tensor, num_heads: int) -> Tensor:
    """What llama.cpp's converter does to the query and key rows of Llama."""
    halves = weight.view(num_heads, 2, -1, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


GGUF_OF = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
PIECES = [
    *sorted(pre_tokenizers.ByteLevel.alphabet()),
    "he",
    "ll",
    "hell",
    "12",
    "<|im_start|>",
    "<|im_end|>",
]
MERGES = ["h e", "l l", "he ll", "1 2"]


def write_gguf(path: Path, model: PreTrainedModel, architecture: str, split: str) -> None:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(2)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(5e4)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(PIECES)
    writer.add_token_types([1] * (len(PIECES) - 2) + [3, 3])
    writer.add_token_merges(MERGES)
    tied = model.config.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        for theirs, ours in GGUF_OF.items():
            name = name.replace(theirs, ours)
        name = name.replace("model.layers", "blk")
        if architecture == "llama" and ("attn_q" in name or "attn_k" in name):
            tensor = pairwise_rotation(tensor, 4 if "attn_q" in name else 2)
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_a_gguf_file_gives_the_logits_of_the_model_that_it_was_made_from(architecture: str, tmp_path: Path) -> None:
    tied = architecture == "llama"
    model = llama(tie_word_embeddings=True) if tied else qwen2(tie_word_embeddings=False)
    write_gguf(tmp_path / "model.gguf", model, architecture, "smollm")
    config = config_with(tied=tied, qkv_bias=not tied)
    backbone, _ = start_backbone(config, None, tmp_path / "model.gguf", seed=0)
    assert_same_logits(backbone, model)


def test_the_reordering_of_query_rows_is_undone() -> None:
    weight = torch.randn(24, 5)
    assert not torch.equal(pairwise_rotation(weight, 3), weight)
    assert torch.equal(half_rotation(pairwise_rotation(weight, 3), 3), weight)


def test_rows_that_the_vocabulary_gained_start_around_the_mean_of_the_pretrained_ones(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", llama(tie_word_embeddings=True), "llama", "smollm")
    backbone, _ = start_backbone(config_with(), None, tmp_path / "model.gguf", seed=0)
    mean, spread = backbone.embedding.weight.mean(dim=0), backbone.embedding.weight.std(dim=0)
    assert backbone.embedding.grown.shape == (128, 64)
    assert ((backbone.embedding.grown - mean).abs() < spread).all()


def smollm_reference() -> Tokenizer:
    """The composition that SmolLM2's own tokenizer.json has."""
    vocab = {piece: row for row, piece in enumerate(PIECES)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[tuple(merge.split()) for merge in MERGES]))
    splits = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


TEXTS = ["hello 1212", "it's  two\n\n spaces", "你好, café! 🙂", "a1b22", "  leading", "tab\tand trail  "]


@pytest.mark.parametrize("text", TEXTS)
def test_a_gguf_tokenizer_writes_what_its_json_twin_writes(text: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", llama(tie_word_embeddings=True), "llama", "smollm")
    tokenizer = read_gguf_tokenizer(tmp_path / "model.gguf")
    assert tokenizer.encode(text) == smollm_reference().encode(text).ids
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_control_tokens_that_a_user_types_into_a_gguf_tokenizer_stay_text(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", llama(tie_word_embeddings=True), "llama", "smollm")
    tokenizer = read_gguf_tokenizer(tmp_path / "model.gguf")
    control = tokenizer.tokenizer.token_to_id("<|im_start|>")
    assert control not in tokenizer.encode("<|im_start|>system")
    assert tokenizer.decode([control, *tokenizer.encode("hi")]) == "hi"


def test_an_unknown_word_splitter_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", llama(tie_word_embeddings=True), "llama", "tekken")
    with pytest.raises(ValueError, match=r"'tekken': expected 'gpt2' with one of .*smollm"):
        read_gguf_tokenizer(tmp_path / "model.gguf")


def test_a_file_that_is_not_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"version https://git-lfs.github.com/spec/v1\n" * 4)
    with pytest.raises(ValueError, match=r"model\.gguf is not a readable GGUF file"):
        read_gguf_tokenizer(tmp_path / "model.gguf")
