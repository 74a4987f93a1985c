"""Model sizes against what their publishers count and what transformers builds."""

import pytest
import torch

from dejavubench.models.hub.model_spec import ModelSpec
from dejavubench.models.hub.specs import SPECS, find_spec, make_custom_spec
from helpers.paths import ROOT

PUBLISHED = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "opt-125m": 125_239_296,
    "opt-350m": 331_196_416,
    "opt-1.3b": 1_315_758_080,
    "opt-2.7b": 2_651_596_800,
    "opt-6.7b": 6_658_473_984,
    "opt-13b": 12_853_473_280,
    "opt-30b": 29_974_540_288,
    "opt-66b": 65_719_701_504,
    "bloom-560m": 559_214_592,
    "bloom-1b1": 1_065_314_304,
    "bloom-1b7": 1_722_408_960,
    "bloom-3b": 3_002_557_440,
    "bloom-7b1": 7_069_016_064,
    "bloom-176b": 176_247_271_424,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "qwen3-0.6b": 596_049_920,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-32b": 32_762_123_264,
}


def test_every_named_model_has_a_published_count() -> None:
    assert set(PUBLISHED) == set(SPECS)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name: str) -> None:
    assert find_spec(name).parameter_count == PUBLISHED[name]


GATED_MODELS = {
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
}
"""The configuration and the model of transformers, by family."""


def _make_gated_transformers_model(
    sizes: ModelSpec, config_name: str, model_name: str
) -> torch.nn.Module:
    import transformers

    config = getattr(transformers, config_name)(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.ffn_size,
        num_hidden_layers=sizes.layer_num,
        num_attention_heads=sizes.head_num,
        num_key_value_heads=sizes.kv_heads,
        head_dim=sizes.size_per_head,
        tie_word_embeddings=sizes.tied,
    )
    model: torch.nn.Module = getattr(transformers, model_name)(config)
    return model


def _transformers_model(sizes: ModelSpec) -> torch.nn.Module:
    import transformers

    family = sizes.name.split("-")[0]
    with torch.device("meta"):  # shapes only: no weights are made
        if family == "gpt2":
            return transformers.GPT2LMHeadModel(
                transformers.GPT2Config(
                    n_layer=sizes.layer_num, n_head=sizes.head_num, n_embd=sizes.hidden
                )
            )
        if family == "opt":
            return transformers.OPTForCausalLM(
                transformers.OPTConfig(
                    num_hidden_layers=sizes.layer_num,
                    num_attention_heads=sizes.head_num,
                    hidden_size=sizes.hidden,
                    ffn_dim=sizes.ffn_size,
                    word_embed_proj_dim=sizes.embed_size or sizes.hidden,
                    do_layer_norm_before=sizes.norm_first,
                )
            )
        if family in GATED_MODELS:
            return _make_gated_transformers_model(sizes, *GATED_MODELS[family])
        return transformers.BloomForCausalLM(
            transformers.BloomConfig(
                vocab_size=sizes.vocab_size,
                n_layer=sizes.layer_num,
                n_head=sizes.head_num,
                hidden_size=sizes.hidden,
            )
        )


@pytest.mark.parametrize(
    "name",
    [
        "gpt2",
        "gpt2-xl",
        "opt-125m",
        "opt-350m",
        "opt-66b",
        "bloom-560m",
        "bloom-176b",
        "llama-3.2-1b",
        "llama-3.1-8b",
        "qwen3-0.6b",
        "qwen3-32b",
    ],
)
def test_transformers_builds_as_many_parameters(name: str) -> None:
    model = _transformers_model(find_spec(name))
    assert (
        sum(parameter.numel() for parameter in model.parameters())
        == find_spec(name).parameter_count
    )


@pytest.mark.parametrize(
    ("name", "close"), [("gpt-2", "gpt2"), ("opt13b", "opt-13b"), ("bloom-7b", "bloom-7b1")]
)
def test_a_misspelt_name_gets_close_matches(name: str, close: str) -> None:
    with pytest.raises(ValueError, match=f"unknown model '{name}'; did you mean .*{close}"):
        find_spec(name)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("OPT-13B", "did you mean opt-13b?"),
        ("GPT2", "did you mean gpt2?"),
        ("GPT-2 XL", "did you mean gpt2-xl?"),
        ("openai-community/gpt2", "did you mean gpt2?"),
        ("facebook/opt-1.3b", "did you mean opt-1.3b?"),
        ("bigscience/bloom", "did you mean bloom-176b?"),
        ("meta-llama/Llama-3.1-8B", "did you mean llama-3.1-8b?"),
        ("Qwen/Qwen3-8B", "did you mean qwen3-8b?"),
        (
            "EleutherAI/gpt-j-6b",
            "Else: for any other model download its folder and give it as --ckpt-path",
        ),
        ("./models/mine", "for any other model download its folder and give it as --ckpt-path"),
        ("~/mine", "for any other model download its folder and give it as --ckpt-path"),
        ("tests", "a folder with a model of its own is given as --ckpt-path tests"),
        ("mistral", "known are gpt2, gpt2-medium"),
        ("a\0b", "known are gpt2, gpt2-medium"),
        ("n" * 300, "known are gpt2, gpt2-medium"),
    ],
)
def test_names_as_hubs_spell_them_and_paths_get_the_right_hint(
    name: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match="unknown model") as raised:
        find_spec(name)
    assert hint in str(raised.value)
    assert str(raised.value).isprintable()


def test_a_name_like_no_other_gets_all_names() -> None:
    with pytest.raises(ValueError, match=r"known are gpt2, .* qwen3-32b and custom"):
        find_spec("xyzzy")


def test_a_model_of_custom_size_is_a_gpt2() -> None:
    gpt2 = find_spec("gpt2")
    free = make_custom_spec(
        gpt2.layer_num, gpt2.head_num, gpt2.size_per_head, gpt2.vocab_size, context=1024
    )
    assert free.parameter_count == gpt2.parameter_count
    assert free.name == "custom"


@pytest.mark.parametrize(
    ("stages", "cuts"), [(1, (0, 12)), (5, (0, 3, 6, 8, 10, 12)), (12, tuple(range(13)))]
)
def test_layers_are_cut_evenly(stages: int, cuts: tuple[int, ...]) -> None:
    assert find_spec("gpt2").layer_cuts(stages) == cuts


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="gpt2 has 12 layers"):
        find_spec("gpt2").layer_cuts(13)
