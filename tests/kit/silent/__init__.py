"""Mutants of silent errors: programs and parts that would give wrong numbers without a word."""
