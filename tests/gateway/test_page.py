"""The page at `/`: who gets it, what a browser lets it do, and what it shows."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import sqlite3
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.dialects.large import MOST
from gateway.page.resources import STATIC
from gateway.store import key_store
from gateway.store.key_store import KeyStore, Terms, UsageRow
from tests.chromium import PROGRAM, Chromium
from tests.gateway.conftest import PATIENCE, GatewayProcess, Keys, NeuronThread, eventually

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
FILES = {"/": "text/html", "/page.css": "text/css", "/page.js": "text/javascript"}

needs_chromium = pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium")


# --- who gets it ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("accept", [BROWSER, "text/html", "text/html;q=0.9, application/json;q=0.1"])
def test_who_would_rather_have_html_gets_the_page(http: httpx.Client, accept: str) -> None:
    answer = http.get("/", headers={"accept": accept})
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.text == (STATIC / "index.html").read_text()
    assert "Accept" in answer.headers["vary"]


@pytest.mark.parametrize("accept", [None, "*/*", "application/json", "text/html;q=0.5, */*", "text/*;q=0.1"])
def test_all_others_are_told_what_runs_here(http: httpx.Client, accept: str | None) -> None:
    headers = {} if accept is None else {"accept": accept}
    answer = http.get("/", headers=headers)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == http.get("/version").json()
    assert "Accept" in answer.headers["vary"]


@pytest.mark.parametrize("path", FILES)
def test_each_file_is_asked_for_again_and_sent_when_it_has_changed(http: httpx.Client, path: str) -> None:
    headers = {"accept": BROWSER}
    answer = http.get(path, headers=headers)
    assert answer.headers["content-type"] == f"{FILES[path]}; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    same = http.get(path, headers=headers | {"if-none-match": answer.headers["etag"]})
    assert (same.status_code, same.content) == (304, b"")
    assert same.headers["etag"] == answer.headers["etag"]
    assert http.get(path, headers=headers | {"if-none-match": '"other"'}).content == answer.content
    head = http.head(path, headers=headers)
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(answer.content)))


@pytest.mark.parametrize("path", FILES)
def test_the_page_may_run_and_ask_nothing_but_what_is_ours(http: httpx.Client, path: str) -> None:
    headers = http.get(path, headers={"accept": BROWSER}).headers
    policy = dict(
        each.strip().split(" ", 1) for each in headers["content-security-policy"].rstrip(";").split(";")
    )
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in headers["content-security-policy"]
    assert policy["require-trusted-types-for"] == "'script'"  # a browser that knows it lets no text be markup
    assert headers["x-content-type-options"] == "nosniff"


class Inline(HTMLParser):
    """Notes what such a policy would forbid, and where the page's files are."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.links: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        if tag == "style" or (tag == "script" and not names.get("src")):
            self.found.append(tag)
        self.found += [name for name in names if name.startswith("on") or name == "style"]
        self.links |= {names[name] for name in ("src", "href") if names.get(name)}


def test_nothing_stands_inline_and_nothing_comes_from_elsewhere() -> None:
    page = Inline()
    page.feed((STATIC / "index.html").read_text())
    assert page.found == []
    assert {link for link in page.links if not link.startswith("#")} == {"data:,", "page.css", "page.js"}
    script = (STATIC / "page.js").read_text().replace("http://www.w3.org/2000/svg", "")  # a name
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|https?:", script)
    assert not re.search(r"url\(|@import", (STATIC / "page.css").read_text())


# --- whose key says what --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def admin(keys: Keys) -> str:
    return keys.create("root", "--admin")


def ask(gateway: GatewayProcess, path: str, key: str | None, **body: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    url, settings = f"{gateway.base}{path}", {"headers": headers, "timeout": PATIENCE, "trust_env": False}
    return httpx.post(url, json=body, **settings) if body else httpx.get(url, **settings)


def test_the_page_needs_no_key_and_what_it_shows_does(
    guarded: GatewayProcess, admin: str, keys: Keys
) -> None:
    assert all(ask(guarded, path, None).status_code == 200 for path in FILES)
    plain = keys.create("plain")
    for path in ("/admin/keys", "/admin/usage", "/admin/history"):
        statuses = [ask(guarded, path, key).status_code for key in (None, plain, admin)]
        assert statuses == [401, 403, 200], path


def test_administrators_see_keys_and_what_they_used_but_no_secret(
    guarded: GatewayProcess, admin: str, keys: Keys
) -> None:
    key = keys.create("ann", "--model", "echo", "--tokens-per-day", "5000")
    hello = [{"role": "user", "content": "one two three"}]
    for _ in range(2):
        assert ask(guarded, "/v1/chat/completions", key, model="echo", messages=hello).status_code == 200

    told = ask(guarded, "/admin/keys", admin)
    (ann,) = [each for each in told.json()["data"] if each["name"] == "ann"]
    assert ann["terms"] == {"models": ["echo"], "tokens_per_day": 5000}
    assert (ann["expires"], ann["revoked"]) == (None, None)
    assert key not in told.text
    assert hashlib.sha256(key.encode()).hexdigest() not in told.text
    assert "digest" not in told.text

    def used() -> list[dict[str, Any]]:
        rows = ask(guarded, "/admin/usage?days=1", admin).json()["data"]
        return [row for row in rows if row["key"] == ann["id"] and row["requests"] == 2]

    (row,) = eventually(used, "both are noted")
    assert (row["model"], row["prompt_tokens"], row["completion_tokens"]) == ("echo", 6, 6)


@pytest.mark.parametrize("days", ["0", "x", "-1", "99999"])
def test_days_that_are_none_are_refused(guarded: GatewayProcess, admin: str, days: str) -> None:
    answer = ask(guarded, f"/admin/usage?days={days}", admin)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "days")


def test_thousands_of_keys_and_what_they_used_are_told_whole(neuron: NeuronThread, tmp_path: Path) -> None:
    day = time.strftime("%Y-%m-%d", time.gmtime())
    names = [f"key_{number:05}" for number in range(3000)]

    def fill(db: sqlite3.Connection) -> None:
        for name in names:
            key_store.add(db, name, name.encode(), name, None, Terms(models=("a*",)))
        key_store.use(db, [UsageRow(name, "m" * 60, day, 1, 2, 3, 4) for name in names])

    async def make() -> None:
        store = KeyStore(tmp_path / "keys.db", PATIENCE)
        await store.write(fill)
        store.close()

    asyncio.run(make())
    process = GatewayProcess(tmp_path, neuron.endpoint)
    try:
        process.wait_ready()
        keys, used = (ask(process, f"/admin/{what}", None) for what in ("keys", "usage"))
        assert [key["id"] for key in keys.json()["data"]] == names
        assert [row["key"] for row in used.json()["data"]] == names
        assert used.json()["since"] < day
        assert min(len(keys.content), len(used.content)) > MOST  # in pieces
    finally:
        process.stop()


def test_the_history_is_that_of_all_processes(guarded: GatewayProcess, admin: str) -> None:
    before = ask(guarded, "/admin/history", admin).json()["data"]
    assert before == sorted(before, key=lambda each: each["time"])
    assert time.time() - before[-1]["time"] < PATIENCE
    hello = [{"role": "user", "content": "one two three"}]
    for _ in range(8):  # each a connection of its own, to either process
        ask(guarded, "/v1/chat/completions", admin, model="echo", messages=hello)

    def counted() -> dict[str, Any] | None:
        last = ask(guarded, "/admin/history", admin).json()["data"][-1]
        return last if last["requests"] - before[-1]["requests"] == 8 else None

    last = eventually(counted, "all of them are counted")
    assert last["completion_tokens"] - before[-1]["completion_tokens"] == 24
    assert last["first_tokens"]["+Inf"] - before[-1]["first_tokens"].get("+Inf", 0) == 8


# --- in a browser ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    chromium = Chromium(tmp_path_factory.mktemp("chromium"))
    try:
        yield chromium
    finally:
        chromium.close()


@pytest.fixture
def page(browser: Chromium, gateway: GatewayProcess) -> Iterator[Chromium]:
    """The page of a gateway where nobody needs a key, on a telephone; it has nothing to complain of."""
    browser.size(390, 844)
    browser.complaints.clear()
    browser.open(f"{gateway.base}/")
    browser.wait("document.querySelector('#chat-model option[value=echo]') !== null")
    yield browser
    assert browser.complaints == []


def say(page: Chromium, model: str, text: str) -> None:
    page.run(
        f"document.getElementById('chat-model').value = {json.dumps(model)};"
        f"document.getElementById('text').value = {json.dumps(text)};"
        "document.getElementById('chat-form').requestSubmit()"
    )


def last_turn(page: Chromium) -> str:
    return page.run("[...document.querySelectorAll('.turn')].at(-1).innerText")


IDLE = "!document.getElementById('send').disabled"


@needs_chromium
def test_it_shows_the_fleet_and_fits_a_telephone(page: Chromium) -> None:
    page.wait("document.querySelector('#neurons [role=meter]')?.getAttribute('aria-valuenow') === '50'")
    assert "512 MiB of 1.0 GiB used" in page.run("document.getElementById('neurons').innerText")
    assert "org/echo" in page.run("document.getElementById('places').innerText")
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    unnamed = (
        "[...document.querySelectorAll('button, input, select, textarea, [role=meter]')].filter((node) => "
        "!(node.textContent || node.ariaLabel || node.labels?.length)).map((node) => node.outerHTML)"
    )
    assert page.run(unnamed) == []


@needs_chromium
def test_the_dark_is_dark_and_text_stands_out(page: Chromium) -> None:
    luminance = (
        "((name) => getComputedStyle(document.body)[name].match(/\\d+/g).slice(0, 3)"
        ".reduce((sum, each) => sum + Number(each), 0) / 765)"
    )
    for dark in (False, True):
        page.size(390, 844, dark)
        paper, ink = (page.run(f"{luminance}('{name}')") for name in ("backgroundColor", "color"))
        assert (paper < ink) is dark
        assert abs(paper - ink) > 0.7


@needs_chromium
def test_the_chat_shows_reasoning_calls_and_speed(page: Chromium, neuron: NeuronThread) -> None:
    say(page, "tools", "add 1")
    page.wait(IDLE)
    text = last_turn(page)
    for part in ("hm", "so", 'add {"a":1}', "3 read", "4 written", "first after"):
        assert part in text
    say(page, "tools", "it is 2")  # the answer of the tool
    page.wait(f"{IDLE} && document.querySelectorAll('.turn').length === 4")
    sent = neuron.neuron.served[-1].messages
    assert [each.role for each in sent] == ["user", "assistant", "tool"]
    assert (sent[1].tool_calls[0].name, sent[2].tool_call_id) == ("add", "call_1")
    say(page, "slow", "a b c d e f g h")
    page.wait(f"{IDLE} && document.querySelectorAll('.turn').length === 6")
    assert "tokens/s" in last_turn(page)


@needs_chromium
def test_what_models_say_is_text(page: Chromium) -> None:
    evil = "<img/src=x/onerror=document.title='taken'><script>document.title='taken'</script>"
    say(page, "echo", evil)
    page.wait(IDLE)
    assert evil in last_turn(page)
    assert page.run("document.title") == "cortex"
    assert page.run("document.querySelectorAll('main img, main script').length") == 0


@needs_chromium
def test_a_browser_holds_the_page_to_its_policy(browser: Chromium, gateway: GatewayProcess) -> None:
    browser.open(f"{gateway.base}/")
    script = "try { document.body.innerHTML = '<b>' } catch (error) { error.name }"
    assert browser.run(script) == "TypeError"
    browser.complaints.clear()
    browser.run(
        "const style = document.createElement('style'); style.textContent = 'body { display: none }';"
        "document.head.append(style)"
    )
    assert browser.run("getComputedStyle(document.body).display") == "block"
    assert any("Content Security Policy" in each for each in browser.complaints)


@needs_chromium
def test_a_new_conversation_knows_nothing_of_the_last(page: Chromium, neuron: NeuronThread) -> None:
    say(page, "slow", "a b c d e f g h i j k l m n o p")
    page.wait("[...document.querySelectorAll('.turn .said')].at(-1).textContent.startsWith('a b')")
    page.run("document.getElementById('clear').click()")
    page.wait(f"{IDLE} && document.querySelectorAll('.turn').length === 0")
    say(page, "echo", "hello")
    page.wait(f"{IDLE} && document.querySelectorAll('.turn').length === 2")
    assert len(neuron.neuron.served[-1].messages) == 1


@needs_chromium
def test_an_answer_that_waits_says_why_and_can_be_stopped(page: Chromium, neuron: NeuronThread) -> None:
    say(page, "cold", "hello")
    page.wait("[...document.querySelectorAll('.turn')].at(-1)?.innerText.includes('loading 25% weights')")
    page.run("document.getElementById('stop').click()")
    page.wait(IDLE)
    assert "stopped" in last_turn(page)
    eventually(lambda: not neuron.working("cold"), "it is cancelled")


@needs_chromium
def test_an_answer_that_breaks_says_so_and_the_question_stays(page: Chromium, neuron: NeuronThread) -> None:
    say(page, "breaks/worker_died", "a b c d")
    page.wait(
        "document.querySelectorAll('.turn').length === 2"
        " && [...document.querySelectorAll('.turn')].at(-1).innerText.includes('a b')"
    )
    neuron.let_fail()
    page.wait(IDLE)
    assert "it breaks" in last_turn(page)
    assert page.run("document.getElementById('text').value") == "a b c d"


@needs_chromium
def test_it_asks_for_a_key_and_shows_what_that_may_see(
    browser: Chromium, guarded: GatewayProcess, keys: Keys, admin: str
) -> None:
    browser.open(f"{guarded.base}/")
    browser.wait("!document.getElementById('key-form').hidden")
    assert "holders of a key" in browser.wait("document.getElementById('fleet-note').textContent")

    def use(key: str) -> None:
        browser.run(
            f"document.getElementById('key').value = {json.dumps(key)};"
            "document.getElementById('key-form').requestSubmit()"
        )

    use("“sk-cortex-quoted”")
    browser.wait("document.getElementById('said').textContent.includes('no API key')")
    assert browser.run("sessionStorage.length") == 0
    use("sk-cortex-nobodys")
    browser.wait("document.getElementById('said').textContent.includes('not known here')")
    assert not browser.run("document.getElementById('key-form').hidden")
    use(keys.create("bea"))
    browser.wait("document.getElementById('said').textContent === ''")
    browser.wait("document.querySelector('#chat-model option') !== null")
    assert browser.run("document.getElementById('accounts').hidden")
    assert browser.run("[...document.querySelectorAll('#places .row')].every((node) => node.hidden)")
    use(admin)
    browser.wait("document.getElementById('keys').innerText.includes('root')")
    assert not browser.run("document.getElementById('hour').hidden")
    assert browser.run("[...document.querySelectorAll('#places .row')].some((node) => !node.hidden)")
    assert browser.run("localStorage.length") == 0
    assert admin not in browser.run("document.documentElement.outerHTML")
    browser.run("document.getElementById('key-forget').click()")
    browser.wait(
        "!document.getElementById('keys').textContent && !document.getElementById('key-form').hidden"
    )
    assert "root" not in browser.run("document.documentElement.outerHTML")
    assert browser.run("sessionStorage.length") == 0


@needs_chromium
def test_what_a_neuron_refuses_is_said(page: Chromium) -> None:
    button = "document.querySelector('#places button[aria-label=\"Unload fails/queue_full on fake\"]')"
    page.wait(f"{button} !== null")
    page.run(f"{button}.click()")
    page.wait("document.getElementById('said').textContent.includes('not fails/queue_full')")
