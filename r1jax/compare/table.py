"""The table of a comparison, as Markdown, and its numbers as text."""

from collections.abc import Sequence

from r1jax.compare.curves import Comparison, Estimate

_COLUMNS = (
  *("stage", "accuracy", "of each seed", "less that of `{first}`"),
  *("tokens", "updates", "time", "answers in all"),
)


def markdown(comparison: Comparison) -> str:
  """The page: what was compared, the table, what the columns count."""
  first = next(iter(comparison.stages))
  rows = [[column.format(first=first) for column in _COLUMNS]]
  rows.append(["---"] * len(_COLUMNS))
  for name, stage in comparison.stages.items():
    gain = "" if stage.gain is None else points(stage.gain)
    by_seed = ", ".join(f"{100 * accuracy:.1f}" for accuracy in stage.by_seed)
    counts = (f"{x:,.0f}" for x in (stage.tokens, stage.updates))
    rows.append(
      [
        *(f"`{name}`", percent(stage.accuracy[-1]), by_seed, gain, *counts),
        *(f"{stage.seconds:,.0f} s", f"{stage.drawn:,.0f}"),
      ]
    )
  table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
  return f"""{about(comparison)}

{table}

Means over the seeds; in brackets the 95 % interval of the mean by Student's t, which
takes the seeds for a normal sample. Differences are taken seed by seed, as runs of one
seed share all that comes before; one whose interval holds 0 may be chance. Tokens,
updates and time are those up to as many answers, on straight lines between evaluations.
Answers of groups that were dropped count, those of evaluations do not. Time is that of
the steps, of which the first compiles.
"""


def about(comparison: Comparison) -> str:
  """What was compared, in a sentence."""
  temperatures = " or ".join(f"{x:g}" for x in comparison.temperatures)
  return (
    f"Accuracy on {comparison.num_problems:,} problems of “{comparison.eval_set}”, "
    f"answered at temperature {temperatures}, after {comparison.budget:,.0f} answers "
    f"drawn for training; seeds {_listed(comparison.seeds)}."
  )


def percent(share: Estimate) -> str:
  """A share with its interval."""
  low, high = (f"{100 * x:.1f}" for x in (share.low, share.high))
  return f"{100 * share.mean:.1f} % ({low} to {high})"


def points(gain: Estimate) -> str:
  """A difference of shares with its interval, in percentage points."""
  mean, low, high = (
    f"{100 * x:+.1f}".replace("-", "−") for x in (gain.mean, gain.low, gain.high)
  )
  return f"{mean} ({low} to {high})"


def _listed(numbers: Sequence[int]) -> str:
  *others, last = map(str, numbers)
  return f"{', '.join(others)} and {last}"
