"""Builds the libFuzzer harness of the C core with ASan and UBSan and runs it for a bounded number of inputs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SOURCES = [ROOT / "events/vedette_events" / name for name in ("_core.c", "_dns.c", "_matcher.c", "_sieve.c")]
RUNS = int(os.environ.get("VEDETTE_FUZZ_RUNS", "60000"))


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("clang") is None:
        pytest.skip("clang is not installed")
    directory = tmp_path_factory.mktemp("fuzz")
    binary = directory / "fuzz_core"
    flags = ["-g", "-O1", "-std=c11", "-Wall", "-Wextra", "-Werror", "-fsanitize=fuzzer,address,undefined"]
    flags += ["-fno-sanitize-recover=all", "-D_GNU_SOURCE", f"-I{SOURCES[0].parent}"]
    command = ["clang", *flags, str(ROOT / "tests/fuzz/fuzz_core.c"), *map(str, SOURCES), "-o", str(binary)]
    built = subprocess.run(command, capture_output=True, text=True)
    if "libclang_rt.fuzzer" in built.stderr:
        pytest.skip("clang's fuzzer runtime (libclang-rt-*-dev) is not installed")
    assert built.returncode == 0, built.stderr
    subprocess.run([sys.executable, str(ROOT / "tests/fuzz/corpus.py"), str(directory)], check=True)
    return directory


def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "VEDETTE_LAYOUTS": str(directory / "layouts")}
    command = [str(directory / "fuzz_core"), "-max_len=4096", f"-artifact_prefix={directory}/", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=550)


@pytest.mark.timeout(600)
def test_no_input_makes_the_core_fail(fuzzer: Path) -> None:
    finished = run(fuzzer, f"-runs={RUNS}", "-seed=1", "-timeout=5", str(fuzzer / "corpus"))
    assert finished.returncode == 0, finished.stderr[-4000:]
    assert f"Done {RUNS} runs" in finished.stderr


def test_the_fuzzer_would_notice(fuzzer: Path) -> None:
    """Layouts that claim too small a fixed part make the core read tail lengths outside of the records."""
    layouts = bytearray((fuzzer / "layouts").read_bytes())
    layouts[22:26] = (72).to_bytes(2, "little") + (4000).to_bytes(2, "little")
    (fuzzer / "wrong").write_bytes(layouts)
    environment = {**os.environ, "VEDETTE_LAYOUTS": str(fuzzer / "wrong")}
    command = [str(fuzzer / "fuzz_core"), f"-artifact_prefix={fuzzer}/", str(fuzzer / "corpus" / "split-exec")]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert finished.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in finished.stderr
