"""Kubernetes' own syntax of names, labels, quantities and selectors, as functions that say what is wrong.

Each ``*_problem`` returns an empty string for a good value, else a sentence. The rules are those of the API server:
apimachinery ``pkg/util/validation/validation.go`` (labels, names) and ``pkg/api/resource/quantity.go`` (quantities).
"""

from __future__ import annotations

import re
from decimal import Decimal

_NAME = r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?"
_QUALIFIED = re.compile(rf"{_NAME}\Z")
_DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?\Z")
_DNS_SUBDOMAIN = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*\Z")
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:([KMGTPE]i|[numkMGTPE])|[eE]([+-]?[0-9]{1,3}))?\Z")
_DURATION = re.compile(r"([0-9]{1,9})(s|m|h|d|w)\Z")
_FACTORS = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    **{unit: Decimal(1000) ** power for power, unit in enumerate("kMGTPE", 1)},
    **{f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", 1)},
}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def dns_label_problem(text: str) -> str:
    """Problem of a DNS-1123 label: the name of a namespace, a container, a volume or a port."""
    if len(text) > 63:
        return f"has {len(text)} characters, at most 63 are allowed"
    return "" if _DNS_LABEL.match(text) else f"{text!r} is not a name of lower-case letters, digits and '-'"


def dns_name_problem(text: str) -> str:
    """Problem of a DNS-1123 subdomain: the name of most objects."""
    if len(text) > 253:
        return f"has {len(text)} characters, at most 253 are allowed"
    if _DNS_SUBDOMAIN.match(text):
        return ""
    return f"{text!r} is not a name of lower-case letters, digits, '-' and '.'"


def label_key_problem(text: str) -> str:
    """Problem of the key of a label or annotation: ``name`` or ``domain/name``."""
    prefix, slash, name = text.rpartition("/")
    if slash and dns_name_problem(prefix):
        return f"{text!r}: what is before '/' is not a DNS name"
    if len(name) > 63:
        return f"{text!r}: the name has {len(name)} characters, at most 63 are allowed"
    if not _QUALIFIED.match(name):
        return f"{text!r} is not a key: letters, digits, '-', '_' and '.', beginning and ending with letter or digit"
    return ""


def label_value_problem(text: str) -> str:
    """Problem of the value of a label."""
    if len(text) > 63:
        return f"has {len(text)} characters, at most 63 are allowed"
    if text and not _QUALIFIED.match(text):
        return (
            f"{text!r} is not a label value: letters, digits, '-', '_', '.', beginning and ending with letter or digit"
        )
    return ""


def quantity(text: str) -> Decimal:
    """The number that a quantity (``250m``, ``1.5Gi``, ``1e3``) stands for.

    Raises:
        ValueError: it is none, or negative.
    """
    match = _QUANTITY.match(text)
    if match is None:
        raise ValueError(f"{text!r} is not a quantity such as 250m, 64Mi or 2")
    number = Decimal(match[1]) * (_FACTORS[match[2]] if match[2] else 1)
    return number.scaleb(int(match[3])) if match[3] else number


def quantity_problem(text: str) -> str:
    """Problem of a quantity."""
    try:
        quantity(text)
    except ValueError as error:
        return str(error)
    return ""


def duration_s(text: str) -> int:
    """Seconds of ``90d``, ``12h``, ``30m``, ``2w`` or ``45s``.

    Raises:
        ValueError: it is none.
    """
    match = _DURATION.match(text)
    if match is None:
        raise ValueError(f"{text!r} is not a duration such as 90d, 12h or 30m")
    return int(match[1]) * _SECONDS[match[2]]
