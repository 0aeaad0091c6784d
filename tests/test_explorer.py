"""The report's page in a real Chromium: drawn, pointed at, chosen from, offline and on a phone."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import PHONE, complaints, open_chromium, open_page, requested, write_report

pytestmark = pytest.mark.slow

WHITE = np.ones(3)
HOSTILE = "<img src=x onerror=alert(1)>"
CORNERS = np.array([[10.0, 10.0], [-10.0, 10.0], [10.0, -10.0], [-10.0, -10.0]])
N = 600


def points() -> tuple[np.ndarray, list[str], list[float]]:
    """Rows round the middle, of three labels in turn; the last four stand alone in the corners."""
    Z = np.random.default_rng(0).normal(size=(N, 2))
    Z[-4:] = CORNERS
    return Z, [("a", "b", HOSTILE)[i % 3] for i in range(N)], [i / 7 for i in range(N)]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    Z, labels, ages = points()
    return write_report(tmp_path_factory.mktemp("page"), Z, labels, {"age": ages, "day": ["d1", "d2"] * (N // 2)})


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with open_chromium() as opened:
        yield opened


@pytest.fixture
def page(chromium: Any, report: tuple[Path, np.ndarray]) -> Any:
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    complaints(chromium), requested(chromium)
    open_page(chromium, report[0].as_uri())
    settle(chromium)
    return chromium


def settle(page: Any) -> None:
    """Wait until what was asked for is drawn."""
    page.execute_async_script(
        "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 50)))"
    )


def by_id(page: Any, name: str) -> Any:
    return page.find_element("id", name)


def click(page: Any, element: Any) -> None:
    page.execute_script("arguments[0].click()", element)
    settle(page)


def place_of(page: Any, point: np.ndarray) -> tuple[int, int]:
    """Return where a point of the embedding stands in the picture, in pixels from its top left."""
    script = """const { xaxis, yaxis } = document.getElementById('scatter')._fullLayout;
    return [xaxis._offset + xaxis.l2p(arguments[0]), yaxis._offset + yaxis.l2p(arguments[1])]"""
    x, y = page.execute_script(script, *map(float, point))
    return round(x), round(y)


def colour_at(page: Any, point: np.ndarray) -> np.ndarray:
    """Return the colour drawn at a point of the embedding, RGB up to 1."""
    from matplotlib.image import imread

    scatter = by_id(page, "scatter")
    page.execute_script("arguments[0].scrollIntoView({ block: 'center' })", scatter)
    x, y = place_of(page, point)
    picture = imread(io.BytesIO(scatter.screenshot_as_png))
    found: np.ndarray = picture[y, x, :3]
    return found


def point_at(page: Any, point: np.ndarray) -> Any:
    """Return actions that move the pointer to a point of the embedding."""
    from selenium.webdriver import ActionChains

    scatter = by_id(page, "scatter")
    page.execute_script("arguments[0].scrollIntoView({ block: 'center' })", scatter)
    x, y = place_of(page, point)
    actions = ActionChains(page, duration=50)
    size = scatter.size
    return actions.move_to_element_with_offset(scatter, x - size["width"] // 2, y - size["height"] // 2)


def layers(page: Any) -> list[list[str]]:
    return [item.text.split("\n") for item in page.find_elements("css selector", "#layers li")]


def rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def test_page_is_drawn_by_webgl_offline_and_without_complaints(page: Any) -> None:
    kinds = page.execute_script("return document.getElementById('scatter').data.map(trace => trace.type)")
    assert set(kinds) == {"scattergl"}
    for point in CORNERS:
        assert not np.allclose(colour_at(page, point), WHITE, atol=0.1)
    assert np.allclose(colour_at(page, np.array([10.0, 0.0])), WHITE, atol=0.1)
    for plot in ("loss", "distances"):
        assert by_id(page, plot).find_elements("css selector", ".trace, .boxlayer path")
    assert all(url.startswith(("file:", "data:", "blob:")) for url in requested(page))
    assert complaints(page) == []


def test_pointing_at_a_row_tells_it(page: Any) -> None:
    assert not by_id(page, "tip").is_displayed()
    point_at(page, CORNERS[2]).perform()
    settle(page)
    assert by_id(page, "tip").text.split("\n") == [f"id {2**60 + N - 2}", "label: b", "age: 85.4286", "day: d1"]
    point_at(page, np.array([10.0, 0.0])).perform()
    settle(page)
    assert not by_id(page, "tip").is_displayed()


def test_clearing_a_tick_hides_a_label(page: Any) -> None:
    assert [entry[0] for entry in layers(page)] == [HOSTILE, "a", "b"]
    ticks = page.find_elements("css selector", "#layers input")
    click(page, ticks[2])
    assert np.allclose(colour_at(page, CORNERS[2]), WHITE, atol=0.1)
    assert not np.allclose(colour_at(page, CORNERS[1]), WHITE, atol=0.1)
    click(page, ticks[2])
    assert not np.allclose(colour_at(page, CORNERS[2]), WHITE, atol=0.1)


def test_colouring_by_a_number_and_by_text(page: Any) -> None:
    from selenium.webdriver.support.select import Select

    before, choice = colour_at(page, CORNERS[3]), Select(by_id(page, "colour-by"))
    assert [option.text for option in choice.options] == ["label", "age", "day", "density"]
    choice.select_by_visible_text("age")
    settle(page)
    names = [entry[0] for entry in layers(page)]
    assert (len(names), names[0], names[-1]) == (10, "under 9.2", "from 76.3")
    after = colour_at(page, CORNERS[3])
    assert np.abs(after - before).max() > 0.2
    assert np.abs(after - rgb("#dde318")).max() < 0.3  # the last step of the scale, over white
    choice.select_by_visible_text("day")
    settle(page)
    assert layers(page) == [["d1", "300"], ["d2", "300"]]
    assert complaints(page) == []


def test_a_box_chooses_rows_in_all_views(page: Any, report: tuple[Path, np.ndarray]) -> None:
    Z, labels, _ = points()
    click(page, by_id(page, "box"))
    low, high = np.array([-0.6, -0.9]), np.array([1.2, 0.7])
    drag = point_at(page, low).click_and_hold()
    start, end = place_of(page, low), place_of(page, high)
    drag.move_by_offset(end[0] - start[0], end[1] - start[1]).release().perform()
    settle(page)
    inside = (Z > low).all(axis=1) & (Z < high).all(axis=1)
    shown = int(by_id(page, "selection").text.split(" of ")[0])
    assert shown == pytest.approx(inside.sum(), abs=6)  # the pointer stands on whole pixels
    assert sum(int(entry[1].split(" of ")[0]) for entry in layers(page)) == shown
    chosen = sum(label == "a" for label, here in zip(labels, inside, strict=True) if here)
    assert int(layers(page)[1][1].split(" of ")[0]) == pytest.approx(chosen, abs=4)
    names = page.execute_script("return document.getElementById('distances').data.map(trace => trace.name)")
    pairs = inside[report[1]].any(axis=1).sum()
    assert names[0] == "all pairs (2,000)"
    assert int(names[1].split("(")[1].replace(",", "")[:-1]) == pytest.approx(pairs, rel=0.05)
    click(page, by_id(page, "clear"))
    assert by_id(page, "selection").text == "600 rows"
    assert len(page.execute_script("return document.getElementById('distances').data")) == 1
    assert complaints(page) == []


def test_a_label_is_chosen_by_its_name_but_not_its_hidden_rows(page: Any, report: tuple[Path, np.ndarray]) -> None:
    bright = colour_at(page, CORNERS[0])
    click(page, page.find_elements("css selector", "#layers button")[2])
    assert by_id(page, "selection").text == "200 of 600 rows selected"
    assert np.abs(colour_at(page, CORNERS[0]) - bright).max() > 0.1  # of another label: faded
    _, labels, _ = points()
    ends = np.array([label == "b" for label in labels])[report[1]].any(axis=1).sum()
    names = page.execute_script("return document.getElementById('distances').data.map(trace => trace.name)")
    assert names[1] == f"with a selected row ({ends:,})"
    click(page, page.find_elements("css selector", "#layers button")[2])
    assert by_id(page, "selection").text == "600 rows"
    click(page, page.find_elements("css selector", "#layers input")[2])
    click(page, page.find_elements("css selector", "#layers button")[2])
    assert by_id(page, "selection").text == "0 of 600 rows selected"


def test_tools_zoom_and_show_all(page: Any) -> None:
    def width() -> float:
        low, high = page.execute_script("return document.getElementById('scatter').layout.xaxis.range")
        return float(high - low)

    whole = width()
    click(page, by_id(page, "zoom-in"))
    assert width() == pytest.approx(0.6 * whole)
    click(page, by_id(page, "zoom-out"))
    assert width() == pytest.approx(whole)
    click(page, by_id(page, "zoom-out"))
    click(page, by_id(page, "whole"))
    assert width() == pytest.approx(whole)
    assert by_id(page, "move").get_attribute("aria-pressed") == "true"
    click(page, by_id(page, "lasso"))
    assert page.execute_script("return document.getElementById('scatter').layout.dragmode") == "lasso"
    assert by_id(page, "move").get_attribute("aria-pressed") == "false"


def test_a_phone_scrolls_down_only(page: Any) -> None:
    width, height = PHONE
    size = {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page.refresh()
    settle(page)
    assert page.execute_script("return [document.documentElement.scrollWidth, innerWidth]") == [width, width]
    assert page.execute_script("return document.getElementById('scatter').layout.dragmode") is False
    reached = page.execute_script(
        """return [...document.querySelectorAll('#explorer button, #explorer select, #layers label')]
        .filter(e => e.offsetParent).map(e => e.getBoundingClientRect()).map(r => [r.height, r.left, r.right])"""
    )
    assert all(size >= 40 and left >= 0 and right <= width for size, left, right in reached)
    assert complaints(page) == []


def test_without_webgl_a_part_is_drawn_as_vectors(tmp_path: Path) -> None:
    Z = np.random.default_rng(0).normal(size=(6000, 2))
    path, _ = write_report(tmp_path, Z, None)
    with open_chromium("--disable-3d-apis") as page:
        open_page(page, path.as_uri())
        settle(page)
        assert len(page.find_elements("css selector", "#scatter .scatterlayer path.point")) == 5000
        assert "the first 5,000 of the 6,000 rows are drawn" in by_id(page, "fallback").text
        assert not by_id(page, "draw-all").is_displayed()
        assert complaints(page) == []


def test_200_000_rows_are_drawn(chromium: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 200_000)
    Z = rng.normal(size=(200_000, 2)) + 6 * rng.normal(size=(10, 2))[labels]
    path, _ = write_report(tmp_path, Z, labels.tolist())
    assert path.stat().st_size < 8e6
    page = chromium
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    open_page(page, path.as_uri())
    settle(page)
    if by_id(page, "draw-all").is_displayed():  # no graphics card here
        assert by_id(page, "selection").text == "50,000 rows"
        click(page, by_id(page, "draw-all"))
    assert by_id(page, "selection").text == "200,000 rows"
    drawn = page.execute_script(
        "return document.getElementById('scatter').data.reduce((sum, trace) => sum + trace.x.length, 0)"
    )
    assert drawn == 200_000
    click(page, page.find_elements("css selector", "#layers button")[3])
    assert by_id(page, "selection").text == f"{(labels == 3).sum():,} of 200,000 rows selected"
    assert complaints(page) == []
