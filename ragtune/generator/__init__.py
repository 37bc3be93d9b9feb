"""Rows in, adapter out; messages in, replies out. The only stage besides the embedder that loads torch."""
