"""Rules and threat lists in a ConfigMap that the kubelet mounts: links into a dated folder, swapped at each change."""

from pathlib import Path

from vedette_detector.service import rules_signature
from vedette_detector.sigma.loader import load_rules, rules_directory
from vedette_detector.threat_lists import ThreatLists, signature


def mount(folder: Path, version: str, files: dict[str, str]) -> None:
    """As the kubelet's atomic writer does (pkg/volume/util/atomic_writer.go): new folder, link to it, rename."""
    dated = folder / f"..{version}"
    dated.mkdir()
    for name, content in files.items():
        (dated / name).write_text(content)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")
    (folder / "..data_tmp").symlink_to(dated.name)
    (folder / "..data_tmp").rename(folder / "..data")


def test_rules_are_loaded_once(tmp_path: Path) -> None:
    shipped = next(rules_directory().rglob("crypto_miner_by_name.yml")).read_text()
    mount(tmp_path, "2026_11_23_10_00_00.1", {"own.yml": shipped})
    loaded = load_rules([tmp_path])
    assert [str(error) for error in loaded.errors] == []
    assert [rule.file for rule in loaded.rules] == [str(tmp_path / "own.yml")]
    before = rules_signature([tmp_path])
    mount(tmp_path, "2026_11_23_10_05_00.2", {"own.yml": shipped})
    assert rules_signature([tmp_path]) != before


def test_threat_lists_are_loaded_once_and_again_when_they_change(tmp_path: Path) -> None:
    mount(tmp_path, "2026_11_23_10_00_00.1", {"c2.txt": "198.51.100.7\n"})
    lists = ThreatLists.load(tmp_path)
    assert [(entry.name, entry.entries) for entry in lists.lists] == [("c2", 1)]
    before = signature(tmp_path)
    mount(tmp_path, "2026_11_23_10_05_00.2", {"c2.txt": "198.51.100.7\n198.51.100.8\n"})
    assert signature(tmp_path) != before
    assert [entry.entries for entry in ThreatLists.load(tmp_path).lists] == [2]
