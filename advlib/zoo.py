"""Methods of the field as data: base methods, and those meant to be fair to classes."""

# What a base method trains on, and what it costs beside the attack.
_TRADES = {"mix": True, "forwards": 1}
_ON_TRADES = {**_TRADES, "base": "trades"}
_VALIDATED = {"validation": True, **_ON_TRADES}
_AWP, _HAT = {"gamma": 0.005, "beta": 6.0}, {"beta": 2.5, "gamma": 0.5, "far": 2.0}
_FRL = {"beta": 1.5, "tau": 0.1, "rate_clean": 0.05, "rate_boundary": 0.1, "rate_margin": 0.0}
_FRL |= {"limit": 0.5}
_MARGINS = {"tau": 0.07, "rate_margin": 0.2}
_CFA = {"margins": 0, "weights": 0, "base": 0.5, "begin": 1}
_CFA_WEIGHTS = {**_CFA, "weights": 1, "beta": 6.0}
_AVERAGE = {"decay": 0.85, "threshold": 0.2}
_AVERAGED = {"objective": "cfa", "epoch_average": True, "validation": True}
_BOTH = {"margins": 1, **_AVERAGE}
_RANDOM = {"targeted": 1, "guided": 0, "margins": 0}
_AFTER = {"objective": "offsets", "validation": True, "helper": "adv", "post_hoc": True}

# A method's objective has its name, unless another one is said.
_METHODS = {
    "n_fgsm": dict(title="N-FGSM", steps=1),
    "trades": dict(title="TRADES", options={"beta": 6.0}, **_TRADES),
    "mart": dict(title="MART", options={"beta": 5.0}, mix=True),
    "awp": dict(title="AWP", options={"gamma": 0.01}, forwards=3),
    "trades_awp": dict(
        title="TRADES-AWP", objective="awp", options=_AWP, **_ON_TRADES | {"forwards": 7}
    ),
    "sat": dict(title="SAT", options={"beta": 6.0, "momentum": 0.9, "begin": 1}, **_ON_TRADES),
    "hat": dict(title="HAT", options=_HAT, helper="std", **_ON_TRADES | {"forwards": 5}),
    "gairat": dict(title="GAIRAT", options={"lam": -1.0, "begin": 1}),
    "inverse_accuracy": dict(title="Inverse accuracy", options={"power": 1.0, "begin": 1}),
    "group_dro": dict(title="Group DRO", options={"eta": 1.0}),
    "logit_offset": dict(title="Logit offsets", options={"strength": 1.0}, **_AFTER),
    "frl": dict(title="FRL", options=_FRL, **_VALIDATED),
    "frl_margin": dict(
        title="FRL with margins", objective="frl", options=_FRL | _MARGINS, **_VALIDATED
    ),
    "cfa": dict(title="CFA", options=_CFA | _BOTH, **_AVERAGED),
    "cfa_margins": dict(title="CFA margins", objective="cfa", options={**_CFA, "margins": 1}),
    "cfa_average": dict(title="CFA averaging", options=_CFA | _AVERAGE, **_AVERAGED),
    "cfa_weights": dict(
        title="CFA weights (TRADES)", objective="cfa", options=_CFA_WEIGHTS, **_ON_TRADES
    ),
    "cfa_trades": dict(
        title="CFA (TRADES)", options=_CFA_WEIGHTS | _BOTH, **_AVERAGED | _VALIDATED
    ),
    "wat": dict(title="WAT", options={"beta": 6.0, "eta": 0.1}, **_VALIDATED),
    "bat": dict(title="BAT", options={"beta": 6.0, "uniform": 1.0}, **_ON_TRADES | {"forwards": 4}),
    "cfol": dict(title="CFOL", options={"gamma": 0.5, "eta": 5e-6}),
    "faal": dict(title="FAAL", options={"r": 0.5}),
    "dafa": dict(title="DAFA", options={"beta": 6.0, "lam": 1.0, "begin": 1}, **_ON_TRADES),
    "dafa_at": dict(
        title="DAFA (AT)", objective="dafa", options={"lam": 1.0, "begin": 1, "coded": 0}
    ),
    "fair_tat": dict(title="FAIR-TAT", options={"targeted": 1, "guided": 1, "margins": 1}),
    "random_targets": dict(title="Random targets", objective="fair_tat", options=_RANDOM),
    "ham": dict(title="HAM", options={"first": 3}, forwards=1),
    "csr": dict(title="CSR", options={"beta": 6.0, "weight": 0.3}, **_VALIDATED),
    "fair_ard": dict(
        title="Fair-ARD", options={"power": 2.0, "temperature": 30.0}, helper="trades", forwards=1
    ),
    "absld": dict(title="ABSLD", options={"rate": 0.1, "shared": 0}, helper="trades", **_ON_TRADES),
}
ZOO: dict[str, dict] = {name: {"objective": name} | said for name, said in _METHODS.items()}
"""Recipes of the field that train on attacked images, with their published settings."""
