"""Recipes that compose the rest: from data to a run folder."""

from isthmus.experiments._leaky_run import LeakyConfig as LeakyConfig
from isthmus.experiments._leaky_run import run_leaky as run_leaky
