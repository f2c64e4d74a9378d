from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from vedette_events import generate, schema


def test_generated_files_are_fresh() -> None:
    assert generate.stale() == []


def test_check_names_the_stale_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--root", str(tmp_path)]) == 0
    assert generate.main(["--check", "--root", str(tmp_path)]) == 0
    target = tmp_path / generate.HEADER_PATH
    target.write_text(target.read_text() + "\n")
    capsys.readouterr()
    assert generate.main(["--check", "--root", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"{generate.HEADER_PATH} is stale: run `python -m vedette_events.generate`\n"


def test_every_enum_of_the_schema_is_generated() -> None:
    used = {f.flags for e in schema.EVENT_TYPES for f in (*schema.HEADER, *e.fields)} - {None}
    assert used == set(generate.ENUMS)


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_compiler_lays_the_structs_out_as_the_schema_says(compiler: str, tmp_path: Path) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    source = tmp_path / "layout.c"
    source.write_text(generate.c_header())
    command = [compiler, "-std=c11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", str(source)]
    assert subprocess.run(command, check=False, capture_output=True, text=True).stderr == ""


def test_constant_names() -> None:
    assert generate.constant_name(schema.FileBits, "UPPER") == "VD_FILE_BITS_UPPER"
    assert "#define VD_FILE_BITS_UPPER 0x2u" in generate.c_header()
    assert "#define VD_EXEC_ARGV_LIMIT 4096" in generate.c_header()
