"""Writing one rank's records, line by line, so that they survive whatever comes next."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from torch import Tensor

from dejavubench import records
from dejavubench.machine import liveness
from dejavubench.records import Microbatch, Record
from dejavubench.records.line_writer import LineWriter
from dejavubench.records.names import name_session_file, name_tokens_file
from dejavubench.whole_file import write_whole


class Recorder:
    """The rank's file in the run's folder, and on rank 0 the text logs.

    Attributes:
        phase_name: the phase that was recorded last, for messages.
        session: number of the session, which the names of its files end in.
    """

    def __init__(
        self, folder: Path, rank: int, has_several_points: bool, to_stdout: bool, session: int = 1
    ) -> None:
        self.folder = folder
        self.rank = rank
        self.session = session
        self.phase_name = "load"
        self._has_several_points = has_several_points
        self._to_stdout = to_stdout
        folder.mkdir(parents=True, exist_ok=True)
        self._lines = LineWriter(folder / records.name_rank_file(rank, session))

    def write(self, record: Record) -> None:
        """Append one line and hand it to the kernel, which keeps it if this process dies.

        An End record gets the digest of all lines before it, and on rank 0 that of ``run.json``.
        """
        sealed_record = self._seal(record) if isinstance(record, records.End) else record
        self._lines.write(records.to_line(sealed_record))

    def _seal(self, end_record: records.End) -> records.End:
        header = self.folder / records.RUN_FILE
        header_digest = (
            records.digest_of(header.read_bytes()) if self.rank == 0 and header.exists() else None
        )
        return end_record.model_copy(
            update={"digest": self._lines.digest, "header_digest": header_digest}
        )

    def mark_phase(self, phase: str, **details: str | int | None) -> None:
        """Record that a phase begins."""
        self.phase_name = phase
        liveness.begin_phase(
            phase
            + "".join(f", {key} {value}" for key, value in details.items() if value is not None)
        )
        mark = {"phase": phase, **details, "at_ns": time.perf_counter_ns()}
        self.write(records.PhaseMark.model_validate(mark))

    def write_text_lines(self, microbatches: list[Microbatch], total_ms: float) -> None:
        """Write DéjàVu's text lines of one iteration to ``<arm>.log``.

        If there is only one arm, they go to stdout as well.
        """
        # DéjàVu's own format counts microbatches over the whole run, not within an iteration.
        lines = []
        for microbatch in microbatches:
            microbatch_number = microbatch.iteration * len(microbatches) + microbatch.ubatch
            lines.append(
                records.format_prompt_line(self.rank, microbatch_number, microbatch.prompt_ms)
            )
            lines += [
                records.format_token_line(self.rank, microbatch_number, ms)
                for ms in microbatch.token_ms
            ]
            lines.append(
                records.format_all_token_line(self.rank, microbatch_number, microbatch.all_token_ms)
            )
        lines.append(records.format_total_line(self.rank, microbatches[0].iteration, total_ms))
        text = "\n".join(lines) + "\n"
        self._append(
            records.name_text_log_file(
                microbatches[0].point, microbatches[0].arm, self._has_several_points, self.session
            ),
            text,
        )
        if self._to_stdout:
            sys.stdout.write(text)
            sys.stdout.flush()

    def write_generated(
        self, point_id: str, prompts: list[list[list[int]]], tokens: Tensor
    ) -> None:
        """Write a point's requests to ``tokens.jsonl``, one per line: prompt and new tokens.

        Args:
            prompts: the token ids of each request of each microbatch.
            tokens: [microbatches, B, T].
        """
        lines = []
        for microbatch, (prompt_ids, new_tokens) in enumerate(
            zip(prompts, tokens.tolist(), strict=True)
        ):
            for request, (prompt, new_ids) in enumerate(zip(prompt_ids, new_tokens, strict=True)):
                line = {
                    "point": point_id,
                    "ubatch": microbatch,
                    "request": request,
                    "prompt": prompt,
                    "tokens": new_ids,
                }
                lines.append(json.dumps(line) + "\n")
        self._append(name_tokens_file(self.session), "".join(lines))

    def _append(self, name: str, text: str) -> None:
        path = self.folder / name
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            # A user may clear the folder during a run. ENOENT alone would name only this file.
            reason = error.strerror if self.folder.is_dir() else "the run's folder was removed"
            raise OSError(error.errno, reason, str(path)) from None

    @property
    def closed(self) -> bool:
        """True once the file is closed: nothing follows an End record."""
        return self._lines.closed

    def close(self) -> None:
        """Close the file of records; nothing may be written afterwards."""
        self._lines.close()


def write_header(folder: Path, header: records.RunHeader) -> None:
    """Write ``run.json``, whole or not at all."""
    text = json.dumps(header.model_dump(mode="json"), indent=2) + "\n"
    write_whole(folder / records.RUN_FILE, text.encode())


def write_session_header(folder: Path, header: records.SessionHeader) -> None:
    """Write the file that describes a later session, whole or not at all."""
    text = json.dumps(header.model_dump(mode="json"), indent=2) + "\n"
    write_whole(folder / name_session_file(header.session), text.encode())
