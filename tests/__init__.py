"""The tests, and in `tests.support` the real servers and synthetic counters that they and the benchmarks use."""
