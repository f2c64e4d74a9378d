"""Who gets into a running detector: https and unix socket at once, TokenReview; rotation and stopping under load."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.unit.detector.api_server import ApiServer, Authority, api_server
from tests.unit.detector.detector_parts import BOOT, SESSION, batch, client_of, eventually
from tests.unit.detector.test_tls import Secret
from tests.unit.detector.token_parts import OPERATOR, Reviewer, jwt
from vedette_agent.log import Log
from vedette_agent.sender import Client, Endpoint, Sender
from vedette_agent.spool import Spool
from vedette_detector.cluster import token_review
from vedette_detector.cluster.token_review import PATH
from vedette_detector.config import Settings
from vedette_detector.orphans import Orphans, zombies
from vedette_detector.service import Service
from vedette_events.framing import decode_header

HEARTBEAT = {"node": "node-a", "boot_id": BOOT.hex()}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def cluster_of(server: ApiServer) -> None:
    """A cluster without pods: lists are empty, watches silent."""

    async def empty(request: web.Request) -> web.StreamResponse:
        if request.query.get("watch"):
            response = web.StreamResponse()
            await response.prepare(request)
            await asyncio.Event().wait()
        return web.json_response({"items": nodes, "metadata": {"resourceVersion": "1"}})

    nodes: list[Any] = []
    for path in ("/api/v1/pods", "/api/v1/nodes", "/apis/apps/v1/replicasets", "/apis/batch/v1/jobs"):
        server.handlers["GET", path] = empty


@dataclass
class World:
    """A detector as it runs in a cluster."""

    service: Service
    settings: Settings
    reviewer: Reviewer
    secret: Secret
    authority: Authority
    session: aiohttp.ClientSession

    @property
    def url(self) -> str:
        return self.settings.listen[0]

    async def post(self, token: str | None, body: bytes, **headers: str) -> tuple[int, str]:
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        async with self.session.post(f"{self.url}/v1/batches", data=body, headers=headers) as answer:
            text = await answer.text()
            return answer.status, json.loads(text).get("reason", "") if text.startswith("{") else ""

    async def get(self, token: str, path: str) -> tuple[int, Any]:
        async with self.session.get(self.url + path, headers={"Authorization": f"Bearer {token}"}) as answer:
            return answer.status, await (answer.json() if "json" in answer.content_type else answer.text())


@asynccontextmanager
async def world_of(settings: Settings, folder: Path) -> AsyncIterator[World]:
    authority = Authority()
    secret = Secret(folder / "tls")
    cert, key = secret.put(authority.issue("127.0.0.1"))
    async with api_server(folder / "api") as server:
        reviewer = Reviewer(server)
        server.handlers["POST", PATH] = reviewer.review
        cluster_of(server)
        settings = replace(
            settings,
            listen=(f"https://127.0.0.1:{free_port()}", *settings.listen),
            tls_cert=cert,
            tls_key=key,
            tls_reload_s=0.05,
            token_review=True,
            kubernetes=str(server.kubeconfig()),
        )
        service = Service(settings)
        try:
            await service.start()
            context = ssl.create_default_context(cadata=authority.pem.decode())
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
                yield World(service, settings, reviewer, secret, authority, session)
        finally:
            await service.stop()


@pytest.fixture
async def world(settings: Settings, tmp_path: Path) -> AsyncIterator[World]:
    async with world_of(settings, tmp_path) as made:
        yield made


async def test_over_https_the_token_decides_and_on_the_socket_the_user(world: World) -> None:
    good = world.reviewer.know(jwt(), node="node-a")
    admin = world.reviewer.know(jwt(OPERATOR), OPERATOR)
    assert await world.post(good, batch(1)) == (200, "")
    assert await world.post(good, batch(1, node="node-b")) == (403, "WrongNode")
    assert await world.post(good, batch(2) + batch(1, node="node-b")) == (403, "WrongNode")
    assert await world.post(admin, batch(1)) == (403, "WrongNode")
    assert await world.post(None, batch(1)) == (401, "NoToken")
    assert await world.post("garbage", batch(1)) == (401, "MalformedToken")
    assert await world.post(jwt(expires=1.0), batch(1)) == (401, "TokenExpired")
    assert await world.post(jwt(audience=("other",)), batch(1)) == (401, "WrongAudience")
    assert await world.post(jwt(mark="unknown"), batch(1)) == (401, "UnknownToken")
    assert await world.post(jwt("system:serviceaccount:x:y"), batch(1)) == (403, "WrongServiceAccount")
    for path in ("/v1/status", "/v1/coverage"):
        status, document = await world.get(good, path)
        assert (status, document["reason"]) == (403, "NotAdministrator")
        assert (await world.get(admin, path))[0] == 200
    for path in ("/healthz", "/metrics"):
        assert (await world.get("garbage", path))[0] == 200
    async with client_of(replace(world.settings, listen=world.settings.listen[1:])) as client:
        status, document = await client.get("/v1/status")
        assert status == 200
        assert document["detector"]["access"]["token_review"]["known_tokens"] == 2
        assert document["detector"]["access"]["listen"] == list(world.settings.listen)
    assert {a.node: a.received for a in world.service.store.accounts()} == {"node-a": 1}


async def test_a_heartbeat_for_another_node_is_refused(world: World) -> None:
    token = world.reviewer.know(jwt(), node="node-b")
    headers = {"Authorization": f"Bearer {token}"}
    async with world.session.post(f"{world.url}/v1/heartbeat", json=HEARTBEAT, headers=headers) as answer:
        assert (answer.status, (await answer.json())["reason"]) == (403, "WrongNode")
    assert world.service.liveness.nodes == []


async def test_hostile_headers_are_refused_and_tokens_stay_out_of_the_log(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    host, port = "127.0.0.1", int(world.url.rpartition(":")[2])
    context = ssl.create_default_context(cadata=world.authority.pem.decode())

    async def raw(head: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(host, port, ssl=context)
        writer.write(b"POST /v1/batches HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\n" + head + b"\r\n\r\n")
        line = await asyncio.wait_for(reader.readline(), 20)
        writer.close()
        return line.split()[1] if line else b""

    secret = b"TopSecretTokenTopSecretToken"
    bearer = b"Authorization: Bearer " + secret
    for head, expected in (
        (bearer, b"401"),
        (bearer * 1000, b"400"),
        (b"X-Large: " + secret * 10_000, b"400"),
        (b"\r\n".join([bearer] * 3), b"401"),
        (bearer + b"\x00", b"400"),
        (bearer + b"\xff\xfe\xe2\x80\xae", b"401"),
        (b"\r\n".join(b"X-%d: " % n + secret for n in range(5000)), b"400"),
        (b"Authorization : Bearer " + secret, b"400"),
    ):
        assert await raw(head) == expected, head[:60]
    token = world.reviewer.know(jwt(mark="TopSecretSignature"), node="node-a")
    assert await world.post(token, batch(1)) == (200, "")
    assert "TopSecret" not in caplog.text
    assert token[:60] not in caplog.text


async def test_while_the_api_server_is_away_known_agents_deliver_and_others_come_again(world: World) -> None:
    known = world.reviewer.know(jwt(), node="node-a")
    new = world.reviewer.know(jwt(mark="new"), node="node-b")
    assert await world.post(known, batch(1)) == (200, "")
    await world.reviewer.server.stop()
    assert world.service.reviews is not None
    for entry in world.service.reviews._admitted.values():
        entry.fresh_until = 0.0
    assert await world.post(known, batch(2)) == (200, "")
    headers = {"Authorization": f"Bearer {new}"}
    async with world.session.post(f"{world.url}/v1/batches", data=batch(1, node="node-b"), headers=headers) as answer:
        assert (answer.status, (await answer.json())["reason"]) == (503, "IdentityUnavailable")
        assert int(answer.headers["Retry-After"]) >= 1
    _, text = await world.get(known, "/metrics")
    assert 'vedette_token_admissions_total{result="unreviewed"} 1\n' in text
    await world.reviewer.server.start()
    assert await world.post(new, batch(1, node="node-b")) == (200, "")


async def test_the_certificate_in_force_is_in_status_and_metrics(world: World) -> None:
    admin = world.reviewer.know(jwt(OPERATOR), OPERATOR)
    new = world.authority.issue("127.0.0.1", kind="rsa")
    world.secret.put(new)

    async def tls() -> dict[str, Any]:
        document: dict[str, Any] = (await world.get(admin, "/v1/status"))[1]["detector"]["access"]["tls"]
        return document

    listeners = world.service.listeners
    assert listeners is not None
    assert listeners.certificate is not None
    certificate = listeners.certificate
    await eventually(lambda: certificate.reloads == 1, "the new certificate is taken")
    world.secret.put((b"broken", b"broken"))
    await eventually(lambda: certificate.error, "the broken one is seen")
    status = await tls()
    assert (status["error"], status["reloads"]) == ("no certificate in the file", 1)
    assert 3000 < status["seconds_left"] <= 3600
    _, text = await world.get(admin, "/metrics")
    assert f"vedette_serving_certificate_not_after_seconds {certificate.not_after.timestamp():.0f}\n" in text
    assert "vedette_serving_certificate_reload_failed 1\n" in text


# An agent's sender against it


class Agent:
    """An agent's spool and sender, and batches that come all the time."""

    def __init__(self, world: World, folder: Path, ca: bytes, token: str) -> None:
        self.token_file, self.ca_file = folder / "token", folder / "ca.crt"
        self.ca_file.write_bytes(ca)
        self.token_file.write_text(token)
        self.spool = Spool(folder / "spool")
        self.number = 0
        self.lines: list[str] = []
        self.sender = Sender(
            self.spool,
            Client(Endpoint.parse(world.url), self.token_file, self.ca_file),
            heartbeat=lambda: HEARTBEAT,
            filters_version=lambda: "",
            on_filters=lambda filters: None,
            log=Log("text", "debug", self),  # type: ignore[arg-type]
            heartbeat_interval_s=0.2,
            backoff_last_s=0.5,
        )

    def write(self, line: str) -> None:
        self.lines.append(line)

    def flush(self) -> None:
        """Nothing is held back."""

    def append(self) -> None:
        self.number += 1
        framed = batch(self.number)
        assert self.spool.append(decode_header(framed)[0], framed)

    async def load(self) -> None:
        while True:
            self.append()
            await asyncio.sleep(0.005)

    def replace(self, path: Path, content: bytes) -> None:
        new = path.with_suffix(".new")
        new.write_bytes(content)
        new.replace(path)


async def test_nothing_is_lost_while_certificate_authority_and_token_are_rotated(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_review, "NEGATIVE_S", 0.1)
    folder = tmp_path / "agent"
    folder.mkdir()
    first = world.reviewer.know(jwt(mark="t0"), node="node-a")
    agent = Agent(world, folder, world.authority.pem, first)
    listeners = world.service.listeners
    assert listeners is not None
    certificate = listeners.certificate
    assert certificate is not None
    agent.sender.start()
    load = asyncio.create_task(agent.load())
    old = world.authority
    current = first
    try:
        for round_number in range(1, 4):
            seen = agent.sender.acknowledged
            # A new authority is first trusted beside the old one, then used; the old one goes last.
            new = Authority(f"authority {round_number}")
            agent.replace(agent.ca_file, old.pem + new.pem)
            await eventually(lambda seen=seen: agent.sender.acknowledged > seen + 2, "batches arrive")
            world.secret.put(new.issue("127.0.0.1", kind="rsa" if round_number % 2 else "ecdsa"))
            await eventually(lambda n=round_number: certificate.reloads == n, "the certificate is taken")
            agent.replace(agent.ca_file, new.pem)
            # The token: the old one ends at once, before the agent has the new one.
            token = world.reviewer.know(jwt(mark=f"t{round_number}"), node="node-a")
            del world.reviewer.users[current]
            assert world.service.reviews is not None
            world.service.reviews._admitted.clear()
            refused = world.service.reviews.counts.refused
            await eventually(lambda r=refused: world.service.reviews.counts.refused > r, "the old token is refused")
            agent.replace(agent.token_file, token.encode())
            seen = agent.sender.acknowledged
            await eventually(lambda seen=seen: agent.sender.acknowledged > seen + 2, "batches arrive again")
            old, current = new, token
    finally:
        load.cancel()
    await eventually(lambda: agent.sender.acknowledged == agent.number, "everything has arrived")
    await asyncio.to_thread(agent.sender.stop, 5.0)
    agent.spool.close()
    (account,) = world.service.store.accounts()
    assert (account.received, account.missing_batches, account.balance) == (agent.number, 0, "balanced")
    assert [f.count for f in world.service.store.list()] == [agent.number]
    assert not [line for line in agent.lines if current[-40:] in line]


async def test_an_agent_whose_token_expired_on_the_way_sends_the_new_one_at_once(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "agent"
    folder.mkdir()
    agent = Agent(world, folder, world.authority.pem, jwt(mark="old"))
    client = Client(Endpoint.parse(world.url), agent.token_file, agent.ca_file)
    assert (await asyncio.to_thread(client.post, "/v1/batches", batch(1), {})).status == 401
    new = world.reviewer.know(jwt(mark="new"), node="node-a")

    async def review(request: web.Request) -> web.StreamResponse:
        # The token is replaced while the old one is looked at.
        agent.replace(agent.token_file, new.encode())
        return await world.reviewer.review(request)

    world.reviewer.server.handlers["POST", PATH] = review
    agent.replace(agent.token_file, jwt(mark="older").encode())
    answer = await asyncio.to_thread(client.post, "/v1/batches", batch(1), {})
    assert (answer.status, json.loads(answer.body)["acknowledged"]) == (200, [{"session": SESSION, "sequence": 1}])
    client.close()
    agent.spool.close()


# Stopping


def process_arguments(world_settings: Settings) -> list[str]:
    s = world_settings
    listen = [f"--listen={address}" for address in s.listen]
    return [
        *(sys.executable, "-m", "vedette_detector", f"--data-dir={s.data_dir}", *listen),
        *(f"--tls-cert={s.tls_cert}", f"--tls-key={s.tls_key}", f"--token-file={s.token_file}"),
        *(f"--rules={s.rules[0]}", "--builtin-rules=false", "--workers=1", "--log-level=info"),
    ]


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_stopped_and_started_again_under_load_nothing_is_lost_and_every_request_has_an_answer(
    settings: Settings, tmp_path: Path
) -> None:
    authority = Authority()
    cert, key = Secret(tmp_path / "tls").put(authority.issue("127.0.0.1"))
    tokens = tmp_path / "tokens"
    tokens.write_text("node-a aaaaaaaaaaaaaaaaaaaa\n")
    settings = replace(
        settings,
        listen=(f"https://127.0.0.1:{free_port()}", *settings.listen),
        tls_cert=cert,
        tls_key=key,
        token_file=tokens,
    )

    async def start() -> asyncio.subprocess.Process:
        made = await asyncio.create_subprocess_exec(
            *process_arguments(settings), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert made.stdout is not None
        line = await asyncio.wait_for(made.stdout.readline(), 60)
        assert line == f"ready {' '.join(settings.listen)}\n".encode()
        return made

    process = await start()
    acknowledged = 0
    broken: list[str] = []
    stop = asyncio.Event()
    context = ssl.create_default_context(cadata=authority.pem.decode())

    async def deliver() -> None:
        nonlocal acknowledged
        headers = {"Authorization": "Bearer " + "a" * 20}
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
            while not stop.is_set():
                body = batch(acknowledged + 1)
                try:
                    async with session.post(f"{settings.listen[0]}/v1/batches", data=body, headers=headers) as answer:
                        document = await answer.json()
                        if answer.status == 200:
                            acknowledged += 1
                        else:
                            assert (answer.status, document["reason"]) == (503, "Stopping")
                except aiohttp.ClientConnectorError:
                    await asyncio.sleep(0.05)  # nobody listens
                except (aiohttp.ClientError, OSError) as error:
                    broken.append(repr(error))

    delivering = asyncio.create_task(deliver())
    for _ in range(2):
        seen = acknowledged
        await eventually(lambda seen=seen: acknowledged > seen + 5, "batches are taken", 60)
        began = time.monotonic()
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 30) == 0
        assert time.monotonic() - began < 25
        process = await start()
    seen = acknowledged
    await eventually(lambda: acknowledged > seen + 5, "batches are taken", 60)
    stop.set()
    await delivering
    process.terminate()
    assert await process.wait() == 0
    # A kept-open connection may be closed just as a request is sent on it; that request was never taken.
    untaken = ("ServerDisconnected", "ConnectionReset", "Can not write request body")
    assert [b for b in broken if not any(name in b for name in untaken)] == []
    service = Service(settings)
    try:
        (account,) = service.store.accounts()
        assert account.last_sequence in (acknowledged, acknowledged + 1)
        assert (account.missing_batches, account.balance) == (0, "balanced")
    finally:
        service.close()


async def test_a_signal_while_the_detector_starts_ends_it_at_once(settings: Settings) -> None:
    arguments = [sys.executable, "-m", "vedette_detector", f"--data-dir={settings.data_dir}"]
    process = await asyncio.create_subprocess_exec(
        *arguments, f"--listen={settings.listen[0]}", "--workers=1", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )

    def handled() -> bool:
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
        return False

    await eventually(handled, "the signal is handled")
    process.terminate()
    out, err = await asyncio.wait_for(process.communicate(), 20)
    assert (process.returncode, out) in ((143, b""), (0, b"")), err


# Process 1 of a container


@pytest.mark.skipif(os.geteuid() != 0, reason="a pid namespace needs root")
def test_as_the_first_process_of_a_container_it_hears_signals_and_collects_orphans() -> None:
    code = (
        "import os, sys, time\n"
        "from vedette_detector.orphans import Orphans, zombies\n"
        "assert os.getpid() == 1\n"
        "parent = os.fork()\n"
        "if parent == 0:\n"
        "    os.fork() or os._exit(0)\n"  # its child's child becomes ours
        "    os._exit(0)\n"
        "os.waitpid(parent, 0)\n"
        "deadline = time.monotonic() + 20\n"
        "while not zombies(1) and time.monotonic() < deadline: time.sleep(0.01)\n"
        "orphans = Orphans()\n"
        "print([orphans.collect(), orphans.collect(), orphans.collect()], sorted(zombies(1)))\n"
    )
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "[0, 1, 0] []\n", done.stderr


def only_child(pid: int) -> int:
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


@pytest.mark.skipif(os.geteuid() != 0, reason="a pid namespace needs root")
async def test_as_the_first_process_of_a_container_it_stops_when_asked(settings: Settings) -> None:
    process = await asyncio.create_subprocess_exec(
        *("unshare", "--pid", "--fork", "--mount-proc", "--kill-child=KILL"),
        *(sys.executable, "-m", "vedette_detector", f"--data-dir={settings.data_dir}"),
        *(f"--listen={settings.listen[0]}", f"--rules={settings.rules[0]}", "--builtin-rules=false", "--workers=1"),
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert (await asyncio.wait_for(process.stdout.readline(), 60)).startswith(b"ready ")
    async with client_of(settings) as client:
        assert (await client.post(batch(1)))[0] == 200
    os.kill(only_child(process.pid), signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 30) == 0


def test_elsewhere_nothing_is_collected() -> None:
    child = subprocess.Popen(["true"])
    deadline = time.monotonic() + 20
    while child.pid not in zombies(os.getpid()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    orphans = Orphans()
    assert [orphans.collect(), orphans.collect()] == [0, 0]
    assert child.wait() == 0
