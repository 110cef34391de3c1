"""Charts of the attack's readings and of the battery, compiled by Vega as readers see them."""

import pandas as pd

from advbook.audit import ledger
from advbook.charts import audit
from conftest import marks as drawn


def test_readings_stand_beside_the_paper_and_differ_in_points():
    table = pd.DataFrame(
        {
            "title": ["One", "One", "Two"],
            "pair": "Adv⁺ beside Adv",
            "switch": ["Default", "Step ε/40", "Default"],
            "attacked_adv": [0.7, 0.4, 0.3],
            "attacked_adv_plus": [0.71, 0.4, 0.25],
        }
    )
    svg = drawn(audit.readings(table, ledger.published_pattern()))
    assert svg.count('aria-roledescription="point"') == 4  # and one of them is the paper's
    assert "Adv⁺ − Adv (points): +1.00" in svg and "Adv⁺ − Adv (points): −5.00" in svg
    assert "−37.6 points" in svg and "the paper" in svg and "null" not in svg


def test_a_column_is_as_high_as_the_strongest_attack_so_far():
    """The second attack finds less than the first: it adds nothing, and takes nothing away."""
    values = {"no attack": 0.2, "PGD-40": 0.5, "APGD-CE": 0.45, "APGD-T": 0.53}
    table = pd.DataFrame({"step": [*values], "value": [*values.values()]})
    table = table.assign(title="One", name="Adv", low=table.value - 0.04, high=table.value + 0.04)
    chart = audit.added_by_attack(table)
    assert chart.data.top.tolist() == [0.2, 0.5, 0.5, 0.53]
    assert chart.data.below.tolist() == [0, 0.2, 0.5, 0.5]
    svg = drawn(chart)
    assert "no attack 20.0" in svg and "PGD-40 +30.0" in svg and "APGD-T +3.0" in svg
    assert "APGD-CE +" not in svg and ">53.0%<" in svg
    assert "Breaks besides (points): 0.0" in svg and "null" not in svg
