"""Tests of loading problems from every source."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from r1jax.data import builders, problems, published
from r1jax.errors import InputError

GSM8K = [
  {"question": "Ann has 2 pens and buys 3. How many?", "answer": "2+3=5\n#### 5"},
  {"question": "Bob sells 1,000 nuts twice. How many?", "answer": "So\n#### 2,000"},
  {"question": "Cy forgot the mark. How many?", "answer": "It is 7"},
  {"question": "Di wrote words. How many?", "answer": "#### seven"},
  {"question": "Ann has 2 pens and buys 3. How many?", "answer": "again\n#### 5"},
]


def write_lines(path, rows, *, end="\n"):
  lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
  path.write_text("\n".join(lines) + end)
  return path


@pytest.fixture(name="gsm8k_dir")
def _gsm8k_dir(tmp_path):
  folder = tmp_path / "gsm8k"
  folder.mkdir()
  write_lines(folder / "train.jsonl", GSM8K)
  # no newline after the last line
  write_lines(folder / "test.jsonl", GSM8K[:2], end="")
  return folder


def load_gsm8k(folder, **kwargs):
  return problems.load_problems(
    "gsm8k", dir=folder, data_dir=folder.parent / "prepared", **kwargs
  )


def test_gsm8k_folder(gsm8k_dir):
  """R9: golds that do not parse are dropped and counted."""
  data = load_gsm8k(gsm8k_dir)
  assert [problem.answer for problem in data] == ["5", "2000"]
  assert data.counts == {
    "read": 5,
    "skipped_bad_lines": 0,
    "dropped_unparsable_gold": 2,
    "duplicates": 1,
    "kept": 2,
  }
  assert data[0].id == "gsm8k/train/1"
  assert data[0].prompt == GSM8K[0]["question"]
  assert data[0].verifier == "gsm8k"
  assert data[0].meta == {"category": "math", "solution": "2+3=5"}


def test_gsm8k_last_line_may_lack_its_newline(gsm8k_dir):
  data = load_gsm8k(gsm8k_dir, split="test")
  assert [problem.id for problem in data] == ["gsm8k/test/1", "gsm8k/test/2"]


def test_gsm8k_is_prepared_once_per_content_as_array_record(gsm8k_dir, monkeypatch):
  first = load_gsm8k(gsm8k_dir)
  prepared = gsm8k_dir.parent / "prepared"
  assert len(list(prepared.rglob("*.array_record*"))) == 1

  def never(*_):
    raise AssertionError("generated again")

  with monkeypatch.context() as patch:
    patch.setattr(builders.LocalSet, "_generate_examples", never)
    assert list(load_gsm8k(gsm8k_dir)) == list(first)
  write_lines(gsm8k_dir / "train.jsonl", GSM8K[:1])
  assert len(load_gsm8k(gsm8k_dir)) == 1


def test_gsm8k_bad_line(gsm8k_dir):
  write_lines(gsm8k_dir / "train.jsonl", [GSM8K[0], '{"question": "Cut', GSM8K[1]])
  with pytest.raises(InputError, match=r"train\.jsonl:2: .*on_bad_line=skip"):
    load_gsm8k(gsm8k_dir)
  # the other split is not held up by it
  assert len(load_gsm8k(gsm8k_dir, split="test")) == 2
  for _ in range(2):  # prepared, and read back
    data = load_gsm8k(gsm8k_dir, on_bad_line="skip")
    assert [problem.id for problem in data] == ["gsm8k/train/1", "gsm8k/train/3"]
    assert data.counts["skipped_bad_lines"] == 1


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"split": "validation"}, r"config\.data\.split='validation'"),
    ({"on_bad_line": "ignore"}, r"config\.data\.on_bad_line='ignore'"),
    ({"size": 5}, r"config\.data\.size is set, but the source 'gsm8k'"),
    ({"limit": 0}, r"config\.data\.limit=0"),
  ],
)
def test_gsm8k_bad_arguments(gsm8k_dir, kwargs, message):
  with pytest.raises(InputError, match=message):
    load_gsm8k(gsm8k_dir, **kwargs)


def test_gsm8k_empty_file(gsm8k_dir):
  (gsm8k_dir / "train.jsonl").write_text("")
  with pytest.raises(InputError, match=r"empty: .*config\.data\.dir="):
    load_gsm8k(gsm8k_dir)
  assert len(load_gsm8k(gsm8k_dir, split="test")) == 2


def test_gsm8k_missing_folder(tmp_path):
  with pytest.raises(
    InputError, match=r"nowhere/train\.jsonl; set --config\.data\.dir"
  ):
    load_gsm8k(tmp_path / "nowhere")


def test_gsm8k_prepared_by_several_processes_at_once(gsm8k_dir):
  code = (
    "import sys; from r1jax.data import problems;"
    "print(len(problems.load_problems('gsm8k', dir=sys.argv[1], data_dir=sys.argv[2])))"
  )
  command = [sys.executable, "-c", code, str(gsm8k_dir), str(gsm8k_dir / "prepared")]
  running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
  outputs = [process.communicate()[0].split()[-1:] for process in running]
  assert outputs == [[b"2"]] * 3


def test_jsonl_fields(tmp_path):
  rows = [
    {"question": "one?", "answer": "1", "level": 3},
    {"problem": "half?", "answer": 0.5},
    "",
    {"prompt": "two?", "answer": 2},
  ]
  data = problems.load_problems("jsonl", path=write_lines(tmp_path / "a.jsonl", rows))
  assert [(p.id, p.prompt, p.answer) for p in data] == [
    ("a/1", "one?", "1"),
    ("a/2", "half?", "0.5"),
    ("a/4", "two?", "2"),
  ]
  assert data[0].meta == {"category": "jsonl", "level": 3}
  assert data[0].verifier == "math"


def test_jsonl_named_fields_and_verifier(tmp_path):
  path = write_lines(tmp_path / "a.jsonl", [{"q": "b?", "a": "B", "answer": "C"}])
  [problem] = problems.load_problems(
    "jsonl", path=path, prompt_field="q", answer_field="a", verifier="exact"
  )
  assert (problem.prompt, problem.answer, problem.verifier) == ("b?", "B", "exact")
  assert problem.meta == {"category": "jsonl", "answer": "C"}


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ('{"question": "two?"', "delimiter"),
    ('["two?"]', "a list where an object should be"),
    ('{"answer": "2"}', "no field 'prompt'"),
    ('{"question": "two?"}', "no field 'answer'"),
    ('{"question": " ", "answer": "2"}', "field 'question' is ' '"),
    ('{"question": "two?", "answer": null}', "field 'answer' is None"),
    ('{"question": "two?", "answer": true}', "field 'answer' is True"),
    ('{"question": "two?", "answer": NaN}', "field 'answer' is nan"),
    ('{"question": "two?", "answer": "2", "category": 3}', "field 'category' is 3"),
  ],
)
def test_jsonl_bad_line_is_named_or_skipped(tmp_path, line, message):
  rows = [{"question": "one?", "answer": "1"}, line]
  path = write_lines(tmp_path / "a.jsonl", rows)
  with pytest.raises(InputError, match=rf"a\.jsonl:2: .*{message}"):
    problems.load_problems("jsonl", path=path)
  data = problems.load_problems("jsonl", path=path, on_bad_line="skip")
  assert [problem.id for problem in data] == ["a/1"]
  assert data.counts["skipped_bad_lines"] == 1


def test_jsonl_category_and_no_gold(tmp_path):
  rows = [
    {"prompt": "Say hello.", "category": "talk"},
    {"prompt": "Say bye.", "answer": "Bye."},
  ]
  path = write_lines(tmp_path / "a.jsonl", rows)
  data = problems.load_problems("jsonl", path=path, verifier="none")
  assert [(p.verifier, p.answer) for p in data] == [("none", ""), ("none", "Bye.")]
  assert [p.meta["category"] for p in data] == ["talk", "jsonl"]
  with pytest.raises(InputError, match="no field 'answer'"):
    problems.load_problems("jsonl", path=path)


def mixture(tmp_path, **of):
  """A file each of what is asked."""
  for name, prompts in of.items():
    write_lines(tmp_path / f"{name}.jsonl", [{"prompt": p} for p in prompts])
  made = {
    name: {"source": "jsonl", "path": f"{tmp_path}/{name}.jsonl", "verifier": "none"}
    for name in of
  }
  return made


def test_a_mixture_is_its_sources_one_behind_another(tmp_path):
  same = tmp_path / "same.jsonl"
  write_lines(same, [{"prompt": "1+1?", "answer": "2", "category": "x"}])
  of = mixture(tmp_path, talk=["Hi!", "1+1?", "Hi!"])
  of["sums"] = {"source": "jsonl", "path": same}
  of["more"] = {"source": "jsonl", "path": same, "on_bad_line": "skip"}
  write_lines(tmp_path / "bad.jsonl", ["{", '{"prompt": "2+2?", "answer": "4"}'])
  inner = {"a": {"source": "jsonl", "path": tmp_path / "bad.jsonl"}}
  inner["a"]["on_bad_line"] = "skip"
  of["inner"] = {"source": "mixture", "of": inner}
  data = problems.load_problems("mixture", of={k: of[k] for k in ("sums", "talk")})
  assert [p.id for p in data] == ["sums/same/1", "talk/talk/1"]
  assert [p.meta["category"] for p in data] == ["sums", "talk"]
  data = problems.load_problems("mixture", of=of)
  assert [p.id for p in data] == ["talk/talk/1", "talk/talk/2", "inner/a/bad/2"]
  assert [p.meta["category"] for p in data] == ["talk", "talk", "inner"]
  assert data.counts == {
    "read": 7,
    "skipped_bad_lines": 1,
    "dropped_unparsable_gold": 0,
    "duplicates": 3,
    "kept": 3,
  }
  assert data.name == "mixture"
  # Files of one name in two folders share no id.
  of = {name: {"source": "jsonl", "path": same} for name in ("a", "b")}
  (tmp_path / "b").mkdir()
  of["b"]["path"] = write_lines(
    tmp_path / "b" / "same.jsonl", [{"prompt": "3?", "answer": "3"}]
  )
  assert [p.id for p in problems.load_problems("mixture", of=of)] == [
    "a/same/1",
    "b/same/1",
  ]


def test_a_part_of_a_mixture_may_be_limited(tmp_path):
  of = mixture(tmp_path, a="123", b="456")
  of["a"]["limit"] = 1
  data = problems.load_problems("mixture", of=of, limit=3)
  assert [p.prompt for p in data] == ["1", "4", "5"]


@pytest.mark.parametrize(
  ("of", "message"),
  [
    ({}, "'mixture' needs --config.data.of"),
    ({"a": {}}, r"config\.data\.of\.a\.source is missing"),
    (
      {"a": {"source": "jsonl", "pth": ""}},
      r"key of config\.data\.of\.a='pth'.*'path'",
    ),
    ({"a": {"source": "jsnl"}}, r"config\.data\.of\.a\.source='jsnl'.*'jsonl'"),
    ({"a": {"source": "jsonl", "size": 3}}, r"config\.data\.of\.a\.size is set, but"),
    ({"a/b": {"source": "jsonl"}}, "'a/b' is no name for a category"),
    (
      {"a": {"source": "mixture", "of": {"b": {"source": "x"}}}},
      r"config\.data\.of\.a\.of\.b\.source='x'",
    ),
  ],
)
def test_mixtures_that_cannot_be(of, message):
  with pytest.raises(InputError, match=message):
    problems.load_problems("mixture", of=of)


def test_a_task_may_be_asked_without_its_judge():
  task = {"task": "op_chain", "size": 2}
  of = {"chains": {"source": "reasoning_gym", "verifier": "none", **task}}
  data = problems.load_problems("mixture", of=of)
  assert {p.verifier for p in data} == {"none"}
  [*ids] = [p.id for p in problems.load_problems("reasoning_gym", **task)]
  assert [p.id for p in data] == [f"chains/{one}" for one in ids]


def test_jsonl_bytes_that_are_no_text(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_bytes(b'{"question": "one?", "answer": "1"}\n{"question": "\xff"}')
  with pytest.raises(InputError, match=r"a\.jsonl:2: "):
    problems.load_problems("jsonl", path=path)


def test_jsonl_separators_inside_a_text_end_no_line(tmp_path):
  row = {"question": "one\u2028two\x0bthree?", "answer": "1"}
  path = tmp_path / "a.jsonl"
  path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
  [problem] = problems.load_problems("jsonl", path=path)
  assert problem.prompt == row["question"]


def test_math500_folder_drops_golds_without_meaning(tmp_path):
  """R9: golds that math-verify cannot read are dropped and counted."""
  rows = [
    {"problem": "a?", "answer": r"\frac{14}{3}", "subject": "Algebra"},
    {"problem": "b?", "answer": r"\frac{1}{"},
    {"problem": "c?", "answer": "?"},
  ]
  write_lines(tmp_path / "test.jsonl", rows, end="")
  data = problems.load_problems("math500", dir=tmp_path, data_dir=tmp_path / "made")
  assert [problem.id for problem in data] == ["math500/test/1"]
  assert data[0].meta == {"category": "math", "subject": "Algebra"}
  assert data.counts["dropped_unparsable_gold"] == 2


@pytest.mark.parametrize("rows", [[], [{"question": "a?", "answer": "?"}]])
def test_empty_data_set_is_an_input_error(tmp_path, rows):
  path = write_lines(tmp_path / "a.jsonl", rows)
  with pytest.raises(InputError, match=r"empty: .*config\.data\.path=.*a\.jsonl"):
    problems.load_problems("jsonl", path=path)


def test_limit_keeps_the_first(tmp_path):
  rows = [{"question": f"{i}?", "answer": str(i)} for i in range(9)]
  path = write_lines(tmp_path / "a.jsonl", rows)
  data = problems.load_problems("jsonl", path=path, limit=4)
  assert [problem.answer for problem in data] == ["0", "1", "2", "3"]
  assert data[1:3] == (data[1], data[2])


def load_task(task="chain_sum", **kwargs):
  return problems.load_problems("reasoning_gym", task=task, **{"size": 50, **kwargs})


def test_reasoning_gym_is_deterministic_and_splits_share_nothing():
  args = {"min_digits": 4, "min_terms": 4}  # too many sums to meet one twice
  first = load_task(task_args=args)
  assert list(first) == list(load_task(task_args=args))
  prompts = {problem.prompt for problem in first}
  # the library's own seeds 0 and 1 would share 49 of 50
  for other in ({"split": "test"}, {"seed": 1}):
    data = load_task(task_args=args, **other)
    assert not prompts & {problem.prompt for problem in data}
  assert first[7].id == "chain_sum/train/0/7"
  assert first[7].meta["entry"]["answer"] == first[7].answer


def test_reasoning_gym_task_args():
  args = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
  for problem in load_task(task_args=args):
    assert problem.meta["entry"]["metadata"]["num_terms"] == 2
    assert problem.meta["task_args"] == args


def test_op_chain_is_reached_by_the_same_path():
  data = load_task("op_chain", task_args={"split": "heldout", "min_steps": 3})
  assert data[0].prompt.endswith("= ?")
  assert data[0].meta["module"] == "r1jax.data.chain"


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"task": "chain_sun"}, "did you mean 'chain_sum'"),
    ({"task": "op_chian"}, "did you mean 'op_chain'"),
    ({"task_args": {"min_term": 2}}, "does not fit 'chain_sum'.*min_term"),
    ({"task_args": {"min_terms": 0}}, "does not fit 'chain_sum'"),
    ({"task": "op_chain", "task_args": {"split": "hold"}}, "task_args.split='hold'"),
    ({"size": None}, "needs --config.data.size"),
    ({"path": "a.jsonl"}, "config.data.path is set, but"),
  ],
)
def test_reasoning_gym_bad_arguments(kwargs, message):
  with pytest.raises(InputError, match=message):
    load_task(**kwargs)


def test_unknown_source():
  with pytest.raises(InputError, match=r"config\.data\.source='gsm'.*'gsm8k'"):
    problems.load_problems("gsm")


def test_no_tensorflow(gsm8k_dir):
  code = (
    "import sys; from r1jax.data import problems;"
    "d = problems.load_problems('gsm8k', dir=sys.argv[1], data_dir=sys.argv[2]);"
    "print(len(d), 'tensorflow' in sys.modules)"
  )
  out = subprocess.run(
    [sys.executable, "-c", code, str(gsm8k_dir), str(gsm8k_dir / "prepared")],
    capture_output=True,
    text=True,
    check=True,
  )
  assert out.stdout.splitlines()[-1] == "2 False"


REAL = pathlib.Path(os.environ.get("R1JAX_DATA", "../shared/data"))


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="set R1JAX_DATA to the data folder")
def test_real_data(tmp_path):
  for split, rows in (("train", 7473), ("test", 1319)):
    data = problems.load_problems(
      "gsm8k", dir=REAL / "gsm8k", data_dir=tmp_path, split=split
    )
    assert data.counts["read"] == rows
    assert len(data) == rows
  assert data[0].answer == "18"
  maths = problems.load_problems("math500", dir=REAL / "math500", data_dir=tmp_path)
  assert len(maths) == 500
  # The worked solutions box the answers that stand beside them.
  same = [
    published.boxed(problem.meta["solution"]) == problem.answer for problem in maths
  ]
  assert sum(same) >= 495
