"""What is read of judged answers, what is dropped, and how the rest is balanced."""

import json

import numpy as np
import pytest

from r1jax.data import judged
from r1jax.data.tokenizer import load_tokenizer
from r1jax.errors import InputError
from r1jax.types import Problem
from tests.data import vocabularies


def written(tmp_path, *lines):
  path = tmp_path / "set.jsonl"
  path.write_text("\n".join(json.dumps(line) for line in lines))
  return path


def read(tmp_path, objective, *lines, **how):
  path = written(tmp_path, *lines)
  return judged.load_judged(objective=objective, path=path, **how)


PAIR = {"prompt": "q", "chosen": "good", "rejected": "bad"}


def test_pairs(tmp_path):
  messages = [
    {"role": "assistant", "content": "hi"},
    {"role": "user", "content": "then?"},
  ]
  spoken = {"messages": messages, "chosen": "a", "rejected": "b", "margin": 2}
  found, counts = read(
    tmp_path, "pairwise", PAIR, PAIR, {**PAIR, "rejected": "good"}, spoken
  )
  assert [(line.answers, line.margin) for line in found] == [
    (("good", "bad"), 0.0),
    (("a", "b"), 2.0),
  ]
  assert found[0].problem.id == "set/1"
  assert found[1].problem.messages == tuple(messages)
  assert found[1].problem.prompt == "then?"
  assert {key: n for key, n in counts.items() if n} == {
    "read": 4,
    "duplicates": 1,
    "equal_answers": 1,
    "kept": 2,
  }


def judgements(*shown):
  """(first, score of the one shown first, score of the other) of each."""
  return [{"first": first, "scores": [x, y]} for first, x, y in shown]


@pytest.mark.parametrize(
  ("shown", "want"),
  [
    # By 2 for A in both orders, beside 1 for whoever stands first.
    ([(0, 9, 6), (1, 7, 8)], ("A", "B")),
    # The same judge, asked thrice in one order and once in the other.
    ([(0, 9, 6)] * 3 + [(1, 7, 8)], ("A", "B")),
    # A judge that sees the place alone says nothing, however often one came first.
    ([(0, 9, 5)] * 3 + [(1, 9, 5)], None),
    ([(1, 9, 5), (1, 9, 6)], ("B", "A")),
    ([(0, 6, 5), (1, 5, 6)], None),  # a gap of 1 is not above 1
  ],
)
def test_judges_are_averaged_over_both_orders(tmp_path, shown, want):
  line = {"prompt": "q", "responses": ["A", "B"], "judgements": judgements(*shown)}
  found, counts = read(tmp_path, "pairwise", line, PAIR)
  assert counts["small_gap"] == (want is None)
  assert [one.answers for one in found][:-1] == ([] if want is None else [want])
  if want is None:
    assert read(tmp_path, "pairwise", line, PAIR, min_gap=0.5)[1]["small_gap"] == (
      shown[0][0] == 0 and len(shown) == 4
    )


def test_answers_and_steps(tmp_path):
  right = {"prompt": "q", "completion": "x", "label": True}
  found, _ = read(tmp_path, "outcome", right, {**right, "completion": "y", "label": 0})
  assert [line.labels for line in found] == [(1.0,), (0.0,)]
  text = "one\n\ntwo\nthree"
  found, _ = read(
    tmp_path,
    "process",
    {"prompt": "q", "completion": text, "labels": [1, 0.375, 0]},
    {"prompt": "p", "completion": text, "labels": [1, 0], "ends": [3, 14]},
  )
  assert [line.ends for line in found] == [(5, 9, 14), (3, 14)]
  assert [line.labels for line in found] == [(1, 0.375, 0), (1, 0)]


@pytest.mark.parametrize(
  ("objective", "change", "said"),
  [
    ("pairwise", {"chosen": " "}, "field 'chosen' is ' ', not a text"),
    ("pairwise", {"messages": []}, "one of 'prompt' and 'messages'"),
    ("pairwise", {"margin": -1}, "field 'margin': -1"),
    ("pairwise", {"responses": ["a"]}, "'responses' is .*not two texts"),
    ("pairwise", {"responses": ["a", "b"]}, "'judgements' is None"),
    (
      "pairwise",
      {"responses": ["a", "b"], "judgements": [{"first": 2}]},
      r"judgements\[0\] is .*'first' must be 0 or 1",
    ),
    (
      "pairwise",
      {"responses": ["a", "b"], "judgements": [{"first": 1, "scores": [1]}]},
      r"judgements\[0\]\.scores is \[1\], not two numbers",
    ),
    ("pointwise", {}, "no field 'completion'"),
    ("pointwise", {"completion": "x"}, "field 'label' is None"),
    ("outcome", {"completion": "x", "label": 0.5}, "field 'label' is 0.5"),
    ("process", {"completion": "a\nb", "labels": [1]}, "1 'labels' for 2 steps"),
    ("process", {"completion": "a", "labels": [2]}, "field 'labels': 2"),
    ("process", {"completion": "a", "labels": [1], "ends": [2]}, "field 'ends': 2"),
    (
      "process",
      {"completion": "ab", "labels": [1, 1], "ends": [2, 1]},
      "not whole numbers that increase",
    ),
  ],
)
def test_a_bad_line_is_named(tmp_path, objective, change, said):
  """By file, number and field; and it can be skipped."""
  lines = {
    "pairwise": PAIR,
    "process": {"prompt": "p", "completion": "a", "labels": [1]},
  }
  good = lines.get(objective, {"prompt": "p", "completion": "x", "label": 1})
  bad = {**(PAIR if objective == "pairwise" else {"prompt": "q"}), **change}
  with pytest.raises(InputError, match=rf"set\.jsonl:2: .*{said}"):
    read(tmp_path, objective, good, bad)
  _, counts = read(tmp_path, objective, good, bad, on_bad_line="skip")
  assert counts["skipped_bad_lines"] == counts["kept"] == 1


def test_nothing_left_is_an_error(tmp_path):
  with pytest.raises(InputError, match=r"nothing is left .*'equal_answers': 1"):
    read(tmp_path, "pairwise", {**PAIR, "rejected": "good"})
  with pytest.raises(InputError, match=r"config\.objective='pair'.*mean 'pairwise'"):
    read(tmp_path, "pair", PAIR)
  with pytest.raises(InputError, match=r"config\.data\.limit=0"):
    read(tmp_path, "pairwise", PAIR, limit=0)


def test_each_response_is_shown_first_equally_often():
  shown = [judged.show_first(f"pair/{i}", 4, seed=0) for i in range(200)]
  assert all(sorted(orders) == [0, 0, 1, 1] for orders in shown)
  assert np.abs(np.mean(shown, axis=0) - 0.5).max() < 0.12  # in every place
  assert shown[3] == judged.show_first("pair/3", 4, seed=0)
  single = [judged.show_first(f"pair/{i}", 1, seed=0)[0] for i in range(200)]
  assert abs(np.mean(single) - 0.5) < 0.12


def test_after_balancing_length_does_not_tell_the_chosen_answer():
  """Longer answers win in three of four pairs, and by more than they lose."""
  rng = np.random.default_rng(0)
  rejected = rng.integers(20, 200, 2000)
  wins = rng.random(2000) < 0.75
  by = np.where(wins, rng.integers(0, 120, 2000), -rng.integers(0, 20, 2000))
  chosen = rejected + by
  kept = judged.balance_lengths(chosen.tolist(), rejected.tolist(), seed=0)
  assert kept == sorted(set(kept))
  assert kept == judged.balance_lengths(chosen.tolist(), rejected.tolist(), seed=0)
  left = by[kept]
  assert (left > 0).sum() == (left < 0).sum() > 300
  assert (left == 0).sum() == (by == 0).sum()
  for size in range(1, 6):
    inside = [d for d in left if abs(int(d)).bit_length() == size]
    assert np.sign(inside).sum() == 0
  assert by.mean() > 30
  assert abs(left.mean()) < 0.15 * np.abs(left).mean()
  # What is balanced already stays whole.
  mirrored = [3, 1, 7, 2], [1, 3, 2, 7]
  assert judged.balance_lengths(*mirrored, seed=0) == [0, 1, 2, 3]


def test_no_prompt_is_on_both_sides(tmp_path):
  lines = [
    {"prompt": f"q{i % 40}", "completion": f"a{i}", "label": i % 2} for i in range(120)
  ]
  found, _ = read(tmp_path, "pointwise", *lines)
  train, held = judged.hold_out(found, 0.25, seed=0)
  sides = [{line.problem.prompt for line in side} for side in (train, held)]
  assert not sides[0] & sides[1]
  assert len(train) + len(held) == 120 and 3 <= len(sides[1]) <= 20
  # A prompt stays where it is when others come and go.
  again, _ = judged.hold_out(found[::2], 0.25, seed=0)
  assert [line for line in train if line in again] == again
  assert judged.hold_out(found, 0.0, seed=0)[1] == []
  with pytest.raises(InputError, match=r"held_out=0\.25 of 1 lines leaves"):
    judged.hold_out(found[:1], 0.25, seed=0)
  with pytest.raises(InputError, match=r"config\.data\.held_out=1: must"):
    judged.hold_out(found, 1, seed=0)


@pytest.mark.parametrize(
  ("text", "want"),
  [
    ("a\nb\nc", ("a\n", "b\n", "c")),
    ("a\n\n \nb\n", ("a\n\n \n", "b\n")),
    ("\n\na", ("\n\na",)),
    ("a", ("a",)),
    (" \n", ()),
    ("", ()),
  ],
)
def test_a_step_is_a_line(text, want):
  ends = judged.step_ends(text)
  starts = (0, *ends)
  assert tuple(text[a:b] for a, b in zip(starts, ends, strict=False)) == want


@pytest.mark.parametrize(
  ("make", "end"),
  [(vocabularies.byte_level, "<|end|>"), (vocabularies.byte_fallback, "</s>")],
)
def test_a_step_ends_with_the_token_that_completes_it(tmp_path, make, end):
  """Also of characters of several tokens."""
  tokenizer = load_tokenizer(make(tmp_path, tokenizer_config={"eos_token": end}))
  for text in ("one\n\u5317\u4eac\n\ntwo", "12\n34\n", "\U0001f642 the\nend"):
    ids = tokenizer.encode(text)
    text = tokenizer.decode(ids)
    ends = judged.step_ends(text)
    found = judged.tokens_at(tokenizer, ids, text, ends)
    assert len(found) == len(ends) > 1
    for end, number in zip(ends, found, strict=True):
      assert tokenizer.decode(ids[: number + 1]).startswith(text[:end])
      assert not tokenizer.decode(ids[:number]).startswith(text[:end])
    assert found[-1] == len(ids) - 1
    assert judged.tokens_at(tokenizer, ids, text + "more", [len(text) + 4]) is None
    assert judged.tokens_at(tokenizer, ids, text, [1, 1]) is None


def test_what_is_balanced_stays_as_it_is():
  """So a set that was balanced when it was made may be balanced again."""
  rng = np.random.default_rng(0)
  lengths = rng.integers(1, 40, (200, 2)).tolist()
  kept = judged.balance_lengths(*zip(*lengths, strict=True), seed=0)
  assert 50 < len(kept) < 200
  left = [lengths[place] for place in kept]
  again = judged.balance_lengths(*zip(*left, strict=True), seed=1)
  assert again == list(range(len(kept)))


def test_what_was_asked_is_read_back():
  messages = ({"role": "user", "content": "q"},)
  for problem in (
    Problem("p", "q", "", "exact"),
    Problem("p", "q", "", "exact", messages=messages),
  ):
    read = judged.asked(json.loads(json.dumps(judged.question(problem))))
    assert read == {"prompt": "q", "messages": problem.messages}
