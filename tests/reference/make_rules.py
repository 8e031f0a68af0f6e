"""Makes rules.json: what the rules and maps must give, by mpmath at 30 digits.

Run it with `python tests/reference/make_rules.py`; it takes a few minutes.
"""

from __future__ import annotations

import json
from pathlib import Path
from runpy import run_path

from mpmath import mp, mpf

HERE = Path(__file__).parent
shared = run_path(str(HERE / "mp_activations.py"))
ACTIVATIONS, expect = shared["ACTIVATIONS"], shared["expect"]

SMOOTH = ("tanh", "sigmoid", "softplus", "elu", "gelu", "silu", "mish", "selu", "erf", "relu")


def moment(name: str, q: mpf, of: str) -> mpf:
    """E[f^2] (V) or E[f'^2] (D) at N(0, q)."""
    f, df, breaks = ACTIVATIONS[name]
    g = f if of == "V" else df
    return expect(lambda x: g(x) ** 2, 0, q, breaks)


def scale_rules(name: str) -> dict[str, str]:
    """Weight variances and slopes of the variance map at N(0, 1)."""
    f, _, breaks = ACTIVATIONS[name]
    mean = expect(f, 0, 1, breaks)
    second, slope = moment(name, 1, "V"), moment(name, 1, "D")
    variance = second - mean**2
    growth = expect(lambda x: (x * x - 1) * f(x) ** 2, 0, 1, breaks) / 2
    centred = expect(lambda x: (x * x - 1) * (f(x) - mean) ** 2, 0, 1, breaks) / 2
    return {
        "mean": digits(mean),
        "second_moment": digits(1 / second),
        "backward": digits(1 / slope),
        "centred": digits(1 / variance),
        "second_moment_slope": digits(growth / second),
        "centred_slope": digits(centred / variance),
    }


def edge(name: str, sigma_b2: str, start: float) -> dict[str, str]:
    """The edge-of-chaos point near a start."""
    q = mp.findroot(
        lambda q: mpf(sigma_b2) + moment(name, q, "V") / moment(name, q, "D") - q,
        (start, start * 1.01),
        tol=1e-18,
    )
    f, _, breaks = ACTIVATIONS[name]
    weight = 1 / moment(name, q, "D")
    slope = weight * expect(lambda x: (x * x / q - 1) * f(x) ** 2, 0, q, breaks) / (2 * q)
    return {"sigma_w2": digits(weight), "q": digits(q), "slope": digits(slope)}


def critical(name: str, start: float) -> dict[str, str]:
    """The point where both susceptibilities are 1."""
    f, _, breaks = ACTIVATIONS[name]

    def difference(q: mpf) -> mpf:
        parallel = expect(lambda x: (x * x / q - 1) * f(x) ** 2, 0, q, breaks) / (2 * q)
        return parallel - moment(name, q, "D")

    q = mp.findroot(difference, (start, start * 1.001), tol=1e-18)
    weight = 1 / moment(name, q, "D")
    return {
        "q": digits(q),
        "sigma_w2": digits(weight),
        "sigma_b2": digits(q - weight * moment(name, q, "V")),
    }


def pair(name: str, q: mpf, c: mpf, of: str) -> mpf:
    """E[f(u) f(v)] or E[f'(u) f'(v)] for tanh, given what u and v share.

    The trapezoidal rule on the whole line is exact to exp(-2 pi d / h) for a function whose nearest
    pole is at a distance d: 1e-20 at h = 1/8 for tanh and q < 3.
    """
    f, df, _ = ACTIVATIONS[name]
    g = f if of == "V" else df
    h = mpf(1) / 8
    shared, own = mp.sqrt(q * c), mp.sqrt(q * (1 - c))
    nodes = [(k * h, h * mp.npdf(k * h)) for k in range(-72, 73)]

    def inner(t: mpf) -> mpf:
        return mp.fsum(weight * g(shared * t + own * z) for z, weight in nodes)

    return mp.fsum(weight * inner(t) ** 2 for t, weight in nodes)


def tanh_phase(sigma_w2: str, sigma_b2: str, q0: float, c0: float) -> dict[str, str]:
    """Fixed point, chi, c* and depth scales of tanh."""
    weight, bias = mpf(sigma_w2), mpf(sigma_b2)
    q = mp.findroot(lambda q: weight * moment("tanh", q, "V") + bias - q, (q0, q0 * 1.01))
    chi = weight * moment("tanh", q, "D")
    f, _, _ = ACTIVATIONS["tanh"]
    slope = weight * expect(lambda x: (x * x / q - 1) * f(x) ** 2, 0, q) / (2 * q)
    c, at_c = mpf(1), chi
    if chi > 1:
        with mp.workdps(16):
            c = mp.findroot(
                lambda c: (weight * pair("tanh", q, c, "V") + bias) / q - c,
                (c0, c0 * 0.99),
                tol=1e-13,
            )
            at_c = weight * pair("tanh", q, c, "D")
    return {
        "q": digits(q),
        "chi": digits(chi),
        "xi_q": digits(-1 / mp.log(slope)),
        "c": digits(c, 11),
        "xi_c": digits(-1 / mp.log(at_c), 10),
    }


def tanh_decay(sigma_b2: str, start: float) -> str:
    """beta of 1 - c_l ~ beta / l at the edge of chaos."""
    q = mpf(edge("tanh", sigma_b2, start)["q"])
    bend = expect(lambda x: (2 * mp.tanh(x) * mp.sech(x) ** 2) ** 2, 0, q)
    return digits(2 * moment("tanh", q, "D") / (q * bend))


def digits(x: mpf, count: int = 17) -> str:
    return mp.nstr(x, count)


def main() -> None:
    tanh_starts = [("0.0001", 0.0457), ("0.001", 0.107), ("0.01", 0.273), ("0.04", 0.512)]
    tanh_starts += [("0.05", 0.57), ("0.09", 0.763), ("0.25", 1.318), ("1.0", 3.036)]
    others = {"silu": (0.69, 4.43), "gelu": (0.576, 6.434), "elu": (1.107, 4.887)}
    others |= {"selu": (0.717, 2.556), "mish": (0.746, 5.315), "erf": (0.466, 1.183)}
    phases = [("1.0", 0.19, 1), ("1.5", 0.42, 1), ("1.7", 0.53, 1), ("2.0", 0.72, 0.74)]
    phases += [("2.5", 1.06, 0.45), ("4.0", 2.2, 0.165)]
    table = {
        "scale_rules": {name: scale_rules(name) for name in SMOOTH},
        "edge_of_chaos": {
            "tanh": {b: edge("tanh", b, q) for b, q in tanh_starts},
            **{
                name: {b: edge(name, b, q) for b, q in zip(("0.04", "0.25"), starts, strict=True)}
                for name, starts in others.items()
            },
        },
        "sigmoid_edge": edge("sigmoid", "0", 45.6),
        "critical": {"gelu": critical("gelu", 3.56), "silu": critical("silu", 14.3)},
        "tanh_phases": {w: tanh_phase(w, "0.05", q, c) for w, q, c in phases},
        "tanh_decay": {"0.05": tanh_decay("0.05", 0.57), "0.09": tanh_decay("0.09", 0.763)},
    }
    (HERE / "rules.json").write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
