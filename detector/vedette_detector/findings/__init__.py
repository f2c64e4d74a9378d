"""Findings: their types, how a detection becomes GuardDuty finding JSON, and what they are about."""
