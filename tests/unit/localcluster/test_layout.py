from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.localcluster.layout import NETWORKS, Layout, Network, check_name, choose_network, network_candidates

NAMES = st.from_regex(r"[a-z]([a-z0-9-]{0,18}[a-z0-9])?", fullmatch=True)


@given(NAMES)
def test_every_name_leads_to_paths_and_names_the_kernel_takes(name: str) -> None:
    layout = Layout(name)

    assert len(layout.link_name) <= 15  # IFNAMSIZ - 1
    assert len(bytes(layout.containerd_socket)) <= 107  # sun_path


@pytest.mark.parametrize("name", ["", "A", "1a", "a-", "-a", "a_b", "a/b", "..", "a" * 21, "a\n"])
def test_names_that_cannot_be_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a cluster"):
        check_name(name)


@given(st.integers(0, NETWORKS - 1))
def test_the_parts_of_a_network_lie_inside_it_and_apart(index: int) -> None:
    network = Network(index)
    parts = [network.link, network.services, network.pods, network.simulated_nodes, network.simulated_pods]

    assert all(part.subnet_of(network.whole) for part in parts)
    assert not any(a.overlaps(b) for i, a in enumerate(parts) for b in parts[:i])
    assert ipaddress.ip_address(network.dns_service) in network.services
    assert {ipaddress.ip_address(network.host), ipaddress.ip_address(network.node)} == set(network.link.hosts())


def test_networks_do_not_overlap() -> None:
    wholes = [Network(index).whole for index in range(NETWORKS)]

    assert len({w.network_address for w in wholes}) == NETWORKS
    assert all(w.subnet_of(ipaddress.IPv4Network("10.192.0.0/10")) for w in wholes)


def test_every_network_is_tried_once_and_the_order_follows_from_the_name() -> None:
    order = [network.index for network in network_candidates("vedette")]

    assert sorted(order) == list(range(NETWORKS))
    assert order == [network.index for network in network_candidates("vedette")]
    assert order[0] != next(network_candidates("second")).index


def test_a_network_that_a_cluster_or_the_machine_has_is_passed_over() -> None:
    first, second, third, *_ = network_candidates("vedette")

    chosen = choose_network("vedette", {first.index}, [second.pods])

    assert chosen == third


def test_no_network_is_left_when_the_machine_routes_all_of_them() -> None:
    assert choose_network("vedette", set(), [ipaddress.IPv4Network("10.0.0.0/8")]) is None
