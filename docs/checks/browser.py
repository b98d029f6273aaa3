"""Opens every page of the built site in Chromium, on a desktop and a phone, light and dark.

    pip install playwright && apt-get install chromium
    python docs/checks/browser.py SITE             # the folder that mkdocs built
    python docs/checks/browser.py SITE SCREENSHOTS

It fails where a block is wider than its column, code is cut off on a desktop, the console shows an
error, a page asks another host for something, or the search does not find `vmap` on each page that
has it. Screenshots of whole pages are kept where a folder is given.
"""

import argparse
import contextlib
import functools
import http.server
import itertools
import pathlib
import re
import shutil
import sys
import threading

from playwright.sync_api import sync_playwright

WIDTHS = {"desktop": 1280, "phone": 390}
MODES = ("light", "dark")

# What sticks out of the column of text, unless something around it scrolls.
STICKING_OUT = """() => {
  const column = document.querySelector('.md-content__inner').getBoundingClientRect();
  const scrolls = e => e && (/auto|scroll|hidden/.test(getComputedStyle(e).overflowX)
                             || scrolls(e.parentElement));
  const found = [...document.querySelectorAll('.md-content__inner *')].filter(e => {
    const box = e.getBoundingClientRect();
    return box.width && box.right > column.right + 1 && !scrolls(e.parentElement);
  });
  if (document.documentElement.scrollWidth > window.innerWidth) found.push(document.body);
  return found.map(e => `${e.tagName} ${e.className}: ${e.textContent.trim().slice(0, 60)}`);
}"""
CUT_OFF = """() => [...document.querySelectorAll('.md-content pre > code')]
  .filter(e => e.scrollWidth > e.clientWidth + 1)
  .map(e => e.textContent.split('\\n').sort((a, b) => b.length - a.length)[0])"""
# Scrolls the list of results, which grows as it is scrolled, and says whether all are there.
ALL_RESULTS = """() => {
  const list = document.querySelector('.md-search__scrollwrap');
  list.scrollTop = 0;
  list.scrollTop = list.scrollHeight;
  const number = parseInt(document.querySelector('.md-search-result__meta').textContent);
  return document.querySelectorAll('.md-search-result__item').length >= number;
}"""
# How far down the whole page goes in a screenshot, in pixels.
TALLEST = 16_000


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def served(site):
    handler = functools.partial(Quiet, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class Browsing:
    """A window of one size and mode, and what was wrong with the pages that it opened."""

    def __init__(self, browser, address, device, mode):
        self.address, self.device, self.faults = address, device, []
        size = {"width": WIDTHS[device], "height": 900}
        self.window = browser.new_context(viewport=size, color_scheme=mode).new_page()
        self.window.on("request", self.check_request)
        self.window.on("pageerror", lambda error: self.note(f"script: {error}"))
        self.window.on("console", self.check_message)
        self.name = f"{device}, {mode}"
        self.page = ""

    def note(self, fault):
        self.faults.append(f"{self.page or 'index'} ({self.name}): {fault}")

    def check_request(self, request):
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.note(f"asks for {request.url}")

    def check_message(self, message):
        if message.type in ("error", "warning"):
            self.note(f"console: {message.text}")

    def visit(self, page):
        self.page = page
        self.window.goto(self.address + page, wait_until="load")
        for fault in self.window.evaluate(STICKING_OUT):
            self.note(f"wider than its column: {fault}")
        if self.device == "desktop":
            for line in self.window.evaluate(CUT_OFF):
                self.note(f"code is cut off: {line}")

    def photograph(self, folder):
        height = self.window.evaluate("document.documentElement.scrollHeight")
        size = {"x": 0, "y": 0, "width": WIDTHS[self.device], "height": min(height, TALLEST)}
        file = f"{self.page.strip('/').replace('/', '-') or 'index'}-{self.name.replace(', ', '-')}"
        self.window.screenshot(path=folder / f"{file}.png", full_page=True, clip=size)


def explorer_faults(window, address):
    """Yield the controls of the explorer that do not move its curve."""
    window.goto(f"{address}explorer/", wait_until="load")
    curve = window.locator("#schedule-explorer .curve")
    menu = window.locator("#schedule-explorer select.schedule")
    for schedule in menu.locator("option").all_inner_texts():
        menu.select_option(schedule)
        for control in window.locator("#schedule-explorer label").all():
            before = curve.get_attribute("d")
            if control.locator("select").count():
                control.locator("select").select_option(index=1)
            else:
                control.locator("input").focus()
                for key in ("Home", "ArrowRight", "ArrowRight"):
                    window.keyboard.press(key)
            after = curve.get_attribute("d")
            if after == before or "NaN" in after:
                yield f"explorer: {control.inner_text()} of {schedule} does nothing, or gives NaN"


def pages_found(window, address, word):
    """Return the pages that the search offers for a word, by their addresses in the site."""
    window.goto(f"{address}?q={word}", wait_until="load")
    window.wait_for_selector(".md-search-result__link")
    window.wait_for_function(ALL_RESULTS)
    links = window.eval_on_selector_all(
        ".md-search-result__link", "links => links.map(link => link.href)"
    )
    return {re.split(r"[?#]", link.removeprefix(address))[0] for link in links}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("site", type=pathlib.Path)
    parser.add_argument("screenshots", type=pathlib.Path, nargs="?")
    parser.add_argument("--browser", help="the program", default=shutil.which("chromium"))
    parser.add_argument("--only", help="the pages to open, as a regular expression", default="")
    arguments = parser.parse_args()
    pages = [page for page in pages_of(arguments.site) if re.search(arguments.only, page)]
    faults = []
    with served(arguments.site) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=arguments.browser)
        for device, mode in itertools.product(WIDTHS, MODES):
            browsing = Browsing(browser, address, device, mode)
            for page in pages:
                browsing.visit(page)
                if arguments.screenshots:
                    browsing.photograph(arguments.screenshots)
            faults += browsing.faults
        faults += explorer_faults(browsing.window, address)
        wanted = {page for page in pages if "vmap" in text_of(arguments.site, page)}
        missed = wanted - pages_found(browsing.window, address, "vmap")
        faults += [f"{page}: the search for vmap does not find it" for page in missed]
        browser.close()
    print(*faults, f"{len(pages)} pages in a browser: {len(faults)} faults", sep="\n")
    sys.exit(bool(faults))


def pages_of(site):
    """Return the addresses of the pages in the site: "" is the first."""
    parents = [path.parent.relative_to(site) for path in site.rglob("index.html")]
    return sorted(f"{parent.as_posix()}/" if parent.name else "" for parent in parents)


def text_of(site, page):
    """Return the words of a page itself, without those of menus."""
    whole = (site / page / "index.html").read_text()
    return re.sub(r"<[^>]*>", "", re.search(r"<article.*?</article>", whole, re.DOTALL)[0])


if __name__ == "__main__":
    main()
