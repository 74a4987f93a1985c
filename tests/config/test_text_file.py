"""Text files: byte order marks are read, and an error is one line with its place."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from dejavubench.config.resolve import load
from dejavubench.errors import UsageError
from dejavubench.text_file import (
    LFS_POINTER,
    TextFileError,
    parse_json,
    read_json,
    read_text,
    read_toml,
)

GOOD_TEXT = '{"a": [1, true],\n "b": "é"}'


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "BOM"])
def test_json_and_toml_are_read_with_and_without_a_byte_order_mark(
    mark: str, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_text(mark + GOOD_TEXT, encoding="utf-8")
    assert read_json(path) == {"a": [1, True], "b": "é"}
    path.write_text(mark + "rounds = 7\r\n", encoding="utf-8")
    assert read_toml(path) == {"rounds": 7}
    assert load(path, {}, {}).experiment.rounds == 7


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1,\n "b": 2,\n}', r"line 3, column 1: not JSON: remove the comma before '}'"),
        ("[1,\n2,\n ]", r"line 3, column 2: not JSON: remove the comma before ']'"),
        ('{\n "a": True}', "line 2, column 7: not JSON: True is Python's spelling; write true"),
        ('{"a": None}', "line 1, column 7: not JSON: None is Python's spelling; write null"),
        ("{'a': 1}", "line 1, column 2: not JSON: ' is Python's spelling; write \""),
        ("<!DOCTYPE html><html>", "line 1, column 1: this is an HTML page"),
        ("\n<html>", "this is an HTML page"),
        ("", "the file is empty"),
        (" \n", "the file is empty"),
        (f"{LFS_POINTER}v1\noid sha256:12\nsize 3\n", "this is a Git LFS pointer.*git lfs pull"),
        ('{"a": 1', r"line 1, column 8: not JSON: Expecting ',' delimiter"),
        ('{"a": 1} {', r"line 1, column 10: not JSON: Extra data"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' * 100_000, "nested too deeply"),
        ("[" + "7" * 5000 + "]", "a number has too many digits"),
    ],
)  # fmt: skip
def test_malformed_json_is_one_line_with_line_and_column(
    text: str, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    for read in (lambda: read_json(path), lambda: parse_json(text, str(path))):
        with pytest.raises(TextFileError, match=f"config.json: .*{words}") as raised:
            read()
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (GOOD_TEXT.encode("utf-16"), "the file is UTF-16 text; save it as UTF-8"),
        (GOOD_TEXT.encode("utf-32"), "the file is UTF-32 text; save it as UTF-8"),
        (b'{"a":\n "\xe9"}', r"line 2, byte 3: can't decode 0xe9 as UTF-8"),
        (gzip.compress(GOOD_TEXT.encode(), mtime=0), "the file is compressed by gzip; unpack it"),
        (b"\x00\xff\x80", r"line 1, byte 2: can't decode 0xff as UTF-8"),
    ],
    ids=["UTF-16", "UTF-32", "Latin-1", "gzip", "no text"],
)
def test_other_encodings_are_named(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(TextFileError, match=words):
        read_text(path)


def test_a_device_is_not_read_as_it_might_never_end(tmp_path: Path) -> None:
    for device in ("/dev/null", "/dev/zero", "/dev/full"):
        link = tmp_path / Path(device).name
        link.symlink_to(device)
        with pytest.raises(TextFileError, match="is a device, not a file"):
            read_text(link)


@pytest.mark.parametrize("name", ["a\0b", "n" * 300, "no\nsuch", ".", "none"])
def test_an_unreadable_text_file_is_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(TextFileError) as raised:
        read_text(tmp_path / name)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "rounds = 1\nrounds =\n",
            r"x\.toml, line 2: not valid TOML: .* at column 9: a text needs quotes, as in model =",
        ),
        (
            "input_len = " + "[" * 3000,
            "x.toml: not usable TOML: its brackets are nested too deeply",
        ),
        ("seed = " + "7" * 5000, "x.toml: not usable TOML: a number has too many digits"),
        (f"{LFS_POINTER}v1\n", r"x\.toml, line 1: not valid TOML: .*column 9"),
    ],
)
def test_broken_toml_is_one_line(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=words) as raised:
        load(path, {}, {})
    assert "\n" not in str(raised.value)
