"""A model behind an OpenAI-compatible address: messages in, replies out.

Replies are kept on disk, calls are few at a time and repeated where that may help, and
all that they cost is counted.
"""

import collections
import concurrent.futures
import hashlib
import inspect
import json
import os
import random
import sqlite3
import threading
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import requests
from absl import logging

from r1jax.errors import InputError, nearest

Messages = Sequence[Mapping[str, str]]

_WRONG_SETTINGS = (401, 403, 404)
_LONGEST_WAIT_S = 60.0


class _Retry(Exception):
  """A call that may succeed later; `after_s` where the server said when."""

  def __init__(self, why: str, after_s: float | None = None):
    super().__init__(why)
    self.after_s = after_s


class Endpoint:
  """Asks `POST url/chat/completions`. A callable: conversations in, replies out.

  Args:
    url: up to and without "/chat/completions", such as "http://localhost:8000/v1".
    model: its name there.
    key_variable: environment variable that holds the API key; "" sends none. The key is
      read when it is needed and appears in no message.
    temperature, max_tokens: of the replies.
    timeout_s: of one try; silence for so long ends it.
    retries: further tries after a lost connection, a time-out, status 429 or 5xx, or a
      reply that is not what the protocol says.
    backoff_s: before the first of them, doubled for each, up to a minute; a
      Retry-After header of the server goes before.
    concurrency: calls at a time.
    cache: file of replies, kept for later runs; "" keeps them while this object lives.
    price_in, price_out: of a million tokens of prompts and of replies.

  Attributes:
    counts: since the beginning: `calls` (tries), `retries`, `failed` (prompts without a
      reply), `cached`, `tokens_in`, `tokens_out` and `cost`.
  """

  def __init__(
    self,
    *,
    url: str,
    model: str,
    key_variable: str,
    temperature: float,
    max_tokens: int,
    timeout_s: float,
    retries: int,
    backoff_s: float,
    concurrency: int,
    cache: str,
    price_in: float,
    price_out: float,
  ):
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
      raise InputError(
        "config.reward.judge.url must read http://… or https://… and hold no password "
        "(config.reward.judge.key_variable names where the key is)"
      )
    if not model:
      raise InputError("config.reward.judge.model='': name the model behind the url")
    for name, value, least in (
      ("timeout_s", timeout_s, 1e-3),
      ("retries", retries, 0),
      ("backoff_s", backoff_s, 0),
      ("concurrency", concurrency, 1),
      ("max_tokens", max_tokens, 1),
    ):
      if value < least:
        raise InputError(f"config.reward.judge.{name}={value}: needed: {least} or more")
    if key_variable and key_variable not in os.environ:
      raise InputError(
        f"config.reward.judge.key_variable={key_variable!r}: the environment has no "
        "such variable; set it, or leave the key ''"
      )
    self._url = url.rstrip("/") + "/chat/completions"
    self._key_variable = key_variable
    self._settings = {
      "model": model,
      "temperature": temperature,
      "max_tokens": max_tokens,
    }
    self._timeout_s = timeout_s
    self._retries = retries
    self._backoff_s = backoff_s
    self._concurrency = concurrency
    self._prices = (price_in / 1e6, price_out / 1e6)
    self._replies = _Replies(cache)
    self._lock = threading.Lock()
    self.counts: collections.Counter[str] = collections.Counter()

  def __call__(self, prompts: Sequence[Messages]) -> list[str]:
    """The reply to each conversation, in order; "" where there is none.

    Prompts that are the same get a reply each, but for one at temperature 0.

    Raises:
      InputError: the settings are refused, or nobody answers: no call of several got
        through.
    """
    wanted = [self._key_of(prompt, draw) for prompt, draw in self._draws(prompts)]
    missing = {}
    for key, prompt in zip(wanted, prompts, strict=True):
      if self._replies.get(key) is None:
        missing.setdefault(key, prompt)
    self._count(cached=len(prompts) - len(missing))
    with concurrent.futures.ThreadPoolExecutor(self._concurrency) as pool:
      asked = [pool.submit(self._asked, key, prompt) for key, prompt in missing.items()]
      try:
        lost = [why for call in asked if (why := call.result()) is not None]
      except InputError:
        pool.shutdown(cancel_futures=True)
        raise
    if lost and len(lost) == len(missing) > 1:
      raise InputError(
        f"config.reward.judge.url: none of {len(lost)} calls got through, after "
        f"{self._retries} retries each; the last: {lost[-1]}"
      )
    if lost:
      logging.warning(
        "%d of %d calls of the judge did not get through; the last: %s",
        *(len(lost), len(missing), lost[-1]),
      )
    return [self._replies.get(key) or "" for key in wanted]

  def _draws(self, prompts: Sequence[Messages]) -> list[tuple[Messages, int]]:
    """Each prompt, with how many like it stand before."""
    seen: collections.Counter[str] = collections.Counter()
    draws = []
    for prompt in prompts:
      same = json.dumps(prompt, sort_keys=True)
      draws.append((prompt, seen[same] if self._settings["temperature"] else 0))
      seen[same] += 1
    return draws

  def _key_of(self, prompt: Messages, draw: int) -> str:
    what = [self._url, self._settings, list(map(dict, prompt)), draw]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

  def _asked(self, key: str, prompt: Messages) -> str | None:
    """Gets a reply and keeps it; says why where none came through."""
    why = ""
    for attempt in range(self._retries + 1):
      try:
        reply = self._try(prompt)
      except _Retry as e:
        why = str(e)
        if attempt < self._retries:
          self._count(retries=1)
          # Callers that failed together shall not come back together.
          wait_s = self._backoff_s * 2**attempt * random.uniform(0.5, 1.0)
          if e.after_s is not None:
            wait_s = e.after_s
          time.sleep(min(wait_s, _LONGEST_WAIT_S))
        continue
      if reply is None:
        self._count(failed=1)
      else:
        self._replies.put(key, reply)
      return None
    self._count(failed=1)
    return why

  def _try(self, prompt: Messages) -> str | None:
    """One call; None where the server refuses this prompt.

    Raises:
      _Retry: it may go better later.
      InputError: the server refuses every prompt.
    """
    self._count(calls=1)
    secret = os.environ.get(self._key_variable, "") if self._key_variable else ""
    try:
      response = requests.post(
        self._url,
        json=self._settings | {"messages": list(map(dict, prompt))},
        auth=_Key(secret),
        timeout=self._timeout_s,
        allow_redirects=False,  # a key goes where it was meant to
      )
      status = response.status_code
      said = response.content[:200].decode(errors="replace")
    except requests.RequestException as e:
      raise _Retry(_without(secret, f"{type(e).__name__}: {e}")) from None
    said = _without(secret, f"status {status}: {said}")
    if status == 429 or status >= 500:
      raise _Retry(said, _seconds(response.headers.get("Retry-After", "")))
    if status in _WRONG_SETTINGS or 300 <= status < 400:
      raise InputError(
        f"the judge refuses config.reward.judge's url, model or key: {said}"
      )
    if status != 200:
      logging.warning("the judge refuses a prompt: %s", said)
      return None
    try:
      body = response.json()
      reply = body["choices"][0]["message"]["content"]
      used = body.get("usage") or {}
      tokens = [int(used.get(f"{of}_tokens", 0)) for of in ("prompt", "completion")]
    except (ValueError, LookupError, TypeError, AttributeError) as e:
      raise _Retry(f"not a chat completion ({type(e).__name__}): {said}") from None
    self._count(
      tokens_in=tokens[0],
      tokens_out=tokens[1],
      cost=tokens[0] * self._prices[0] + tokens[1] * self._prices[1],
    )
    # Null stands for a reply without text, a refusal for instance.
    return reply if isinstance(reply, str) else ""

  def _count(self, **more: float) -> None:
    with self._lock:
      self.counts.update(more)


def of_section(section: Mapping[str, Any]) -> Endpoint | None:
  """The endpoint of `config.reward.judge`, or None where its url is "".

  Raises:
    InputError: a key that is unknown or missing, or what `Endpoint` raises.
  """
  known = inspect.signature(Endpoint).parameters
  for key in [*section, *known]:
    if key not in known:
      raise InputError(f"config.reward.judge.{key} is not known{nearest(key, known)}")
    if key not in section:
      raise InputError(f"config.reward.judge.{key} is missing")
  return Endpoint(**section) if section["url"] else None


class _Key(requests.auth.AuthBase):
  """Sends a key; without one nothing, not even what ~/.netrc has for the host."""

  def __init__(self, secret: str):
    self._secret = secret

  def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
    if self._secret:
      request.headers["Authorization"] = f"Bearer {self._secret}"
    return request


class _Replies:
  """Replies by key, in a file that several threads and processes may share."""

  def __init__(self, path: str):
    self._lock = threading.Lock()
    try:
      if path:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
      self._file = sqlite3.connect(
        path or ":memory:", timeout=60.0, check_same_thread=False
      )
      with self._file:
        self._file.execute(
          "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT)"
        )
    except (sqlite3.Error, OSError) as e:
      raise InputError(
        f"config.reward.judge.cache={path!r} cannot be used as a file of replies: {e}"
      ) from e

  def get(self, key: str) -> str | None:
    with self._lock:
      found = self._file.execute("SELECT reply FROM replies WHERE key = ?", (key,))
      row = found.fetchone()
    return None if row is None else json.loads(row[0])

  def put(self, key: str, reply: str) -> None:
    # As JSON, since half a surrogate pair is no text to a database.
    row = (key, json.dumps(reply))
    with self._lock, self._file:
      self._file.execute("INSERT OR IGNORE INTO replies VALUES (?, ?)", row)


def _seconds(header: str) -> float | None:
  """Of a Retry-After header; a date in it is passed over."""
  try:
    return max(float(header), 0.0)
  except ValueError:
    return None


def _without(secret: str, text: str) -> str:
  return text.replace(secret, "***") if secret else text
