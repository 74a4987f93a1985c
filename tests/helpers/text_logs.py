"""For tests of text logs: one in DéjàVu's format, and a check of one that a run wrote."""

from __future__ import annotations

import re
from pathlib import Path

from dejavubench.records import (
    format_all_token_line,
    format_prompt_line,
    format_token_line,
    format_total_line,
)


def original_log(path: Path, iterations: int = 4, tokens: int = 4) -> Path:
    """Write two ranks with other output between; rank 0: prompts 100, 50 …; tokens 30, 20, 1 …"""
    lines = ["Namespace(input_len=256) BENCHMARK", "[INFO] RANK 0 loads", "took 3 ms"]
    for number in range(iterations):
        for rank in (1, 0):
            prompt = (100.0, 50.0)[number] if number < 2 else 9.0 + number
            steps = [30.0, 20.0, *(float(n) for n in range(1, tokens - 1))][:tokens]
            lines.append(format_prompt_line(rank, number, prompt + rank))
            lines += [format_token_line(rank, number, step + rank) for step in steps]
            lines.append("[FT][DEBUG] flush of 16 bytes")
            lines += [
                format_all_token_line(rank, number, sum(steps)),
                format_total_line(rank, number, 1000.0 * (number + 1)),
            ]
    path.write_text("\n".join(lines) + "\n")
    return path


MS = r"(\d+\.\d{6})"


def check_lines(text: str, iterations: int, output_len: int, in_flight: int = 1) -> list[float]:
    """Assert that a log of rank 0 is exactly DéjàVu's; return its TOTALs in ms."""
    lines = iter(text.splitlines(keepends=True))

    def value(name: str) -> float:
        line = next(lines)
        match = re.fullmatch(rf"\[BENCHMARK\] RANK 0 {name} took {MS} ms\n", line)
        assert match, f"{line!r} is not {name!r}"
        return float(match[1])

    totals = []
    for number in range(iterations):
        spent = 0.0
        for microbatch in range(number * in_flight, (number + 1) * in_flight):
            prompt = value(f"Microbatch {microbatch}, PROMPT processing")
            tokens = [
                value(f"ITERATION {microbatch}, TOKEN generation") for _ in range(output_len - 1)
            ]
            all_token = value(f"ITERATION {microbatch}, ALL-TOKEN generation")
            assert min(prompt, *tokens) > 0
            assert sum(tokens) <= all_token + 1e-5  # they are rounded to 1e-6
            spent = max(spent, prompt + all_token)
        totals.append(value(f"ITERATION {number}, TOTAL generation"))
        assert spent <= totals[-1] + 1e-5  # the drain is in it
    assert next(lines, None) is None
    return totals
