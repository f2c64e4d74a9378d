"""The detector: ingest, engine, rules, findings and store."""
