"""What is said of images that did not register."""

from reloc_core.reconstruction.outcome import elsewhere, reasons
from reloc_core.reconstruction.photos import Photo

NUMBERS = {name: number for number, name in enumerate("abcdefghij", 1)}
# a to d are the model, e hangs on it; f, g and h know each other alone, and so do i and j.
MATCHED = dict.fromkeys([(1, 2), (2, 3), (3, 4), (4, 5), (6, 7), (7, 8), (9, 10)], 40)


def test_a_second_place_without_a_model_is_named():
    assert elsewhere(MATCHED, NUMBERS, set("abcd")) == [set("fgh")]
    photos = [Photo(name, 64, 48, "lens", 100.0) for name in NUMBERS]
    features = dict.fromkeys(NUMBERS, 500)
    why = reasons(photos, NUMBERS, features, MATCHED, dict.fromkeys("abcd"), [])
    for name in "fgh":
        assert why[name] == (
            "one of 3 images that show another place, or do not overlap with these"
        )
    assert "too few inliers" in why["e"]
    assert "matches only images that did not register" in why["i"]
