"""What to run: one validated :class:`Experiment`, from a TOML file, flags and the environment.

Every default of the program is written here, once. Neither torch nor MPI is needed to know what will run.
``--help`` imports this module: what only a run needs is imported, and pydantic's schema built, when used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from dejavubench import units, values
from dejavubench.config.optionvalues import (
    COLDEST,
    HOTTEST,
    MOST_ROUNDS,
    UNLIMITED,
    Count,
    Counts,
    Folder,
    MaybeCount,
    Rounds,
    as_levels,
    as_link,
    as_list,
    as_modes,
    as_path,
    as_peers,
    as_stores,
    as_temperature,
    as_text,
    as_top_p,
    unless_none,
)
from dejavubench.config.points import (
    REMOTE,
    Arm,
    DataType,
    Durability,
    LayoutName,
    Mode,
    Point,
    Split,
    Store,
)
from dejavubench.config.promptfile import Ids, read_prompts
from dejavubench.dejavulib.levels import DEFAULT_LEVEL, LEVELS
from dejavubench.errors import UsageError
from dejavubench.machine.hardware import cuda_devices, has_nixl, native_bf16
from dejavubench.models.hub import specs
from dejavubench.models.samplingoptions import Sampling
from dejavubench.values import shown, text_of

if TYPE_CHECKING:
    from dejavubench.config.interrupted import Interrupted
    from dejavubench.models.hub.checkpoint import Checkpoint

BASELINE_VARIABLE = "DEJAVULIB_BASELINE"
"""The original's environment variable for the level."""

Figure = Literal["fig2", "appendix_a", "fig7", "fig25", "link"]
Device = Literal["auto", "cpu", "cuda"]
Group = Literal["What is run", "Model", "Streaming", "Measurement", "Machine"]

__all__ = ["Arm", "Experiment", "Point", "UsageError", "load"]

NO_FP32_ON_CUDA = (
    "inference_data_type fp32 does not run on a CUDA device: its decode kernels take fp16 and bf16"
)

NO_NIXL = "nixl is not installed: pip install 'dejavubench[nixl]'"

MOST_POINTS = 10_000
"""Points of one run: a sweep of more is a mistake, or the work of several runs."""

MOST_THREADS = 4096
THREADS_PER_CORE = 4
"""Threads of a rank for each core it is granted: more than one take turns, more than four are a mistake."""

MOST_WORKERS = 4096
"""Sources, and sinks, of one run."""

RANK_TIMEOUT, LEAST_RANK_TIMEOUT = 300.0, 1.0
"""Seconds: the default, and the least that may be asked for."""

NOT_MEASURED = {"name", "note", "log_dir", "ckpt_path", "prompts", "peer", "rank_timeout"}
"""Keys that leave the measurement as it is, or stand for their content, which is hashed in their place."""

CACHE_STEP = 32
"""Unless told otherwise a cache's positions are a multiple of this, as kernels like them."""


# ---- how values are read ----


def _as_device(value: Any, info: ValidationInfo) -> Any:
    """``auto`` is settled here: all ranks follow what rank 0 has. What is only planned may be for another machine."""
    if value not in ("auto", "cuda"):  # the driver is not asked for nothing
        return value
    try:
        found = cuda_devices()
    except RuntimeError as error:
        raise ValueError(f"{error}; --device cpu does without it") from None
    if value == "cuda" and not found and not (info.context or {}).get("plan"):
        raise ValueError(
            "no CUDA device is found here: there is no NVIDIA driver, or it lists none"
        )
    return "cuda" if found or value == "cuda" else "cpu"


def _as_data_types(value: Any, info: ValidationInfo) -> Any:
    """``auto`` is settled here, for the device that is settled by now."""
    best = "fp16" if info.data.get("device") == "cuda" else "bf16" if native_bf16() else "fp32"
    return as_list([best if item == "auto" else item for item in as_list(value)])


def _as_data_type(value: Any, info: ValidationInfo) -> Any:
    return value and _as_data_types(value, info)[0]


def _as_rank_timeout(value: Any) -> float:
    if text_of(value) in ("0", "0s", "0.0"):
        return 0.0
    timeout = units.seconds(value)
    if timeout < LEAST_RANK_TIMEOUT:
        raise ValueError(
            f"{shown(value)} is too short: a busy machine may keep a rank waiting; give 1s or more, or 0"
        )
    return timeout


def _as_models(value: Any) -> Any:
    names = as_list(value)
    for name in names:
        if name != specs.CUSTOM:
            specs.spec(name if isinstance(name, str) else shown(name))
    return names


def _as_folder(value: Any) -> Any:
    """Looked at by rank 0, before anything starts: a broken folder is a usage error."""
    if value is None:
        return None
    if not isinstance(value, str | Path) or not str(value).strip():
        raise ValueError(f"{shown(value)} is no folder; give the path of one, as text")
    if "\0" in str(value):
        raise ValueError(f"{str(value)!a} has a NUL character, which no path has")
    from dejavubench.models.hub.checkpoint import open_checkpoint

    open_checkpoint(values.path(value))
    return Path(value)


def _option(default: Any, group: Group, metavar: str, text: str, **constraints: Any) -> Any:
    """A field that is also a flag: its default, its place in the help, its help."""
    extra: dict[str, Any] = {"group": group, "metavar": metavar}
    return Field(
        default, description=text, json_schema_extra=extra, validate_default=True, **constraints
    )


class Experiment(BaseModel):
    """What to run. Each field is a key of the TOML file and a flag of ``dejavubench run``.

    Fields that take a list sweep: every combination of theirs is a point, measured on its own. Values are
    resolved when read: ``auto`` is a device or a data type, a time is in seconds, a percentage is a fraction.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    device: Annotated[Device, BeforeValidator(_as_device)] = (
        _option(  # first: data types follow from it
            "auto",
            "Machine",
            "DEVICE",
            "cpu or cuda, what the model runs on; auto is cuda where there is such a device.",
        )
    )

    name: str = _option(
        "run", "What is run", "NAME", "Names the run's folder; a config's file name.", min_length=1
    )
    figure: Figure | None = _option(
        None, "What is run", "FIGURE", "The figure it is for: fig2, appendix_a, fig7, fig25, link."
    )
    note: Annotated[str | None, BeforeValidator(as_text)] = _option(
        None, "What is run", "TEXT", "Kept with the records and shown under the figures."
    )
    resume: Folder = _option(
        None,
        "What is run",
        "DIR",
        "Go on with the request in which the run of this folder was killed while it streamed to disk with --keep, in "
        "place of CONFIG; flags win over what that run was.",
    )
    ubatch_size: Counts = _option((1,), "What is run", "N[,N…]", "Requests in a microbatch.")
    input_len: Counts = _option((1,), "What is run", "P[,P…]", "Tokens of each random prompt.")
    prompts: Folder = _option(
        None,
        "What is run",
        "FILE",
        "Prompts in place of random ones, one a line, taken in order and then again from the first: token ids "
        '(1,2,3 in any file; [1, 2, 3] or {"prompt": [1, 2, 3]} in .jsonl) or text, which needs --ckpt-path\'s '
        "tokenizer and transformers. Shorter ones are padded on the left.",
    )
    output_len: Counts = _option(
        (32,), "What is run", "T[,T…]", "New tokens of each request, the prompt's included."
    )
    max_seq_len: MaybeCount = _option(
        None,
        "What is run",
        "N",
        f"Positions of the cache. Without it: P + T, rounded up to whole {CACHE_STEP}s.",
    )

    model: Annotated[tuple[str, ...], BeforeValidator(_as_models)] = _option(
        (specs.CUSTOM,),
        "Model",
        "NAME[,NAME…]",
        f"Sizes by name: gpt2, opt-13b, bloom-7b1, …, or {specs.CUSTOM}.",
    )
    layer_num: Count = _option(24, "Model", "N", "Of a custom model: layers.")
    head_num: Count = _option(16, "Model", "N", "Of a custom model: attention heads.")
    size_per_head: Count = _option(64, "Model", "N", "Of a custom model: elements of a head.")
    vocab_size: Count = _option(50304, "Model", "N", "Of a custom model: rows of the embedding.")
    inference_data_type: Annotated[tuple[DataType, ...], BeforeValidator(_as_data_types)] = _option(
        ("auto",),
        "Model",
        "TYPE[,TYPE…]",
        "fp32, bf16, fp16; auto is fp16 on cuda, bf16 where the CPU computes in it, else fp32.",
    )
    weights_data_type: Annotated[DataType | None, BeforeValidator(_as_data_type)] = _option(
        None,
        "Model",
        "TYPE",
        "Round the weights through it before the inference type; else only through that.",
    )
    ckpt_path: Annotated[Path | None, BeforeValidator(_as_folder)] = _option(
        None,
        "Model",
        "DIR",
        "A Hugging Face folder (GPT-2, OPT, BLOOM, Llama, Mistral, Qwen) with safetensors, instead of random weights.",
    )
    kv_layout: Annotated[tuple[LayoutName, ...], BeforeValidator(as_list)] = _option(
        ("hnd",),
        "Model",
        "LAYOUT[,LAYOUT…]",
        "Of the KV cache: ft (FasterTransformer), hnd or nhd.",
    )
    tensor_para_size: Count = _option(1, "Model", "N", "Tensor-parallel degree.")
    pipeline_para_size: Count = _option(
        1, "Model", "N", "Pipeline depth; as many microbatches are in flight as it has stages."
    )
    temperature: Annotated[float, BeforeValidator(as_temperature)] = _option(
        0.0,
        "Model",
        "X",
        f"Draw tokens at this temperature, {COLDEST:g} to {HOTTEST:g}; at 0 each is the most likely one.",
    )
    top_k: MaybeCount = _option(None, "Model", "N", "Draw from the N most likely tokens only.")
    top_p: Annotated[float | None, BeforeValidator(as_top_p)] = _option(
        None, "Model", "P", "Draw from the fewest most likely tokens that together reach P only."
    )
    seed: Annotated[int, BeforeValidator(partial(values.whole, least=0, most=2**63 - 1))] = _option(
        0, "Model", "N", "Of weights, random prompts, draws and the order of arms."
    )

    streaming: Annotated[tuple[Mode, ...], BeforeValidator(as_modes)] = _option(
        ("none",),
        "Streaming",
        "MODE[,MODE…]",
        "Where the cache goes: none, host, disk, mpi (a remote CPU), nccl (a remote GPU), nixl (by NVIDIA's NIXL: "
        "a remote CPU, or GPU to GPU), tcp (a remote CPU, no MPI).",
    )
    peer: Annotated[tuple[str, ...], BeforeValidator(as_peers)] = _option(
        (),
        "Streaming",
        "ADDR:PORT[,…]",
        "For tcp: where 'dejavubench sink' listens; one for all sources, or one for each.",
    )
    tcp_checksums: bool = _option(
        False, "Streaming", "", "Hash what tcp streams at both ends, beside TCP's own checksum."
    )
    level: Annotated[tuple[str, ...], BeforeValidator(as_levels)] = _option(
        (DEFAULT_LEVEL,),
        "Streaming",
        "LEVEL[,LEVEL…]",
        f"Optimisations: {', '.join(LEVELS)}. Wins over ${BASELINE_VARIABLE}, and that over the config.",
    )
    compare: bool = _option(False, "Streaming", "", "Add the two baselines without streaming.")
    durability: Annotated[tuple[Durability, ...], BeforeValidator(as_list)] = _option(
        ("fdatasync",),
        "Streaming",
        "D[,D…]",
        "When disk has a chunk: fdatasync, direct or page-cache.",
    )
    nccl_loopback: bool = _option(
        False,
        "Streaming",
        "",
        "Let a source and its sink share one GPU for nccl; results are labelled loopback.",
    )
    stream_dir: Folder = _option(
        None, "Streaming", "DIR", "Folder for what is streamed to disk. Without it: the run's own."
    )
    keep: bool = _option(False, "Streaming", "", "Leave what was streamed to disk.")
    sink_tensor_para_size: MaybeCount = _option(
        None, "Streaming", "N", "Tensor-parallel degree of the sinks, if another."
    )
    sink_pipeline_para_size: MaybeCount = _option(
        None, "Streaming", "N", "Pipeline depth of the sinks, if another."
    )
    sink_ubatch_size: MaybeCount = _option(
        None,
        "Streaming",
        "N",
        "Requests in a microbatch of the sinks, if other; must divide those in flight.",
    )
    handoff: bool = _option(
        False,
        "Streaming",
        "",
        "Sinks have the model too, in their own setup, and go on where the sources stop.",
    )
    handoff_tokens: Count = _option(
        1,
        "Streaming",
        "N",
        "With --handoff: new tokens that sources generate before, the prompt's included.",
    )
    swap: Annotated[tuple[Store, ...], BeforeValidator(as_stores)] = _option(
        (),
        "Streaming",
        "STORE[,STORE]",
        "Microbatches take turns in --resident caches; the others' are in host memory or on disk meanwhile.",
    )
    resident: Count = _option(
        2, "Streaming", "N", "With --swap: caches in place, fewer than the pipeline is deep."
    )
    staging_mib: Count = _option(
        16, "Streaming", "MIB", "Size of one staging slot; larger chunks are cut."
    )
    staging_slots: Count = _option(4, "Streaming", "N", "Staging slots of a source.")
    drain_timeout: Annotated[float, BeforeValidator(units.seconds)] = _option(
        60.0,
        "Streaming",
        "TIME",
        "Without any progress for so long, a wait for streaming fails the run.",
    )

    rounds: Rounds = _option(
        5,
        "Measurement",
        "N",
        "Rounds of each point, every arm once in each; with --precision the fewest.",
    )
    warmup: Annotated[int, BeforeValidator(partial(values.whole, least=0, most=MOST_ROUNDS))] = (
        _option(2, "Measurement", "N", "Iterations of each arm before, recorded and marked.")
    )
    precision: Annotated[float | None, BeforeValidator(unless_none(units.fraction))] = _option(
        None,
        "Measurement",
        "P%",
        "More rounds, until the overheads' 95 % intervals are within ± P; or none.",
    )
    max_time: Annotated[float, BeforeValidator(units.seconds)] = _option(
        600.0,
        "Measurement",
        "TIME",
        "With --precision: the longest that one point's rounds may take, e.g. 10m.",
    )
    target_overhead: Annotated[float | None, BeforeValidator(unless_none(units.fraction))] = (
        _option(
            None, "Measurement", "P%", "Say of each arm whether it is met, missed or unresolved."
        )
    )
    verify: bool = _option(
        True, "Measurement", "", "Compare every byte that arrived, outside the clock."
    )
    ceilings: bool = _option(
        True, "Measurement", "", "Measure what memory, MPI, sockets, disk and matmul can do."
    )
    log_dir: Annotated[Path, BeforeValidator(as_path)] = _option(
        Path("logs"), "Measurement", "DIR", "Where the run's folder is made."
    )

    threads: Annotated[int, BeforeValidator(partial(values.whole, most=MOST_THREADS))] = _option(
        1,
        "Machine",
        "N",
        f"Threads of each rank, the same for all arms; at most {THREADS_PER_CORE} for each core that a rank may use.",
    )
    link: Annotated[str | None, BeforeValidator(as_link)] = _option(
        None,
        "Machine",
        "RATE",
        f"What the link between hosts has been limited to, as 500Mbit/s, or {UNLIMITED}: kept with the records, "
        "limits nothing.",
    )
    rank_timeout: Annotated[float, BeforeValidator(_as_rank_timeout)] = _option(
        RANK_TIMEOUT,
        "Machine",
        "TIME",
        "End the job if a rank shows no sign of life for this long; 0 turns this off.",
    )
    confine: bool = _option(
        False, "Machine", "", "Confine each source, helper thread included, to one core."
    )

    _checkpoint: Checkpoint | None = PrivateAttr(None)  # as rank 0 found it; other ranks are told
    _prompts: tuple[Ids, ...] = PrivateAttr(())  # likewise
    _interrupted: Interrupted | None = PrivateAttr(None)  # likewise
    _has_nixl: bool = PrivateAttr(False)  # likewise

    def model_post_init(self, context: Any) -> None:
        self._has_nixl = "nixl" in self.streaming and has_nixl()
        if self.ckpt_path is not None:
            from dejavubench.models.hub.checkpoint import open_checkpoint

            self._checkpoint = open_checkpoint(self.ckpt_path)
        if self.resume is not None:
            from dejavubench.config.interrupted import find_interrupted

            self._interrupted = find_interrupted(self.resume)[0]

    @model_validator(mode="after")
    def _read_prompts(self) -> Experiment:
        if self.prompts is not None:
            self._prompts = read_prompts(self.prompts, self.ckpt_path)
        return self

    def value(self, option: str) -> Any:
        """Return the value of an option by its key."""
        return getattr(self, option)

    @property
    def given_prompts(self) -> tuple[Ids, ...]:
        """What ``prompts`` holds; empty where prompts are random."""
        return self._prompts

    @property
    def interrupted(self) -> Interrupted | None:
        """What is gone on with, in place of a request from its beginning."""
        return self._interrupted

    @property
    def sampling(self) -> Sampling | None:
        """How tokens are drawn; None where each is the most likely one."""
        return (
            Sampling(self.temperature, self.top_k, self.top_p, self.seed)
            if self.temperature
            else None
        )

    @property
    def prompt_lens(self) -> tuple[int, ...]:
        """Positions that prompts take, padding included: ``input_len``, or those of the longest of the given ones."""
        return (max(map(len, self._prompts)),) if self._prompts else self.input_len

    @property
    def checkpoint(self) -> Checkpoint | None:
        """What ``ckpt_path`` holds, as it was when this experiment was made."""
        return self._checkpoint

    @model_validator(mode="after")
    def _fits_together(self) -> Experiment:
        self._check_limits()
        for key in ("layer_num", "head_num", "size_per_head", "vocab_size"):
            if self.ckpt_path is not None and self._is_given(key):
                raise ValueError(
                    f"{key} is for --model {specs.CUSTOM}; {self.ckpt_path} has its own"
                )
            if specs.CUSTOM not in self.model and self._is_given(key):
                raise ValueError(
                    f"{key} is for --model {specs.CUSTOM}; {', '.join(self.model)} has its own"
                )
        types = self.inference_data_type
        if self.device == "cuda" and set(types) == {"fp32"}:
            raise ValueError(NO_FP32_ON_CUDA)
        if self.ckpt_path is not None and self.model != (specs.CUSTOM,):
            raise ValueError(
                f"model {', '.join(self.model)}: ckpt_path has a model of its own; name one of the two"
            )
        if self.max_seq_len and self.max_seq_len < self._positions_needed:
            raise ValueError(
                f"max_seq_len {self.max_seq_len} is too short: input_len {max(self.prompt_lens)} and output_len "
                f"{max(self.output_len)} take {self._positions_needed} positions of the cache"
            )
        self._check_name()
        if not self.temperature and (self.top_k or self.top_p):
            raise ValueError(
                "top_k and top_p choose among tokens to draw from: name a temperature above 0"
            )
        self._check_prompts()
        if set(self.streaming) == {"none"} and len(self.level) > 1:
            raise ValueError(
                f"level {', '.join(self.level)}: none streams nothing at any level; name a destination"
            )
        others = {"tensor_para_size", "pipeline_para_size", "ubatch_size"}
        named = next(
            (f"sink_{key}" for key in sorted(others) if getattr(self, f"sink_{key}") is not None),
            None,
        )
        if named and not self.needs_sinks:
            raise ValueError(
                f"{named} is for a destination with sinks ({', '.join(sorted(REMOTE))}), and none can run"
            )
        if named and "tcp" in self.streaming:
            raise ValueError(
                f"{named} is for sinks that are ranks: those of tcp are set up as the sources"
            )
        self._check_handoff()
        self._check_resume()
        self._check_swap()
        if self.nccl_loopback and "nccl" not in self.streaming:
            raise ValueError(
                "nccl_loopback is for streaming nccl, which is not among the destinations"
            )
        if self.nccl_loopback and self.device == "cuda" and "nixl" in self.streaming:
            raise ValueError(
                "nccl_loopback puts sinks on their sources' GPUs: nixl, which needs others, is for another run"
            )
        if self.streaming == ("nccl",) and self.device != "cuda":
            raise ValueError(
                "streaming nccl moves the cache from GPU to GPU: it needs a CUDA device"
            )
        if self.streaming == ("nixl",) and not self._has_nixl:
            raise ValueError(f"streaming nixl: {NO_NIXL}")
        self._check_destinations_options()
        if self.streaming == ("tcp",) and not self.peer:
            raise ValueError(
                "streaming tcp needs --peer ADDR:PORT, where 'dejavubench sink' listens"
            )
        if len(self.peer) not in (0, 1, self.sources):
            raise ValueError(
                f"peer names {len(self.peer)} sinks: give one for all, or one for each of {self.sources}"
            )
        problems = [point.problem for point in self.points()]
        if all(problems):  # of a sweep, what can run does
            raise ValueError(problems[0])
        return self

    def _check_limits(self) -> None:
        """Refuse what is too much before anything is made of each point or worker."""
        lists = (
            self.model,
            self.inference_data_type,
            self.kv_layout,
            self.ubatch_size,
            self.prompt_lens,
        )
        count = prod(map(len, (*lists, self.output_len)))
        if count > MOST_POINTS:
            raise ValueError(
                f"the lists combine to {count:,} points, and one run takes at most {MOST_POINTS:,}: shorten a list, or "
                "split the sweep into several runs"
            )
        for side, workers in (("", self.sources), ("sink_", self.sinks)):
            if workers > MOST_WORKERS:
                raise ValueError(
                    f"{side}tensor_para_size × {side}pipeline_para_size takes {workers:,} ranks; at most "
                    f"{MOST_WORKERS:,} are supported"
                )

    def _check_name(self) -> None:
        name = self.name
        bad = "/" in name or name.startswith(".") or not name.isprintable() or name != name.strip()
        if bad or not name or len(name) > 100 or len(name.encode()) > 200:
            raise ValueError(f"name {shown(name)} cannot be a folder's name")

    def _check_destinations_options(self) -> None:
        """Refuse options of a destination that is not among those named."""
        if self.peer and "tcp" not in self.streaming:
            raise ValueError("peer is for streaming tcp, which is not among the destinations")
        if self.tcp_checksums and "tcp" not in self.streaming:
            raise ValueError(
                "tcp_checksums is for streaming tcp, which is not among the destinations"
            )
        if self._is_given("durability") and "disk" not in (*self.streaming, *self.swap):
            raise ValueError(
                f"durability {', '.join(self.durability)} is for streaming disk, which is not among the destinations"
            )

    def _is_given(self, key: str) -> bool:
        """Whether something other than the default is."""
        return bool(getattr(self, key) != type(self).model_fields[key].default)

    def _check_handoff(self) -> None:
        if not self.handoff:
            if self._is_given("handoff_tokens"):
                raise ValueError("handoff_tokens is for a run with handoff")
            return
        if self.streaming != ("mpi",) or self.compare:
            raise ValueError(
                "handoff is for streaming mpi alone: sinks of other destinations have no model yet"
            )
        if self.device == "cuda":
            raise ValueError("handoff runs with device cpu only so far")
        rounds_apart = self.sink_tensor_para_size not in (None, self.tensor_para_size) or any(
            self.sink_ubatch_size not in (None, ubatch_size) for ubatch_size in self.ubatch_size
        )
        if rounds_apart and self.verify and "bf16" in self.inference_data_type and native_bf16():
            raise ValueError(
                "handoff to sinks of another tensor_para_size or ubatch_size: products in bf16 round apart there, so "
                "that tokens may differ; name inference_data_type fp32, or no verify"
            )
        if self.handoff_tokens >= min(self.output_len):
            raise ValueError(
                f"handoff_tokens {self.handoff_tokens} leaves the sinks nothing of output_len {min(self.output_len)}"
            )

    def _check_resume(self) -> None:
        if self.resume is None:
            return
        if len(self.points()) > 1 or [arm.mode for arm in self.arms()] != ["disk"]:
            raise ValueError(
                "resume goes on with one request, streamed to disk: it takes no list and no other streaming"
            )
        once = {"rounds": 1, "warmup": 0, "precision": None, "ceilings": False}
        named = next((key for key, value in once.items() if getattr(self, key) != value), None)
        if named:
            raise ValueError(
                f"{named} is for a run from its beginning: resume goes on with one request, once"
            )

    def _check_swap(self) -> None:
        if not self.swap:
            if self._is_given("resident"):
                raise ValueError("resident is for a run with swap")
            return
        if self.device == "cuda":
            raise ValueError("swap runs with device cpu only so far")
        if self.handoff or self.resume:
            raise ValueError(
                f"swap is for whole requests: it does not go with {'handoff' if self.handoff else 'resume'}"
            )
        if self.resident >= self.pipeline_para_size:
            raise ValueError(
                f"resident {self.resident} has room for all microbatches in flight: swap needs a pipeline_para_size of "
                f"more, not {self.pipeline_para_size}"
            )

    def _check_prompts(self) -> None:
        if self.prompts is None:
            return
        if self._is_given("input_len"):
            raise ValueError(f"input_len is for random prompts; {self.prompts} has its own")
        if self.device == "cuda" and len(set(map(len, self._prompts))) > 1:
            raise ValueError(
                f"{self.prompts}: prompts of unequal lengths run on the CPU only: a CUDA step has no padding"
            )
        for spec in map(self._spec, self.model):
            for number, ids in enumerate(self._prompts, 1):
                if max(ids) >= spec.vocab_size:
                    raise ValueError(
                        f"{self.prompts}: prompt {number} has token {max(ids)}; {spec.name} has tokens up to "
                        f"{spec.vocab_size - 1}"
                    )

    # ---- points ----

    @property
    def _positions_needed(self) -> int:
        """The last new token is never written to the cache."""
        return max(self.prompt_lens) + max(self.output_len) - 1

    def _positions(self, context: int | None, input_len: int, output_len: int) -> int:
        if self.max_seq_len:
            return self.max_seq_len
        rounded = math.ceil((input_len + output_len) / CACHE_STEP) * CACHE_STEP
        return rounded if context is None else min(rounded, context)

    def _spec(self, name: str) -> specs.ModelSpec:
        if self._checkpoint is not None:
            return self._checkpoint.spec
        if name != specs.CUSTOM:
            return specs.spec(name)
        context = self._positions(None, max(self.prompt_lens), max(self.output_len))
        return specs.custom(
            self.layer_num, self.head_num, self.size_per_head, self.vocab_size, context
        )

    def points(self) -> list[Point]:
        """Every combination of the lists, in a stable order: model outermost, lengths innermost."""
        kinds = product(map(self._spec, self.model), self.inference_data_type, self.kv_layout)
        lengths = product(self.ubatch_size, self.prompt_lens, self.output_len)
        return [
            Point(
                id=f"p{number:03d}",
                spec=spec,
                data_type=data_type,
                kv_layout=kv_layout,
                ubatch_size=ubatch_size,
                input_len=input_len,
                output_len=output_len,
                positions=self._positions(spec.context, input_len, output_len),
                tensor_para_size=self.tensor_para_size,
                pipeline_para_size=self.pipeline_para_size,
                sinks=self._sink_split(ubatch_size),
                handed_over=self.handoff_tokens if self.handoff else None,
            )
            for number, (
                (spec, data_type, kv_layout),
                (ubatch_size, input_len, output_len),
            ) in enumerate(product(kinds, lengths))
        ]

    def _sink_split(self, ubatch_size: int) -> Split | None:
        """How sinks hold the cache; None: as the sources."""
        split = Split(self.tensor_para_size, self.pipeline_para_size, ubatch_size)
        given = (self.sink_tensor_para_size, self.sink_pipeline_para_size, self.sink_ubatch_size)
        other = Split(*(own or same for own, same in zip(given, split, strict=True)))
        return None if other == split else other

    # ---- arms ----

    def arms(self) -> list[Arm]:
        """The arms of every round. One named destination at one level is alone; else two baselines come first."""
        streaming = list(self._streaming_arms())
        if self.handoff:
            return (
                streaming  # what sources do is no request, so that there is nothing to hold against
            )
        if self.compare or len(self.streaming) > 1 or len(streaming) > 1 or self.swap:
            return [
                Arm("none", "none", role="baseline"),
                Arm("none#2", "none", role="repeat"),
                *streaming,
            ]
        return streaming or [Arm("none", "none", role="baseline")]

    def _streaming_arms(self) -> Iterator[Arm]:
        for mode in self.streaming:
            if mode == "none":
                continue
            skipped = self._missing(mode)
            loopback = mode == "nccl" and self.nccl_loopback
            for level, durability in product(
                self.level, self.durability if mode == "disk" else (None,)
            ):
                name = f"{mode}-loopback@{level}" if loopback else f"{mode}@{level}"
                if durability and durability != self.durability[0]:
                    name += f"/{durability}"
                yield Arm(name, mode, level, durability, "streaming", skipped, loopback)
        if "host" in self.swap:
            yield Arm("swap-host", "swap-host", DEFAULT_LEVEL)
        if "disk" in self.swap:
            yield Arm("swap-disk", "swap-disk", DEFAULT_LEVEL, self.durability[0])

    def _missing(self, mode: Mode) -> str | None:
        """What a destination cannot run without and is not here."""
        if mode == "nccl" and self.device != "cuda":
            return "no CUDA device"
        if mode == "nixl" and not self._has_nixl:
            return NO_NIXL
        return "no --peer" if mode == "tcp" and not self.peer else None

    # ---- ranks ----

    @property
    def sources(self) -> int:
        """Ranks that run the model."""
        return self.tensor_para_size * self.pipeline_para_size

    @property
    def sinks(self) -> int:
        """Ranks that receive, where some do."""
        return (self.sink_tensor_para_size or self.tensor_para_size) * (
            self.sink_pipeline_para_size or self.pipeline_para_size
        )

    @property
    def sinks_text(self) -> str:
        return (
            "as many sinks" if self.sinks == self.sources else units.count_text(self.sinks, "sink")
        )

    @property
    def needs_sinks(self) -> bool:
        """Whether some arm streams to other ranks."""
        return any(arm.remote and not arm.skipped for arm in self.arms())

    @property
    def ranks(self) -> tuple[int, ...]:
        """The numbers of ranks that it runs under: without sinks, where no arm needs them, or with."""
        both = self.sources + self.sinks
        return (both,) if self.needs_sinks else (self.sources, both)

    def check_ranks(self, size: int) -> None:
        """Raises:
        UsageError: it does not run under ``size`` ranks.
        """
        if size in self.ranks:
            return
        sources = (
            f"tensor_para_size {self.tensor_para_size} × pipeline_para_size {self.pipeline_para_size} "
            f"takes {units.count_text(self.sources, 'source')}"
        )
        remote = next((arm.mode for arm in self.arms() if arm.remote and not arm.skipped), None)
        why = f"{sources}, {f'and {remote}' if remote else 'with or without'} {self.sinks_text}"
        raise UsageError(
            f"{units.count_text(size, 'rank')}: {why}; start mpirun -n {' or -n '.join(map(str, self.ranks))}"
        )

    def check_threads(self, cores: int) -> None:
        """Refuse threads that only wait for each other.

        Args:
            cores: that the rank with the fewest may use.

        Raises:
            UsageError: they are too many.
        """
        if self.threads > THREADS_PER_CORE * cores:
            raise UsageError(
                f"threads {self.threads} are more than {THREADS_PER_CORE} for each of the "
                f"{units.count_text(cores, 'core')} that a rank may use here: name {cores} or fewer"
            )

    # ---- identity ----

    def hash(self) -> str:
        """16 hex digits that are the same for the same measurement, whatever it is called and wherever it is kept."""
        import hashlib
        import json

        content = self.model_dump(mode="json", exclude=NOT_MEASURED)
        if self._prompts:
            content["prompts"] = self._prompts
        if self._checkpoint is not None:
            content["checkpoint"] = self._checkpoint.identity
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


# ---- reading ----


def load(
    path: Path | None, overrides: Mapping[str, Any], environ: Mapping[str, str], plan: bool = False
) -> Experiment:
    """An experiment from a TOML file (or none), the environment's level, which overrides it, and flags, which win.

    Args:
        plan: it is not going to run here, so it may be for a device that is not.

    Raises:
        UsageError: the file cannot be read, or a value is wrong; the message names the file, key or flag.
    """
    given: dict[str, Any] = {}
    where: dict[str, str] = {}
    if "resume" in overrides:
        if path is not None:
            raise UsageError(
                f"{path}: --resume goes on with what that folder's run.json says, in place of a file"
            )
        from dejavubench.config.interrupted import find_interrupted
        from dejavubench.records import RUN_FILE

        folder = _checked(overrides["resume"], "--resume")
        given = find_interrupted(folder)[1]
        where = {key: f"resume: {folder / RUN_FILE}: {key}" for key in given}
        environ = {}  # the level is that run's
    if path is not None:
        if _checked(path, "CONFIG").exists() and not (path.is_file() or path.is_fifo()):
            raise UsageError(f"{path}: is no file")
        given = {"name": path.stem, **_read_toml(path)}
        if "resume" in given:
            raise UsageError(
                f"{path}: resume stands for a whole experiment: give it as a flag, without a file"
            )
        where = {key: f"{path}: {key}" for key in given}
    if BASELINE_VARIABLE in environ:
        given["level"] = environ[BASELINE_VARIABLE]
        where["level"] = BASELINE_VARIABLE
    for key, value in overrides.items():
        given[key] = value
        where[key] = "--" + key.replace("_", "-")
    for key, value in given.items():
        if _is_several(key, value):
            raise UsageError(f"{where[key]} takes one value; it cannot be swept: {shown(value)}")
    try:
        return Experiment.model_validate(given, context={"plan": plan})
    except ValidationError as error:
        raise UsageError(_one_line(error, where, path)) from None


def _checked(path: Any, where: str) -> Path:
    try:
        return values.path(path)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None


def _is_several(key: str, value: Any) -> bool:
    """Return whether a list is given for a key of one value. Texts and paths may hold commas, and refuse lists."""
    field = Experiment.model_fields.get(key)
    if field is None or get_origin(field.annotation) is tuple:
        return False
    of_text = key in ("name", "note") or Path in (field.annotation, *get_args(field.annotation))
    return not of_text and (
        isinstance(value, list | tuple) or (isinstance(value, str) and "," in value)
    )


def _read_toml(path: Path) -> dict[str, Any]:
    import difflib

    from dejavubench.textfile import TextFileError, read_toml

    try:
        document = read_toml(path)
    except TextFileError as error:
        raise UsageError(str(error)) from None
    values: dict[str, Any] = {}
    for key, value in document.items():
        name = key.replace("-", "_")
        if name not in Experiment.model_fields:
            close = difflib.get_close_matches(name, Experiment.model_fields, n=1)
            raise UsageError(
                f"{path}: unknown key {key!r}" + (f"; did you mean {close[0]}?" if close else "")
            )
        if name in values:
            raise UsageError(f"{path}: {name} is given twice")
        values[name] = value
    return values


def _one_line(error: ValidationError, where: Mapping[str, str], path: Path | None) -> str:
    """pydantic's first complaint, with the place where the value came from."""
    first = error.errors(include_url=False)[0]
    message = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if not first["loc"]:  # several keys that do not fit together; the message names them
        return f"{path}: {message}" if path else message
    key = cast(str, first["loc"][0])
    if key == "device" and first["input"] == "cuda":  # the value is right, but not here
        return f"{where.get(key, key)} cuda: {message}"
    given = "" if first["type"] == "value_error" else f", not {shown(first['input'])}"
    return f"{where.get(key, key)}: {message}{given}"
