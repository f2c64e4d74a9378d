"""Which kernel is chosen among the packages of the archive; boots nothing."""

from __future__ import annotations

import pytest

from tools.kernels.debian import KernelError, newest_of

NAMES = {
    "linux-image-5.10.0-9-cloud-amd64",
    "linux-image-5.10.0-46-cloud-amd64",
    "linux-image-5.10.0-46-cloud-amd64-unsigned",
    "linux-image-5.10.0-46-amd64",
    "linux-image-6.1.0-0.deb11.52-cloud-amd64",
    "linux-image-6.1.0-56-cloud-amd64",
    "linux-image-6.1.0-57-cloud-amd64-dbg",
    "linux-image-6.12.117+deb12-cloud-amd64",
    "linux-image-6.12.117+deb13-cloud-amd64",
    "linux-image-7.3.4+deb13-cloud-amd64",
    "linux-binary-7.4.0+deb13-cloud-amd64",
    "linux-image-cloud-amd64",
}


@pytest.mark.parametrize(
    ("family", "release"),
    [
        ("5.10", "5.10.0-46-cloud-amd64"),
        ("6.1", "6.1.0-56-cloud-amd64"),
        ("6.12", "6.12.117+deb13-cloud-amd64"),
        ("newest", "7.3.4+deb13-cloud-amd64"),
    ],
)
def test_the_newest_cloud_kernel_of_a_family_is_chosen(family: str, release: str) -> None:
    assert newest_of(family, NAMES) == release


def test_a_family_that_is_not_offered_is_named() -> None:
    with pytest.raises(KernelError, match=r"the archive offers no cloud kernel 5\.15"):
        newest_of("5.15", NAMES)
