"""Verdicts, rows and settings -> a report for people: one HTML file, Markdown and JSON with the same values."""
