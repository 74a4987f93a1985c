"""Rows as a table for people (rich), as markdown, csv or json.

People get two narrow blocks a run, times and streaming, and the notes; csv and json hold every column.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from dejavubench.analysis import conditions, health, machine, stats, tables
from dejavubench.analysis.tables import POINT_COLUMNS, Row
from dejavubench.analysis.words import counted, ms, nbytes, signed_percent, span, value_or_dash
from dejavubench.records import Ceiling, CopyWays, RankInfo, Restart, Run
from dejavubench.records.textlog import read_log

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

FORMATS = ("table", "csv", "json", "markdown")
PIPE_WIDTH = 160
ALONE_LEVEL = "3"
"""The level whose chunks T_alone is of."""

NOISY_PCT = 5.0
"""Noise from which a report warns."""

NOTE_TIMES = "times: median over rounds of the maximum over sources; [ ]: 95 % bootstrap interval"
NOTE_HOW = (
    f"{NOTE_TIMES}; overhead: paired round by round with the geometric mean of none and none#2"
)

NOTE_RESTART = "times: of one iteration, the slowest source; computed anew: the steps before, without streaming, by this process"


@dataclass
class Block:
    """A table as text: ``rows`` in groups, one a point."""

    title: str
    columns: list[str]
    groups: list[list[list[str]]] = field(default_factory=list)


@dataclass
class Report:
    """A run (or a text log), ready to be shown."""

    title: str
    rows: list[Row]
    blocks: list[Block]
    notes: list[str]
    header: dict[str, Any] | None = None


def report(run: Run) -> Report:
    """Everything that is said of one run.

    Raises:
        RecordError: a record names a point or an arm that the header does not have.
    """
    rows = tables.run_rows(run)
    notes = [
        *health.notes(run),
        *([f"note: {run.header.note}"] if run.header.note else []),
        *_reasons(rows),
        *_ceilings(run),
        *_against_raw(run),
        *_own_shares(run),
        *_staging(run),
        *_hosts(run),
        *conditions.notes(run),
        *_gpu(run),
        *_loopback(run),
        *_no_time_left(rows),
        *_unshared(rows),
        *_noise(rows),
        *_few(rows),
        *(wrong for _, restart in run.of(Restart) for wrong in restart.wrong),
        _how(rows),
    ]
    unset = set() if run.header.destinations else {"destinations"}
    header = run.header.model_dump(mode="json", exclude=unset)
    title = f"{run.header.name} · {run.path.name} · {_machine(run)}"
    return Report(title, rows, _blocks(rows), notes, {"path": str(run.path), **header})


def _how(rows: list[Row]) -> str:
    if any(row["resumed_run"] for row in rows):
        return NOTE_RESTART
    return NOTE_TIMES if all(row["mode"] == "none" for row in rows) else NOTE_HOW


def log_report(path: Path) -> Report:
    """What is said of a text log.

    Raises:
        TextLogError: the log cannot be read, or is too short.
    """
    log = read_log(path)
    rows = tables.log_rows(log)
    dropped = rows[0]["warmups"] or 2
    notes = [
        f"{dropped} samples at the beginning are dropped as warm-up; medians, where the paper's scripts print means"
    ]
    block = _block("times", rows, ["statistic"], TIME_COLUMNS + SPREAD_COLUMNS)
    return Report(str(path), rows, [block], log.notes() + notes + _reasons(rows) + _few(rows))


def summary(run: Run) -> RenderableType:
    """The table at the end of a run, for a rich console.

    Raises:
        RecordError: a record names a point or an arm that the header does not have.
    """
    return renderable(report(run))


# Columns for people: heading, and how a row's value is written.

Column = tuple[str, Callable[[Row], str]]


def _overhead(row: Row) -> str:
    if row["mode"] == "none":
        return _noise_of(row) if row["arm"] != "none" else "baseline"
    if row["overhead_pct"] is None:
        return row["baseline"] or "–"
    return f"{signed_percent(row['overhead_pct'])} {span(row['overhead_low_pct'], row['overhead_high_pct'])}"


def _noise_of(row: Row) -> str:
    if row["noise_floor_pct"] is None:
        return "–"
    bounds = span(row["noise_floor_low_pct"], row["noise_floor_high_pct"])
    return f"noise {signed_percent(row['noise_floor_pct'])} {bounds}".rstrip()


def _token_overhead(row: Row) -> str:
    if row["token_overhead_pct"] is None:
        return "–"
    bounds = span(row["token_overhead_low_pct"], row["token_overhead_high_pct"])
    return f"{signed_percent(row['token_overhead_pct'])} {bounds}".rstrip()


def _alone(row: Row) -> str:
    return value_or_dash(row["alone_gb_per_s"] if row["level"] == ALONE_LEVEL else None, ".2f")


def _share(row: Row) -> str:
    if row["ceiling_share_pct"] is None or row["level"] != ALONE_LEVEL:
        return "–"
    return f"{row['ceiling_share_pct']:.0f} % of {row['ceiling']}"


def _copies(row: Row) -> str:
    if row["copies_per_prompt"] is None:
        return "–"
    return f"{counted(row['copies_per_prompt'])} / {counted(row['copies_per_token'])}"


def _cpu(row: Row) -> str:
    return " / ".join(
        value_or_dash(row[f"cpu_{role}_s"], ".2f") for role in ("model", "helper", "sink")
    )


def _hidden(row: Row) -> str:
    if row["hidden_pct"] is None:
        return "–"
    return f"{row['hidden_pct']:.0f}" if row["hidden_pct"] >= 0 else "nothing"


def _verdict(row: Row) -> str:
    return "–" if row["verdict"] is None else f"{row['verdict']} (≤ {row['target_pct']:g} %)"


def _interval(row: Row) -> str:
    return (
        "–"
        if row["total_low_ms"] is None
        else f"[{ms(row['total_low_ms'])}, {ms(row['total_high_ms'])}]"
    )


TIME_COLUMNS: list[Column] = [
    ("prompt ms", lambda row: ms(row["prompt_ms"])),
    ("token ms", lambda row: ms(row["token_ms"])),
    ("total ms", lambda row: ms(row["total_ms"])),
    ("rounds", lambda row: value_or_dash(row["samples"], "d")),
]
SPREAD_COLUMNS: list[Column] = [
    ("total 95 % ms", _interval),
    ("total IQR ms", lambda row: ms(row["total_iqr_ms"])),
]
OVERHEAD_COLUMNS: list[Column] = [
    ("overhead %", _overhead),
    ("verdict", _verdict),
    ("verified", lambda row: row["verified"] or "–"),
]
STREAM_COLUMNS: list[Column] = [
    ("stall ms", lambda row: ms(row["stall_ms"])),
    ("largest lag", lambda row: nbytes(row["largest_lag_bytes"])),
    ("bytes", lambda row: nbytes(row["streamed_bytes"])),
    ("copies prompt / token", _copies),
    ("GB/s alone", _alone),
    ("share of ceiling", _share),
    ("hosts", lambda row: row["hosts"] or "–"),
    ("durability", lambda row: row["durability"] or "–"),
]
REST_COLUMNS: list[Column] = [
    *SPREAD_COLUMNS,
    ("token %", _token_overhead),
    ("drain ms", lambda row: ms(row["drain_ms"])),
    ("GB/s over TOTAL", lambda row: value_or_dash(row["total_gb_per_s"], ".3f")),
    ("hidden %", _hidden),
    ("CPU s model / helper / sink", _cpu),
]


HANDOVER_COLUMNS: list[Column] = [
    ("hand-over ms", lambda row: ms(row["handover_ms"])),
    ("sinks waited ms", lambda row: ms(row["sink_waited_ms"])),
    ("first token ms", lambda row: ms(row["sink_first_ms"])),
    ("token ms", lambda row: ms(row["sink_token_ms"])),
]
SWAP_COLUMNS: list[Column] = [
    ("caches in place", lambda row: f"{row['resident_caches']} of {row['pipeline_para_size']}"),
    ("brought back", lambda row: nbytes(row["brought_back_bytes"])),
    ("in ms", lambda row: ms(row["bring_ms"])),
    ("waited for it ms", lambda row: ms(row["swap_wait_ms"])),
]
RESTART_COLUMNS: list[Column] = [
    ("goes on with", lambda row: row["resumed_run"]),
    ("from new token", lambda row: str(row["resumed_at_token"])),
    ("put back", lambda row: nbytes(row["restored_bytes"])),
    ("in ms", lambda row: ms(row["restore_ms"])),
    ("computed anew ms", lambda row: ms(row["anew_ms"])),
    ("token ms", lambda row: ms(row["token_ms"])),
    ("drain ms", lambda row: ms(row["drain_ms"])),
    ("verified", lambda row: row["verified"] or "–"),
]
EVENT_COLUMNS: list[Column] = [
    ("prompt ms, events", lambda row: ms(row["prompt_event_ms"])),
    ("token ms, events", lambda row: ms(row["token_event_ms"])),
]
MODEL_COLUMNS: list[Column] = [
    ("prompt TFLOP/s", lambda row: _four_digits(row["prompt_tflop_per_s"])),
    ("% of matmul", lambda row: value_or_dash(row["prompt_share_pct"], ".1f")),
    ("token GB/s", lambda row: _four_digits(row["token_gb_per_s"])),
    ("% of memory-read", lambda row: value_or_dash(row["token_share_pct"], ".1f")),
]


def _four_digits(value: float | None) -> str:
    return (
        "–"
        if value is None
        else f"{value:.3f}"
        if value < 10
        else f"{value:.1f}"
        if value < 1000
        else f"{value:.0f}"
    )


def _model_blocks(rows: list[Row], varying: list[str]) -> list[Block]:
    """One row a point, of the first ``none``; its ceilings are in the notes."""
    alone = [row for row in rows if row["arm"] == "none" and row["prompt_tflop_per_s"] is not None]
    events = EVENT_COLUMNS if any(row["prompt_event_ms"] is not None for row in alone) else []
    return (
        [_block("the model against the machine", alone, varying, events + MODEL_COLUMNS)]
        if alone
        else []
    )


def _blocks(rows: list[Row]) -> list[Block]:
    varying = [name for name in POINT_COLUMNS if len({row[name] for row in rows}) > 1]
    common = ", ".join(
        f"{name} {rows[0][name]}"
        for name in POINT_COLUMNS
        if rows and rows[0][name] and name not in varying
    )
    if restarted := [row for row in rows if row["resumed_run"]]:
        return [_block(common, restarted, varying, RESTART_COLUMNS)]
    streaming = [row for row in rows if row["mode"] != "none" and row["status"] == "ok"]
    against = _model_blocks(rows, varying)
    if all(row["mode"] == "none" for row in rows):
        return [_block(common, rows, varying, TIME_COLUMNS + SPREAD_COLUMNS), *against]
    verdicts = any(row["verdict"] for row in rows)
    overheads = [column for column in OVERHEAD_COLUMNS if verdicts or column[0] != "verdict"]
    blocks = [_block(common, rows, varying, TIME_COLUMNS + overheads)]
    if handed := [row for row in streaming if row["handover_ms"] is not None]:
        blocks.append(
            _block("hand-over, and what the sinks do after it", handed, varying, HANDOVER_COLUMNS)
        )
    if swapped := [row for row in streaming if row["resident_caches"] is not None]:
        blocks.append(_block("swapping, one iteration", swapped, varying, SWAP_COLUMNS))
    if streaming:
        blocks.append(_block("streaming, one iteration", streaming, varying, STREAM_COLUMNS))
        measured = [row for row in rows if row["status"] == "ok"]
        blocks.append(
            _block("spread, drain and CPU, one iteration", measured, varying, REST_COLUMNS)
        )
    return blocks + against


def _block(title: str, rows: Sequence[Row], leading: list[str], columns: list[Column]) -> Block:
    block = Block(title, [*leading, "arm", *(heading for heading, _ in columns)])
    last: object = None
    for row in rows:
        if not block.groups or row["point"] != last:
            block.groups.append([])
            last = row["point"]
        cells = [write(row) for _, write in columns] if row["status"] == "ok" else [row["status"]]
        cells += ["–"] * (len(columns) - len(cells))
        block.groups[-1].append([*(str(row[name]) for name in leading), row["arm"], *cells])
    return block


def _machine(run: Run) -> str:
    environment = run.header.environment
    cores = environment.get("cores")
    what = "CPU cores" if machine.on_gpu(run) else "cores"
    words = [machine.processor(run), f"{cores} {what}" if cores else None, run.header.started_utc]
    return ", ".join(str(word) for word in words if word)


def _reasons(rows: list[Row]) -> list[str]:
    found: dict[str, list[str]] = {}
    for row in rows:
        if row["status"] not in ("ok", None):
            where = " ".join(word for word in (row["point"], row["arm"]) if word)
            found.setdefault(f"{row['status']}: {row['reason']}", []).append(where)
    return [f"{what} ({', '.join(places)})" for what, places in found.items()]


def _ceilings(run: Run) -> list[str]:
    best: dict[tuple[str, str | None], Ceiling] = {}
    for _, item in run.of(Ceiling):
        known = best.get((item.name, item.durability))
        better = known is None or (
            item.value < known.value if item.unit == "us" else item.value > known.value
        )
        if better:
            best[item.name, item.durability] = item
    if not best:
        return []
    return ["ceilings: " + "; ".join(f"{i.name} {_measured(i)} ({i.shape})" for i in best.values())]


def _measured(item: Ceiling) -> str:
    if item.unit == "GFLOP/s" and item.value >= 1000:
        return f"{item.value / 1000:.4g} TFLOP/s"
    return f"{item.value:.4g} {item.unit.replace('us', 'µs')}"


def _against_raw(run: Run) -> list[str]:
    found = tables.against_raw(run)
    if not found:
        return []
    words = [
        f"{what}: {100 * item.median:.1f} [{100 * item.low:.1f}, {100 * item.high:.1f}] % ({item.samples} pairs)"
        for what, item in found.items()
    ]
    return [f"the library's chunks alone against a raw loop in turn with them: {'; '.join(words)}"]


def _own_shares(run: Run) -> list[str]:
    words = [f"{name} {share:.0f} %" for name, share in tables.own_shares(run).items()]
    return (
        [f"this program's own share of the time of one run at the naive levels: {', '.join(words)}"]
        if words
        else []
    )


def _gpu(run: Run) -> list[str]:
    """What drives the GPU, and how what is streamed leaves it."""
    if not machine.on_gpu(run):
        return []
    known = run.header.environment
    gpu, mpi = known.get("gpu") or {}, known.get("cuda_aware_mpi")
    link = (
        f"PCIe {gpu['pcie_generation']}.0 × {gpu['pcie_width']}"
        if gpu.get("pcie_generation")
        else None
    )
    words = [
        *(
            f"{what} {gpu[key]}"
            for key, what in (("driver", "driver"), ("cuda", "CUDA"), ("nccl", "NCCL"))
            if gpu.get(key)
        ),
        link,
        {True: "MPS runs", False: "no MPS", None: None}[gpu.get("mps")],
        {True: "MPI takes device memory", False: "MPI takes host memory only", None: None}[mpi],
    ]
    ways: dict[str, None] = {}
    layouts = {point.id: point.kv_layout for point in run.header.points}
    for _, record in run.of(CopyWays):
        ways |= dict.fromkeys(
            f"{layouts[record.point]} {kind}: {way}" for kind, way in record.ways.items()
        )
    notes = ["GPU: " + ", ".join(word for word in words if word)] if any(words) else []
    return notes + ([f"how chunks leave the GPU: {'; '.join(ways)}"] if ways else [])


def _loopback(run: Run) -> list[str]:
    if all(machine.destination(run, arm) != machine.LOOPBACK for arm in run.header.arms):
        return []
    mps = (run.header.environment.get("gpu") or {}).get("mps")
    shared = [
        "loopback on one GPU: both ranks share its processors and its memory; this is no rate of a remote GPU"
    ]
    return (
        [*shared, "NO MPS: the ranks take turns on the GPU, which slows the model by itself"]
        if mps is False
        else shared
    )


def _hosts(run: Run) -> list[str]:
    """Which ranks are where, if not all on one host, and how fast the link between is meant to be."""
    ranks: dict[str, list[str]] = {}
    for rank, info in run.of(RankInfo):
        ranks.setdefault(info.host, []).append(f"{info.role} {rank}")
    peers = (
        (run.header.experiment.get("peer") or ())
        if any(arm.mode == "tcp" for arm in run.header.arms)
        else ()
    )
    words = [f"{', '.join(here)} on {host}" for host, here in ranks.items()] + [
        f"tcp to {peer}" for peer in peers
    ]
    link = run.header.experiment.get("link")
    said = f"; the link between them: {link}" if link else ""
    return [f"hosts: {'; '.join(words)}{said}"] if len(ranks) > 1 or link else []


def _staging(run: Run) -> list[str]:
    words = []
    for where, bound in (("", "staging_nbytes"), (" on its device", "staging_device_nbytes")):
        each: dict[str, int] = {}
        for _, info in run.of(RankInfo):
            each[info.role] = max(each.get(info.role, 0), getattr(info, bound))
        words += [f"{nbytes(size)} a {role}{where}" for role, size in each.items() if size]
    return [f"staging memory, at most: {', '.join(words)}"] if words else []


NO_TIME_LEFT = 0.9
"""Share of a request's time from which a stream, alone, has hardly any time to spare."""


def _no_time_left(rows: list[Row]) -> list[str]:
    """Arms whose stream needs, with nothing beside it, nearly all of the time that a request takes, or more."""
    requests = {row["point"]: row["total_ms"] for row in rows if row["arm"] == "none"}
    found = []
    for row in rows:
        request, alone_ms = requests.get(row["point"]), row["alone_ms"]
        if (
            row["level"] == ALONE_LEVEL
            and request
            and alone_ms
            and alone_ms >= NO_TIME_LEFT * request
        ):
            share = f", {_share(row)}" if row["ceiling_share_pct"] is not None else ""
            found.append(
                f"{row['point']} {row['arm']} has hardly any time to spare: its stream alone takes {ms(alone_ms)} ms "
                f"({row['alone_gb_per_s']:.2f} GB/s{share}), a request {ms(request)} ms; a slower round ends in a drain"
            )
    return found


def _unshared(rows: list[Row]) -> list[str]:
    rated = [
        row for row in rows if row["alone_gb_per_s"] is not None and row["ceiling"] is not None
    ]
    if any(row["ceiling_share_pct"] is None for row in rated):
        return ["share of ceiling is not shown: the ceiling was not measured for every source"]
    return []


def _noise(rows: list[Row]) -> list[str]:
    floors = {row["point"]: row for row in rows if row["noise_floor_pct"] is not None}
    if not floors:
        return []
    return [*_noisy(floors), *_noise_floor(floors)]


def _noisy(floors: dict[str, Row]) -> list[str]:
    kinds = (
        "noise_floor_pct",
        "noise_floor_low_pct",
        "noise_floor_high_pct",
    )  # of one round there is no interval
    reach = max(
        abs(row[kind]) for row in floors.values() for kind in kinds if row[kind] is not None
    )
    if reach <= NOISY_PCT:
        return []
    return [
        f"NOISY: none#2 differs from none by up to {reach:.0f} %; smaller overheads say nothing. A busy machine?"
    ]


def _noise_floor(floors: dict[str, Row]) -> list[str]:
    if len(floors) == 1:
        return [
            f"noise floor (none#2 against none): {_noise_of(next(iter(floors.values()))).removeprefix('noise ')} %"
        ]
    medians = sorted(row["noise_floor_pct"] for row in floors.values())
    low, high = signed_percent(medians[0]), signed_percent(medians[-1])
    return [
        f"noise floor (none#2 against none): medians from {low} to {high} % over {len(floors)} points"
    ]


def _few(rows: list[Row]) -> list[str]:
    counts = [row["samples"] for row in rows if row["samples"]]
    if not counts or min(counts) >= stats.FEW_ROUNDS:
        return []
    few = min(counts)
    if few < stats.COVERING_ROUNDS:
        what = f"[ ] is then the range of so few and no 95 % interval, for which {stats.COVERING_ROUNDS} are needed"
    else:
        what = "intervals are wide"
    return [f"few rounds ({few}): {what}; --rounds or --precision gives more"]


# The formats.


def renderable(item: Report) -> RenderableType:
    """A report for a rich console; its colours show on a terminal only."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text(item.title, style="bold")]
    for block in item.blocks:
        parts += [Text(block.title, style="italic"), _rich_table(block)]
    parts += [
        Text(
            note,
            style="red"
            if note.startswith(("FAILED", "INCOMPLETE", "CHANGED", "LOST", "NOISY", "NO MPS"))
            else "",
        )
        for note in item.notes
    ]
    return Group(*parts)


def _rich_table(block: Block) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    for number, heading in enumerate(block.columns):
        table.add_column(
            heading,
            overflow="fold",
            justify="left" if number <= block.columns.index("arm") else "right",
        )
    for number, group in enumerate(block.groups):
        if number and len(group) > 1:
            table.add_section()
        for cells in group:
            table.add_row(
                *map(Text, cells),
                style="red" if "FAILED" in cells else "dim" if "SKIPPED" in cells else None,
            )
    return table


def console(out: IO[str]) -> Console:
    """A rich console on ``out``: colours on a terminal only, and elsewhere wide enough not to fold tables."""
    from rich.console import Console

    terminal = out.isatty()
    return Console(
        file=out, highlight=False, width=None if terminal else PIPE_WIDTH, no_color=not terminal
    )


def markdown(item: Report) -> str:
    lines = [f"## {item.title}", ""]
    for block in item.blocks:
        align = [
            "---" if n <= block.columns.index("arm") else "---:" for n in range(len(block.columns))
        ]
        lines += [f"**{block.title}**", "", _pipes(block.columns), _pipes(align)]
        lines += [_pipes(cells) for group in block.groups for cells in group]
        lines.append("")
    return "\n".join([*lines, *(f"- {note}" for note in item.notes)]) + "\n"


def _pipes(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def write(reports: Sequence[Report], style: str, out: IO[str]) -> None:
    """Write reports in one of :data:`FORMATS`."""
    if style == "csv":
        out.write(tables.frame(row for item in reports for row in item.rows).to_csv(index=False))
    elif style == "json":
        documents = [
            {"run": i.title, "header": i.header, "notes": i.notes, "rows": i.rows} for i in reports
        ]
        json.dump(documents, out, indent=2, allow_nan=False, ensure_ascii=False)
        out.write("\n")
    elif style == "markdown":
        out.write("\n".join(markdown(item) for item in reports))
    else:
        screen = console(out)
        for number, item in enumerate(reports):
            if number:
                screen.print()
            screen.print(renderable(item))
