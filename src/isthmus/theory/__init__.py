"""Predictions that need no network."""

from isthmus.theory._leaky_linear import LinearGeodesic as LinearGeodesic
from isthmus.theory._leaky_linear import linear_geodesic as linear_geodesic
