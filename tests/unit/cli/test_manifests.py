"""``vedette manifests`` and ``vedette certificates`` as a person uses them."""

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from vedette_cli.main import cli


def run(*arguments: str, text: str = "") -> Result:
    return CliRunner().invoke(cli, arguments, input=text, catch_exceptions=True)


def failure(result: Result) -> str:
    assert result.exit_code == 1
    error = result.exception
    return result.stderr if isinstance(error, SystemExit) else str(error)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls") / "certs"
    assert run("certificates", "--out", str(folder)).exit_code == 0
    return folder


def documents(text: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(text))


def test_certificates_are_made_once_and_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    first = run("certificates", "--out", str(folder))
    assert [line.split()[0] for line in first.stdout.splitlines()] == ["made", "made", "for"]
    assert {p.name: oct(p.stat().st_mode & 0o777) for p in folder.iterdir()} == {
        "ca.crt": "0o644",
        "ca.key": "0o600",
        "tls.crt": "0o644",
        "tls.key": "0o600",
    }
    before = {path: path.read_bytes() for path in folder.iterdir()}
    second = run("certificates", "--out", str(folder))
    assert [line.split()[0] for line in second.stdout.splitlines()] == ["kept", "kept"]
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert "PRIVATE" not in first.stdout + second.stdout


@pytest.mark.parametrize(
    ("arguments", "words", "changed"),
    [
        (["--renew"], ["kept", "renewed", "for"], {"tls.crt", "tls.key"}),
        (["--new-ca"], ["made", "renewed", "for"], {"ca.crt", "ca.key", "tls.crt", "tls.key"}),
        (["--name", "detector.example.com"], ["kept", "renewed", "for"], {"tls.crt", "tls.key"}),
    ],
)
def test_certificates_are_renewed_when_asked_or_needed(
    tmp_path: Path, arguments: list[str], words: list[str], changed: set[str]
) -> None:
    run("certificates", "--out", str(tmp_path))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    result = run("certificates", "--out", str(tmp_path), *arguments)
    assert [line.split()[0] for line in result.stdout.splitlines()] == words
    assert {path.name for path in tmp_path.iterdir() if path.read_bytes() != before[path.name]} == changed
    # A new authority comes beside the old one.
    assert ("--new-ca" in arguments) == ((tmp_path / "ca.crt").read_bytes().count(b"BEGIN CERTIFICATE") == 2)
    assert before["ca.crt"] in (tmp_path / "ca.crt").read_bytes()


def test_an_authority_that_cannot_sign_is_said(tmp_path: Path) -> None:
    run("certificates", "--out", str(tmp_path))
    (tmp_path / "ca.key").write_text((tmp_path / "tls.key").read_text())
    assert "its key does not belong to its certificate" in failure(run("certificates", "--out", str(tmp_path)))


def test_manifests_are_printed_in_full_and_always_the_same(certificates: Path) -> None:
    result = run("manifests", "--tls-dir", str(certificates))
    assert result.exit_code == 0
    assert documents(result.stdout)[0]["kind"] == "Namespace"
    assert "Secret" in [d["kind"] for d in documents(result.stdout)]
    assert result.stdout == run("manifests", "--tls-dir", str(certificates)).stdout
    assert result.stderr == ""


def test_values_come_from_file_set_and_options_in_that_order(certificates: Path, tmp_path: Path) -> None:
    file = tmp_path / "values.yaml"
    file.write_text("images: {registry: one.example.com, tag: a}\ncluster: {name: file}\n")
    arguments = ["--tls-dir", str(certificates), "--set", "cluster.name=set", "--image-tag", "b"]
    for result in (
        run("manifests", "-f", str(file), *arguments),
        run("manifests", "-f", "-", *arguments, text=file.read_text()),
    ):
        (agent,) = [d for d in documents(result.stdout) if d["kind"] == "DaemonSet"]
        assert agent["spec"]["template"]["spec"]["containers"][0]["image"] == "one.example.com/vedette-agent:b"
        (config,) = [d for d in documents(result.stdout) if d["metadata"]["name"] == "vedette-detector" and "data" in d]
        assert config["data"]["VEDETTE_CLUSTER"] == "set"


def test_every_mistake_in_file_and_options_is_reported_at_once(tmp_path: Path) -> None:
    file = tmp_path / "values.yaml"
    file.write_text("cluster: {accountId: 12}\n")
    message = failure(run("manifests", "-f", str(file), "--set", "agnet.x=1", "--tls-secret", "a"))
    assert message.splitlines() == [
        "agnet: there is no such field; did you mean agent?",
        "cluster.accountId: expected text, got a number: put it in quotes",
    ]


@pytest.mark.parametrize(
    ("arguments", "kinds"),
    [
        (["--only", "agent"], ["ServiceAccount", "ConfigMap", "DaemonSet"]),
        (
            ["--only", "detector"],
            [
                "NetworkPolicy",
                "ServiceAccount",
                "ClusterRole",
                "ClusterRoleBinding",
                "ConfigMap",
                "Secret",
                "Service",
                "PodDisruptionBudget",
                "StatefulSet",
            ],
        ),
    ],
)
def test_one_part_can_be_printed(certificates: Path, arguments: list[str], kinds: list[str]) -> None:
    result = run("manifests", "--tls-dir", str(certificates), *arguments)
    assert [d["kind"] for d in documents(result.stdout)] == kinds


def test_agents_alone_need_the_authority_alone(certificates: Path, tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text((certificates / "ca.crt").read_text())
    arguments = ["manifests", "--tls-dir", str(tmp_path)]
    assert run(*arguments, "--only", "agent").exit_code == 0
    assert run(*arguments, "--set", "detector.external.url=https://detector.example.com:8443").exit_code == 0
    assert "holds no tls.crt" in failure(run(*arguments))


def test_existing_certificates_are_named_and_nothing_secret_is_printed() -> None:
    result = run("manifests", "--tls-secret", "mine", "--ca-configmap", "trust")
    assert "Secret" not in [d["kind"] for d in documents(result.stdout)]
    assert "secretName: mine" in result.stdout
    assert "name: trust" in result.stdout


def test_without_certificates_it_says_how_to_make_them() -> None:
    result = run("manifests")
    assert failure(result).splitlines()[:2] == [
        "vedette: agents and detector need certificates",
        "  Make them with:   vedette certificates --out certs",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "namespace=other"], "it is not valid for vedette-detector.other.svc"),
        (["--tls-dir", "/nonexistent"], "No such file"),
    ],
)
def test_certificates_that_do_not_fit_are_refused(certificates: Path, arguments: list[str], message: str) -> None:
    assert message in failure(run("manifests", "--tls-dir", str(certificates), *arguments))


def test_files_are_written_replaced_and_removed(certificates: Path, tmp_path: Path) -> None:
    folder = tmp_path / "manifests"
    arguments = ["manifests", "--tls-dir", str(certificates), "--out", str(folder)]
    assert "BEGIN" not in run(*arguments).stdout
    files = {path.name: path for path in folder.iterdir()}
    assert sorted(files)[0] == "00-namespace.yaml"
    assert {name for name, path in files.items() if path.stat().st_mode & 0o077 == 0} == {"10-detector-secret.yaml"}
    joined = "".join(path.read_text().partition("\n")[2] for _, path in sorted(files.items()))
    assert joined == run("manifests", "--tls-dir", str(certificates)).stdout
    (folder / "99-own.yaml").write_text("kind: Mine\n")
    result = run(*arguments, "--set", "networkPolicies.enabled=false")
    left = {path.name for path in folder.iterdir()}
    assert set(files) - left == {"02-networkpolicy-default.yaml", "05-networkpolicy-detector.yaml"}
    assert "99-own.yaml" in left
    assert result.stderr.count("what it made is still in the cluster") == 2


def on_a_terminal(arguments: list[str]) -> str:
    """What the command shows when its standard output is a real terminal."""
    master, slave = pty.openpty()
    shown = b""
    with subprocess.Popen([sys.executable, "-m", "vedette_cli", *arguments], stdout=slave, stderr=slave) as process:
        os.close(slave)
        while True:
            try:
                piece = os.read(master, 65536)
            except OSError:  # Linux: EIO when the other side is closed
                break
            if not piece:
                break
            shown += piece
    os.close(master)
    assert process.returncode == 0
    return shown.decode()


def test_a_private_key_gets_on_a_terminal_only_when_asked_for(certificates: Path) -> None:
    arguments = ["manifests", "--tls-dir", str(certificates)]
    shown = on_a_terminal(arguments)
    assert "kind: DaemonSet" in shown
    assert "tls.key:" not in shown
    assert "Secret vedette-detector-tls is left out here" in shown
    assert "tls.key:" in on_a_terminal([*arguments, "--show-secrets"])


def test_all_values_are_shown_with_their_defaults() -> None:
    result = run("manifests", "--show-values", "--set", "cluster.name=x")
    (shown,) = documents(result.stdout)
    assert (shown["cluster"]["name"], shown["agent"]["priorityClassName"]) == ("x", "system-node-critical")
    again = run("manifests", "--show-values", "-f", "-", text=result.stdout)
    assert again.stdout == result.stdout


def test_help_and_other_commands_load_nothing_of_it() -> None:
    program = (
        "import sys; from vedette_cli.main import cli\n"
        "for arguments in (['--help'], ['findings', '--help'], ['manifests', '--help'], ['certificates', '--help']):\n"
        "    try: cli.main(arguments, standalone_mode=False)\n"
        "    except SystemExit: pass\n"
        "print([name for name in ('jinja2', 'cryptography', 'vedette_operator') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
