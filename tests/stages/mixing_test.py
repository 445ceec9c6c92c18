"""A set put together of own examples, their formats, other data and shares."""

import types

import pytest

from configs import common
from r1jax.data import filters
from r1jax.data.examples import Example, Made
from r1jax.data.filters import Sieve
from r1jax.stages import mixing
from r1jax.types import Problem


def run():
  lines = []
  tokenizer = types.SimpleNamespace(encode=list)
  return types.SimpleNamespace(
    seed=0, say=lines.append, lines=lines, tokenizer=tokenizer
  )


def own(text, *, problem="p", category="math"):
  asked = Problem(problem, f"question {problem}", "7", "exact")
  return Made(asked, text, category, "7", "zero", score=1.0, sample=0)


def also(*texts, category=None):
  meta = {} if category is None else {"category": category}
  return [
    Example(Problem(f"a/{i}", f"ask {text}", "", "exact", meta=meta), text)
    for i, text in enumerate(texts)
  ]


def config(**changes):
  s = common.rejection()
  s.unlock()
  s.update(changes)
  return s.to_dict()


def mixed(made, data, faults=None, **changes):
  """(texts with their categories, {filter: dropped}, what is missing)."""
  sieve = Sieve(9, Made.line)
  found, missing = mixing.mixed(
    run(), "own", config(**changes), sieve, made, also=data, faults=faults or {}
  )
  lost = {key: count for key, count in sieve.counts.items() if count}
  return [(one.completion, one.category) for one in found], lost, missing


def settings(**changes):
  return {"source": "jsonl", "category": "", "count": 0, **changes}


def test_two_paths_become_eight_examples():
  """Method notes, section 6; the exemplars are the first answers that are kept."""
  made = [own("a 7"), own("b 7"), own("c 7", problem="q")]
  names = common.rejection("majority").formats.names
  asks = run()
  how = config(formats={"names": names, "num_exemplars": 2})
  found = mixing.in_formats(asks, "own", how, made[:2], exemplars=[])
  assert len(found) == 8
  assert {one.format for one in found} == {*names}
  assert asks.lines == ["own: exemplars are the first answers that are kept: p (0)"]
  # No answer stands in its own prompt, and every other does.
  asks = run()
  found = mixing.in_formats(asks, "own", how, made, exemplars=[])
  assert asks.lines[0].endswith("kept: p (0), q (0)")
  few = [one for one in found if one.format == "few_shot_thought"]
  assert few[0].problem.prompt == "Q: question q\nA: c 7\n\nQ: question p\nA:"
  assert few[2].problem.prompt == "Q: question p\nA: a 7\n\nQ: question q\nA:"
  assert mixing.in_formats(run(), "own", config(), made, exemplars=[]) == made


def test_other_data_have_a_category_and_a_count():
  data = {"chat": also(*"abcd"), "made": also("e", category="code")}
  sections = {"chat": settings(count=3), "made": settings(count=2)}
  found, lost, missing = mixed([own("x")], data, also=sections)
  assert found[0] == ("x", "math")
  assert found[-1] == ("e", "code")
  assert [category for _, category in found[1:-1]] == ["chat"] * 3
  assert (lost, missing) == ({}, {"also_made": 1})
  sections = {"chat": settings(category="general"), "made": settings(category="x")}
  found, _, missing = mixed([], data, also=sections)
  assert {category for _, category in found} == {"general", "x"}
  assert (len(found), missing) == (5, {})


def test_other_data_go_through_filters():
  held_out = [Problem("h", "ask b", "", "exact")]
  unseen = filters.once(mixing.text_of)
  assert unseen(own("x")) == ""
  faults = {
    "contaminated": mixing.contaminated(config(), held_out),
    "duplicates": unseen,
  }
  data = {"chat": also(*"abca")}
  found, lost, _ = mixed([], data, faults, also={"chat": settings()})
  assert [text for text, _ in found] == ["a", "c"]
  assert lost == {"contaminated": 1, "duplicates": 1}
  assert mixing.contaminated(config(decontaminate=0), held_out)(held_out[0]) == ""


def test_shares_are_of_the_whole_set():
  made = [own(str(i)) for i in range(6)]
  data = {"chat": also(*"abcd")}
  how = {"also": {"chat": settings()}}
  found, lost, missing = mixed(made, data, shares={"math": 2, "chat": 9}, **how)
  assert [category for _, category in found] == ["math"] * 2 + ["chat"] * 4
  assert (lost, missing) == ({"over_share": 4}, {"chat": 5})
  again, *_ = mixed(made, data, shares={"math": 2, "chat": 9}, **how)
  assert again == found
  found, lost, missing = mixed(made, data, shares={"math": 0.5, "chat": 0.5}, **how)
  assert (len(found), lost, missing) == (8, {"over_share": 2}, {"chat": 2})


def test_the_table_of_categories():
  made = [own("abc"), own("a", problem="q"), own("ab", category="code")]
  assert mixing.by_category(run(), made) == {"math": (2, 2.0), "code": (1, 2.0)}


@pytest.mark.parametrize(
  ("one", "other", "same"),
  [
    (own("A b"), own("a  B"), True),
    (own("a"), own("a", problem="q"), False),
    (own("a"), own("b"), False),
  ],
)
def test_examples_that_say_the_same(one, other, same):
  assert (mixing.text_of(one) == mixing.text_of(other)) == same
