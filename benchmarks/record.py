"""Records real work of this machine as a file of framed batches, for ``benchmarks/engine.py --frames FILE``.

    python benchmarks/record.py OUT [--profile builds|services] [--seconds 60]     (root)

Runs the whole pipeline as a user does (``vedette run``) on directories of its own, does the profile's work meanwhile,
and joins the journal's segments. All of it is ordinary and stays on this machine: connections go to loopback, files to
a temporary directory. Besides, the recording holds whatever else the machine does then; so it is not for publishing.

- *builds*: compilers, package queries, find, git, shell scripts with pipes, interpreters, curl: a shell or a compiler
  is started all the time, every tenth event is an exec.
- *services*: servers answer requests over loopback, write logs and a database, rotate files; now and then a health
  check or a cron-like script. Most events are opens, renames, unlinks, forks and exits; execs are a few in a hundred.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.demo.host import running, wait_until_watched
from vedette_cli.location import Location
from vedette_detector.journal import SUFFIX
from vedette_events.columns import split_batch
from vedette_events.framing import decode_batch, iter_batches

PORT = 18931
"""Of the loopback server that the work talks to."""

_SERVER = """
import http.server, os, socketserver, sqlite3, sys
class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.0"
    def do_GET(self):
        with open(f"log.{os.getpid()}", "a") as log:
            log.write(self.path + "\\n")
        super().do_GET()
    def log_message(self, *arguments):
        pass
class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 128
Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""

_CLIENT = """
import os, sqlite3, sys, time, urllib.request
port, until = sys.argv[1], time.monotonic() + float(sys.argv[2])
database = sqlite3.connect(f"data-{os.getpid()}.db")
database.execute("create table if not exists t (at real, body blob)")
number = 0
while time.monotonic() < until:
    number += 1
    body = urllib.request.urlopen(f"http://127.0.0.1:{port}/index.html", timeout=5).read()
    name = f"cache-{os.getpid()}-{number % 500:04d}.part"
    with open(name, "wb") as file:
        file.write(body)
    os.rename(name, name[:-5])
    if number % 5 == 0:
        os.unlink(name[:-5])
    if number % 20 == 0:
        with database:
            database.execute("insert into t values (?, ?)", (time.time(), body))
    if number % 50 == 0:
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
    time.sleep(0.002)
"""

_BUILD = """
set -e
d=$(mktemp -d -p .); cd "$d"
for n in 1 2 3 4 5 6; do
  printf '#include <stdio.h>\\n#include <stdlib.h>\\nint f%d(int x) { return printf("%%d", x) + %d; }\\n' $n $n > f$n.c
  gcc -O1 -c f$n.c -o f$n.o
done
printf 'int main(void) { return 0; }\\n' > main.c
gcc -o program main.c f*.o && strip program
nm f1.o | grep ' T ' | sort | wc -l > symbols
git init -q . && git add -A && git -c user.name=n -c user.email=n@example.org commit -qm first
git log --oneline | cat
tar cz . | gzip -dc | tar t | sort | tail -n 3
cd .. && rm -rf "$d"
"""

_QUERIES = """
dpkg -l | grep -c '^ii'
dpkg -S /bin/ls /usr/bin/find || true
apt-cache policy bash | head -n 3
find /usr/share/doc -maxdepth 2 -name 'c*' | head -n 50 | while read -r f; do basename "$f"; done | sort -u | wc -l
python3 -c 'import json, http.client, subprocess; subprocess.run(["sh", "-c", "id -un | tr a-z A-Z"])'
ps -e -o pid,comm | awk '{print $2}' | sort | uniq -c | sort -rn | head -n 5
ls -l /etc | sed 's/ .*//' | sort | uniq -c
"""

_CHECK = """
test "$(curl -fsS -o /dev/null -w '%{http_code}' http://127.0.0.1:PORT/index.html)" = 200 && echo ok || echo failed
df -P / | tail -n 1 | awk '{print $5}'
cat /proc/loadavg | cut -d' ' -f1
find . -name 'cache-*' -mmin +1 | xargs -r rm -f
for log in log.*; do test "$(stat -c %s "$log")" -gt 100000 && mv "$log" "$log.1" && gzip -f "$log.1"; done; true
"""


def _start(directory: Path, *command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command, cwd=directory, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def _repeat(script: str, directory: Path, until: float, pause_s: float) -> None:
    while time.monotonic() < until:
        _start(directory, "sh", "-c", script.replace("PORT", str(PORT))).wait()
        time.sleep(pause_s)


@contextlib.contextmanager
def _server(directory: Path) -> Iterator[None]:
    (directory / "index.html").write_text("<p>hello</p>\n" * 40)
    process = _start(directory, sys.executable, "-I", "-c", _SERVER, str(PORT))
    try:
        time.sleep(1.0)
        yield
    finally:
        process.terminate()
        process.wait()


def work(profile: str, directory: Path, seconds: float) -> None:
    """Do a profile's work for so long."""
    until = time.monotonic() + seconds
    plan = {
        "builds": [(_BUILD, 0.0), (_QUERIES, 0.1), (_CHECK, 0.2)],
        "services": [(_QUERIES, 10.0), (_CHECK, 5.0)],
    }[profile]
    with _server(directory):
        clients = []
        if profile == "services":
            command = (sys.executable, "-I", "-c", _CLIENT, str(PORT), str(seconds))
            clients = [_start(directory, *command) for _ in range(6)]
        threads = [threading.Thread(target=_repeat, args=(script, directory, until, pause)) for script, pause in plan]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for client in clients:
            client.wait()


def record(output: Path, profile: str, seconds: float) -> Counter[str]:
    """Write the recording; events by type."""
    temporary = Path(tempfile.mkdtemp(prefix="vedette-record-"))
    temporary.chmod(0o755)
    location = Location(temporary / "data", temporary / "run")
    for name in ("lists", "work"):
        (temporary / name).mkdir()
    try:
        log = temporary / "log"
        with running(location, temporary / "lists", log) as process:
            wait_until_watched(location, process, log)
            work(profile, temporary / "work", seconds)
            time.sleep(2.0)
        types: Counter[str] = Counter()
        with output.open("wb") as out:
            for segment in sorted((temporary / "data").rglob(f"*{SUFFIX}")):
                for _, frame in iter_batches(segment.read_bytes()):
                    header, records = decode_batch(frame)
                    types.update(
                        {name: len(c) for name, c in split_batch(records, header.schema_version).types.items()}
                    )
                    out.write(frame)
        return types
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--profile", choices=("builds", "services"), default="services")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to work")
    options = parser.parse_args()
    types = record(options.output, options.profile, options.seconds)
    total = sum(types.values())
    print(f"{total} events, {options.output.stat().st_size} bytes in {options.output}")
    for name, count in types.most_common():
        print(f"  {name:12} {count:9} {100 * count / total:5.1f} %")


if __name__ == "__main__":
    main()
