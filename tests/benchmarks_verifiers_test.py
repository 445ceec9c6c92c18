"""The benchmark of verdicts judges what it says that it judges."""

import dataclasses

import pytest

from r1jax.errors import InputError
from r1jax.rewards import accuracy
from tests.benchmarks import verifiers


@pytest.mark.parametrize("kind", ["gsm8k", "numbers", "formulas"])
def test_every_other_answer_is_right(kind):
  texts, problems = verifiers.answers(kind, 6, start=10)
  records = [dataclasses.asdict(problem) for problem in problems]
  got = [accuracy.score(*one) for one in zip(texts, records, strict=True)]
  assert got == [1.0, 0.0] * 3
  more, _ = verifiers.answers(kind, 6, start=16)
  assert len({*texts, *more}) == 12


@pytest.mark.slow
def test_fields():
  got = verifiers.measure(["numbers=64", "formulas=4"], 2)
  for kind, count in (("gsm8k", 64), ("numbers", 64), ("formulas", 4)):
    assert len(got[kind]["seconds"]) == 2
    per_minute = 60 * count / got[kind]["median_s"]
    assert got[kind]["verdicts_per_minute"] == pytest.approx(per_minute)


def test_an_unknown_setting_is_named():
  with pytest.raises(InputError, match="did you mean 'formulas'"):
    verifiers.measure(["formula=4"], 1)
