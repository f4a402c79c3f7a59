"""Processes that serve one model together, and what goes wrong with one of them."""
