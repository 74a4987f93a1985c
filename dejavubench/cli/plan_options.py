"""Options of ``dejavubench plan``: a model, and the setups of both sides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import click

from dejavubench import units, values
from dejavubench.cli.params import PATH, ParsedType
from dejavubench.config.experiment import default_of
from dejavubench.config.points import DataType, LayoutName
from dejavubench.models.hub import model_spec, specs


def _parse_spec(value: str) -> model_spec.ModelSpec:
    if value == specs.CUSTOM:
        raise ValueError(
            f"{specs.CUSTOM} has no sizes of its own; use one of {', '.join(specs.SPECS)}"
        )
    return specs.find_spec(value)


def _parse_cuts(value: Any) -> Any:
    if isinstance(value, tuple):  # click converts a value again
        return value
    try:
        return tuple(
            values.parse_count(layer, least=-values.LARGEST_COUNT)
            for layer in str(value).split(",")
        )
    except ValueError:
        raise ValueError(
            f"{values.format_value(value)} is not a list of layers such as 0,7,13"
        ) from None


def _parse_count(value: Any) -> int:
    if isinstance(value, str) and "," in value:
        raise ValueError(f"takes one value; it cannot be swept: {values.format_value(value)}")
    return values.parse_count(value)


def _add_count_option(key: str, metavar: str, text: str) -> Callable[[Any], Any]:
    """Add a count with the default of the same option of ``run``."""
    default = default_of(key)
    default_count = default[0] if isinstance(default, tuple) else default
    flag = "--" + key.replace("_", "-")
    return click.option(
        flag,
        metavar=metavar,
        type=COUNT,
        default=default_count,
        help=f"{text} {_describe_default(default_count)}",
    )


def _describe_default(default: object) -> str:
    """Return the end of the help of an option whose default --from replaces."""
    return f"[default: {default}; with --from, the run's]"


COUNT = ParsedType("count", _parse_count)
"""A whole number from 1."""

CUTS = ParsedType("cuts", _parse_cuts)
"""Boundaries of the stages: the first layer of each, then the number of layers."""

_OPTIONS = [
    click.option(
        "--from",
        "from_run",
        metavar="RUN",
        type=PATH,
        help="Predict overheads from the measured run in this folder, or from all runs of one "
        "machine below it; needs --link. The run's model and sizes replace the defaults below.",
    ),
    click.option(
        "--model",
        "spec",
        metavar="NAME",
        type=ParsedType("model", _parse_spec),
        help="Sizes by name: gpt2, opt-13b, …",
    ),
    click.option(
        "--ckpt-path",
        metavar="DIR",
        type=PATH,
        help="Hugging Face folder to take the sizes from instead; its config.json is enough.",
    ),
    _add_count_option("input_len", "P", "Tokens of each prompt."),
    _add_count_option(
        "output_len", "T", "New tokens per request, including the one that ends the prompt."
    ),
    click.option(
        "--data-type",
        "--inference-data-type",
        type=click.Choice(get_args(DataType)),
        default="fp16",
        help=f"Data type of the cache. {_describe_default('fp16')}",
    ),
    click.option(
        "--kv-layout",
        type=click.Choice(get_args(LayoutName)),
        default=default_of("kv_layout")[0],
        help=f"Layout of the caches on both sides. {_describe_default(default_of('kv_layout')[0])}",
    ),
    _add_count_option("flush_interval", "N", "Tokens whose keys and values move as one."),
    _add_count_option("ubatch_size", "N", "Requests per microbatch of the sources."),
    _add_count_option("tensor_para_size", "N", "Tensor-parallel degree of the sources."),
    click.option(
        "--pipeline-para-size",
        metavar="N",
        type=COUNT,
        help="Pipeline depth of the sources, cut evenly. [default: 1]",
    ),
    click.option(
        "--layer-cuts",
        metavar="0,A,…,L",
        type=CUTS,
        help="Stage boundaries of the sources, if they are uneven.",
    ),
    click.option(
        "--sink-ubatch-size",
        metavar="N",
        type=COUNT,
        help="Requests per microbatch of the sinks. [default: as sources]",
    ),
    click.option(
        "--sink-tensor-para-size",
        metavar="N",
        type=COUNT,
        help="Tensor-parallel degree of the sinks. [default: as sources]",
    ),
    click.option(
        "--sink-pipeline-para-size",
        metavar="N",
        type=COUNT,
        help="Pipeline depth of the sinks, cut evenly. [default: as sources]",
    ),
    click.option(
        "--sink-layer-cuts",
        metavar="0,A,…,L",
        type=CUTS,
        help="Stage boundaries of the sinks, if they are uneven.",
    ),
    click.option(
        "--requests",
        metavar="N",
        type=COUNT,
        help="Requests in flight. [default: ubatch size × pipeline depth of the sources]",
    ),
    click.option(
        "--link",
        "rate",
        metavar="RATE",
        type=ParsedType("rate", units.parse_rate),
        help="Rate of each link, to add the least times, or to predict overheads for: 25GB/s, "
        "23.3GiB/s, 200Gbit/s.",
    ),
    click.option(
        "--latency",
        metavar="TIME",
        type=ParsedType("latency", units.parse_latency),
        help="Latency of each link: 5us, 0.1ms. With --from, latency beyond that of the measured "
        "link. [default: 0]",
    ),
]


def add_plan_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options to a command, in their order."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
