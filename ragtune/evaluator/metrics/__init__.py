"""Metrics as plain functions: `answer` (one text), `sets` (many questions), `grounding` and `retrieval` (passages)."""
