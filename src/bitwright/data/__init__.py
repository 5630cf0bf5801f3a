"""Data: image folders, zips, npz files, arrays and callables as re-iterable batches; preprocessing; the digits."""

from __future__ import annotations

from bitwright.data.batches import Batch as Batch
from bitwright.data.batches import Batches as Batches
from bitwright.data.batches import balanced_order as balanced_order
from bitwright.data.opening import open_data as open_data
from bitwright.data.preprocess import Preprocess as Preprocess
