"""The three methods by name: the only table of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import hybrid
import lass
import lqvae
from jukebox_core.separation.method import Method

MethodName = Literal["lqvae", "lass", "hybrid"]
METHODS: Mapping[MethodName, Method] = {
    "lqvae": lqvae.METHOD,
    "lass": lass.METHOD,
    "hybrid": hybrid.METHOD,
}
DEFAULT_METHOD: MethodName = "hybrid"
