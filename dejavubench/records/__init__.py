"""The log schema: what a run writes and analysis reads.

Beside it, both use the data of ``dejavulib`` that needs no torch: levels, parts of a latency, and
the registry of destinations.

A run's folder holds ``run.json`` (a :class:`RunHeader`), ``rank-0000.jsonl`` … (one :data:`Record`
per line), ``chunks-0000.jsonl`` … (:mod:`~dejavubench.records.chunk_times`) and text logs in
DéjàVu's format (:mod:`~dejavubench.records.text_log`). Times are milliseconds of a monotonic clock,
those of chunks nanoseconds; sizes are bytes. Samples are kept raw. Warm-up iterations are marked,
never dropped.
"""

from dejavubench.records.ceilings import (
    HELD_AGAINST,
    OVERHEAD_OF,
    Ceiling,
    CopyWays,
    SourceAlone,
    StreamAlone,
)
from dejavubench.records.chunk_times import (
    ChunkList,
    ChunkPart,
    ChunkTimes,
    ExtentTimes,
    ListedChunk,
    SampledExtents,
    SinkChunkTimes,
    TimedArrivals,
    TimedChunks,
    read_chunk_times,
    read_extent_times,
    read_sink_times,
    read_source_times,
)
from dejavubench.records.digest import digest_of
from dejavubench.records.environment import (
    EndEnvironment,
    ExternalSink,
    Gpu,
    HostClock,
    RankEnvironment,
    RunEnvironment,
)
from dejavubench.records.field_types import LARGEST_INT64, LONGEST_MS, RecordError
from dejavubench.records.header import POINT_SETTINGS, SCHEMA, ArmInfo, PointInfo, RunHeader
from dejavubench.records.iterations import (
    Handover,
    HandoverAtSink,
    Iteration,
    IterationRecord,
    Microbatch,
    PhaseStreaming,
    Restart,
    RoundRecord,
    SinkActivity,
    Swapping,
    Verification,
)
from dejavubench.records.names import (
    RUN_FILE,
    name_chunk_file,
    name_first_exit_file,
    name_rank_file,
    name_text_log_file,
    rank_of,
    session_of,
)
from dejavubench.records.notes import Note, NoteKind, Severity
from dejavubench.records.ranks import (
    ArmFailure,
    End,
    FirstExit,
    PhaseMark,
    RankFailure,
    RankInfo,
    Skipped,
)
from dejavubench.records.reading import read_rank, read_run
from dejavubench.records.run_logs import RankLog, Run
from dejavubench.records.schema import Record, to_line
from dejavubench.records.sessions import PointStart, SessionHeader
from dejavubench.records.text_log import (
    format_all_token_line,
    format_prompt_line,
    format_token_line,
    format_total_line,
)

__all__ = [
    "HELD_AGAINST",
    "LARGEST_INT64",
    "LONGEST_MS",
    "OVERHEAD_OF",
    "POINT_SETTINGS",
    "RUN_FILE",
    "SCHEMA",
    "ArmFailure",
    "ArmInfo",
    "Ceiling",
    "ChunkList",
    "ChunkPart",
    "ChunkTimes",
    "CopyWays",
    "End",
    "EndEnvironment",
    "ExtentTimes",
    "ExternalSink",
    "FirstExit",
    "Gpu",
    "Handover",
    "HandoverAtSink",
    "HostClock",
    "Iteration",
    "IterationRecord",
    "ListedChunk",
    "Microbatch",
    "Note",
    "NoteKind",
    "PhaseMark",
    "PhaseStreaming",
    "PointInfo",
    "PointStart",
    "RankEnvironment",
    "RankFailure",
    "RankInfo",
    "RankLog",
    "Record",
    "RecordError",
    "Restart",
    "RoundRecord",
    "Run",
    "RunEnvironment",
    "RunHeader",
    "SampledExtents",
    "SessionHeader",
    "Severity",
    "SinkActivity",
    "SinkChunkTimes",
    "Skipped",
    "SourceAlone",
    "StreamAlone",
    "Swapping",
    "TimedArrivals",
    "TimedChunks",
    "Verification",
    "digest_of",
    "format_all_token_line",
    "format_prompt_line",
    "format_token_line",
    "format_total_line",
    "name_chunk_file",
    "name_first_exit_file",
    "name_rank_file",
    "name_text_log_file",
    "rank_of",
    "read_chunk_times",
    "read_extent_times",
    "read_rank",
    "read_run",
    "read_sink_times",
    "read_source_times",
    "session_of",
    "to_line",
]
