r"""Data sets that others have published: what their files hold, and problems of it.

Files come from a folder or a path, or are downloaded where their address is known here.
Seen here were GSM8K, MATH-500, and records of AIME 2025 and of GPQA; what the files of
the other sets are called, and their fields, is as their publishers and users describe
them. Contents are not compared with checksums.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from etils import epath

from r1jax.boxes import last_boxed
from r1jax.data import builders
from r1jax.data.builders import Record
from r1jax.errors import InputError, one_of
from r1jax.types import Problem

_TIMEOUT_S = 10  # without a byte
_RAW = "https://raw.githubusercontent.com"
_HUB = "https://huggingface.co/datasets"
_CONTESTS = "Mathematical Association of America, American Mathematics Competitions"


@dataclasses.dataclass(frozen=True)
class DataSet:
  """A data set.

  Attributes:
    files: split -> patterns of names in a folder; the first that is there is taken,
      with all files that match it.
    fields: see `builders.LocalSet`.
    problem: (record with `fields`, the other fields) -> prompt, gold answer and what
      goes to `Problem.meta`.
    category: of its problems, as the DeepSeek-R1 report (arXiv 2501.12948) names them.
    license: "" where it is not known here.
    urls: split -> addresses of its files; none where there is no open one, or none
      that is known here.
  """

  title: str
  files: Mapping[str, Sequence[str]]
  fields: Mapping[str, Sequence[str]]
  problem: Callable[[Record, Record], tuple[str, str, Record]]
  verifier: str
  category: str
  citation: str
  license: str = ""
  urls: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)


def read(
  name: str,
  split: str,
  *,
  on_bad_line: str,
  dir: epath.PathLike | None = None,
  path: epath.PathLike | None = None,
  data_dir: epath.PathLike | None = None,
) -> Iterator[Problem | None]:
  """Problems `name`/split/line of a set in SETS; None for a line that is skipped.

  Raises:
    InputError: no such split, files or address, or a bad line.
  """
  known = SETS[name]
  one_of(split, known.files, key="config.data.split")
  if path is not None and dir is not None:
    raise InputError(
      f"config.data.dir={dir} and config.data.path={path} both say where {known.title} "
      "is; leave one out"
    )
  if path is not None:
    paths = [epath.Path(path)]
    if not paths[0].is_file():
      raise InputError(f"no file {path}; set --config.data.path to {known.title}'s")
  elif dir is not None:
    paths = _in_folder(known, split, epath.Path(dir))
  else:
    paths = _downloaded(known, split, builders.prepared_folder(data_dir) / "downloads")
  found = builders.open_files(
    paths,
    split,
    name=name,
    fields=known.fields,
    about={
      "description": known.title,
      "citation": known.citation,
      "license": known.license,
    },
    data_dir=data_dir,
    on_bad_line=on_bad_line,
  )
  for record in found:
    if not record["more"]:
      yield None
      continue
    prompt, answer, meta = known.problem(record, json.loads(record["more"]))
    yield Problem(
      id=f"{name}/{split}/{record['line']}",
      prompt=prompt,
      answer=answer,
      verifier=known.verifier,
      meta={"category": known.category, **meta},
    )


def _in_folder(known: DataSet, split: str, folder: epath.Path) -> list[epath.Path]:
  for pattern in known.files[split]:
    if paths := sorted(folder.glob(pattern)):
      return paths
  raise InputError(
    f"no file {folder}/{known.files[split][0]}; set --config.data.dir to the folder of "
    f"{known.title} (split {split!r} is looked for as "
    f"{', '.join(known.files[split])}), or --config.data.path to the file"
  )


def _downloaded(known: DataSet, split: str, folder: epath.Path) -> list[epath.Path]:
  """Files of a split, which are fetched once."""
  import requests

  elsewhere = (
    f"give the folder with its {known.files[split][0]} by --config.data.dir, or the "
    "file by --config.data.path"
  )
  if split not in known.urls:
    raise InputError(f"{known.title} is not downloaded by this program; {elsewhere}")
  paths = []
  for url in known.urls[split]:
    mark = hashlib.sha256(url.encode()).hexdigest()[:8]
    paths.append(folder / f"{mark}_{url.rpartition('/')[2]}")
    if paths[-1].exists():
      continue
    try:
      answer = requests.get(url, timeout=_TIMEOUT_S)
      answer.raise_for_status()
    except requests.RequestException as e:
      raise InputError(
        f"{known.title} could not be downloaded from {url} ({type(e).__name__}: {e}); "
        f"{elsewhere}"
      ) from e
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{paths[-1].name}.{os.getpid()}"
    part.write_bytes(answer.content)
    part.replace(paths[-1])
  return paths


# Of each set: (its texts, its other fields) -> prompt, gold answer, meta.


def _numbered(record: Record, more: Record) -> tuple[str, str, Record]:
  """`answer` ends in `#### N`, which is the gold; the rest is kept."""
  del more
  solution, mark, gold = record["answer"].rpartition("####")
  gold = gold.strip().replace(",", "") if mark else ""
  return record["question"], gold, {"solution": solution.strip()}


def _answered(record: Record, more: Record) -> tuple[str, str, Record]:
  return record["problem"], whole(record["answer"]), more


def _worked(record: Record, more: Record) -> tuple[str, str, Record]:
  """The gold is what the solution boxes, unless it is given by itself."""
  answer = more.pop("answer", None) or boxed(record["solution"])
  return record["problem"], str(answer), {"solution": record["solution"], **more}


def _selected(record: Record, more: Record) -> tuple[str, str, Record]:
  """The gold is what the solution boxes, or a short solution; else "", which is none.

  So proofs and crosswords have none. The traces, each several pages long, are left out.
  """
  solution = record["solution"].strip()
  gold = boxed(solution) or solution
  is_short = len(gold) <= _LONGEST_GOLD and "\n" not in gold
  if not is_short or more.get("cot_type", "math") != "math":
    gold = ""
  kept = {k: more[k] for k in ("source_type", "cot_type") if k in more}
  return record["question"], gold, {"solution": solution, **kept}


def _told(record: Record, more: Record) -> tuple[str, str, Record]:
  """A story and what is asked about it."""
  body = record["body"].strip()
  if body[-1] not in ".?!,":
    body += "."
  return f"{body} {record['question'].strip()}", whole(record["answer"]), more


def _chosen(record: Record, more: Record) -> tuple[str, str, Record]:
  """Options are in the order of a hash of question and option, the gold is a letter.

  Where the right one stands is a matter of chance, and the same in every run.
  """
  question = record["question"].strip()
  right, *wrong = (record[name].strip() for name in _OPTIONS)

  def place(option: str) -> bytes:
    return hashlib.sha256(f"{question}\0{option}".encode()).digest()

  options = sorted((right, *wrong), key=place)
  listed = "\n".join(f"{'ABCD'[i]}. {text}" for i, text in enumerate(options))
  kept = {name: more[name] for name in _GPQA_KEPT if name in more}
  return (
    f"{question}\n\n{listed}",
    "ABCD"[options.index(right)],
    {"options": options, **kept},
  )


_OPTIONS = ("correct", "incorrect_1", "incorrect_2", "incorrect_3")
_LONGEST_GOLD = 100  # characters; what is longer is a text
_GPQA_KEPT = ("Record ID", "High-level domain", "Subdomain")


def whole(number: str) -> str:
  """A whole number without leading zeros and a point; other texts as they are."""
  number = number.strip()
  found = re.fullmatch(r"(-?)0*(\d+?)(?:\.0+)?", number)
  return "".join(found.groups()) if found else number


def boxed(solution: str) -> str:
  r"""What the last `\boxed` or `\fbox` of a worked solution holds; "" without one."""
  braced = re.sub(r"\\(?:boxed|fbox)\s*\{", r"\\boxed{", solution)
  # `\boxed 2$`
  braced = re.sub(r"\\(?:boxed|fbox)\s+([^{$]+)", r"\\boxed{\1}", braced)
  return last_boxed(braced) or ""


_PROBLEM = {
  "problem": ("problem", "Problem", "question", "Question"),
  "answer": ("answer", "Answer"),
}

SETS = {
  "gsm8k": DataSet(
    title="GSM8K",
    files={
      split: (f"{split}.jsonl", f"main/{split}-*.parquet")
      for split in ("train", "test")
    },
    fields={"question": ("question",), "answer": ("answer",)},
    problem=_numbered,
    verifier="gsm8k",
    category="math",
    citation="arXiv 2110.14168",
    license="MIT",
    urls={
      split: (
        f"{_RAW}/openai/grade-school-math/master/grade_school_math/data/{split}.jsonl",
      )
      for split in ("train", "test")
    },
  ),
  "math": DataSet(
    title="MATH",
    files={
      split: (
        f"{split}.jsonl",
        f"{split}/*/*.json",
        f"*/{split}-*.parquet",
        f"{split}-*.parquet",
      )
      for split in ("train", "test")
    },
    fields={"problem": ("problem", "question"), "solution": ("solution",)},
    problem=_worked,
    verifier="math",
    category="math",
    citation="arXiv 2103.03874",
    license="MIT",
  ),
  "math500": DataSet(
    title="MATH-500",
    files={"test": ("test.jsonl", "test-*.parquet")},
    fields=_PROBLEM,
    problem=_answered,
    verifier="math",
    category="math",
    citation="arXiv 2305.20050, of arXiv 2103.03874",
    license="MIT",
    urls={"test": (f"{_HUB}/HuggingFaceH4/MATH-500/resolve/main/test.jsonl",)},
  ),
  "aime24": DataSet(
    title="AIME 2024",
    files={
      "test": (
        "test.jsonl",
        "aime_2024*.jsonl",
        "aime_2024*.parquet",
        "data/train-*.parquet",
        "train-*.parquet",
      )
    },
    fields=_PROBLEM,
    problem=_answered,
    verifier="math",
    category="math",
    citation=_CONTESTS,
    urls={
      "test": (
        f"{_HUB}/HuggingFaceH4/aime_2024/resolve/main/data/"
        "train-00000-of-00001.parquet",
      )
    },
  ),
  "aime25": DataSet(
    title="AIME 2025",
    files={
      "test": (
        "test.jsonl",
        "aime2025-*.jsonl",
        "data/train-*.parquet",
        "train-*.parquet",
      )
    },
    fields=_PROBLEM,
    problem=_answered,
    verifier="math",
    category="math",
    citation=_CONTESTS,
    urls={
      "test": tuple(
        f"{_HUB}/opencompass/AIME2025/resolve/main/aime2025-{part}.jsonl"
        for part in ("I", "II")
      )
    },
  ),
  "amc": DataSet(
    title="AMC",
    files={
      "test": (
        "test.jsonl",
        "amc*.jsonl",
        "data/train-*.parquet",
        "data/test-*.parquet",
      )
    },
    fields=_PROBLEM,
    problem=_answered,
    verifier="math",
    category="math",
    citation=_CONTESTS,
  ),
  "gpqa": DataSet(
    title="GPQA (diamond)",
    files={"test": ("gpqa_diamond.csv", "gpqa_diamond.jsonl", "gpqa_diamond.parquet")},
    fields={
      "question": ("Question", "question"),
      "correct": ("Correct Answer", "correct_answer"),
      **{
        f"incorrect_{i}": (f"Incorrect Answer {i}", f"incorrect_answer_{i}")
        for i in (1, 2, 3)
      },
    },
    problem=_chosen,
    verifier="choice",
    category="stem",
    citation="arXiv 2311.12022",
    license="CC-BY-4.0",
  ),
  "svamp": DataSet(
    title="SVAMP",
    files={"test": ("SVAMP.json", "test.jsonl", "test.json", "data/test-*.parquet")},
    fields={
      "body": ("Body", "body"),
      "question": ("Question", "question"),
      "answer": ("Answer", "answer"),
    },
    problem=_told,
    verifier="gsm8k",
    category="math",
    citation="arXiv 2103.07191",
    license="MIT",
    urls={"test": (f"{_RAW}/arkilpatel/SVAMP/main/SVAMP.json",)},
  ),
  "s1k": DataSet(
    title="s1K",
    files={
      "train": ("data/train-*.parquet", "train-*.parquet", "train.jsonl", "s1*.jsonl")
    },
    fields={"question": ("question", "problem"), "solution": ("solution", "answer")},
    problem=_selected,
    verifier="math",
    category="math",
    citation="arXiv 2501.19393",
  ),
  "limo": DataSet(
    title="LIMO",
    files={"train": ("limo*.jsonl", "train.jsonl", "train-*.parquet")},
    fields=_PROBLEM,
    problem=_answered,
    verifier="math",
    category="math",
    citation="arXiv 2502.03387",
  ),
}
