"""Opens the pages of a folder in Chromium, over its DevTools pipe, and says what is wrong with them.

look.py CHROMIUM FOLDER [SHOTS]: FOLDER has NAME.html and NAME.json, the words that the page must
show; pictures and PDFs are written to SHOTS.
"""

import base64
import json
import os
import pathlib
import subprocess
import sys
import tempfile

FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run
    --disable-background-networking --disable-component-update --disable-sync --disable-extensions
    --disable-dev-shm-usage --hide-scrollbars --remote-debugging-pipe""".split()
WIDTHS = {"phone": 320, "wide": 1400}

# Text against the colour behind it: WCAG 2.2, 1.4.3. Also what the page holds.
FACTS = """(() => {
  const part = (value) => { value /= 255; return value <= .04045 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4; };
  const colour = (text) => text.match(/[0-9.]+/g).map(Number);
  const light = ([r, g, b]) => .2126 * part(r) + .7152 * part(g) + .0722 * part(b);
  const contrast = (a, b) => { const [x, y] = [light(a), light(b)].sort((a, b) => b - a); return (x + .05) / (y + .05); };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      if (at.classList.contains("on")) {
        const drawn = at.parentElement.querySelector("." + (at.classList.contains("phase") ? "phases" : ["good", "heed", "bad"].find((it) => at.classList.contains(it))));
        return colour(getComputedStyle(drawn).fill);
      }
      const found = colour(getComputedStyle(at).backgroundColor);
      if (found.length < 4 || found[3] > 0) return found;
    }
  };
  const pale = new Set();
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || element.closest("svg, .hidden")) continue;
    const ratio = contrast(colour(getComputedStyle(element).color), behind(element));
    if (ratio < 4.5) pale.add(walk.currentNode.data.trim().slice(0, 40) + " " + ratio.toFixed(2));
  }
  const levels = [...document.querySelectorAll("h1, h2, h3")].map((it) => +it.tagName[1]);
  const ids = [...document.querySelectorAll("[id]")].map((it) => it.id);
  return {
    text: document.body.textContent,
    background: getComputedStyle(document.documentElement).backgroundColor,
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    wide: [...document.querySelectorAll("body *")].filter((it) => !it.closest(".scroll, svg, .hidden") && it.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map((it) => it.outerHTML.slice(0, 80)).slice(0, 5),
    headings: levels.filter((it) => it === 1).length,
    jumps: levels.filter((it, at) => at > 0 && it > levels[at - 1] + 1).length,
    nameless: [...document.querySelectorAll("svg[role=img]")].filter((it) => !it.querySelector("title")?.textContent || !it.querySelector("desc")?.textContent).length,
    bare: [...document.querySelectorAll("table")].filter((it) => !it.caption?.textContent || [...it.querySelectorAll("th")].some((th) => !th.scope)).length,
    landmarks: document.querySelectorAll("main").length + document.querySelectorAll("footer").length,
    twice: ids.length - new Set(ids).size,
    pale: [...pale],
  };
})()"""


class Browser:
    """Chromium, asked over two pipes: one JSON document, one zero byte."""

    def __init__(self, program, home):
        read_end, self.requests = os.pipe()
        self.answers, write_end = os.pipe()
        # Chromium takes requests at 3 and answers at 4, where other descriptors may be now.
        spare = [os.dup(read_end), os.dup(write_end)]
        order = f"exec \"$@\" 3<&{spare[0]} 4>&{spare[1]}"
        self.process = subprocess.Popen(
            ["sh", "-c", order, "sh", program, *FLAGS, f"--user-data-dir={home}", "about:blank"],
            pass_fds=spare, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        for end in [read_end, write_end, *spare]:
            os.close(end)
        self.buffer, self.count, self.events, self.session = b"", 0, [], None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ["Page", "Runtime", "Network", "Log"]:
            self.ask(f"{domain}.enable")

    def message(self):
        while b"\0" not in self.buffer:
            more = os.read(self.answers, 1 << 16)
            if not more:
                sys.exit("the browser has ended: " + str(self.process.wait()))
            self.buffer += more
        text, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(text)

    def ask(self, method, **params):
        self.count += 1
        request = {"id": self.count, "method": method, "params": params}
        if self.session:
            request["sessionId"] = self.session
        data = json.dumps(request).encode() + b"\0"
        while data:
            data = data[os.write(self.requests, data):]
        while (answer := self.message()).get("id") != self.count:
            self.events.append(answer)
        if "error" in answer:
            sys.exit(f"{method}: {answer['error']}")
        return answer["result"]

    def open(self, page):
        self.events = []
        self.ask("Page.navigate", url=page.as_uri())
        while not any(it.get("method") == "Page.loadEventFired" for it in self.events):
            self.events.append(self.message())

    def emulate(self, width, scheme):
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
        self.ask("Emulation.setEmulatedMedia", media="screen", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def evaluate(self, script):
        result = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            sys.exit(f"the page's check failed: {result['exceptionDetails']}")
        return result["result"].get("value")

    def picture(self, path):
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", captureBeyondViewport=True, format="png")["data"]))

    def pdf(self, path):
        self.ask("Emulation.setEmulatedMedia", media="", features=[])
        self.ask("Emulation.clearDeviceMetricsOverride")
        path.write_bytes(base64.b64decode(self.ask("Page.printToPDF", preferCSSPageSize=True, printBackground=False)["data"]))

    def end(self):
        self.ask("Browser.close")
        self.process.wait()


def spoken(events):
    """What the page asked for besides itself, and what the console says."""
    for event in events:
        method, params = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent" and not params["request"]["url"].startswith("file:"):
            yield f"asks for {params['request']['url'][:100]}"
        if method == "Network.requestWillBeSent" and params.get("type") != "Document":
            yield f"asks for a {params.get('type')}"
        if method in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            yield f"the console says {json.dumps(params)[:300]}"


def wrong(facts, words, width):
    plain = " ".join(facts["text"].split())
    yield from (f"lacks {word!r}" for word in words if " ".join(word.split()) not in plain)
    for name, wanted in [("headings", 1), ("jumps", 0), ("nameless", 0), ("bare", 0), ("landmarks", 2), ("twice", 0), ("overflow", 0), ("wide", []), ("pale", [])]:
        if facts[name] != wanted:
            yield f"{name} at {width} px: {facts[name]}, not {wanted}"


def look(browser, page, words, shots):
    """What is wrong with a page."""
    faults, backgrounds = [], set()
    for scheme in ["light", "dark"]:
        for label, width in WIDTHS.items():
            browser.emulate(width, scheme)
            browser.open(page)
            faults += spoken(browser.events)
            facts = browser.evaluate(FACTS)
            backgrounds.add((scheme, facts["background"]))
            faults += wrong(facts, words, width)
            if shots:
                browser.picture(shots / f"{page.stem}-{scheme}-{label}.png")
    if len({colour for _, colour in backgrounds}) != 2:
        faults.append(f"light and dark do not differ: {sorted(backgrounds)}")
    if shots:
        browser.pdf(shots / f"{page.stem}.pdf")
    return sorted(set(faults))


def main():
    program, folder = sys.argv[1], pathlib.Path(sys.argv[2]).resolve()
    shots = pathlib.Path(sys.argv[3]) if len(sys.argv) > 3 else None
    if shots:
        shots.mkdir(parents=True, exist_ok=True)
    pages, failed = sorted(folder.glob("*.html")), False
    if not pages:
        sys.exit(f"no pages in {folder}")
    with tempfile.TemporaryDirectory() as home:
        browser = Browser(program, home)
        for page in pages:
            faults = look(browser, page, json.loads(page.with_suffix(".json").read_text()), shots)
            failed |= bool(faults)
            print(f"{page.stem}: {'ok' if not faults else ''}")
            for fault in faults:
                print(f"    {fault}")
        browser.end()
    sys.exit(1 if failed else 0)


main()
