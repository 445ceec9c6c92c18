"""Tests of published data sets: their files, their fields, where they come from."""

import csv
import dataclasses
import http.server
import json
import threading

import pytest

from r1jax.data import problems, published
from r1jax.errors import InputError
from r1jax.rewards import accuracy

GPQA = {
  "Record ID": "rec1",
  "Question": "Which is heavy?\n",
  "Correct Answer": " Lead, by far\n",
  "Incorrect Answer 1": "Cork",
  "Incorrect Answer 2": "Air",
  "Incorrect Answer 3": "Wood",
  "Explanation": "pages",
  "High-level domain": "Physics",
}


def load(source, folder, **kwargs):
  """From a folder, prepared below it."""
  if "path" not in kwargs:
    kwargs["dir"] = folder
  return problems.load_problems(source, data_dir=folder / "made", **kwargs)


def write_lines(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def write_cells(path, rows):
  with path.open("w", newline="", encoding="utf-8") as file:
    writer = csv.DictWriter(file, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
  return path


def write_columns(path, rows):
  import pyarrow
  import pyarrow.parquet

  path.parent.mkdir(parents=True, exist_ok=True)
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
  return path


def test_math_of_one_file_a_problem(tmp_path):
  """As it was first published; golds stand in boxes of the solutions."""
  for split, name, solution in (
    ("train", "algebra/7", r"So \fbox{1}, no, \boxed{\frac{1}{\sqrt{2}}}."),
    ("train", "geometry/1", r"It is $\boxed 2$ exactly."),
    ("train", "geometry/3", "no box"),
    ("test", "algebra/1", r"\boxed{9}"),
  ):
    path = tmp_path / split / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"problem": f"{name}?", "level": "Level 5", "solution": solution}
    path.write_text(json.dumps(record, indent=2))
  data = load("math", tmp_path)
  assert [(p.id, p.prompt, p.answer) for p in data] == [
    ("math/train/1", "algebra/7?", r"\frac{1}{\sqrt{2}}"),
    ("math/train/2", "geometry/1?", "2"),
  ]
  assert data.counts["dropped_unparsable_gold"] == 1
  assert data[1].meta["level"] == "Level 5"
  assert data[1].meta["category"] == "math"
  assert [p.answer for p in load("math", tmp_path, split="test")] == ["9"]


def test_math_of_a_file_with_answers(tmp_path):
  row = {"problem": "p?", "solution": r"\boxed{1}", "answer": "2", "level": 3}
  write_lines(tmp_path / "train.jsonl", [row])
  [problem] = load("math", tmp_path)
  assert (problem.answer, problem.meta["solution"]) == ("2", r"\boxed{1}")


@pytest.mark.parametrize(
  ("source", "names", "answer", "want"),
  [
    ("aime24", ("problem", "answer"), "073", "73"),
    ("aime24", ("Problem", "Answer"), 204, "204"),
    ("aime25", ("question", "answer"), "000", "0"),
    ("amc", ("problem", "answer"), 142.0, "142"),
    ("limo", ("question", "answer"), r"\frac{1}{2}", r"\frac{1}{2}"),
  ],
)
def test_answers_of_contests(tmp_path, source, names, answer, want):
  row = {names[0]: "p?", names[1]: answer, "url": "u"}
  [problem] = load(source, tmp_path, path=write_lines(tmp_path / "x.jsonl", [row]))
  assert (problem.prompt, problem.answer) == ("p?", want)
  assert problem.id == f"{source}/{next(iter(published.SETS[source].files))}/1"
  assert problem.meta == {"category": "math", "url": "u"}


def test_files_of_a_split_are_numbered_on(tmp_path):
  for part, rows in (("II", ["c?"]), ("I", ["a?", "b?"])):
    rows = [{"question": question, "answer": "1"} for question in rows]
    write_lines(tmp_path / f"aime2025-{part}.jsonl", rows)
  data = load("aime25", tmp_path)
  assert [(p.id, p.prompt) for p in data] == [
    ("aime25/test/1", "a?"),
    ("aime25/test/2", "b?"),
    ("aime25/test/3", "c?"),
  ]


def test_gpqa_letters_are_a_function_of_the_question(tmp_path):
  rows = [GPQA | {"Question": f"Which of {i} is heavy?"} for i in range(40)]
  write_cells(tmp_path / "gpqa_diamond.csv", rows)
  data = load("gpqa", tmp_path)
  letters = [problem.answer for problem in data]
  # Alone, and from a file of another kind, each has the same letter.
  lines = write_lines(tmp_path / "x.jsonl", rows[7:8])
  assert [p.answer for p in load("gpqa", tmp_path, path=lines)] == letters[7:8]
  assert all(letters.count(letter) >= 4 for letter in "ABCD")
  problem = data[0]
  options = problem.meta["options"]
  assert sorted(options) == ["Air", "Cork", "Lead, by far", "Wood"]
  assert options["ABCD".index(problem.answer)] == "Lead, by far"
  listed = "\n".join(f"{'ABCD'[i]}. {option}" for i, option in enumerate(options))
  assert problem.prompt == f"Which of 0 is heavy?\n\n{listed}"
  assert problem.meta["category"] == "stem"
  assert "Explanation" not in problem.meta
  # The verifier reads what is made here.
  for text, want in (
    (f"<answer>{problem.answer}</answer>", 1.0),
    ("<answer>Lead, by far</answer>", 1.0),
    ("<answer>Cork</answer>", 0.0),
  ):
    assert accuracy.score(text, dataclasses.asdict(problem)) == want


def test_svamp(tmp_path):
  rows = [
    {"Body": "Bo has 7 pens", "Question": "How many? ", "Answer": 7.0, "Type": "x"},
    {"Body": "Cy has 1.", "Question": "And now?", "Answer": "0.5"},
  ]
  (tmp_path / "SVAMP.json").write_text(json.dumps(rows, indent=1))
  data = load("svamp", tmp_path)
  assert [(p.prompt, p.answer) for p in data] == [
    ("Bo has 7 pens. How many?", "7"),
    ("Cy has 1. And now?", "0.5"),
  ]
  assert data[0].meta == {"category": "math", "Type": "x"}


def test_s1k_keeps_what_a_rule_can_judge(tmp_path):
  rows = [
    {"question": f"{i}?", "solution": solution, "cot_type": kind, "cot": "long"}
    for i, (solution, kind) in enumerate(
      [
        ("128", "math"),
        ("First\nthen \\boxed{6}", "math"),
        ("Proof: first\nthen", "math"),
        ("ZEBRA", "crossword"),
      ]
    )
  ]
  write_columns(tmp_path / "data" / "train-00000-of-00001.parquet", rows)
  data = load("s1k", tmp_path)
  assert [problem.answer for problem in data] == ["128", "6"]
  assert data.counts["dropped_unparsable_gold"] == 2
  assert data[0].meta == {"category": "math", "solution": "128", "cot_type": "math"}


def test_kinds_of_files(tmp_path):
  """What a file holds does not depend on how it is written down."""
  rows = [{"question": "a, b?", "answer": "1"}, {"question": 'c\n"d"?', "answer": "2"}]
  (tmp_path / "array.json").write_text(json.dumps(rows))
  paths = [
    write_lines(tmp_path / "lines.jsonl", rows),
    write_lines(tmp_path / "lines.json", rows),
    tmp_path / "array.json",
    write_cells(tmp_path / "cells.csv", rows),
    write_columns(tmp_path / "columns.parquet", rows),
  ]
  for path in paths:
    data = problems.load_problems("jsonl", path=path)
    assert [(p.prompt, p.answer) for p in data] == [("a, b?", "1"), ('c\n"d"?', "2")]
    assert [p.id for p in data] == [f"{path.stem}/1", f"{path.stem}/2"]


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("a.csv", b"question,answer\nx?,1,2\n", "row 1 has not as many cells"),
    ("a.json", b"[1", r"is no \.json file"),
    ("a.parquet", b"PAR1", r"is no \.parquet file"),
    ("a.json", b"[1]", r"a\.json:1: a int where an object should be"),
  ],
)
def test_files_that_are_not_what_they_are_called(tmp_path, name, content, message):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(InputError, match=message):
    problems.load_problems("jsonl", path=tmp_path / name)


@pytest.mark.parametrize(
  ("source", "kwargs", "message"),
  [
    ("gpqa", {}, r"GPQA \(diamond\) is not downloaded.*gpqa_diamond\.csv.*data\.dir"),
    ("limo", {"dir": "x"}, r"limo\*\.jsonl; set --config\.data\.dir .*LIMO"),
    ("limo", {"path": "x"}, r"no file x; set --config\.data\.path to LIMO's"),
    ("limo", {"path": "x", "dir": "y"}, "both say where LIMO is"),
    ("math", {"dir": "x", "split": "dev"}, r"config\.data\.split='dev'"),
  ],
)
def test_what_is_not_there_is_named(tmp_path, source, kwargs, message):
  with pytest.raises(InputError, match=message):
    problems.load_problems(source, data_dir=tmp_path, **kwargs)


def test_a_field_that_is_not_there_is_named(tmp_path):
  write_lines(tmp_path / "test.jsonl", [{"problem": "p?", "gold": "1"}])
  with pytest.raises(InputError, match=r"test\.jsonl:1: no field 'answer' among"):
    load("math500", tmp_path)


class Published(http.server.BaseHTTPRequestHandler):
  """Serves a file; under /cut the first request gets a part of it."""

  content = b'{"problem": "p?", "answer": "1"}\n{"problem": "q?", "answer": "2"}\n'
  asked = 0

  def do_GET(self):
    Published.asked += 1
    if "absent" in self.path:
      self.send_error(404)
      return
    self.send_response(200)
    self.send_header("Content-Length", str(len(self.content)))
    self.end_headers()
    whole = "cut" not in self.path or Published.asked > 1
    self.wfile.write(self.content if whole else self.content[:20])

  def log_message(self, *unused):
    pass


@pytest.fixture(name="address")
def _address():
  Published.asked = 0
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Published)
  threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
  yield f"http://127.0.0.1:{server.server_port}"
  server.shutdown()
  server.server_close()


def published_at(monkeypatch, *urls):
  known = dataclasses.replace(published.SETS["math500"], urls={"test": urls})
  monkeypatch.setitem(published.SETS, "math500", known)


def test_a_set_is_downloaded_once(tmp_path, monkeypatch, address):
  published_at(monkeypatch, f"{address}/cut/test.jsonl")
  # What comes in part is not kept.
  with pytest.raises(InputError, match=r"MATH-500 could not be .*--config\.data\.dir"):
    problems.load_problems("math500", data_dir=tmp_path)
  for _ in range(2):
    data = problems.load_problems("math500", data_dir=tmp_path)
    assert [problem.answer for problem in data] == ["1", "2"]
  assert Published.asked == 2


def test_an_address_without_the_file(tmp_path, monkeypatch, address):
  published_at(monkeypatch, f"{address}/absent.jsonl")
  with pytest.raises(InputError, match=r"HTTPError: 404.*--config\.data\.path"):
    problems.load_problems("math500", data_dir=tmp_path)


def test_no_network_is_said_at_once(tmp_path, monkeypatch):
  # A port where nothing listens.
  published_at(monkeypatch, "http://127.0.0.1:9/test.jsonl")
  with pytest.raises(InputError, match=r"ConnectionError.*--config\.data\.dir"):
    problems.load_problems("math500", data_dir=tmp_path)
