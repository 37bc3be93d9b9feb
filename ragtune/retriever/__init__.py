"""Passages in, index out; a query in, ranked passages out. torch only in `embed`, FAISS only in `vector_index`."""
