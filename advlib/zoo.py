"""Methods of the field as data: base methods, and those meant to be fair to classes."""

# What a base method trains on, and what it costs beside the attack.
_TRADES = {"mix": True, "forwards": 1}
_ON_TRADES = {**_TRADES, "base": "trades"}
_FRL = {"beta": 1.5, "tau": 0.1, "rate_clean": 0.05, "rate_boundary": 0.1, "rate_margin": 0.0}
_FRL |= {"limit": 0.5}
_NO_CHOICE = {"margins": 0, "weights": 0, "base": 0.5, "begin": 1}

ZOO: dict[str, dict] = {
    "n_fgsm": dict(title="N-FGSM", objective="n_fgsm", steps=1),
    "trades": dict(title="TRADES", objective="trades", options={"beta": 6.0}, **_TRADES),
    "mart": dict(title="MART", objective="mart", options={"beta": 5.0}, mix=True),
    "awp": dict(title="AWP", objective="awp", options={"gamma": 0.01}, forwards=3),
    "trades_awp": dict(
        title="TRADES-AWP",
        objective="awp",
        options={"gamma": 0.005, "beta": 6.0},
        base="trades",
        mix=True,
        forwards=7,
    ),
    "sat": dict(
        title="SAT",
        objective="sat",
        options={"beta": 6.0, "momentum": 0.9, "begin": 1},
        **_ON_TRADES,
    ),
    "hat": dict(
        title="HAT",
        objective="hat",
        options={"beta": 2.5, "gamma": 0.5, "far": 2.0},
        base="trades",
        mix=True,
        forwards=5,
        helper="std",
    ),
    "gairat": dict(title="GAIRAT", objective="gairat", options={"lam": -1.0, "begin": 1}),
    "inverse_accuracy": dict(
        title="Inverse accuracy", objective="inverse_accuracy", options={"power": 1.0, "begin": 1}
    ),
    "group_dro": dict(title="Group DRO", objective="group_dro", options={"eta": 1.0}),
    "logit_offset": dict(
        title="Logit offsets",
        objective="offsets",
        options={"strength": 1.0},
        validation=True,
        helper="adv",
        post_hoc=True,
    ),
    "frl": dict(
        title="FRL",
        objective="frl",
        options=_FRL,
        validation=True,
        **_ON_TRADES,
    ),
    "frl_margin": dict(
        title="FRL with margins",
        objective="frl",
        options={**_FRL, "tau": 0.07, "rate_margin": 0.2},
        validation=True,
        **_ON_TRADES,
    ),
    "cfa": dict(
        title="CFA",
        objective="cfa",
        options={**_NO_CHOICE, "margins": 1, "decay": 0.85, "threshold": 0.2},
        epoch_average=True,
        validation=True,
    ),
    "cfa_margins": dict(title="CFA margins", objective="cfa", options={**_NO_CHOICE, "margins": 1}),
    "cfa_average": dict(
        title="CFA averaging",
        objective="cfa",
        options={**_NO_CHOICE, "decay": 0.85, "threshold": 0.2},
        epoch_average=True,
        validation=True,
    ),
    "cfa_weights": dict(
        title="CFA weights (TRADES)",
        objective="cfa",
        options={**_NO_CHOICE, "weights": 1, "beta": 6.0},
        **_ON_TRADES,
    ),
    "cfa_trades": dict(
        title="CFA (TRADES)",
        objective="cfa",
        options={
            **_NO_CHOICE,
            "margins": 1,
            "weights": 1,
            "beta": 6.0,
            "decay": 0.85,
            "threshold": 0.2,
        },
        epoch_average=True,
        validation=True,
        **_ON_TRADES,
    ),
    "wat": dict(
        title="WAT",
        objective="wat",
        options={"beta": 6.0, "eta": 0.1},
        validation=True,
        **_ON_TRADES,
    ),
    "bat": dict(
        title="BAT",
        objective="bat",
        options={"beta": 6.0, "uniform": 1.0},
        base="trades",
        mix=True,
        forwards=4,
    ),
    "cfol": dict(title="CFOL", objective="cfol", options={"gamma": 0.5, "eta": 5e-6}),
    "faal": dict(title="FAAL", objective="faal", options={"r": 0.5}),
    "dafa": dict(
        title="DAFA",
        objective="dafa",
        options={"beta": 6.0, "lam": 1.0, "begin": 1},
        **_ON_TRADES,
    ),
    "dafa_at": dict(
        title="DAFA (AT)", objective="dafa", options={"lam": 1.0, "begin": 1, "coded": 0}
    ),
    "fair_tat": dict(
        title="FAIR-TAT",
        objective="fair_tat",
        options={"targeted": 1, "guided": 1, "margins": 1},
    ),
    "random_targets": dict(
        title="Random targets",
        objective="fair_tat",
        options={"targeted": 1, "guided": 0, "margins": 0},
    ),
    "ham": dict(title="HAM", objective="ham", options={"first": 3}, forwards=1),
    "csr": dict(
        title="CSR",
        objective="csr",
        options={"beta": 6.0, "weight": 0.3},
        validation=True,
        **_ON_TRADES,
    ),
    "fair_ard": dict(
        title="Fair-ARD",
        objective="fair_ard",
        options={"power": 2.0, "temperature": 30.0},
        helper="trades",
        forwards=1,
    ),
    "absld": dict(
        title="ABSLD",
        objective="absld",
        options={"rate": 0.1, "shared": 0},
        helper="trades",
        base="trades",
        mix=True,
        forwards=1,
    ),
}
"""Recipes of the field that train on attacked images, with their published settings."""
