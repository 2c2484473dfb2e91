"""The dataset doctor: what is wrong with a dataset before training finds out, and which settings fit it.

Loads no backend. See docs/dataset_doctor.md.
"""

from __future__ import annotations

from kmrcnn.doctor.examine import Examination, examine
from kmrcnn.doctor.findings import CHECKS, Finding

__all__ = ["CHECKS", "Examination", "Finding", "examine"]
