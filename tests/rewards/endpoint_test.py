"""Tests of the endpoint, against a server in this process that does what it is told."""

import http.server
import json
import logging
import threading
import time

import pytest

from r1jax.errors import InputError
from r1jax.rewards import endpoint

SECRET = "sk-very-secret"


class Server(http.server.ThreadingHTTPServer):
  """Answers with the user's text, in capitals; `plan` has what to do instead, first to
  last."""

  daemon_threads = True

  def __init__(self):
    super().__init__(("127.0.0.1", 0), Handler)
    self.plan = []
    self.seen = []
    self.now = self.most = 0
    self.lock = threading.Lock()
    self.delay_s = 0.0

  def handle_error(self, request, client_address):
    """A client that has gone is no news."""


class Handler(http.server.BaseHTTPRequestHandler):
  def log_message(self, *unused):
    """Keeps the terminal clean."""

  def do_POST(self):
    server = self.server
    with server.lock:
      server.now += 1
      server.most = max(server.most, server.now)
    try:
      body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
      with server.lock:
        server.seen.append((self.path, dict(self.headers), body))
        act = server.plan.pop(0) if server.plan else None
      time.sleep(server.delay_s)
      self.answer(act, body)
    finally:
      with server.lock:
        server.now -= 1

  def answer(self, act, body):
    said = body["messages"][-1]["content"].upper()
    usage = {"prompt_tokens": 10, "completion_tokens": 2}
    reply = {"choices": [{"message": {"content": said}}], "usage": usage}
    if act == "drop":
      self.connection.close()
    elif act == "slow":
      time.sleep(0.5)
      self.send(200, json.dumps(reply))
    elif act == "not json":
      self.send(200, "<html>")
    elif act == "other json":
      self.send(200, json.dumps({"choices": []}))
    elif act == "no text":
      reply["choices"][0]["message"]["content"] = None
      self.send(200, json.dumps(reply))
    elif isinstance(act, int):
      self.send(act, f"key {self.headers.get('Authorization')} said no")
    else:
      self.send(200, json.dumps(reply))

  def send(self, status, text):
    self.send_response(status)
    self.send_header("Content-Length", str(len(text)))
    if status == 429:
      self.send_header("Retry-After", "0")
    if status == 302:
      self.send_header("Location", "http://127.0.0.1:9/")
    self.end_headers()
    self.wfile.write(text.encode())


@pytest.fixture(name="server")
def _server(monkeypatch):
  monkeypatch.setenv("NO_PROXY", "127.0.0.1")
  monkeypatch.setenv("JUDGE_KEY", SECRET)
  with Server() as server:
    serving = threading.Thread(target=server.serve_forever, args=(0.01,))
    serving.start()
    yield server
    server.shutdown()
    serving.join()


def section(server, **changes):
  return {
    "url": f"http://127.0.0.1:{server.server_port}/v1/",
    "model": "m",
    "key_variable": "JUDGE_KEY",
    "temperature": 0.0,
    "max_tokens": 7,
    "timeout_s": 5.0,
    "retries": 2,
    "backoff_s": 0.001,
    "concurrency": 4,
    "cache": "",
    "price_in": 1e6,
    "price_out": 1e7,
    **changes,
  }


def says(*texts):
  return [[{"role": "user", "content": text}] for text in texts]


def test_replies_in_order_and_what_they_cost(server):
  ask = endpoint.of_section(section(server))
  assert ask(says("a", "b", "c")) == ["A", "B", "C"]
  path, headers, body = server.seen[0]
  assert path == "/v1/chat/completions"
  assert headers["Authorization"] == f"Bearer {SECRET}"
  assert {k: body[k] for k in ("model", "temperature", "max_tokens")} == {
    "model": "m",
    "temperature": 0.0,
    "max_tokens": 7,
  }
  assert ask.counts == {
    "calls": 3,
    "cached": 0,
    "tokens_in": 30,
    "tokens_out": 6,
    "cost": 30.0 + 60.0,
  }


@pytest.mark.parametrize("act", [429, 500, 503, "drop", "not json", "other json"])
def test_what_may_pass_is_tried_again(server, act):
  server.plan = [act, act]
  ask = endpoint.of_section(section(server))
  assert ask(says("a")) == ["A"]
  assert (ask.counts["calls"], ask.counts["retries"], ask.counts["failed"]) == (3, 2, 0)


def test_slow_answers_end(server):
  server.plan = ["slow", "slow"]
  ask = endpoint.of_section(section(server, timeout_s=0.1, retries=1))
  start = time.monotonic()
  assert ask(says("a")) == [""]
  assert time.monotonic() - start < 5.0
  assert (ask.counts["calls"], ask.counts["failed"]) == (2, 1)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_prompt_is_not_tried_again(server, status):
  server.plan = [status]
  ask = endpoint.of_section(section(server, concurrency=1))
  assert ask(says("a", "b")) == ["", "B"]
  assert (ask.counts["calls"], ask.counts["retries"], ask.counts["failed"]) == (2, 0, 1)


@pytest.mark.parametrize("status", [302, 401, 403, 404])
def test_refused_settings_end_it_and_the_key_is_not_told(server, status):
  server.plan = [status] * 50
  ask = endpoint.of_section(section(server))
  with pytest.raises(InputError, match=r"config\.reward\.judge") as told:
    ask(says(*map(str, range(50))))
  assert ask.counts["retries"] == 0
  assert SECRET not in str(told.value)
  assert "***" in str(told.value)


def test_the_key_is_not_logged(server, caplog):
  with caplog.at_level(logging.DEBUG):
    server.plan = [400, 500, 500, 500]
    ask = endpoint.of_section(section(server, concurrency=1))
    ask(says("a", "b", "c"))
  assert "refuses a prompt" in caplog.text
  assert SECRET not in caplog.text + repr(vars(ask))


def test_nobody_there(server):
  server.plan = [500] * 9
  ask = endpoint.of_section(section(server))
  with pytest.raises(InputError, match=r"none of 3 calls got through.*status 500"):
    ask(says("a", "b", "c"))


def test_calls_at_a_time(server):
  server.delay_s = 0.02
  ask = endpoint.of_section(section(server, concurrency=3))
  ask(says(*map(str, range(12))))
  assert 1 < server.most <= 3


def test_replies_are_kept_on_disk_by_what_was_asked(server, tmp_path):
  kept = {"cache": str(tmp_path / "deep" / "replies")}
  endpoint.of_section(section(server, **kept))(says("a"))
  again = endpoint.of_section(section(server, **kept))
  assert again(says("a", "b")) == ["A", "B"]
  assert (again.counts["calls"], again.counts["cached"]) == (1, 1)
  for change in ({"model": "n"}, {"temperature": 0.5}, {"max_tokens": 8}):
    other = endpoint.of_section(section(server, **kept, **change))
    other(says("a"))
    assert other.counts["calls"] == 1


def test_any_reply_can_be_kept(server):
  ask = endpoint.of_section(section(server))
  assert ask(says("\ud800 'é\0")) == ["\ud800 'É\0"]


def test_failures_are_not_kept(server, tmp_path):
  ask = endpoint.of_section(section(server, cache=str(tmp_path / "replies")))
  server.plan = [400]
  assert ask(says("a")) == [""]
  assert ask(says("a")) == ["A"]


def test_the_same_question_is_drawn_as_often_as_it_is_asked(server):
  greedy = endpoint.of_section(section(server))
  assert greedy(says("a", "a", "a")) == ["A"] * 3
  assert greedy.counts["calls"] == 1
  drawn = endpoint.of_section(section(server, temperature=1.0))
  drawn(says("a", "a", "a"))
  drawn(says("a", "a"))
  assert (drawn.counts["calls"], drawn.counts["cached"]) == (3, 2)


def test_a_reply_without_text(server):
  server.plan = ["no text"]
  assert endpoint.of_section(section(server))(says("a")) == [""]


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"url": "localhost:8000"}, r"config\.reward\.judge\.url must read"),
    ({"url": "http://me:word@host/v1"}, r"hold no password"),
    ({"model": ""}, r"config\.reward\.judge\.model=''"),
    ({"key_variable": "NO_SUCH_VARIABLE"}, r"key_variable='NO_SUCH_VARIABLE'"),
    ({"concurrency": 0}, r"config\.reward\.judge\.concurrency=0"),
    ({"cache": "/dev/null/replies"}, r"config\.reward\.judge\.cache="),
    ({"modl": "m"}, r"judge\.modl is not known \(did you mean 'model'\?\)"),
  ],
)
def test_settings(server, changes, message):
  with pytest.raises(InputError, match=message):
    endpoint.of_section(section(server, **changes))


def test_no_url_is_nobody(server):
  assert endpoint.of_section(section(server, url="")) is None
  without = section(server)
  del without["retries"]
  with pytest.raises(InputError, match=r"judge\.retries is missing"):
    endpoint.of_section(without)
