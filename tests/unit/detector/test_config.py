"""Settings from flags and environment."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from vedette_detector.config import Settings, parse
from vedette_detector.errors import ConfigError


def test_the_flag_wins_over_the_environment() -> None:
    settings = parse(["--workers", "3"], {"VEDETTE_WORKERS": "5", "VEDETTE_REGION": "eu-central-1"})
    assert (settings.workers, settings.region) == (3, "eu-central-1")


def test_several_values_come_from_repeated_flags_or_lines() -> None:
    assert parse(["--rules", "/a", "--rules", "/b"], {}).rules == (Path("/a"), Path("/b"))
    assert parse([], {"VEDETTE_THREAT_LISTS": "/a\n/b\n"}).threat_lists == (Path("/a"), Path("/b"))


def test_several_addresses_may_be_listened_on() -> None:
    assert parse([], {}).listen == ("unix:///run/vedette/detector.sock",)
    arguments = ["--listen", "unix:///a", "--listen", "https://0.0.0.0:8443", "--tls-cert", "c", "--tls-key", "k"]
    assert parse([*arguments, "--token-review", "true"], {}).listen == ("unix:///a", "https://0.0.0.0:8443")
    assert parse([], {"VEDETTE_LISTEN": "unix:///a\nunix:///b\n"}).listen == ("unix:///a", "unix:///b")


def test_the_database_is_a_file_in_the_data_directory_by_default() -> None:
    assert parse(["--data-dir", "/d"], {}).database_url == "sqlite:////d/findings.db"
    assert parse(["--store-url", "postgresql://h/db"], {}).database_url == "postgresql://h/db"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "many"], "workers: 'many' is not of type int"),
        (["--listen", "tcp://x"], "listen: 'tcp://x' is neither unix:///path nor https://host:port"),
        (["--account-id", "12"], "account_id: '12' is not twelve digits"),
        (["--socket-mode", "9"], "socket_mode: '9' is not of type int"),
        (["--builtin-rules", "perhaps"], "builtin_rules: 'perhaps' is not of type bool"),
        (
            ["--journal-bytes", "0", "--workers", "-1"],
            "journal_bytes: must be at least 1, is 0; workers: must not be negative, is -1",
        ),
        (
            ["--listen", "https://[::1]:8443"],
            "tls_cert: an https listener needs it; tls_key: an https listener needs it; "
            "token_file: an https listener needs it, or token_review",
        ),
        (
            ["--token-file", "/t", "--token-review", "true", "--token-audience", ""],
            "token_file: it and token_review exclude each other; token_audience: must not be empty",
        ),
        (
            ["--agent-service-account", "agent", "--admin-service-account", "a:b", "--admin-service-account", "A:b"],
            "agent_service_account: 'agent' is not namespace:name; admin_service_account: 'A:b' is not namespace:name",
        ),
        (
            ["--admin-service-account", "vedette-system:vedette-agent"],
            "admin_service_account: the agents' account must not be an administrator's",
        ),
        (
            [
                "--cluster-arn",
                "arn:aws:s3:::b",
                "--token-cache-s",
                "0",
                "--token-grace-s",
                "-1",
                "--tls-reload-s",
                "nan",
            ],
            "tls_reload_s: must be greater than 0, is nan; token_cache_s: must be greater than 0, is 0.0; "
            "token_grace_s: must not be negative, is -1.0; "
            "cluster_arn: 'arn:aws:s3:::b' is not arn:aws:eks:<region>:<account>:cluster/<name>",
        ),
    ],
)
def test_what_is_wrong_is_named(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(arguments, {})
    assert raised.value.message == message


def test_every_setting_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"], {})
    text = capsys.readouterr().out
    assert [f.name for f in fields(Settings) if f"--{f.name.replace('_', '-')}" not in text] == []
