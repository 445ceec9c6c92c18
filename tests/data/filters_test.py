"""What is measured of worked-out answers, and what a sieve counts and keeps."""

import pytest

from r1jax.data import filters

THOUGHT = "<think>One two three.\n\nFour five\nsix seven.</think>\n\n<answer>8</answer>"


@pytest.mark.parametrize(
  ("text", "chain"),
  [
    ("<think>a b</think> c", "a b"),
    ("a b</think> c", "a b"),
    ("<think>a b", "a b"),
    ("a b", "a b"),
    ("x <think>a</think> c </think> d", "a"),
    ("", ""),
  ],
)
def test_the_chain_of_thought(text, chain):
  assert filters.chain(text) == chain


def test_a_paragraph_ends_at_a_blank_line_or_a_tag():
  assert filters.paragraphs(THOUGHT) == ["One two three.", "Four five\nsix seven.", "8"]
  assert filters.paragraph_words(THOUGHT) == 4
  assert filters.paragraph_characters(THOUGHT) == len("Four five\nsix seven.")
  assert filters.paragraph_words("a b \n \t\n c") == 2
  assert filters.paragraph_words("") == 0
  # The summary is for the reader, and not measured.
  assert filters.paragraph_words("<think>a</think>b c d") == 1


@pytest.mark.parametrize(
  ("text", "count"),
  [
    ("no code, `x` aside", 0),
    ("```\nx\n```", 1),
    ("a\n```python\nx\n```\nb\n~~~\ny\n~~~", 2),
    ("```\nnever closed", 1),
    ("````\n```\nx\n```\n````", 1),
    ("```\n~~~\n```", 1),
    ("```\n```not the end\n```", 1),
    ("    ```\nindented", 0),
    ("<think>a</think>```\nthe answer\n```", 0),
  ],
)
def test_code_blocks_of_the_thought(text, count):
  assert filters.code_blocks(text) == count


def test_a_sieve_counts_all_and_keeps_some_examples():
  sieve = filters.Sieve(2, lambda item: {"item": item})
  kept = sieve("odd", range(7), lambda item: f"{item} is odd" if item % 2 else "")
  assert kept == [0, 2, 4, 6]
  assert sieve("large", kept, lambda item: "large" if item > 4 else "") == [0, 2, 4]
  assert sieve("none", [], lambda item: "never asked") == []
  assert sieve.counts == {"odd": 3, "large": 1, "none": 0}
  assert sieve.examples == [
    {"filter": "odd", "why": "1 is odd", "item": 1},
    {"filter": "odd", "why": "3 is odd", "item": 3},
    {"filter": "large", "why": "large", "item": 6},
  ]


def test_once_and_at_most():
  sieve = filters.Sieve(0, str)
  words = ["a b", "A  B\n", "c", "a b"]
  assert sieve("again", words, filters.once(filters.same_text)) == ["a b", "c"]
  few = filters.at_most(2, lambda item: item % 3)
  assert sieve("many", range(9), few) == [0, 1, 2, 3, 4, 5]
  assert sieve("any", range(9), filters.at_most(0, lambda item: 0)) == [*range(9)]
  assert (sieve.counts, sieve.examples) == ({"again": 2, "many": 3, "any": 0}, [])


def test_texts_are_the_same_up_to_case_and_space_alone():
  assert filters.same_text("a", "b") != filters.same_text("b", "a")
  assert filters.same_text("ab") != filters.same_text("a b")
