"""Headings of the sizes and settings of a point, in tables and captions."""

from __future__ import annotations

SIZE_HEADINGS = {
    "model": "model",
    "data_type": "data type",
    "kv_layout": "KV layout",
    "ubatch_size": "batch",
    "input_len": "prompt",
    "output_len": "new tokens",
    "tensor_para_size": "tensor parallel",
    "pipeline_para_size": "pipeline depth",
    "sinks": "sinks",
    "handed_over": "tokens before hand-over",
}
"""Headings of the sizes of a point, in tables and captions."""

SETTING_HEADINGS = {
    "threads": "threads",
    "staging_mib": "staging MiB",
    "staging_slots": "staging slots",
    "confine": "confined",
}
"""Headings of the settings of a point, where a sweep varies them."""

HEADINGS = SIZE_HEADINGS | SETTING_HEADINGS
"""Headings of all that may tell points apart."""


def format_setting(value: object) -> str:
    """Return a setting as tables and captions show it; a switch is yes or no."""
    return {"True": "yes", "False": "no"}.get(str(value), str(value))  # pandas has its own bool
