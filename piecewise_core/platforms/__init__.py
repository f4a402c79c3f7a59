"""Plugins: found by metadata, loaded one by one, selected with reasons. Imports no torch."""

from piecewise_core.platforms.candidates import Candidate, survey
from piecewise_core.platforms.discovery import PluginEntry, discover
from piecewise_core.platforms.extensions import PluginPass, all_passes, find_compiler
from piecewise_core.platforms.registration import registered
from piecewise_core.platforms.selection import Selected, select

__all__ = [
    "Candidate",
    "PluginEntry",
    "PluginPass",
    "Selected",
    "all_passes",
    "discover",
    "find_compiler",
    "registered",
    "select",
    "survey",
]
