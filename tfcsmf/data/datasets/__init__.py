"""Public data sets by name, converted to event logs; see docs/datasets.md."""

from tfcsmf.data.datasets.conversion import LogFiles as LogFiles
from tfcsmf.data.datasets.registry import DATASETS as DATASETS
from tfcsmf.data.datasets.registry import event_log as event_log
from tfcsmf.data.datasets.registry import find as find
from tfcsmf.data.datasets.spec import DataSet as DataSet
