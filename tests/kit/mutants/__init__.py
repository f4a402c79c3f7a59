"""Devices that break one promise each, and the one test of the kit that must notice."""
