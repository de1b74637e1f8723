"""API keys over HTTP: who is let in, to what, how often, and what is known of it afterwards."""

from __future__ import annotations

import json
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from gateway.commands.cli import app
from tests.gateway.conftest import PATIENCE, GatewayProcess, Keys, NeuronThread, eventually
from tests.gateway.fake_neuron import CUT_SHORT

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
HELLO = [{"role": "user", "content": "one two three"}]
BODIES = {
    CHAT: {"model": "echo", "messages": HELLO},
    MESSAGES: {"model": "echo", "messages": HELLO, "max_tokens": 9},
}


def ask(
    gateway: GatewayProcess, key: str | None, path: str = CHAT, header: str = "bearer", **fields: Any
) -> httpx.Response:
    headers = {} if key is None else {"Authorization": f"Bearer {key}".encode()}
    if header == "x-api-key":
        headers = {"x-api-key": key.encode()}
    body = BODIES[path] | fields
    return httpx.post(f"{gateway.base}{path}", json=body, headers=headers, trust_env=False, timeout=PATIENCE)


def get(gateway: GatewayProcess, path: str, key: str | None = None) -> httpx.Response:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return httpx.get(f"{gateway.base}{path}", headers=headers, trust_env=False, timeout=PATIENCE)


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
@pytest.mark.parametrize("header", ["bearer", "x-api-key"])
def test_a_key_made_now_is_taken_now(guarded: GatewayProcess, keys: Keys, path: str, header: str) -> None:
    assert ask(guarded, keys.create("ann"), path, header).status_code == 200


@pytest.mark.parametrize("key", [None, "any", "sk-cortex-" + "x" * 43, "sk-cortex-é"])
@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_who_has_no_key_is_told_so_in_the_dialect(
    guarded: GatewayProcess, key: str | None, path: str
) -> None:
    answer = ask(guarded, key, path)
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    error = answer.json()["error"]
    if path == MESSAGES:
        assert error["type"] == "authentication_error"
    else:
        assert error["code"] == "invalid_api_key"
    assert ("cortex keys create" in error["message"]) == (key is None)


def test_of_two_keys_one_has_to_hold(guarded: GatewayProcess, keys: Keys) -> None:
    headers = {"Authorization": "Bearer placeholder", "x-api-key": keys.create("bea")}
    answer = httpx.post(f"{guarded.base}{CHAT}", json=BODIES[CHAT], headers=headers, trust_env=False)
    assert answer.status_code == 200


def test_without_a_key_no_more_is_told_than_that_it_lives(guarded: GatewayProcess, keys: Keys) -> None:
    assert get(guarded, "/ready").status_code == get(guarded, "/version").status_code == 200
    assert get(guarded, "/health").json() == {"status": "ok"}
    assert get(guarded, "/v1/models").status_code == 401
    assert get(guarded, "/nowhere").status_code == 401
    key = keys.create("cat")
    assert get(guarded, "/health", key).json()["neurons"]
    assert "echo" in [model["id"] for model in get(guarded, "/v1/models", key).json()["data"]]


def test_a_key_for_some_models_sees_and_gets_these(guarded: GatewayProcess, keys: Keys) -> None:
    key = keys.create("dan", "--model", "org/*", "--model", "slow")
    assert [model["id"] for model in get(guarded, "/v1/models", key).json()["data"]] == ["org/echo", "slow"]
    assert get(guarded, "/v1/models/org/echo", key).status_code == 200
    assert "neurons" not in get(guarded, "/health", key).json()
    for model in ("echo", "nobody's"):  # neither is told of others
        assert get(guarded, f"/v1/models/{model}", key).status_code == 403
        assert ask(guarded, key, model=model).status_code == 403
    for unknown in (ask(guarded, key, model="org/none"), get(guarded, "/v1/models/org/none", key)):
        assert unknown.status_code == 404
        assert unknown.json()["error"]["message"].endswith("does not exist; there is org/echo, slow")
    assert ask(guarded, key, model="org/echo").status_code == 200
    refused = ask(guarded, key)
    assert (refused.status_code, refused.json()["error"]["param"]) == (403, "model")
    assert ask(guarded, key, MESSAGES).json()["error"]["type"] == "permission_error"


def test_a_key_for_some_addresses_gets_these(guarded: GatewayProcess, keys: Keys) -> None:
    key = keys.create("eve", "--endpoint", "/v1/chat/*")
    assert ask(guarded, key).status_code == 200
    assert ask(guarded, key, MESSAGES).status_code == 403
    assert get(guarded, "/v1/models", key).status_code == 403
    assert get(guarded, "/ready", key).status_code == 200


def test_limits_are_exact_over_the_processes(guarded: GatewayProcess, keys: Keys) -> None:
    key = keys.create("flo", "--requests-per-day", "20")
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: ask(guarded, key), range(60)))
    assert sorted(answer.status_code for answer in answers) == [200] * 20 + [429] * 40
    refused = next(answer for answer in answers if answer.status_code == 429)
    error = refused.json()["error"]
    assert (error["code"], error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
    assert error["details"] == {"limit": 20, "of": "requests", "per": "day"}
    assert 0 < int(refused.headers["retry-after"]) <= 86400
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert ask(guarded, key, MESSAGES).json()["error"]["type"] == "rate_limit_error"


def test_tokens_are_limited_and_what_is_left_is_said(guarded: GatewayProcess, keys: Keys) -> None:
    key = keys.create("gil", "--tokens-per-day", "10")
    first = ask(guarded, key)
    assert (
        first.headers["x-ratelimit-limit-tokens"] == first.headers["anthropic-ratelimit-tokens-limit"] == "10"
    )
    assert ask(guarded, key).status_code == 200  # 6 were used before it, and 12 after it
    # They are charged when the answer was sent, and the other process may be asked before that.
    eventually(lambda: ask(guarded, key).status_code == 429, "the tokens are used up")


def test_what_is_left_of_requests_is_left_after_this_one(guarded: GatewayProcess, keys: Keys) -> None:
    key = keys.create("lea", "--requests-per-day", "2")
    answers = [ask(guarded, key) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["1", "0", "0"]


def test_a_request_that_is_refused_is_not_counted(guarded: GatewayProcess, keys: Keys) -> None:
    key = keys.create("hal", "--requests-per-day", "1", "--model", "echo")
    assert ask(guarded, key, model="slow").status_code == 403
    assert ask(guarded, key, temperature="hot").status_code == 400
    assert ask(guarded, key).status_code == 200
    assert ask(guarded, key).status_code == 429


def test_a_key_that_is_revoked_or_has_expired_holds_no_longer(guarded: GatewayProcess, keys: Keys) -> None:
    revoked, expired = keys.create("ida"), keys.create("jim", "--expires", "1s")
    assert ask(guarded, revoked).status_code == 200
    assert "is revoked" in keys("revoke", "ida")
    eventually(lambda: ask(guarded, revoked).status_code == 401, "the revoked key is refused")
    eventually(lambda: ask(guarded, expired).status_code == 401, "the key has expired")
    assert [key["state"].split()[0] for key in listed(keys, "ida", "jim")] == ["revoked", "expired"]


def listed(keys: Keys, *names: str) -> list[dict[str, Any]]:
    return [key for key in json.loads(keys("list", "--json")) if key["name"] in names]


@pytest.mark.parametrize("streamed", [False, True])
def test_who_leaves_early_is_charged_what_was_generated(
    guarded: GatewayProcess, keys: Keys, neuron: NeuronThread, streamed: bool
) -> None:
    name = f"lea-{streamed}"
    key = keys.create(name)
    (made,) = listed(keys, name)
    with httpx.Client(trust_env=False, timeout=PATIENCE) as client:
        body = BODIES[CHAT] | {"model": "stuck", "stream": streamed}
        request = client.build_request(
            "POST", f"{guarded.base}{CHAT}", json=body, headers={"Authorization": f"Bearer {key}"}
        )
        if streamed:
            client.send(request, stream=True).close()
        else:
            request.extensions["timeout"] = {"read": 0.5}
            with pytest.raises(httpx.ReadTimeout):
                client.send(request)

    def used() -> list[dict[str, Any]]:
        return [row for row in json.loads(keys("usage", "--json")) if row["key"] == made["id"]]

    (row,) = eventually(used, "it is charged")
    assert row["prompt_tokens"] == CUT_SHORT.prompt_tokens
    assert row["completion_tokens"] == CUT_SHORT.completion_tokens


def test_what_was_used_is_known_by_key_and_model(guarded: GatewayProcess, keys: Keys) -> None:
    key = keys.create("kim")
    (made,) = listed(keys, "kim")
    for model in ("echo", "echo", "org/echo"):
        ask(guarded, key, model=model)
    ask(guarded, key, model="fails/queue_full")

    def rows() -> dict[str, Any]:
        every = json.loads(keys("usage", "--json"))
        return {row["model"]: row for row in every if row["key"] == made["id"]}

    def whole() -> dict[str, Any] | None:  # each process writes its own part, when it comes to it
        found = rows()
        return found if sum(row["requests"] for row in found.values()) == 4 else None

    used = eventually(whole, "all of it is written")
    echo = used["echo"]
    assert (echo["requests"], echo["prompt_tokens"], echo["completion_tokens"]) == (2, 6, 6)
    assert used["org/echo"]["requests"] == used["fails/queue_full"]["requests"] == 1
    assert used["fails/queue_full"]["completion_tokens"] == 0
    assert "kim" in keys("usage")


def test_the_secret_stands_nowhere(guarded: GatewayProcess, keys: Keys) -> None:
    key = keys.create("leo")
    assert ask(guarded, key).status_code == 200
    get(guarded, f"/v1/models/{key}", key)  # and where it does not belong
    ask(guarded, key, model=key)
    httpx.get(f"{guarded.base}/v1/models?api_key={key}", headers={"x-request-id": key}, trust_env=False)
    named = f"key={listed(keys, 'leo')[0]['id']}"
    eventually(lambda: named in guarded.log.read_text(), "the request is in the log")
    for path in guarded.log.parent.iterdir():
        if path.is_file():
            assert key.removeprefix("sk-cortex-").encode() not in path.read_bytes()
    assert key not in keys("list") + keys("list", "--json")


@pytest.mark.parametrize("command", ["load", "unload", "pin", "unpin", "evict", "drain", "resume", "status"])
def test_commands_want_an_administrators_key_and_say_so(
    guarded: GatewayProcess, keys: Keys, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    arguments = [command, *(["echo"] if command != "status" else []), "--endpoint", guarded.base]
    monkeypatch.delenv("CORTEX_API_KEY", raising=False)
    without = CliRunner().invoke(app, arguments)
    assert (without.exit_code, without.stderr.count("\n")) == (1, 1)
    assert "CORTEX_API_KEY" in without.stderr
    if command == "status":
        return
    monkeypatch.setenv("CORTEX_API_KEY", keys.create("ned"))
    plain = CliRunner().invoke(app, arguments)
    assert (plain.exit_code, "--admin" in plain.stderr) == (1, True)


def test_a_key_has_its_own_account_and_priority(
    guarded: GatewayProcess, keys: Keys, neuron: NeuronThread
) -> None:
    given, usual = keys.create("max", "--priority", "7"), keys.create("moe")

    def seen(key: str, **fields: Any) -> tuple[str, int]:
        with httpx.Client(trust_env=False, timeout=PATIENCE) as client:
            headers, body = {"Authorization": f"Bearer {key}"}, BODIES[CHAT] | fields
            with client.stream("POST", f"{guarded.base}{CHAT}", json=body, headers=headers) as answer:
                lines = answer.iter_lines()  # which leaves when it is forgotten
                next(lines)
                (work,) = [
                    each for each in list(neuron.neuron.work.values()) if each.request.model == "stuck"
                ]
                found = work.request.account, work.request.priority
        eventually(lambda: not neuron.working("stuck"), "it is cancelled")
        return found

    stuck = {"model": "stuck", "stream": True}
    for key, name, most in ((given, "max", 7), (usual, "moe", 0)):
        (made,) = listed(keys, name)
        assert seen(key, **stuck) == (made["id"], most)
        assert seen(key, **stuck, priority=-5) == (made["id"], most)
        assert seen(key, **stuck, priority=9) == (made["id"], 9)


def test_a_store_that_breaks_is_one_line_and_the_known_keys_hold(
    neuron: NeuronThread, tmp_path: Path
) -> None:
    keys = Keys(tmp_path)
    key = keys.create("nan")
    process = GatewayProcess(tmp_path, neuron.endpoint, access={"anonymous": False})
    try:
        process.wait_ready()
        assert ask(process, key).status_code == 200
        with sqlite3.connect(keys.store) as db:
            db.execute("ALTER TABLE keys RENAME TO other")
        db.close()
        eventually(lambda: "the keys that are known hold" in process.log.read_text(), "it is noticed")
        assert ask(process, key).status_code == 200
        assert process.log.read_text().count("the keys that are known hold") == 1
        with sqlite3.connect(keys.store) as db:
            db.execute("ALTER TABLE other RENAME TO keys")
        db.close()
        eventually(lambda: "is read again" in process.log.read_text(), "it is well again")
    finally:
        process.stop()


def test_on_loopback_nobody_needs_a_key_but_one_of_ours_must_hold(
    gateway: GatewayProcess, http: httpx.Client
) -> None:
    assert ask(gateway, None).status_code == ask(gateway, "placeholder").status_code == 200
    assert ask(gateway, "sk-cortex-" + "x" * 43).status_code == 401


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        ("Accept", "*/*", 400),
        ("Host", "localhost", 400),
        ("Host", "[::1]:31313", 400),
        ("Host", "box.internal", 403),
        ("X-Forwarded-For", "", 403),
        *((name, "203.0.113.9", 403) for name in ("X-Forwarded-For", "forwarded", "X-Real-IP", "Via")),
    ],
)
def test_whom_a_proxy_asks_for_is_no_administrator(
    gateway: GatewayProcess, http: httpx.Client, header: str, value: str, status: int
) -> None:
    body = {"model": "echo", "neuron": "none of them"}
    answer = http.post("/admin/models/unload", json=body, headers={header: value})
    assert answer.status_code == status
    assert ask(gateway, None).status_code == 200


def test_a_field_that_administrators_do_not_have_is_named(http: httpx.Client) -> None:
    answer = http.post("/admin/models/unload", json={"model": "echo", "forced": True})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "forced")


def test_a_gateway_whose_visitors_are_administrators_says_so_at_its_start(gateway: GatewayProcess) -> None:
    assert "access: {anonymous: false}" in gateway.log.read_text()


# --- the command ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("expires", ["yesterday", "0d", "2020-01-01", "99999999999999d", "-1d"])
def test_time_that_is_none_or_past_is_refused(tmp_path: Path, expires: str) -> None:
    assert "--expires" in Keys(tmp_path)("create", "x", f"--expires={expires}", ok=False)


@pytest.mark.parametrize(
    "terms",
    [
        ("--priority", str(1 << 64)),  # no message to a neuron has room for it
        ("--requests-per-minute", str(1 << 63)),
        ("--tokens-per-day", "-1"),
        ("--model", ""),
        ("--endpoint", "v1/chat/*"),
    ],
)
def test_terms_that_no_request_can_meet_are_refused(tmp_path: Path, terms: tuple[str, str]) -> None:
    keys = Keys(tmp_path)
    assert terms[0] in keys("create", "ann", *terms, ok=False)
    assert not keys.store.exists()


def test_usage_of_days_that_no_calendar_has_is_refused(tmp_path: Path) -> None:
    assert "--days" in Keys(tmp_path)("usage", "--days", str(1 << 40), ok=False)


def test_store_is_for_nobody_else_and_a_list_makes_none(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "")
    assert "cortex keys create NAME" in keys("list")
    assert "nothing was used" in keys("usage")
    assert not keys.store.exists()
    keys.create("x")
    assert keys.store.stat().st_mode & 0o077 == 0


def test_revoke_wants_one_key(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    assert "nobody" in keys("revoke", "nobody", ok=False)
    for _ in range(2):
        keys.create("twin")
    first, second = listed(keys, "twin")
    message = keys("revoke", "twin", ok=False)
    assert first["id"] in message
    assert second["id"] in message
    keys("revoke", first["id"])
    keys("revoke", "twin")
    assert all(key["revoked"] for key in listed(keys, "twin"))


def test_table_shows_what_a_key_allows(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    keys.create("[bold]op", "--admin", "--tokens-per-day", "2000000", "--model", "Qwen/*")
    (line,) = keys("list").splitlines()[1:]
    for part in ("[bold]op", "all, admin", "2,000,000 tokens/day", "Qwen/*", "holds"):
        assert part in line


def test_store_that_is_none_is_told(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    keys.store.write_text("no database " * 100)
    assert str(keys.store) in keys("create", "x", ok=False)


@pytest.mark.parametrize("command", [["list"], ["usage"], ["revoke", "x"], ["create", "x"]])
def test_store_in_a_folder_that_is_not_ours_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    keys, stat = Keys(tmp_path), os.stat

    def refused(path: Any, **kwargs: Any) -> os.stat_result:
        if path in (keys.store, str(keys.store)):
            raise PermissionError(13, "Permission denied")  # which root, and tests may be it, never meets
        return stat(path, **kwargs)

    monkeypatch.setattr(os, "stat", refused)
    assert f"{keys.store}, cannot be used: Permission denied" in keys(*command, ok=False)
