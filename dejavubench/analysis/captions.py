"""What stands above and below a figure: machine, sizes, how often it was measured, and what to beware of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dejavubench.analysis import health, link, stats, tables
from dejavubench.analysis.machine import LOOPBACK, on_gpu, processor
from dejavubench.records import Run

if TYPE_CHECKING:
    import pandas as pd

NAMES = {
    "model": "model",
    "data_type": "data type",
    "kv_layout": "KV layout",
    "ubatch_size": "batch",
    "input_len": "prompt",
    "output_len": "new tokens",
    "tensor_para_size": "tensor parallel",
    "pipeline_para_size": "pipeline depth",
    "sinks": "sinks",
    "handed_over": "handed over after tokens",
}

_TITLES = {
    "fig2": "Fig 2: time of a prompt and of one token, no streaming",
    "appendix_a": "Appendix A: time of a prompt and of one token, no streaming",
    "fig7": "Fig 7: slowdown over no streaming, one optimisation after the other",
    "fig25": "Fig 25: a request with its whole KV cache streamed",
    "link": "Overhead against the speed of the link, level by level: measured and predicted",
}

_HOW = {
    "fig2": "Medians over rounds; the ratio is that of one round's prompt to its median token.",
    "appendix_a": "Medians over rounds; the ratio is that of one round's prompt to its median token.",
    "fig7": "Slowdown: median over rounds of the arm's time / geometric mean of the same round's none times; "
    "bars start at 1 (no streaming).",
    "fig25": "TOTAL: median over rounds; overhead: median over rounds of TOTAL / geometric mean of the same round's "
    "none TOTALs, less one.",
    "link": "Points: median over rounds of TOTAL / geometric mean of the same round's none TOTALs, less one. "
    "Lines: from bytes, the times of none and the link's rate alone (docs/METHOD.md).",
}


_SECOND_HAND = (
    "Second-hand, of the paper's figure (A100, fp16; not verified): naive streaming 131× (GPT2-1.5B), 92× (OPT-13B), "
    "69× (OPT-66B); buffered copies 95 times faster than naive, both further steps another 1.4."
)
"""Of FasterTransformer's layout, on GPUs; said below a figure of the same kind, drawn nowhere."""

DESTINATIONS = {
    "nccl": "remote GPU (NCCL)",
    LOOPBACK: "loopback on one GPU (NCCL)",
    "nixl": "NIXL",
    "swap-host": "swapped to host memory",
    "swap-disk": "swapped to disk",
}
"""What stands in figures for a mode."""


def destination(mode: str) -> str:
    return DESTINATIONS.get(mode, mode)


def title(figure: str, models: Sequence[str]) -> str:
    return f"{_TITLES[figure]} ({models[0]})" if len(models) == 1 else _TITLES[figure]


def _said(frame: pd.DataFrame) -> list[str]:
    """What the caption tells of all points; that sinks are as the sources, and only receive, goes without saying."""
    usual = {name for name in ("sinks", "handed_over") if not frame[name].any()}
    return [name for name in tables.POINT_COLUMNS if name not in {"model", *usual}]


def caption(figure: str, runs: Sequence[Run], frame: pd.DataFrame) -> str:
    """Sentences for below the figure; ``frame`` is what is drawn."""
    sentences = [
        machine(runs[0]),
        f"Model {_models(runs, frame)}, "
        + ", ".join(f"{NAMES[name]} {_values(frame, name)}" for name in _said(frame))
        + ".",
        f"{_HOW[figure]} {_rounds(frame)}",
        _paths(frame),
        _link(frame) if figure == "link" else "",
        _noise(figure, frame),
        _paper(figure, runs, frame),
        _left_out(runs),
        *dict.fromkeys(health.brief(run) for run in runs),
        *dict.fromkeys(f"Note: {_shortened(run.header.note)}." for run in runs if run.header.note),
        "Run " + ", ".join(run.path.name for run in runs) + ".",
    ]
    return " ".join(sentence for sentence in sentences if sentence)


LONGEST_NOTE = 1000
"""Characters of a note that a caption has room for."""


def _shortened(note: str) -> str:
    return note if len(note) <= LONGEST_NOTE else note[: LONGEST_NOTE - 1] + "…"


def machine(run: Run) -> str:
    """GPU or CPU, cores, hosts, software and date, as far as the run recorded them."""
    known = run.header.environment
    names = known.get("hostnames") or []
    versions = known.get("versions") or {}
    gpu = known.get("gpu") or {}
    words = [
        processor(run) or "CPU not recorded",
        f"{known['cores']} {'CPU cores' if on_gpu(run) else 'cores'}"
        if known.get("cores")
        else None,
        f"{len(names)} host{'' if len(names) == 1 else 's'}" if names else None,
        f"torch {versions['torch']}" if "torch" in versions else None,
        f"CUDA {gpu['cuda']}" if gpu.get("cuda") else None,
        f"NCCL {gpu['nccl']}" if gpu.get("nccl") and _uses_nccl(run) else None,
        known.get("mpi_library"),
        str(known.get("date") or run.header.started_utc)[:10],
    ]
    return (
        ", ".join(" ".join(str(word).replace("Version:", "").split()) for word in words if word)
        + "."
    )


def _uses_nccl(run: Run) -> bool:
    return any(arm.mode.startswith("nccl") for arm in run.header.arms)


def _paper(figure: str, runs: Sequence[Run], frame: pd.DataFrame) -> str:
    return (
        _SECOND_HAND
        if figure == "fig7" and on_gpu(runs[0]) and "ft" in set(frame["kv_layout"])
        else ""
    )


def panel(frame: pd.DataFrame, columns: Sequence[str]) -> str:
    """What sets a panel apart: the given columns of its first row, in words."""
    first = frame.iloc[0]
    return ", ".join(
        f"{first[name]}" if name == "model" else f"{NAMES[name]} {first[name]}" for name in columns
    )


def _models(runs: Sequence[Run], frame: pd.DataFrame) -> str:
    sizes = {point.model: point.parameters for run in runs for point in run.header.points}
    return "/".join(
        f"{model} ({sizes[model] / 1e6:,.1f} M parameters)"
        for model in dict.fromkeys(frame["model"])
    )


def _values(frame: pd.DataFrame, name: str) -> str:
    return "/".join(str(value) for value in dict.fromkeys(frame[name]))


def _rounds(frame: pd.DataFrame) -> str:
    low, high = int(frame["samples"].min()), int(frame["samples"].max())
    if high == 1:
        return "n = 1 round, so there are no intervals."
    bars = "Error bars: 95 % bootstrap intervals of the median, "
    if low < stats.COVERING_ROUNDS:
        bars = "Error bars: the range of so few rounds, no 95 % intervals, "
    count = bars + (f"n = {low} rounds." if low == high else f"n = {low} to {high} rounds.")
    return count + _beware(low)


def _beware(rounds: int) -> str:
    if rounds >= stats.FEW_ROUNDS:
        return ""
    uncovered = (
        f" (fewer than {stats.COVERING_ROUNDS} cannot cover 95 %)"
        if rounds < stats.COVERING_ROUNDS
        else ""
    )
    return f" Few rounds{uncovered}."


def _paths(frame: pd.DataFrame) -> str:
    if "hosts" not in frame:
        return ""
    words = []
    for (mode, hosts), part in frame[frame["hosts"].notna()].groupby(["mode", "hosts"], sort=False):
        durability = "/".join(dict.fromkeys(part["durability"].dropna()))
        words.append(f"{mode}: {hosts}" + (f", durability {durability}" if durability else ""))
    shared = (
        " Both ranks share the GPU: no rate of a remote GPU."
        if LOOPBACK in set(frame["mode"])
        else ""
    )
    return "; ".join(words) + "." + shared if words else ""


def _link(frame: pd.DataFrame) -> str:
    """What limited the link, and from which speed on overheads stay near zero, predicted and measured."""
    found = []
    for (mode, level), part in frame.groupby(["mode", "level"], sort=False):
        request = link.typical(part.to_dict("records"))
        leaves = None if request is None else request.leaves_zero(str(level))
        above = link.fastest_above(
            part["link_mb_per_s"].tolist(), part["overhead_low_pct"].tolist()
        )
        words = [None if leaves is None else leaves / 1e3, above]
        found.append(
            f"{mode} level {level} {' / '.join('none' if it is None else f'{it:.3g}' for it in words)}"
        )
    predicted = frame[frame["predicted_overhead_pct"].notna()].to_dict("records")
    return (
        f"Link limited to {', '.join(dict.fromkeys(frame['link']))}; its speed is the median of "
        f"{' and '.join(link.RATE_OF_MODE[mode] for mode in dict.fromkeys(frame['mode']))} in the same session. "
        f"Speed in MB/s from which the overhead stays within {link.LEAVES_PCT:g} %, predicted / the fastest measured "
        f"whose whole interval is above: {'; '.join(found)}. {link.in_interval(predicted)} of {len(predicted)} "
        "intervals hold what is predicted of their session."
    )


def _noise(figure: str, frame: pd.DataFrame) -> str:
    if "noise_floor_low_pct" not in frame or frame["noise_floor_low_pct"].isna().all():
        return ""
    if figure == "fig25":
        return (
            "Grey band: noise floor, ± the farther end of the interval of a second none against the first; "
            "dotted: the first none."
        )
    part = frame[frame["phase"] == "total"] if "phase" in frame else frame
    low, high = part["noise_floor_low_pct"].min(), part["noise_floor_high_pct"].max()
    return f"Noise floor of TOTAL (none#2 / none): {low:+.2f} to {high:+.2f} %."


def _left_out(runs: Sequence[Run]) -> str:
    places: dict[str, list[str]] = {}
    for run in runs:
        for row in tables.run_rows(run):
            if row["status"] != "ok":
                where = f"{row['model']} batch {row['ubatch_size']} prompt {row['input_len']} {row['arm']}"
                places.setdefault(row["status"], []).append(where)
    words = [f"{status}: {names[0]}{_and_more(names)}" for status, names in places.items()]
    return "Not shown, " + "; ".join(words) + "." if words else ""


def _and_more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
