"""The operator's own settings, read once at start from the environment that its Deployment gives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vedette_operator.spec import Release


@dataclass(frozen=True)
class Settings:
    """Settings.

    Attributes:
        namespace: the operator's own, in which everything is made.
        release: where the images of this release are.
        interval_s: seconds between two passes when nothing happens; up to a fifth more, at random.
        token_file: token for the detector, audience ``vedette``.
        detector_url: where the detector answers; empty: its Service.
        health: URL on which the health probe is answered.
    """

    namespace: str = "vedette-system"
    release: Release = field(default_factory=Release)
    interval_s: float = 60.0
    token_file: Path = Path("/var/run/secrets/vedette/token")
    detector_url: str = ""
    health: str = "http://0.0.0.0:8080/healthz"

    @staticmethod
    def from_environment(environment: Mapping[str, str]) -> Settings:
        """Read ``VEDETTE_…``."""
        ours = Settings()
        return Settings(
            namespace=environment.get("VEDETTE_NAMESPACE") or ours.namespace,
            release=Release(
                environment.get("VEDETTE_IMAGE_REGISTRY", ours.release.registry),
                environment.get("VEDETTE_IMAGE_TAG") or ours.release.tag,
            ),
            interval_s=float(environment.get("VEDETTE_INTERVAL_S") or ours.interval_s),
            token_file=Path(environment.get("VEDETTE_TOKEN_FILE") or ours.token_file),
            detector_url=environment.get("VEDETTE_DETECTOR_URL", ""),
            health=environment.get("VEDETTE_HEALTH") or ours.health,
        )
