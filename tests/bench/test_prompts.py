"""Prompts from a file: reading them, unequal lengths in one batch, and jobs with them."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dejavubench.bench.engine.prompts import Prompts, make_prompts
from dejavubench.config.prompt_file import PromptError, read_prompts
from dejavubench.config.resolve import load
from dejavubench.dejavulib.kv_cache import KVLayout
from dejavubench.errors import UsageError
from dejavubench.models.attention import QUERIES_PER_BLOCK
from dejavubench.models.gpt import GPT
from dejavubench.models.hub.model_spec import ModelSpec
from dejavubench.models.weights import make_random_weights
from helpers.jobs import QUICK, args, read_tokens, run
from helpers.reference_models import (
    BLOOM,
    GPT2,
    OPT_POST,
    STEPS,
    VOCAB,
    build,
    cache_of_nan,
    require_close,
)
from helpers.saved_models import MODELS, load_model, save_model

pytestmark = pytest.mark.usefixtures("one_thread")

# ---- files ----


def write_file(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("bom.csv", "\ufeff5,6,7\r\n8\r\n9,10"),
        ("start_ids.csv", "5,6, 7\n\n8\n9,10,\n"),
        ("ids.jsonl", "[5, 6, 7]\n[8]\n\n[9, 10]"),
        ("UPPER.CSV", "5, 6, 7\r8\r9, 10"),
        ("start_ids", "5,6,7\n 8 , ,\n9, 10,,\n"),
        ("numbers.txt", "5,6,007\n8\n9,10"),
        (
            "vllm.JSONL",
            '{"prompt_token_ids": [5, 6, 7], "prompt": "x"}\n'
            '{"prompt": [8], "output_tokens": 5}\n[9, 10]',
        ),
        (
            "tokens.jsonl",
            '{"point": "p000", "prompt": [5, 6, 7], "tokens": [1]}\n'
            '{"prompt": [8]}\n{"prompt": [9, 10]}',
        ),
        ("ids", "[5, 6, 7]\r\n[8]\r\n[9, 10]\r\n"),
    ],
)
def test_each_line_of_token_ids_is_a_prompt(name: str, text: str, tmp_path: Path) -> None:
    assert read_prompts(write_file(tmp_path, name, text), None) == ((5, 6, 7), (8,), (9, 10))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "1,2\n3,x\n", "a.csv: line 2: 'x' is not a token id"),
        ("a.csv", "1,-2\n", "a.csv: line 1: '-2' is not a token id"),
        ("a.csv", "\n\n", "a.csv: has no prompt"),
        ("a.jsonl", "[1]\n[1, 2.5]", "a.jsonl: line 2: 2.5 is not a token id"),
        ("a.jsonl", "[true]", "line 1: True is not a token id"),
        ("a.jsonl", "[]", "line 1: has no tokens"),
        ("a.jsonl", "{", "line 1: column 2: not JSON: Expecting property name"),
        (
            "a.jsonl",
            '{"prompt": 1}',
            "line 1: 1 is not a prompt; lines that are read: token ids as 1,2,3",
        ),
        ("a.jsonl", '[1]\n{"prompt": ["a"]}', "line 2: 'a' is not a token id"),
        (
            "a.jsonl",
            '{"prompt_token_ids": "a"}',
            "line 1: prompt_token_ids 'a' is not a list of token ids",
        ),
        ("a.jsonl", "[[1, 2], [3]]", r"line 1: \[1, 2\] is not a token id"),
        ("a.jsonl", "[" * 100_000, "line 1: not usable JSON: its brackets are nested too deeply"),
        ("a.jsonl", f"[{'9' * 5000}]", "line 1: not usable JSON: a number has too many digits"),
        ("a.jsonl", "[1e400]", "line 1: inf is not a token id"),
        ("a.jsonl", "[NaN]", "line 1: nan is not a token id"),
        (
            "a.jsonl",
            "[3000000000]",
            "line 1: 3000000000 is not a token id: it is larger than 2147483647",
        ),
        (
            "ids.json",
            "[[11, 12, 13], [21, 22]]",
            r"ids.json: a .json file is one document: .* \.jsonl .* \[1, 2, 3\]",
        ),
        (
            "m.jsonl",
            '{"timestamp": 0, "input_length": 2, "hash_ids": [0]}',
            "line 1: it is a Mooncake trace.* 1,2,3",
        ),
        (
            "s.jsonl",
            '{"id": "x", "conversations": []}',
            "line 1: it is a ShareGPT conversation.* 1,2,3",
        ),
        ("o.jsonl", '{"text": "x"}', "line 1: an object with 'text'; lines that are read"),
        ("a.csv", "1,2\n3,,4", "line 2: '' is not a token id: there is nothing between two commas"),
        ("a.csv", "1,2\n3,1.1e+01", "line 2: '1.1e\\+01' is not a token id: write whole numbers"),
        ("start_ids", "1,2\n3,-1", "line 2: '-1' is not a token id"),
        ("start_ids", "1,2\n3.0,4", "line 2: '3.0' is not a token id"),
        ("start_ids", "1 2 3", "line 1: '1 2 3' is not a token id: commas go between"),
        ("a.csv", "\u0663", "line 1: '\u0663' is not a token id"),
        ("a.csv", "9" * 5000, r"line 1: '9+… \(5002 characters\) is not a token id"),
        ("a.txt", "hello", "line 1: prompts of text need --ckpt-path"),
    ],
)
def test_a_malformed_prompt_is_named(name: str, text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=words):
        read_prompts(write_file(tmp_path, name, text), None)


def test_a_prompt_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "utf16.csv").write_bytes("1,2".encode("utf-16"))
    (tmp_path / "latin.csv").write_bytes(b"1,2\n\xe9")
    for path, words in (
        (tmp_path / "utf16.csv", "UTF-16"),
        (tmp_path / "latin.csv", "line 2, byte 1: can't decode 0xe9 as UTF-8"),
        (tmp_path, "is a folder, and not a file with one prompt per line"),
        (tmp_path / "none.csv", "none.csv does not exist. Give a file with one prompt per line"),
        (Path("/dev/zero"), "is a device, and not a file"),
    ):
        with pytest.raises(PromptError, match=words):
            read_prompts(path, None)


def save_tokenizer(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    words = {word: number for number, word in enumerate(["[UNK]", "the", "cache", "streams", "on"])}
    tokenizer = Tokenizer(models.WordLevel(words, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)
    return folder


def test_text_goes_through_the_tokenizer_of_the_checkpoint(tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path / "model")
    for name, text in (
        ("a.txt", "the cache streams on\n\nthe model\n"),
        ("a.jsonl", '"the cache streams on"\n[1, 0]'),
        ("vllm", '{"prompt": "the cache streams on", "output_tokens": 5}\n{"prompt": "the model"}'),
    ):
        assert read_prompts(write_file(tmp_path, name, text), folder) == ((1, 2, 3, 4), (1, 0))


def test_only_ends_of_lines_end_prompts(tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path / "model")
    for name, text in (
        ("a.txt", "the cache\u2028streams\x0con\n"),
        ("a.jsonl", '"the cache\u2028streams on"'),
    ):
        assert read_prompts(write_file(tmp_path, name, text), folder) == ((1, 2, 3, 4),)


def test_without_transformers_text_is_refused_and_ids_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "transformers":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert read_prompts(write_file(tmp_path, "a.csv", "1"), tmp_path) == ((1,),)
    with pytest.raises(
        PromptError,
        match=r"need transformers, which is not installed: pip install 'dejavubench\[text\]'",
    ):
        read_prompts(write_file(tmp_path, "a.txt", "the"), tmp_path)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            {},
            "has no tokenizer that transformers can load: save the tokenizer there, or give token "
            "ids; .*1,2,3",
        ),
        (
            {"tokenizer.json": "{"},
            "no tokenizer that transformers can load; give token ids, or save .*: .+",
        ),
    ],
)
def test_a_folder_without_tokenizer_is_one_whole_line(
    files: dict[str, str], words: str, tmp_path: Path
) -> None:
    for name, text in files.items():
        write_file(tmp_path, name, text)
    with pytest.raises(PromptError, match=words) as raised:
        read_prompts(write_file(tmp_path, "a.txt", "the"), tmp_path)
    assert "\n" not in str(raised.value)


# ---- of an experiment ----


def test_the_longest_prompt_sets_the_length_of_every_point(tmp_path: Path) -> None:
    path = write_file(tmp_path, "a.csv", "1,2\n3,4,5,6,7\n8")
    plan = load(None, {"prompts": path, "ubatch_size": "1,4", "device": "cpu"}, {})
    assert [point.input_len for point in plan.points] == [5, 5]
    batches_of_one, batches_of_four = (
        make_prompts(point, microbatch_count=2, seed=0, plan_prompts=plan.prompts)
        for point in plan.points
    )
    assert [batch.without_padding() for batch in batches_of_one] == [[[1, 2]], [[3, 4, 5, 6, 7]]]
    assert [batch.without_padding() for batch in batches_of_four] == [
        [[1, 2], [3, 4, 5, 6, 7], [8], [1, 2]],
        [[3, 4, 5, 6, 7], [8], [1, 2], [3, 4, 5, 6, 7]],
    ]
    assert batches_of_one[1].prompt_start is None
    assert batches_of_four[0].prompt_start is not None
    assert batches_of_four[0].prompt_start.tolist() == [3, 0, 4, 3]
    assert torch.cat([batch.request_numbers for batch in batches_of_four]).tolist() == list(
        range(8)
    )


def test_other_prompts_change_the_hash_and_another_path_does_not(tmp_path: Path) -> None:
    own_path, path_of_a_copy, path_of_other_prompts = (
        write_file(tmp_path, f"{n}.csv", text) for n, text in enumerate(("1,2", "1,2", "1,3"))
    )
    hashes = [
        load(None, {"prompts": path, "device": "cpu"}, {}).hash()
        for path in (own_path, path_of_a_copy, path_of_other_prompts)
    ]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    ("text", "more", "words"),
    [
        ("1,50304", {}, "prompt 1 has token 50304; the last token of custom is 50303"),
        ("1,2", {"input_len": "4"}, "--input-len 4 is for random prompts"),
        (
            "1,2",
            {"output_len": "8", "max_seq_len": "8"},
            "--input-len 2 and --output-len 8 take 9 positions",
        ),
        ("1," * 1030, {"model": "gpt2"}, "take 1061 positions, but gpt2 has 1024"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(
    text: str, more: dict[str, str], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=words):
        load(None, {"prompts": write_file(tmp_path, "a.csv", text), "device": "cpu", **more}, {})


@pytest.mark.usefixtures("gpu")
def test_unequal_lengths_are_refused_on_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="prompts of different lengths need --device cpu"):
        load(None, {"prompts": write_file(tmp_path, "a.csv", "1,2\n3"), "device": "cuda"}, {})
    assert load(
        None, {"prompts": write_file(tmp_path, "a.csv", "1,2\n3,4"), "device": "cuda"}, {}
    ).prompts


# ---- unequal lengths ----


def require_requests_as_alone(model: GPT, lengths: list[int], layout: KVLayout, steps: int) -> None:
    """Assert that logits and greedy tokens of a padded batch are those of its requests alone."""
    generator = torch.Generator().manual_seed(2)
    asked = [
        tuple(torch.randint(VOCAB, (length,), generator=generator).tolist()) for length in lengths
    ]
    longest = max(lengths)
    batch = Prompts.pad(asked, torch.arange(len(asked)), longest)
    cache = cache_of_nan(model, len(asked), longest + steps, layout)
    caches_alone = [
        cache_of_nan(model, requests=1, positions=length + steps, layout=layout)
        for length in lengths
    ]
    logits = model.forward(batch.tokens, cache, 0, prompt_start=batch.prompt_start)
    expected = torch.cat(
        [
            model.forward(torch.tensor([ids]), cache_alone, 0)
            for ids, cache_alone in zip(asked, caches_alone, strict=True)
        ]
    )
    for step in range(steps):
        require_close(logits, expected)
        tokens = model.greedy(logits).tokens
        assert torch.equal(tokens, model.greedy(expected).tokens)
        logits = model.forward(
            tokens[:, None], cache, longest + step, prompt_start=batch.prompt_start
        )
        requests_alone = zip(lengths, caches_alone, tokens, strict=True)
        expected = torch.cat(
            [
                model.forward(token.view(1, 1), cache_alone, length + step)
                for length, cache_alone, token in requests_alone
            ]
        )
    assert not cache.keys(0, longest + steps).isnan().any()


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        *((family, KVLayout.HND) for family in MODELS),
        ("bloom", KVLayout.FT),
        ("opt", KVLayout.NHD),
        ("qwen3", KVLayout.FT),
    ],
)
def test_each_request_of_a_padded_batch_gets_what_it_gets_alone(
    family: str, layout: KVLayout, tmp_path: Path
) -> None:
    require_requests_as_alone(
        load_model(save_model(family, tmp_path / "model")), [9, 2, 5], layout, STEPS
    )


@pytest.mark.parametrize("spec", [GPT2, BLOOM, OPT_POST], ids=lambda spec: spec.name)
def test_padding_may_be_longer_than_a_block(spec: ModelSpec) -> None:
    lengths = [QUERIES_PER_BLOCK + 45, 3, QUERIES_PER_BLOCK + 1]
    require_requests_as_alone(build(spec, make_random_weights(spec, 0)), lengths, KVLayout.HND, 4)


def test_a_batch_needs_the_mask_of_its_padding() -> None:
    """Without its mask, padding changes the logits: else the test above would see nothing."""
    model = build(GPT2, make_random_weights(GPT2, 0))
    batch = Prompts.pad([(1, 2, 3), (4,)], torch.arange(2), 3)
    caches = [cache_of_nan(model, requests=2, positions=8) for _ in range(2)]
    masked = model.forward(batch.tokens, caches[0], 0, prompt_start=batch.prompt_start)
    blind = model.forward(batch.tokens, caches[1], 0)
    torch.testing.assert_close(masked[0], blind[0])
    assert (masked[1] - blind[1]).abs().max() > 0.01 * blind[1].abs().max()


# ---- jobs ----


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("ranks", "flags"),
    [
        (2, args("--tensor-para-size 2 --streaming host,disk")),
        (4, args("--pipeline-para-size 2 --streaming mpi")),
    ],
    ids=["tensor-parallel", "pipeline"],
)
def test_a_run_answers_a_prompt_among_longer_ones_as_alone(
    ranks: int, flags: tuple[str, ...], tmp_path: Path
) -> None:
    prompts = ["5,6,7", "8", "9,10,11,12,13,14", "99,1"]
    path = write_file(tmp_path, "all.csv", "\n".join(prompts))
    quick = [flag for flag in QUICK if flag not in ("--input-len", "8")]
    one_round = args("--rounds 1 --warmup 0 --inference-data-type fp32")
    job_together = run(
        tmp_path / "together", ranks, "run", *quick, *one_round, "--prompts", path, *flags
    )
    answered = {tuple(line["prompt"]): line["tokens"] for line in read_tokens(job_together.folder)}
    stages = 2 if ranks == 4 else 1
    assert len(read_tokens(job_together.folder)) == 2 * stages
    most_padded = prompts[1]
    job_alone = run(
        tmp_path / "alone", 1, "run", *quick, *one_round, "--ubatch-size", 1, "--streaming", "none",
        "--prompts", write_file(tmp_path, "one.csv", most_padded),
    )  # fmt: skip
    (line,) = read_tokens(job_alone.folder)
    assert answered[tuple(line["prompt"])] == line["tokens"]


@pytest.mark.mpi
def test_a_wrong_prompt_is_one_message_and_status_2(tmp_path: Path) -> None:
    path = write_file(tmp_path, "a.csv", "1,2\n3,x")
    job = run(tmp_path, 2, "run", *QUICK, "--prompts", path, status=2)
    assert job.stderr == f"Error: --prompts: {path}: line 2: 'x' is not a token id\n"
