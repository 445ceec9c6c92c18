import io

import pytest
from rich.console import Console

from r1jax import terminal

RECORD = {
  "step": 20,
  "stage": "zero",
  "problem_id": "op_chain/7",
  "prompt": "3 a+4 b*3 = ?",
  "completion": "<think>a+4=7 b*3=1</think><answer>1</answer>",
  "answer": "1",
  "length": 21,
  "stop": "eos",
  "reward": {"total": 1.1, "accuracy": 1.0, "format": 0.1},
}
METRICS = {
  "reward/total": 0.8125,
  "reward/accuracy": 0.75,
  "rollout/length_mean": 41.25,
  "rollout/tokens_per_s": 2143.7,
}


def console_of(*, is_terminal=False, width=120):
  out = io.StringIO()
  colors = "standard" if is_terminal else None
  return Console(
    file=out, force_terminal=is_terminal, width=width, color_system=colors
  ), out


@pytest.mark.parametrize(
  ("prompt", "completion", "want"),
  [
    (
      "q",
      "<think>a</think> <answer>b</answer>",
      [
        ("tag", "<think>"),
        ("think", "a"),
        ("tag", "</think>"),
        ("plain", " "),
        ("tag", "<answer>"),
        ("answer", "b"),
        ("tag", "</answer>"),
      ],
    ),
    (
      "q <think>\n",
      "a</think>b",
      [("think", "a"), ("tag", "</think>"), ("plain", "b")],
    ),
    ("q", "<think>cut of", [("tag", "<think>"), ("think", "cut of")]),
    ("q", "</think>x", [("stray", "</think>"), ("plain", "x")]),
    (
      "q",
      "<think><think>a",
      [("tag", "<think>"), ("stray", "<think>"), ("think", "a")],
    ),
    ("q", "", []),
    ("q", "a < b <thin>", [("plain", "a < b <thin>")]),
  ],
)
def test_spans_set_thinking_apart_and_lose_nothing(prompt, completion, want):
  got = terminal.spans(prompt, completion)
  assert [tuple(span) for span in got] == want
  assert "".join(span.text for span in got) == completion


@pytest.mark.parametrize(
  ("seconds", "want"),
  [
    (0.34, "0.3 s"),
    (48.2, "48 s"),
    (59.7, "1 min"),
    (492, "8 min 12 s"),
    (11_050, "3 h 4 min"),
    (198_000, "2 d 7 h"),
  ],
)
def test_duration(seconds, want):
  assert terminal.duration(seconds) == want


def test_num_bytes():
  assert terminal.num_bytes(12) == "12 B"
  assert terminal.num_bytes(3.1 * 2**20) == "3.1 MiB"


def test_resolved_table_has_every_fact():
  console, out = console_of()
  terminal.print_resolved(
    config_path="configs/quickstart.py",
    stages=["base", "zero"],
    devices=["cpu"] * 8,
    mesh={"data": 2, "fsdp": 4, "tp": 1},
    num_params=1_234_567,
    bytes_per_device=5 * 2**20,
    workdir="runs/[bold]q",
    console=console,
  )
  shown = out.getvalue()
  for want in (
    "configs/quickstart.py",
    "base → zero",
    "8 × cpu",
    "data 2 × fsdp 4\n",
    "1,234,567",
    "5.0 MiB",
    "runs/[bold]q",
  ):
    assert want in "\n".join(line.rstrip() for line in shown.splitlines()) + "\n"


def test_plain_lines_are_one_a_step_with_the_time_left(monkeypatch):
  console, out = console_of(width=40)
  now = iter([100.0, 102.0, 104.0])
  monkeypatch.setattr(terminal.time, "monotonic", lambda: next(now))
  with terminal.Progress("zero", 300, console=console) as progress:
    for step in (1, 2, 3):
      progress.step(step, METRICS)
  lines = out.getvalue().splitlines()
  want = "reward 0.812  acc 75.0%  length 41.2  2,144 tok/s"
  assert lines == [
    f"zero   1/300  {want}",
    f"zero   2/300  {want}  9 min 56 s left",
    f"zero   3/300  {want}  9 min 54 s left",
  ]


def test_plain_lines_come_once_a_second_and_at_the_end(monkeypatch):
  console, out = console_of()
  clock = iter([5.0, 5.4, 5.9, 6.1, 6.2])
  monkeypatch.setattr(terminal.time, "monotonic", lambda: next(clock))
  with terminal.Progress("base", 5, console=console) as progress:
    for step in (1, 2, 3, 4, 5):
      progress.step(step, {})
  shown = [line.split()[1] for line in out.getvalue().splitlines()]
  assert shown == ["1/5", "4/5", "5/5"]


def test_a_step_without_a_number_leaves_it_out():
  console, out = console_of()
  with terminal.Progress("base", 10, console=console) as progress:
    progress.step(10, {"loss/cross_entropy": 1.5, "reward/total": None})
  assert out.getvalue() == "base 10/10  loss 1.500\n"


def test_a_terminal_shows_one_line_in_place_and_keeps_evaluations():
  console, out = console_of(is_terminal=True, width=200)
  evaluation = {
    "eval/heldout/accuracy": 0.314,
    "eval/heldout/accuracy_low": 0.275,
    "eval/heldout/accuracy_high": 0.356,
    "eval/heldout/length_mean": 9.4,
    "eval/heldout/n": 512,
  }
  with terminal.Progress("zero", 3, console=console) as progress:
    progress.step(1, METRICS)
    progress.evaluation(1, evaluation)
    progress.step(2, METRICS | {"reward/total": 0.9})
  shown = out.getvalue()
  assert "\x1b[2K" in shown, "nothing was rewritten in place"
  assert any(bar in shown for bar in "▁█")
  assert "27.5 to 35.6%" in shown
  assert shown.rstrip().splitlines()[-1].count("zero") == 1


def test_sample_dims_thinking_and_escapes_what_a_model_wrote():
  """R22: samples can be seen in the terminal."""
  console, out = console_of(is_terminal=True)
  completion = "<think>[red]\x1b[31m\x07</think><answer>1</answer>"
  record = RECORD | {"completion": completion, "stop": "length"}
  terminal.Progress("zero", 300, console=console).sample(record)
  shown = out.getvalue()
  assert "\x1b[2m[red]␛[31m␇\x1b[0m" in shown
  assert "\x1b[1m1\x1b[0m" in shown
  assert "op_chain/7" in shown and "cut off" in shown
  assert "1.1" in shown and "accuracy 1, format 0.1" in shown


def test_sample_clips_what_is_long():
  console, out = console_of()
  record = RECORD | {"completion": "<think>" + "x" * 100_000}
  terminal.Progress("zero", 300, console=console).sample(record)
  assert "characters left out" in out.getvalue()
  assert len(out.getvalue()) < 3000


def test_closing_says_where_to_look_and_how_to_go_on():
  console, out = console_of()
  terminal.closing(
    "runs/q s",
    command=["python", "-m", "r1jax.train", "--workdir=runs/q s"],
    seconds=492,
    report="runs/q s/report.html",
    console=console,
  )
  shown = out.getvalue()
  assert "8 min 12 s" in shown
  assert "runs/q s/report.html" in shown
  assert "python -m r1jax.train '--workdir=runs/q s'" in shown
