"""Answers -> scores -> paired comparisons -> a verdict per task. Runs without torch."""
