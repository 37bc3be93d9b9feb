"""Somebody's data -> a project: documents, one question file, `ragtune.toml` and a README that says where it came from.

convert.py is the way through: read a source (formats.py and one module a format) into the nouns of source.py, arrange
its questions (arrange.py), find their evidence while documents are written (evidence.py), and put the folder into
place (project.py).
"""
