"""``vedette certificates``: the detector's certificate and the authority that signs it, as files."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from vedette_cli.errors import CommandError
from vedette_cli.output import print_line


@click.command()
@click.option(
    "-o",
    "--out",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    metavar="DIR",
    help="Where the files are, or will be.",
)
@click.option("--namespace", default="vedette-system", show_default=True, help="Namespace of the detector.")
@click.option("--cluster-domain", default="cluster.local", show_default=True, help="DNS domain of the cluster.")
@click.option(
    "--name",
    "extra",
    multiple=True,
    metavar="NAME",
    help="Another DNS name or address of the detector, for agents in other clusters.",
)
@click.option(
    "--days", type=click.IntRange(1, 1825), default=365, show_default=True, help="Life of the detector's certificate."
)
@click.option("--renew", is_flag=True, help="Make a new certificate of the detector now; the authority stays.")
@click.option(
    "--new-ca", is_flag=True, help="Make a new authority, too. Agents trust the old one besides, until it expires."
)
def certificates(
    directory: Path,
    namespace: str,
    cluster_domain: str,
    extra: tuple[str, ...],
    days: int,
    renew: bool,
    new_ca: bool,
) -> None:
    """Make the detector's certificate and the authority that signs it; renew them when it is time.

    Writes ca.crt, ca.key, tls.crt and tls.key. What is there and good is left alone, so that this can run from a
    timer: the detector's certificate is made anew when a third of its life is left, or when it lacks a name. The keys
    are readable by their owner only; ca.key is not needed in the cluster and best kept elsewhere.

    \b
    vedette certificates --out certs
    vedette manifests --tls-dir certs | kubectl apply --server-side -f -
    """
    from vedette_operator import certificates as tls
    from vedette_operator.values import parse

    # The names go through the model so that they are judged as they will be when manifests are made.
    values = parse({"namespace": namespace, "cluster": {"domain": cluster_domain}})
    names = [*values.dns_names, *extra]
    now = datetime.now(UTC)
    directory = directory.absolute()

    authority = tls.read(directory, "ca")
    if authority is None or new_ca:
        former = authority
        authority = tls.make_authority(now)
        if former is not None:
            merged = tls.bundle(authority.certificate, former.certificate, now=now)
            authority = tls.KeyPair(merged, authority.key)
        tls.write(directory, "ca.key", authority.key, secret=True)
        tls.write(directory, "ca.crt", authority.certificate, secret=False)
        _say("made", directory / "ca.crt", tls.facts(authority.certificate))
    else:
        if problem := tls.authority_problem(authority, now, days):
            raise CommandError(
                "AuthorityUnfit", f"{directory / 'ca.crt'}: {problem}", "Make a new authority with: --new-ca"
            )
        _say("kept", directory / "ca.crt", tls.facts(authority.certificate))

    serving = tls.read(directory, "tls")
    problem = "" if serving is None else tls.problem(serving, authority.certificate, names, now)
    if serving is not None and not (problem or renew or new_ca):
        _say("kept", directory / "tls.crt", tls.facts(serving.certificate))
        return
    made = tls.make_serving(authority, names, now, days)
    tls.write(directory, "tls.key", made.key, secret=True)
    tls.write(directory, "tls.crt", made.certificate, secret=False)
    _say("made" if serving is None else "renewed", directory / "tls.crt", tls.facts(made.certificate), problem)
    print_line("  for ", ", ".join(names))


def _say(what: str, path: Path, facts: object, reason: str = "") -> None:
    from vedette_operator.certificates import Facts

    assert isinstance(facts, Facts)
    because = f" ({reason})" if reason else ""
    print_line(
        (f"{what} ", "bold"),
        f"{path}{because}: valid until {facts.not_after:%Y-%m-%d}, to be renewed from {facts.renewal:%Y-%m-%d} on",
    )
