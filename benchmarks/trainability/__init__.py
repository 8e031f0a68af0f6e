"""Which networks train, from which start: the trainability benchmark.

`python -m benchmarks.trainability run --set quick` trains cells; `report` makes the page.
"""
