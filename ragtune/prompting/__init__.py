"""Question (+ passages, + examples) in, messages out; and reading an answer back: citations, refusals."""
