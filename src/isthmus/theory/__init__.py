"""Predictions that need no network."""

from isthmus.theory._leaky_linear import LinearGeodesic as LinearGeodesic
from isthmus.theory._leaky_linear import linear_geodesic as linear_geodesic
from isthmus.theory._representation_cost import CostFit as CostFit
from isthmus.theory._representation_cost import LinearCost as LinearCost
from isthmus.theory._representation_cost import fit_cost as fit_cost
from isthmus.theory._representation_cost import linear_cost as linear_cost
