"""The built site in a real browser: links, anchors, errors, requests elsewhere, and a phone's width.

``make docs`` builds the site and runs this file; the suite does not, because a build executes the notebooks.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
from playwright.sync_api import Page, sync_playwright

import qubo_compress as qc
from tests.test_public_names import ROOMS, public

SITE = Path(__file__).parents[2] / "out" / "site"
CHROMIUM = "/usr/bin/chromium"
PHONE = 400
LOOK = """() => ({
    links: [...document.querySelectorAll('a[href]')].map(a => a.href),
    sources: [...document.querySelectorAll('img[src]')].map(i => i.naturalWidth ? '' : i.src),
    untold: [...document.querySelectorAll('article img:not([alt]), article img[alt=""]')].map(i => i.src.slice(0, 80)),
    ids: [...document.querySelectorAll('[id]')].map(e => e.id),
    wide: document.documentElement.scrollWidth,
    title: document.title,
    first: document.querySelectorAll('article h1').length,
})"""


@dataclass
class Visit:
    """What the browser saw on one page."""

    links: list[str]
    sources: list[str]
    untold: list[str]
    ids: list[str]
    wide: int
    title: str
    first: int
    errors: list[str] = field(default_factory=list)


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and logs nothing."""

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def visited(page: Page, url: str, address: str, said: list[str]) -> Visit:
    """One page, as the browser has it once everything is loaded."""
    said.clear()
    answer = page.goto(url, wait_until="load")
    found = Visit(**page.evaluate(LOOK))
    found.errors = [f"{url}: {line}" for line in said]
    if answer is None or not answer.ok:
        found.errors.append(f"{url}: {answer and answer.status}")
    return found


@pytest.fixture(scope="module")
def visits(address: str) -> dict[str, Visit]:
    """Every page that can be reached from the first one, at a phone's width."""
    assert (SITE / "index.html").is_file(), f"build the site first: make docs (no {SITE / 'index.html'})"
    if not Path(CHROMIUM).is_file():
        pytest.skip(f"no {CHROMIUM} on this machine: the site was built, and not opened in a browser")
    found: dict[str, Visit] = {}
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": PHONE, "height": 800})
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on(  # what is still loading when the next page is opened is aborted
            "requestfailed",
            lambda request: said.append(f"failed: {request.url}") if request.failure != "net::ERR_ABORTED" else None,
        )
        page.on(
            "request",
            lambda request: (
                said.append(f"elsewhere: {request.url}")
                if not request.url.startswith((address, "data:", "blob:"))
                else None
            ),
        )
        waiting = [address]
        while waiting:
            url = waiting.pop()
            if url in found:
                continue
            found[url] = visited(page, url, address, said)
            inside = {urldefrag(link).url for link in found[url].links if link.startswith(address)}
            waiting += [link for link in inside if link.endswith(("/", ".html"))]
        browser.close()
    return found


def test_every_page_of_the_build_is_visited(visits: dict[str, Visit], address: str) -> None:
    built = {
        address + path.relative_to(SITE).as_posix().removesuffix("index.html") for path in SITE.rglob("index.html")
    }
    assert len(built) > 60 and built <= set(visits), sorted(built - set(visits))


def test_no_link_is_broken(visits: dict[str, Visit], address: str) -> None:
    broken = []
    for url, visit in visits.items():
        for link in {link for link in visit.links if link.startswith(address)}:
            whole, anchor = urldefrag(link)
            if whole in visits:
                if anchor and unquote(anchor) not in visits[whole].ids:
                    broken.append(f"{url}: {link}: no such place")
            elif not (SITE / unquote(whole.removeprefix(address))).is_file():
                broken.append(f"{url}: {link}: no such file")
    assert broken == []
    assert sum(len(visit.links) for visit in visits.values()) > 1_000


def test_no_errors_and_no_requests_elsewhere(visits: dict[str, Visit]) -> None:
    assert [line for visit in visits.values() for line in visit.errors] == []


def test_pages_fit_a_phone(visits: dict[str, Visit]) -> None:
    assert {url: visit.wide for url, visit in visits.items() if visit.wide > PHONE} == {}


def test_pages_have_one_title_and_pictures_that_are_there_and_described(visits: dict[str, Visit]) -> None:
    assert [url for url, visit in visits.items() if visit.first != 1 or not visit.title] == []
    assert [source for visit in visits.values() for source in visit.sources if source] == []
    plain = [url for url, visit in visits.items() if visit.untold and "/notebooks/" not in url]
    assert plain == []  # pictures of notebooks are drawn by code, whose cell says what they show


def path_of(value: object) -> str:
    """Where a class or function is defined."""
    named = inspect.isroutine(value) or inspect.isclass(value)
    return f"{value.__module__}.{value.__qualname__}" if named else ""


def test_every_public_name_is_documented(visits: dict[str, Visit]) -> None:
    """Rooms' names stand in the reference under the room's path or their own."""
    ids = {name for url, visit in visits.items() if "/reference/" in url for name in visit.ids}
    missing = []
    for room in ROOMS:
        module = importlib.import_module(f"qubo_compress.{room}")
        for name in public(room):
            value = getattr(module, name)
            if not {f"qubo_compress.{room}.{name}", path_of(value)} & ids:
                missing.append(f"{room}.{name}")
    for name in qc.__all__:
        value = getattr(qc, name)
        places = {f"qubo_compress.{room}.{name}" for room in ROOMS} | {path_of(value)}
        if not inspect.ismodule(value) and not places & ids:
            missing.append(name)
    assert missing == []


def test_machines_find_every_page(visits: dict[str, Visit]) -> None:
    """``llms.txt`` lists each page with its text and what it says."""
    lines = [line for line in (SITE / "llms.txt").read_text(encoding="utf-8").splitlines() if line.startswith("- [")]
    assert len(lines) > 50
    for line in lines:
        path, said = line.partition("](")[2].partition("): ")[::2]
        assert (SITE / path).is_file() and (said or "notebooks/" in path), line
        text = (SITE / path).read_text(encoding="utf-8")
        assert not re.search(r"^::: ", text, re.MULTILINE), f"{path} lacks its docstrings"
        for target in re.findall(r"\]\(((?!\w+:)[^)\s#]+\.md)", text):
            assert (SITE / path).parent.joinpath(target).is_file(), f"{path} links to {target}"
