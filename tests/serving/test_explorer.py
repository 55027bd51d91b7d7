"""The explorer: what the page holds, and what it does in a real browser."""

import json
import os
import re
import shutil
import subprocess
import threading
import time
from html.parser import HTMLParser

import pytest

from tfcsmf.serving import Client

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


class Page(HTMLParser):
    """Ids, labels, and whatever would be loaded from elsewhere."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.labelled, self.links = {}, set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if "id" in given:
            assert given["id"] not in self.ids
            self.ids[given["id"]] = tag
        self.labelled.add(given.get("for"))
        names = ("src", "href", "action", "data", "srcset")
        self.links += [given[name] for name in names if name in given]


def test_the_page_is_whole_and_loads_nothing_from_elsewhere(cascade, tools):
    answer = tools.call(cascade.url + "/explorer")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy
    page = Page(answer.text)
    assert page.links == []
    assert not re.search(
        r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(", answer.text
    )
    wanted = {"items": "ol", "curve": "svg", "user": "input", "weights": "div"}
    assert wanted.items() <= page.ids.items()
    # What the script looks up is there.
    used = set(re.findall(r'\$\("(\w+)"\)', answer.text))
    assert used and used <= page.ids.keys()
    assert answer.text.count("<script>") == 1


def test_the_paths_it_asks_for_are_there(cascade, running, tools):
    models = tools.call(cascade.url + "/tfcsmf/v1/models").json
    assert models == {"models": ["cascade"]}
    assert tools.call(running.url + "/tfcsmf/v1/models").json["models"] == [
        *("half", "mixed")
    ]
    text = tools.call(cascade.url + "/explorer").text
    for path in ("/tfcsmf/v1/models", "/description", "/v1/models/", ":predict"):
        assert path in text


def test_its_script_is_sound(cascade, tools, tmp_path):
    if not shutil.which("node"):
        pytest.skip("needs node to check the syntax of the page's script")
    text = tools.call(cascade.url + "/explorer").text
    (script,) = re.findall(r"<script>(.*)</script>", text, re.DOTALL)
    (tmp_path / "page.js").write_text(script, encoding="utf-8")
    done = subprocess.run(
        ["node", "--check", str(tmp_path / "page.js")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


class Browser:
    """A page in headless Chromium, by its DevTools protocol over pipes."""

    def __init__(self, program, folder):
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        command = [
            *(program, "--headless", "--no-sandbox", "--disable-gpu"),
            *("--remote-debugging-pipe", f"--user-data-dir={folder}"),
            *("--disable-dev-shm-usage", "--no-first-run", "about:blank"),
        ]
        # The browser's end is at 3 and 4.
        script = f'exec "$@" 3<&{to_read} 4>&{to_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", *command],
            pass_fds=(to_read, to_write),
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        # A browser that hangs ends, and with it all that waits for its answers.
        self._watchdog = threading.Timer(100, self._process.kill)
        self._watchdog.start()
        self._number, self._buffer, self._session = 0, b"", None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]

    def send(self, method, **parameters):
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._buffer:
                part = os.read(self._read, 65536)
                assert part, "the browser ended"
                self._buffer += part
            text, _, self._buffer = self._buffer.partition(b"\0")
            answer = json.loads(text)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def run(self, script):
        done = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def open(self, url):
        self.send("Page.navigate", url="about:blank")
        self.send("Page.navigate", url=url)
        self.settle()

    def settle(self):
        deadline = time.monotonic() + 40
        while self.run("document.body && document.body.dataset.state") != "ready":
            assert time.monotonic() < deadline, "the page is not ready"
            time.sleep(0.02)

    def change(self, selector, value):
        """Sets a field as a person does, and waits for the answer."""
        script = (
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            f"e.value = {json.dumps(value)};"
            "e.dispatchEvent(new Event('input', {bubbles: true})); })()"
        )
        self.run(script)
        self.settle()

    def items(self):
        """Returns item id, score and contribution by objective of every place."""
        return self.run(
            """[...document.querySelectorAll("#items li[data-item]")].map((li) => {
              const bar = [...li.querySelectorAll("[data-objective]")];
              const { item: id, score } = li.dataset;
              const parts = bar.map(({ dataset: d }) => [d.objective, Number(d.value)]);
              return { id, score: Number(score), parts: Object.fromEntries(parts) };
            })"""
        )

    def close(self):
        self._watchdog.cancel()
        self._process.kill()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"needs a browser: none of {', '.join(BROWSERS)} is installed")
    browser = Browser(program, tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


def check(shown, expected, weights):
    assert [item["id"] for item in shown] == [item.item_id for item in expected]
    for item, other in zip(shown, expected, strict=True):
        assert item["score"] == pytest.approx(other.score, rel=1e-4, abs=1e-5)
        assert sum(item["parts"].values()) == pytest.approx(item["score"], abs=1e-4)
        for name, value in item["parts"].items():
            own = weights[name] * other.objective_scores[name]
            assert value == pytest.approx(own, rel=1e-3, abs=1e-5)


WEIGHTS = {"exposure": 1.0, "click": 1.0, "conversion": 1.0}
USER = {"user_id": "u3", "histories": {"click": ["i2"]}}


def test_the_list_follows_the_sliders(browser, cascade):
    browser.open(f"{cascade.url}/explorer#user=u3&history.click=i2&k=8")
    with Client(cascade.url) as client:
        first = client.retrieve(**USER, k=8, exclude=["i2"])
        check(browser.items(), first, WEIGHTS)
        browser.change("input[type=range][data-objective=click]", -1)
        turned = client.retrieve(**USER, k=8, exclude=["i2"], weights={"click": -1})
        check(browser.items(), turned, WEIGHTS | {"click": -1.0})
        assert turned != first
        # A link to what is seen.
        link = browser.run("location.href")
        browser.open(link)
        check(browser.items(), turned, WEIGHTS | {"click": -1.0})
        browser.run("document.getElementById('reset').click()")
        browser.settle()
        check(browser.items(), first, WEIGHTS)
    assert browser.run("document.getElementById('message').textContent") == ""
    elsewhere = (
        "performance.getEntriesByType('resource').map(e => e.name)"
        ".filter(name => !name.startsWith(location.origin))"
    )
    assert browser.run(elsewhere) == []


def test_an_item_is_taken_into_the_history(browser, cascade):
    browser.open(f"{cascade.url}/explorer#user=u3&history.click=i2&k=8")
    first = browser.items()[0]["id"]
    browser.run("document.getElementById('target').value = 'click'")
    browser.run("document.querySelector('#items .add').click()")
    browser.settle()
    field = "document.querySelector('#histories [data-event=click]').value"
    assert browser.run(field) == f"i2, {first}"
    histories = {"click": ["i2", first]}
    with Client(cascade.url) as client:
        expected = client.retrieve("u3", histories, k=8, exclude=["i2", first])
    check(browser.items(), expected, WEIGHTS)


def test_filters_and_the_number_of_items(browser, cascade):
    browser.open(f"{cascade.url}/explorer#user=u3&k=30")
    with Client(cascade.url) as client:
        values = client.description()["filters"]["category"]["examples"][:4]
        browser.change("#filters [data-name=category]", ", ".join(values))
        expected = client.retrieve("u3", k=30, filters={"category": values})
        assert 0 < len(expected) < 30
        check(browser.items(), expected, WEIGHTS)
        browser.change("#filters [data-name=category]", "none such")
    assert browser.items() == []


def test_the_curve_trades_one_objective_for_the_other(browser, cascade):
    browser.open(f"{cascade.url}/explorer#user=u3&k=8")
    points = browser.run(
        "[...document.querySelectorAll('#curve circle')].map("
        "c => [c.getAttribute('class'), Number(c.dataset.x), Number(c.dataset.y)])"
    )
    assert [kind for kind, *_ in points] == ["point"] * 11 + ["now"]
    chosen = [
        {"exposure": 2 - 2 * step / 10, "conversion": 2 * step / 10}
        for step in range(11)
    ] + [{}]
    with Client(cascade.url) as client:
        for weights, (_, across, up) in zip(chosen, points, strict=True):
            items = client.retrieve("u3", k=8, weights=weights)
            for name, value in (("exposure", across), ("conversion", up)):
                scores = [item.objective_scores[name] for item in items]
                mean = sum(scores) / len(scores)
                assert value == pytest.approx(mean, rel=1e-3, abs=1e-5)


def test_a_model_that_is_not_ours_is_explained(browser, running):
    browser.open(f"{running.url}/explorer")
    message = browser.run("document.getElementById('message').textContent")
    assert "no export of tfcsmf" in message
