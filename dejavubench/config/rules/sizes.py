"""Rules about the size of a sweep, the model and the prompts."""

from __future__ import annotations

from math import prod

from dejavubench.config.plan import Plan
from dejavubench.config.points import SETTINGS
from dejavubench.config.rules.rule import format_given, format_list, make_rule
from dejavubench.models.hub.specs import CUSTOM

MOST_POINTS = 10_000
"""A sweep of more points is a mistake, or the work of several runs."""

MOST_WORKERS = 4096
"""Sources, and sinks, of one run."""

NO_FP32_ON_CUDA = (
    "--inference-data-type fp32 does not run on a GPU: its decode kernels take fp16 and bf16"
)


# ---- limits ----


def _count_points(plan: Plan) -> int:
    experiment = plan.experiment
    lists = (
        experiment.model,
        experiment.inference_data_type,
        experiment.kv_layout,
        experiment.ubatch_size,
        *(getattr(experiment, name) for name in SETTINGS),
    )
    return prod(map(len, (*lists, plan.prompt_lens, experiment.output_len)))


def _find_too_large_side(plan: Plan) -> tuple[str, int] | None:
    sides = (("--", plan.experiment.sources), ("--sink-", plan.experiment.sinks))
    return next(((flags, size) for flags, size in sides if size > MOST_WORKERS), None)


LIMITS = (
    make_rule(
        lambda plan: (count := _count_points(plan)) > MOST_POINTS and count,
        lambda plan, count: (
            f"the lists combine to {count:,} points; one run takes at most {MOST_POINTS:,}. "
            "Shorten a list, or split the sweep into several runs"
        ),
    ),
    make_rule(
        _find_too_large_side,
        lambda plan, side: (
            f"{side[0]}tensor-para-size × {side[0]}pipeline-para-size takes {side[1]:,} ranks; at "
            f"most {MOST_WORKERS:,} are supported"
        ),
    ),
)
"""Rules on the numbers of points and of workers, which later rules take for granted."""


# ---- the model ----

_SIZES = ("layer_num", "head_num", "size_per_head", "vocab_size")


def _find_size_of_another_model(plan: Plan) -> tuple[str, str] | None:
    experiment = plan.experiment
    key = next((key for key in _SIZES if experiment.is_given(key)), None)
    if key is None or (experiment.ckpt_path is None and CUSTOM in experiment.model):
        return None
    return key, str(experiment.ckpt_path or format_list(experiment.model))


def _count_positions_if_too_few(plan: Plan) -> int:
    """Return the positions that the longest request needs; its last new token is never written."""
    needed_count = max(plan.prompt_lens) + max(plan.experiment.output_len) - 1
    return needed_count if 0 < (plan.experiment.max_seq_len or 0) < needed_count else 0


def _find_limit_without_draws(plan: Plan) -> str | None:
    if plan.experiment.temperature:
        return None
    return next((key for key in ("top_k", "top_p") if plan.experiment.is_given(key)), None)


MODEL = (
    make_rule(
        _find_size_of_another_model,
        lambda plan, conflict: (
            f"{format_given(plan, conflict[0])} is for --model {CUSTOM}; {conflict[1]} has its "
            "own sizes. Drop the flag"
        ),
    ),
    make_rule(
        lambda plan: (
            plan.experiment.device == "cuda"
            and set(plan.experiment.inference_data_type) == {"fp32"}
        ),
        lambda plan, _: NO_FP32_ON_CUDA,
    ),
    make_rule(
        lambda plan: plan.experiment.nvtx and plan.experiment.device != "cuda",
        lambda plan, _: (
            f"--nvtx needs --device cuda, not {plan.experiment.device}: profilers of a GPU read "
            "the ranges. 'dejavubench trace' shows the same lanes of every run. Drop --nvtx"
        ),
    ),
    make_rule(
        lambda plan: plan.experiment.ckpt_path is not None and plan.experiment.is_given("model"),
        lambda plan, _: (
            f"--model {format_list(plan.experiment.model)} cannot be combined with --ckpt-path, "
            "which has a model of its own. Drop one of them"
        ),
    ),
    make_rule(
        _count_positions_if_too_few,
        lambda plan, needed_positions: (
            f"--max-seq-len {plan.experiment.max_seq_len} is too short: --input-len "
            f"{max(plan.prompt_lens)} and --output-len {max(plan.experiment.output_len)} take "
            f"{needed_positions} positions of the cache"
        ),
    ),
    make_rule(
        _find_limit_without_draws,
        lambda plan, key: (
            f"{format_given(plan, key)} needs a --temperature above 0: at 0 no token is drawn"
        ),
    ),
)
"""Rules on a model and its sizes."""


# ---- prompts ----


def _find_token_beyond_vocabulary(plan: Plan) -> tuple[int, int, str, int] | None:
    for spec in map(plan.spec, plan.experiment.model):
        for prompt_number, ids in enumerate(plan.prompts, 1):
            if max(ids) >= spec.vocab_size:
                return prompt_number, max(ids), spec.name, spec.vocab_size - 1
    return None


PROMPTS = (
    make_rule(
        lambda plan: plan.prompts and plan.experiment.is_given("input_len"),
        lambda plan, _: (
            f"{format_given(plan, 'input_len')} is for random prompts; those in "
            f"{plan.experiment.prompts} have their own lengths. Drop one of them"
        ),
    ),
    make_rule(
        lambda plan: plan.experiment.device == "cuda" and len(set(map(len, plan.prompts))) > 1,
        lambda plan, _: (
            f"{plan.experiment.prompts}: prompts of different lengths need --device cpu: on a GPU "
            "a step has no padding"
        ),
    ),
    make_rule(
        _find_token_beyond_vocabulary,
        lambda plan, conflict: (
            f"{plan.experiment.prompts}: prompt {conflict[0]} has token {conflict[1]}; "
            f"the last token of {conflict[2]} is {conflict[3]}"
        ),
    ),
)
"""Rules of ``--prompts``."""


def _find_problem_of_all_points(plan: Plan) -> str | None:
    """Return the first point's problem if all have one; in a sweep the points that can run do."""
    problems = [point.problem for point in plan.points]
    return problems[0] if all(problems) else None


SIZES = (
    make_rule(
        _find_problem_of_all_points,
        lambda plan, problem: problem,
    ),
)
"""The rule that asks each point for its own problem."""
