"""`python -m fanin` is the command `fanin`."""

from __future__ import annotations

import sys

from fanin.cli import main

sys.exit(main())
