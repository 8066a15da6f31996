"""Names of the numbers: one name, one definition, everywhere (docs/architecture.md)."""

from isthmus._metrics._catalogue import METRICS as METRICS
from isthmus._metrics._catalogue import check_metric as check_metric
from isthmus._metrics._metric import Metric as Metric
