"""Fuzzers of everything that the library reads from a disk, and kill tests of everything that it writes.

Shortly within the test suite; for long::

    python -m tests.fuzz --minutes 30
    python -m tests.fuzz.kills --rounds 200
"""
