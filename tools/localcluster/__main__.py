"""The command line: ``python -m tools.localcluster up|build|down|status|kubeconfig|load-image|logs``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tools.localcluster import build, processes, programs
from tools.localcluster.cluster import Cluster
from tools.localcluster.errors import ClusterError, NoSuchClusterError


def parser() -> argparse.ArgumentParser:
    """The options."""
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument("--name", default="vedette", help="the cluster's name (default: vedette)")
    top = argparse.ArgumentParser(prog="python -m tools.localcluster", description="A real Kubernetes on this machine.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    up = commands.add_parser("up", parents=[named], help="bring it up, or what is missing of it")
    up.add_argument("--simulated-nodes", type=int, default=0, metavar="K", help="nodes that exist in the API only")
    make = commands.add_parser(
        "build", help="compile the components, as far as the cache does not have them; up does too"
    )
    make.add_argument("--kwok", action="store_true", help="also what simulated nodes need")
    commands.add_parser("down", parents=[named], help="take everything away")
    commands.add_parser("status", parents=[named], help="what runs; exit code 1 when something does not")
    commands.add_parser("kubeconfig", parents=[named], help="print the path of the administrator's kubeconfig")
    load = commands.add_parser("load-image", parents=[named], help="give the node the images of OCI archives")
    load.add_argument("archives", nargs="+", type=Path, metavar="ARCHIVE")
    logs = commands.add_parser("logs", parents=[named], help="the end of a component's log, or of all")
    logs.add_argument(
        "component", nargs="?", choices=programs.NAMES, metavar="COMPONENT", help=", ".join(programs.NAMES)
    )
    logs.add_argument("--lines", type=int, default=40)
    return top


def _status(cluster: Cluster) -> int:
    status = cluster.status()
    for component in status.components:
        if component.pid is None:
            print(f"{component.name:<24} not running")
        else:
            megabytes = component.rss_bytes / 1e6
            print(f"{component.name:<24} pid {component.pid:<8} {megabytes:6.0f} MB  {component.age_s:8.0f} s")
    print(f"{'API server ready':<24} {'yes' if status.api_ready else 'no'}")
    print(f"{'nodes ready':<24} {status.nodes_ready} of {status.nodes}")
    return 0 if status.healthy else 1


def _logs(cluster: Cluster, component: str | None, lines: int) -> int:
    if not cluster.exists:
        raise NoSuchClusterError(f"there is no cluster {cluster.name!r}")
    for name in [component] if component else programs.NAMES:
        path = cluster.log(name)
        if path.exists():
            print(f"== {path}\n{processes.tail(path, lines, width=2000)}")
    return 0


def run(arguments: argparse.Namespace) -> int:
    """Do what the options say; the exit code."""
    if arguments.command == "build":
        build.components(lambda line: print(line, file=sys.stderr, flush=True), simulated_nodes=arguments.kwok)
        return 0
    cluster = Cluster(arguments.name)
    match arguments.command:
        case "up":
            cluster.up(simulated_nodes=arguments.simulated_nodes)
        case "down":
            cluster.down()
        case "status":
            return _status(cluster)
        case "kubeconfig":
            if not cluster.kubeconfig.exists():
                raise NoSuchClusterError(f"there is no cluster {cluster.name!r}: make cluster")
            print(cluster.kubeconfig)
        case "load-image":
            for archive in arguments.archives:
                print("\n".join(cluster.load_image(archive)))
        case "logs":
            return _logs(cluster, arguments.component, arguments.lines)
    return 0


def main() -> int:
    arguments = parser().parse_args()
    try:
        return run(arguments)
    except (ClusterError, ValueError, OSError) as error:
        print(f"localcluster: {error}", file=sys.stderr)
        return 2 if isinstance(error, NoSuchClusterError) else 1
    except KeyboardInterrupt:
        print("localcluster: interrupted; 'up' goes on from here, 'down' takes away what there is", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
