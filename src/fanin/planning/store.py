"""Plans as JSON and YAML: every field by its name, and no other name accepted."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import reprlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from fanin import draw
from fanin.errors import ArgumentTypeError, DataError, MissingDependencyError, PlanError
from fanin.planning.plan import Centre, Kind, Mirrored, Plan, Row, Stack, Stretch, Values

FORMAT = "fanin.plan/1"
_DISTRIBUTIONS: dict[str, type[Any]] = {
    "normal": draw.Normal,
    "uniform": draw.Uniform,
    "truncated_normal": draw.TruncatedNormal,
    "rademacher": draw.Rademacher,
    "constant": draw.Constant,
    "orthogonal": draw.Orthogonal,
    "delta_orthogonal": draw.DeltaOrthogonal,
}
_DOMAINS = {"Kind": get_args(Kind)}
_LONGEST = 300  # characters of a value in a message
_POSITIVE = ("lr", "groups", "shared_by")
_NAMES = {kind: name for name, kind in _DISTRIBUTIONS.items()}


def to_dict(plan: Plan) -> dict[str, Any]:
    """The plan as dicts, lists, numbers and strings; fields at their defaults are left out.

    Example:
        >>> plan = Plan((Row("w", (2,), "gate", "left alone", "a gate"),), rule="auto")
        >>> to_dict(plan)["rows"]
        [{'path': 'w', 'shape': [2], 'role': 'gate', 'rule': 'left alone', 'reason': 'a gate'}]
    """
    return {
        "format": FORMAT,
        "rule": plan.rule,
        "stream": plan.stream,
        **({} if plan.seed is None else {"seed": plan.seed}),
        "notes": list(plan.notes),
        "stretches": [_fields(stretch) for stretch in plan.stretches],
        "rows": [_fields(row) for row in plan.rows],
    }


def from_dict(content: object) -> Plan:
    """The plan that `to_dict` wrote.

    Raises:
        PlanError: an unknown or missing key, a value of the wrong kind, another format; the
            message says where.
    """
    data = _mapping(content, "plan")
    found = data.pop("format", None)
    if found != FORMAT:
        raise PlanError(
            "plan.format",
            expected=FORMAT,
            got=_shown(found),
            fix="use the version of fanin that wrote it" if _is("str", found) else None,
        )
    rows = [
        _build(Row, row, f"plan.rows[{i}]") for i, row in enumerate(_list(data, "rows", "plan"))
    ]
    stretches = [
        _build(Stretch, s, f"plan.stretches[{i}]")
        for i, s in enumerate(_list(data, "stretches", "plan"))
    ]
    twice = [path for path, n in Counter(row.path for row in rows).items() if n > 1]
    if twice:
        raise PlanError("plan.rows", expected="one row for each path", got=f"two of {twice[0]!r}")
    data["rows"], data["stretches"] = rows, stretches
    plan: Plan = _build(Plan, data, "plan")
    if plan.stream != draw.STREAM_VERSION:
        raise PlanError(
            "plan.stream",
            expected=f"stream version {draw.STREAM_VERSION}",
            got=str(plan.stream),
            fix="use the version of fanin that wrote it",
        )
    return plan


def save(plan: Plan, path: str | Path) -> Path:
    """Write a plan as YAML or JSON, as the file's ending says.

    Args:
        plan: the plan.
        path: a file ending in .json, .yaml or .yml; an existing one is replaced.

    Returns:
        The path.

    Raises:
        PlanError: another ending.
        DataError: the file cannot be written.
        MissingDependencyError: YAML without pyyaml.
    """
    target = _path(path, "plan.save(path)")
    content = to_dict(plan)
    if _is_yaml(target):
        text = _yaml().safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
    else:
        text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(
            str(target), expected="a file that can be written", got=_system(error)
        ) from error
    return target


def load_plan(path: str | Path) -> Plan:
    """Read a plan that `save` wrote.

    Raises:
        DataError: the file is missing, cannot be read, or is no JSON or YAML.
        PlanError: its content is not that of a plan.
    """
    source = _path(path, "load_plan(path)")
    is_yaml = _is_yaml(source)
    try:
        text = source.read_text(encoding="utf-8")
        content = _yaml().safe_load(text) if is_yaml else json.loads(text)
    except FileNotFoundError as error:
        raise DataError(str(source), expected="a plan's file", got="no file") from error
    except OSError as error:
        raise DataError(
            str(source), expected="a file that can be read", got=_system(error)
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(str(source), expected="text in UTF-8", got=str(error)) from error
    except RecursionError as error:
        raise DataError(str(source), expected="a plan", got="data nested too deeply") from error
    except ValueError as error:
        raise DataError(str(source), expected="JSON", got=str(error)) from error
    except Exception as error:
        if type(error).__module__.split(".")[0] != "yaml":
            raise
        raise DataError(str(source), expected="YAML", got=" ".join(str(error).split())) from error
    return from_dict(content)


def values_to_dict(values: Values) -> dict[str, Any]:
    """A distribution as a dict: its kind and its parameters.

    Example:
        >>> values_to_dict(draw.Normal(0.0, 0.02))
        {'kind': 'normal', 'mean': 0.0, 'std': 0.02}
    """
    if isinstance(values, Stack):
        blocks = [{"rows": rows, **values_to_dict(d)} for rows, d in values.blocks]
        return {"kind": "stack", "blocks": blocks}
    if isinstance(values, Mirrored):
        facts = {"pairs": [list(pair) for pair in values.pairs], "coherence": values.coherence}
        return {"kind": "mirrored", "values": values_to_dict(values.values), **facts}
    return {"kind": _NAMES[type(values)], **dataclasses.asdict(values)}


def values_from_dict(content: object, where: str) -> Values:
    """The distribution that `values_to_dict` wrote."""
    data = _mapping(content, where)
    kind = data.pop("kind", None)
    if kind == "stack":
        return Stack(tuple(_block(b, where) for b in _list(data, "blocks", where)))
    if kind == "mirrored":
        return _mirrored(data, where)
    if not isinstance(kind, str) or kind not in _DISTRIBUTIONS:
        known = ", ".join((*_DISTRIBUTIONS, "stack", "mirrored"))
        raise PlanError(f"{where}.kind", expected=f"one of {known}", got=_shown(kind))
    try:
        return _build(_DISTRIBUTIONS[kind], data, where)  # type: ignore[no-any-return]
    except PlanError:
        raise
    except ValueError as error:
        raise PlanError(where, expected="a distribution", got=str(error)) from error


def _block(content: object, where: str) -> tuple[int, draw.Distribution]:
    """One block of a stack."""
    data = _mapping(content, f"{where}.blocks")
    rows = data.pop("rows", None)
    values = values_from_dict(data, f"{where}.blocks")
    counted = _is("int", rows) and rows > 0
    if not counted or isinstance(values, Stack | Mirrored):
        raise PlanError(f"{where}.blocks", expected="rows and a distribution", got=_shown(content))
    return rows, values


def _mirrored(data: dict[str, Any], where: str) -> Mirrored:
    """A mirrored distribution: what its half is drawn from, and which axes come in pairs."""
    inner = values_from_dict(data.pop("values", None), f"{where}.values")
    pairs = [tuple(p) if isinstance(p, list) else () for p in _list(data, "pairs", where)]
    data.pop("pairs", None)
    coherence = data.pop("coherence", 1.0)
    numbers = all(len(p) == 2 and all(_is("int", n) for n in p) for p in pairs)
    if data or not pairs or not numbers or not _is("float", coherence):
        raise PlanError(
            where, expected="values, pairs of integers and a coherence", got=_shown(data or pairs)
        )
    if coherence <= 0:
        raise PlanError(f"{where}.coherence", expected="a number above 0", got=_shown(coherence))
    if isinstance(inner, Stack | Mirrored):
        raise PlanError(f"{where}.values", expected="a distribution", got=type(inner).__name__)
    return Mirrored(inner, tuple((p[0], p[1]) for p in pairs), float(coherence))


def _fields(record: Row | Stretch) -> dict[str, Any]:
    """The fields of a record that are not at their defaults."""
    content = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if value == field.default and value is not dataclasses.MISSING:
            continue
        if field.name == "values":
            value = values_to_dict(value)
        elif field.name == "centre":
            facts = dataclasses.asdict(value)
            value = {k: list(v) if isinstance(v, tuple) else v for k, v in facts.items() if v != ()}
        content[field.name] = list(value) if isinstance(value, tuple) else value
    return content


def _build(kind: type[Any], content: object, where: str) -> Any:
    """A record from a dict with its fields, each checked."""
    data = _mapping(content, where)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise PlanError(where, expected=f"keys {', '.join(fields)}", got=repr(unknown[0]))
    missing = dataclasses.MISSING
    for name, field in fields.items():
        required = field.default is missing and field.default_factory is missing
        if required and name not in data:
            raise PlanError(where, expected=f"the key {name!r}", got="none")
    return kind(**{name: _value(fields[name], value, where) for name, value in data.items()})


def _value(field: dataclasses.Field[Any], value: Any, where: str) -> Any:
    """One field's value as its record holds it."""
    place = f"{where}.{field.name}"
    if field.name == "values" and value is not None:
        return values_from_dict(value, place)
    if field.name == "centre" and value is not None:
        return _build(Centre, value, place)
    expected = str(field.type)
    if expected.startswith("tuple"):
        items = value if isinstance(value, list) else None
        element = next((kind for kind in ("int", "float", "str") if kind in expected), "")
        if items is None or (element and not all(_is(element, item) for item in items)):
            expected = f"a list of {element or 'records'}"
            raise PlanError(place, expected=expected, got=_shown(value))
        return tuple(items)
    known = [kind for kind in ("int", "float", "str") if kind in expected.split(" | ")]
    if value is None and "None" in expected:
        return None
    if known and not any(_is(kind, value) for kind in known):
        raise PlanError(place, expected=f"a value of kind {expected}", got=_shown(value))
    if expected in _DOMAINS and value not in _DOMAINS[expected]:
        listed = ", ".join(_DOMAINS[expected])
        raise PlanError(place, expected=f"one of {listed}", got=_shown(value))
    if field.name in _POSITIVE and value <= 0:
        raise PlanError(place, expected="a number above 0", got=_shown(value))
    return float(value) if known == ["float"] and "fan" not in field.name else value


def _shown(value: object) -> str:
    """What came, cut to a bearable length: a file may hold anything."""
    text = reprlib.repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _is(kind: str, value: Any) -> bool:
    """Whether a value read from a file is of a basic kind; numbers must be finite."""
    if isinstance(value, bool):
        return False
    if kind == "float":
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, int if kind == "int" else str)


def _mapping(content: object, where: str) -> dict[str, Any]:
    """A copy of a mapping with string keys."""
    if not isinstance(content, Mapping) or not all(isinstance(k, str) for k in content):
        raise PlanError(where, expected="a mapping", got=type(content).__name__)
    return dict(content)


def _list(data: Mapping[str, Any], key: str, where: str) -> list[Any]:
    """A list inside a mapping."""
    value = data.get(key, [])
    if not isinstance(value, list):
        raise PlanError(f"{where}.{key}", expected="a list", got=type(value).__name__)
    return value


def _path(path: object, where: str) -> Path:
    """A path, or an error."""
    if not isinstance(path, str | os.PathLike):
        raise ArgumentTypeError(where, expected="a path", got=type(path).__name__)
    return Path(path)


def _system(error: OSError) -> str:
    """What the system says."""
    return error.strerror or type(error).__name__


def _is_yaml(path: Path) -> bool:
    """Whether the ending says YAML; an ending of neither kind is an error."""
    if path.suffix not in (".json", ".yaml", ".yml"):
        raise PlanError(str(path), expected="a file ending in .json, .yaml or .yml")
    return path.suffix != ".json"


def _yaml() -> Any:
    """The YAML package."""
    try:
        import yaml
    except ImportError as error:
        raise MissingDependencyError(
            "a plan in YAML", expected="the package pyyaml", fix="pip install pyyaml, or use .json"
        ) from error
    return yaml
