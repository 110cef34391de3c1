import warnings

import numpy as np
import pandas as pd
import pytest

from advlib import metrics
from advlib.data import annotations
from advlib.data.annotations import (
    IMAGENET_X_FACTORS,
    METACLASSES,
    imagenet_classes,
    imagenet_labels,
    imagenet_metaclasses,
    imagenet_x,
    measure,
    measured_factors,
    plain_background,
    real_label_sets,
)


@pytest.fixture(scope="module")
def package():
    """The package's own reading of its files; it imports plotting libraries."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import imagenet_x.utils
    return imagenet_x.utils


@pytest.mark.parametrize("which, filter_prototypes", [("top", True), ("multi", False)])
def test_factors_are_those_of_the_package(package, which, filter_prototypes):
    theirs = package.load_annotations(which, filter_prototypes=filter_prototypes)
    ours = imagenet_x(which, filter_prototypes)
    assert not ours.duplicated().any()
    wide = pd.crosstab(ours.file_name, ours.factor).reindex(theirs.file_name, fill_value=0)
    pd.testing.assert_frame_equal(
        wide[package.FACTORS].reset_index(drop=True),
        theirs[package.FACTORS].reset_index(drop=True),
        check_names=False,
    )
    without = ours[ours.factor.isna()].file_name
    assert sorted(without) == sorted(theirs[theirs[package.FACTORS].sum(axis=1) == 0].file_name)


def test_annotated_images_without_a_factor_are_kept():
    top = imagenet_x()
    assert top.file_name.nunique() == len(top) == 46_110
    assert top.factor.isna().sum() == 2
    assert set(top.factor.dropna()) == set(IMAGENET_X_FACTORS)


def test_error_ratios_are_those_of_the_package_expression(package):
    """The published notebook's formula, on predictions that are wrong for every third image."""
    theirs = package.load_annotations()
    table = theirs[["file_name", "class"]].rename(columns={"class": "label"})
    wrong = np.arange(len(table)) % 3 == 0
    table["predicted_class"] = np.where(wrong, (table.label + 1) % 1000, table.label)
    ratios = metrics.error_ratio(table, imagenet_x()).set_index("factor").error_ratio
    for factor in package.FACTORS:
        assert ratios[factor] == pytest.approx(wrong[theirs[factor] == 1].mean() / wrong.mean())


def test_real_label_sets_are_keyed_from_one():
    sets = real_label_sets()
    assert list(sets) == sorted(imagenet_labels().index)
    assert sum(not labels for labels in sets.values()) == 3_163
    # Off by one, the sets would fit the labels at chance.
    labels = imagenet_labels()
    names = [name for name, found in sets.items() if found]
    assert np.mean([labels[name] in sets[name] for name in names]) > 0.85


def test_labels_and_class_names_are_of_the_1000_classes(package):
    labels, classes = imagenet_labels(), imagenet_classes()
    assert labels.index.is_unique and (labels.value_counts() == 50).all() and len(labels) == 50_000
    theirs = package.load_annotations(filter_prototypes=False)
    assert (labels[theirs.file_name].to_numpy() == theirs["class"]).all()
    assert classes.label.tolist() == list(range(1000))
    assert classes.wnid.is_monotonic_increasing and classes.class_name.is_unique
    assert classes.class_name[[0, 134, 517]].tolist() == [
        "tench",
        "crane (n02012849)",
        "crane (n03126707)",
    ]


def test_metaclasses_are_those_of_the_package(package):
    ours = imagenet_metaclasses()
    path = package.get_annotation_path() / "imagenet_1k_classes_to_100_metaclasses.csv"
    theirs = package.to_metaclass(pd.Series(range(1000)), path)
    assert ours.tolist() == theirs.tolist() and ours.index.tolist() == list(range(1000))
    assert set(ours) == {*METACLASSES, "other"}


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(annotations, "find_spec", lambda name: None)
    for read in (imagenet_x, real_label_sets, imagenet_classes):
        with pytest.raises(ModuleNotFoundError, match="pip install imagenet-x"):
            read()


def on_black(height=10, width=10, **patches):
    """A grey image with a rectangle (top, bottom, left, right, value) on black."""
    image = np.zeros((1, height, width), np.uint8)
    for top, bottom, left, right, value in patches.values():
        image[0, top:bottom, left:right] = value
    return image


def test_measures_follow_their_formulas():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 3, 9, 7), dtype=np.uint8)
    found = measure(pixels)
    red, green, blue = (pixels / 255).swapaxes(0, 1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    np.testing.assert_allclose(found.brightness, luma.mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(found.contrast, luma.std((1, 2)), rtol=1e-5)
    from scipy.ndimage import laplace

    inner = [np.abs(laplace(image)[1:-1, 1:-1]).mean() for image in luma]
    np.testing.assert_allclose(found.texture, inner / luma.std((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(found.red_green, (red - green).mean((1, 2)), rtol=1e-4)
    np.testing.assert_allclose(
        found.yellow_blue, ((red + green) / 2 - blue).mean((1, 2)), rtol=1e-4
    )


def test_the_object_is_what_differs_from_a_plain_background():
    centred = on_black(a=(4, 6, 4, 6, 200))
    corner = on_black(a=(0, 2, 0, 2, 200))
    faint = on_black(a=(4, 6, 4, 6, annotations.BACKGROUND_TOLERANCE))
    found = measure(np.stack([centred, 255 - centred, corner, faint]))
    assert found.area.tolist() == pytest.approx([0.04, 0.04, 0.04, 0])
    # The corner's pixels lie at 0.5 from the edge's pixel centres: 4 of 4.5 pixels away.
    assert found.off_centre[:3].tolist() == pytest.approx([0, 0, 4 / 4.5])
    assert np.isnan(found.off_centre[3])
    assert found.border_contact.tolist() == pytest.approx([0, 0, 3 / 36, 0])


def test_a_coloured_object_of_the_background_luma_is_seen():
    pixels = np.full((1, 3, 8, 8), 100, np.uint8)
    pixels[0, 0, 2:4, 2:4], pixels[0, 1, 2:4, 2:4] = 198, 50
    assert measure(pixels).area[0] == pytest.approx(4 / 64)


def test_a_constant_image_has_no_texture():
    """Rounding must not show as detail."""
    for value in (1, 77, 251):
        found = measure(np.full((1, 3, 31, 33), value, np.uint8)).iloc[0]
        assert found.contrast == found.texture == 0 and found.brightness == np.float32(value / 255)


def test_sets_are_measured_in_parts():
    pixels = np.random.default_rng(1).integers(0, 256, (500, 3, 32, 32), dtype=np.uint8)
    parts = [measure(pixels[:7]), measure(pixels[7:])]
    pd.testing.assert_frame_equal(measure(pixels), pd.concat(parts, ignore_index=True))


def test_photographs_have_no_plain_background_and_digits_do():
    from sklearn.datasets import load_digits

    digits = (load_digits().images * (255 / 16)).astype(np.uint8)[:, None]
    assert plain_background(measure(digits))
    across = np.linspace(0, 255, 32, dtype=np.uint8)
    gradients = np.broadcast_to(across, (20, 3, 32, 32))
    assert not plain_background(measure(gradients))


@pytest.fixture
def measures():
    """Two classes of 20 and 10 images, brightness rising with the position in the class."""
    count = np.concatenate([np.arange(20), np.arange(10)])
    table = pd.DataFrame({name: 0.5 for name in annotations.MEASURES}, index=range(30))
    return table.assign(
        file_name=[f"image-{i:02d}" for i in range(30)],
        label=np.repeat([0, 1], [20, 10]),
        brightness=count / 100 + np.repeat([0, 0.5], [20, 10]),
        border_contact=0.0,
    )


def images_of(factors, name):
    return sorted(int(n[-2:]) for n in factors[factors.factor == name].file_name)


def test_extremes_are_taken_within_each_class(measures):
    factors = measured_factors(measures)
    assert images_of(factors, "brighter") == [18, 19, 29]
    assert images_of(factors, "darker") == [0, 1, 20]
    # What is constant gives no factor, and an image with none stays with a missing one.
    assert set(factors.factor.dropna()) == {"brighter", "darker"}
    assert factors.file_name.tolist() == measures.file_name.tolist()
    assert factors.factor.isna().sum() == 24
    table = measures[["file_name", "label"]].assign(predicted_class=0)
    ratios = metrics.error_ratio(table, factors).set_index("factor").error_ratio
    assert ratios["brighter"] == pytest.approx((1 / 3) / (10 / 30))  # over all measured images


def test_ties_go_by_file_name_whatever_the_order_of_rows(measures):
    tied = measures.assign(texture=np.where(measures.index % 2 == 0, 0.9, 0.1))
    tied.loc[20:, "texture"] = 0.1
    for table in (tied, tied.sample(frac=1, random_state=0)):
        assert images_of(measured_factors(table), "texture") == [0, 2]


def test_a_share_is_rounded_down_to_at_least_one_image(measures):
    many = pd.concat([measures.iloc[:1]] * 100, ignore_index=True)
    many = many.assign(file_name=[f"{i:02d}" for i in range(100)], brightness=np.arange(100) / 100)
    for n_images, chosen in ((100, 10), (99, 9), (3, 1)):
        found = images_of(measured_factors(many.iloc[:n_images]), "brighter")
        assert found == [*range(n_images - chosen, n_images)]


def test_partial_view_needs_contact_with_the_border(measures):
    table = measures.assign(border_contact=np.where(measures.index == 25, 0.1, 0.0))
    assert images_of(measured_factors(table), "partial_view") == [25]


def test_object_factors_need_a_plain_background(measures):
    table = measures.assign(area=measures.brightness, off_centre=measures.brightness)
    assert images_of(measured_factors(table), "smaller") == [0, 1, 20]
    assert images_of(measured_factors(table), "off_centre") == [18, 19, 29]
    table.loc[[19, 29], "off_centre"] = np.nan  # without an object
    assert images_of(measured_factors(table), "off_centre") == [17, 18, 28]
    photographs = table.assign(border_contact=np.where(measures.index < 27, 0.9, 0.0))
    assert set(measured_factors(photographs).factor.dropna()) == {"brighter", "darker"}


def test_color_is_the_distance_from_the_mean_of_the_class(measures):
    grey = measures.assign(red_green=np.nan, yellow_blue=np.nan)
    assert images_of(measured_factors(grey), "color") == []
    # Class 1 is red as a whole; its odd one is its only grey image.
    red = measures.assign(red_green=np.where(measures.label == 1, 0.8, 0.0))
    red.loc[24, "red_green"] = 0.0
    assert images_of(measured_factors(red), "color") == [24]


def test_every_factor_is_found_where_the_background_is_plain(measures):
    rng = np.random.default_rng(2)
    values = rng.random((30, len(annotations.MEASURES))) / 2
    table = measures.assign(**dict(zip(annotations.MEASURES, values.T, strict=True)))
    known = {"brighter", "darker", "low_contrast", "texture", "color", "larger", "smaller"}
    known |= {"off_centre", "partial_view"}
    assert set(measured_factors(table).factor.dropna()) == known
