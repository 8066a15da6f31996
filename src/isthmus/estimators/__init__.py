"""Leaky ResNets as scikit-learn estimators."""

from isthmus.estimators._leaky_resnet import LeakyResNetClassifier as LeakyResNetClassifier
from isthmus.estimators._leaky_resnet import LeakyResNetRegressor as LeakyResNetRegressor
from isthmus.estimators._module import TableModule as TableModule
