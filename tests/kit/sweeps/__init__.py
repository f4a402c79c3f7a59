"""Sweeps: every operator of torch's database, and unmodified model families, against eager."""
