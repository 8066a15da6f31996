"""From a network and data to numbers and sentences."""

from isthmus.probe._dry_run import MeasurePlan as MeasurePlan
from isthmus.probe._dry_run import plan_measure as plan_measure
from isthmus.probe._loading import choose_arrays as choose_arrays
from isthmus.probe._loading import load_arrays as load_arrays
from isthmus.probe._loading import load_factory as load_factory
from isthmus.probe._loading import load_weights as load_weights
from isthmus.probe._measure import NO_LEAK as NO_LEAK
from isthmus.probe._measure import NO_MOMENTA as NO_MOMENTA
from isthmus.probe._measure import PathMeasurement as PathMeasurement
from isthmus.probe._measure import Series as Series
from isthmus.probe._measure import check_metrics as check_metrics
from isthmus.probe._measure import geometry_of as geometry_of
from isthmus.probe._measure import measure_path as measure_path
from isthmus.probe._measure import path_series as path_series
from isthmus.probe._measure import record_series as record_series
from isthmus.probe._measurement import Measurement as Measurement
from isthmus.probe._model import measure as measure
from isthmus.probe._probe import MeanLoss as MeanLoss
from isthmus.probe._probe import path_momenta as path_momenta
from isthmus.probe._probe import probe_path as probe_path
from isthmus.probe._survey import ModelError as ModelError
from isthmus.probe._verdict import path_verdict as path_verdict
