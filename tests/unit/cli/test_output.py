from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.unit.cli.conftest import Put, detection
from vedette_cli.output import Column, fit

COLUMNS = (Column("A", keep=True), Column("B"), Column("C"))


@pytest.mark.parametrize(
    ("natural", "width", "widths"),
    [
        ([10, 30, 50], 200, [10, 30, 50]),
        ([10, 30, 50], 94, [10, 30, 50]),
        ([10, 30, 50], 80, [10, 30, 36]),
        ([10, 30, 50], 60, [10, 24, 22]),
        ([10, 30, 50], 20, [10, 22, 22]),
        ([10, 5, 50], 40, [10, 5, 22]),
    ],
)
def test_the_widest_column_gives_way_first(natural: list[int], width: int, widths: list[int]) -> None:
    assert fit(COLUMNS, natural, width) == widths


def on_terminal(arguments: list[str], data_dir: Path, width: int, **environment: str) -> str:
    """What a command writes to a real terminal of ``width`` columns."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (50, width))
    values = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "FORCE_COLOR")}
    values |= {"VEDETTE_DATA_DIR": str(data_dir), "TERM": "xterm-256color", **environment}
    process = subprocess.Popen([sys.executable, "-m", "vedette_cli", *arguments], stdout=theirs, env=values)
    os.close(theirs)
    out = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # EIO: the other side is closed
            break
        if not chunk:
            break
        out += chunk
    os.close(ours)
    assert process.wait() == 0
    return out.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("width", [200, 130, 100])
def test_a_table_fits_the_terminal(put: Put, data_dir: Path, width: int) -> None:
    put(detection(process={"executablePath": "/usr/bin/x" * 40, "pid": 1}))
    shown = on_terminal(["findings", "list"], data_dir, width)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
    assert len(lines) == 2
    assert all(cell_len(line) <= width for line in lines)
    assert lines[0].split()[0] == "SEVERITY"
    assert lines[1].startswith("High 8.0  Execution:Runtime/Rev")
    assert "\x1b[1m" in shown


def test_no_color_is_respected_on_a_terminal(put: Put, data_dir: Path) -> None:
    put(detection())
    shown = on_terminal(["findings", "list"], data_dir, 200, NO_COLOR="1")
    assert not re.search(r"\x1b\[3[0-9]", shown)


def test_escapes_reach_a_terminal_only_as_styles(put: Put, data_dir: Path) -> None:
    put(detection(process={"executablePath": "/x\x1b]0;title\x07\x1b[2J", "pid": 1}))
    shown = on_terminal(["findings", "list"], data_dir, 200)
    assert re.sub(r"\x1b\[[0-9;]*m", "", shown).isascii()
    assert "\x1b" not in re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert "\x07" not in shown
