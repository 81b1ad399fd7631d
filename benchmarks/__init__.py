"""Figures that the project's promises are held to, on real parts: ``python -m benchmarks NAME``.

Nothing here is asserted by time in tests: a figure is printed with what it is compared with, in one run.
"""
