"""Text logs as the original's scripts write them."""

from __future__ import annotations

from pathlib import Path

from dejavubench.records import all_token_line, prompt_line, token_line, total_line


def original_log(path: Path, iterations: int = 4, tokens: int = 4) -> Path:
    """Write two ranks with other output between; rank 0: prompts 100, 50 …; tokens 30, 20, 1 …"""
    lines = ["Namespace(input_len=256) BENCHMARK", "[INFO] RANK 0 loads", "took 3 ms"]
    for number in range(iterations):
        for rank in (1, 0):
            prompt = (100.0, 50.0)[number] if number < 2 else 9.0 + number
            steps = [30.0, 20.0, *(float(n) for n in range(1, tokens - 1))][:tokens]
            lines.append(prompt_line(rank, number, prompt + rank))
            lines += [token_line(rank, number, step + rank) for step in steps]
            lines.append("[FT][DEBUG] flush of 16 bytes")
            lines += [
                all_token_line(rank, number, sum(steps)),
                total_line(rank, number, 1000.0 * (number + 1)),
            ]
    path.write_text("\n".join(lines) + "\n")
    return path
