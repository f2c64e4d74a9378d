"""Vedette's command line: runs the parts on one host and shows what they found."""

from importlib.metadata import version

__version__ = version("vedette-cli")
