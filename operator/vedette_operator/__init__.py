"""Vedette's operator: what runs in a cluster, as manifests rendered from ``templates/``."""

__version__ = "0.1.0"
