"""A checkout with one tiny claim, for tests of what runs claims."""

from __future__ import annotations

from pathlib import Path

CODE = '''
"""A claim about squares."""
from fanin.reproduce.claim import Arm, Conclusion, Line, Picture, Table
from fanin.reproduce.figures import figure

TITLE = "Squares <&>"
STATEMENT = "Squares grow."
NEEDS_IMAGES = False
measured = []


def arms(config, seed):
    shared = {"seed": seed, "power": config["power"]}
    return [Arm(f"arm {i}", {**shared, "i": i}) for i in range(config["arms"])]


def measure(config, images, tick):
    tick(0.5)
    measured.append(config["i"])
    return {"value": config["i"] ** config["power"]}


def conclude(config, results):
    values = {name: result["value"] for name, result in results.items()}
    total = sum(values.values())
    lines = (
        Line("The sum is right", "5", str(total), "PASS" if total == 5 else "FAIL"),
        Line("Told <b>only</b>", "-", "</table><script>alert(1)</script>", "REPORT", True),
    )

    def draw(palette):
        canvas, (ax,) = figure(palette)
        ax.plot(list(values.values()), color=palette.series[0])
        return canvas

    table = Table("Values", ("arm", "value"), tuple(values.items()), "a < b")
    return Conclusion(lines, values, (table,), PICTURES(draw))
'''

CONFIG = "[quick]\narms = 3\npower = 2\n\n[full]\narms = 3\npower = 3\n"


PICTURE = '(Picture("squares", "Squares & more", "x < y", draw),)'


def checkout(root: Path, *, picture: bool = False) -> Path:
    """Write the claim under a root; returns the root. Pictures take time to draw."""
    folder = root / "experiments" / "01_rule"
    folder.mkdir(parents=True)
    (folder / "claim.py").write_text(CODE.replace("PICTURES(draw)", PICTURE if picture else "()"))
    (folder / "config.toml").write_text(CONFIG)
    return root
