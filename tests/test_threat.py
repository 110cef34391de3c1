import pytest

from advlib.threat import PROTOCOLS, ThreatModel


@pytest.mark.parametrize(
    "values, said",
    [
        ({"eps": 8}, r"ε is in \[0, 1\] pixel units; did you mean 8/255\?"),
        ({"eps": -0.1}, "at least 0"),
        ({"eps": float("nan")}, "eps is a finite number .*got nan"),
        ({"eps": "eight"}, "8/255"),
        ({"step_size": 0}, "step_size is positive"),
        ({"norm": "linf"}, "norm is one of Linf, L2"),
        ({"steps": 0}, "steps is a whole number"),
        ({"steps": 2.5}, "steps is a whole number"),
        ({"n_restarts": 0}, "n_restarts"),
        ({"clip": 1}, "clip is true or false"),
        ({"success": "all"}, "any, last"),
        ({"label_source": "target"}, "true, predicted"),
    ],
)
def test_refuses_what_cannot_be_meant(values, said):
    with pytest.raises(ValueError, match=said):
        ThreatModel(**values)


def test_large_radii_that_can_be_meant():
    assert ThreatModel(norm="L2", eps=3).eps == 3
    assert ThreatModel(eps_space="normalized", eps=2).eps == 2
    assert ThreatModel(eps=0).eps == 0


def test_fractions_are_read():
    assert ThreatModel(eps="8/255").eps == 8 / 255
    assert ThreatModel(eps="8 / 255", step_size="2/255").step == 2 / 255


@pytest.mark.parametrize("steps, share", [(1, 2.5), (5, 0.5), (10, 0.25), (40, 0.25)])
def test_default_step(steps, share):
    assert ThreatModel(eps=0.04, steps=steps).step == pytest.approx(share * 0.04)


def test_describes_itself_in_one_line_with_pixels():
    line = str(ThreatModel(eps="8/255", steps=40))
    assert "\n" not in line
    for part in ("PGD-40", "L∞", "8/255", "true label", "class logits", "clipped", "any"):
        assert part in line


def test_stored_values_give_the_same_threat_model():
    for threat in PROTOCOLS.values():
        assert ThreatModel(**threat.to_dict()) == threat


def test_protocols_take_the_study_radius():
    fgsm = PROTOCOLS["fgsm"].with_eps("8/255")
    assert (fgsm.eps, fgsm.step, fgsm.steps) == (8 / 255, 8 / 255, 1)
    assert PROTOCOLS["pgd40"].with_eps(0.1).step == pytest.approx(0.025)
    assert PROTOCOLS["pgd40_earlier_code"].step == 0.01
