"""The page in a real browser on a real demo: what a visitor sees, and what is seen when parts die."""

import asyncio
import json
import re
import urllib.request
from typing import Any

import pytest
from playwright.async_api import Page, expect

from e2e.conftest import Demo
from testkit.waiting import WAIT_S_MAX, until

pytestmark = pytest.mark.needs("chromium")

STATES = ("running", "idle", "hold", "alarm", "offline", "no_data")


def control(demo: Demo, machine: str, fault: dict[str, Any] | None) -> None:
    """Set a fault of a simulated machine, or clear its faults."""
    request = urllib.request.Request(
        f"{demo.status()['simulator_url']}/machines/{machine}/faults",
        method="DELETE" if fault is None else "POST",
        data=None if fault is None else json.dumps(fault).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=WAIT_S_MAX) as answer:
        assert answer.status in (200, 201, 204)


async def machine_in(page: Page, *states: str) -> str:
    """Return a machine that is in one of the states now."""
    for _ in range(300):
        for state in states:
            tile = page.locator(f'[data-testid="tile"][data-state="{state}"]').first
            if await tile.count():
                name = await tile.get_attribute("data-machine")
                assert name is not None
                return name
        await asyncio.sleep(0.2)
    raise AssertionError(f"no machine is {' or '.join(states)} within a minute")


async def test_wall_shows_five_machines_with_colour_shape_and_word(demo: Demo, wide: Page) -> None:
    await wide.goto(demo.url)
    tiles = wide.get_by_test_id("tile")
    await expect(tiles).to_have_count(5)
    await expect(wide.get_by_test_id("connection")).to_have_attribute("data-state", "live")
    for index in range(5):
        tile = tiles.nth(index)
        state = await tile.get_attribute("data-state")
        assert state in STATES
        assert state.replace("_", " ") in (await tile.inner_text()).lower(), "never colour alone"
        assert await tile.locator("svg").count() >= 1
    counted = 0
    for state in STATES:
        text = await wide.get_by_test_id(f"filter-{state}").inner_text()
        found = re.search(r"\d+", text)
        assert found is not None
        counted += int(found.group())
    assert counted == 5


async def test_a_filter_lives_in_the_address_and_hides_no_alarm_silently(demo: Demo, wide: Page) -> None:
    await wide.goto(demo.url)
    await expect(wide.get_by_test_id("tile")).to_have_count(5)
    await wide.get_by_test_id("filter-running").click()
    await expect(wide).to_have_url(re.compile(r"state=running"))
    await wide.reload()
    running = wide.locator('[data-testid="tile"]:not([data-state="running"])')
    await expect(running).to_have_count(0)


async def test_machine_page_is_alive(demo: Demo, wide: Page) -> None:
    await wide.goto(demo.url)
    name = await machine_in(wide, "running")
    await wide.locator(f'[data-testid="tile"][data-machine="{name}"]').click()
    await expect(wide).to_have_url(re.compile(f"/machines/{name}"))
    await expect(wide.get_by_test_id("machine-page")).to_have_attribute("data-machine", name)
    for field in ("spindle_speed", "spindle_load_percent", "temperature", "feed_rate_actual", "total_power_kw"):
        await expect(wide.get_by_test_id(f"chart-{field}").locator("canvas")).to_be_visible()
    value = wide.get_by_test_id("value-total_power_kw")
    first = await value.get_attribute("data-value")
    await expect(value).not_to_have_attribute("data-value", first or "")


async def test_the_page_shows_what_the_api_says(demo: Demo, wide: Page) -> None:
    await wide.goto(demo.url)
    name = await machine_in(wide, "running", "idle", "hold")
    await wide.goto(f"{demo.url}/machines/{name}")
    await expect(wide.get_by_test_id("fact-program")).to_be_visible()
    sample = await wide.evaluate(
        "async id => (await (await fetch('/api/v1/machines')).json()).machines.find(m => m.id === id).last_sample", name
    )
    await expect(wide.get_by_test_id("fact-program")).to_contain_text(sample["program"])
    await expect(wide.get_by_test_id("fact-parts")).to_contain_text(str(sample["part_count"]))


async def test_a_machine_switched_off_is_offline_and_comes_back(demo: Demo, wide: Page) -> None:
    await wide.goto(demo.url)
    name = await machine_in(wide, "running", "idle", "hold", "alarm")
    tile = wide.locator(f'[data-testid="tile"][data-machine="{name}"]')
    control(demo, name, {"fault": "off"})
    try:
        await expect(tile).to_have_attribute("data-state", "offline")
        others = wide.locator('[data-testid="tile"]:not([data-state="offline"])')
        await expect(others).to_have_count(4)
    finally:
        control(demo, name, None)
    await expect(tile).not_to_have_attribute("data-state", "offline")


@pytest.mark.parametrize("part", ["ingest", "nats", "api", "postgres"])
async def test_the_page_recovers_when_a_part_is_killed(demo: Demo, wide: Page, part: str) -> None:
    await wide.goto(demo.url)
    name = await machine_in(wide, "running", "idle", "hold", "alarm")
    await wide.goto(f"{demo.url}/machines/{name}")
    value = wide.get_by_test_id("value-total_power_kw")
    await expect(value).to_have_attribute("data-value", re.compile(r"\d"))
    before = demo.pid(part)
    demo.kill(part)
    if part == "api":
        await expect(wide.get_by_test_id("connection")).to_have_attribute("data-state", "lost")
    for _ in range(300):
        if demo.pid(part) not in (None, before):
            break
        await asyncio.sleep(0.1)
    await expect(wide.get_by_test_id("connection")).to_have_attribute("data-state", "live")
    old = await value.get_attribute("data-value")
    await expect(value).not_to_have_attribute("data-value", old or "")


async def test_a_frozen_edge_is_named_and_its_machines_are_no_data_not_offline(demo: Demo, wide: Page) -> None:
    await wide.goto(demo.url)
    await machine_in(wide, "running", "idle", "hold", "alarm")
    await expect(wide.get_by_test_id("link-edges")).to_have_attribute("data-state", "good")
    with demo.frozen("agent"):
        bar = wide.get_by_test_id("edges-bar")
        await expect(bar).to_contain_text(re.compile(r"Edge edge silent since \d\d:\d\d.*: 5 machines unknown"))
        await expect(wide.get_by_test_id("link-edges")).to_have_attribute("data-state", "broken")
        await expect(wide.locator('[data-testid="tile"][data-state="no_data"]')).to_have_count(5)
        await expect(wide.locator('[data-testid="tile"][data-state="offline"]')).to_have_count(0)
        await expect(wide.get_by_test_id("link-page")).to_have_attribute("data-state", "good")
        await expect(wide.get_by_test_id("link-server")).to_have_attribute("data-state", "good")
    await expect(bar).to_have_count(0)
    await expect(wide.locator('[data-testid="tile"][data-state="no_data"]')).to_have_count(0)


async def test_a_frozen_database_is_named_and_no_machine_is_said_to_be_without_data(demo: Demo, wide: Page) -> None:
    """On a page that is open, and on one that is opened meanwhile."""
    await wide.goto(demo.url)
    await machine_in(wide, "running", "idle", "hold", "alarm")
    with demo.frozen("postgres"):
        for _ in range(2):
            await expect(wide.get_by_test_id("link-server")).to_have_attribute("data-state", "broken")
            await expect(wide.get_by_test_id("connection-bar")).to_contain_text("can't read its database")
            assert await wide.locator('[data-testid="tile"][data-state="no_data"]').count() == 0
            assert await wide.locator('[data-testid="tile"][data-state="offline"]').count() == 0
            await wide.reload()
    await expect(wide.get_by_test_id("link-server")).to_have_attribute("data-state", "good")


async def test_a_frozen_server_is_noticed_without_a_connection_that_ends(demo: Demo, wide: Page) -> None:
    await wide.goto(demo.url)
    await machine_in(wide, "running", "idle", "hold", "alarm")
    with demo.frozen("api"):
        await expect(wide.get_by_test_id("link-page")).to_have_attribute("data-state", "broken")
        await expect(wide.get_by_test_id("link-server")).to_have_attribute("data-state", "unknown")
        await expect(wide.get_by_test_id("connection-bar")).to_contain_text("Live connection lost")
    await expect(wide.get_by_test_id("link-page")).to_have_attribute("data-state", "good")


def live_clients(demo: Demo) -> int:
    with urllib.request.urlopen(f"{demo.url}/api/v1/status", timeout=WAIT_S_MAX) as answer:
        found: int = json.load(answer)["live_clients"]
    return found


async def test_twenty_tabs_are_live_by_one_stream(demo: Demo, wide: Page) -> None:
    """A browser opens six connections to a host: the seventh tab never loaded."""
    tabs = [wide, *[await wide.context.new_page() for _ in range(19)]]
    for tab in tabs:
        await tab.goto(demo.url)
        await expect(tab.get_by_test_id("tile")).to_have_count(5)
        await expect(tab.get_by_test_id("link-page")).to_have_attribute("data-state", "good")
    await until(lambda: live_clients(demo) == 1, what="one stream")
    name = await machine_in(wide, *STATES)
    for tab in tabs[:4]:
        await tab.goto(f"{demo.url}/machines/{name}")
        await expect(tab.get_by_test_id("link-page")).to_have_attribute("data-state", "good")
        value = tab.get_by_test_id("value-total_power_kw")
        before = await value.get_attribute("data-value")
        await expect(value).not_to_have_attribute("data-value", before or "")
    await until(lambda: live_clients(demo) == 2, what="one stream for the wall, and one for the machine")
    for tab in tabs[1:]:
        await tab.close()


async def test_without_a_shared_worker_a_hidden_tab_gives_its_stream_up(demo: Demo, wide: Page) -> None:
    await wide.add_init_script(
        "delete window.SharedWorker;"
        "Object.defineProperty(document, 'hidden', {get: () => window.isHidden === true, configurable: true});"
    )
    await wide.goto(demo.url)
    await expect(wide.get_by_test_id("link-page")).to_have_attribute("data-state", "good")
    await until(lambda: live_clients(demo) == 1, what="its own stream")
    turn = "hidden => { window.isHidden = hidden; document.dispatchEvent(new Event('visibilitychange')); }"
    await wide.evaluate(turn, True)
    await until(lambda: live_clients(demo) == 0, what="no stream")
    await wide.evaluate(turn, False)
    await until(lambda: live_clients(demo) == 1, what="its stream again")
    await expect(wide.get_by_test_id("link-page")).to_have_attribute("data-state", "good")


async def test_charts_are_zoomed_and_moved_by_keys(demo: Demo, wide: Page) -> None:
    await wide.goto(demo.url)
    name = await machine_in(wide, *STATES)
    await wide.goto(f"{demo.url}/machines/{name}")
    stack = wide.locator(".chart-stack")
    await expect(stack).to_be_visible()
    widths, ends = [], []
    for key in ("+", "+", "-", "Shift+ArrowLeft"):
        await stack.press(key)
        await expect(wide.get_by_test_id("range-zoomed")).to_be_visible()
        found = re.search(r"from=(\d+)&to=(\d+)", wide.url)
        assert found is not None, wide.url
        begin, end = map(int, found.groups())
        widths.append(round((end - begin) / 1000))
        ends.append(end)
    assert widths == [300, 150, 300, 300]
    assert ends[3] - ends[2] == -75_000
    await stack.press("0")
    await expect(wide.get_by_test_id("range-zoomed")).to_have_count(0)


async def test_the_machine_page_is_whole_on_paper(demo: Demo, wide: Page) -> None:
    """Charts were drawn for the screen, and cut off on paper; dark letters would be unreadable there."""
    await wide.emulate_media(color_scheme="dark")
    await wide.goto(demo.url)
    name = await machine_in(wide, *STATES)
    await wide.goto(f"{demo.url}/machines/{name}")
    await expect(wide.locator(".chart-canvas canvas").first).to_be_visible()
    await wide.emulate_media(media="print", color_scheme="dark")
    # As printing does: another width, and nobody draws anew.
    found = await wide.evaluate(
        """() => {
            document.documentElement.style.width = "700px";
            const sticksOut = e => e.checkVisibility() && e.getBoundingClientRect().right > 700.5;
            return {
                over: [...document.querySelectorAll(".frame *")].filter(sticksOut).map(e => e.className),
                text: getComputedStyle(document.body).color,
                heights: [...document.querySelectorAll(".uplot canvas")].map(e => e.getBoundingClientRect().height),
            };
        }"""
    )
    assert len(found["heights"]) >= 2
    assert min(found["heights"]) > 20
    assert found["over"] == []
    assert found["text"] == "rgb(26, 33, 39)"
    assert await wide.get_by_test_id("range-10m").is_visible(), "which time it is about"
    assert not await wide.get_by_test_id("range-1h").is_visible()


async def test_phone_in_german_fits(demo: Demo, phone: Page) -> None:
    await phone.goto(demo.url)
    await expect(phone.get_by_test_id("tile")).to_have_count(5)
    assert await phone.evaluate("document.documentElement.lang") == "de"
    await phone.get_by_test_id("tile").first.tap()
    await expect(phone.get_by_test_id("machine-page")).to_be_visible()
    await expect(phone.get_by_test_id("charts")).to_be_visible()
    for _ in range(2):
        overflow = await phone.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert overflow <= 0, "nothing sticks out sideways"
        await phone.goto(demo.url)


async def test_a_machine_that_is_not_there_says_so(demo: Demo, wide: Page) -> None:
    await wide.goto(f"{demo.url}/machines/nobody")
    await expect(wide.get_by_test_id("notice-unknown-machine")).to_be_visible()
