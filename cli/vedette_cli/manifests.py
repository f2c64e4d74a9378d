"""``vedette manifests``: everything that an installation in a cluster consists of, as YAML."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vedette_cli.errors import CommandError
from vedette_cli.output import note, print_line

if TYPE_CHECKING:
    from vedette_operator.rendering import Manifest, TlsMaterial
    from vedette_operator.values import Values

HEADER = "# Made by `vedette manifests`; the next run writes it anew.\n"
FILE = click.Path(dir_okay=False, path_type=Path)
DIRECTORY = click.Path(file_okay=False, path_type=Path)


@click.command()
@click.option("-f", "--values", "values_file", type=FILE, metavar="FILE", help="Values in YAML; - is standard input.")
@click.option("--set", "assignments", multiple=True, metavar="PATH=VALUE", help="One value; wins over the file.")
@click.option("--registry", help="Registry of the images, as images.registry.")
@click.option("--image-tag", metavar="TAG", help="Tag of the images, as images.tag.")
@click.option("--tls-dir", type=DIRECTORY, metavar="DIR", help="Certificates, made by: vedette certificates --out DIR")
@click.option("--tls-secret", metavar="NAME", help="A Secret in the cluster that holds the detector's certificate.")
@click.option("--ca-configmap", metavar="NAME", help="A ConfigMap in the cluster that holds the authority as ca.crt.")
@click.option("--only", type=click.Choice(["agent", "detector"]), help="Only this part, without namespace and quota.")
@click.option("-o", "--out", "directory", type=DIRECTORY, metavar="DIR", help="Write a file for each object.")
@click.option("--show-secrets", is_flag=True, help="Print the private key even on a terminal.")
@click.option("--show-values", is_flag=True, help="Print all values, defaults filled in, in place of manifests.")
def manifests(
    values_file: Path | None,
    assignments: tuple[str, ...],
    registry: str | None,
    image_tag: str | None,
    tls_dir: Path | None,
    tls_secret: str | None,
    ca_configmap: str | None,
    only: str | None,
    directory: Path | None,
    show_secrets: bool,
    show_values: bool,
) -> None:
    """Print the manifests of agent and detector. Nothing is applied.

    The same values give the same bytes, so the output can be kept in Git (with --tls-secret and --ca-configmap, it
    holds no key). Values are described in docs/reference/values.md; --show-values prints them.

    \b
    vedette certificates --out certs
    vedette manifests --tls-dir certs | kubectl apply --server-side -f -
    vedette manifests --tls-dir certs --set cluster.name=prod --set detector.storage.size=50Gi -o manifests
    vedette manifests -f values.yaml --tls-secret vedette-detector-tls --ca-configmap vedette-ca

    Objects come in the order in which to apply them. A private key is left out on a terminal.
    """
    from vedette_operator.parsing import plain
    from vedette_operator.rendering import render, to_yaml

    options = {
        "images.registry": registry,
        "images.tag": image_tag,
        "tls.secret": tls_secret,
        "tls.caConfigMap": ca_configmap,
    }
    given = [f"{path}={value}" for path, value in options.items() if value is not None]
    values = read_values(values_file, [*assignments, *given])
    if show_values:
        click.echo(to_yaml([plain(values)]), nl=False)
        return
    material = tls_material(values, tls_dir, only, existing=bool(tls_secret or ca_configmap))
    rendered = [m for m in render(values, material) if only is None or m.component == only]
    if directory:
        write_files(directory, rendered)
        return
    if sys.stdout.isatty() and not show_secrets:
        for secret in (m for m in rendered if m.kind == "Secret"):
            note(
                f"Secret {secret.name} is left out here, it holds a private key: pipe into kubectl, write files with"
                " --out DIR, or give --show-secrets"
            )
        rendered = [m for m in rendered if m.kind != "Secret"]
    click.echo(to_yaml(m.content for m in rendered), nl=False)


def read_values(values_file: Path | None, assignments: Sequence[str]) -> Values:
    """Make values of a file and of assignments over it.

    Raises:
        CommandError: the file cannot be read.
        ValuesError: with every mistake.
    """
    from vedette_operator.errors import Problem, ValuesError
    from vedette_operator.parsing import assign, load_yaml
    from vedette_operator.values import Values, parse

    data: Any = {}
    if values_file is not None:
        try:
            text = sys.stdin.read() if str(values_file) == "-" else values_file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError("ValuesUnreadable", f"{values_file}: {error}") from error
        data = load_yaml(text, str(values_file))
        data = {} if data is None else data
        if not isinstance(data, dict):
            raise ValuesError([Problem(str(values_file), "must hold fields such as images: and agent:")])
    problems: list[Problem] = []
    for assignment in assignments:
        try:
            assign(Values, data, assignment)
        except ValuesError as error:
            problems += error.problems
    try:
        values = parse(data)
    except ValuesError as error:
        raise ValuesError([*problems, *error.problems]) from None
    if problems:
        raise ValuesError(problems)
    return values


def tls_material(values: Values, tls_dir: Path | None, only: str | None, *, existing: bool) -> TlsMaterial:
    """Read the certificates that the wanted part needs.

    Raises:
        CommandError: there are none, or they do not fit the values.
        CertificateError: they cannot be read.
    """
    from vedette_operator import certificates as tls
    from vedette_operator.rendering import TlsMaterial

    external = values.detector.external
    needs_ca = only != "detector" and not (external and external.system_certificates)
    needs_key = only != "agent" and external is None
    if tls_dir is None:
        if existing or not (needs_ca or needs_key):
            return TlsMaterial()
        raise CommandError(
            "NoCertificates",
            "agents and detector need certificates",
            "Make them with:   vedette certificates --out certs\n"
            "and give:         --tls-dir certs\n"
            "or name what is in the cluster already: --tls-secret NAME --ca-configmap NAME",
        )
    hint = f"vedette certificates --out {tls_dir} --namespace {values.namespace}"
    try:
        authority = (tls_dir / "ca.crt").read_text("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError("NoCertificates", f"{tls_dir / 'ca.crt'}: {error}", f"Make it with: {hint}") from error
    tls.facts(authority)
    if not needs_key:
        return TlsMaterial(ca=authority)
    serving = tls.read(tls_dir, "tls")
    if serving is None:
        raise CommandError("NoCertificates", f"{tls_dir} holds no tls.crt", f"Make it with: {hint}")
    now = datetime.now(UTC)
    if problem := tls.problem(serving, authority, values.dns_names[:1], now):
        if now >= tls.facts(serving.certificate).not_after or "expires" not in problem:
            raise CommandError("CertificateUnfit", f"{tls_dir / 'tls.crt'}: {problem}", f"Renew it with: {hint}")
        note(f"{tls_dir / 'tls.crt'}: {problem}; renew it with: {hint}")
    return TlsMaterial(authority if only is None else "", serving.certificate, serving.key)


def write_files(directory: Path, rendered: Sequence[Manifest]) -> None:
    """Write a file for each object, numbered in the order of applying; remove files of earlier runs that are none now.

    Raises:
        CommandError: a file cannot be written.
    """
    from vedette_operator.rendering import ORDER, to_yaml

    wanted = {f"{ORDER.index(m.template):02}-{m.template}.yaml": m for m in rendered}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, manifest in wanted.items():
            _replace(directory / name, HEADER + to_yaml([manifest.content]), secret=manifest.kind == "Secret")
        for path in sorted(directory.glob("[0-9][0-9]-*.yaml")):
            if path.name not in wanted and path.read_text("utf-8", "replace").startswith(HEADER):
                path.unlink()
                note(f"removed {path}, which is not wanted any more; what it made is still in the cluster")
    except OSError as error:
        raise CommandError("NotWritten", f"{error}") from error
    print_line(f"wrote {len(wanted)} files to {directory}")
    print_line(f"apply them with: kubectl apply --server-side -f {directory}")


def _replace(path: Path, text: str, *, secret: bool) -> None:
    """Put a file in the place of an older one at once; a secret one is readable by its owner only."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            if not secret:
                os.fchmod(file.fileno(), 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
