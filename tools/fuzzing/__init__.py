"""The parts of ``tools/fuzz.py``: how inputs are damaged, and how a case runs in a process of its own."""
