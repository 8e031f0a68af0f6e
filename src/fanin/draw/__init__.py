"""Random numbers for weights: functions of (seed, name, position), the same bytes everywhere."""

from __future__ import annotations

from fanin.draw.distributions import Constant as Constant
from fanin.draw.distributions import DeltaOrthogonal as DeltaOrthogonal
from fanin.draw.distributions import Distribution as Distribution
from fanin.draw.distributions import Normal as Normal
from fanin.draw.distributions import Orthogonal as Orthogonal
from fanin.draw.distributions import Rademacher as Rademacher
from fanin.draw.distributions import TruncatedNormal as TruncatedNormal
from fanin.draw.distributions import Uniform as Uniform
from fanin.draw.fill import fill as fill
from fanin.draw.names import canonical_name as canonical_name
from fanin.draw.philox import STREAM_VERSION as STREAM_VERSION
