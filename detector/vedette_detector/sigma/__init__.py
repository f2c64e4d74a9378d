"""Sigma rules: loading, compiling to selectors and exact checks, and the tests that rule files carry."""
