"""`ragtune synth`: questions.py lets a model write and screens what it wrote; files.py deals splits and saves."""
