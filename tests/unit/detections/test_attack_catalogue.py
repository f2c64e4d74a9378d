"""The attack catalogue itself: wide enough, consistent, and in step with what can be found."""

from __future__ import annotations

import re

import pytest

from tools.attacks.catalogue import C2_DOMAIN, C2_IP, CATALOGUE, Behaviour
from tools.attacks.programs import QUIET_NAMES, SOURCES
from tools.containers.rootfs import BASE_PACKAGES, rootfs_key
from vedette_detector.detectors import ALL_DETECTORS
from vedette_detector.sigma.loader import load_rules, rules_directory

KNOWN_WORDS = {"{ip}", "{ip6}", "{port}", "{port2}", "{local}", "{resolver}", "{bin}", "{dir}"}
TYPES = {kind for detector in ALL_DETECTORS for kind in detector.finding_types} | {
    rule.finding_type for rule in load_rules([rules_directory()]).rules
}


def test_every_type_is_found_from_more_than_one_technique() -> None:
    techniques = {kind: sum(kind in behaviour.findings for behaviour in CATALOGUE) for kind in TYPES}

    assert {kind: count for kind, count in techniques.items() if count < 2} == {}


def test_every_type_has_an_ordinary_look_alike() -> None:
    assert {behaviour.look_alike for behaviour in CATALOGUE if not behaviour.findings} == TYPES


@pytest.mark.parametrize("behaviour", CATALOGUE, ids=lambda b: b.name)
def test_behaviour_uses_known_words_and_programs(behaviour: Behaviour) -> None:
    words = set(re.findall(r"\{[a-z0-9]+\}", " ".join(behaviour.command)))
    programs = set(re.findall(r"\{bin\}/([a-z]+)(?=[ \"';)]|$)", " ".join(behaviour.command)))

    assert words <= KNOWN_WORDS
    assert programs <= {source.stem for source in SOURCES.glob("*.c")}
    assert set(behaviour.findings) <= TYPES
    assert bool(behaviour.findings) != bool(behaviour.look_alike)


def test_only_command_and_control_needs_a_threat_list() -> None:
    with_list = {b.name for b in CATALOGUE if {C2_IP, C2_DOMAIN} & set(b.findings)}

    assert all(name.startswith("c2-") for name in with_list)


def test_root_file_system_is_named_by_its_contents() -> None:
    assert rootfs_key() == rootfs_key(reversed(BASE_PACKAGES))
    assert rootfs_key() != rootfs_key([*BASE_PACKAGES, "curl"])
    assert len(set(QUIET_NAMES)) == len(QUIET_NAMES)
