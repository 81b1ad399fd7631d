"""Measured energy on LLM spans."""
