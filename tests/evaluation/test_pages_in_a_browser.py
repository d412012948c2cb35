"""The pages that people open, in a real browser: Debian's chromium, driven by Playwright."""

import json
import shutil

import numpy as np
import pytest
from reconstruction_tools import Rendered

from reloc_core.cli.main import main
from reloc_core.evaluation.units import format_angle, format_length, threshold_label

playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs chromium (apt-get install chromium)"
)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, ace_scene, toy_plugin_of_module):
    path = tmp_path_factory.mktemp("pages")
    data = ["dataset=ace", f"dataset.root={ace_scene}", "threads=1"]
    assert main(["train", "estimator=toy", *data, f"map_dir={path}/map",
                 f"output_dir={path}/fit"]) == 0  # fmt: skip
    for name, push in (("one", 0.0), ("other", 0.1)):
        refiners = f"refiners=[{{name: toy_push, push: {push}}}]"
        assert main(["evaluate", f"map_dir={path}/map", *data, "dataset.split=test", refiners,
                     f"output_dir={path}/{name}"]) == 0  # fmt: skip
    assert (
        main(
            [
                "report",
                "compare",
                f"truth={path}/one",
                f"{path}/one",
                f"{path}/other",
                f"output_dir={path}/compared",
            ]
        )
        == 0
    )
    return path


@pytest.fixture(scope="module")
def mapped(tmp_path_factory, toy_plugin_of_module):
    """Photos to a map: the page of the map and, below it, the page of the reconstruction."""
    path = tmp_path_factory.mktemp("mapped")
    room = Rendered(path / "photos", 40, range(6))
    (room.folder / "broken.jpg").write_bytes(b"no image")
    assert main(["map", f"images={room.folder}", "~experiment", "estimator=toy", "threads=1",
                 "calibration.enabled=false", "reconstruct.features=1200", f"map_dir={path}/map",
                 f"output_dir={path}/made"]) == 0  # fmt: skip
    return path


def opened(browser, file, width=1200):
    """The page, and what its scripts complained of."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else 0)
    page.on("request", lambda r: complaints.append(r.url) if r.url.startswith("http") else 0)
    page.goto(file.as_uri())
    return page, complaints


def test_the_figures_of_the_report_are_those_of_the_result(browser, evaluated):
    page, complaints = opened(browser, evaluated / "one/report.html")
    metrics = json.loads((evaluated / "one/result.json").read_text())["metrics"]
    tiles = page.locator(".tile").all_inner_texts()
    assert format_length(metrics["median_translation_m"]) in tiles[0].replace("\n", " ")
    assert format_angle(metrics["median_rotation_deg"]) in tiles[1]
    assert f"{metrics['localized']} / {metrics['queries']}" in " ".join(tiles)
    error = metrics["calibration"]["calibration_error"]
    assert f"calibration error is {error:.3f}" in page.inner_text("main")
    assert complaints == []


def test_queries_are_sorted_and_filtered(browser, evaluated):
    page, complaints = opened(browser, evaluated / "one/report.html")
    lines = (evaluated / "one/localizations.jsonl").read_text().splitlines()
    results = [json.loads(line) for line in lines]

    def names():
        return page.locator("#queries tbody tr:not([hidden]) td:first-child").all_inner_texts()

    assert names() == [r["name"] for r in results]
    errors = [r["translation_error_m"] if r["translation_error_m"] is not None else np.inf
              for r in results]  # fmt: skip
    title = page.locator("#queries th button", has_text="position error")
    for order in (np.argsort(errors, kind="stable"), np.argsort(errors, kind="stable")[::-1]):
        title.click()
        found = [errors[[r["name"] for r in results].index(n)] for n in names()]
        assert found == [errors[i] for i in order]
    page.fill("#queries-filter", results[2]["name"])
    assert names() == [results[2]["name"]]
    assert page.inner_text("#queries-shown") == f"1 of {len(results)}"
    page.fill("#queries-filter", "")
    page.select_option("#queries-kind", "no")
    assert len(names()) == sum(r["status"] != "localized" for r in results)
    assert complaints == []


@pytest.mark.parametrize(
    ("made", "page_file"),
    [
        ("evaluated", "one/report.html"),
        ("evaluated", "compared/compare.html"),
        ("mapped", "made/report.html"),
        ("mapped", "made/place/report.html"),
    ],
)
def test_pages_fit_on_a_phone(browser, request, made, page_file):
    page, complaints = opened(browser, request.getfixturevalue(made) / page_file, width=390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert len(page.inner_text("main")) > 200
    # Names of images are readable: not broken into pieces of a few characters.
    widths = page.locator("td.text").evaluate_all("cells => cells.map(c => c.offsetWidth)")
    assert min((w for w in widths if w), default=100) >= 100
    assert complaints == []


@pytest.mark.parametrize("page_file", ["made/report.html", "made/place/report.html"])
def test_the_figures_of_a_reconstruction_are_those_of_its_record(browser, mapped, page_file):
    page, complaints = opened(browser, mapped / page_file)
    record = json.loads((mapped / "made/place/reconstruction.json").read_text())
    tiles = [" ".join(t.split()) for t in page.locator(".tile").all_inner_texts()]
    assert tiles[:4] == [
        f"{record['registered']} of 7 images registered",
        f"{record['points']} points",
        f"{record['reprojection_error_px']:.2f} px mean reprojection error",
        f"{record['track_length']:.1f} images see a point",
    ]
    text = page.inner_text("main")
    assert f"Registered: {record['registered']}" in text
    assert "Not registered: 1" in text
    assert "broken.jpg" in text
    page.locator("summary", has_text="All of them").last.click()
    rows = page.locator("details").last.locator("tr:has(td)").all_inner_texts()
    placed = [image["name"] for image in record["images"] if not image["reason"]]
    assert sorted(row.split()[0] for row in rows) == sorted(placed)
    assert page.locator("svg circle").count() == record["registered"]
    assert complaints == []


def test_the_page_of_a_map_tells_of_the_map_and_of_what_was_checked(browser, mapped):
    page, complaints = opened(browser, mapped / "made/report.html")
    result = json.loads((mapped / "made/result.json").read_text())
    assert f"toy, {result['map']['bytes'] / 1e6:.1f} MB" in page.inner_text("main")
    table = page.locator("h2:text-is('Check') + div tr").all_inner_texts()
    assert len(table) >= 5
    sane = "ok poses place/train: 6 rigid camera-to-world transforms"
    assert sane in [" ".join(row.split()) for row in table]
    assert complaints == []


def test_the_figures_of_a_comparison_are_those_of_the_results(browser, evaluated):
    page, complaints = opened(browser, evaluated / "compared/compare.html")
    table = page.locator("table").first
    titles = table.locator("th").all_inner_texts()
    rows = table.locator("tr:has(td)")
    assert rows.count() == 2
    for row, name in enumerate(("one", "other")):
        metrics = json.loads((evaluated / name / "result.json").read_text())["metrics"]
        cells = dict(zip(titles, rows.nth(row).locator("td").all_inner_texts(), strict=True))
        assert (
            cells["failed"] == f"{metrics['queries'] - metrics['localized']} / {metrics['queries']}"
        )
        position = cells["median position"].splitlines()[0]
        assert position == format_length(metrics["median_translation_m"])
        rotation = cells["median rotation"].splitlines()[0]
        assert rotation == format_angle(metrics["median_rotation_deg"])
        for key, share in metrics["recall"].items():
            title = threshold_label(key)
            if title in cells:
                assert cells[title].splitlines()[0] == f"{100 * share:.1f}"
    assert complaints == []
