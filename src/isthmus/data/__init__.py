"""Samples: digits that come with scikit-learn, and teachers of known rank."""

from isthmus.data._digits import digits as digits
from isthmus.data._task import Scaling as Scaling
from isthmus.data._task import Task as Task
from isthmus.data._task import TaskKind as TaskKind
from isthmus.data._task import check_samples as check_samples
from isthmus.data._task import make_task as make_task
from isthmus.data._teachers import teacher as teacher
